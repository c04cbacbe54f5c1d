"""Trains, exports, publishes and evaluates one run: `python -m app.train`. Idempotent: a published run is only said again.

All input is checked before Ray starts, so a mistake costs a second and not a minute.
"""

import datetime
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from app.bundle import MANIFEST_FILE, BundleRefused, canonical_json, digest_of, published_bundle, read_bundle
from app.encoding import Encoding
from app.environments import checked_interface, parsed_environment
from app.errors import InputError, RetryableError
from app.evaluate import EvaluationRequest, evaluated, parsed_request
from app.report import ArgumentParser, Report, parsed_json, reported_run
from app.spaces import Array, Box
from app.storage import Storage, open_storage, read_json, remove, storage_faults, write_aside
from app.training.checkpoints import (
    Attempts,
    RunState,
    has_checkpoint,
    known_attempts,
    restored_state,
    write_attempts,
    write_checkpoint,
)
from app.training.environment_check import check_config, check_environment
from app.training.iterating import DIVERGED, iterated
from app.training.leaving import Leaving, Terminated
from app.training.recording import Recording
from app.training.search import Search, Trial, drawn_trials, parsed_search
from app.training.settings import parsed_settings
from app.training.standing import (
    CHECKPOINTS,
    Outcome,
    Standing,
    best,
    known_outcome,
    outcome_of,
    place_of_trial,
    progress_of,
    remove_outcome,
    remove_trials,
    write_outcome,
)
from app.training.stop import Stop, parsed_stop, progress_line
from app.training.tracking import Tracking, Tracks, parsed_tracking, tracked
from app.training.trainer import Trainer, TrainingTask
from app.training.warm import WarmStart, begun_state, parsed_warm_start, warm_weights, write_weights

GOLDEN_OBSERVATIONS = 64
# So that the numbers of large observations stay below half a megabyte of manifest.
GOLDEN_NUMBERS = 100_000
LEAST_GOLDEN = 4
PARITY_OBSERVATIONS = 1024
# How much of stop.timeSeconds a killed attempt may take without its being counted.
NOTED_EVERY_S = 10.0
ENGINES = ("Job", "RayJob")
RECORDED_VERSIONS = ("ray", "torch", "gymnasium", "numpy", "onnx")


@dataclass(frozen=True)
class Run:
    """One training run: what is asked for and where it goes.

    Attributes:
        joins_cluster: it is the driver of a Ray cluster, and has no Ray of its own.
        units: what the environment tells of them; see `app.units`.
        tracking: where its figures are told; no part of what is learnt.
        trials: of its search, which has drawn their settings; of `task` the settings and the seed are then no trial's.
    """

    id: str
    storage: Storage
    task: TrainingTask
    stop: Stop
    checkpoint_every: int
    evaluation: EvaluationRequest | None
    prefixes: Sequence[str]
    warm_start: WarmStart | None = None
    joins_cluster: bool = False
    units: dict[str, dict[str, str]] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    search: Search | None = None
    trials: tuple[Trial, ...] = ()

    def of_trial(self, trial: Trial) -> "Run":
        """The run with what a trial trains: what is published of it is what a run with these settings and this seed would publish."""
        return replace(self, task=replace(self.task, settings=trial.settings, seed=trial.seed))


def run(argv: Sequence[str], report: Report) -> dict[str, Any]:
    """What `python -m app.train` does; gives its result."""
    leaving = Leaving()
    leaving.listen()
    asked = parsed_run(argv)
    with storage_faults():
        published = _published_before(asked)
    if published is None:
        published = _trained_and_published(asked, report, leaving)
    if asked.search:
        with storage_faults():
            remove_trials(asked.storage.run(asked.id), but=published["search"]["trial"])
    return _with_evaluation(asked, published)


