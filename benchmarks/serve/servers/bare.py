"""A Serve application that does nothing: what a replica costs before it holds a policy. Started by `app.serve`, as ours is."""

from typing import Any

from ray import serve

ANSWER = b"{}"
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


class EmptyApp:
    """Answers everything by an empty object."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": ANSWER})


@serve.deployment(name="Bare", max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(EmptyApp())
class Bare:
    """One replica."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application, as `serveConfigV2` names it."""
    return Bare.bind()
