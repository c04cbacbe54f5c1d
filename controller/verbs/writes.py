"""What each verb writes, or why it writes nothing. Pure: a view in, a JSON merge patch out.

A request is an annotation with an id, which the operator acknowledges in the status; what lasts is a field of the spec. The operator
judges again what is judged here: this is to spare people a wait for what cannot come.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import names, observation
from controller import status as statuses
from controller.verbs.text import joined
from controller.verbs.view import View, held_back, stayed_back

# The name under which the API server notes who wrote a field. Flux takes over, and so undoes, what anybody wrote whose name begins with
# `kubectl` (fluxcd/pkg, ssa/patch.go): a pin would be gone within minutes.
FIELD_MANAGER = "policymodel-cli"


@dataclass(frozen=True)
class Claim:
    """What a request claims of itself: its id, who asks, and when."""

    id: str
    user: str
    now: datetime


@dataclass(frozen=True)
class Write:
    """What is to be written, and what is said of it.

    Attributes:
        patch: a JSON merge patch, or None where all is as it is asked for already.
        said: what is asked for; `notes` is what there is to know besides.
        verb, request_id: of the request that the patch holds, where it holds one.
        blocked: why waiting for it would be in vain, or "".
    """

    patch: dict[str, Any] | None
    said: str
    notes: tuple[str, ...] = ()
    verb: str = ""
    request_id: str = ""
    blocked: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why there is nothing to write; `is_missing`: what is named is not there."""

    why: str
    is_missing: bool = False


def approve(view: View, claim: Claim, number: int) -> Write | Refusal:
    found = view.revision(number)
    if found is None:
        return _no_such_revision(view, number)
    if not found.is_kept:
        return _pruned(view, number)
    if found.approval:
        return Write(None, f"revision {number} is approved already, by {found.approval.user}")
    verdict = f"the gate said {found.verdict}" if found.verdict else "the gate has not judged it"
    is_asked_for = view.status.training is None or found.origin == view.status.training.origin
    elsewhere = f"the spec asks for another training than that of revision {number}: to serve it, {view.command('pin', str(number))}"
    said = f"revision {number} is approved by {claim.user}, whatever the gate says ({verdict})"
    return _request(view, names.APPROVE, claim, said, number, () if is_asked_for else (elsewhere,))


def promote(view: View, claim: Claim, number: int | None) -> Write | Refusal:
    candidate, back = view.status.candidate, stayed_back(view)
    found = candidate.revision if candidate else back.number if back else None
    if found is None:
        held = held_back(view)
        by_hand = (
            f"; revision {held.number} has not passed its gate: {view.command('approve', f'--revision {held.number}')}" if held else ""
        )
        return Refusal(f"there is no rollout to promote{_that_serves(view)}{by_hand}")
    if number not in (None, found):
        return Refusal(
            f"revision {number} is not being rolled out, revision {found} is; to serve another: {view.command('pin', str(number))}"
        )
    return _request(view, names.PROMOTE, claim, f"revision {found} is promoted past the steps that are left", found)


def abort(view: View, claim: Claim, number: int | None) -> Write | Refusal:
    candidate, back = view.status.candidate, stayed_back(view)
    if candidate is None:
        over = f"; the rollout of revision {back.number} is over already" if back else ""
        return Refusal(f"there is no rollout to abort{_that_serves(view)}{over}")
    if number not in (None, candidate.revision):
        return Refusal(f"revision {number} is not being rolled out, revision {candidate.revision} is")
    if view.serving is None:
        return Refusal(f"revision {candidate.revision} is the first to be served: there is none to go back to")
    return _request(view, names.ABORT, claim, f"the rollout of revision {candidate.revision} is aborted", candidate.revision)


def retrain(view: View, claim: Claim) -> Write | Refusal:
    is_training = view.is_(statuses.PROGRESSING, "True") and view.reason(statuses.PROGRESSING) == "Training"
    notes = ("the training that runs now is stopped, and its checkpoints are not used",) if is_training else ()
    return _request(view, names.RETRAIN, claim, "another training of this spec is asked for, from the next seed", notes=notes)


