"""RLlib PPO behind a few verbs. The only module that drives RLlib; when to stop, save or publish is decided elsewhere."""

import contextlib
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from app.encoding import Encoding
from app.environments import Environment
from app.errors import InputError, RetryableError, RunError
from app.spaces import Array, Dict, Tuple
from app.training.failing import taken_word
from app.training.recording import Recording, recorded
from app.training.settings import Settings

REGISTERED_NAME = "policymodel-environment"
MODULE, FILTER = "default_policy", "observation_filter"
OBJECT_STORE_BYTES = 128 * 1024 * 1024
# A Unix socket's path may be 107 bytes long, and Ray adds some 60 to its directory.
LONGEST_TEMP_DIR = 40
# A node has to be found for a lost worker, and the image may have to be pulled there.
RUNNERS_S = 600.0
LOOK_S = 1.0
# RLlib pauses for a minute, in which the iteration waits.
RESTART_S = 1.0


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, as plain data.

    Attributes:
        workers: env runners in processes of their own; 0 samples in this process.
    """

    environment: Environment
    encoding: Encoding
    settings: Settings
    workers: int
    seed: int

    @property
    def samples_in_arrays(self) -> bool:
        """Whether `app.training.sampling` and `app.training.learning` can be used: the network has no state, and an action is one leaf."""
        return not self.settings.use_lstm and not isinstance(self.encoding.action_space, Tuple | Dict)

    def model_config(self) -> dict[str, Any]:
        """The model config of the RLModule. Behind a CNN the hidden layers are those of the heads."""
        config = self.settings.model_config()
        if not self.encoding.is_image:
            return config
        heads = {"head_fcnet_hiddens": config["fcnet_hiddens"], "head_fcnet_activation": config["fcnet_activation"]}
        return {**config, **heads, "conv_filters": self.encoding.conv_filters}


@dataclass(frozen=True)
class IterationResult:
    """What one iteration brought.

    Attributes:
        env_steps: since the start of the run.
        episodes: that ended in this iteration.
        return_sum: of their returns.
        return_square_sum: of the squares of their returns.
        is_finite: whether every loss and return is a number.
        told: all that RLlib tells of it, by its own names.
    """

    env_steps: int
    episodes: int
    return_sum: float
    return_square_sum: float
    is_finite: bool
    told: Mapping[str, Any]


class Trainer:
    """A PPO algorithm; where it has workers, on a Ray of its own or on the cluster that this process was submitted to."""

    def __init__(self, task: TrainingTask, *, joins_cluster: bool = False) -> None:
        self._task = task
        self._temp_dir = ray_temp_dir()
        if not os.access(Path.home(), os.W_OK):
            os.environ["HOME"] = str(self._temp_dir)  # RLlib makes ~/ray_results, whoever asks for no logs
        self._open = contextlib.ExitStack()
        if task.workers or _sees_gpu():
            imports = threading.Thread(target=_import_rllib, name="import-rllib", daemon=True)
            imports.start()  # 2 s of imports beside the 3 s of ray.init; the other way round ray.init hangs
            start_ray(self._temp_dir, None if joins_cluster else task.workers)
            self._open.callback(_end_ray)
            imports.join()
        else:
            from app.training.alone import without_ray

            self._open.enter_context(without_ray())
        import torch

        torch.set_num_threads(1)
        try:
            self._algorithm = _algorithm_config(task).build_algo()
            self._taken_word()  # of an attempt before
        except BaseException:
            self._open.close()
            raise

    def iterate(self) -> IterationResult:
        """Samples one batch and learns from it.

        Raises:
            InputError: ObservationNotFinite.
            RetryableError: EnvRunnersLost, or what every env runner in a process of its own raised.
        """
        from app.training.sampling import counted_episodes

        result = self._sampled_result()
        runners, learners = result["env_runners"], result["learners"][MODULE]
        losses = [float(learners[name]) for name in ("total_loss", "policy_loss", "vf_loss") if name in learners]
        episodes, total, squares = counted_episodes(runners)
        is_finite = all(math.isfinite(number) for number in (*losses, total, squares))
        return IterationResult(int(result["num_env_steps_sampled_lifetime"]), episodes, total, squares, is_finite, result)

    def _sampled_result(self) -> dict[str, Any]:
        """What RLlib tells of an iteration. Where every env runner is gone it tells of one without a step, whose figures are no numbers: it
        is asked again until a runner is back, which Ray makes anew where there is room for it. One that raised would do so again."""
        gives_up = time.monotonic() + RUNNERS_S
        while True:
            result: dict[str, Any] = self._algorithm.train()
            has_steps = result.get("env_runners", {}).get("num_env_steps_sampled", math.nan) > 0
            raised = self._taken_word()
            if raised and (isinstance(raised, InputError) or not has_steps):
                raise raised
            if has_steps:
                return result
            if time.monotonic() > gives_up:
                raise RetryableError("EnvRunnersLost", f"no env runner came back within {RUNNERS_S:.0f} s; is there room for the workers?")
            time.sleep(LOOK_S)

    def _taken_word(self) -> RunError | None:
        """What an env runner in a process of its own has raised since this was last asked."""
        return taken_word() if self._task.workers else None

    def save(self, directory: Path) -> None:
        """Writes all that `restore` needs into a directory."""
        self._algorithm.save_to_path(str(directory.resolve()))

    def restore(self, directory: Path) -> None:
        """Goes on from what `save` wrote, or is as new where that raises. RLlib refuses relative paths."""
        try:
            self._algorithm.restore_from_path(str(directory.resolve()))
        except Exception:
            # Half of it may have been taken over.
            self._algorithm.stop()
            self._algorithm = _algorithm_config(self._task).build_algo()
            raise

    def weights(self) -> dict[str, Array]:
        """What was learnt, by name: the module's weights, and what the observation filter has seen."""
        from app.training.filter import known_moments

        weights = {f"{MODULE}/{name}": np.asarray(value) for name, value in self._algorithm.learner_group.get_weights()[MODULE].items()}
        moments = known_moments(self._algorithm.env_runner._env_to_module) if self._task.settings.filters_observations else None
        if moments is None:
            return weights
        return {**weights, f"{FILTER}/count": np.array(moments.count), f"{FILTER}/mean": moments.mean, f"{FILTER}/squares": moments.squares}

    def begin_with(self, weights: Mapping[str, Array]) -> None:
        """Takes over what `weights` of another trainer with such a module gave."""
        from app.training.filter import Moments, begin_with

        module = {name.removeprefix(f"{MODULE}/"): value for name, value in weights.items() if name.startswith(f"{MODULE}/")}
        self._algorithm.learner_group.set_weights({MODULE: module})
        self._algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=self._algorithm.learner_group, inference_only=True)
        if self._task.settings.filters_observations:
            moments = Moments(int(weights[f"{FILTER}/count"]), weights[f"{FILTER}/mean"], weights[f"{FILTER}/squares"])
            begin_with(self._algorithm.env_runner._env_to_module, moments)

    def module(self) -> Any:
        """The RLModule as it is now."""
        return self._algorithm.get_module()

    def recording(self, count: int) -> Recording:
        """What this policy answers greedily, through all of RLlib, to about `count` observations of its environment."""
        task = self._task
        return recorded(self._algorithm, _algorithm_config(task), task.environment, task.encoding, task.seed, count)

    def close(self) -> None:
        """Ends the algorithm, and the Ray that was started for it."""
        shutil.rmtree(self._algorithm.logdir, ignore_errors=True)  # ~/ray_results/...; a run has its lines on stdout
        self._algorithm.stop()
        self._open.close()
        shutil.rmtree(self._temp_dir, ignore_errors=True)


