"""Settings, stop criteria and storage: pure rules as tables."""

from typing import Any

import pytest

from app.errors import InputError
from app.storage import open_storage
from app.training.settings import SETTINGS, Settings, parsed_settings
from app.training.stop import RECENT_EPISODES, Point, Stop, next_point, parsed_stop


def test_without_settings_the_defaults_hold() -> None:
    assert parsed_settings({}) == Settings()


def test_every_setting_has_a_field_and_every_field_a_setting() -> None:
    assert {setting.field for setting in SETTINGS.values()} == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0),
        ("lr", "1e-3"),
        ("lr", True),
        ("lr", float("nan")),
        ("lr", None),
        ("gamma", 1.1),
        ("lambda", -0.1),
        ("clipParam", 0),
        ("entropyCoeff", -1),
        ("useKlLoss", 1),
        ("gradClip", 0),
        ("trainBatchSize", 0.5),
        ("minibatchSize", 2048),
        ("numEpochs", 0),
        ("numEnvs", 5000),
        ("fcnetHiddens", []),
        ("fcnetHiddens", [64, 0]),
        ("fcnetHiddens", 64),
        ("fcnetActivation", "cube"),
        ("fcnetActivation", []),
        ("vfShareLayers", "yes"),
        ("observationFilter", None),
        ("observationFilter", "meanStd"),
        ("useLstm", "no"),
        ("freeLogStd", 1),
        ("rewardScale", 0),
        ("lstmCellSize", 0),
        ("maxSeqLen", 1.5),
        ("lrEnd", -0.1),
        ("entropyCoeffEnd", "0"),
        ("scheduleSteps", 0),
        ("learningRate", 0.1),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"spec\.training\.config\.{name}"):
        parsed_settings({name: value})


def test_the_settings_of_an_lstm_enter_the_model_only_where_one_is_asked_for() -> None:
    assert "lstm_cell_size" not in parsed_settings({"lstmCellSize": 8}).model_config()
    model = parsed_settings({"useLstm": True, "lstmCellSize": 8}).model_config()
    assert (model["use_lstm"], model["lstm_cell_size"], model["max_seq_len"]) == (True, 8, 20)


def test_a_deviation_of_its_own_enters_the_model_only_where_it_is_asked_for_and_not_beside_an_lstm() -> None:
    assert "free_log_std" not in parsed_settings({"freeLogStd": False}).model_config()
    assert parsed_settings({"freeLogStd": True}).model_config()["free_log_std"] is True
    with pytest.raises(InputError, match=r"spec\.training\.config\.freeLogStd is not allowed beside useLstm"):
        parsed_settings({"freeLogStd": True, "useLstm": True})


def test_a_setting_with_an_end_goes_there_in_a_straight_line_and_the_others_stay() -> None:
    asked = parsed_settings({"lr": 0.01, "lrEnd": 0, "entropyCoeff": 0.1, "scheduleSteps": 5000}).training_arguments()
    assert (asked["lr"], asked["entropy_coeff"]) == ([[0, 0.01], [5000, 0.0]], 0.1)


def test_an_integer_may_come_as_a_whole_float() -> None:
    assert parsed_settings({"numEpochs": 4.0}).num_epochs == 4


@pytest.mark.parametrize("stop", [None, {}, {"steps": 1}, {"envSteps": 0}, {"iterations": "1"}, {"timeSeconds": True}])
def test_a_wrong_stop_is_refused(stop: Any) -> None:
    with pytest.raises(InputError, match=r"spec\.training\.stop"):
        parsed_stop(stop)


def _curve(*iterations: tuple[int, float]) -> list[Point]:
    curve: list[Point] = []
    for episodes, mean in iterations:
        curve.append(next_point(curve, 1000 * (len(curve) + 1), episodes, episodes * mean))
    return curve


