"""The flags of the verbs, named as kubectl names its own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

_UNITS = {"h": 3600, "m": 60, "s": 1}

# verb: what it does
WRITING = {
    "promote": "let the candidate take over now, past the steps of the rollout that are left",
    "abort": "end the rollout: all sessions go back to the policy that serves",
    "undo": "go back to the approved revision that served before, and pin it",
    "pin": "serve one revision, whatever is trained, until it is unpinned",
    "unpin": "serve the policy of the spec again",
    "approve": "let a revision be served, whatever the gate says; your name is recorded",
    "retrain": "train the same spec again, from the next seed",
    "pause": "change nothing until it is resumed; what serves goes on serving",
    "resume": "go on",
}
# What may be waited for, and when it has come.
WAITED = {
    "promote": "Ready",
    "abort": "the rollout is over",
    "undo": "Ready",
    "pin": "Ready",
    "unpin": "Ready",
    "approve": "Ready",
    "retrain": "Ready",
    "resume": "Ready",
}


def add_verbs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_reading(commands)
    for verb, text in WRITING.items():
        one = _added(commands, verb, text)
        if verb in WAITED:
            one.add_argument("--wait", action="store_true", help=f"until {_when(verb)}; exits with 1 where it does not come to that")
            one.add_argument("--timeout", type=duration, default=3600.0, metavar="TIME", help="of --wait: 90s, 10m, 2h (default: 1h)")
        if verb == "pin":
            one.add_argument("revision", type=_number, metavar="REVISION", help="the number of an approved revision")
        if verb == "undo":
            one.add_argument("--to", type=_number, metavar="N", help="another revision than the one before")
        if verb in ("approve", "promote", "abort"):
            which = "which one" if verb == "approve" else "only where it is this one that is being rolled out"
            one.add_argument("--revision", type=_number, required=verb == "approve", metavar="N", help=which)


def duration(text: str) -> float:
    """Seconds of a time as kubectl takes it: `90s`, `10m`, `1h30m`."""
    parts = re.findall(r"(\d+)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"a time such as 90s, 10m or 1h30m is allowed, not {text}")
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


def _add_reading(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = _added(commands, "status", "show run, gate, rollout and replicas as a tree, and what to do next")
    status.add_argument("-w", "--watch", action="store_true", help="show it again whenever it changes, until Ctrl-C")
    history = _added(commands, "history", "show the revisions, oldest first")
    history.add_argument("--revision", type=_number, metavar="N", help="all that is known of one of them")
    logs = _added(commands, "logs", "show the log of the training, or of what serves", has_output=False)
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    logs.add_argument("--serve", action="store_true", help="of the head pod that serves, instead of the training")
    logs.add_argument("-p", "--previous", action="store_true", help="of the container before the last restart")
    logs.add_argument("--tail", type=_number, metavar="LINES", help="the last lines only")
    report = _added(commands, "report", "write one HTML page of a revision: curve, gate, evaluation, lineage, an episode", has_output=False)
    report.add_argument("--revision", type=_number, metavar="N", help="which one (default: the one that serves, or the newest)")
    report.add_argument("--file", type=Path, metavar="PATH", help="where to (default: NAME-N.html; - is stdout)")
    report.add_argument("--state", type=Path, metavar="DIR", help="of `policymodel run`, in place of a cluster")
    report.add_argument("--episode", action="store_true", help="play an episode over HTTP, and draw it")
    act = _added(commands, "act", "ask the policy for the action of one observation")
    act.add_argument("observation", nargs="?", default="-", help="as JSON, such as '[0.02, 0.01, -0.03, 0.04]' (default: from stdin)")
    act.add_argument("--explore", action="store_true", help="draw the action from the policy's distribution")
    act.add_argument("--seed", type=int, help="of that draw")
    play = _added(commands, "play", "play episodes against the policy over HTTP, and draw them")
    play.add_argument("--episodes", type=_number, default=1, metavar="N", help="(default: %(default)s)")
    play.add_argument("--seed", type=int, help="of the first episode; each next one has one more")
    play.add_argument("--fps", type=_rate, default=30.0, metavar="N", help="steps drawn in a second (default: %(default)g)")
    prefix = "a package that spec.environment may run code of on this machine; may be repeated (default: none)"
    play.add_argument("--entry-point-prefix", action="append", default=[], metavar="PACKAGE", help=prefix)
    report.add_argument("--entry-point-prefix", action="append", default=[], metavar="PACKAGE", help=prefix)
    for one in (act, play, report):
        one.add_argument("--url", help="where to ask (default: .status.url)")
        one.add_argument("--host", metavar="NAME", help="host that the Ingress knows it by (default: with --url, that of the spec)")


def _added(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], verb: str, text: str, *, has_output: bool = True
) -> argparse.ArgumentParser:
    one = commands.add_parser(verb, help=text, description=text)
    one.add_argument("name", metavar="NAME", help="of the PolicyModel")
    one.add_argument("-n", "--namespace", help="(default: that of the context)")
    one.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    one.add_argument("--kubeconfig", metavar="FILE", help="(default: $KUBECONFIG, or ~/.kube/config)")
    if has_output:
        one.add_argument("-o", "--output", choices=["text", "json"], default="text", help="(default: %(default)s)")
    return one


def _when(verb: str) -> str:
    return "what is asked for answers on every replica" if WAITED[verb] == "Ready" else WAITED[verb]


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number from 1 on is allowed")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError("from above 0 to 1000 is allowed")
    return rate
