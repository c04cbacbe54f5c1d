"""What becomes of the figures of bench-train."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.train import __main__ as bench
from benchmarks.train.report import figure, median, merged, plot, table


def row(trainer: str, seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "trainer": trainer,
        "seed": seed,
        "startup_s": 5.0,
        "train_s": 2.0,
        "env_steps": 8000,
        "solved": True,
        "peak_mb": 700,
        **changes,
    }


def test_a_part_is_added_to_what_was_measured_and_takes_the_place_of_the_same_seed() -> None:
    before = [row("sb3", 0), row("ours", 0, train_s=9.0)]
    assert merged(before, [row("ours", 0), row("ours", 1)]) == [row("ours", 0), row("ours", 1), row("sb3", 0)]


def test_the_median_is_over_the_seeds_that_were_solved() -> None:
    rows = [row("ours", seed, train_s=train_s) for seed, train_s in enumerate((1.0, 3.0, 2.0))]
    rows.append(row("ours", 3, train_s=120.0, solved=False))
    assert median(rows, "ours", "train_s") == 2.0
    assert median(rows, "sb3", "train_s") is None


def test_totals_and_rates_are_made_from_the_row() -> None:
    assert figure(row("ours", 0), "total_s") == 7.0
    assert figure(row("ours", 0), "steps_per_s") == 4000.0


def test_the_table_tells_how_many_seeds_were_solved_and_how_all_stand_to_the_reference() -> None:
    rows = [row("sb3", 0), row("ours", 0, startup_s=6.0), row("rllib-stock", 0, solved=False, env_steps=0)]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[1][:3] == ["ours", "1/1", "6.0"]
    assert lines[2][:3] == ["x", "sb3", "1.20"]
    assert lines[3] == ["rllib-stock", "0/1", *["-"] * 6]


@pytest.mark.parametrize("rows", [[], [row("sb3", 0)], [row("sb3", 0), row("ours", 0), row("rllib-stock", 0, solved=False)]])
def test_the_plot_is_a_picture_of_those_that_solved_it(rows: list[dict[str, Any]]) -> None:
    names = [text.text for text in ElementTree.fromstring(plot(rows)).iter("{http://www.w3.org/2000/svg}text")][::2]
    assert names == sorted({one["trainer"] for one in rows if one["solved"]})


def test_every_trainer_has_a_program_and_a_name_as_its_results_have_it() -> None:
    assert all(contender.program.is_file() for contender in bench.CONTENDERS)
    rows = json.loads((bench.ROOT / "benchmarks/results/train.json").read_text())["rows"]
    assert {one["trainer"] for one in rows} == {contender.name for contender in bench.CONTENDERS}


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4])])
def test_seeds_are_named_by_one_or_by_a_range(text: str, seeds: list[int]) -> None:
    assert list(bench._seeds(text)) == seeds