def _published_before(asked: Run) -> dict[str, Any] | None:
    """The result of a run that is published already. One whose bundle is lost or torn is not: it is published again."""
    result = read_json(asked.storage.run(asked.id) / "result.json")
    if result is None:
        return None
    directory = asked.storage.bundles() / result["digest"].removeprefix("sha256:")
    try:
        read_bundle(directory, result["digest"])
    except BundleRefused as refused:
        if refused.reason not in ("Missing", "DigestMismatch"):
            return result
        print(f"the bundle of this run is made again: {refused.message}", file=sys.stderr)
        remove(directory, MANIFEST_FILE)
        return None
    return result


def parsed_run(argv: Sequence[str]) -> Run:
    """The run that the flags ask for, every input checked.

    Raises:
        InputError: naming the field of the spec and what is allowed.
    """
    arguments = _parser().parse_args(argv)
    storage = open_storage(arguments.storage)
    storage.run(arguments.run)
    config = parsed_json("--config", arguments.config)
    settings = parsed_settings(config)
    search = parsed_search(parsed_json("--search", arguments.search), config)
    if search and (arguments.workers or arguments.engine != "Job"):
        raise InputError(
            "InvalidConfig", "spec.training.search needs workers 0 and engine Job, because each trial samples in a process of its own"
        )
    stop = parsed_stop(parsed_json("--stop", arguments.stop))
    if arguments.workers < 0:
        raise InputError("InvalidArguments", "spec.training.workers must be 0 or more")
    if not 0 <= arguments.seed < 2**31:
        raise InputError("InvalidArguments", "spec.training.seed must be from 0 to 2147483647")
    trials = drawn_trials(search, config, arguments.seed) if search else ()
    if arguments.checkpoint_every < 1:
        raise InputError("InvalidArguments", "spec.training.checkpointEvery must be 1 or more")
    evaluation = parsed_json("--evaluation", arguments.evaluation)
    request = None if evaluation is None else parsed_request(evaluation)
    environment = parsed_environment(parsed_json("--environment", arguments.environment), arguments.entry_point_prefix)
    check_config(environment)
    observation, action, units = checked_interface(environment)
    for chosen in (settings, *(trial.settings for trial in trials)):
        if chosen.free_log_std and not isinstance(action, Box):
            raise InputError("InvalidConfig", "spec.training.config.freeLogStd needs an action that is a Box: others have no deviation")
    task = TrainingTask(environment, Encoding(observation, action), settings, arguments.workers, arguments.seed)
    warm_start = parsed_warm_start(parsed_json("--warm-start", arguments.warm_start))
    return Run(
        id=arguments.run,
        storage=storage,
        task=task,
        stop=stop,
        checkpoint_every=arguments.checkpoint_every,
        evaluation=request,
        prefixes=arguments.entry_point_prefix,
        warm_start=warm_start,
        joins_cluster=arguments.engine == "RayJob",
        units=units,
        tracking=parsed_tracking(parsed_json("--tracking", arguments.tracking)),
        search=search,
        trials=trials,
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="app.train", description="Trains a policy with RLlib PPO and publishes it as a bundle.")
    parser.add_argument("--storage", required=True, metavar="URI", help="file:///<path> or s3://<bucket>/<path>, of one PolicyModel")
    parser.add_argument("--run", required=True, metavar="ID")
    parser.add_argument("--environment", required=True, metavar="JSON")
    parser.add_argument("--config", default="{}", metavar="JSON", help="PPO settings; see app/training/settings.py")
    parser.add_argument(
        "--search", default="null", metavar="JSON", help="trains several policies and publishes the best; see app/training/search.py"
    )
    parser.add_argument("--stop", required=True, metavar="JSON", help="criteria of which any one ends the training")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="env runners in processes of their own (default 0)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="Job", help="RayJob: on the Ray cluster that this was submitted to (default Job)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--checkpoint-every", type=int, default=10, metavar="N", help="iterations between checkpoints (default 10)")
    parser.add_argument("--warm-start", default="null", metavar="JSON", help="the published run to begin with: run and digest")
    parser.add_argument("--tracking", default="null", metavar="JSON", help="tensorBoard, and mlflow: trackingUri, experiment and tags")
    parser.add_argument("--evaluation", default="null", metavar="JSON", help="played right after publishing")
    parser.add_argument(
        "--entry-point-prefix",
        action="append",
        default=[],
        metavar="PREFIX",
        help="what entryPoint, or an id with a module, may name (repeatable)",
    )
    return parser


