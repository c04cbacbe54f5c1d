"""What a training Job's last words say, read as far as they are what they should be."""

from __future__ import annotations

import pytest

from controller import words
from controller.model import FoundBy, SearchStatus, TrialStatus

STANDING = SearchStatus(1, (TrialStatus(1, "Stopped", {"lr": 0.1}, 1024, 20.5), TrialStatus(2, "Training", {"lr": 0.2}, 0)))
SEARCH_RESULT = {"search": {"trial": 2, "seed": 7, "config": {"lr": 0.1}, "trials": [["Stopped", 1024, 20.5], ["Finished", 2048, None]]}}
WRONG_RESULTS = {
    "nothing": {},
    "no object": {"search": 3},
    "no seed": {"search": {**SEARCH_RESULT["search"], "seed": None}},
    "settings that are none": {"search": {**SEARCH_RESULT["search"], "config": {"lr": {}}}},
}


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), True, "1", None])
def test_what_no_float_holds_is_no_number(value):
    assert not words.is_number(value)


def test_a_result_tells_which_trial_was_published_and_how_all_ended():
    assert words.found_by(SEARCH_RESULT) == FoundBy(2, 2, 7, {"lr": 0.1})
    assert words.ended_search(SEARCH_RESULT, STANDING) == SearchStatus(
        2, (TrialStatus(1, "Stopped", {"lr": 0.1}, 1024, 20.5), TrialStatus(2, "Finished", {"lr": 0.1}, 2048, None))
    )


@pytest.mark.parametrize("result", WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_a_result_that_tells_no_search_as_it_should_be_tells_none(result):
    assert words.found_by(result) is None
    assert words.ended_search(result, STANDING) is None


@pytest.mark.parametrize("trials", [[["Lost", 1, 2.0]], [["Stopped", 1]], [["Stopped", 1, "9"]], [3]], ids=str)
def test_ends_that_are_not_told_as_they_should_be_are_not_known(trials):
    assert words.ended_search({"search": {**SEARCH_RESULT["search"], "trials": trials}}, None) is None


@pytest.mark.parametrize(
    ("line", "wanted"),
    [('{"a": 1}', {"a": 1}), ("{", {}), ("[1]", {}), ("", {}), ("null", {}), ("[" * 20_000, {})],
    ids=["an object", "torn", "a list", "empty", "null", "deep"],
)
def test_a_line_is_an_object_or_nothing(line, wanted):
    assert words.parsed(line) == wanted