def made_for_rllib(context: dict[str, Any]) -> Any:
    """Makes what RLlib asks for: one environment, or `num_envs` behind their vector entry point."""
    environment: Environment = context["environment"]
    encoding: Encoding = context["encoding"]
    if "num_envs" in context:
        return encoding.adapted_vector(environment.made_vector(context["num_envs"]))
    return encoding.adapted(environment.made())


def _import_rllib() -> None:
    import ray.rllib.algorithms.ppo  # noqa: F401 - imported for what it leaves in sys.modules
    import torch._inductor  # noqa: F401 - likewise: a third of all imports, and RLlib's seeding and Adam need it


def ray_temp_dir() -> Path:
    """A new directory that is short enough for a Ray to keep its sockets in."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="pm-", dir=base if len(base) <= LONGEST_TEMP_DIR else "/tmp"))


def _sees_gpu() -> bool:
    """Whether the learner has a GPU; which one, RLlib asks Ray."""
    import torch

    return bool(torch.cuda.is_available())


def start_ray(temp_dir: Path, workers: int | None) -> None:
    """A Ray for some workers on this machine; None joins the cluster whose head this process runs on."""
    # Ray 2.60 turns token auth on for a Ray of one process tree and writes the token to $HOME, which may be read-only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if workers is None:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",
        num_cpus=workers + 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temp_dir),
    )


def _end_ray() -> None:
    import ray

    ray.shutdown()


def _algorithm_config(task: TrainingTask) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    from app.training.learning import REWARD_SCALE
    from app.training.sampling import count_episode

    runner, learner = _classes(task)
    register_env(REGISTERED_NAME, made_for_rllib)
    context = {"environment": task.environment, "encoding": task.encoding}
    mode = gymnasium.VectorizeMode.VECTOR_ENTRY_POINT if task.environment.has_vector_entry_point() else gymnasium.VectorizeMode.SYNC
    return (
        PPOConfig()
        .environment(REGISTERED_NAME, env_config=context, disable_env_checking=True)
        .env_runners(
            num_env_runners=task.workers,
            num_envs_per_env_runner=max(1, task.settings.num_envs // max(1, task.workers)),
            gym_env_vectorize_mode=mode,
            env_to_module_connector=_observation_filter if task.settings.filters_observations else None,
            env_runner_cls=runner,
        )
        .fault_tolerance(delay_between_env_runner_restarts_s=RESTART_S)
        # The learner is this process: it sees a GPU where its pod asks for one.
        .learners(num_gpus_per_learner=int(_sees_gpu()))
        .training(
            learner_class=learner,
            learner_config_dict={REWARD_SCALE: task.settings.reward_scale},
            **task.settings.training_arguments(),
        )
        .rl_module(model_config=task.model_config())
        .callbacks(on_episode_end=count_episode)
        .debugging(seed=task.seed, log_level="ERROR")
    )


def _classes(task: TrainingTask) -> tuple[Any, Any]:
    """The env runner and the Learner: ours where they can, which are faster, else RLlib's own, whose rewards are scaled."""
    from app.training.learning import EpisodeLearner, FragmentLearner
    from app.training.sampling import ArrayEnvRunner, EpisodeEnvRunner

    if not task.samples_in_arrays:
        return EpisodeEnvRunner, EpisodeLearner
    return ArrayEnvRunner, FragmentLearner


def _observation_filter(env: Any, spaces: Any, device: Any) -> Any:
    from app.training.filter import MergingMeanStdFilter

    return MergingMeanStdFilter()
