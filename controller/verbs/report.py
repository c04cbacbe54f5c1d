"""`report`: one HTML page of a revision, without scripts and without anything from elsewhere. Pure: facts in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from math import degrees, floor

from controller import status as statuses
from controller.model import Revision
from controller.verbs.view import View

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 56, 28
BINS = 20
STEPS_PER_SECOND = 50
TRACK_HALF = 2.4
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .9rem .2rem 0;
vertical-align:top;overflow-wrap:anywhere}svg{width:100%;height:auto}text{font-size:11px;fill:#555}.why{color:#555}"""


@dataclass(frozen=True)
class Material:
    """What a page is made from beside the status.

    Attributes:
        curve: environment steps and the mean return of recent episodes, one pair a point.
        returns: of the episodes of the evaluation.
        episode: the numbers of each observation of one episode.
        began_with: the digest of the policy whose weights the training began with.
        missing: for a part that is not there, why.
    """

    curve: tuple[tuple[float, float], ...] = ()
    returns: tuple[float, ...] = ()
    episode: tuple[tuple[float, ...], ...] = ()
    began_with: str | None = None
    missing: tuple[str, ...] = ()


def page(view: View, revision: Revision, found: Material, now: datetime) -> str:
    """The whole page."""
    title = f"{view.namespace}/{view.name}, revision {revision.number}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="why">{escape(view.status.phase or "Unknown")} at {statuses.timestamp(now)}</p>',
        _table(_facts(revision)),
        "<h2>Learning curve</h2>",
        _curve(found.curve),
        "<h2>Gate</h2>",
        _table(_gate(revision)),
        "<h2>Evaluation</h2>",
        _histogram(found.returns, revision),
        "<h2>Lineage</h2>",
        _lineage(view, revision),
        _beginning(view, found.began_with),
        "<h2>An episode</h2>",
        _episode(found.episode, is_cartpole=str(view.environment.get("id", "")).startswith("CartPole")),
        *(f'<p class="why">{escape(why)}</p>' for why in found.missing),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _facts(revision: Revision) -> dict[str, str | None]:
    trigger = revision.trigger
    return {
        "Digest": revision.digest,
        "Bundle": revision.uri,
        "Trained": revision.trained_at,
        "Why": f"{trigger.asker} asked for it ({trigger.id})" if trigger else "a change of spec.training",
        "Environment steps": None if revision.env_steps is None else str(revision.env_steps),
        "Stopped by": revision.stopped_by,
        "Seed": None if revision.seed is None else str(revision.seed),
        "Image": revision.image,
    }


def _gate(revision: Revision) -> dict[str, str | None]:
    evaluation, approval = revision.evaluation, revision.approval
    against = evaluation.against if evaluation else None
    return {
        "Verdict": revision.verdict or "none by the gate as the spec states it",
        "Mean return": f"{evaluation.mean:.2f}, standard deviation {evaluation.std:.2f}" if evaluation else None,
        "Lower bound (95 %)": f"{evaluation.lower:.2f}" if evaluation else None,
        "Episodes": f"{evaluation.episodes}, from seed {evaluation.seed}" if evaluation else None,
        "Compared with": f"{against.digest}: {against.problem or f'mean difference {against.difference_mean:.2f}'}" if against else None,
        "Approved by": f"{approval.user} at {approval.time}" if approval else None,
        "Rollout": f"{revision.rollout.outcome}: {revision.rollout.message}" if revision.rollout else None,
    }


