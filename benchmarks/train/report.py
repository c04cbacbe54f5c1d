"""Rows into ratios, a table and a plot. Pure: no clock, no processes."""

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

Row = dict[str, Any]
REFERENCE = "sb3"
BAR_PX, GAP_PX, NAME_PX, WIDTH_PX = 22, 8, 110, 640
FIGURES = ("startup_s", "train_s", "total_s", "env_steps", "steps_per_s", "peak_mb")


def merged(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """All rows, the later one of a trainer and a seed, by trainer and seed: a benchmark may be run in parts."""
    newest = {(row["trainer"], row["seed"]): row for row in (*before, *after)}
    return [newest[key] for key in sorted(newest)]


def figure(row: Row, name: str) -> float:
    """A figure of a row; two of them are made from others."""
    if name == "total_s":
        return float(row["startup_s"] + row["train_s"])
    if name == "steps_per_s":
        return float(row["env_steps"] / row["train_s"])
    return float(row[name])


def median(rows: Sequence[Row], trainer: str, name: str) -> float | None:
    """The median over the seeds that a trainer has solved; None where there are none."""
    found = [figure(row, name) for row in rows if row["trainer"] == trainer and row["solved"]]
    return statistics.median(found) if found else None


def table(rows: Sequence[Row]) -> str:
    """Medians, one line a trainer, and how they stand to the reference's."""
    lines = ["  ".join(f"{head:>12}" for head in ("trainer", "solved", *FIGURES))]
    for trainer in sorted({row["trainer"] for row in rows}):
        own = [row for row in rows if row["trainer"] == trainer]
        solved = f"{sum(row['solved'] for row in own)}/{len(own)}"
        medians = [median(rows, trainer, name) for name in FIGURES]
        lines.append("  ".join(f"{cell:>12}" for cell in (trainer, solved, *("-" if one is None else f"{one:.1f}" for one in medians))))
        ratios = [_ratio(one, median(rows, REFERENCE, name)) for one, name in zip(medians, FIGURES, strict=True)]
        if trainer != REFERENCE and any(one is not None for one in ratios):
            cells = ("", f"x {REFERENCE}", *("-" if one is None else f"{one:.2f}" for one in ratios))
            lines.append("  ".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def plot(rows: Sequence[Row]) -> str:
    """An SVG: medians from process start to solved, start-up and training apart."""
    found = [(name, median(rows, name, "startup_s"), median(rows, name, "train_s")) for name in sorted({row["trainer"] for row in rows})]
    bars = [(name, startup, train) for name, startup, train in found if startup is not None and train is not None]
    longest = max((startup + train for _, startup, train in bars), default=1.0)
    height = (BAR_PX + GAP_PX) * len(bars) + GAP_PX
    scale = (WIDTH_PX - NAME_PX - 60) / longest
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height}" font-family="sans-serif" font-size="13">']
    for index, (name, startup, train) in enumerate(bars):
        y = GAP_PX + index * (BAR_PX + GAP_PX)
        parts.append(f'<text x="0" y="{y + 15}">{escape(name)}</text>')
        parts.append(f'<rect x="{NAME_PX}" y="{y}" width="{startup * scale:.1f}" height="{BAR_PX}" fill="#9ab"/>')
        parts.append(f'<rect x="{NAME_PX + startup * scale:.1f}" y="{y}" width="{train * scale:.1f}" height="{BAR_PX}" fill="#357"/>')
        parts.append(f'<text x="{NAME_PX + (startup + train) * scale + 6:.1f}" y="{y + 15}">{startup + train:.1f} s</text>')
    return "\n".join([*parts, "</svg>\n"])
