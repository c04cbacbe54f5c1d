"""`policymodel`, and `kubectl policymodel`: run a PolicyModel on this machine, or operate those of a cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from controller.model import Settings
from controller.verbs.options import add_verbs

# What kubectl looks for on the PATH when somebody types `kubectl policymodel`.
PLUGIN = "kubectl-policymodel"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit code 1: the PolicyModel cannot be made ready, or what was asked for was not done; 2: the input is wrong;
    more of them in docs/cli.md."""
    top = parser("kubectl policymodel" if Path(sys.argv[0]).name == PLUGIN else "policymodel")
    options, rest = top.parse_known_args(arguments)
    # argparse takes an observation that stands behind flags for one too many.
    if options.command == "act" and options.observation == "-" and len(rest) == 1 and not rest[0].startswith("--"):
        options.observation = rest.pop()
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    # Each command imports what it alone needs: the operator's image holds nothing for local runs.
    if options.command == "operate":
        from controller.handlers import operate

        settings = Settings(
            options.training_image,
            options.serving_image,
            entry_point_prefixes=tuple(options.entry_point_prefix),
            nodes_may_be_added=options.nodes_may_be_added,
        )
        operate(settings, options.namespace)
        return 0
    if options.command == "run":
        from controller.run import run

        return run(options)
    from controller.verbs import commands

    return commands.run(options, top.prog)


def parser(program: str = "policymodel") -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=program, description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train, check and serve a PolicyModel on this machine, without a cluster")
    run.add_argument("file", type=Path, help="the PolicyModel; it is read again whenever it changes")
    run.add_argument("--once", action="store_true", help="play 20 episodes against it, then stop")
    run.add_argument("--port", type=int, default=8000, help="where it answers on 127.0.0.1 (default: %(default)s)")
    run.add_argument("--state", type=Path, default=Path(".policymodel"), help="bundles, logs and status (default: %(default)s)")
    _add_allow_list(run)
    operate = commands.add_parser("operate", help="run the operator in a cluster")
    operate.add_argument("--training-image", required=True, help="image for training where a PolicyModel names none")
    operate.add_argument("--serving-image", required=True, help="image for serving where a PolicyModel names none")
    operate.add_argument("--namespace", action="append", default=[], help="a namespace to watch; may be repeated (default: all)")
    operate.add_argument(
        "--nodes-may-be-added",
        action="store_true",
        help="an autoscaler adds nodes for pods that find no room: a second cluster is tried without a look at the nodes",
    )
    _add_allow_list(operate)
    add_verbs(commands)
    return top


def _add_allow_list(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--entry-point-prefix",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that spec.environment may name; may be repeated (default: none)",
    )


if __name__ == "__main__":
    sys.exit(main())
