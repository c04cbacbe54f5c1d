"""Our trainer beside stock RLlib and Stable-Baselines3, from process start until CartPole, or another, is solved: `make bench-train`.

Each seed is trained by all of them one after another, in another order each time, so that what else the machine does meets them alike.
What counts are the ratios. It can be run in parts (`--seeds 0-4`, later `--seeds 5-9`): the rows of a file are added to.

CleanRL is left out: its last release asks for a Python below 3.11.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serve.processes import Launch, members, running
from benchmarks.serve.targets import installed_python
from benchmarks.train.learners.solved import GOALS
from benchmarks.train.report import Row, merged, plot, table

ROOT = Path(__file__).parents[2]
LEARNERS = Path(__file__).parent / "learners"
SB3 = ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.2.2", "box2d==2.3.10", "pygame==2.6.1")
SAMPLED_EVERY_S = 0.2


@dataclass(frozen=True)
class Contender:
    """A trainer that is measured.

    Attributes:
        limit_s: after which it is stopped.
        most_seeds: that it is measured with.
    """

    name: str
    limit_s: float = 1800.0
    most_seeds: int = 1000

    @property
    def program(self) -> Path:
        """What trains."""
        return LEARNERS / f"{self.name.replace('-', '_')}.py"


CONTENDERS = (Contender("ours"), Contender("rllib-stock", limit_s=120.0, most_seeds=3), Contender("sb3"))


def main(argv: Sequence[str]) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--seeds", type=_seeds, default=range(15), metavar="N or N-M")
    parser.add_argument("--trainers", type=lambda text: text.split(","), default=names, metavar="NAMES", help=",".join(names))
    parser.add_argument("--environment", choices=GOALS, default="CartPole-v1")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="and a plot beside it, .svg (default benchmarks/results/train[-NAME].json)"
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/policymodel-bench"), metavar="DIR", help="of other frameworks")
    arguments = parser.parse_args(argv)
    environment: str = arguments.environment
    out: Path = arguments.out or ROOT / f"benchmarks/results/train{'' if environment == 'CartPole-v1' else f'-{environment}'}.json"
    chosen = [contender for contender in CONTENDERS if contender.name in arguments.trainers]
    pythons = {one.name: _python(one.name, arguments.cache.expanduser()) for one in chosen}
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for seed in arguments.seeds:
        for contender in random.Random(seed).sample(chosen, len(chosen)):
            if seed < contender.most_seeds:
                row = measured(contender, environment, seed, pythons[contender.name])
                print(json.dumps(row), flush=True)
                rows = merged(rows, [row])
                _write(out, rows)
    print(table(rows))
    return 0


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _python(name: str, cache: Path) -> str:
    """The interpreter of a trainer; Stable-Baselines3 has an environment of its own."""
    return installed_python(cache / "sb3", SB3) if name == "sb3" else sys.executable


def measured(contender: Contender, task: str, seed: int, python: str) -> Row:
    """One training, in a process of its own."""
    log = Path(f"/tmp/bench-train-{os.getpid()}.log")
    environment = {"BENCHMARK_BEGAN": str(time.time()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    launch = Launch([python, str(contender.program), str(seed), task], 0, environment)
    began, peak_bytes = time.monotonic(), 0
    said: Row | None = None
    try:
        with running(launch, log) as process:
            while said is None and process.poll() is None and time.monotonic() - began < contender.limit_s:
                time.sleep(SAMPLED_EVERY_S)
                peak_bytes = max(peak_bytes, sum(_pss_bytes(pid) for pid in members(process.pid)))
                said = _said(log)
            ended = process.poll()
        if (said := said or _said(log)) is None and ended not in (None, 0):
            raise RuntimeError(f"{contender.name} ended with exit code {ended}:\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        log.unlink(missing_ok=True)
    unsolved = {"startup_s": 0.0, "train_s": round(time.monotonic() - began, 3), "env_steps": 0, "solved": False}
    figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in (said or unsolved).items()}
    return {"trainer": contender.name, "seed": seed, **figures, "peak_mb": round(peak_bytes / 2**20)}


def _said(log: Path) -> Row | None:
    lines = [line for line in log.read_text(errors="replace").splitlines(keepends=True) if line.startswith('{"startup_s"')]
    return json.loads(lines[0]) if lines and lines[0].endswith("\n") else None


def _pss_bytes(pid: int) -> int:
    """The memory of a process, what it shares with others counted in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _write(out: Path, rows: Sequence[Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    out.with_suffix(".svg").write_text(plot(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
