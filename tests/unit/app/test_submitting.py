"""The submitter of a Ray job, against a head that says what it is told to."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from app import submit
from app.errors import RetryableError
from app.report import Report

PROGRESS = {"iteration": 1, "envSteps": 1024, "progressPercent": 5.0}
RESULT = {"digest": "sha256:ab", "run": "r1"}
WRONG = {"reason": "InvalidEnvironment", "message": "no such argument"}


class Head:
    """The dashboard of a head: what it knows of one job, and how a submitted one goes.

    Args:
        known: what it knows before.
        goes: how a job that is followed ends.
        log: what its driver writes, in the pieces that it is sent in.
        is_made_anew: it forgets everything while the log is read.
        failures: how many questions it fails to answer.
        breaks: how many times its log breaks off before it has begun.
        refusals: how many jobs it does not take.
    """

    def __init__(
        self,
        known: dict[str, Any] | None,
        goes: dict[str, Any],
        log: list[str],
        *,
        is_made_anew: bool = False,
        failures: int = 0,
        breaks: int = 0,
        refusals: int = 0,
    ) -> None:
        self.job, self.goes, self.log = known, goes, log
        self.is_made_anew, self.failures, self.breaks, self.refusals = is_made_anew, failures, breaks, refusals
        self.asked: list[str] = []

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[str]:
        application = web.Application()
        application.add_routes(
            [
                web.get("/api/jobs/j", self._get),
                web.post("/api/jobs/", self._post),
                web.delete("/api/jobs/j", self._delete),
                web.get("/api/jobs/j/logs/tail", self._tail),
            ]
        )
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.Response:
        if self.failures:
            self.failures -= 1
            return web.Response(status=503)
        return web.json_response(self.job) if self.job else web.Response(status=404)

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=500)
        assert body["submission_id"] == "j"
        self.asked.append(f"submit {body['entrypoint']}")
        self.job = {"status": "PENDING"}
        return web.json_response({})

    async def _delete(self, request: web.Request) -> web.Response:
        self.asked.append("forget")
        self.job = None
        return web.json_response(True)

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in () if self.breaks else self.log:
            await socket.send_str(piece)
        self.breaks = max(0, self.breaks - 1)
        self.job = None if self.is_made_anew else self.goes
        return socket


def said(head: Head) -> tuple[Any, list[dict[str, Any]]]:
    """What the submitter gives, or raises, and its lines."""
    stream = io.StringIO()

    async def follow() -> Any:
        async with head.answering() as address, aiohttp.ClientSession(f"http://{address}") as session:
            try:
                return await submit.followed(submit.RayJob(session, "j"), "python -m app.train", Report(stream, None))
            except submit.RunError as error:
                return error

    return asyncio.run(follow()), [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOOK_S", 0.01)
    monkeypatch.setattr(submit, "BLIP_S", 0.1)
    monkeypatch.setattr(submit, "HEAD_S", 0.1)


def line(word: dict[str, Any]) -> str:
    return json.dumps(word) + "\n"


DONE = {"status": "SUCCEEDED", "driver_exit_code": 0}
LOG = ["a warning\n" + line({"progress": PROGRESS}), line({"result": RESULT})]


def test_a_job_that_is_not_there_is_submitted_and_what_it_says_is_said_again():
    head = Head(None, DONE, LOG)
    assert said(head) == (RESULT, [{"progress": PROGRESS}])
    assert head.asked == ["submit python -m app.train"]


def test_lines_come_in_pieces():
    text = "".join(LOG)
    assert said(Head(None, DONE, [text[:40], text[40:60], text[60:-1]])) == (RESULT, [{"progress": PROGRESS}])


def test_a_word_behind_what_stood_on_its_line_before_is_heard():
    bar = " 50%|#####     | 5/10\r"
    assert said(Head(None, DONE, [bar + line({"progress": PROGRESS}), "{" + bar + line({"result": RESULT})])) == (
        RESULT,
        [{"progress": PROGRESS}],
    )


def test_a_log_that_broke_off_is_read_again_for_the_last_word():
    head = Head(None, DONE, LOG, breaks=1)
    assert said(head)[0] == RESULT


def test_a_head_that_takes_no_job_yet_is_asked_again_and_submitted_to_once():
    head = Head(None, DONE, LOG, refusals=1)
    assert said(head)[0] == RESULT
    assert head.asked == ["submit python -m app.train"]


def test_a_head_that_takes_no_job_at_all_is_lost():
    found, _ = said(Head(None, DONE, LOG, refusals=1000))
    assert (type(found), found.reason) == (RetryableError, "HeadLost")


@pytest.mark.parametrize("status", ["SUCCEEDED", "RUNNING"])
def test_a_job_of_an_earlier_submitter_is_followed_and_not_submitted_again(status):
    head = Head({"status": status}, DONE, LOG)
    assert said(head) == (RESULT, [{"progress": PROGRESS}])
    assert head.asked == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_job_that_failed_under_an_earlier_submitter_is_submitted_again(status):
    head = Head({"status": status, "driver_exit_code": 1}, DONE, LOG)
    assert said(head)[0] == RESULT
    assert head.asked == ["forget", "submit python -m app.train"]


def test_wrong_input_is_said_and_ends_well_so_that_no_other_pod_is_made():
    failed, log = {"status": "FAILED", "driver_exit_code": 2}, [line({"error": WRONG})]
    for head in (Head(None, failed, log), Head(failed, failed, log)):
        error, _ = said(head)
        assert (type(error), error.exit_code, error.reason, error.message) == (submit.Final, 0, *WRONG.values())
        assert "forget" not in head.asked


def test_another_failure_is_said_with_the_drivers_reason_and_may_be_tried_again():
    error, _ = said(Head(None, {"status": "FAILED", "driver_exit_code": 1}, [line({"error": {"reason": "Internal", "message": "m"}})]))
    assert (type(error), error.exit_code, error.reason, error.message) == (RetryableError, 1, "Internal", "m")


def test_a_driver_that_was_killed_says_what_may_help():
    error, _ = said(Head(None, {"status": "FAILED", "driver_exit_code": -9}, ["half a li"]))
    assert (error.exit_code, error.reason) == (1, "TrainingFailed")
    assert "spec.training.resources.limits.memory" in error.message


def test_a_job_that_ends_well_without_a_result_has_failed():
    error, _ = said(Head(None, DONE, ["chatter\n", "[1, 2]\n", '{"result": 3}\n']))
    assert (error.exit_code, error.reason) == (1, "TrainingFailed")


def test_a_head_that_was_made_anew_has_lost_the_job():
    error, lines = said(Head(None, {"status": "RUNNING"}, LOG[:1], is_made_anew=True))
    assert (error.exit_code, error.reason) == (1, "HeadLost")
    assert lines == [{"progress": PROGRESS}]


def test_a_head_that_answers_late_is_waited_for_and_one_that_never_does_is_lost():
    assert said(Head(None, DONE, LOG, failures=2))[0] == RESULT
    error, _ = said(Head(None, DONE, LOG, failures=10_000))
    assert (error.exit_code, error.reason) == (1, "HeadLost")