@pytest.mark.parametrize(
    ("stop", "curve", "percent"),
    [
        (Stop(env_steps=4000), [], 0),
        (Stop(env_steps=4000), _curve((5, 1.0)), 25),
        (Stop(env_steps=4000, iterations=2), _curve((5, 1.0)), 50),
        (Stop(episode_return_mean=100), _curve((20, 20.0), (20, 60.0)), 50),
        (Stop(episode_return_mean=100), _curve((20, 20.0), (20, 100.0)), 100),
        (Stop(episode_return_mean=100), _curve((0, 0.0)), 0),
        (Stop(episode_return_mean=-85), _curve((20, -500.0), (20, -85.0)), 100),
        (Stop(episode_return_mean=100), _curve((3, 500.0)), 0),
        (Stop(time_s=10), _curve((20, 1.0)), 50),
    ],
)
def test_progress_is_the_largest_share_of_any_criterion(stop: Stop, curve: list[Point], percent: float) -> None:
    assert stop.progress_percent(curve, 5.0) == pytest.approx(percent)
    assert (stop.reached(curve, 5.0) is not None) == (percent == 100)


def test_the_mean_return_reaches_back_over_at_least_twenty_episodes() -> None:
    assert _curve((30, 10.0), (15, 100.0), (5, 200.0))[-1].episode_return_mean == pytest.approx(125)
    assert _curve((30, 10.0), (0, 0.0))[-1].episode_return_mean == 10
    assert _curve((0, 0.0))[-1].episode_return_mean is None


@pytest.mark.parametrize(
    "uri",
    [
        "/storage",
        "s3://bucket",
        "s3:///x",
        "s3://bucket/a/../b",
        "s3://b/x?versionId=1",
        "gs://b/x",
        "file://host/x",
        "file:///a/../b",
        "file:a",
    ],
)
def test_only_absolute_file_uris_and_paths_in_buckets_are_storage(uri: str) -> None:
    with pytest.raises(InputError, match="file:///"):
        open_storage(uri)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 300])
def test_names_of_runs_cannot_leave_their_directory(name: str) -> None:
    with pytest.raises(InputError):
        open_storage("file:///storage/x").run(name)


RISES_THEN_RESTS = [10.0] * 3 + [20.0] * 4 + [15.0, 20.0]


@pytest.mark.parametrize(("iterations", "is_met"), [(5, True), (6, False)])
def test_a_plateau_is_counted_from_the_highest_mean_on(iterations: int, is_met: bool) -> None:
    curve = _curve(*[(RECENT_EPISODES, mean) for mean in RISES_THEN_RESTS])
    stop = Stop(plateau_iterations=iterations, iterations=1000)
    assert stop.reached(curve, 0.0) == ("plateauIterations" if is_met else None)
    assert stop.progress_percent(curve, 0.0) == pytest.approx(100 if is_met else 0.9)


def test_a_few_lucky_episodes_at_the_start_make_no_plateau() -> None:
    curve = _curve((1, 500.0), *[(1, 10.0)] * (RECENT_EPISODES - 2))
    assert Stop(plateau_iterations=3).reached(curve, 0.0) is None


def test_the_criterion_that_ends_a_training_is_named() -> None:
    curve = _curve(*[(RECENT_EPISODES, 100.0)] * 3)
    assert Stop(episode_return_mean=100, iterations=3).reached(curve, 5.0) == "episodeReturnMean"
    assert Stop(episode_return_mean=101, iterations=3).reached(curve, 5.0) == "iterations"
    assert Stop(time_s=5, iterations=4).reached(curve, 5.0) == "timeSeconds"
    assert Stop(iterations=1).reached([], 5.0) is None


def test_the_spread_is_that_of_the_returns_that_the_mean_is_of() -> None:
    curve = [next_point([], 100, 15, 15 * 9.0, 15 * 9.0**2)]
    curve.append(next_point(curve, 200, 15, 15 * 11.0, 15 * 11.0**2))
    assert (curve[-1].episode_return_mean, curve[-1].episode_return_std) == (10.0, 1.0)
    assert next_point([], 100, 3, 0.3, 0.03).episode_return_std == pytest.approx(0, abs=1e-6)
    assert next_point([], 100, 0, 0.0).episode_return_std is None
