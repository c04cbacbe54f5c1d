"""What the clients of a served policy put on the wire, read from it and repeat. Pure: no sockets, no clock, only the standard library.

| given | key of the body | in a batch |
| --- | --- | --- |
| observation | `observation` | `observations` |
| explore, seed | `explore`, `seed` | the same |
| action mask | `action_mask` | `action_masks` |
| recurrent state | `state` | `states` |
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# A gateway that finds no replica, a server without a policy yet, a replica that went away: each may pass within seconds.
PASSING_STATUSES = (502, 503, 504)
# As those where what answers is not the policy's server: HAProxy says 500 for each of them (ray/serve/_private/haproxy.py), and an ingress
# or HAProxy 404 for some seconds while KubeRay switches clusters.
PASSING_STATUSES_OF_OTHERS = (500, 404)
NOWHERE_RETRY_S = 1.0
PROBLEM_JSON = "application/problem+json"


class PolicyClientError(Exception):
    """Base of all that a client raises about a server.

    Attributes:
        may_pass: whether the same try may succeed later.
        retry_after_s: to wait before it, in seconds; None where nothing says so.
    """

    may_pass = False
    retry_after_s: float | None = None


class RequestRefused(PolicyClientError):
    """The server refuses this request and will refuse it again (3xx and 4xx); a 404 that is not the policy's was repeated in vain.

    Args:
        status: of the answer.
        detail: the server's sentence about it.
        is_of_another: whether something else than the policy's server answered.
    """

    def __init__(self, status: int, detail: str, *, is_of_another: bool = False) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.may_pass = is_of_another and status in PASSING_STATUSES_OF_OTHERS
        self.retry_after_s = NOWHERE_RETRY_S if self.may_pass else None


class ObservationRefused(RequestRefused):
    """What was sent is nothing that the policy can act on (4xx with problem details, RFC 9457).

    Args:
        pointer: JSON pointer (RFC 6901) to the bad part of the body, such as `/observation/2`; None where the server names none.
    """

    def __init__(self, status: int, detail: str, pointer: str | None) -> None:
        super().__init__(status, f"{pointer} {detail}" if pointer else detail)
        self.detail = detail
        self.pointer = pointer


class Unavailable(PolicyClientError):
    """The server could not answer (5xx); 502, 503 and 504 were repeated in vain, and a 500 that is not the policy's server's.

    Args:
        retry_after_s: what the server asks to wait before the next try, in seconds; None where it says nothing.
        is_of_another: whether something else than the policy's server answered.
    """

    def __init__(self, status: int, detail: str, retry_after_s: float | None, *, is_of_another: bool = False) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_pass = status in PASSING_STATUSES or (is_of_another and status in PASSING_STATUSES_OF_OTHERS)


class Unreachable(PolicyClientError):
    """No connection, no answer in time, or one that was cut in the middle; also after every repetition."""

    may_pass = True


@dataclass(frozen=True)
class Answer:
    """The answer to one observation.

    Attributes:
        action: an integer, or nested lists or objects, as the action space says.
        digest: of the policy that acted; empty where what answers sends no `x-policy-digest`.
        revision: of that policy; None where it was served without one.
        state: recurrent state to send with the next observation; None where the policy has none.
    """

    action: Any
    digest: str
    revision: int | None
    state: Any = None


@dataclass(frozen=True)
class BatchAnswer:
    """The answer to many observations, in their order; one policy acted on all of them. See `Answer`."""

    actions: list[Any]
    digest: str
    revision: int | None
    states: list[Any] | None = None


@dataclass(frozen=True)
class Timeouts:
    """Seconds for one try.

    Attributes:
        connect_s: until a connection stands.
        read_s: without a byte of the answer.
    """

    connect_s: float = 3.0
    read_s: float = 10.0

    def within(self, left_s: float) -> "Timeouts":
        """The same where so much time is left; never zero, which would mean none."""
        left_s = max(left_s, 0.001)
        return Timeouts(min(self.connect_s, left_s), min(self.read_s, left_s))


@dataclass(frozen=True)
class Retries:
    """When a try is repeated. Acting changes nothing in the server, so a try whose end is unknown may be repeated too.

    Attributes:
        tries: at most, the first included; 1 repeats nothing.
        first_pause_s: before the second try; it doubles with each further one.
        longest_pause_s: cap of a pause, of one that the server asks for too.
        deadline_s: no try begins later than this after the first one began, and none goes on longer.
    """

    tries: int = 5
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    deadline_s: float = 30.0

    def pause_s(self, tried: int, failure: PolicyClientError, elapsed_s: float, chance: float) -> float | None:
        """Seconds to wait before the next try; None where there is to be none.

        Args:
            tried: tries so far, from 1.
            failure: of the last one.
            elapsed_s: since the first one began.
            chance: uniform from [0, 1), so that clients that failed together do not come back together.
        """
        if not failure.may_pass or tried >= self.tries:
            return None
        asked_s = failure.retry_after_s
        if asked_s is None:
            pause_s = min(self.first_pause_s * 2 ** (tried - 1), self.longest_pause_s) * (0.5 + chance / 2)
        else:
            pause_s = min(asked_s, self.longest_pause_s) * (1 + chance / 10)
        return pause_s if elapsed_s + pause_s < self.deadline_s else None


def checked_url(url: str) -> str:
    """The URL of a policy's route without a slash at its end.

    Raises:
        ValueError: it is no http(s) URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of a policy looks like http://127.0.0.1:8000/cartpole-ppo")
    return url.rstrip("/")


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays and tuples become lists, scalars of NumPy become numbers, by their own `tolist`.

    Raises:
        TypeError: JSON has no such value.
    """
    match value:
        case None | bool() | str():
            return value
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{type(value).__name__} cannot be sent as an observation; send numbers, arrays, tuples or dicts of them")


def body(observation: Any, explore: bool, seed: int | None, action_mask: Any, state: Any) -> bytes:
    """The body that asks for one action. What is not given is not sent."""
    return _encoded({"observation": plain(observation), **_options(explore, seed, action_mask=action_mask, state=state)})


def batch_body(observations: Any, explore: bool, seed: int | None, action_masks: Any, states: Any) -> bytes:
    """The body that asks for many actions. What is not given is not sent.

    Raises:
        TypeError: the observations are no sequence or array of them.
    """
    sent = plain(observations)
    if not isinstance(sent, list):
        raise TypeError("observations must be a sequence of observations, or an array whose first axis counts them")
    return _encoded({"observations": sent, **_options(explore, seed, action_masks=action_masks, states=states)})


def _options(explore: bool, seed: int | None, **others: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"explore": True} if explore else {}
    if seed is not None:
        options["seed"] = int(seed)
    return options | {name: plain(value) for name, value in others.items() if value is not None}


def _encoded(content: dict[str, Any]) -> bytes:
    # NaN is no JSON, but the server knows it and says where it stands; refusing it here would say less.
    return json.dumps(content, separators=(",", ":")).encode()


def content_of(status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
    """The JSON object of an answer.

    Args:
        status: of the HTTP answer.
        headers: its headers, under lower-case names or whatever their case.
        content: its body.

    Raises:
        PolicyClientError: it is none that helps.
    """
    read = _json_object(content)
    if status == 200 and read is not None:
        return read
    if status == 200:  # a connection that ends early looks like this where the server does not tell the length
        raise Unreachable("the answer is no JSON object; is this the URL of a policy?")
    if status < 400:
        raise RequestRefused(status, f"the server sends elsewhere: {headers.get('location', 'it does not say where')}")
    problem = read or {}
    detail = str(problem.get("detail") or problem.get("title") or "the server says nothing more")
    is_of_another = not headers.get("content-type", "").startswith(PROBLEM_JSON)
    if status >= 500:
        raise Unavailable(status, detail, _seconds(headers.get("retry-after")), is_of_another=is_of_another)
    if "detail" in problem:
        pointer = problem.get("pointer")
        raise ObservationRefused(status, detail, None if pointer is None else str(pointer))
    raise RequestRefused(status, detail, is_of_another=is_of_another)


def answer_of(content: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """The answer to one observation.

    Raises:
        RequestRefused: what answers is no policy.
    """
    return Answer(_member(content, "action"), *_policy_of(headers), content.get("state"))


def batch_answer_of(content: Mapping[str, Any], headers: Mapping[str, str]) -> BatchAnswer:
    """The answer to many observations.

    Raises:
        RequestRefused: what answers is no policy.
    """
    return BatchAnswer(_member(content, "actions"), *_policy_of(headers), content.get("states"))


def _member(content: Mapping[str, Any], name: str) -> Any:
    if name not in content:
        raise RequestRefused(200, f"the answer holds no {name}; is this the URL of a policy?")
    return content[name]


def _policy_of(headers: Mapping[str, str]) -> tuple[str, int | None]:
    revision = headers.get("x-policy-revision", "")
    return headers.get("x-policy-digest", ""), int(revision) if revision.isdecimal() else None


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        read = json.loads(content)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After header; None where it is missing or a date, which no server of ours sends."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


class Episode:
    """What keeps one episode with one policy while policies change: a name, and the digest that answered last.

    Without a name and before the first `begin` nothing is pinned: a client that knows no episodes follows each rollout at once.
    """

    def __init__(self, session_id: str | None) -> None:
        self._session_id = session_id
        self._digest = ""
        self._steps = 0

    def begin(self, session_id: str | None) -> None:
        """Another episode, under this name or a new one: what decides by the name is to decide anew."""
        self._session_id = secrets.token_hex(8) if session_id is None else session_id
        self._digest = ""
        self._steps = 0

    def saw(self, digest: str) -> None:
        """Takes note of an answer and of the policy that gave it."""
        self._digest = digest
        self._steps += 1

    def headers(self) -> dict[str, str]:
        """To be sent with the next observation, and with the return."""
        if self._session_id is None:
            return {}
        return {"x-session-id": self._session_id, **({"x-policy-pin": self._digest} if self._digest else {})}

    def return_body(self, total: float, is_done: bool) -> bytes:
        """The body that reports the return so far.

        Raises:
            ValueError: there is no episode, or nothing has been answered in it.
        """
        if self._session_id is None or not self._steps:
            raise ValueError("a return is that of an episode: begin one, and ask for an action")
        report = {"session": self._session_id, "step": self._steps, "return": float(total), "done": is_done}
        return _encoded(report | ({"digest": self._digest} if self._digest else {}))
