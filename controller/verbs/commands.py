"""The verbs: `policymodel status cartpole`, `kubectl policymodel promote cartpole`, and so on.

Reads the PolicyModel, has `writes` decide what to write and `text` what to say, and does so. They act through fields and
annotations of the resource alone, under the rights of whoever calls them. What is asked for goes to stdout; all else to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller import names
from controller import status as statuses
from controller.model import Revision
from controller.verbs import drawn_log as verb_drawn_log
from controller.verbs import play as verb_play
from controller.verbs import report as verb_report
from controller.verbs import sources as verb_sources
from controller.verbs import text as verb_text
from controller.verbs import writes as verb_writes
from controller.verbs.api import EXIT_NOT_DONE, EXIT_NOT_FOUND, EXIT_UNREACHED, EXIT_USAGE, Api, ApiTrouble, NotStarted, Where
from controller.verbs.options import WAITED
from controller.verbs.view import Invocation, View, advice, is_hopeless, view_of
from controller.verbs.writes import Claim, Refusal, Write

POLL_S = 1.0
MOST_EMPTY_LOGS = 10
EXIT_INTERRUPTED = 130
_CLEAR = "\033[H\033[J"


@dataclass(frozen=True)
class Asked:
    """One command: its flags, the cluster, and how the next commands are spelled."""

    options: argparse.Namespace
    api: Api
    invocation: Invocation

    @property
    def as_json(self) -> bool:
        return bool(self.options.output == "json")

    def view(self) -> View:
        return view_of(self.api.policy_model(self.options.name), self.invocation)


def run(options: argparse.Namespace, program: str) -> int:
    """Does what one verb asks for; gives the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no box-drawing shows question marks, and still the words.
        sys.stdout.reconfigure(errors="replace")
    try:
        if options.command == "report" and options.state:
            document = verb_sources.local_document(options.state, options.namespace or "default", options.name)
            return _reported(options, view_of(document, Invocation(program)), verb_sources.of_files)
        asked = Asked(options, Api(Where(options.namespace, options.context, options.kubeconfig)), Invocation(program, _flags(options)))
        return _DONE_BY.get(options.command, _write)(asked)
    except ApiTrouble as trouble:
        print(f"{program} {options.command}: {trouble}", file=sys.stderr)
        return trouble.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read it has seen enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _status(asked: Asked) -> int:
    if asked.options.watch:
        return _watch(asked)
    _show(_shown(asked, asked.view()))
    return 0


def _watch(asked: Asked) -> int:
    """Shows the status whenever it changes. A cluster that is gone for a moment ends nothing: what was seen last stays, and is told so."""
    view, told, is_screen = asked.view(), "", sys.stdout.isatty() and not asked.as_json
    trouble = ""
    while True:
        text = _shown(asked, view) + (f"\nthis is what was seen last: {trouble}\n" if trouble and not asked.as_json else "")
        # Away from a terminal the passing of time alone is no news.
        news = (
            text if is_screen else json.dumps(statuses.document_of(view.status)) + trouble + str((view.generation, view.paused, view.pin))
        )
        if news != told:
            _show((_CLEAR if is_screen else "\n" if told and not asked.as_json else "") + text)
            told = news
        time.sleep(POLL_S)
        try:
            view, trouble = asked.view(), ""
        except ApiTrouble as error:
            if error.exit_code != EXIT_UNREACHED:
                raise
            trouble = str(error)


def _shown(asked: Asked, view: View) -> str:
    now = datetime.now(UTC)
    if asked.as_json:
        return json.dumps(_status_document(view, now)) + "\n"
    text = verb_text.status_text(view, now, shutil.get_terminal_size((100, 24)).columns)
    return verb_text.coloured(text) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def _status_document(view: View, now: datetime) -> dict[str, Any]:
    comes = advice(view, now)
    return {
        "name": view.name,
        "namespace": view.namespace,
        "generation": view.generation,
        "observed": view.is_seen,
        "ready": view.is_seen and view.is_(statuses.READY, "True"),
        "available": view.is_(statuses.AVAILABLE, "True"),
        "paused": view.paused,
        "servedRevision": view.pin,
        "next": {"text": comes.text, "commands": [command for command, _ in comes.commands]},
        "status": statuses.document_of(view.status),
    }


