"""Stable-Baselines3's PPO with RL-Zoo's settings for CartPole.

Source: https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml
"""

import contextlib

import torch
from solved import ENVIRONMENT, Solved, Watch, seed
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Looking(BaseCallback):
    """Looks at the policy after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()

    def _on_training_start(self) -> None:
        self.watch.start()

    def _on_rollout_start(self) -> None:
        self.watch.look(self.num_timesteps, lambda seen: self.model.predict(seen, deterministic=True)[0])

    def _on_step(self) -> bool:
        return True


torch.set_num_threads(1)
model = PPO(
    "MlpPolicy",
    make_vec_env(ENVIRONMENT, n_envs=8, seed=seed()),
    n_steps=32,
    batch_size=256,
    gae_lambda=0.8,
    gamma=0.98,
    n_epochs=20,
    ent_coef=0.0,
    learning_rate=lambda left: 0.001 * left,
    clip_range=lambda left: 0.2 * left,
    seed=seed(),
    device="cpu",
)
with contextlib.suppress(Solved):
    model.learn(100_000, callback=Looking())