def _trained_and_published(asked: Run, report: Report, leaving: Leaving) -> dict[str, Any]:
    check_environment(asked.task.environment)
    run = asked.storage.run(asked.id)
    with storage_faults():
        before = known_attempts(run)
        attempt = Attempts(before.count + 1, before.time_s)
        write_attempts(run, attempt)
    if asked.search is None:
        return _published_training(asked, report, leaving, attempt)
    return _published_search(asked, asked.search, report, leaving, attempt)


def _check_warm_start(asked: Run) -> None:
    """Whether what has no checkpoint to go on from, each trial of a search by itself, can begin as it is asked to.

    Raises:
        InputError: WarmStartImpossible.
        RetryableError: the storage failed.
    """
    run = asked.storage.run(asked.id)
    trainings = [(place_of_trial(run, trial.number), asked.of_trial(trial).task) for trial in asked.trials] or [(run, asked.task)]
    with storage_faults():
        new = [task for place, task in trainings if not has_checkpoint(place / CHECKPOINTS)]
        if asked.warm_start and new:
            warm_weights(asked.storage, asked.warm_start, new)


def _published_training(asked: Run, report: Report, leaving: Leaving, attempt: Attempts) -> dict[str, Any]:
    _check_warm_start(asked)
    with tracked(asked.tracking, asked.storage.run(asked.id), asked.id, _parameters(asked.task)) as tracks:
        trainer = Trainer(asked.task, joins_cluster=asked.joins_cluster)
        try:
            leaving.listen()  # ray.init puts its own handler there
            state, stopped_by = _trained(asked, trainer, report, leaving, attempt, tracks)
            published = _publication(asked, trainer, state, stopped_by, attempt, {})
        finally:
            trainer.close()
        tracks.ended_well(published["digest"])
        return published


def _published_search(asked: Run, search: Search, report: Report, leaving: Leaving, attempt: Attempts) -> dict[str, Any]:
    """Publishes the best trial, as it would have been published alone; an outcome that is known already is not searched for again."""
    # Trials share a machine: a GPU would be one trial's, and RLlib asks a Ray for it.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    run = asked.storage.run(asked.id)
    with storage_faults():
        outcome = known_outcome(run, search.trials)
    if outcome is None:
        _check_warm_start(asked)
        outcome = _searched(asked, search, report, leaving, attempt)
    trial = asked.trials[outcome.best - 1]
    won = asked.of_trial(trial)
    trainer = Trainer(won.task)
    try:
        with storage_faults():
            state = restored_state(place_of_trial(run, trial.number) / CHECKPOINTS, trainer.restore)
            if state is None or len(state.curve) != outcome.iteration:
                remove_outcome(run)
                raise RetryableError(
                    "CheckpointLost",
                    f"the last checkpoint of the best trial ({trial.number}) is gone; it is trained again where there is time left",
                )
        told = {"trial": trial.number, "seed": trial.seed, "config": dict(trial.chosen), "trials": outcome.told}
        return _publication(won, trainer, state, outcome.stopped_by, attempt, {"seed": asked.task.seed, "search": told})
    finally:
        trainer.close()


