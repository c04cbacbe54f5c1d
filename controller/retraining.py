"""Which training of a spec is asked for: its first, or another one that a request, the gate or the schedule has asked for.

A run is named by the training fields and by its trigger, so each has its Job, its directory and its seed. Which trigger counts follows
from the status and from the annotations each time anew: from the run that the status names, the newest approved revision of this spec
where its user went away and came back, and a request that nobody has seen to. Another spec knows no trigger.
"""

from __future__ import annotations

from dataclasses import replace

from controller import history, names, scheduling
from controller.model import Event, Observed, Revision
from controller.spec import Trigger
from controller.switching import is_switching


def trigger(observed: Observed) -> Trigger | None:
    """What asks for the training that counts, or None for the first of its spec."""
    found, asked = _current(observed), observed.request(names.APPROVE)
    if asked and not asked.problem:
        # Whoever approves a policy of this spec wants that one, and not the one that would come after it.
        known = _of_this_spec(observed)
        named = next((revision for revision in known if revision.number == asked.revision and revision.is_kept), None)
        found = named.trigger if named else found
    asked = observed.request(names.RETRAIN)
    if asked and not asked.problem:
        return Trigger("Request", observed.spec.origin, asked.id, _next_number(observed, found), user=asked.user)
    found = found if observed.spec.paused else _after_the_gate(observed, found)
    seen = replace(observed, spec=replace(observed.spec, trigger=found))
    return scheduling.asked(seen, _next_number(observed, found)) or found


def _after_the_gate(observed: Observed, found: Trigger | None) -> Trigger | None:
    """The trigger, unless the gate does not let its policy through: then that of another draw that it may let through (it may be another
    gate than it was, or another policy may serve), and where there is none, and the gate trains again, that of a new one."""
    seen = replace(observed, spec=replace(observed.spec, trigger=found))
    candidate = history.newest(observed.status.revisions, seen.spec.run)
    if candidate and not _is_refused(candidate, seen):
        return found
    draws = [revision for revision in _of_this_spec(observed) if _root(revision.trigger) == _root(found)]
    hopeful = [draw for draw in draws if draw is history.newest(observed.status.revisions, draw.run) and not _is_refused(draw, seen)]
    if hopeful:
        return hopeful[-1].trigger
    if candidate is None or not is_due(candidate, seen):
        return found
    made = Trigger("Gate", observed.spec.origin, candidate.run, _next_number(observed, found), (found.retrains if found else 0) + 1)
    run = replace(observed.spec, trigger=made).run
    return next((draw.trigger for draw in draws if draw.run == run), made)


def is_due(candidate: Revision, observed: Observed) -> bool:
    """Whether the gate asks for another training of a policy that it does not let through."""
    rules, before = observed.spec.gate, observed.spec.trigger
    return rules.on_fail == "Retrain" and not candidate.approval and (before.retrains if before else 0) < rules.max_retrains


def handled(observed: Observed) -> dict[str, str]:
    """The last request of each verb that was seen to, with those that this plan sees to."""
    new = {verb: asked.id for verb in _seen_to(observed) for asked in [observed.request(verb)] if asked}
    return {**observed.status.last_handled_requests, **new}


def events(observed: Observed, recorded: tuple[Revision, ...]) -> tuple[Event, ...]:
    """What is told of requests that this plan sees to."""
    found = (_event(verb, observed, recorded) for verb in _seen_to(observed) if observed.request(verb))
    return tuple(event for event in found if event)


def _seen_to(observed: Observed) -> tuple[str, ...]:
    """The verbs that are seen to now: while KubeRay switches clusters nothing is rolled out, so what is asked of a rollout waits."""
    if is_switching(observed):
        return tuple(verb for verb in names.REQUESTS if verb not in (names.PROMOTE, names.ABORT))
    return names.REQUESTS


def _event(verb: str, observed: Observed, recorded: tuple[Revision, ...]) -> Event | None:
    asked = observed.request(verb)
    assert asked is not None
    annotation = names.request_annotation(verb)
    if asked.problem:
        return Event("Warning", "RequestRefused", f"metadata.annotations: {annotation} {asked.problem}")
    if verb == names.RETRAIN:
        return Event("Normal", "RetrainRequested", f"{asked.user} asked for another training, from seed {observed.spec.seed}")
    if verb != names.APPROVE:
        return None  # told by the rollout, which knows whether there is one
    named = next((revision for revision in recorded if revision.number == asked.revision), None)
    if named and not named.is_kept:
        message = f"metadata.annotations: {annotation} names revision {named.number}, which was pruned (spec.storage.keepRevisions)"
        return Event("Warning", "RequestRefused", message)
    if named is None:
        message = f"metadata.annotations: {annotation} names revision {asked.revision}, and status.revisions has none of that number"
        return Event("Warning", "RequestRefused", message)
    return Event("Normal", "RevisionApproved", f"{asked.user} approved revision {asked.revision}, whatever the gate says")


def _current(observed: Observed) -> Trigger | None:
    """The trigger of this spec that was asked for last."""
    last = observed.status.training
    if last and last.origin == observed.spec.origin:
        return last.trigger
    known = _of_this_spec(observed)
    approved = [revision for revision in known if revision.is_approved]
    # One that was pruned is trained again where there is no other: its trigger tells the seed that did well.
    newest = [*known[-1:], *approved[-1:], *[revision for revision in approved if revision.is_kept][-1:]]
    return newest[-1].trigger if newest else None


def _of_this_spec(observed: Observed) -> list[Revision]:
    return [revision for revision in observed.status.revisions if revision.origin == observed.spec.origin]


def _next_number(observed: Observed, found: Trigger | None) -> int:
    """The number of one more training: its seed is no other's."""
    known = [found, *(revision.trigger for revision in _of_this_spec(observed))]
    return 1 + max((trigger.number for trigger in known if trigger), default=0)


def _root(trigger: Trigger | None) -> int:
    """The number of the training that the gate's own follow from: its draws are equals, and a request wants a draw after them."""
    return trigger.number - trigger.retrains if trigger else 0


def _is_refused(candidate: Revision, observed: Observed) -> bool:
    """Whether a policy of the status has had all its evaluations, and the gate does not let it through."""
    if history.with_approval(candidate, observed).approval or history.wanted_look(candidate, observed):
        return False
    return history.verdict(candidate, observed).outcome != "Pass"
