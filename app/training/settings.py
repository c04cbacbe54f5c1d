"""The PPO settings that a user may choose: names, ranges, defaults. Reads and checks them; imports nothing of RLlib.

Names are camelCase of RLlib's `PPOConfig`, but for `rewardScale`, which it has not (https://docs.ray.io/en/latest/rllib/package_ref/doc/ray.rllib.algorithms.ppo.ppo.PPOConfig.html).
The defaults solve CartPole, acting greedily, in some 20,000 steps; where they differ from RLlib's, the reason stands beside them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from app.errors import InputError

FIELD = "spec.training.config"


@dataclass(frozen=True)
class Settings:
    """PPO settings, all within their ranges; units are those of RLlib."""

    lr: float = 1e-3
    gamma: float = 0.98
    lambda_: float = 0.9
    clip_param: float = 0.2
    vf_clip_param: float = 1e4  # RLlib's 10 cuts the critic's gradient off as soon as returns exceed about 3
    vf_loss_coeff: float = 0.5
    entropy_coeff: float = 0.0
    use_kl_loss: bool = False  # the clipped objective alone is enough here, and faster
    kl_coeff: float = 0.2
    kl_target: float = 0.01
    grad_clip: float | None = 0.5
    train_batch_size: int = 1024
    minibatch_size: int = 256
    num_epochs: int = 10
    num_envs: int = 32
    fcnet_hiddens: tuple[int, ...] = (64, 64)
    fcnet_activation: str = "tanh"
    vf_share_layers: bool = False
    free_log_std: bool = False
    reward_scale: float = 1.0
    observation_filter: str = "None"
    use_lstm: bool = False
    lstm_cell_size: int = 64  # RLlib's 256 is much beside hidden layers of 64
    max_seq_len: int = 20
    lr_end: float | None = None
    entropy_coeff_end: float | None = None
    schedule_steps: int = 100_000

    @property
    def filters_observations(self) -> bool:
        """Whether observations are normalised by their running mean and standard deviation."""
        return self.observation_filter == "MeanStd"

    def training_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `PPOConfig.training`."""
        return {
            "lr": self._scheduled(self.lr, self.lr_end),
            "gamma": self.gamma,
            "lambda_": self.lambda_,
            "clip_param": self.clip_param,
            "vf_clip_param": self.vf_clip_param,
            "vf_loss_coeff": self.vf_loss_coeff,
            "entropy_coeff": self._scheduled(self.entropy_coeff, self.entropy_coeff_end),
            "use_kl_loss": self.use_kl_loss,
            "kl_coeff": self.kl_coeff,
            "kl_target": self.kl_target,
            "grad_clip": self.grad_clip,
            "grad_clip_by": "global_norm",
            "train_batch_size_per_learner": self.train_batch_size,
            "minibatch_size": self.minibatch_size,
            "num_epochs": self.num_epochs,
        }

    def _scheduled(self, first: float, end: float | None) -> Any:
        """A setting that stays, or RLlib's schedule of one that goes to its end in a straight line."""
        return first if end is None else [[0, first], [self.schedule_steps, end]]

    def model_config(self) -> dict[str, Any]:
        """The model config of the RLModule: a dict, because `DefaultModelConfig()` brings `vf_share_layers=True`."""
        recurrent = {"use_lstm": True, "lstm_cell_size": self.lstm_cell_size, "max_seq_len": self.max_seq_len}
        return {
            "fcnet_hiddens": list(self.fcnet_hiddens),
            "fcnet_activation": self.fcnet_activation,
            "vf_share_layers": self.vf_share_layers,
            **({"free_log_std": True} if self.free_log_std else {}),
            **(recurrent if self.use_lstm else {}),
        }


@dataclass(frozen=True)
class Setting:
    """One setting: its field in `Settings`, what is allowed in words, and the check that gives the value or None when it is not allowed."""

    field: str
    allowed: str
    checked: Callable[[Any], Any]


def _number(above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf) -> Callable[[Any], float | None]:
    def checked(value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value) if value > above and at_least <= value <= at_most else None

    return checked


