"""A bundle is played against another one in the same episodes, and no episode is played twice."""

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from app import evaluate
from app.bundle import published_bundle, read_bundle
from app.errors import InputError
from app.evaluate import EvaluationRequest, evaluated, parsed_request
from app.storage import Storage


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Which seeds are played with which bundle."""
    played, play = [], evaluate.played_episodes

    def noted(policy: Any, environment: Any, seeds: Sequence[int]) -> Any:
        played.append((policy.digest, list(seeds)))
        return play(policy, environment, seeds)

    monkeypatch.setattr(evaluate, "played_episodes", noted)
    return played


def returns_of(side: dict[str, Any]) -> np.ndarray:
    return np.array([row["return"] for row in side["rows"]])


def request(episodes: int = 5, seed: int = 7, against: str | None = None, name: str = "e") -> EvaluationRequest:
    return EvaluationRequest(f"{name}-{episodes}-{seed}", episodes, seed, against)


def test_both_play_the_same_episodes_and_the_difference_is_taken_episode_by_episode(storage: Storage, made_bundle: Callable[..., str]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    found = evaluated(storage, candidate, request(against=incumbent), [])
    record = json.loads(storage.evaluation("e-5-7").read_bytes())
    assert [row["seed"] for row in record["rows"]] == [row["seed"] for row in record["against"]["rows"]] == [7, 8, 9, 10, 11]
    ours, theirs = returns_of(record), returns_of(record["against"])
    assert found["mean"] == pytest.approx(ours.mean())
    assert found["returns"] == list(ours)
    assert found["against"] == {
        "digest": incumbent,
        "mean": pytest.approx(theirs.mean()),
        "std": pytest.approx(theirs.std(ddof=1)),
        "differenceMean": pytest.approx((ours - theirs).mean()),
        "differenceStd": pytest.approx((ours - theirs).std(ddof=1)),
    }


def test_returns_that_would_be_too_long_a_line_are_in_the_record_alone(
    storage: Storage, made_bundle: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate, "MOST_RETURNS", 4)
    assert "returns" not in evaluated(storage, made_bundle(1), request(5), [])


def test_each_side_plays_as_it_does_alone(storage: Storage, made_bundle: Callable[..., str]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    against = evaluated(storage, candidate, request(against=incumbent), [])["against"]
    shutil.rmtree(storage.evaluations())
    alone = evaluated(storage, incumbent, request(), [])
    assert (alone["mean"], alone["std"]) == (against["mean"], against["std"])


def test_a_further_look_plays_only_the_episodes_that_are_new(storage: Storage, made_bundle: Callable[..., str], plays: list[Any]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    evaluated(storage, candidate, request(3, against=incumbent), [])
    found = evaluated(storage, candidate, request(6, against=incumbent), [])
    assert plays == [(digest, seeds) for seeds in ([7, 8, 9], [10, 11, 12]) for digest in (candidate, incumbent)]
    shutil.rmtree(storage.evaluations())
    assert evaluated(storage, candidate, request(6, against=incumbent), []) == found


def test_what_the_incumbent_has_played_as_a_candidate_is_not_played_again(
    storage: Storage, made_bundle: Callable[..., str], plays: list[Any]
):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    evaluated(storage, incumbent, request(3, name="own"), [])
    evaluated(storage, candidate, request(3, against=incumbent), [])
    assert [digest for digest, seeds in plays if seeds] == [incumbent, candidate]


def test_episodes_in_another_environment_are_not_taken_for_these(storage: Storage, made_bundle: Callable[..., str], plays: list[Any]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    evaluated(storage, incumbent, request(3, name="own"), [])
    path = storage.evaluation("own-3-7")
    path.write_text(path.read_text().replace('"config":{}', '"config":{"sutton_barto_reward":true}'))
    evaluated(storage, candidate, request(3, against=incumbent), [])
    assert [seeds for digest, seeds in plays if digest == incumbent] == [[7, 8, 9], [7, 8, 9]]


def test_a_record_is_said_again_without_playing(storage: Storage, made_bundle: Callable[..., str], plays: list[Any]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    first = evaluated(storage, candidate, request(against=incumbent), [])
    plays.clear()
    assert evaluated(storage, candidate, request(against=incumbent), []) == first
    assert plays == []


def torn(storage: Storage, digest: str) -> None:
    model = storage.bundles() / digest.removeprefix("sha256:") / "policy.onnx"
    model.write_bytes(model.read_bytes()[:100])


def gone(storage: Storage, digest: str) -> None:
    shutil.rmtree(storage.bundles() / digest.removeprefix("sha256:"))


@pytest.mark.parametrize(("harm", "reason"), [(torn, "DigestMismatch"), (gone, "Missing")], ids=["torn", "gone"])
def test_an_incumbent_that_cannot_be_loaded_does_not_keep_the_candidate_from_being_played(
    storage: Storage, made_bundle: Callable[..., str], harm: Callable[..., None], reason: str
):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    harm(storage, incumbent)
    found = evaluated(storage, candidate, request(against=incumbent), [])
    assert found["mean"] > 0
    assert found["against"].keys() == {"digest", "problem"}
    assert found["against"]["problem"].startswith(f"{reason}: ")


def test_an_incumbent_that_lies_there_again_is_played(storage: Storage, made_bundle: Callable[..., str]):
    candidate, incumbent = made_bundle(1), made_bundle(2)
    gone(storage, incumbent)
    evaluated(storage, candidate, request(against=incumbent), [])
    made_bundle(2)
    assert "mean" in evaluated(storage, candidate, request(against=incumbent), [])["against"]


def test_an_incumbent_that_is_made_for_other_spaces_is_not_played(storage: Storage, made_bundle: Callable[..., str]):
    candidate = made_bundle(1)
    bundle = read_bundle(storage.bundles() / candidate.removeprefix("sha256:"), candidate)
    space = {**bundle.manifest["observationSpace"], "low": [-9.0, None, -0.5, None]}
    facts = {name: bundle.manifest[name] for name in ("environment", "actionSpace", "golden")}
    incumbent = published_bundle(storage, {**facts, "observationSpace": space}, bundle.model)
    found = evaluated(storage, candidate, request(against=incumbent), [])
    assert found["against"]["problem"] == f"SpacesDiffer: {incumbent} is made for another observationSpace"


@pytest.mark.parametrize("against", ["", "sha256:ab", "../" * 24, 5, ["sha256:" + "ab" * 32]], ids=str)
def test_only_a_digest_may_be_named_as_the_incumbent(against: Any):
    with pytest.raises(InputError, match=r"evaluation\.against"):
        parsed_request({"id": "e", "episodes": 10, "seed": 0, "against": against})


def test_no_incumbent_is_named_by_none():
    asked = {"id": "e", "episodes": 10, "seed": 0}
    assert parsed_request(asked) == parsed_request({**asked, "against": None}) == EvaluationRequest("e", 10, 0)
