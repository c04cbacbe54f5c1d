"""Trains each world that is named for one iteration, publishes and plays it, in one process: `python -m parity STORAGE WORLD...`.

One JSON line a world: its result, or why there is none.
"""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from app.errors import RunError
from app.report import Report, claimed_stdout


@dataclass(frozen=True)
class World:
    """An environment with what is set beside the smallest training."""

    environment: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    workers: int = 0


RECURRENT = {"useLstm": True, "lstmCellSize": 16, "maxSeqLen": 8}
WORLDS = {
    "Acrobot": World({"id": "Acrobot-v1"}),
    "MountainCarContinuous": World({"id": "MountainCarContinuous-v0"}),
    "Taxi": World({"id": "Taxi-v3"}),
    "Blackjack": World({"id": "Blackjack-v1"}),
    "a Dict and MultiDiscrete actions": World({"entryPoint": "worlds:Dials"}),
    "MultiBinary": World({"entryPoint": "worlds:Lamps"}),
    "nested actions": World({"entryPoint": "worlds:Crane"}),
    "images": World({"entryPoint": "worlds:Screen"}),
    "stacked frames": World({"entryPoint": "worlds:Frames"}),
    "filtered observations": World({"entryPoint": "worlds:Offset"}, {"observationFilter": "MeanStd"}),
    "filtered observations that differ by little": World({"entryPoint": "worlds:Fine"}, {"observationFilter": "MeanStd"}),
    "an LSTM": World({"id": "CartPole-v1"}, RECURRENT),
    "an LSTM that shares its layers behind filtered images": World(
        {"entryPoint": "worlds:Screen"}, {**RECURRENT, "observationFilter": "MeanStd", "vfShareLayers": True}
    ),
    "filtered observations of a worker": World({"entryPoint": "worlds:Offset"}, {"observationFilter": "MeanStd"}, workers=1),
    "a deviation that is learnt by itself": World({"entryPoint": "worlds:Offset"}, {"freeLogStd": True}),
    "images in the wrong scale": World({"entryPoint": "worlds:Screen"}),
}


def trained(storage: str, name: str) -> dict[str, Any]:
    """What a training of the world says at its end."""
    from app import train  # the tests import WORLDS alone, without torch
    from app.training import export

    world = WORLDS[name]
    config = {"trainBatchSize": 128, "minibatchSize": 64, "numEpochs": 1, "numEnvs": 4, **world.config}
    flags = {
        "--storage": storage,
        "--run": f"run-{list(WORLDS).index(name)}",
        "--environment": json.dumps(world.environment),
        "--entry-point-prefix": "worlds",
        "--config": json.dumps(config),
        "--workers": str(world.workers),
        "--stop": '{"iterations": 1}',
        "--evaluation": json.dumps({"id": f"evaluation-{list(WORLDS).index(name)}", "episodes": 2, "seed": 5}),
    }
    scale, export.BRIGHTEST = export.BRIGHTEST, 254.0 if name == "images in the wrong scale" else export.BRIGHTEST
    try:
        return train.run([text for flag in flags.items() for text in flag], Report(io.StringIO(), None))
    except RunError as error:
        return {"error": error.reason}
    finally:
        export.BRIGHTEST = scale


@contextlib.contextmanager
def one_ray() -> Iterator[None]:
    """One Ray for all trainings: to start it takes longer than everything else in one so small."""
    import ray

    from app.training import trainer

    directory = trainer.ray_temp_dir()
    trainer.start_ray(directory, workers=1)
    end = ray.shutdown
    trainer.start_ray, ray.shutdown = (lambda *_: None), (lambda: None)
    try:
        yield
    finally:
        end()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    storage, *names = sys.argv[1:]
    with claimed_stdout() as stream, one_ray():
        for name in names:
            print(json.dumps({name: trained(storage, name)}), file=stream, flush=True)


if __name__ == "__main__":
    main()