def _history(asked: Asked) -> int:
    view, number = asked.view(), asked.options.revision
    revision = _revision(view, number)
    if asked.as_json:
        found = statuses.document_of(view.status)["revisions"]
        _show(json.dumps(next((one for one in found if one["number"] == number), None) if number else {"revisions": found}) + "\n")
        return 0
    _show(verb_text.revision_text(view, revision) if revision else verb_text.history_text(view))
    return 0


def _revision(view: View, number: int | None) -> Revision | None:
    """The revision of a number; None where none is asked for.

    Raises:
        ApiTrouble: there is no such revision.
    """
    revision = view.revision(number)
    if number and revision is None:
        known = verb_text.joined([revision.number for revision in view.status.revisions]) or "none"
        raise ApiTrouble(f"there is no revision {number}; there are: {known}", EXIT_NOT_FOUND)
    return revision


def _report(asked: Asked) -> int:
    view = asked.view()
    return _reported(asked.options, view, lambda revision: verb_sources.of_logs(_logs_of(asked, view, revision), revision))


def _logs_of(asked: Asked, view: View, revision: Revision) -> Iterator[bytes]:
    """The logs of the pods that trained a revision, oldest first, and of those that played its evaluation; one that is gone is left out."""
    wanted = [(names.ROLE_TRAIN, names.LABEL_RUN, revision.run)]
    if revision.evaluation:
        wanted.append((names.ROLE_EVALUATE, names.LABEL_EVALUATION, revision.evaluation.id))
    for role, label, value in wanted:
        with suppress(ApiTrouble):
            for pod in asked.api.pods(_selector(view, role, label, value)):
                with suppress(ApiTrouble):
                    yield b"".join(asked.api.log(pod.metadata.name, role, follow=False, previous=False, tail=None))


def _reported(options: argparse.Namespace, view: View, material: Callable[[Revision], verb_report.Material]) -> int:
    """Writes the page of the revision that is asked for."""
    newest = view.status.revisions[-1] if view.status.revisions else None
    revision = _revision(view, options.revision) or view.revision(view.serving) or newest
    if revision is None:
        raise ApiTrouble(f"{view.name} has published no policy yet", EXIT_NOT_FOUND)
    found = material(revision)
    if options.episode:
        where = verb_play.address(view, options.url, options.host)
        found = replace(found, episode=verb_play.observed_episode(view, where, options.entry_point_prefix))
    else:
        found = verb_sources.with_reason(found, "An episode: --episode plays one, over HTTP, and draws it.")
    text = verb_report.page(view, revision, found, datetime.now(UTC))
    path = options.file or Path(f"{view.name}-{revision.number}.html")
    if str(path) == "-":
        _show(text)
        return 0
    try:
        path.write_text(text)
    except OSError as error:
        raise ApiTrouble(f"--file: {error}", EXIT_USAGE) from error
    print(path)
    return 0


def _write(asked: Asked) -> int:
    """A verb that writes: what it may be waited for, it waits for where that is asked."""
    options, view = asked.options, asked.view()
    written = _written(view, options, asked.api.user)
    waits = options.command in WAITED and options.wait
    if isinstance(written, Refusal):
        raise ApiTrouble(written.why, EXIT_NOT_FOUND if written.is_missing else EXIT_NOT_DONE)
    if waits and written.blocked:
        raise ApiTrouble(f"{written.blocked}; nothing was written, because --wait would wait in vain")
    if written.patch:
        view = view_of(asked.api.patch(options.name, written.patch), asked.invocation)
    for note in written.notes:
        print(f"note: {note}", file=sys.stderr)
    if not asked.as_json:
        print(f"{view.namespace}/{view.name}: {written.said}", flush=True)
    reached = _is_reached(asked, written, view.generation) if waits else None
    if asked.as_json:
        told = {"name": view.name, "namespace": view.namespace, "verb": options.command, "changed": written.patch is not None}
        print(json.dumps({**told, "said": written.said, "requestId": written.request_id or None, "reached": reached}))
    return EXIT_NOT_DONE if reached is False else 0


