"""Our server beside Ray's tutorial, bare ASGI and other frameworks, on this machine, in one run: `make bench-serve`.

All servers are up together and are measured in turn, round after round, so that what else the machine does meets them alike; those whose
turn it is not are stopped (SIGSTOP). What counts are the ratios; absolute figures are the machine's. Server and generator share all cores.
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from benchmarks.serve.load import Cell, measured_load
from benchmarks.serve.processes import Launch, NotStarted, awake, machine, running, wait_for_answer
from benchmarks.serve.replicas import Cost, measured_costs
from benchmarks.serve.report import Row, plot, table
from benchmarks.serve.targets import TARGETS, Target, World, installed_version, trained_world

BATCH, BATCH_CONNECTIONS = 64, 8
ANSWER_LIMIT_S = 180.0
# What was due while a server was stopped is done first.
WAKING_S = 1.0


def main(argv: Sequence[str]) -> int:
    """Entry point; gives the exit code."""
    arguments = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # so that what was started is ended, as after Ctrl-C
    try:
        _run(arguments)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = [target.name for target in TARGETS.values() if target.package]
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of one measurement")
    parser.add_argument("--targets", type=_names, default=[name for name in TARGETS if name not in others], metavar="NAMES")
    parser.add_argument("--with", type=_names, default=[], metavar="NAMES", dest="others", help=f"measure these too: {','.join(others)}")
    parser.add_argument("--connections", type=_numbers, default=[1, 8, 64], metavar="NUMBERS")
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="of a replica, to see what it costs; 0 leaves that out")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/serve.json"), metavar="FILE", help="and a plot beside it, .svg"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("~/.cache/policymodel-bench"), metavar="DIR", help="of the environments of servers"
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _end(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _run(arguments: argparse.Namespace) -> None:
    cache: Path = arguments.cache.expanduser().resolve()
    chosen = [TARGETS[name] for name in dict.fromkeys([*arguments.targets, *arguments.others])]
    versions = {target.name: installed_version(target, cache) for target in chosen if target.package}
    # Ray puts Unix sockets below it, whose paths may be 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        print("training the policy that is served ...", flush=True)
        world = trained_world(Path(folder), cache, any("tutorial" in target.name for target in chosen))
        rows, busy = _measured_rows(world, chosen, arguments)
        shown = BATCH_CONNECTIONS if BATCH_CONNECTIONS in arguments.connections else arguments.connections[0]
        _write(arguments.out, rows, shown, {})  # whatever becomes of the rest
        costs = measured_costs(world, arguments.starts)
        _write(arguments.out, rows, shown, costs)
    print("\n".join(["", table(rows), "", *_notes(chosen, versions, busy), *_cost_lines(costs), "", f"written: {arguments.out}"]))


def _measured_rows(world: World, chosen: Sequence[Target], arguments: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """The rows, and for each target how busy the generator was at most, as a share of one core."""
    loads = [(connections, 1) for connections in arguments.connections] + [(BATCH_CONNECTIONS, BATCH)]
    cells = [(target, *load) for load in loads for target in chosen if load[1] == 1 or target.has_batches]
    rows = {(target.name, *load): Row(target.name, *load) for target, *load in cells}
    busy = dict.fromkeys([target.name for target in chosen], 0.0)
    with _started(world, chosen) as servers:
        for number in range(arguments.rounds):
            # Another order in each round, so that nobody is always measured first, or always after the same neighbour.
            for target, connections, batch in random.Random(number).sample(cells, len(cells)):
                cell = servers[target.server].measured(target, connections, batch, arguments.seconds)
                rows[target.name, connections, batch].add(cell)
                busy[target.name] = max(busy[target.name], cell.busy)
                print(f"round {number + 1}: {target.name:>12} x{connections} batch {batch}: {cell.requests_per_s:.0f}/s", flush=True)
    return list(rows.values()), busy


@dataclass(frozen=True)
class _Server:
    """A started server, which is stopped but for while it is measured."""

    launch: Launch
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, target: Target) -> None:
        """Until it answers what the target asks."""
        request = target.request(self.launch, 1)
        wait_for_answer(self.launch, self.process, request.port, request.path, request.body, self.log, ANSWER_LIMIT_S)

    def measured(self, target: Target, connections: int, batch: int, seconds: float) -> Cell:
        """One cell."""
        with awake(self.process):
            self.wait_for(target)
            time.sleep(WAKING_S)
            return measured_load(target.request(self.launch, batch), connections, seconds)


@contextlib.contextmanager
def _started(world: World, chosen: Sequence[Target]) -> Iterator[dict[str, _Server]]:
    """Every server that a target needs, for the length of the block; each has answered."""
    servers: dict[str, _Server] = {}
    with contextlib.ExitStack() as stack:
        for target in chosen:
            name, log = target.server, world.directory / f"{target.server}.log"
            if name not in servers:
                print(f"starting {name} ...", flush=True)
                launch = target.launch(world)
                servers[name] = _Server(launch, stack.enter_context(running(launch, log)), log)
            with awake(servers[name].process):
                servers[name].wait_for(target)
        yield servers


def _write(out: Path, rows: Sequence[Row], connections: int, costs: Mapping[str, Sequence[Cost]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    starts = {kind: [cost.as_json() for cost in each] for kind, each in costs.items() if each}
    found = {"rows": [row.as_json() for row in rows], **({"costs": starts} if starts else {}), "machine": machine()}
    out.write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".svg").write_text(plot(rows, connections))


def _notes(chosen: Sequence[Target], versions: dict[str, str], busy: dict[str, float]) -> list[str]:
    own = {name: version(name) for name in ("ray", "onnxruntime", "uvicorn", "starlette", "fastapi")}
    skipped = [name for name, target in TARGETS.items() if target not in chosen]
    named = ", ".join(f"{name} {number}" for name, number in {**own, **versions}.items())
    shares = ", ".join(f"{share:.0%} of a core against {name}" for name, share in sorted(busy.items(), key=lambda each: -each[1])[:3])
    busiest = max(busy.values())
    verdict = "far from its own limit" if busiest < 0.8 else "NEAR ITS OWN LIMIT: those figures are too low"
    return [
        *([f"skipped: {', '.join(skipped)} (--targets and --with choose)"] if skipped else []),
        f"versions: {named}",
        f"the generator was at most this busy: {shares}; it was {verdict}",
    ]


def _cost_lines(costs: dict[str, list[Cost]]) -> list[str]:
    """What one replica costs, as text: medians over the starts, and ours above the bare one."""
    if not costs["ours"]:
        return ["what a replica costs was left out (--starts 0)"]
    lines = []
    for field, unit, what in (
        ("command_s", "s", "start of app.serve to the first answer"),
        ("process_s", "s", "start of the replica's process to its first answer"),
        ("rss_mib", "MiB", "memory of the replica's process (RSS)"),
    ):
        bare, own = (statistics.median(getattr(cost, field) for cost in costs[kind]) for kind in ("bare", "ours"))
        lines.append(f"{what}: ours {own:.1f} {unit}, bare Serve replica {bare:.1f} {unit}, above it {own - bare:+.1f} {unit}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