def undo(view: View, number: int | None) -> Write | Refusal:
    """A pin to what served before.

    Args:
        number: where to, or None for the newest older revision that has served.
    """
    if number is not None:
        return pin(view, number)
    candidate = view.status.candidate
    if candidate and candidate.revision != view.serving and view.serving is not None:
        there = f"it is at {candidate.weight} % of the sessions" if candidate.weight < 100 else "it takes over"
        by_abort = f"{view.command('abort')} brings all sessions back to revision {view.serving}"
        return Refusal(
            f"revision {candidate.revision} is being rolled out ({there}): {by_abort}; to pin another: {view.command('undo', '--to N')}"
        )
    if view.serving is None:
        return Refusal("no revision serves that could be undone")
    # The first one of all has had no rollout: that it served is told by those that were published meanwhile.
    parents = {revision.parent for revision in view.status.revisions}
    served = [revision for revision in view.status.revisions if revision.is_good and (revision.rollout or revision.number in parents)]
    others = [revision for revision in served if revision.number != view.serving]
    if not others:
        return Refusal(f"no revision beside {view.serving} has served and is kept; {view.command('history')} shows all")
    # A revert of the spec serves an older revision again: then it is a newer one that served before.
    found = ([revision for revision in others if revision.number < view.serving] or others)[-1]
    written = pin(view, found.number)
    if isinstance(written, Refusal) or written.patch is None:
        return written
    return Write(
        written.patch,
        f"back from revision {view.serving} to revision {found.number}: {written.said}",
        written.notes,
        blocked=written.blocked,
    )


def pin(view: View, number: int) -> Write | Refusal:
    found = view.revision(number)
    if found is None:
        return _no_such_revision(view, number)
    if not found.is_kept:
        return _pruned(view, number)
    if not found.is_approved:
        return Refusal(f"revision {number} has not passed the gate: {view.command('approve', f'--revision {number}')} first")
    if view.pin == number:
        return Write(None, f"revision {number} is pinned already", blocked=_pause(view))
    said = f"revision {number} is pinned: it is served, whatever is trained, until {view.command('unpin')}"
    return _edit(view, {"servedRevision": number}, said)


def unpin(view: View) -> Write | Refusal:
    if view.pin is None:
        return Write(None, "no revision is pinned")
    return _edit(view, {"servedRevision": None}, f"revision {view.pin} is pinned no more: the policy of this spec is rolled out")


def pause(view: View) -> Write | Refusal:
    if view.paused:
        return Write(None, "it is paused already")
    notes = [f"what serves goes on serving, and nothing is changed until {view.command('resume')}"]
    if view.status.candidate and view.status.candidate.weight < 100:
        notes.append(f"revision {view.status.candidate.revision} stays at its step of the rollout")
    return Write({"spec": {"paused": True}}, "paused", tuple(notes))


def resume(view: View) -> Write | Refusal:
    if not view.paused:
        return Write(None, "it is not paused")
    waiting = tuple(f"{verb}, asked for by {asked.user}, is seen to now" for verb, asked in view.requests.items() if not asked.problem)
    return Write({"spec": {"paused": False}}, "resumed", waiting)


def _request(view: View, verb: str, claim: Claim, said: str, number: int | None = None, notes: tuple[str, ...] = ()) -> Write:
    # The operator refuses longer claims: they are kept in the status.
    user = claim.user[: observation.REQUEST_CHARACTERS]
    asked = {"id": claim.id, "user": user, "time": statuses.timestamp(claim.now), **({} if number is None else {"revision": number})}
    before = view.requests.get(verb)
    replaced = (
        f"the request {before.id} of {before.user}, which nobody has seen to yet, is replaced" if before and not before.problem else ""
    )
    told = tuple(note for note in (*notes, replaced, _later(view, verb), _in_vain(view, number)) if note)
    patch = {"metadata": {"annotations": {names.request_annotation(verb): json.dumps(asked)}}}
    return Write(patch, said, told, verb, claim.id, _in_vain(view, number))


def _later(view: View, verb: str) -> str:
    """What a request about a rollout waits for while the pods change, or ""."""
    if verb not in (names.PROMOTE, names.ABORT) or not view.is_seen:
        return ""
    is_switching = view.reason(statuses.READY) == "SwitchingCluster"
    return "KubeRay prepares a second cluster: this waits until it has switched" if is_switching else ""


def _edit(view: View, spec: dict[str, Any], said: str) -> Write:
    return Write({"spec": spec}, said, (_pause(view),) if view.paused else (), blocked=_pause(view))


def _in_vain(view: View, number: int | None) -> str:
    """Why the policy that a request is about is not served when it has been seen to, or ""."""
    if view.pin is None or view.pin == number:
        return _pause(view)
    return _pause(view) or f"revision {view.pin} is pinned, so no other is served until {view.command('unpin')}"


def _pause(view: View) -> str:
    return f"it is paused, so this waits until {view.command('resume')}" if view.paused else ""


def _no_such_revision(view: View, number: int) -> Refusal:
    return Refusal(f"there is no revision {number}; there are: {_kept(view)}", is_missing=True)


def _pruned(view: View, number: int) -> Refusal:
    return Refusal(f"revision {number} was pruned (spec.storage.keepRevisions); there are: {_kept(view)}", is_missing=True)


def _kept(view: View) -> str:
    return joined([revision.number for revision in view.status.revisions if revision.is_kept]) or "none"


def _that_serves(view: View) -> str:
    return f": revision {view.serving} serves" if view.serving else ""
