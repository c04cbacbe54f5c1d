"""Has a training run as a Ray job: `python -m app.submit`, with the flags of `app.train`. It trains nothing, and knows no spec.

KubeRay runs it beside the cluster of a RayJob (`submitterPodTemplate`), and judges the run by the Ray job that it submits. The driver runs
on the head, which goes with its cluster; what it says is said again here, so that this pod has the lines and the last word that the pod of
a training Job has. The HTTP API is Ray's: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from app.errors import InputError, RetryableError, RunError
from app.report import Report, reported_run
from app.training.leaving import Leaving

LOOK_S = 2.0
ANSWER = aiohttp.ClientTimeout(total=10)
# A head that has just begun waits 10 s for its agent before it takes a job.
SUBMITTED = aiohttp.ClientTimeout(total=30)
SERVER_ERROR = 500
# KubeRay makes a head anew that has gone, and an image may have to be pulled for it.
HEAD_S = 300.0
# A connection may break while the head is well.
BLIP_S = 20.0
HEARTBEAT_S = 20.0
# What the driver says of itself. Its stdout and its stderr are one log, where a bar of progress may stand before it on the same line.
WORD = re.compile(r'\{"(progress|result|error)": \{.*')
ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


class Final(RunError):
    """The input is wrong, and another attempt cannot help: this process ends well, so that none is made. The Ray job has failed."""

    exit_code = 0


class RayJob:
    """One Ray job at the head of a cluster, there or not."""

    def __init__(self, session: aiohttp.ClientSession, submission_id: str) -> None:
        self._session = session
        self._id = submission_id

    async def seen(self, patience_s: float) -> dict[str, Any] | None:
        """What the head says of it, None where it knows no such job.

        Raises:
            RetryableError: HeadLost.
        """
        gives_up = time.monotonic() + patience_s
        while True:
            try:
                async with self._session.get(f"/api/jobs/{self._id}", timeout=ANSWER) as answer:
                    if answer.status == 404:
                        return None
                    answer.raise_for_status()
                    return dict(await answer.json())
            except (aiohttp.ClientError, TimeoutError) as error:
                if time.monotonic() > gives_up:
                    raise RetryableError("HeadLost", f"the head of the Ray cluster does not answer ({type(error).__name__})") from error
            await asyncio.sleep(LOOK_S)

    async def submit(self, entrypoint: str) -> None:
        """Has the head run a command, under this id.

        Raises:
            RetryableError: HeadLost.
        """
        body = {"entrypoint": entrypoint, "submission_id": self._id}
        gives_up = time.monotonic() + HEAD_S
        while True:
            try:
                async with self._session.post("/api/jobs/", json=body, timeout=SUBMITTED) as answer:
                    answer.raise_for_status()
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                is_refused = isinstance(error, aiohttp.ClientResponseError) and error.status < SERVER_ERROR
                if is_refused or time.monotonic() > gives_up:
                    raise RetryableError("HeadLost", f"the head of the Ray cluster takes no job ({type(error).__name__})") from error
            await asyncio.sleep(LOOK_S)
            if await self.seen(HEAD_S) is not None:
                return

    async def forget(self) -> None:
        """Makes the id free again; only of one that has ended."""
        async with self._session.delete(f"/api/jobs/{self._id}", timeout=ANSWER) as answer:
            answer.raise_for_status()

    async def lines(self) -> AsyncIterator[str]:
        """What it has written and writes, from its first line on, until it ends or the connection breaks."""
        rest = ""
        try:
            address = f"/api/jobs/{self._id}/logs/tail"
            async with self._session.ws_connect(address, heartbeat=HEARTBEAT_S, max_msg_size=0) as socket:
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    *whole, rest = (rest + str(message.data)).split("\n")
                    for line in whole:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            print(f"the log of the Ray job breaks off: {type(error).__name__}", file=sys.stderr)
        if rest:
            yield rest


async def followed(job: RayJob, entrypoint: str, report: Report) -> dict[str, Any]:
    """Submits a job unless it is there already, and says what it says.

    Returns:
        Its result.

    Raises:
        Final: the driver's input is wrong.
        RetryableError: the driver failed otherwise (its own reason), or is gone with its head (HeadLost).
    """
    known = await job.seen(HEAD_S)
    # One that has failed under an earlier submitter is what this one is here to try again.
    if known and known["status"] in ("FAILED", "STOPPED") and known.get("driver_exit_code") != InputError.exit_code:
        await job.forget()
        known = None
    if known is None:
        await job.submit(entrypoint)
    word: dict[str, Any] = {}
    while True:
        word = await _heard(job, report) or word
        known = await job.seen(BLIP_S)
        if known is None:
            raise RetryableError("HeadLost", "the head of the Ray cluster was made anew; the next attempt goes on from the last checkpoint")
        if known["status"] in ENDS:
            return _result(known, word or await _heard(job, report))  # its log may have broken off
        await asyncio.sleep(LOOK_S)


async def _heard(job: RayJob, report: Report) -> dict[str, Any]:
    """Says again what the log of a job says, as long as it can be read; gives the last word, if it was there."""
    word: dict[str, Any] = {}
    async for line in job.lines():
        word = _said(line, report) or word
    return word


def _said(line: str, report: Report) -> dict[str, Any]:
    """The last word, if a line of the driver's is it; progress is told at once. The driver's log holds what is no such line, too."""
    word = WORD.search(line)
    found: Any = None
    if word:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(word[0])
    match found:
        case {"progress": dict() as progress}:
            report.progress(progress)
            return {}
        case {"result": dict()} | {"error": {"reason": str(), "message": str()}}:
            return dict(found)
    print(line, file=sys.stderr)
    return {}


def _result(ended: dict[str, Any], word: dict[str, Any]) -> dict[str, Any]:
    """The result of a job that has ended; raises what it failed with."""
    if ended["status"] == "SUCCEEDED" and "result" in word:
        return dict(word["result"])
    error = word.get("error") or {"reason": "TrainingFailed", "message": _reason(ended)}
    kind = Final if ended.get("driver_exit_code") == InputError.exit_code else RetryableError
    raise kind(error["reason"], error["message"])


def _reason(ended: dict[str, Any]) -> str:
    """Why a driver ended without a word."""
    if ended.get("driver_exit_code") in (-9, 137):
        return "the driver was killed; where memory ran out, allow more (spec.training.resources.limits.memory)"
    # More of it may be the driver's log, and that may hold a secret of the environment's.
    return f"the Ray job ended as {ended['status']} without a word; the log of its pod has more"


def run(argv: Sequence[str], report: Report) -> dict[str, Any]:
    """What `python -m app.submit` does; gives the result of the training."""
    Leaving().listen()
    entrypoint = shlex.join(["python", "-m", "app.train", *argv])
    return asyncio.run(_run(os.environ["RAY_DASHBOARD_ADDRESS"], os.environ["RAY_JOB_SUBMISSION_ID"], entrypoint, report))


async def _run(address: str, submission_id: str, entrypoint: str, report: Report) -> dict[str, Any]:
    async with aiohttp.ClientSession(f"http://{address.removeprefix('http://')}") as session:
        return await followed(RayJob(session, submission_id), entrypoint, report)


def main() -> int:
    """Entry point; gives the exit code."""
    return reported_run(lambda report: run(sys.argv[1:], report))


if __name__ == "__main__":
    sys.exit(main())