def _table(facts: dict[str, str | None]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>" for name, fact in facts.items() if fact is not None)
    return f"<table>{''.join(rows)}</table>"


def _lineage(view: View, revision: Revision) -> str:
    """Which revision served when each of these was published, back to the first that the history holds."""
    chain, known = [revision], {one.number: one for one in view.status.revisions}
    while chain[-1].parent in known and known[chain[-1].parent] not in chain:
        chain.append(known[chain[-1].parent])
    rows = "".join(
        f"<tr><td>{one.number}</td><td>{escape(one.trained_at or '')}</td><td>{f'{one.evaluation.mean:.1f}' if one.evaluation else ''}</td>"
        f"<td>{escape(one.verdict or '')}</td><td>{escape(one.digest[:19])}</td></tr>"
        for one in chain
    )
    return f"<table><tr><th>Revision</th><th>Trained</th><th>Return</th><th>Gate</th><th>Digest</th></tr>{rows}</table>"


def _beginning(view: View, digest: str | None) -> str:
    """Which policy a warm start began with."""
    if digest is None:
        return ""
    known = next((f"revision {one.number}, " for one in view.status.revisions if one.digest == digest), "")
    return f"<p>The training began with what {known}{escape(digest)} had learnt.</p>"


def _curve(points: Sequence[tuple[float, float]]) -> str:
    return _lines([points], "environment steps", "mean return of recent episodes, exploring") if len(points) > 1 else _nothing()


def _histogram(returns: Sequence[float], revision: Revision) -> str:
    if not returns:
        return _nothing()
    low, high = min(returns), max(returns)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for value in returns:
        counts[min(BINS - 1, floor((value - low) / width))] += 1
    right = low + BINS * width
    scale = _Scale(low, right, 0, max(counts))
    bars = "".join(
        f'<rect x="{scale.x(low + index * width):.1f}" y="{scale.y(count):.1f}" width="{(WIDTH - LEFT) / BINS - 1:.1f}" '
        f'height="{scale.y(0) - scale.y(count):.1f}" fill="#4a7bb7"/>'
        for index, count in enumerate(counts)
    )
    mean = revision.evaluation.mean if revision.evaluation else sum(returns) / len(returns)
    mark = f'<line x1="{scale.x(mean):.1f}" x2="{scale.x(mean):.1f}" y1="0" y2="{scale.y(0):.1f}" stroke="#b7482f" stroke-width="2"/>'
    return _svg(bars + mark + scale.axes(), f"returns of {len(returns)} episodes, and their mean")


def _episode(steps: Sequence[Sequence[float]], *, is_cartpole: bool) -> str:
    if len(steps) < 2:
        return _nothing()
    if is_cartpole and len(steps[0]) == 4:
        return _cart(steps)
    columns = [[(float(step), row[index]) for step, row in enumerate(steps)] for index in range(min(len(row) for row in steps))]
    return _lines(columns, "step", "each number of the observation")


def _cart(steps: Sequence[Sequence[float]]) -> str:
    """CartPole from the side, as it went: an image that moves by itself."""
    lasts = f'dur="{len(steps) / STEPS_PER_SECOND:.2f}s" repeatCount="indefinite" calcMode="linear"'
    places = ";".join(f"{WIDTH / 2 + step[0] / TRACK_HALF * (WIDTH / 2 - 40):.1f},150" for step in steps)
    angles = ";".join(f"{degrees(step[2]):.2f}" for step in steps)
    pole = '<rect x="-3" y="-110" width="6" height="110" rx="3" fill="#b7482f">'
    pole += f'<animateTransform attributeName="transform" type="rotate" values="{angles}" {lasts}/></rect>'
    cart = f'<g><animateTransform attributeName="transform" type="translate" values="{places}" {lasts}/>'
    cart += f'<rect x="-30" y="0" width="60" height="24" rx="3" fill="#4a7bb7"/>{pole}</g>'
    track = f'<line x1="0" x2="{WIDTH}" y1="175" y2="175" stroke="#555"/>'
    return _svg(track + cart, f"an episode of {len(steps)} steps")


def _lines(series: Sequence[Sequence[tuple[float, float]]], across: str, up: str) -> str:
    points = [point for one in series for point in one]
    scale = _Scale(*_span(x for x, _ in points), *_span(y for _, y in points))
    drawn = "".join(
        f'<polyline fill="none" stroke="hsl({211 + 67 * index % 360} 45% 45%)" stroke-width="1.5" '
        f'points="{" ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in one)}"/>'
        for index, one in enumerate(series)
    )
    return _svg(drawn + scale.axes(), f"{up}, over {across}")


@dataclass(frozen=True)
class _Scale:
    """From figures to places in the image."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / ((self.right - self.left) or 1.0) * (WIDTH - LEFT)

    def y(self, value: float) -> float:
        return (HEIGHT - BOTTOM) * (1 - (value - self.low) / ((self.high - self.low) or 1.0))

    def axes(self) -> str:
        ground = HEIGHT - BOTTOM
        return (
            f'<path d="M{LEFT} 0V{ground}H{WIDTH}" fill="none" stroke="#999"/>'
            f'<text x="{LEFT - 4}" y="10" text-anchor="end">{self.high:.4g}</text>'
            f'<text x="{LEFT - 4}" y="{ground}" text-anchor="end">{self.low:.4g}</text>'
            f'<text x="{LEFT}" y="{HEIGHT - 10}">{self.left:.6g}</text>'
            f'<text x="{WIDTH}" y="{HEIGHT - 10}" text-anchor="end">{self.right:.6g}</text>'
        )


def _span(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def _svg(drawn: str, what: str) -> str:
    image = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">{drawn}</svg>'
    return f"<figure>{image}<figcaption>{escape(what)}</figcaption></figure>"


def _nothing() -> str:
    return '<p class="why">not known here</p>'
