"""The log of a training, as a terminal shows it that follows it."""

from __future__ import annotations

import json

import pytest

from controller.verbs.drawn_log import SPARKS, drawn, sparkline


def progress(percent: float, mean: float | None, **more: float) -> bytes:
    told = {"iteration": 1, "envSteps": 1024, "progressPercent": percent, "episodeReturnMean": mean, **more}
    return json.dumps({"progress": told}).encode() + b"\n"


def screen(texts: list[str]) -> list[str]:
    """What stands on a terminal in the end."""
    lines = [""]
    for part in "".join(texts).replace("\r\033[K", "\0").replace("\n", "\0\n").split("\0"):
        if part.startswith("\n"):
            lines.append(part[1:])
        else:
            lines[-1] = part
    return lines


def test_progress_is_drawn_over_below_all_else() -> None:
    log = b"begins\n" + progress(12.5, None, etaSeconds=40) + b'{"a": 1}\n' + progress(50, 20.0) + progress(75, 61.25, etaSeconds=600)
    log += b"Traceback: \xc3\xa4\n" + b"half a line"
    foot = f"[{'#' * 15}{'-' * 5}] 75%  10 min left  mean return 61.2  {SPARKS[0]}{SPARKS[-1]}"
    wanted = ["begins", '{"a": 1}', "Traceback: ä", "half a line", foot]
    for size in (1, 7, len(log)):
        texts = list(drawn((log[at : at + size] for at in range(0, len(log), size)), lambda: 100))
        assert screen(texts) == wanted
    assert "12%  40 s left\n" not in "".join(texts)
    assert "\r\033[K[##------------------] 12%  40 s left" in "".join(texts)


def test_without_progress_a_log_is_as_it_is() -> None:
    assert "".join(drawn([b"a\nb", b"\n\nc\n"], lambda: 100)) == "a\nb\n\nc\n"
    assert list(drawn([], lambda: 100)) == []


@pytest.mark.parametrize("width", [1, 20, 60, 61, 62, 63, 70, 100, 300])
def test_what_is_drawn_over_is_never_as_wide_as_the_terminal(width: int) -> None:
    log = [progress(step, float(step), etaSeconds=3600 * step) for step in range(100)]
    for text in drawn(log, lambda: width):
        assert len(text.removeprefix("\r\033[K")) <= max(0, width - 1)


@pytest.mark.parametrize(
    ("values", "cells", "text"),
    [
        ([], 8, ""),
        ([3.0], 8, "▁"),
        ([3.0, 3.0], 8, "▁▁"),
        ([float(value) for value in range(8)], 8, SPARKS),
        ([1.0, 0.0], 8, "█▁"),
        ([0.0, 0.0, 7.0, 7.0], 2, "▁█"),
        ([float(value) for value in range(16)], 8, SPARKS),
        ([0.0, 0.0, 7.0], 2, "▁█"),
    ],
    ids=["none", "one", "equal", "each its own", "down", "shares", "twice as many", "shares that are not equal"],
)
def test_a_sparkline_has_the_lowest_and_the_highest_of_its_shares(values: list[float], cells: int, text: str) -> None:
    assert sparkline(values, cells) == text


def test_a_sparkline_is_as_long_as_it_may_be() -> None:
    for many in range(1, 100):
        assert len(sparkline([float(value % 7) for value in range(many)], 40)) == min(many, 40)
