"""Ray's tutorial "Serving RLlib Models": the trainer restored from its checkpoint in a replica, behind Serve's own proxy.

`python -m benchmarks.serve.servers.tutorial PORT CHECKPOINT TEMP_DIR`. Source:
https://docs.ray.io/en/latest/serve/tutorials/rllib.html
"""

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

ROUTE = "/cartpole-ppo"


@serve.deployment
class ServePPOModel:
    """One replica with the whole algorithm in it."""

    def __init__(self, checkpoint: str) -> None:
        from ray.rllib.algorithms.algorithm import Algorithm

        self.algorithm = Algorithm.from_checkpoint(checkpoint)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One action."""
        import torch

        observation = (await request.json())["observation"]
        outputs = self.algorithm.get_module().forward_inference({"obs": torch.tensor([observation], dtype=torch.float32)})
        return {"action": int(outputs["action_dist_inputs"][0].argmax())}


def main(port: int, checkpoint: str, temp_dir: str) -> None:
    """Serves until SIGTERM."""
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, _temp_dir=temp_dir)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(ServePPOModel.bind(checkpoint), route_prefix=ROUTE)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