def _written(view: View, options: argparse.Namespace, user: Callable[[], str]) -> Write | Refusal:
    def claim() -> Claim:
        return Claim(str(uuid.uuid4()), user(), datetime.now(UTC))

    match options.command:
        case "approve":
            return verb_writes.approve(view, claim(), options.revision)
        case "promote":
            return verb_writes.promote(view, claim(), options.revision)
        case "abort":
            return verb_writes.abort(view, claim(), options.revision)
        case "retrain":
            return verb_writes.retrain(view, claim())
        case "undo":
            return verb_writes.undo(view, options.to)
        case "pin":
            return verb_writes.pin(view, options.revision)
        case "unpin":
            return verb_writes.unpin(view)
        case "pause":
            return verb_writes.pause(view)
    return verb_writes.resume(view)


def _is_reached(asked: Asked, written: Write, generation: int) -> bool:
    """Waits for what was asked for, telling what changes on the way; False where it cannot come to that, or not in time."""
    deadline, told = time.monotonic() + asked.options.timeout, ""
    while True:
        try:
            view = asked.view()
        except ApiTrouble as trouble:
            if trouble.exit_code != EXIT_UNREACHED:
                raise
            news, end = str(trouble), None
        else:
            news, end = _news(view), outcome(view, asked.options.command, written, generation)
        if end is not None or news != told:
            print(f"{time.strftime('%H:%M:%S')} {news}", file=sys.stderr, flush=True)
            told = news
        if end is not None:
            return end
        if time.monotonic() >= deadline:
            print(f"--timeout: it has not come to that within {asked.options.timeout:g} s", file=sys.stderr)
            return False
        time.sleep(POLL_S)


def outcome(view: View, verb: str, written: Write, generation: int) -> bool | None:
    """Whether what a verb asked for has come, or cannot come any more; None while it may.

    Args:
        generation: of the spec, after the verb has written.
    """
    if written.request_id and view.status.last_handled_requests.get(verb) != written.request_id:
        asked = view.requests.get(verb)
        # Somebody else has asked after us, before the operator looked.
        return False if asked and asked.id != written.request_id else None
    if view.status.observed_generation < generation or view.paused:
        return None
    if verb in (names.PROMOTE, names.ABORT) and view.status.candidate and view.status.candidate.weight < 100:
        # It was seen to, and the rollout is under way all the same: the operator has refused it, with an event.
        return False
    if verb == "abort":
        # The replicas let go of the candidate one after the other.
        return True if view.status.candidate is None and view.reason(statuses.READY) != "RollingOut" else None
    if view.is_(statuses.READY, "True"):
        return True
    return False if is_hopeless(view) else None


def _news(view: View) -> str:
    ready = view.status.condition(statuses.READY)
    return f"Ready={ready.status} {ready.reason}: {ready.message}" if ready else "the operator has not looked yet"


def _logs(asked: Asked) -> int:
    options, told, empty = asked.options, "", 0
    show = _draw if options.follow and not options.serve and sys.stdout.isatty() else _copy
    while True:
        try:
            pod, container = _pod(asked, asked.view())
            has_said = show(asked.api.log(pod, container, follow=options.follow, previous=options.previous, tail=options.tail))
            # Of a container that is just starting, an empty log may come to its end.
            empty += 1
            if has_said or not options.follow or empty == MOST_EMPTY_LOGS:
                return 0
        except NotStarted as trouble:
            if not options.follow:
                raise
            if str(trouble) != told:
                print(f"waiting: {trouble}", file=sys.stderr)
                told = str(trouble)
        time.sleep(POLL_S)


