"""The RayService's part of the plan: what it is told, and what its replicas say that they do.

Which policies they are to hold is decided by `controller.rollout`.
"""

from __future__ import annotations

from dataclasses import replace

from controller import history, names, resources, rollout, switching
from controller import status as statuses
from controller.model import Action, Apply, Condition, Images, Observed, Problem, Replicas, Revision, ServingStatus, Unknown
from controller.rollout import Rollout
from controller.spec import Json
from controller.steps import Step, short, told_policy


def incumbent(observed: Observed, recorded: tuple[Revision, ...]) -> Json | None:
    """The policy that goes on serving while there is no better one: what the RayService is told to serve, or, where the RayService
    was lost, what was last seen to serve, or the newest approved revision."""
    policy = told_policy(observed)
    if policy:
        return policy
    last = observed.status.serving
    seen = next((revision for revision in recorded if last and revision.number == last.revision), None)
    if seen is None and last and last.uri:
        # The history may be lost, or cut, and with it what served.
        return rollout.seen_policy(last)
    good = [revision for revision in recorded if revision.is_good]
    newest = seen or (good[-1] if good else None)
    return rollout.policy(newest) if newest else None


def served(observed: Observed, images: Images, wanted: Rollout) -> Step:
    """The RayService, and the policies that it is told to hold. Its finding is `Ready` but for what comes before it."""
    undoing = switching.undoing(observed)
    if undoing:
        return undoing
    undone, found = switching.undone_switch(observed), _served(observed, images, wanted)
    problem = switching.shortage(observed)
    if undone and undone.reason != switching.REVERTED:
        problem = switching.told(undone)
    if problem is None:
        return found
    # Policies are rolled out to the pods as they are, and none of it is what the spec asks for.
    finding = Condition(statuses.READY, "False", problem.reason, problem.message) if found.is_done else found.finding
    return replace(found, finding=finding, problem=found.problem or problem)


def _served(observed: Observed, images: Images, wanted: Rollout) -> Step:
    spec, owner, live = observed.spec, observed.owner, observed.ray_service
    name = resources.ray_service_name(owner, spec)
    text = resources.serve_config(owner, spec, wanted.serving, live.serve_config if live else "", wanted.candidate, wanted.revoked)
    switch = Apply(resources.serve_config_patch(owner, spec, text), names.SERVE_FIELD_MANAGER)
    if spec.serving.ray_service:
        if live is None:
            return _unready(
                "RayServiceMissing", f"spec.serving.rayService: there is no RayService {name} in this namespace; create it", is_problem=True
            )
        if older_rival(observed):
            return _unready("RayServiceInUse", f"the RayService {name} is driven by another PolicyModel")
    elif live is None:
        return _unready(
            "CreatingRayService",
            f"there is no RayService yet; {name} is asked for",
            (Apply(resources.ray_service(owner, spec, images)), switch),
        )
    elif live.foreign and not live.deleting:
        return _unready(
            "NameInUse", f"the RayService {name} belongs to somebody else; name it in spec.serving.rayService to adopt it", is_problem=True
        )
    if live.deleting:
        after = "create it again when it is gone" if spec.serving.ray_service else "it is made anew when it is gone"
        return _unready("RayServiceDeleting", f"the RayService {name} is being deleted; {after}", under_way="RollingOut")
    if not spec.serving.ray_service and live.hash != switching.wanted_hash(observed) and not switching.shortage(observed):
        return _unready(
            "SwitchingCluster",
            f"the RayService {name} gets new pods: KubeRay builds a second cluster and switches to it",
            (Apply(resources.ray_service(owner, spec, images)),),
            under_way="RollingOut",
        )
    if switching.is_switching(observed):
        # The serving cluster gets no new serveConfigV2 now (KubeRay), so a change of policy waits for the switch.
        why = f": {live.problem.message}" if live.problem else ""
        return _unready(
            "SwitchingCluster",
            f"KubeRay prepares a second cluster for {name}; the first one goes on serving{why}",
            under_way="RollingOut",
            problem=switching.overdue(observed) or live.problem,
        )
    if spec.serving.ray_service and live.serve_config.strip() and not resources.parsed_serve_config(live.serve_config):
        message = f"serveConfigV2 of the RayService {name} cannot be read; mend it, for there may be applications of others in it"
        return _unready("ServeConfigUnreadable", message, is_problem=True)
    neighbour = resources.route_neighbour(owner, spec, live.serve_config) if spec.serving.ray_service else None
    if neighbour:
        message = (
            f"spec.serving.route: {spec.serving.route} is the route of the application {neighbour} in the RayService {name}; name another"
        )
        return _unready("RouteInUse", message, is_problem=True)
    if spec.serving.ray_service and resources.is_name_taken(owner, live.serve_config):
        message = (
            f"the RayService {name} has an application {owner.name} that is not this PolicyModel's, and it would be overwritten; "
            "rename one of the two"
        )
        return _unready("NameInUse", message, is_problem=True)
    if resources.parsed_serve_config(live.serve_config) != resources.parsed_serve_config(text):
        return _unready("RollingOut", _rollout_message(wanted, name), (switch,), under_way="RollingOut")
    return _rolled_out(wanted, replicas(observed, wanted.serving))


