"""Plays a published bundle and keeps the record: `python -m app.evaluate`. It proves the bundle, so it never sees the trainer.

Episode i starts with seed `seed + i` and is played greedily to its end, so each row of a record can be played again alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.bundle import BundleRefused, canonical_json
from app.environments import Environment, parsed_environment
from app.errors import InputError, RunError
from app.policy import Policy, loaded_policy
from app.report import ArgumentParser, Report, parsed_json, reported_run
from app.spaces import Arrays, batched, value_at
from app.storage import Storage, open_storage, read_json, safe_name, storage_faults, write_aside

# Environments that are open at a time; more would only take memory.
MOST_TOGETHER = 128


@dataclass(frozen=True)
class EvaluationRequest:
    """What to play: `episodes` episodes from `seed` on, recorded under `id`."""

    id: str
    episodes: int
    seed: int


def parsed_request(request: Any) -> EvaluationRequest:
    """The evaluation that `--evaluation` asks for.

    Raises:
        InputError: a field is missing or not allowed.
    """
    match request:
        case {"id": str(evaluation_id), "episodes": int(episodes), "seed": int(seed)} if 1 <= episodes <= 100_000 and 0 <= seed < 2**31:
            return EvaluationRequest(safe_name("evaluation.id", evaluation_id), episodes, seed)
    raise InputError("InvalidArguments", "spec.gate: the evaluation must have id, episodes (1 to 100000) and seed (0 to 2147483647)")


def evaluated(storage: Storage, digest: str, request: EvaluationRequest, prefixes: Sequence[str]) -> dict[str, Any]:
    """Plays a bundle, or finds the record of having played it, and gives the summary.

    Returns:
        `{"id", "episodes", "seed", "mean", "std"}`; the standard deviation is that of the episodes.

    Raises:
        RunError: the bundle is refused, the environment cannot be made, or the storage failed.
    """
    with storage_faults():
        record = read_json(storage.evaluation(request.id))
    if record is None or not _is_record_of(record, digest, request):
        policy = _policy(storage, digest)
        environment = parsed_environment(policy.manifest["environment"], prefixes)
        returns, lengths = played_episodes(policy, environment, request.episodes, request.seed)
        record = _record(digest, request, returns, lengths)
        with storage_faults():
            write_aside(storage.evaluation(request.id), canonical_json(record))
    return {name: record[name] for name in ("id", "episodes", "seed", "mean", "std")}


def played_episodes(policy: Policy, environment: Environment, episodes: int, seed: int) -> tuple[list[float], list[int]]:
    """The return and the length (steps) of each episode, episode i seeded with `seed + i`."""
    returns: list[float] = []
    lengths: list[int] = []
    for first in range(0, episodes, MOST_TOGETHER):
        seeds = range(seed + first, seed + min(first + MOST_TOGETHER, episodes))
        table = _Table(policy, environment, seeds)
        while table.live:
            table.step()
        table.close()
        returns += table.returns
        lengths += table.lengths
    return returns, lengths


class _Table:
    """Episodes that are played side by side, each in its own environment, until every one has ended.

    Not Gymnasium's vector environments: those begin a new episode where one ended, and the first N to end are the short ones.
    """

    def __init__(self, policy: Policy, environment: Environment, seeds: range) -> None:
        self._policy = policy
        self._state = policy.initial_state(len(seeds))
        self._environments = [environment.made() for _ in seeds]
        self._observations = [one.reset(seed=seed)[0] for one, seed in zip(self._environments, seeds, strict=True)]
        self.returns = [0.0] * len(seeds)
        self.lengths = [0] * len(seeds)
        self.live = list(range(len(seeds)))

    def step(self) -> None:
        """Acts once in each episode that has not ended."""
        actions = self._actions(batched(self._policy.observation_space, [self._observations[index] for index in self.live]))
        still_live = []
        for row, index in enumerate(self.live):
            action = value_at(self._policy.action_space, actions, row)
            observation, reward, terminated, truncated, _ = self._environments[index].step(action)
            self._observations[index] = observation
            self.returns[index] += float(reward)
            self.lengths[index] += 1
            if not (terminated or truncated):
                still_live.append(index)
        self.live = still_live

    def _actions(self, observations: Arrays) -> Arrays:
        """The greedy actions of the live episodes; each goes on from its own state."""
        if not self._policy.is_recurrent:
            return self._policy.act(observations)
        decision = self._policy.decide(observations, tuple(state[self.live] for state in self._state))
        for state, next_state in zip(self._state, decision.state, strict=True):
            state[self.live] = next_state
        return decision.actions

    def close(self) -> None:
        """Gives back what the environments hold."""
        for one in self._environments:
            one.close()


def _policy(storage: Storage, digest: str) -> Policy:
    try:
        return loaded_policy(storage.bundles() / digest.removeprefix("sha256:"), digest)
    except BundleRefused as error:
        raise RunError(error.reason, error.message) from error


def _is_record_of(record: dict[str, Any], digest: str, request: EvaluationRequest) -> bool:
    asked = {"digest": digest, "id": request.id, "episodes": request.episodes, "seed": request.seed}
    return all(record.get(name) == value for name, value in asked.items())


def _record(digest: str, request: EvaluationRequest, returns: list[float], lengths: list[int]) -> dict[str, Any]:
    rows = [{"seed": request.seed + i, "return": returns[i], "length": lengths[i]} for i in range(request.episodes)]
    figures = {"mean": float(np.mean(returns)), "std": float(np.std(returns, ddof=1))}
    return {"digest": digest, "id": request.id, "episodes": request.episodes, "seed": request.seed, **figures, "rows": rows}


def run(argv: Sequence[str], _report: Report) -> dict[str, Any]:
    """What `python -m app.evaluate` does; gives its result."""
    parser = ArgumentParser(prog="app.evaluate", description="Plays a published bundle and keeps the record.")
    parser.add_argument("--storage", required=True, metavar="URI")
    parser.add_argument("--digest", required=True)
    parser.add_argument("--evaluation", required=True, metavar="JSON")
    parser.add_argument("--entry-point-prefix", action="append", default=[], metavar="PREFIX")
    arguments = parser.parse_args(argv)
    request = parsed_request(parsed_json("--evaluation", arguments.evaluation))
    summary = evaluated(open_storage(arguments.storage), arguments.digest, request, arguments.entry_point_prefix)
    return {"digest": arguments.digest, "evaluation": summary}


def main() -> int:
    """Entry point; gives the exit code."""
    return reported_run(lambda report: run(sys.argv[1:], report))


if __name__ == "__main__":
    sys.exit(main())