def _searched(asked: Run, search: Search, report: Report, leaving: Leaving, attempt: Attempts) -> Outcome:
    """Trains what is left of the trials, and chooses the best.

    Raises:
        InputError: TrainingDiverged: every trial did.
        RetryableError: no trial is left, or the storage failed.
        Terminated: the process was asked to end; there is a checkpoint of all that was done.
    """
    from app.training.population import TrialTracking, Work, trained_population

    run = asked.storage.run(asked.id)
    tasks = tuple(asked.of_trial(trial).task for trial in asked.trials)
    tracking = TrialTracking(asked.tracking, asked.id, tuple(_parameters(task) for task in tasks))
    work = Work(asked.storage, run, tasks, search, asked.trials, asked.stop, asked.checkpoint_every, tracking, asked.warm_start)
    noted_s = attempt.time_s

    def tell(standings: Mapping[int, Standing], time_s: float) -> None:
        nonlocal noted_s
        progress = progress_of(standings, asked.stop, time_s)
        if progress:
            report.progress({**progress, "attempt": attempt.count})
        if leaving.is_asked or time_s - noted_s >= NOTED_EVERY_S:
            noted_s = time_s
            with storage_faults():
                write_attempts(run, Attempts(attempt.count, time_s))

    standings = trained_population(work, attempt.time_s, leaving, tell)
    if leaving.is_asked:
        raise Terminated("Terminated", "the run was asked to end, and the next attempt goes on with the trials that have not ended")
    winner = best(standings.values())
    if winner is None and all(standing.reason == DIVERGED for standing in standings.values()):
        raise InputError(DIVERGED, "spec.training.search.config: every trial diverged; draw lower values of lr, or set gradClip")
    if winner is None:
        raise RetryableError("TrialsFailed", "spec.training.search: no trial came to an end; the log of the Job has more")
    outcome = outcome_of(standings, winner)
    with storage_faults():
        write_outcome(run, outcome)
    return outcome