def replicas(observed: Observed, target: Json | None) -> Step:
    """Whether every replica says that it serves the target."""
    seen, wanted = observed.replicas, observed.spec.serving.replica_range
    problem = observed.ray_service.problem if observed.ray_service else None
    if target is None:
        return _unready("NoPolicyYet", problem.message if problem else "the RayService waits for a first policy", problem=problem)
    if problem and not isinstance(seen, Replicas):
        return _unready(problem.reason, problem.message, problem=problem, under_way="RollingOut")
    if seen is None:
        return _unready("NoReplica", "no replica answers yet", under_way="RollingOut")
    if isinstance(seen, Unknown):
        return Step(
            Condition(statuses.READY, "Unknown", "StatusUnknown", f"the replicas could not be asked: {seen.why}"), under_way="RollingOut"
        )
    refused = next(((row, row.error) for row in seen.rows if row.error and row.error_digest == target["digest"]), None)
    ready = sum(row.digest == target["digest"] for row in seen.rows)
    if refused:
        row, error = refused
        meanwhile = "it goes on serving what it has" if row.digest else "it has no policy to answer with"
        message = f"the replica {row.replica} refuses {short(target['digest'])}: {error.reason}: {error.message}; {meanwhile}"
        if error.reason == "Missing" and not mounts_the_claim(observed):
            claim = resources.claim_name(observed.owner, observed.spec)
            message += (
                f". The RayService {observed.spec.serving.ray_service} mounts no claim {claim}: it has to, at {resources.STORAGE_PATH}"
            )
        return _unready("LoadFailed", message, is_problem=True, under_way="RollingOut")
    manners = resources.manners(observed.spec)
    # What a replica does not tell (its image is older) is taken as agreed.
    behind = sum(any(row.manners.get(name, value) != value for name, value in manners.items()) for row in seen.rows)
    if behind:
        message = f"{_replicas(behind)} of {len(seen.rows)} still to take over {', '.join(manners)}"
        return _unready("RollingOut", message, under_way="RollingOut")
    if ready == len(seen.rows) == seen.running and ready in wanted:
        return Step(
            Condition(
                statuses.READY,
                "True",
                "Serving",
                f"revision {target['revision']} ({short(target['digest'])}) answers on {_replicas(ready)}",
            )
        )
    return _unready(
        "RollingOut",
        f"revision {target['revision']} ({short(target['digest'])}) answers on {ready} of {_replicas(max(wanted.start, seen.running))}",
        under_way="RollingOut",
    )


def _rolled_out(wanted: Rollout, held: Step) -> Step:
    """What is told where the replicas do as they are told: `Ready` is true only when that is what the spec asks for."""
    problem, message = wanted.problem, wanted.message
    if problem:
        # What is under way goes on: a candidate that is held at its step, replicas that go back.
        under_way = "RollingOut" if wanted.candidate or not held.is_done else ""
        return _unready(problem.reason, problem.message, problem=held.problem or problem, under_way=under_way)
    if wanted.candidate and held.is_done:
        return _unready("RollingOut", message, under_way="RollingOut")
    return held


