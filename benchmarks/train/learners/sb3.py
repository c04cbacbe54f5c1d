"""Stable-Baselines3's PPO with RL-Zoo's settings.

Source: https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml
"""

import contextlib

import torch
from solved import Solved, Watch, environment, seed
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

SETTINGS = {
    "CartPole-v1": {
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": lambda left: 0.001 * left,
        "clip_range": lambda left: 0.2 * left,
    },
    "Acrobot-v1": {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4},
    "LunarLander-v3": {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01},
}
NUM_ENVS = {"CartPole-v1": 8, "Acrobot-v1": 16, "LunarLander-v3": 16}
NORMALISED = ("Acrobot-v1",)
# What the learning rate goes down over, where it does.
TOTAL_STEPS = {"CartPole-v1": 100_000}


class Looking(BaseCallback):
    """Looks at the policy after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    def _on_training_start(self) -> None:
        self.watch.start()

    def _on_rollout_start(self) -> None:
        filtered = environments.normalize_obs if environment() in NORMALISED else lambda seen: seen
        self.watch.look(self.num_timesteps, lambda seen: self.model.predict(filtered(seen), deterministic=True)[0])

    def _on_step(self) -> bool:
        return True


torch.set_num_threads(1)
environments = make_vec_env(environment(), n_envs=NUM_ENVS[environment()], seed=seed())
if environment() in NORMALISED:
    environments = VecNormalize(environments)
model = PPO("MlpPolicy", environments, seed=seed(), device="cpu", **SETTINGS[environment()])
with contextlib.suppress(Solved):
    model.learn(TOTAL_STEPS.get(environment(), 10_000_000), callback=Looking())
