"""The log of a training as a terminal shows it: how far it is stands below all else, and is drawn over. Pure: pieces in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from controller.model import Progress
from controller.verbs.text import bar
from controller.verbs.view import span
from controller.words import last_progress

SPARKS = "▁▂▃▄▅▆▇█"
# Of the means so far; fewer cells say nothing.
MOST_CELLS, LEAST_CELLS = 40, 8
_OVER = "\r\033[K"


def drawn(pieces: Iterable[bytes], width: Callable[[], int]) -> Iterator[str]:
    """What is written one after the other; the last line of it is not ended while it may be drawn over.

    Args:
        pieces: of the log, cut anywhere.
        width: of the terminal, which may change on the way.
    """
    means: list[float] = []
    foot = ""
    for line in _lines(pieces):
        progress = last_progress(line)
        if progress is None:
            yield f"{_OVER}{line}{foot}" if foot else line
            continue
        if progress.episode_return_mean is not None:
            means.append(progress.episode_return_mean)
        foot = _foot(progress, means, width())
        yield _OVER + foot


def sparkline(values: Sequence[float], cells: int) -> str:
    """Values in their order as one line of at most so many cells; where there are more values, each cell has the mean of its share."""
    shares = min(cells, len(values))
    bounds = [index * len(values) // shares for index in range(shares + 1)] if values else [0]
    means = [sum(values[first:last]) / (last - first) for first, last in pairwise(bounds)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(SPARKS[round((mean - low) / ((high - low) or 1.0) * (len(SPARKS) - 1))] for mean in means)


def _foot(progress: Progress, means: Sequence[float], width: int) -> str:
    told = f"{bar(progress.percent / 100)} {progress.percent:.0f}%"
    if progress.eta_s is not None:
        told += f"  {span(progress.eta_s)} left"
    if progress.episode_return_mean is not None:
        told += f"  mean return {progress.episode_return_mean:.1f}"
    # A line that is as wide as the terminal is not drawn over.
    room = width - 1 - len(told) - 2
    if means and room >= LEAST_CELLS:
        told += f"  {sparkline(means, min(room, MOST_CELLS))}"
    return told[: width - 1]


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace") + "\n"
    if rest:
        yield rest.decode(errors="replace") + "\n"