def _copy(pieces: Iterable[bytes]) -> bool:
    """Writes a log as it is; whether there was anything."""
    has_said = False
    for piece in pieces:
        has_said = True
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return has_said


def _draw(pieces: Iterable[bytes]) -> bool:
    """Writes a log with its progress drawn; whether there was anything."""
    last = ""
    try:
        for last in verb_drawn_log.drawn(pieces, lambda: shutil.get_terminal_size((100, 24)).columns):
            _show(last)
    finally:
        if last and not last.endswith("\n"):
            _show("\n")
    return bool(last)


def _pod(asked: Asked, view: View) -> tuple[str, str]:
    """The newest pod of what is asked for, and its container.

    Raises:
        NotStarted: there is none yet.
        ApiTrouble: there is none any more.
    """
    if asked.options.serve:
        # KubeRay names a cluster after its RayService, with five characters more; the pods of an adopted one do not bear our labels.
        named = re.compile(rf"{re.escape(view.ray_service)}-(raycluster-)?[a-z0-9]{{5}}")
        heads = asked.api.pods("ray.io/node-type=head")
        pods = [pod for pod in heads if named.fullmatch((pod.metadata.labels or {}).get("ray.io/cluster", ""))]
        if not pods:
            raise NotStarted(f"the RayService {view.ray_service} has no head pod", EXIT_NOT_FOUND)
        return pods[-1].metadata.name, "ray-head"
    return _training_pod(asked, view)


def _training_pod(asked: Asked, view: View) -> tuple[str, str]:
    training = view.status.training
    pods = asked.api.pods(_selector(view, names.ROLE_TRAIN, names.LABEL_RUN, training.run)) if training else []
    if pods:
        return pods[-1].metadata.name, names.ROLE_TRAIN
    if view.is_seen and view.is_(statuses.TRAINED, "True"):
        raise ApiTrouble("the training is over, and its pod is gone: its log went with it", EXIT_NOT_FOUND)
    raise NotStarted("no pod trains yet", EXIT_NOT_FOUND)


def _selector(view: View, role: str, label: str, value: str) -> str:
    """Pods of a PolicyModel, whose container is named as their role is."""
    return f"{names.LABEL_NAME}={view.name},{names.LABEL_ROLE}={role},{label}={value}"


def _act(asked: Asked) -> int:
    options, view = asked.options, asked.view()
    text = sys.stdin.read() if options.observation == "-" else options.observation
    try:
        seen = json.loads(text)
    except ValueError as error:
        raise ApiTrouble(f"the observation is not JSON: {error}", EXIT_USAGE) from error
    body = {
        "observation": seen,
        **({"explore": True} if options.explore else {}),
        **({} if options.seed is None else {"seed": options.seed}),
    }
    answer = verb_play.acted(view, verb_play.address(view, options.url, options.host), body)
    if asked.as_json:
        print(json.dumps(answer))
    else:
        by = f"revision {answer['revision']}" if answer["revision"] else "a policy"
        print(f"{json.dumps(answer['action'])}   by {by} ({answer['digest']})")
    return 0


def _play(asked: Asked) -> int:
    options, view = asked.options, asked.view()
    return verb_play.play(
        view,
        verb_play.address(view, options.url, options.host),
        episodes=options.episodes,
        seed=options.seed,
        fps=options.fps,
        prefixes=options.entry_point_prefix,
        as_json=asked.as_json,
    )


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _flags(options: argparse.Namespace) -> str:
    """The flags that led to a PolicyModel, for the commands that are shown: kubectl has the same ones."""
    given = {"-n": options.namespace, "--context": options.context, "--kubeconfig": options.kubeconfig}
    return "".join(f" {flag} {value}" for flag, value in given.items() if value)


_DONE_BY: dict[str, Callable[[Asked], int]] = {
    "status": _status,
    "history": _history,
    "report": _report,
    "logs": _logs,
    "act": _act,
    "play": _play,
}
