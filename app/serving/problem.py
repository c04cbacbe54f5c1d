"""What a client is told when it gets no action: problem details (RFC 9457) that name the bad part and never echo what was sent."""

from dataclasses import dataclass, field
from typing import Any

import orjson

Headers = list[tuple[bytes, bytes]]

TITLES = {
    400: "Body is not JSON",
    404: "No such path",
    405: "Method not allowed",
    408: "Body too slow",
    413: "Body too large",
    422: "Observation refused",
    499: "Client hung up",
    500: "The policy failed",
    503: "Not now",
}


@dataclass(frozen=True)
class Problem(Exception):
    """An answer that is not 200.

    Attributes:
        status: HTTP status, one of `TITLES`.
        detail: one sentence for the client.
        pointer: JSON pointer (RFC 6901) to the bad part of the body.
        headers: further ones, beside Content-Type.
    """

    status: int
    detail: str
    pointer: str | None = None
    headers: Headers = field(default_factory=list)

    def body(self) -> bytes:
        """The JSON of the problem."""
        content: dict[str, Any] = {"type": "about:blank", "title": TITLES[self.status], "status": self.status, "detail": self.detail}
        if self.pointer is not None:
            content["pointer"] = self.pointer
        return orjson.dumps(content)


NO_POLICY_RETRY_S = 5
OVERLOAD_RETRY_S = 1


def no_policy() -> Problem:
    """503: nothing has been approved yet that could answer."""
    return _unavailable("no policy has been approved yet", NO_POLICY_RETRY_S)


def overloaded() -> Problem:
    """503: there is more to do than can be done."""
    return _unavailable("more requests come than can be answered", OVERLOAD_RETRY_S)


def _unavailable(detail: str, retry_after_s: int) -> Problem:
    """503, with the time after which another try is worth its while."""
    return Problem(503, detail, headers=[(b"retry-after", str(retry_after_s).encode())])
