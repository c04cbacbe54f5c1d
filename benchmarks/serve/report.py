"""Figures into rows, ratios, a table, JSON and a plot. Pure: no clock, no processes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from benchmarks.serve.load import Cell

REFERENCES = ("tutorial", "tutorial-100", "asgi")
BAR_PX, GAP_PX, NAME_PX, WIDTH_PX = 22, 8, 110, 640


@dataclass
class Row:
    """One target under one load: one item a round in each list.

    Attributes:
        batch: observations in a request.
        p50_ms, p99_ms: latency of the answers with status 200; None in a round with fewer than 100: the slow ones came too late.
    """

    target: str
    connections: int
    batch: int
    requests_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float | None] = field(default_factory=list)
    p99_ms: list[float | None] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)

    def add(self, cell: Cell) -> None:
        """Takes in one round."""
        ordered = sorted(cell.latencies_s) if len(cell.latencies_s) >= 100 else []
        self.requests_per_s.append(round(cell.requests_per_s, 1))
        self.p50_ms.append(_ms(percentile(ordered, 50)))
        self.p99_ms.append(_ms(percentile(ordered, 99)))
        self.failures.append(cell.failures)

    def as_json(self) -> dict[str, Any]:
        """As the JSON file holds it; `failures` stands there only where there were any."""
        figures = {name: getattr(self, name) for name in ("target", "connections", "batch", "requests_per_s", "p50_ms", "p99_ms")}
        return figures | ({"failures": self.failures} if any(self.failures) else {})


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of figures in ascending order: one of them, never a mean. None of none."""
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def ratio(row: Row, reference: Row | None) -> float | None:
    """The median over the rounds of a row's rate above the reference's in the same round; None without anything to compare with."""
    if reference is None:
        return None
    pairs = zip(row.requests_per_s, reference.requests_per_s, strict=True)
    ratios = [own / other for own, other in pairs if other]
    return statistics.median(ratios) if ratios else None


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one block a load; observations a second equal requests a second times the batch."""
    heads = (
        "target",
        "conn",
        "batch",
        "req/s min",
        "median",
        "actions/s",
        "p50 ms",
        "p99 ms",
        *(f"x {name}" for name in REFERENCES),
        "failed",
    )
    lines = [heads]
    for row in rows:
        alike = {other.target: other for other in rows if (other.connections, other.batch) == (row.connections, row.batch)}
        median = statistics.median(row.requests_per_s)
        lines.append(
            (
                *(row.target, str(row.connections), str(row.batch)),
                *(f"{min(row.requests_per_s):.0f}", f"{median:.0f}", f"{median * row.batch:.0f}"),
                *(_figure(_median(row.p50_ms)), _figure(_median(row.p99_ms))),
                *(_figure(ratio(row, alike.get(name))) for name in REFERENCES),
                str(sum(row.failures)),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def _median(figures: Sequence[float | None]) -> float | None:
    present = [figure for figure in figures if figure is not None]
    return statistics.median(present) if present else None


def _figure(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"


def plot(rows: Sequence[Row], connections: int) -> str:
    """An SVG with a bar for each target: the median of its requests a second at so many connections, one observation a request."""
    shown = [(row.target, statistics.median(row.requests_per_s)) for row in rows if (row.connections, row.batch) == (connections, 1)]
    shown.sort(key=lambda bar: -bar[1])
    largest = max((rate for _, rate in shown), default=0) or 1
    height = 40 + len(shown) * (BAR_PX + GAP_PX)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH_PX}" height="{height}" fill="white"/>',
        f'<text x="{NAME_PX}" y="20">requests/s at {connections} connections, median</text>',
    ]
    for index, (name, rate) in enumerate(shown):
        top = 32 + index * (BAR_PX + GAP_PX)
        length = rate / largest * (WIDTH_PX - NAME_PX - 80)
        color = "#1f77b4" if name.startswith("ours") else "#9aa5b1"
        parts.append(f'<text x="{NAME_PX - 8}" y="{top + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{NAME_PX}" y="{top}" width="{length:.1f}" height="{BAR_PX}" fill="{color}"/>')
        parts.append(f'<text x="{NAME_PX + length + 6:.1f}" y="{top + 16}">{rate:.0f}</text>')
    return "\n".join([*parts, "</svg>", ""])
