"""A seed makes a run repeatable on one machine."""

from collections.abc import Callable
from typing import Any

from app.storage import Storage


def learnt(said: Any) -> list[dict[str, Any]]:
    """The learning curve, without what the clock says."""
    clock = ("stepsPerSecond", "etaSeconds", "progressPercent")
    points = [line["progress"] for line in said.lines[:-1]]
    return [{name: value for name, value in point.items() if name not in clock} for point in points]


def test_a_seed_gives_the_same_curve_and_the_same_policy(storage: Storage, cartpole: Any, trained: Callable[..., Any]) -> None:
    again = trained(storage, {"id": "CartPole-v1"})
    assert learnt(again) == learnt(cartpole.said)
    assert len(learnt(again)) == 2
    first, second = cartpole.said.last["result"], again.last["result"]
    assert second["digest"] == first["digest"]
    assert second["evaluation"] == first["evaluation"]


def test_another_seed_gives_another_policy(storage: Storage, cartpole: Any, trained: Callable[..., Any]) -> None:
    other = trained(storage, {"id": "CartPole-v1"}, "--seed", "1")
    assert other.last["result"]["digest"] != cartpole.said.last["result"]["digest"]
