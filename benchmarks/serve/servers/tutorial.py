"""Ray's tutorial "Serving RLlib Models": the trainer restored from its checkpoint in a replica, behind Serve's own proxy.

`python -m benchmarks.serve.servers.tutorial PORT CHECKPOINT TEMP_DIR MAX_ONGOING_REQUESTS`. As the tutorial has it, on RLlib's old API
stack, which `compute_single_action` needs. Source: https://docs.ray.io/en/latest/serve/tutorials/rllib.html
"""

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serve.servers.checkpoint import tutorial_config

ROUTE = "/cartpole-ppo"


@serve.deployment
class ServePPOModel:
    """One replica with the whole algorithm in it."""

    def __init__(self, checkpoint: str) -> None:
        self.algorithm = tutorial_config().build_algo()
        self.algorithm.restore(checkpoint)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One action."""
        observation = (await request.json())["observation"]
        return {"action": int(self.algorithm.compute_single_action(observation))}


def main(port: int, checkpoint: str, temp_dir: str, max_ongoing_requests: int) -> None:
    """Serves until SIGTERM."""
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, _temp_dir=temp_dir)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(ServePPOModel.options(max_ongoing_requests=max_ongoing_requests).bind(checkpoint), route_prefix=ROUTE)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
