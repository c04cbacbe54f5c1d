"""Ray Tune's own loggers, for a training without Tune: event files for TensorBoard, a run of an MLflow server. Imports Ray Tune.

Both take RLlib's result of an iteration. When they are told of one, and what becomes of their files, is decided in `app.training.tracking`.
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.logger import TBXLoggerCallback
from ray.tune.result import TIMESTEPS_TOTAL
from ray.tune.utils import flatten_dict


class Trial:
    """What the loggers ask of Tune's `Trial`.

    Args:
        name: of the run.
        parameters: what it was told, flat.
        directory: for files.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], directory: Path | None = None) -> None:
        self.config = self.evaluated_params = dict(parameters)
        self.local_path = str(directory)
        self._name = name

    def __str__(self) -> str:
        return self._name

    def init_local_path(self) -> None:
        """The directory is there."""


class EventFiles(TBXLoggerCallback):  # type: ignore[misc] # mypy does not follow Ray
    """TensorBoard's event files, one after the other."""

    def begin_file(self, trial: Trial, first_step: int, *, purges: bool) -> None:
        """Closes the file that is written, and begins another one.

        Args:
            first_step: no step that will be in it is lower. It is in the file's name, because files that are begun in
                one second would have one name, and the first of them would be lost.
            purges: TensorBoard is to forget what other files have from here on: the attempt that wrote it was killed.
        """
        from tensorboardX import SummaryWriter

        self._summary_writer_cls = functools.partial(
            SummaryWriter, purge_step=first_step if purges else None, filename_suffix=f".{first_step:012d}"
        )
        last = self._trial_result.get(trial, {})
        self.log_trial_start(trial)
        self._trial_result[trial] = last  # without one, Ray's logger leaves the parameters out at the end


class MLflowRuns(MLflowLoggerCallback):  # type: ignore[misc] # mypy does not follow Ray
    """One MLflow run for all attempts of a run, found again by its tags.

    Ray's own makes a request for each figure of each iteration, which are 50 to 110; here one takes them all.
    """

    def log_trial_start(self, trial: Trial) -> None:
        """Goes on with the run that has our tags, or makes it."""
        from mlflow.entities import Param

        client, experiment = self.mlflow_util._get_client(), self.mlflow_util.experiment_id
        tagged = " and ".join(f"tags.`{name}` = '{value}'" for name, value in self.tags.items())
        found = client.search_runs([experiment], tagged, max_results=1)
        run = found[0] if found else self.mlflow_util.start_run(run_name=str(trial), tags=dict(self.tags))
        self._trial_runs[trial] = run.info.run_id
        client.update_run(run.info.run_id, status="RUNNING")
        # A parameter is written once: another value is refused, and a later version of ours may have another default.
        new = [Param(name, str(value)) for name, value in trial.config.items() if name not in run.data.params]
        client.log_batch(run.info.run_id, params=new)

    def log_trial_result(self, iteration: int, trial: Trial, result: Mapping[str, Any]) -> None:
        """Tells of an iteration."""
        from mlflow.entities import Metric

        now_ms, figures = int(time.time() * 1000), self.mlflow_util._parse_dict(flatten_dict(result))
        metrics = [Metric(name, value, now_ms, result[TIMESTEPS_TOTAL]) for name, value in figures.items() if value == value]
        self.mlflow_util._get_client().log_batch(self._trial_runs[trial], metrics=metrics)

    def tag(self, trial: Trial, name: str, value: str) -> None:
        """Tags the run."""
        self.mlflow_util._get_client().set_tag(self._trial_runs[trial], name, value)