def _integer(least: int, most: int) -> Callable[[Any], int | None]:
    def checked(value: Any) -> int | None:
        number = _number(at_least=least, at_most=most)(value)
        return int(number) if number is not None and number.is_integer() else None

    return checked


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _widths(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        return None
    widths = [_integer(1, 4096)(width) for width in value]
    return None if None in widths else tuple(width for width in widths if width is not None)


ACTIVATIONS = ("elu", "gelu", "leaky_relu", "relu", "sigmoid", "silu", "tanh")


FILTERS = ("None", "MeanStd")


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: value if isinstance(value, str) and value in allowed else None


SETTINGS = {
    "lr": Setting("lr", "a number above 0, at most 1", _number(above=0, at_most=1)),
    "gamma": Setting("gamma", "a number from 0 to 1", _number(at_least=0, at_most=1)),
    "lambda": Setting("lambda_", "a number from 0 to 1", _number(at_least=0, at_most=1)),
    "clipParam": Setting("clip_param", "a number above 0, at most 10", _number(above=0, at_most=10)),
    "vfClipParam": Setting("vf_clip_param", "a number above 0", _number(above=0)),
    "vfLossCoeff": Setting("vf_loss_coeff", "a number of 0 or more", _number(at_least=0)),
    "entropyCoeff": Setting("entropy_coeff", "a number of 0 or more", _number(at_least=0)),
    "useKlLoss": Setting("use_kl_loss", "true or false", _boolean),
    "klCoeff": Setting("kl_coeff", "a number of 0 or more", _number(at_least=0)),
    "klTarget": Setting("kl_target", "a number above 0", _number(above=0)),
    "gradClip": Setting("grad_clip", "a number above 0 (the largest global norm of the gradient)", _number(above=0)),
    "trainBatchSize": Setting("train_batch_size", "an integer from 1 to 10000000", _integer(1, 10_000_000)),
    "minibatchSize": Setting("minibatch_size", "an integer from 1 to 10000000, at most trainBatchSize", _integer(1, 10_000_000)),
    "numEpochs": Setting("num_epochs", "an integer from 1 to 1000", _integer(1, 1000)),
    "numEnvs": Setting("num_envs", "an integer from 1 to 4096", _integer(1, 4096)),
    "fcnetHiddens": Setting("fcnet_hiddens", "a list of 1 to 8 integers from 1 to 4096", _widths),
    "fcnetActivation": Setting("fcnet_activation", f"one of {', '.join(ACTIVATIONS)}", _one_of(ACTIVATIONS)),
    "vfShareLayers": Setting("vf_share_layers", "true or false", _boolean),
    "freeLogStd": Setting("free_log_std", "true or false", _boolean),
    "rewardScale": Setting("reward_scale", "a number above 0, at most 1000000", _number(above=0, at_most=1_000_000)),
    "observationFilter": Setting("observation_filter", f"one of {', '.join(FILTERS)}", _one_of(FILTERS)),
    "useLstm": Setting("use_lstm", "true or false", _boolean),
    "lstmCellSize": Setting("lstm_cell_size", "an integer from 1 to 4096", _integer(1, 4096)),
    "maxSeqLen": Setting("max_seq_len", "an integer from 1 to 1000", _integer(1, 1000)),
    "lrEnd": Setting("lr_end", "a number from 0 to 1", _number(at_least=0, at_most=1)),
    "entropyCoeffEnd": Setting("entropy_coeff_end", "a number of 0 or more", _number(at_least=0)),
    "scheduleSteps": Setting("schedule_steps", "an integer from 1 to 100000000000", _integer(1, 100_000_000_000)),
}


def parsed_settings(config: Any) -> Settings:
    """The settings that `spec.training.config` asks for, defaults for the rest.

    Raises:
        InputError: an unknown name, or a value that is not allowed; the message names the field and what is allowed.
    """
    if not isinstance(config, dict):
        raise InputError("InvalidConfig", f"{FIELD} must be an object")
    chosen: dict[str, Any] = {}
    for name, value in config.items():
        setting = SETTINGS.get(name)
        if setting is None:
            near = get_close_matches(str(name), SETTINGS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError("InvalidConfig", f"{FIELD}.{name} is not a setting{hint}; allowed are {', '.join(SETTINGS)}")
        checked = setting.checked(value)
        if checked is None:
            raise InputError("InvalidConfig", f"{FIELD}.{name} must be {setting.allowed}")
        chosen[setting.field] = checked
    settings = Settings(**chosen)
    if settings.minibatch_size > settings.train_batch_size:
        raise InputError("InvalidConfig", f"{FIELD}.minibatchSize must be at most trainBatchSize ({settings.train_batch_size})")
    if settings.free_log_std and settings.use_lstm:
        raise InputError("InvalidConfig", f"{FIELD}.freeLogStd is not allowed beside useLstm: RLlib's head for it knows no sequences")
    return settings
