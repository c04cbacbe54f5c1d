"""Asks a served policy for actions: `PolicyClient`, and on top of it the tutorial's loop, `python -m app.client`.

The client needs requests alone; the loop needs gymnasium, which it imports when it runs.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import requests

from app import client_wire as wire
from app.client_wire import (
    Answer,
    BatchAnswer,
    ObservationRefused,
    PolicyClientError,
    RequestRefused,
    Retries,
    Timeouts,
    Unavailable,
    Unreachable,
)
from app.errors import InputError, RetryableError, RunError
from app.report import parsed_json

if TYPE_CHECKING:
    from app.environments import Environment

__all__ = [
    "Answer",
    "BatchAnswer",
    "ObservationRefused",
    "PolicyClient",
    "PolicyClientError",
    "RequestRefused",
    "Retries",
    "Timeouts",
    "Unavailable",
    "Unreachable",
]

# What may pass by itself; anything else that requests raises is a mistake in the call.
CUT_OR_SLOW = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class PolicyClient:
    """Asks one served policy over one kept session. For one thread, and for one episode at a time.

    Args:
        url: of the policy's route, such as `http://127.0.0.1:8000/cartpole-ppo`.
        host: name that an Ingress knows the policy by, where the URL reaches it by another.
        headers: sent with every request, such as Authorization.
        session_id: names the first episode (`x-session-id`): a canary answers all of an episode, or nothing of it; see `new_episode`.
        timeouts: of one try.
        retries: when a try is repeated.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        host: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        session_id: str | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._url = wire.checked_url(url)
        self._session = requests.Session()
        self._session.headers.update({"Content-Type": "application/json", **(headers or {}), **({} if host is None else {"Host": host})})
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._episode = wire.Episode(session_id)

    def act(
        self, observation: Any, *, explore: bool = False, seed: int | None = None, action_mask: Any = None, state: Any = None
    ) -> Answer:
        """The action for one observation.

        Args:
            observation: an array, a number, or tuples and dicts of them, as the observation space says.
            explore: whether to sample from the policy's distribution instead of taking its best action.
            seed: of that sample; the same seed gives the same action again.
            action_mask: which actions are allowed, as the action space says.
            state: `Answer.state` of the step before, for a policy with memory; None begins an episode.

        Raises:
            ObservationRefused: the observation is none of the space's.
            RequestRefused: the URL or the request is wrong.
            Unavailable: there is no policy, or too many ask, also after every repetition.
            Unreachable: nothing answers, also after every repetition.
        """
        content, headers = self._sent("POST", "", wire.body(observation, explore, seed, action_mask, state))
        answer = wire.answer_of(content, headers)
        self._episode.saw(answer.digest)
        return answer

    def act_batch(
        self, observations: Any, *, explore: bool = False, seed: int | None = None, action_masks: Any = None, states: Any = None
    ) -> BatchAnswer:
        """The actions for many observations, in one request and by one policy.

        Args:
            observations: a sequence of observations, or an array whose first axis counts them.
            explore, seed: see `act`; one seed serves the whole batch.
            action_masks, states: one item an observation.

        Raises:
            PolicyClientError: see `act`.
        """
        content, headers = self._sent("POST", "", wire.batch_body(observations, explore, seed, action_masks, states))
        answer = wire.batch_answer_of(content, headers)
        self._episode.saw(answer.digest)
        return answer

    def spec(self) -> dict[str, Any]:
        """The spaces of the policy as JSON Schema, `GET <route>/v1/spec`."""
        return self._sent("GET", "/v1/spec", None)[0]

    def status(self) -> dict[str, Any]:
        """What every replica holds, `GET <route>/v1/status`."""
        return self._sent("GET", "/v1/status", None)[0]

    def new_episode(self, session_id: str | None = None) -> None:
        """Begins an episode: from its first answer on, `x-policy-pin` asks for the policy that answered, through every rollout.

        Args:
            session_id: names the episode, and no other; None makes a name.
        """
        self._episode.begin(session_id)

    def episode(self, session_id: str | None = None) -> Self:
        """A client of its own for one episode, over the same connections: several episodes may so run beside one another."""
        other = copy.copy(self)
        other._episode = wire.Episode(None)
        other.new_episode(session_id)
        return other

    def report_return(self, total: float, *, done: bool = True) -> bool:
        """Reports the return of the episode, by which a candidate is judged; may be called again.

        Args:
            total: the sum of the rewards so far.
            done: whether the episode is over; only then does it count.

        Returns:
            Whether it counts: not where the policy that played is no longer held.

        Raises:
            ValueError: there is no episode, or nothing has been answered in it.
            PolicyClientError: see `act`.
        """
        return bool(self._sent("POST", "/v1/rewards", self._episode.return_body(total, done))[0].get("counted"))

    def close(self) -> None:
        """Closes the kept connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sent(self, method: str, path: str, body: bytes | None) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The JSON object of the answer, and its headers."""
        began, tried = time.monotonic(), 0
        while True:
            try:
                return self._sent_once(method, path, body, self._retries.deadline_s - (time.monotonic() - began))
            except PolicyClientError as failure:
                tried += 1
                pause_s = self._retries.pause_s(tried, failure, time.monotonic() - began, random.random())
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def _sent_once(self, method: str, path: str, body: bytes | None, left_s: float) -> tuple[dict[str, Any], Mapping[str, str]]:
        limits = self._timeouts.within(left_s)
        try:
            # A redirected POST would go on as a GET without its body.
            response = self._session.request(
                method,
                self._url + path,
                data=body,
                headers=self._episode.headers(),
                timeout=(limits.connect_s, limits.read_s),
                allow_redirects=False,
            )
        except CUT_OR_SLOW as error:
            raise Unreachable(f"no answer: {type(error).__name__}") from error
        return wire.content_of(response.status_code, response.headers, response.content), response.headers


