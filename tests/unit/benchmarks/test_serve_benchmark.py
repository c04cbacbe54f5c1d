"""What `make bench-serve` computes and says, and that it leaves nothing running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fakes.policy_server import Reply, policy_server

from benchmarks.serve.__main__ import _write, main
from benchmarks.serve.load import Cell, Request, is_whole, measured_load
from benchmarks.serve.processes import Launch, NotStarted, awake, free_range, members, running, stat_fields, wait_for_answer
from benchmarks.serve.replicas import Cost
from benchmarks.serve.report import Row, percentile, plot, ratio, table
from benchmarks.serve.targets import OWN_ENVIRONMENT, TARGETS, installed_python, own_body


@pytest.mark.parametrize(
    ("figures", "percent", "expected"),
    [
        ([], 50, None),
        ([3.0], 99, 3.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 99, 4.0),
        ([float(number) for number in range(1, 201)], 99, 198.0),
    ],
)
def test_a_percentile_is_one_of_the_figures(figures: list[float], percent: float, expected: float | None) -> None:
    assert percentile(figures, percent) == expected


def row(target: str, rates: list[float], connections: int = 8, batch: int = 1) -> Row:
    return Row(target, connections, batch, rates, [1.0] * len(rates), [2.0] * len(rates), [0] * len(rates))


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    assert ratio(row("ours", [100.0, 50.0, 90.0]), row("asgi", [200.0, 50.0, 100.0])) == 0.9


def test_without_anything_to_compare_with_there_is_no_ratio() -> None:
    assert ratio(row("ours", [100.0]), None) is None
    assert ratio(row("ours", [100.0]), row("asgi", [0.0])) is None


def test_a_row_takes_in_a_round() -> None:
    taken = Row("ours", 8, 1)
    taken.add(Cell(2.0, latencies_s=[0.004, 0.001, 0.002, 0.003] * 25))
    taken.add(Cell(2.0, latencies_s=[0.004] * 99, failures=8))
    assert (taken.requests_per_s, taken.p50_ms, taken.p99_ms, taken.failures) == ([50.0, 49.5], [2.0, None], [4.0, None], [0, 8])


def test_the_table_compares_within_one_load_only() -> None:
    rows = [row("ours", [80.0]), row("asgi", [100.0]), row("ours", [10.0], batch=64), row("tutorial", [2.0], connections=1)]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[1] == ["ours", "8", "1", "80", "80", "80", "1.00", "2.00", "-", "-", "0.80", "0"]
    assert lines[3] == ["ours", "8", "64", "10", "10", "640", "1.00", "2.00", "-", "-", "-", "0"]


def test_the_file_has_the_agreed_form(tmp_path: Path) -> None:
    failed = row("tutorial", [3.0, 4.0])
    failed.failures = [0, 2]
    costs = {"bare": [Cost(9.0, 2.0, 175.0)], "ours": [Cost(9.12345, 2.25, 200.5)]}
    _write(tmp_path / "new" / "serve.json", [row("ours", [1.0, 2.0]), failed], 8, costs)
    written = json.loads((tmp_path / "new" / "serve.json").read_text())
    assert set(written) == {"rows", "costs", "machine"}
    assert written["costs"] == {
        "bare": [{"command_s": 9.0, "process_s": 2.0, "rss_mib": 175.0}],
        "ours": [{"command_s": 9.123, "process_s": 2.25, "rss_mib": 200.5}],
    }
    assert written["rows"][0] == {
        **{"target": "ours", "connections": 8, "batch": 1, "requests_per_s": [1.0, 2.0]},
        **{"p50_ms": [1.0, 1.0], "p99_ms": [2.0, 2.0]},
    }
    assert written["rows"][1]["failures"] == [0, 2]
    assert set(written["machine"]) == {"cores", "memory", "python", "ray", "onnxruntime", "date"}
    assert (tmp_path / "new" / "serve.svg").exists()
    _write(tmp_path / "serve.json", [failed], 8, {"bare": [], "ours": []})
    assert set(json.loads((tmp_path / "serve.json").read_text())) == {"rows", "machine"}


def test_no_server_compiles_its_modules_at_each_start() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **OWN_ENVIRONMENT}
    program = "import sys; sys.exit(sys.dont_write_bytecode)"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)


def test_the_plot_has_a_bar_for_each_target_of_its_load() -> None:
    drawn = ElementTree.fromstring(plot([row("ours", [80.0]), row("a<b", [100.0]), row("ours", [1.0], connections=64)], 8))
    assert [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")][1:] == ["a<b", "100", "ours", "80"]


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Len", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
    ],
)
def test_an_answer_is_whole_by_its_length_or_its_last_chunk(received: bytes, whole: bool) -> None:
    assert is_whole(received) is whole


def test_the_load_counts_answers_and_failures() -> None:
    with policy_server() as server:
        good = measured_load(Request(server.server.server_port, "/route", own_body(1)), 2, 0.2, 0.05)
    with policy_server(Reply(500, b"oops")) as server:
        bad = measured_load(Request(server.server.server_port, "/route", own_body(1)), 1, 0.2, 0.05)
    assert good.requests_per_s == pytest.approx(len(good.latencies_s) / good.seconds)
    assert len(good.latencies_s) > 0
    assert good.failures == 0
    assert (bad.latencies_s, bad.failures > 0) == ([], True)
    assert server.asked[0].body == {"observation": [0.02, 0.01, -0.03, 0.04]}


def test_a_server_that_never_answers_has_failed() -> None:
    with policy_server(Reply(wait_s=60)) as server:
        assert measured_load(Request(server.server.server_port, "/route", own_body(1)), 3, 0.1, 0.05, drain_s=0.1).failures == 3


def test_nothing_of_a_session_is_left_running(tmp_path: Path) -> None:
    program = "import subprocess, time; subprocess.Popen(['sleep', '60'], process_group=0); print('up', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    with running(Launch([sys.executable, "-c", program], 0), log) as process:
        while "up" not in log.read_text():
            assert process.poll() is None
        assert len(members(process.pid)) == 2
    assert members(process.pid) == []


def test_a_session_that_is_not_measured_stands_still_and_is_ended_all_the_same(tmp_path: Path) -> None:
    def comes_to(state: str, pid: int) -> bool:
        deadline = time.monotonic() + 10
        while stat_fields(Path(f"/proc/{pid}/stat").read_text())[0] != state and time.monotonic() < deadline:
            time.sleep(0.01)
        return time.monotonic() < deadline

    with running(Launch(["sleep", "60"], 0), tmp_path / "log") as process:
        with awake(process):
            assert comes_to("S", process.pid)
        assert comes_to("T", process.pid)
        with awake(process):
            assert comes_to("S", process.pid)
    assert members(process.pid) == []


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    launch = Launch([sys.executable, "-c", "raise SystemExit('no such port')"], 1)
    with running(launch, tmp_path / "log") as process, pytest.raises(NotStarted, match="exit code 1:\nno such port"):
        wait_for_answer(launch, process, 1, "/", b"", tmp_path / "log", 20)


def test_a_name_with_spaces_and_brackets_does_not_shift_the_fields() -> None:
    assert stat_fields("12 (ray::Serve) x) S 1 12 12 0") == ["S", "1", "12", "12", "0"]


def test_a_range_of_ports_is_free() -> None:
    base = free_range(31000, 5)
    assert base % 5 == 0


def test_an_environment_is_made_anew_when_what_is_asked_for_or_the_text_of_its_constraints_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        (tmp_path / "environment").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    constraints = tmp_path / "constraints.txt"
    made = []
    for requirements, text in ((["a"], "a==1"), (["a"], "a==1"), (["a"], "a==2"), (["a", "b"], "a==2"), (["a", "b"], "a==2")):
        constraints.write_text(text)
        installed_python(tmp_path / "environment", requirements, constraints)
        made.append(len(ran) // 2)
    assert made == [1, 1, 2, 3, 3]
    assert ran[-1][-4:] == ["-c", str(constraints), "a", "b"]


def test_an_unknown_target_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "ours,torchserve"])
    assert "no target torchserve; there are ours, ours-port" in capsys.readouterr().err


def test_every_target_is_measured_or_has_to_be_asked_for() -> None:
    assert {target.name for target in TARGETS.values() if target.package} == {"bentoml", "litserve", "mlserver"}


def test_make_bench_does_not_run_it() -> None:
    said = subprocess.run(["make", "-n", "bench"], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout
    assert "benchmarks/act.py" in said
    assert "serve" not in said
