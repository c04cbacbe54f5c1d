"""Which training of a spec is asked for: its first, or another one that a request or the gate has asked for.

A run is named by the training fields and by its trigger, so each has its Job, its directory and its seed. Which trigger counts follows
from the status and from the annotations each time anew: from the run that the status names, the newest approved revision of this spec
where its user went away and came back, and a request that nobody has seen to. Another spec knows no trigger.
"""

from __future__ import annotations

from dataclasses import replace

from controller import history, names
from controller.model import Event, Observed, Revision, Trigger


def trigger(observed: Observed) -> Trigger | None:
    """What asks for the training that counts, or None for the first of its spec."""
    origin = observed.spec.origin
    found = _current(observed)
    asked = observed.request(names.APPROVE)
    if asked and not asked.problem:
        # Whoever approves a policy of this spec wants that one, and not the one that would come after it.
        named = next((revision for revision in observed.status.revisions if revision.number == asked.revision), None)
        found = named.trigger if named and named.origin == origin else found
    number = found.number + 1 if found else 1
    asked = observed.request(names.RETRAIN)
    if asked and not asked.problem:
        return Trigger("Request", origin, asked.id, number)
    seen = replace(observed, spec=replace(observed.spec, trigger=found))
    candidate = history.newest(observed.status.revisions, seen.spec.run)
    if candidate and not observed.spec.paused and _is_to_be_retrained(history.with_approval(candidate, observed), seen):
        return Trigger("Gate", origin, candidate.run, number, (found.retrains if found else 0) + 1)
    return found


def is_due(candidate: Revision, observed: Observed) -> bool:
    """Whether the gate asks for another training of a policy that it does not let through."""
    rules, before = observed.spec.gate, observed.spec.trigger
    return rules.on_fail == "Retrain" and not candidate.approval and (before.retrains if before else 0) < rules.max_retrains


def handled(observed: Observed) -> dict[str, str]:
    """The last request of each verb that was seen to, with those that this plan sees to."""
    new = {verb: asked.id for verb in names.REQUESTS for asked in [observed.request(verb)] if asked}
    return {**observed.status.last_handled_requests, **new}


def events(observed: Observed, recorded: tuple[Revision, ...]) -> tuple[Event, ...]:
    """What is told of requests that this plan sees to."""
    found = (_event(verb, observed, recorded) for verb in names.REQUESTS if observed.request(verb))
    return tuple(event for event in found if event)


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
    if not any(revision.number == asked.revision for revision in recorded):
        message = f"metadata.annotations: {annotation} names revision {asked.revision}, and status.revisions has none of that number"
        return Event("Warning", "RequestRefused", message)
    return Event("Normal", "RevisionApproved", f"{asked.user} approved revision {asked.revision}, whatever the gate says")


def _current(observed: Observed) -> Trigger | None:
    """The trigger of this spec that was asked for last."""
    origin, last = observed.spec.origin, observed.status.training
    if last and last.origin == origin:
        return last.trigger
    of_this_spec = [revision for revision in observed.status.revisions if revision.origin == origin]
    approved = [revision for revision in of_this_spec if revision.is_approved]
    newest = [*of_this_spec[-1:], *approved[-1:]]
    return newest[-1].trigger if newest else None


def _is_to_be_retrained(candidate: Revision, observed: Observed) -> bool:
    """Whether the status holds a policy of the run whose evaluations are all made, and the gate does not let it through."""
    if candidate.evaluation is None or not is_due(candidate, observed) or history.wanted_look(candidate, observed):
        return False
    return history.verdict(candidate, observed).outcome != "Pass"
