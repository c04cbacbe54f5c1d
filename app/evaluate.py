"""Plays a published bundle and keeps the record: `python -m app.evaluate`. It proves the bundle, so it never sees the trainer.

Episode i starts with seed `seed + i` and is played greedily to its end, so each row of a record can be played again alone, and an
episode that is recorded already is not played again. A bundle may be played against another one: both in the same episodes, so that
what the seeds bring about falls out of the difference.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.bundle import BundleRefused, canonical_json
from app.environments import Environment, parsed_environment
from app.errors import InputError, RunError
from app.policy import Policy, loaded_policy
from app.report import ArgumentParser, Report, parsed_json, reported_run
from app.spaces import Arrays, batched, value_at
from app.storage import Storage, children, open_storage, read_json, safe_name, storage_faults, write_aside

# Environments that are open at a time; more would only take memory.
MOST_TOGETHER = 128


# What a record of an evaluation tells besides its episodes.
SUMMARY = ("id", "episodes", "seed", "mean", "std")
SUMMARY_AGAINST = ("digest", "mean", "std", "differenceMean", "differenceStd", "problem")
DIGEST = re.compile("sha256:[0-9a-f]{64}")
# So that it fits into a termination message.
PROBLEM_CHARACTERS = 500
# So that the line of a result stays one that a container runtime keeps whole (16 KiB).
MOST_RETURNS = 500


@dataclass(frozen=True)
class EvaluationRequest:
    """What to play: `episodes` episodes from `seed` on, recorded under `id`, and by the bundle `against` too where one is named."""

    id: str
    episodes: int
    seed: int
    against: str | None = None

    @property
    def seeds(self) -> range:
        """The seed of each episode."""
        return range(self.seed, self.seed + self.episodes)


@dataclass(frozen=True)
class Episode:
    """An episode that was played to its end; its length in steps."""

    seed: int
    total: float
    length: int


def parsed_request(request: Any) -> EvaluationRequest:
    """The evaluation that `--evaluation` asks for.

    Raises:
        InputError: a field is missing or not allowed.
    """
    match request:
        case {"id": str(evaluation_id), "episodes": int(episodes), "seed": int(seed)} if 1 <= episodes <= 100_000 and 0 <= seed < 2**31:
            against = request.get("against")
            if against is not None and not (isinstance(against, str) and DIGEST.fullmatch(against)):
                raise InputError("InvalidArguments", "evaluation.against must be a digest: sha256: and 64 hexadecimal digits")
            return EvaluationRequest(safe_name("evaluation.id", evaluation_id), episodes, seed, against)
    raise InputError("InvalidArguments", "spec.gate: the evaluation must have id, episodes (1 to 100000) and seed (0 to 2147483647)")


def evaluated(storage: Storage, digest: str, request: EvaluationRequest, prefixes: Sequence[str]) -> dict[str, Any]:
    """Plays a bundle, or finds the record of having played it, and gives the summary.

    Returns:
        `{"id", "episodes", "seed", "mean", "std"}`, `"returns"`, one an episode, where they are not too many, and `"against"` where
        another bundle was named: `{"digest", "mean", "std", "differenceMean", "differenceStd"}`, or `{"digest", "problem"}` where that
        one could not be played. The standard deviations are those of the episodes.

    Raises:
        RunError: the bundle is refused, the environment cannot be made, or the storage failed.
    """
    with storage_faults():
        record = read_json(storage.evaluation(request.id))
    if record is None or not _is_record_of(record, digest, request):
        record = _played(storage, digest, request, prefixes)
        with storage_faults():
            write_aside(storage.evaluation(request.id), canonical_json(record))
    against = record.get("against")
    summary = {name: record[name] for name in SUMMARY}
    if len(record["rows"]) <= MOST_RETURNS:
        summary["returns"] = [row["return"] for row in record["rows"]]
    return {**summary, "against": {name: against[name] for name in SUMMARY_AGAINST if name in against}} if against else summary


def _played(storage: Storage, digest: str, request: EvaluationRequest, prefixes: Sequence[str]) -> dict[str, Any]:
    """The record of an evaluation that was made now."""
    policy = _policy(storage, digest)
    described = policy.manifest["environment"]
    environment = parsed_environment(described, prefixes)
    episodes = _episodes(policy, environment, request.seeds, _recorded(storage, digest, described))
    if request.against is None:
        return _record(digest, request, described, episodes)
    try:
        other = _opponent(storage, request.against, policy)
    except RunError as error:
        # What serves now may be torn in the storage, or of another environment: that must not stop the policy that would replace it.
        return _record(
            digest,
            request,
            described,
            episodes,
            {"digest": request.against, "problem": f"{error.reason}: {error.message}"[:PROBLEM_CHARACTERS]},
        )
    theirs = _episodes(other, environment, request.seeds, _recorded(storage, request.against, described))
    return _record(digest, request, described, episodes, _against(request.against, episodes, theirs))


def _episodes(policy: Policy, environment: Environment, seeds: range, recorded: dict[int, Episode]) -> list[Episode]:
    """The episode of each seed; those that are recorded are not played again."""
    missing = [seed for seed in seeds if seed not in recorded]
    played = {episode.seed: episode for episode in played_episodes(policy, environment, missing)}
    return [played.get(seed) or recorded[seed] for seed in seeds]


def played_episodes(policy: Policy, environment: Environment, seeds: Sequence[int]) -> list[Episode]:
    """Plays one episode from each seed."""
    played: list[Episode] = []
    for first in range(0, len(seeds), MOST_TOGETHER):
        table = _Table(policy, environment, seeds[first : first + MOST_TOGETHER])
        while table.live:
            table.step()
        table.close()
        played += table.episodes()
    return played


class _Table:
    """Episodes that are played side by side, each in its own environment, until every one has ended.

    Not Gymnasium's vector environments: those begin a new episode where one ended, and the first N to end are the short ones.
    """

    def __init__(self, policy: Policy, environment: Environment, seeds: Sequence[int]) -> None:
        self._policy, self._seeds = policy, seeds
        self._state = policy.initial_state(len(seeds))
        self._environments = [environment.made() for _ in seeds]
        self._observations = [one.reset(seed=seed)[0] for one, seed in zip(self._environments, seeds, strict=True)]
        self._returns = [0.0] * len(seeds)
        self._lengths = [0] * len(seeds)
        self.live = list(range(len(seeds)))

    def step(self) -> None:
        """Acts once in each episode that has not ended."""
        actions = self._actions(batched(self._policy.observation_space, [self._observations[index] for index in self.live]))
        still_live = []
        for row, index in enumerate(self.live):
            action = value_at(self._policy.action_space, actions, row)
            observation, reward, terminated, truncated, _ = self._environments[index].step(action)
            self._observations[index] = observation
            self._returns[index] += float(reward)
            self._lengths[index] += 1
            if not (terminated or truncated):
                still_live.append(index)
        self.live = still_live

    def episodes(self) -> list[Episode]:
        """What was played, by its seed."""
        return [Episode(*row) for row in zip(self._seeds, self._returns, self._lengths, strict=True)]

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


def _opponent(storage: Storage, digest: str, candidate: Policy) -> Policy:
    """The policy that the candidate is played against, in the candidate's environment.

    Raises:
        RunError: its bundle is refused, or it is made for other spaces.
    """
    policy = _policy(storage, digest)
    for space in ("observationSpace", "actionSpace"):
        if policy.manifest[space] != candidate.manifest[space]:
            raise InputError("SpacesDiffer", f"{digest} is made for another {space}")
    return policy


def _recorded(storage: Storage, digest: str, environment: Any) -> dict[int, Episode]:
    """The episodes of a bundle in an environment that earlier evaluations have played, by their seeds."""
    with storage_faults():
        place = storage.evaluations()
        records = [read_json(place / name) for name in children(place) if name.endswith(".json")]
    sides = [side for record in records if record and record.get("environment") == environment for side in (record, record.get("against"))]
    return {episode.seed: episode for side in sides if side and side.get("digest") == digest for episode in _rows_of(side)}


def _rows_of(side: dict[str, Any]) -> Iterator[Episode]:
    for row in side.get("rows", []):
        yield Episode(row["seed"], row["return"], row["length"])


def _is_record_of(record: dict[str, Any], digest: str, request: EvaluationRequest) -> bool:
    asked = {"digest": digest, "id": request.id, "episodes": request.episodes, "seed": request.seed}
    against = record.get("against") or {}
    # An opponent that could not be played may be there again.
    return all(record.get(name) == value for name, value in asked.items()) and (
        against.get("digest") == request.against and "problem" not in against
    )


def _record(
    digest: str, request: EvaluationRequest, environment: Any, episodes: list[Episode], against: dict[str, Any] | None = None
) -> dict[str, Any]:
    asked = {"id": request.id, "episodes": request.episodes, "seed": request.seed}
    returns = [episode.total for episode in episodes]
    record = {"digest": digest, "environment": environment, **asked, **_figures(returns), "rows": _rows(episodes)}
    return {**record, "against": against} if against else record


def _against(digest: str, episodes: list[Episode], theirs: list[Episode]) -> dict[str, Any]:
    """What the other bundle did, and how the returns differ: the candidate's less its, episode by episode."""
    pairs = zip(episodes, theirs, strict=True)
    differences = _figures([ours.total - other.total for ours, other in pairs])
    figures = {
        **_figures([episode.total for episode in theirs]),
        "differenceMean": differences["mean"],
        "differenceStd": differences["std"],
    }
    return {"digest": digest, **figures, "rows": _rows(theirs)}


def _figures(returns: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(returns)), "std": float(np.std(returns, ddof=1))}


def _rows(episodes: list[Episode]) -> list[dict[str, Any]]:
    return [{"seed": episode.seed, "return": episode.total, "length": episode.length} for episode in episodes]


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
