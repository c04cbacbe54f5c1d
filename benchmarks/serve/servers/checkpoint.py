"""Trains one iteration of PPO on CartPole and saves RLlib's checkpoint for the tutorial.

`python -m benchmarks.serve.servers.checkpoint DIRECTORY TEMP_DIR`. The network is as wide as the one in the bundle.
"""

import sys

import ray
from ray.rllib.algorithms.ppo import PPOConfig

from app.training.settings import Settings


def main(directory: str, temp_dir: str) -> None:
    """Writes the checkpoint."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=temp_dir)
    settings = Settings(train_batch_size=512, num_epochs=1)
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0).rl_module(model_config=settings.model_config())
    algorithm = config.training(**settings.training_arguments()).build_algo()
    algorithm.train()
    algorithm.save_to_path(directory)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