def _publication(
    asked: Run, trainer: Trainer, state: RunState, stopped_by: str, attempt: Attempts, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Publishes what a trainer has learnt; gives the result, which is written down at once: from then on no attempt publishes anything.

    Args:
        more: what else the result tells.
    """
    with storage_faults():
        write_weights(asked.storage, asked.id, trainer.weights())
    digest = _published(asked, trainer, state)
    last = state.curve[-1]
    result = {
        "run": asked.id,
        "digest": digest,
        "uri": asked.storage.bundle_uri(digest),
        "seed": asked.task.seed,
        "configHash": _config_hash(asked.task),
        "attempts": attempt.count,
        "stoppedBy": stopped_by,
        "iteration": last.iteration,
        "envSteps": last.env_steps,
        "episodeReturnMean": last.episode_return_mean,
        "trainedAt": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **more,
    }
    with storage_faults():
        write_aside(asked.storage.run(asked.id) / "result.json", canonical_json(result))
    return result


def _trained(asked: Run, trainer: Trainer, report: Report, leaving: Leaving, attempt: Attempts, tracks: Tracks) -> tuple[RunState, str]:
    """Iterates until a criterion is met, from the newest checkpoint on where there is one; gives the state then, and the criterion.

    Only where there is none it begins with the weights that it is asked to begin with.

    There is a checkpoint of that state, so what is killed while it publishes trains nothing again.

    Raises:
        InputError: TrainingDiverged or WarmStartImpossible.
        Terminated: the process was asked to end; there is a checkpoint of all that was done.
    """
    run = asked.storage.run(asked.id)
    with storage_faults():
        state = restored_state(run / CHECKPOINTS, trainer.restore)
        state = state or begun_state(asked.storage, asked.warm_start, asked.task, trainer)
    curve = list(state.curve)
    began = time.monotonic() - max(state.time_s, attempt.time_s)
    noted_s = attempt.time_s
    stopped_by = asked.stop.reached(curve, time.monotonic() - began)
    while not stopped_by:
        with leaving.patience():
            iteration_began = time.monotonic()
            curve.append(iterated(trainer, curve, tracks.told))
            now = time.monotonic()
            before = curve[-2].env_steps if len(curve) > 1 else 0
            steps_per_s = (curve[-1].env_steps - before) / (now - iteration_began)
            progress = progress_line(curve[-1], asked.stop.progress_percent(curve, now - began), now - began, steps_per_s)
            report.progress({**progress, "attempt": attempt.count})
            stopped_by = asked.stop.reached(curve, now - began)
            is_due = stopped_by is not None or curve[-1].iteration % asked.checkpoint_every == 0
            with storage_faults():
                if is_due or leaving.is_asked:
                    tracks.keep()
                    write_checkpoint(run / CHECKPOINTS, replace(state, curve=curve, time_s=now - began), trainer.save)
                if leaving.is_asked or now - began - noted_s >= NOTED_EVERY_S:
                    noted_s = now - began
                    write_attempts(run, Attempts(attempt.count, noted_s))
        if leaving.is_asked:
            raise Terminated("Terminated", f"the run was asked to end, and the next attempt goes on after iteration {curve[-1].iteration}")
    return replace(state, curve=curve, time_s=time.monotonic() - began), stopped_by


def _published(asked: Run, trainer: Trainer, state: RunState) -> str:
    """Exports the policy, proves it equal to the trainer's, and publishes it; gives the digest."""
    from app.training.export import described_policy, exported_model, golden_record, proven_policy

    encoding, module = asked.task.encoding, trainer.module()
    recording = trainer.recording(PARITY_OBSERVATIONS)
    model = exported_model(module, encoding, recording.filter)
    described = described_policy(encoding, module)
    policy = proven_policy(model, described, recording)
    golden = golden_record(encoding, recording.rows(_golden_rows(recording)), policy)
    with storage_faults():
        return published_bundle(asked.storage, {**_facts(asked, state), **described, "golden": golden}, model)


def _golden_rows(recording: Recording) -> Array:
    """Which steps become golden: spread over all, fewer where observations are large."""
    steps = len(recording.is_first)
    size = sum(array[0].size for array in (*recording.observations, *recording.states, *recording.answers.state))
    count = min(steps, max(LEAST_GOLDEN, min(GOLDEN_OBSERVATIONS, GOLDEN_NUMBERS // size)))
    return np.linspace(0, steps - 1, count).astype(int)


def _config(task: TrainingTask) -> dict[str, Any]:
    """Everything that PPO was told, defaults included."""
    settings = task.settings
    # Named only where they are set, so that a policy without them keeps its digest.
    filtered = {"observation_filter": settings.observation_filter} if settings.filters_observations else {}
    scaled = {"reward_scale": settings.reward_scale} if settings.reward_scale != 1 else {}
    return {**settings.training_arguments(), **task.model_config(), "num_envs": settings.num_envs, **filtered, **scaled}


def _parameters(task: TrainingTask) -> dict[str, Any]:
    """What is told of a task beside its figures."""
    return {**_config(task), "seed": task.seed, "environment": task.environment.described()}


def _config_hash(task: TrainingTask) -> str:
    return digest_of(canonical_json(_config(task)))


def _facts(asked: Run, state: RunState) -> dict[str, Any]:
    """The manifest's content: no clock and no name in it, so equal trainings give equal digests."""
    task = asked.task
    return {
        "environment": task.environment.described(),
        **({"units": asked.units} if asked.units else {}),
        "seed": task.seed,
        "configHash": _config_hash(task),
        "config": _config(task),
        "parent": state.parent,
        "envSteps": state.curve[-1].env_steps,
        "curve": [[point.iteration, point.env_steps, point.episode_return_mean] for point in state.curve],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_VERSIONS}},
    }


def _with_evaluation(asked: Run, published: dict[str, Any]) -> dict[str, Any]:
    if asked.evaluation is None:
        return published
    return {**published, "evaluation": evaluated(asked.storage, published["digest"], asked.evaluation, asked.prefixes)}


def main() -> int:
    """Entry point; gives the exit code."""
    return reported_run(lambda report: run(sys.argv[1:], report))


if __name__ == "__main__":
    sys.exit(main())
