"""What the parts of a plan are made of. May not decide anything by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller import resources
from controller.model import Action, Condition, JobState, Observed, Problem
from controller.spec import Json


@dataclass(frozen=True)
class Step:
    """One part of the plan: what is found, what is done about it, and whether it is under way."""

    finding: Condition
    actions: tuple[Action, ...] = ()
    under_way: str = ""
    problem: Problem | None = None

    @property
    def is_done(self) -> bool:
        return self.finding.status == "True"


def is_outdated(job: JobState, observed: Observed) -> bool:
    """Whether a Job that does not get on was made before the user mended what its pods are made from. One that gets on is left alone."""
    is_stuck = job.problem is not None or job.phase == "Failed"
    return is_stuck and job.hash not in (None, resources.job_hash(observed.spec))


def outdated_message(job: JobState) -> str:
    why = f" ({job.problem.message})" if job.problem else ""
    return f"the {job.kind} {job.name} does not get on{why}: it is made anew with the resources, template and secrets that the spec has now"


def with_its_claim(problem: Problem | None, observed: Observed) -> Problem | None:
    """Why a pod that mounts the claim does not run; where no node takes it, with what the claim has to do with that."""
    modes = observed.spec.storage.access_modes
    if problem is None or problem.reason != "Unschedulable" or not modes or "ReadWriteMany" in modes:
        return problem
    claim = resources.claim_name(observed.owner, observed.spec)
    why = f"the claim {claim} keeps its pods on one node; with S3 or a claim that is ReadWriteMany (spec.storage) they may go to any"
    return replace(problem, message=f"{problem.message}; {why}")


def told_policy(observed: Observed) -> Json | None:
    """The policy that the RayService is told to serve."""
    return resources.served_policy(observed.owner, observed.ray_service.serve_config) if observed.ray_service else None


def tried_policy(observed: Observed) -> Json | None:
    """The candidate that the RayService is told to try."""
    return resources.tried_policy(observed.owner, observed.ray_service.serve_config) if observed.ray_service else None


def short(digest: str) -> str:
    """A digest for people."""
    return digest[:19]
