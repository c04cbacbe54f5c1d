"""Trains one iteration of PPO on CartPole and saves RLlib's checkpoint, as the tutorial does.

`python -m benchmarks.serve.servers.checkpoint DIRECTORY TEMP_DIR`. The network is as wide as the one in the bundle.
"""

import sys

import ray
from ray.rllib.algorithms.ppo import PPOConfig

from app.training.settings import Settings


def tutorial_config() -> PPOConfig:
    """What the tutorial trains and restores."""
    stack = PPOConfig().api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
    small = {"model": {"fcnet_hiddens": list(Settings().fcnet_hiddens)}, "train_batch_size": 512, "num_epochs": 1}
    return stack.environment("CartPole-v1").framework("torch").env_runners(num_env_runners=0).training(**small)


def main(directory: str, temp_dir: str) -> None:
    """Writes the checkpoint."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=temp_dir)
    algorithm = tutorial_config().build_algo()
    algorithm.train()
    algorithm.save(directory)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
