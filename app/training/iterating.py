"""One more iteration of a training, as a point of its learning curve. It decides nothing but that a training has diverged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.errors import InputError
from app.training.stop import Point, next_point
from app.training.trainer import Trainer

DIVERGED = "TrainingDiverged"


def iterated(trainer: Trainer, curve: Sequence[Point], tell: Callable[[Mapping[str, Any], Point], None]) -> Point:
    """The point of one more iteration.

    Args:
        tell: is told what RLlib tells of it, and its point.

    Raises:
        InputError: TrainingDiverged: a loss or a return is no number.
    """
    result = trainer.iterate()
    if not result.is_finite:
        raise InputError(DIVERGED, "spec.training.config: the loss or the return is no number any more; lower lr, or set gradClip")
    point = next_point(curve, result.env_steps, result.episodes, result.return_sum, result.return_square_sum)
    tell(result.told, point)
    return point
