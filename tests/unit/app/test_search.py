"""What a search may ask for, what its trials draw, which of them lags, and which is best."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InputError
from app.training.checkpoints import RunState, write_checkpoint
from app.training.halving import Halving, rungs
from app.training.search import Choice, Range, Search, Trial, drawn_trials, parsed_search
from app.training.settings import Settings
from app.training.standing import (
    CHECKPOINTS,
    Outcome,
    Standing,
    best,
    known_outcome,
    known_standing,
    outcome_of,
    place_of_trial,
    progress_of,
    remove_trials,
    write_ended,
    write_outcome,
)
from app.training.stop import Point, Stop, next_point

LOG = {"min": 1e-4, "max": 3e-3, "scale": "Log"}
SEARCH = {"trials": 3, "config": {"lr": LOG, "numEpochs": {"min": 2, "max": 9}, "fcnetHiddens": {"values": [[64, 64], [128, 128]]}}}


def test_a_search_says_what_each_setting_is_drawn_from() -> None:
    found = parsed_search(SEARCH, {"gamma": 0.9})
    assert found == Search(
        trials=3,
        parallel=1,
        config={
            "fcnetHiddens": Choice(([64, 64], [128, 128])),
            "lr": Range(1e-4, 3e-3, is_log=True, is_whole=False),
            "numEpochs": Range(2, 9, is_log=False, is_whole=True),
        },
    )


def test_none_is_searched_for_where_none_is_asked_for() -> None:
    assert parsed_search(None, {}) is None


def searching(**config: Any) -> dict[str, Any]:
    return {"trials": 2, "config": config}


REFUSED = {
    "no config": ({"trials": 2}, "spec.training.search.config must name at least one of lr, "),
    "one trial": ({**SEARCH, "trials": 1}, "spec.training.search.trials must be an integer from 2 to 32"),
    "too many trials": ({**SEARCH, "trials": 33}, "spec.training.search.trials must be an integer from 2 to 32"),
    "no trial at once": ({**SEARCH, "parallel": 0}, "spec.training.search.parallel must be an integer from 1 to 16"),
    "an unknown field": ({**SEARCH, "samples": 1}, "spec.training.search.samples is no field"),
    "an unknown setting": (searching(lrr=LOG), "spec.training.search.config.lrr is not a setting (did you mean lr?)"),
    "a setting that is chosen": (searching(gamma=LOG), "spec.training.config.gamma is set, too"),
    "neither": (searching(lr={}), "spec.training.search.config.lr must hold either values, or min and max"),
    "both": (searching(lr={**LOG, "values": [1]}), "spec.training.search.config.lr must hold either values, or min and max"),
    "half of a range": (searching(lr={"min": 0.1}), "spec.training.search.config.lr.max must be a number above 0, at most 1"),
    "a range that is too wide": (
        searching(lr={"min": 0.1, "max": 2}),
        "spec.training.search.config.lr.max must be a number above 0, at most 1",
    ),
    "a range of nothing": (searching(lr={"min": 0.1, "max": 0.1}), "spec.training.search.config.lr.max must be above min (0.1)"),
    "a logarithm of 0": (
        searching(entropyCoeff={"min": 0, "max": 1, "scale": "Log"}),
        "spec.training.search.config.entropyCoeff.min must be above 0, because its scale is Log",
    ),
    "another scale": (searching(lr={**LOG, "scale": "Log2"}), "spec.training.search.config.lr.scale must be one of Uniform, Log"),
    "a range of words": (
        searching(fcnetActivation={"min": "relu", "max": "tanh"}),
        "spec.training.search.config.fcnetActivation must hold values",
    ),
    "a range of lists": (searching(fcnetHiddens={"min": 1, "max": 2}), "spec.training.search.config.fcnetHiddens.min must be a list"),
    "a range of a switch": (searching(useLstm={"min": False, "max": True}), "spec.training.search.config.useLstm must hold values"),
    "no values": (searching(lr={"values": []}), "spec.training.search.config.lr.values must be a list of 1 to 16 values"),
    "a value that is not allowed": (
        searching(lr={"values": [0.1, 2]}),
        "spec.training.search.config.lr.values: each must be a number above 0",
    ),
    "a scale of values": (searching(lr={"values": [0.1], "scale": "Log"}), "spec.training.search.config.lr.scale is allowed beside min"),
    "another field of a setting": (searching(lr={**LOG, "step": 1}), "spec.training.search.config.lr.step is no field"),
    "no object": ([], "spec.training.search must be an object"),
}


@pytest.mark.parametrize(("search", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_search_is_refused_with_its_field(search: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parsed_search(search, {"gamma": 0.9, "lr": Settings().lr})
    assert refused.value.reason == "InvalidConfig"
    assert message in refused.value.message


def trials_of(search: Any, config: dict[str, Any], seed: int = 0) -> tuple[Trial, ...]:
    parsed = parsed_search(search, config)
    assert parsed is not None
    return drawn_trials(parsed, config, seed)


def test_a_trials_settings_are_those_of_the_config_and_what_it_has_drawn() -> None:
    for trial in trials_of(SEARCH, {"gamma": 0.9}):
        assert trial.settings.gamma == 0.9
        assert (trial.settings.lr, list(trial.settings.fcnet_hiddens)) == (trial.chosen["lr"], trial.chosen["fcnetHiddens"])


def test_draws_and_seeds_are_functions_of_the_seed_and_the_number() -> None:
    assert trials_of(SEARCH, {}) == trials_of({**SEARCH, "trials": 5}, {})[:3]
    assert trials_of(SEARCH, {}) != trials_of(SEARCH, {}, seed=1)
    trials = trials_of({**SEARCH, "trials": 32}, {})
    assert [trial.number for trial in trials] == list(range(1, 33))
    assert len({trial.seed for trial in trials}) == len({trial.chosen["lr"] for trial in trials}) == 32


def test_a_combination_that_does_not_go_together_is_refused_before_anything_starts() -> None:
    with pytest.raises(InputError) as refused:
        trials_of({"trials": 32, "config": {"trainBatchSize": {"values": [128, 1024]}}}, {})
    assert refused.value.message.startswith("spec.training.search.config: trial ")
    assert "has drawn {'trainBatchSize': 128}; spec.training.config.minibatchSize must be at most" in refused.value.message


@given(st.integers(0, 2**31 - 1), st.floats(1e-9, 0.5), st.floats(1e-9, 0.5), st.booleans())
def test_a_number_is_drawn_from_its_range(seed: int, least: float, width: float, is_log: bool) -> None:
    ends = {"min": least, "max": least + width, "scale": "Log" if is_log else "Uniform"}
    (first, *_) = trials_of(searching(lr=ends), {}, seed)
    assert least <= first.chosen["lr"] <= least + width


@given(st.integers(0, 2**31 - 1), st.integers(1, 999), st.booleans())
def test_of_an_integer_whole_numbers_are_drawn(seed: int, least: int, is_log: bool) -> None:
    ends = {"min": least, "max": least + 1, "scale": "Log" if is_log else "Uniform"}
    for trial in trials_of(searching(numEpochs=ends), {}, seed):
        assert trial.chosen["numEpochs"] in (least, least + 1)
        assert isinstance(trial.chosen["numEpochs"], int)


def test_each_magnitude_of_a_logarithmic_range_is_drawn() -> None:
    drawn = [
        trial.chosen["klTarget"]
        for trial in trials_of({"trials": 32, "config": {"klTarget": {"min": 0.001, "max": 1, "scale": "Log"}}}, {})
    ]
    assert sum(value < 0.01 for value in drawn) > 4
    assert sum(value > 0.1 for value in drawn) > 4


RUNGS = {
    "steps": (Stop(env_steps=200_000), [1024], [7408, 22224, 66672]),
    "iterations of the smallest batch": (Stop(iterations=270), [256, 1024], [5120, 15360, 46080]),
    "too few for a comparison on the way": (Stop(iterations=4), [256], [1280]),
    "any number of steps": (Stop(episode_return_mean=475), [1024], [10240 * 3**power for power in range(12)]),
}


@pytest.mark.parametrize(("stop", "batches", "expected"), RUNGS.values(), ids=RUNGS)
def test_trials_are_compared_at_shares_of_what_they_may_take(stop: Stop, batches: list[int], expected: list[int]) -> None:
    assert rungs(stop, batches) == expected


def at(env_steps: int, mean: float | None) -> Point:
    return Point(env_steps // 100, env_steps, 20, 0.0, mean)


def test_a_trial_that_is_worse_than_two_thirds_is_behind_and_the_others_go_on() -> None:
    halving = Halving([500, 1500])
    assert not halving.is_behind(1, at(600, 50.0))
    assert halving.is_behind(2, at(500, 20.0))
    assert not halving.is_behind(3, at(500, 60.0))
    assert not halving.is_behind(3, at(600, 10.0)), "between two rungs nobody is judged"


def test_a_trial_without_an_episode_is_not_judged_yet() -> None:
    halving = Halving([500])
    halving.is_behind(1, at(500, 50.0))
    assert not halving.is_behind(2, at(600, None))


def test_a_trial_that_has_finished_early_is_what_longer_ones_are_held_against() -> None:
    halving = Halving([500, 1500])
    halving.is_behind(1, at(600, 100.0))
    halving.has_finished(1, at(900, 475.0))
    assert not halving.is_behind(2, at(500, 120.0))
    assert halving.is_behind(2, at(1500, 400.0))


def curve(iterations: int, mean: float | None, batch: int = 100) -> tuple[Point, ...]:
    points: list[Point] = []
    for iteration in range(1, iterations + 1):
        points.append(next_point(points, batch * iteration, 0 if mean is None else 1, mean or 0.0))
    return tuple(points)


def standing(number: int, state: Any = "Finished", iterations: int = 2, mean: float | None = 10.0, **more: Any) -> Standing:
    chosen = {"lr": 0.001 * number}
    return Standing(Trial(number, 7, chosen, Settings()), state, curve=curve(iterations, mean), **more)


BEST = {
    "the highest return": ([standing(1), standing(2, mean=11.0)], 2),
    "of equal ones fewer steps": ([standing(1), standing(2, iterations=1)], 2),
    "of those the first": ([standing(1), standing(2)], 1),
    "one that was stopped, where it is better": ([standing(1), standing(2, "Stopped", mean=11.0)], 2),
    "never one that failed": ([standing(1), standing(2, "Failed", mean=99.0)], 1),
    "one that has ended an episode": ([standing(1, mean=None), standing(2, mean=-9.0)], 2),
    "one without an episode, where there is no other": ([standing(1, "Failed"), standing(2, mean=None)], 2),
    "none that has not begun": ([standing(1, "Pending", iterations=0), standing(2, "Failed")], None),
}


@pytest.mark.parametrize(("standings", "number"), BEST.values(), ids=BEST)
def test_the_best_trial_is(standings: list[Standing], number: int | None) -> None:
    found = best(standings)
    assert (found.trial.number if found else None) == number


def test_a_mean_of_few_episodes_wins_against_nobody_who_has_more() -> None:
    few, many = standing(1, mean=90.0), standing(2, mean=85.0)
    few = replace(few, curve=tuple(replace(point, episodes=1) for point in few.curve))
    many = replace(many, curve=tuple(replace(point, episodes=20) for point in many.curve))
    assert best([few, many]) == many
    assert best([few]) == few


def kept(run: Path, number: int, iterations: int) -> None:
    """A checkpoint of a trial."""

    def save(algorithm: Path) -> None:
        algorithm.mkdir(parents=True)
        (algorithm / "weights").write_text(str(iterations))

    write_checkpoint(place_of_trial(run, number) / CHECKPOINTS, RunState(list(curve(iterations, 10.0)), 1.5), save)


def test_what_a_trial_has_done_is_known_to_the_next_attempt(tmp_path: Path) -> None:
    ended = standing(1, stopped_by="iterations", time_s=1.5)
    kept(tmp_path, 1, 2)
    fresh = replace(ended, state="Pending", curve=(), time_s=0.0, stopped_by=None)
    assert known_standing(tmp_path, ended.trial) == replace(fresh, curve=ended.curve, time_s=1.5)
    write_ended(tmp_path, ended)
    assert known_standing(tmp_path, ended.trial) == ended


def test_a_trial_whose_last_checkpoint_is_lost_has_not_ended(tmp_path: Path) -> None:
    kept(tmp_path, 1, 2)
    write_ended(tmp_path, standing(1, "Stopped", iterations=3))
    assert known_standing(tmp_path, standing(1).trial).state == "Pending"


def test_a_trial_that_diverged_stays_so_without_a_checkpoint(tmp_path: Path) -> None:
    write_ended(tmp_path, standing(1, "Failed", iterations=3, reason="TrainingDiverged"))
    found = known_standing(tmp_path, standing(1).trial)
    assert (found.state, found.reason) == ("Failed", "TrainingDiverged")


def test_an_outcome_is_known_to_the_next_attempt(tmp_path: Path) -> None:
    standings = {1: standing(1, "Stopped", mean=1 / 3), 2: standing(2, stopped_by="envSteps"), 3: standing(3, "Pending", iterations=0)}
    outcome = outcome_of(standings, standings[2])
    assert outcome == Outcome(2, 2, "envSteps", (("Stopped", 200, 0.33), ("Finished", 200, 10.0), ("Pending", 0, None)))
    assert known_outcome(tmp_path, 3) is None
    write_outcome(tmp_path, outcome)
    assert known_outcome(tmp_path, 3) == outcome


def test_an_outcome_tells_what_ended_the_best_trial() -> None:
    for state, stopped_by in (("Stopped", "search"), ("Pending", "timeSeconds")):
        assert outcome_of({}, standing(1, state)).stopped_by == stopped_by


def test_the_losers_go_and_the_best_stays(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        kept(tmp_path, number, 2)
        write_ended(tmp_path, standing(number))
    remove_trials(tmp_path, but=2)
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["02"]
    assert known_standing(tmp_path, standing(2).trial).has_ended
    remove_trials(tmp_path)
    assert list((tmp_path / "trials").iterdir()) == []


def test_progress_is_that_of_the_whole_search_with_the_best_trials_figures() -> None:
    standings = {
        1: standing(1, "Stopped", iterations=1),
        2: standing(2, "Training", iterations=5, mean=20.0, steps_per_s=300.0),
        3: standing(3, "Pending", iterations=0),
        4: standing(4, "Failed", iterations=1),
    }
    told = progress_of(standings, Stop(iterations=10, time_s=1000), 100.0)
    assert told is not None
    assert (told["iteration"], told["envSteps"], told["episodeReturnMean"], told["stepsPerSecond"]) == (5, 500, 20.0, 300.0)
    assert told["progressPercent"] == 100 * (1 + 0.5 + 0 + 1) / 4
    assert told["etaSeconds"] == 60.0
    assert told["search"]["best"] == 2
    assert told["search"]["trials"][1:3] == [
        {"trial": 2, "state": "Training", "config": {"lr": 0.002}, "envSteps": 500, "episodeReturnMean": 20.0},
        {"trial": 3, "state": "Pending", "config": {"lr": 0.003}, "envSteps": 0},
    ]


def test_time_that_runs_out_is_progress_too() -> None:
    told = progress_of({1: standing(1, "Training"), 2: standing(2, "Pending", iterations=0)}, Stop(iterations=100, time_s=100), 90.0)
    assert told is not None
    assert told["progressPercent"] == 90.0


def test_there_is_no_progress_before_the_first_iteration() -> None:
    assert progress_of({1: standing(1, "Training", iterations=0)}, Stop(iterations=1), 5.0) is None


def test_a_line_of_many_trials_is_one_that_can_be_read_from_a_tail() -> None:
    standings = {number: standing(number, iterations=9) for number in range(1, 33)}
    assert len(json.dumps(progress_of(standings, Stop(iterations=10), 1.0))) < 8192
