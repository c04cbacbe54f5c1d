"""What the verbs see of a PolicyModel, and what comes next. Pure: no clock, no I/O.

It is read from the live object by hand, and not by `spec.spec_of`: the plugin may be newer than the schema of the cluster, and has to
say what is going on all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controller import names, observation
from controller import status as statuses
from controller.model import CandidateStatus, Condition, Request, Revision, Status
from controller.spec import Json, RolloutStep

# What the operator says of a pin that it cannot follow.
UNUSABLE_PIN = ("NoSuchRevision", "RevisionPruned", "RevisionNotApproved")


@dataclass(frozen=True)
class Invocation:
    """How commands are spelled that somebody is to type next: the program, and the flags that led here."""

    program: str = "kubectl policymodel"
    flags: str = ""


@dataclass(frozen=True)
class View:
    """One PolicyModel, as its user looks at it.

    Attributes:
        pin: spec.servedRevision.
        requests: those that nobody has seen to yet, by their verbs.
    """

    namespace: str
    name: str
    generation: int
    status: Status
    is_deleting: bool = False
    paused: bool = False
    pin: int | None = None
    strategy: str = "Direct"
    steps: tuple[RolloutStep, ...] = ()
    environment: Json = field(default_factory=dict)
    ray_service: str = ""
    ingress_host: str | None = None
    requests: Mapping[str, Request] = field(default_factory=dict)
    invocation: Invocation = Invocation()

    @property
    def is_seen(self) -> bool:
        """Whether the status speaks of what the spec says now."""
        return bool(self.status.conditions) and self.status.observed_generation >= self.generation

    @property
    def serving(self) -> int | None:
        """The revision that answers."""
        return self.status.serving.revision if self.status.serving else None

    def revision(self, number: int | None) -> Revision | None:
        return next((revision for revision in self.status.revisions if revision.number == number), None)

    def is_(self, type_: str, value: str) -> bool:
        found = self.status.condition(type_)
        return found is not None and found.status == value

    def reason(self, type_: str) -> str:
        found = self.status.condition(type_)
        return found.reason if found else ""

    def command(self, verb: str, arguments: str = "") -> str:
        """The command line of a verb for this PolicyModel."""
        return f"{self.invocation.program} {verb} {self.name}{self.invocation.flags}" + (f" {arguments}" if arguments else "")

    def kubectl(self, text: str) -> str:
        return f"kubectl {text}{self.invocation.flags}"


@dataclass(frozen=True)
class Advice:
    """What the operator waits for, and what somebody may type: (command, what it does)."""

    text: str
    commands: tuple[tuple[str, str], ...] = ()


def view_of(document: Json, invocation: Invocation) -> View:
    """A PolicyModel, as the API server gives it."""
    metadata, spec = document["metadata"], document["spec"]
    status = statuses.status_of(document.get("status", {}))
    rollout, serving = spec.get("rollout", {}), spec.get("serving", {})
    asked = observation.requests(metadata)
    return View(
        namespace=metadata["namespace"],
        name=metadata["name"],
        generation=metadata.get("generation", 1),
        status=status,
        is_deleting="deletionTimestamp" in metadata,
        paused=spec.get("paused", False),
        pin=spec.get("servedRevision"),
        strategy=rollout.get("strategy", "Direct"),
        steps=tuple(RolloutStep(step.get("weight", 0), step["seconds"]) for step in rollout.get("steps", ())),
        environment=spec.get("environment", {}),
        ray_service=serving.get("rayService", metadata["name"]),
        ingress_host=serving.get("ingress", {}).get("host"),
        requests={verb: request for verb, request in asked.items() if request.id != status.last_handled_requests.get(verb)},
        invocation=invocation,
    )


def stayed_back(view: View) -> Revision | None:
    """The revision of this spec, where its rollout has failed or was aborted. A pin wants another one, whatever became of it."""
    training = view.status.training
    kept = [revision for revision in view.status.revisions if revision.is_kept]
    wanted = [revision for revision in kept if training is None or revision.run == training.run]
    if view.status.candidate or view.pin or not wanted or wanted[-1].number == view.serving:
        return None
    end = wanted[-1].rollout
    return wanted[-1] if end and end.outcome != "Promoted" else None


def held_back(view: View) -> Revision | None:
    """The newest revision, where it is one that the gate does not let through."""
    if view.reason(statuses.APPROVED) not in ("GateFailed", "GateInconclusive"):
        return None
    run = view.status.training.run if view.status.training else None
    judged = [revision for revision in view.status.revisions if revision.is_kept and not revision.is_approved and revision.verdict]
    found = [revision for revision in judged if revision.run == run] or judged
    return found[-1] if found else None


def is_held_at_its_step(view: View) -> bool:
    """Whether a candidate has failed, and `onFail: Hold` leaves it where it is until somebody decides."""
    candidate = view.status.candidate
    if candidate is None or candidate.weight == 100 or not view.is_(statuses.DEGRADED, "True"):
        return False
    return view.reason(statuses.DEGRADED) == view.reason(statuses.READY)


def is_hopeless(view: View) -> bool:
    """Whether nothing is under way and something is wrong: only somebody can help."""
    is_stuck = view.is_(statuses.DEGRADED, "True") and not view.is_(statuses.PROGRESSING, "True")
    return is_stuck or view.is_(statuses.ACCEPTED, "False") or is_held_at_its_step(view)


def advice(view: View, now: datetime) -> Advice:
    """What comes next: the first thing that stands in the way of Ready, or that nothing does."""
    ready = view.status.condition(statuses.READY)
    if view.is_deleting:
        return Advice("it is being deleted, and its Jobs, its RayService and its Ingress go with it")
    if not view.is_seen or ready is None:
        text = f"the operator has not looked at generation {view.generation} yet; if that lasts, look whether it runs"
        return Advice(text, (("kubectl get deployments -A -l app.kubernetes.io/name=policymodel-operator", "the operator"),))
    if view.paused:
        return Advice("nothing is changed until it is resumed; what serves goes on serving", ((view.command("resume"), "goes on"),))
    if view.is_(statuses.ACCEPTED, "False"):
        return Advice("the spec cannot be followed: mend it", ((view.kubectl(f"edit policymodel {view.name}"), "mends the spec"),))
    if ready.status == "Unknown":
        text = "the operator could not find out what answers; it looks again by itself. If that lasts, ask the pods"
        return Advice(text, (_pods(view), _serve_log(view)))
    if view.serving is not None and view.is_(statuses.AVAILABLE, "False"):
        text = "nothing answers, although a policy did: look at the pods that serve"
        return Advice(text, (_serve_log(view), _pods(view), _describe(view)))
    if view.status.candidate:
        return _of_a_rollout(view, view.status.candidate, now)
    if ready.status == "True":
        return _of_what_is_ready(view)
    return _of_what_is_not_ready(view, ready)


def step_left_s(view: View, candidate: CandidateStatus, now: datetime) -> float | None:
    """Seconds until the candidate's step is over; None where it has not begun, or is none. Below 0 it waits for something else."""
    if candidate.held_since is None or not 0 < candidate.step <= len(view.steps):
        return None
    return view.steps[candidate.step - 1].seconds - statuses.age_s(candidate.held_since, now)