def played_episode(client: PolicyClient, one: Any, seed: int | None, quiet: bool, trace: bool = False) -> float:
    """Plays one episode, reports its return and gives it; prints what is sent and received unless `quiet`.

    Args:
        trace: whether each step is told in a line of JSON, for programs that draw it.
    """
    client.new_episode()
    observation, _ = one.reset(seed=seed)
    total, step, is_over, state = 0.0, 0, False, None
    while not is_over:
        sent = wire.plain(observation)
        if not quiet:
            print(f"-> Sending observation {json.dumps(sent)}")
        answer = client.act(sent, state=state)
        state = answer.state
        if not quiet:
            received = {"action": answer.action} if state is None else {"action": answer.action, "state": state}
            print(f"<- Received response {json.dumps(received)}")
        observation, reward, terminated, truncated, _ = one.step(as_the_environment_takes_it(one.action_space, answer.action))
        total, step = total + float(reward), step + 1
        is_over = terminated or truncated
        if trace:
            told = {"step": step, "observation": sent, "action": answer.action, "reward": float(reward), "return": total}
            print(json.dumps({**told, "done": bool(is_over), "digest": answer.digest}), flush=True)
    _report(client, total)
    return total


def _report(client: PolicyClient, total: float) -> None:
    """Reports a return to servers that take it: what was played is played, whatever becomes of the report."""
    try:
        client.report_return(total)
    except PolicyClientError as error:
        print(f"the return was not reported: {error}", file=sys.stderr)


def as_the_environment_takes_it(space: Any, action: Any) -> Any:
    """An action of JSON as one of the Gymnasium space: lists become arrays, but tuples where the space is one; integers stay."""
    if isinstance(action, int):
        return action
    if isinstance(action, dict):
        return {name: as_the_environment_takes_it(space[name], item) for name, item in action.items()}
    if space.dtype is None:  # of the spaces with lists of JSON only Tuple has no dtype
        return tuple(as_the_environment_takes_it(part, item) for part, item in zip(space, action, strict=True))
    import numpy as np

    return np.array(action, dtype=space.dtype)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(argv: Sequence[str]) -> None:
    """What `python -m app.client` does.

    Raises:
        InputError: a flag is wrong, or the server refuses what was sent.
        RetryableError: the server cannot be reached or has no policy.
    """
    parser = argparse.ArgumentParser(prog="app.client", description="Plays episodes against a served policy.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--host", default=None, metavar="NAME", help="name of the policy's Ingress, where the URL has another")
    parser.add_argument("--episodes", type=_positive, default=1, metavar="N")
    parser.add_argument("--environment", default='{"id": "CartPole-v1"}', metavar="JSON")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="of the first episode; each next one has one more")
    parser.add_argument("--quiet", action="store_true", help="print totals only")
    parser.add_argument("--trace", action="store_true", help="with --quiet: a line of JSON for each step besides")
    arguments = parser.parse_args(argv)
    client, one = _client(arguments.url, arguments.host), _parsed(arguments.environment).made()
    returns = []
    try:
        for episode in range(arguments.episodes):
            seed = None if arguments.seed is None else arguments.seed + episode
            returns.append(played_episode(client, one, seed, arguments.quiet, arguments.trace))
            print(f"total reward {returns[-1]:g}", flush=True)
    except PolicyClientError as error:
        raise _as_run_error(arguments.url, error) from error
    finally:
        one.close()
        client.close()
    print(f"mean return over {len(returns)} episodes: {sum(returns) / len(returns):.1f}")


def _client(url: str, host: str | None) -> PolicyClient:
    try:
        return PolicyClient(url, host)
    except ValueError as error:
        raise InputError("InvalidArguments", f"--url: {error}") from error


def _as_run_error(url: str, error: PolicyClientError) -> RunError:
    if isinstance(error, RequestRefused):
        return InputError("Refused", f"{url} answered {error}")
    if isinstance(error, Unavailable):
        return RetryableError("Unavailable", f"{url} answered {error}")
    return RetryableError("Unreachable", f"{url} cannot be reached: {error}")


def _parsed(text: str) -> "Environment":
    """The environment to play. The one who runs the client names it, so what it imports is always allowed."""
    from app.environments import parsed_environment

    described = parsed_json("--environment", text)
    named = (described.get("entryPoint") or described.get("id")) if isinstance(described, dict) else None
    return parsed_environment(described, [named] if isinstance(named, str) else [])


def main() -> int:
    """Entry point; gives the exit code."""
    try:
        run(sys.argv[1:])
    except RunError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
