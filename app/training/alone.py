"""RLlib in one process, without a Ray beside it. Imports RLlib.

Where no env runner is elsewhere and the learner has no GPU, RLlib asks Ray for one thing only: to keep what it would hand to them. To start
Ray for that takes seconds and some 300 MB.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.rllib.algorithms import algorithm
from ray.rllib.env import env_runner_group

KEEPING = (algorithm, env_runner_group)


class _Alone:
    """Stands for the module `ray`: what is kept is its own reference."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    @staticmethod
    def put(kept: Any) -> Any:
        """What is kept."""
        return kept

    get = put


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """While it is open, an algorithm without env runners elsewhere needs no `ray.init`."""
    logging.getLogger("ray").setLevel(logging.ERROR)  # as ray.init is asked to, too
    for module in KEEPING:
        module.ray = _Alone()
    try:
        yield
    finally:
        for module in KEEPING:
            module.ray = ray