def span(seconds: float) -> str:
    """A length of time for people: `12 s`, `3 min`, `2 h 5 min`, `4 d`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d"


def _of_a_rollout(view: View, candidate: CandidateStatus, now: datetime) -> Advice:
    number, guard = candidate.revision, f"--revision {candidate.revision}"
    abort = (view.command("abort", guard), f"all sessions back to revision {view.serving}" if view.serving else "ends it")
    if is_held_at_its_step(view):
        text = f"revision {number} is held at its step, because it failed and spec.rollout.onFail is Hold: decide"
        return Advice(text, ((view.command("promote", guard), "it takes over all the same"), abort))
    if candidate.weight == 100:
        text = f"wait: every replica takes revision {number} over"
        return Advice(text, (abort,) if view.serving not in (None, number) else ())
    promote = (view.command("promote", guard), "past the steps that are left, now")
    left_s = step_left_s(view, candidate, now)
    if left_s is None:
        return Advice(f"wait: every replica has to take revision {number} in first", (promote, abort))
    after = "it takes over" if candidate.step >= candidate.steps else f"step {candidate.step + 1} of {candidate.steps}"
    when = f"in {span(left_s)}" if left_s > 0 else "once it has had enough requests (spec.rollout.analysis.minRequests)"
    return Advice(f"wait: {after} {when}, unless it is found worse", (promote, abort))


def _of_what_is_ready(view: View) -> Advice:
    ask = (view.command("play"), "plays an episode against it")
    if view.pin:
        text = f"nothing. Revision {view.pin} is pinned: what is trained waits until the pin is taken away"
        return Advice(text, ((view.command("unpin"), "serves the policy of this spec again"), ask))
    return Advice("nothing: what the spec asks for answers on every replica", (ask,))


def _of_what_is_not_ready(view: View, ready: Condition) -> Advice:
    is_under_way = view.is_(statuses.PROGRESSING, "True")
    back, held = stayed_back(view), held_back(view)
    retrain = (view.command("retrain"), "trains this spec again, from the next seed")
    if view.pin and ready.reason in UNUSABLE_PIN:
        text = "the pin names what may not be served: pin another revision, or none"
        return Advice(text, ((view.command("history"), "which there are"), (view.command("unpin"), "takes the pin away")))
    if is_under_way and view.reason(statuses.PROGRESSING) == "Training":
        why = "" if view.is_(statuses.DEGRADED, "False") else ", and it does not get on: read what is wrong above"
        return Advice(f"wait: the training has to end{why}", ((view.command("logs", "-f"), "follows it"),))
    if is_under_way and view.reason(statuses.PROGRESSING) == "Evaluating":
        return Advice("wait: the policy is played against its gate")
    if is_under_way:
        return Advice("wait: the replicas have to take over what they are told", (_serve_log(view),))
    if held:
        text = f"the gate does not let revision {held.number} through: ask for less, train otherwise, or overrule it"
        approve = (view.command("approve", f"--revision {held.number}"), "serves it all the same; your name is recorded")
        return Advice(text, (approve, retrain, (view.kubectl(f"edit policymodel {view.name}"), "changes spec.gate or spec.training")))
    if back:
        text = f"revision {back.number} stays back until spec.training or spec.rollout changes, or somebody promotes it"
        return Advice(text, ((view.command("promote", f"--revision {back.number}"), "serves it all the same"), retrain))
    if view.is_(statuses.TRAINED, "False"):
        text = "the training has failed: change the spec, or delete its Job (RayJob) to try the same again"
        return Advice(text, ((view.command("logs"), "what it said"), (view.kubectl(f"edit policymodel {view.name}"), "changes the spec")))
    if view.is_(statuses.APPROVED, "False"):
        return Advice("the evaluation has failed: read what is wrong above", (_describe(view),))
    return Advice("read what is wrong above", (_describe(view), _serve_log(view)))


def _serve_log(view: View) -> tuple[str, str]:
    return view.command("logs", "--serve"), "what the serving pod said"


def _pods(view: View) -> tuple[str, str]:
    return view.kubectl(f"get pods -l {names.LABEL_NAME}={view.name}"), "the pods"


def _describe(view: View) -> tuple[str, str]:
    return view.kubectl(f"describe policymodel {view.name}"), "the diary"
