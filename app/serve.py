"""The door to serving: Ray Serve imports `app.serve:build`, `python -m app.serve` serves on this machine. Imports nothing heavy."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: dict[str, Any]) -> "Application":
    """The Serve application.

    Args:
        args: of `serveConfigV2`; none are known yet. What a policy is comes by `user_config`, which changes without a restart.
    """
    from app.serving.deployment import application

    return application()


def main() -> int:
    """Entry point of `python -m app.serve`; gives the exit code."""
    from app.serving.local_serve import main as local_main  # sets what Ray reads from the environment before it imports Ray

    return local_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
