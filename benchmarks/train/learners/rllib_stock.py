"""RLlib's PPO as its documentation starts it: `PPOConfig().environment("CartPole-v1").build_algo()`."""

import contextlib

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from solved import Solved, Watch, environment, seed

algorithm = PPOConfig().environment(environment()).debugging(seed=seed(), log_level="ERROR").build_algo()
watch = Watch()
watch.start()
with contextlib.suppress(Solved):
    while True:
        result = algorithm.train()
        module = algorithm.get_module()
        with torch.no_grad():
            watch.look(
                int(result["num_env_steps_sampled_lifetime"]),
                lambda seen, module=module: module.forward_inference({"obs": torch.from_numpy(seen)})["action_dist_inputs"].argmax(dim=1),
            )
algorithm.stop()
