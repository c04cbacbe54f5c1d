"""The tutorial's loop: plays an environment by asking a served policy over HTTP, `python -m app.client`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import requests

from app.environments import Environment, parsed_environment, spaces_of
from app.errors import InputError, RetryableError, RunError
from app.report import parsed_json
from app.spaces import ObservationReader, as_json, batched, value_at

TIMEOUT_S = 10
# 503 is said by a server without a policy yet; acting changes nothing, so asking again is safe.
TRIES = 5


class PolicyClient:
    """Asks one served policy for actions over a kept connection.

    Args:
        url: of the policy's route.
        host: name that an Ingress knows the policy by, where the URL reaches it by another.
    """

    def __init__(self, url: str, host: str | None = None) -> None:
        self._url = url
        self._session = requests.Session()
        if host is not None:
            self._session.headers["Host"] = host

    def ask(self, observation: Any) -> dict[str, Any]:
        """The server's answer to one observation (nested lists), `{"action": ...}`.

        Raises:
            InputError: the server refused the observation; its detail is the message.
            RetryableError: the server cannot be reached or has no policy, also after `TRIES` tries.
        """
        for attempt in range(1, TRIES + 1):
            try:
                response = self._session.post(self._url, json={"observation": observation}, timeout=TIMEOUT_S)
            except requests.RequestException as error:
                if attempt == TRIES:
                    raise RetryableError("Unreachable", f"{self._url} cannot be reached: {type(error).__name__}") from error
                time.sleep(0.2 * attempt)
                continue
            if response.status_code == requests.codes.ok:
                answer: dict[str, Any] = response.json()
                return answer
            if response.status_code < 500:
                raise InputError("Refused", f"{self._url} answered {response.status_code}: {_detail(response)}")
            time.sleep(min(float(response.headers.get("retry-after", 1)), 5.0) if attempt < TRIES else 0)
        raise RetryableError("Unavailable", f"{self._url} answered {response.status_code}: {_detail(response)}")


def played_episode(client: PolicyClient, one: Any, seed: int | None, quiet: bool) -> float:
    """Plays one episode and gives its return; prints what is sent and received unless `quiet`."""
    observation_space, action_space = spaces_of(one)
    reader = ObservationReader(action_space)
    observation, _ = one.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        (sent,) = as_json(observation_space, batched(observation_space, [observation]))
        if not quiet:
            print(f"-> Sending observation {json.dumps(sent)}")
        answer = client.ask(sent)
        if not quiet:
            print(f"<- Received response {json.dumps(answer)}")
        action = value_at(action_space, reader.batch([answer["action"]]), 0)
        observation, reward, terminated, truncated, _ = one.step(action)
        total += float(reward)
        is_over = terminated or truncated
    return total


def _detail(response: requests.Response) -> str:
    try:
        return str(response.json().get("detail", response.reason))
    except (ValueError, AttributeError):
        return str(response.reason)


def run(argv: Sequence[str]) -> None:
    """What `python -m app.client` does."""
    parser = argparse.ArgumentParser(prog="app.client", description="Plays episodes against a served policy.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--host", default=None, metavar="NAME", help="name of the policy's Ingress, where the URL has another")
    parser.add_argument("--episodes", type=int, default=1, metavar="N")
    parser.add_argument("--environment", default='{"id": "CartPole-v1"}', metavar="JSON")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="of the first episode; each next one has one more")
    parser.add_argument("--quiet", action="store_true", help="print totals only")
    arguments = parser.parse_args(argv)
    environment: Environment = _parsed(arguments.environment)
    client, one = PolicyClient(arguments.url, arguments.host), environment.made()
    returns = []
    for episode in range(arguments.episodes):
        seed = None if arguments.seed is None else arguments.seed + episode
        returns.append(played_episode(client, one, seed, arguments.quiet))
        print(f"total reward {returns[-1]:g}", flush=True)
    one.close()
    print(f"mean return over {len(returns)} episodes: {sum(returns) / len(returns):.1f}")


def _parsed(text: str) -> Environment:
    """The environment to play. The one who runs the client names it, so its own entry point is always allowed."""
    described = parsed_json("--environment", text)
    own = [described["entryPoint"]] if isinstance(described, dict) and isinstance(described.get("entryPoint"), str) else []
    return parsed_environment(described, own)


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
