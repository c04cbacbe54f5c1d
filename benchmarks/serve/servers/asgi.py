"""Our own request handler under bare uvicorn, without Serve: the ceiling. `python -m benchmarks.serve.servers.asgi PORT URI DIGEST`."""

import sys
from typing import Any

import uvicorn
import uvloop

from app.serving.asgi import PolicyApp
from app.serving.replica import PolicyHolder


async def app(uri: str, digest: str) -> PolicyApp:
    """The app once it holds the policy."""
    holder = PolicyHolder()
    holder.want({"serving": {"uri": uri, "digest": digest, "revision": 1}})
    await holder.first_attempt()

    async def status() -> dict[str, Any]:
        return holder.row()

    return PolicyApp(holder, "cartpole", status)


async def serve(port: int, uri: str, digest: str) -> None:
    """Serves until SIGTERM."""
    config = uvicorn.Config(await app(uri, digest), port=port, access_log=False, log_level="warning")
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
