"""The planner in a world where anything may happen between two reconciles, and inside one.

The numbers are those of the invariants in docs/architecture.md.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

from fakes.world import SETTINGS, World, run_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller import names, observation, reconcile, resources
from controller.model import Apply, Create, Observed, Plan, Replicas
from controller.rollout import stages
from controller.spec import spec_of

# Odd ones train badly, and the returns of 4 scatter so that the gate has to look more than once.
SEEDS = st.sampled_from([0, 1, 2, 3, 4])
UNTRIED_SEED = 10
ROLLING_BACK: list[dict[str, Any]] = [
    {},
    {"strategy": "Canary", "steps": [{"weight": 10, "seconds": 10}, {"weight": 50, "seconds": 0}]},
    {"strategy": "Canary", "steps": [{"weight": 5, "seconds": 0}, {"weight": 10, "seconds": 5}, {"weight": 90, "seconds": 5}]},
    {"strategy": "Shadow", "steps": [{"seconds": 10}]},
]
CHANGES = st.fixed_dictionaries(
    {"training__seed": SEEDS},
    optional={
        "gate__minReturn": st.sampled_from([50, 400, 475, 600]),
        "gate__episodes": st.sampled_from([50, 100]),
        "gate__againstServing": st.sampled_from([{"maxRegression": 10}, {"maxRegression": 500}, {"maxRegressionStd": 1}]),
        "gate__maxEpisodes": st.sampled_from([100, 400]),
        "gate__onFail": st.sampled_from(["Hold", "Retrain"]),
        "serving__replicas": st.sampled_from([1, 2, 3]),
        "serving__image": st.sampled_from(["mine:1", "mine:2", "bad:1"]),
        "serving__ingress": st.sampled_from([None, {"host": "a.example"}, {"host": "b.example"}]),
        "storage__deletionPolicy": st.sampled_from(["Delete", "Retain"]),
        "storage__keepRevisions": st.sampled_from([1, 2, 5]),
        "training__backoffLimit": st.sampled_from([0, 5]),
        "paused": st.booleans(),
        "training__schedule": st.sampled_from([{"cron": "*/30 * * * *"}, {"cron": "7 * * * *", "startingDeadlineSeconds": 10}]),
        "servedRevision": st.integers(1, 4),
        "rollout": st.sampled_from(
            [
                {"progressDeadlineSeconds": 20},
                *ROLLING_BACK[1:],
                {"strategy": "Canary", "steps": [{"weight": 30, "seconds": 20}], "onFail": "Hold", "progressDeadlineSeconds": 20},
            ]
        ),
    },
)


class Planner(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(watch=self._check, unpullable={"bad:1"})
        self.stale: Observed | None = None
        self.losses = 0
        self.lost_once: set[str] = set()
        self.untried_seed = UNTRIED_SEED

    @initialize(changes=CHANGES)
    def begin(self, changes: dict[str, Any]) -> None:
        self.world.edit(**changes)

    # The user.

    @rule(changes=CHANGES)
    def edit(self, changes: dict[str, Any]) -> None:
        self.world.edit(**changes)

    @rule(seed=SEEDS)
    def ask_for_a_forbidden_entry_point(self, seed: int) -> None:
        self.world.edit(training__seed=seed, environment={"entryPoint": "evil.module:Env"})

    @rule(data=st.data())
    @precondition(lambda self: self.world.jobs)
    def delete_a_job(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.jobs)))
        self.world.jobs[name].deleting = True
        self.losses += 1

    @rule(data=st.data())
    @precondition(lambda self: self._keepable())
    def lose_a_bundle(self, data: st.DataObject) -> None:
        # One that goes a second time, or stays away, is its user's to ask for.
        run = data.draw(st.sampled_from(self._keepable()))
        self.lost_once.add(run)
        self.world.lose(run)
        self.losses += 1

    @rule(data=st.data())
    @precondition(lambda self: self.world.status.get("revisions"))
    def approve_a_revision(self, data: st.DataObject) -> None:
        last = max(revision["number"] for revision in self.world.status["revisions"])
        self.world.ask(names.APPROVE, revision=data.draw(st.integers(1, last + 1)))

    @rule()
    def ask_for_another_training(self) -> None:
        self.world.ask(names.RETRAIN)

    @rule(verb=st.sampled_from([names.PROMOTE, names.ABORT]))
    def end_a_rollout(self, verb: str) -> None:
        self.world.ask(verb)

    @rule()
    @precondition(lambda self: self._is_on_record())
    def delete_the_ray_service(self) -> None:
        self.world.ray_service = None
        self.world.kuberay()

    @rule()
    def delete_the_ingress(self) -> None:
        self.world.ingress = None

    @rule(data=st.data(), seed=st.sampled_from([0, 2]))
    @precondition(lambda self: self.world.status.get("revisions"))
    def pin_a_revision_and_keep_one(self, data: st.DataObject, seed: int) -> None:
        self._get_on_with(training__seed=seed)
        self._get_on_with(training__seed=2 - seed)
        numbers = [revision["number"] for revision in self.world.status["revisions"]]
        pinned = data.draw(st.sampled_from(numbers))
        self._get_on_with(training__seed=2 - seed, servedRevision=pinned)
        self._get_on_with(training__seed=2 - seed, servedRevision=pinned, storage__keepRevisions=1)

    # The controller.

    @rule()
    def reconcile(self) -> None:
        self.world.reconcile()

    @rule(actions=st.integers(0, 3))
    def die_in_a_reconcile(self, actions: int) -> None:
        self.world.reconcile(stop_after=actions)

    @rule()
    def look(self) -> None:
        self.stale = self.world.observe()

    @rule()
    @precondition(lambda self: self.stale)
    def act_on_what_was_seen_before(self) -> None:
        assert self.stale
        stale, self.stale = self.stale, None
        if stale.spec != spec_of(self.world.document):
            # An observation may be old, but never older than the spec that it was read with: that is one GET.
            return
        plan = reconcile.plan(stale, SETTINGS)
        for action in plan.actions[:1]:
            if action.kind == "RayService" and self.world.ray_service is None:
                continue
            self.world.reconcile(stop_after=1, seen=stale)

    # The world.

    @rule(data=st.data(), ends_well=st.booleans(), keeps_its_pod=st.booleans())
    @precondition(lambda self: self.world.jobs)
    def a_job_ends(self, data: st.DataObject, ends_well: bool, keeps_its_pod: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.jobs)))
        if ends_well:
            self.world.finish(name)
            if not keeps_its_pod and self.world.jobs[name].has_pod:
                self.world.jobs[name].has_pod = False
                self.losses += 1
        else:
            self.world.fail(name)

    @rule(steps=st.integers(1, 8))
    def everything_gets_on(self, steps: int) -> None:
        for _ in range(steps):
            self.world.get_on()

    @rule()
    def the_garbage_collector_works(self) -> None:
        self.world.collect()

    @rule()
    def kuberay_gets_on(self) -> None:
        self.world.kuberay()

    @rule(has_room=st.booleans())
    def the_nodes_fill_up(self, has_room: bool) -> None:
        self.world.free = None if has_room else ()

    @rule()
    def a_deadline_passes(self) -> None:
        self.world.now += timedelta(seconds=700)

    @rule()
    def a_replica_loads(self) -> None:
        self.world.load()

    @rule(data=st.data(), is_faulty=st.booleans())
    @precondition(lambda self: self.world.published)
    def a_policy_turns_out_bad(self, data: st.DataObject, is_faulty: bool) -> None:
        run = data.draw(st.sampled_from(sorted(self.world.published)))
        (self.world.faulty if is_faulty else self.world.corrupt).add(self.world.digests(run)[-1])

    @rule(rollout=st.sampled_from(ROLLING_BACK), looks=st.integers(0, 8), is_faulty=st.booleans())
    @precondition(lambda self: self.world.status.get("serving"))
    def a_candidate_turns_out_bad_on_its_way(self, rollout: dict[str, Any], looks: int, is_faulty: bool) -> None:
        """Rollback is reached from every step."""
        self.world.unreachable, self.world.free = False, None
        self.untried_seed += 8
        self.world.edit(training__seed=self.untried_seed, rollout=rollout)
        self._look_on(30, until_candidate=True)
        self._look_on(looks)
        candidate = self.world.status.get("candidate")
        if not candidate or candidate["weight"] == 100:
            return
        (self.world.faulty if is_faulty else self.world.corrupt).add(candidate["digest"])
        self._look_on(30)
        found = next(revision for revision in self.world.status["revisions"] if revision["digest"] == candidate["digest"])
        assert "candidate" not in self.world.status, "it is still tried"
        if is_faulty and candidate["step"]:
            assert found["rollout"]["outcome"] == "RolledBack", found

    @rule(minutes=st.integers(1, 45))
    def time_passes(self, minutes: int) -> None:
        self.world.now += timedelta(minutes=minutes)

    @rule(unreachable=st.booleans())
    def the_network(self, unreachable: bool) -> None:
        self.world.unreachable = unreachable

    def _ask_again(self, failed: str) -> None:
        """The user deletes a failed Job, to try the same again."""
        del self.world.jobs[failed]
        self.losses += 1

    def _turn_to(self, seed: int) -> None:
        """The user asks for another spec, the example but for its seed."""
        self.world.edit(training__seed=seed)
        for name in [name for name, job in self.world.jobs.items() if job.phase == "Failed"]:
            self._ask_again(name)
        self.world.settle()

    def _get_on_with(self, **changes: Any) -> None:
        """The user asks for something and looks on for a while."""
        self.world.edit(**changes)
        self._look_on(12)

    def _look_on(self, rounds: int, until_candidate: bool = False) -> None:
        for _ in range(rounds):
            if until_candidate and "candidate" in self.world.status:
                return
            self.world.get_on()

    def _is_on_record(self) -> bool:
        """Whether a status names what was last served: else, without the RayService, nobody could know it."""
        recorded = {revision["digest"] for revision in self.world.status.get("revisions", [])}
        return set(self.world.served[-1:]) - {""} <= recorded

    def _keepable(self) -> list[str]:
        return sorted(self.world.published - self.lost_once)

    def _check(self, seen: Observed) -> None:
        """What a plan may never ask for, and a status never claim, whatever was seen."""
        plan = reconcile.plan(seen, SETTINGS)
        again = reconcile.plan(seen, SETTINGS)
        assert plan == again, "the planner is a function"
        if plan.status.condition("Ready") and plan.status.condition("Ready").status == "True":
            held = {row.digest for row in seen.replicas.rows}
            assert len(held) == 1, "5: Ready is claimed only of what every replica said"
            pinned = {revision.digest for revision in seen.status.revisions if revision.number == seen.spec.served_revision}
            asked_for = pinned if seen.spec.served_revision else set(self.world.digests(run_of(seen)))
            assert held <= asked_for, "5: Ready is claimed only of what every replica said"
            assert len(seen.replicas.rows) == seen.spec.serving.replicas
        if seen.spec.paused:
            assert not plan.actions
        before, after = seen.status.schedule, plan.status.schedule
        if before and after and after.last_time and after.last_time != before.last_time:
            assert before.next_time <= after.last_time, "6: a scheduled time is trained once"
            assert not seen.spec.paused
        rows = seen.replicas.rows if isinstance(seen.replicas, Replicas) else ()
        missed = {row.error_digest for row in rows if row.error and row.error.reason == "Missing"}
        tried = [row.candidate for row in rows if row.candidate]
        missed |= {one.digest for one in tried if one.problem and one.problem.reason == "Missing"}
        published = {revision.run for revision in seen.status.revisions}
        published -= {revision.run for revision in seen.status.revisions if revision.digest in missed or not revision.is_kept}
        for labels in [action.manifest["metadata"]["labels"] for action in plan.actions if isinstance(action, Create)]:
            assert labels[names.LABEL_ROLE] != names.ROLE_TRAIN or labels[names.LABEL_RUN] not in published, "6: no retraining"
        if plan.status.condition("Approved").status == "True":
            assert self.world.may_be_served(run_of(seen), seen), "approved, and it may not be served"

        numbers = [revision.number for revision in plan.status.revisions]
        assert numbers == sorted(set(numbers)), "a number is one revision's"
        assert max(numbers, default=0) >= max((revision.number for revision in seen.status.revisions), default=0), "a number comes again"
        self._check_pruning(plan)
        self._check_rollout(seen, plan)

    def _check_pruning(self, plan: Plan) -> None:
        """A prune Job may remove all that it names from the moment that it is asked for: nothing of it serves, or is tried."""
        jobs = [action.manifest["metadata"] for action in plan.actions if isinstance(action, Create)]
        jobs += [job.manifest["metadata"] for job in self.world.jobs.values()]
        told = {digest for metadata in jobs for digest in observation.prunes(metadata)}
        texts = [self.world.ray_service["spec"].get("serveConfigV2", "")] if self.world.ray_service else []
        switches = [action for action in plan.actions if isinstance(action, Apply) and action.field_manager == names.SERVE_FIELD_MANAGER]
        texts += [switch.manifest["spec"]["serveConfigV2"] for switch in switches]
        owner = self.world.owner
        named = [found for text in texts for found in (resources.served_policy(owner, text), resources.tried_policy(owner, text))]
        held = {policy["digest"] for policy in [*named, *self.world.trying] if policy} | {digest for digest in self.world.rows if digest}
        assert not told & held, "what serves, or is tried, is removed"

    def _check_rollout(self, seen: Observed, plan: Plan) -> None:
        """No step is left out, in whatever state the planner finds the RayService."""
        switch = next(
            (action for action in plan.actions if isinstance(action, Apply) and action.field_manager == names.SERVE_FIELD_MANAGER), None
        )
        live = seen.ray_service.serve_config if seen.ray_service else ""
        before, tried = resources.served_policy(seen.owner, live), resources.tried_policy(seen.owner, live)
        if switch is None or before is None:
            return
        rules, text = seen.spec.rollout, switch.manifest["spec"]["serveConfigV2"]
        after, candidate = resources.served_policy(seen.owner, text), resources.tried_policy(seen.owner, text)
        assert after, "4: what serves goes on serving"
        ways = stages(rules)
        weights = [stage.weight for stage in ways]
        if after["digest"] != before["digest"]:
            last = (after["digest"], ways[-1].mode, ways[-1].weight)
            went_through = tried and (tried["digest"], tried["mode"], tried["weight"]) == last
            goes_back = seen.status.serving and after["digest"] == seen.status.serving.digest
            by_word = seen.request(names.PROMOTE) or seen.spec.served_revision
            assert went_through or goes_back or by_word, "a policy took over before it went through every step"
        if candidate and tried and (candidate["digest"], candidate["mode"]) == (tried["digest"], tried["mode"]):
            nexts = {above for below, above in pairwise(weights) if below == tried["weight"]}
            lower = {weight for weight in weights if weight <= tried["weight"]}
            assert candidate["weight"] in nexts | lower, "the weight jumped past a step"

    @invariant()
    def at_most_one_training_lives(self) -> None:
        live = [job for job in self.world.jobs.values() if job.labels[names.LABEL_ROLE] == names.ROLE_TRAIN and job.phase == "Running"]
        assert len(live) <= 1, "2: two trainings at once"

    @invariant()
    def only_approved_policies_are_served_and_one_is_never_taken_away(self) -> None:
        served = self.world.served
        assert (set(served) | self.world.tried) - {""} <= self.world.approved, "an unapproved policy is served"
        first = next((index for index, held in enumerate(served) if held), len(served))
        assert "" not in served[first:], "4: what serves goes on serving"

    @invariant()
    def a_run_is_trained_once(self) -> None:
        """Or again, where its Job was lost, or was superseded before it had published and is asked for again, or its policy was pruned."""
        trainings = [name for name in self.world.created if "-train-" in name]
        again = self.losses + self.world.superseded + self.world.prunings
        assert len(trainings) - len(set(trainings)) <= again, "6: no retraining"

    def teardown(self) -> None:
        """Whatever has happened, the world comes to rest where the spec points, and a good spec heals it."""
        failed = {name for name, job in self.world.jobs.items() if job.phase == "Failed"}
        self.world.corrupt.clear()
        self.world.faulty.clear()
        self.world.free = None
        for plan in [self.world.settle()[-1]]:
            assert not plan.actions, "1: no more writes"
        for name in failed & set(self.world.jobs):
            self._ask_again(name)
        self._turn_to(2)
        if self.world.condition("Ready")["reason"] in ("RolledBack", "Aborted"):
            # It failed by these rules, and is not tried again before somebody says so.
            self.world.ask(names.PROMOTE)
            self.world.settle()
        if self.world.condition("Ready")["status"] != "True":
            # It was asked to train this spec again, and got a worse policy.
            trigger = self.world.status["training"]["trigger"]
            assert trigger["number"] > trigger["retrains"], f"7: a good spec heals: {self.world.status}"
            self._turn_to(self.untried_seed + 8)
        assert self.world.condition("Ready")["status"] == "True", f"7: a good spec heals: {self.world.status}"
        assert self.world.status["phase"] == "Ready"
        wanted = self.world.run
        assert {job.labels.get(names.LABEL_RUN) for job in self.world.jobs.values()} <= {wanted}, "3: nothing leaks"
        assert all(job.labels[names.LABEL_ROLE] == names.ROLE_TRAIN for job in self.world.jobs.values()), "3: nothing leaks"
        assert self.world.served[-1] == self.world.digests(wanted)[-1]
        self.at_most_one_training_lives()
        self.only_approved_policies_are_served_and_one_is_never_taken_away()
        self.a_run_is_trained_once()


Planner.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestPlanner = Planner.TestCase
