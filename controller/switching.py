"""The second cluster's part of the plan: when a change of the pods is not tried, and when one that was tried is given up.

KubeRay prepares a second cluster and has no deadline for it; while it does, the first one takes no new policy. It compares what is asked
for with the second cluster as long as there is one: to restore `rayClusterConfig` alone makes a third. So what is given up is noted first
(`status.undoneSwitch`), then the config of the cluster that serves is restored, and then KubeRay is told to forget the pending cluster;
each is done from what is seen, so whoever is stopped in between goes on there.

The config is restored as the serving RayCluster has it: made anew by another version of the operator it might not be the same.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from controller import capacity, resources
from controller import status as statuses
from controller.model import Action, Apply, Condition, ForgetPending, Observed, Problem, UndoneSwitch
from controller.steps import Step

# KubeRay may not take it that its pending cluster is forgotten, and makes another; in the end it is let do so.
MOST_FORGOTTEN = 5
REVERTED = "Reverted"


def wanted_hash(observed: Observed) -> str | None:
    """The hash of the fields that the RayService is to be made from: those of the spec, or what it has where they were given up."""
    asked, undone, live = resources.serving_hash(observed.spec), observed.status.undone_switch, observed.ray_service
    return live.hash if live and undone and undone.hash == asked else asked


def is_switching(observed: Observed) -> bool:
    """Whether KubeRay has, or gets, another cluster to build: the one that serves is told nothing new before they have switched."""
    spec, live = observed.spec, observed.ray_service
    if live is None:
        return False
    has_old_pods = live.hash != wanted_hash(observed) or live.pods_hash not in (None, live.hash)
    return live.switching or (spec.serving.ray_service is None and has_old_pods and shortage(observed) is None)


def shortage(observed: Observed) -> Problem | None:
    """Why a second cluster is not asked for yet: no node has room for it. Policies are rolled out to the first one meanwhile.

    One that is there already, and does not come up, makes room for the one that takes its place.
    """
    live = observed.ray_service
    if live is None or live.switching or not live.pods_hash or live.hash == wanted_hash(observed):
        return None
    return capacity.shortage(observed)


def undone_switch(observed: Observed) -> UndoneSwitch | None:
    """The note that this plan leaves in the status."""
    before, live = observed.status.undone_switch, observed.ray_service
    if live is None or observed.spec.serving.ray_service:
        return None
    if observed.spec.paused:
        return before
    asked = resources.serving_hash(observed.spec)
    if before and before.hash == asked:
        if live.hash == asked and not live.switching:
            return None
        is_forgetting = any(isinstance(action, ForgetPending) for action in _actions(observed))
        return replace(before, forgotten=before.forgotten + 1) if is_forgetting else before
    if not live.switching or live.active_config is None or live.pods_hash is None or live.foreign or live.deleting:
        return None
    if live.pods_hash == asked:
        return UndoneSwitch(asked, REVERTED, "the cluster that serves is what the spec asks for: the second one is given up")
    failure = overdue(observed)
    return UndoneSwitch(asked, failure.reason, failure.message) if failure and observed.spec.rollout.on_fail == "Rollback" else None


def undoing(observed: Observed) -> Step | None:
    """What is done about a second cluster that is given up; None once it is gone, or where none is."""
    undone = undone_switch(observed)
    if undone is None or observed.ray_service is None:
        return None
    actions = _actions(observed)
    is_noted = observed.status.undone_switch is not None and observed.status.undone_switch.hash == undone.hash
    if is_noted and not actions:
        return None
    problem = None if undone.reason == REVERTED else told(undone)
    message = problem.message if problem else undone.message
    return Step(Condition(statuses.READY, "False", "SwitchingCluster", message), actions, "RollingOut", problem)


def told(undone: UndoneSwitch) -> Problem:
    """What is said of a change of the pods that was given up."""
    advice = "Change spec.serving, and it is tried again; the pods stay as they were until then, and policies are rolled out to them"
    return Problem("SwitchUndone", f"{undone.message}. It is given up, and the first cluster goes on serving. {advice}")


def overdue(observed: Observed) -> Problem | None:
    """That the second cluster takes too long: which pod does not start, and why, as far as is known."""
    live, deadline_s = observed.ray_service, observed.spec.rollout.progress_deadline_s
    if live is None or not live.switching or live.pending_since is None:
        return None
    if (observed.now - datetime.fromisoformat(live.pending_since)).total_seconds() <= deadline_s:
        return None
    pods = f"its pod {', '.join(live.unready_pods)} does not get ready" if live.unready_pods else ""
    why = f": {live.problem.message if live.problem else pods}" if live.problem or pods else ""
    message = f"the second cluster did not come up within {deadline_s} s (spec.rollout.progressDeadlineSeconds){why}"
    return Problem("ProgressDeadlineExceeded", message)


def _actions(observed: Observed) -> tuple[Action, ...]:
    """The next thing to do for what is noted in the status."""
    live, undone = observed.ray_service, observed.status.undone_switch
    if live is None or undone is None or undone.hash != resources.serving_hash(observed.spec):
        return ()
    if live.pods_hash and live.hash != live.pods_hash and live.active_config is not None:
        return (Apply(resources.restored_ray_service(observed.owner, live.pods_hash, live.active_config)),)
    if live.switching and live.hash == live.pods_hash and undone.forgotten < MOST_FORGOTTEN:
        return (ForgetPending(resources.ray_service_name(observed.owner, observed.spec)),)
    return ()