def availability(observed: Observed, recorded: tuple[Revision, ...]) -> Condition:
    """Whether an approved revision answers, whichever it is."""
    seen = observed.replicas
    if isinstance(seen, Unknown):
        return Condition(statuses.AVAILABLE, "Unknown", "StatusUnknown", f"the replicas could not be asked: {seen.why}")
    answering = [row for row in seen.rows if row.digest] if seen else []
    if not answering:
        return Condition(statuses.AVAILABLE, "False", "NoPolicy", "no replica has a policy to answer with")
    known = {revision.digest: revision for revision in recorded}
    ours = [row for row in answering if row.digest in known]
    if not ours:
        return Condition(statuses.AVAILABLE, "False", "UnknownPolicy", "a policy answers that this PolicyModel has not made")
    digest = str(ours[0].digest)
    return Condition(
        statuses.AVAILABLE, "True", "PolicyAnswers", f"revision {known[digest].number} ({short(digest)}) answers on {_replicas(len(ours))}"
    )


def serving_status(observed: Observed, recorded: tuple[Revision, ...]) -> ServingStatus | None:
    """What answers: while replicas differ, the policy that was serving until now, for as long as one of them holds it."""
    seen, before = observed.replicas, observed.status.serving
    if isinstance(seen, Unknown):
        return before
    digests = [row.digest for row in seen.rows if row.digest] if seen else []
    if not seen or not digests:
        # Nothing answers now; what did is remembered, for it is what serves again where the RayService is lost.
        return replace(before, replicas_ready=0, replicas=0) if before else None
    digest = before.digest if before and before.digest in digests else digests[0]
    revision = history.holding(recorded, digest)
    told = told_policy(observed)
    named = told["uri"] if told and told["digest"] == digest else None
    known = before.uri if before and before.digest == digest else None
    return ServingStatus(
        digest=digest,
        revision=revision.number if revision else None,
        return_mean=revision.evaluation.mean if revision and revision.evaluation else None,
        replicas_ready=digests.count(digest),
        replicas=seen.running,
        uri=revision.uri if revision else named or known,
    )


def mounts_the_claim(observed: Observed) -> bool:
    """Whether the pods of the RayService have the claim of the bundles, as far as is known; an adopted one is made by others."""
    live = observed.ray_service
    if observed.spec.storage.s3 or observed.spec.serving.ray_service is None or live is None or live.claims is None:
        return True
    return resources.claim_name(observed.owner, observed.spec) in live.claims


def older_rival(observed: Observed) -> str | None:
    """Who drives the RayService already: the PolicyModel that made it, or the one that named it first; of two of the same second, the
    first by name."""
    maker = next((rival.name for rival in observed.rivals if rival.is_maker), None)
    if maker or observed.spec.serving.ray_service is None:
        return maker
    older = [rival.name for rival in observed.rivals if (rival.created, rival.name) < (observed.created, observed.owner.name)]
    return min(older, default=None)


def _unready(
    reason: str,
    message: str,
    actions: tuple[Action, ...] = (),
    *,
    under_way: str = "",
    problem: Problem | None = None,
    is_problem: bool = False,
) -> Step:
    found = Problem(reason, message) if is_problem else problem
    return Step(Condition(statuses.READY, "False", reason, message), actions, under_way, found)


def _rollout_message(wanted: Rollout, name: str) -> str:
    target, candidate = wanted.serving, wanted.candidate
    if target is None:
        return f"the RayService {name} is told its application"
    said = f"the RayService {name} is told to serve revision {target['revision']} ({short(target['digest'])})"
    return f"{said}, and to try revision {candidate['revision']} ({short(candidate['digest'])})" if candidate else said


def _replicas(number: int) -> str:
    return f"{number} replica" + ("" if number == 1 else "s")
