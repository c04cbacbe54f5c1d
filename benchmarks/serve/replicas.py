"""What one replica of ours costs above one that does nothing: seconds until it answers, and memory."""

import contextlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serve.processes import Launch, NotStarted, is_answered, members, running, stat_fields, wait_for_answer
from benchmarks.serve.targets import ROUTE, World, bare, ours, own_body

ANSWERS = 200
LIMIT_S = 180.0
REPLICA = b"ray::ServeReplica"


@dataclass(frozen=True)
class Cost:
    """What one start saw.

    Attributes:
        command_s: from the start of `app.serve` to the first answer of the replica.
        process_s: from the start of the replica's process to its first answer; Ray may have started it before it was needed.
        rss_mib: resident memory of that process after `ANSWERS` answers.
    """

    command_s: float
    process_s: float
    rss_mib: float

    def as_json(self) -> dict[str, float]:
        """As the JSON file holds it."""
        return {name: round(figure, 3) for name, figure in asdict(self).items()}


def measured_costs(world: World, starts: int) -> dict[str, list[Cost]]:
    """Starts both so many times, in turn, and ends each before the next one."""
    costs: dict[str, list[Cost]] = {"bare": [], "ours": []}
    for start in range(starts):
        costs["bare"].append(_measured(bare(world, f"cost-bare-{start}"), world.directory / f"cost-bare-{start}.log"))
        costs["ours"].append(_measured(ours(world, f"cost-ours-{start}", 1), world.directory / f"cost-ours-{start}.log"))
    return costs


def _measured(launch: Launch, log: Path) -> Cost:
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    with running(launch, log) as process:
        # Asked at its own port: until the proxy knows the replica is not the replica's time.
        wait_for_answer(launch, process, launch.replica_port, ROUTE, own_body(1), log, LIMIT_S)
        answered = time.clock_gettime(time.CLOCK_BOOTTIME)
        for _ in range(ANSWERS):
            is_answered(launch.replica_port, ROUTE, own_body(1))
        pid = _replica_of(process.pid)
        ticks = int(stat_fields(Path(f"/proc/{pid}/stat").read_text())[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return Cost(answered - began, answered - started, _rss_mib(pid))


def _replica_of(session: int) -> int:
    """The process of the one replica in a session."""
    for pid in members(session):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(REPLICA):
                return pid
    raise NotStarted("no replica's process was found")


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise NotStarted(f"process {pid} has no memory of its own")
