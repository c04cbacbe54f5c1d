"""Every verb from its command line to the API server and back: what it writes, what it says, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.kube import Kube
from fakes.world import World

from controller import cli, names
from controller.verbs import commands
from controller.verbs import play as verb_play

CANARY = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 30}, {"weight": 50, "seconds": 30}]}
REQUEST = names.request_annotation


class Place:
    """A PolicyModel in the API server, and the operator and the replicas that act upon it whenever somebody waits."""

    def __init__(self, kube: Kube) -> None:
        self.kube, self.world = kube, World()
        self.world.edit(serving__replicas=2)
        self.world.settle()
        self.tell()

    def tell(self) -> None:
        """The API server has what the world has."""
        metadata = {"name": "cartpole", "generation": self.world.generation, "annotations": dict(self.world.annotations)}
        document = {"metadata": metadata, "spec": self.world.document["spec"], "status": self.world.status}
        self.kube.put("policymodels", json.loads(json.dumps(document)))
        # The fake counts on its own.
        self.kube.objects["policymodels", "default", "cartpole"]["metadata"]["generation"] = self.world.generation

    def get_on(self, _: float = 0) -> None:
        found = self.found
        if found["spec"] != self.world.document["spec"]:
            self.world.document = {**self.world.document, "spec": found["spec"]}
            self.world.generation += 1
        self.world.annotations = found["metadata"].get("annotations", {})
        self.world.get_on()
        self.tell()

    def edit(self, **changes: Any) -> None:
        self.world.edit(**{"serving__replicas": 2, **changes})
        self.tell()

    def settle(self) -> None:
        self.world.settle()
        self.tell()

    def until_step(self, number: int) -> None:
        self.world.until_step(number)
        self.tell()

    @property
    def found(self) -> dict[str, Any]:
        document = self.kube.one("policymodels", "cartpole")
        assert document
        return document

    def asked(self, verb: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.found["metadata"]["annotations"][REQUEST(verb)])
        return found


@pytest.fixture
def place(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(kube)
    monkeypatch.setattr(commands.time, "sleep", found.get_on)
    return found


@pytest.fixture
def canary(place: Place) -> Place:
    """The same in the middle of a canary: revision 2 answers 10 % of the sessions."""
    place.edit(training__seed=2, **CANARY)
    place.until_step(1)
    return place


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command says on stdout, and if it fails on stderr."""
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


# What is read.


def test_status_is_the_tree(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "status", "cartpole")
    assert "default/cartpole   RollingOut   Available=True   Ready=False" in text
    assert "[10 %] > 50 % > take over" in text
    assert "$ policymodel abort cartpole --revision 2" in text


def test_status_names_the_plugin_where_kubectl_has_called_it(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/kubectl-policymodel"])
    assert "$ kubectl policymodel play cartpole -n default" in said(capsys, "status", "cartpole", "-n", "default")


def test_status_for_programs_has_what_comes_next_and_all_that_the_operator_told(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(said(capsys, "status", "cartpole", "-o", "json"))
    assert (told["ready"], told["available"], told["observed"], told["status"]["candidate"]["weight"]) == (False, True, True, 10)
    assert "policymodel promote cartpole --revision 2" in told["next"]["commands"]


def test_watching_shows_each_change_once_and_outlives_an_api_server_that_is_away(
    canary: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            raise KeyboardInterrupt
        if looks == 2:
            canary.get_on()

    look = commands.Asked.view

    def looked(asked: commands.Asked) -> Any:
        if looks == 3:
            raise commands.ApiTrouble("no cluster was reached", commands.EXIT_UNREACHED)
        return look(asked)

    monkeypatch.setattr(commands.time, "sleep", sleep)
    monkeypatch.setattr(commands.Asked, "view", looked)
    assert cli.main(["status", "cartpole", "--watch"]) == commands.EXIT_INTERRUPTED
    text = capsys.readouterr().out
    assert text.count("default/cartpole   RollingOut") == 3
    assert text.endswith("this is what was seen last: no cluster was reached\n")


def test_history_has_a_line_for_each_revision(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "history", "cartpole").splitlines()
    assert [line.split()[0] for line in lines] == ["REVISION", "1", "2"]
    assert lines[1].endswith("serves")
    assert lines[2].endswith("canary 10 %")
    assert "sha256:" in said(capsys, "history", "cartpole", "--revision", "2")
    found = json.loads(said(capsys, "history", "cartpole", "-o", "json"))
    assert [revision["number"] for revision in found["revisions"]] == [1, 2]
    assert json.loads(said(capsys, "history", "cartpole", "--revision", "2", "-o", "json"))["number"] == 2
    assert "there are: 1 and 2" in said(capsys, "history", "cartpole", "--revision", "9", code=3)


def pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": []}}


def test_logs_are_those_of_the_newest_pod_of_this_training(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.world.status["training"]["run"]
    labels = {names.LABEL_NAME: "cartpole", names.LABEL_ROLE: "train", names.LABEL_RUN: run}
    place.kube.put("pods", pod("old", {**labels, names.LABEL_RUN: "another"}))
    place.kube.put("pods", pod("new", labels))
    place.kube.logs = {"old": "not this\n", "new": "iteration 1\n"}
    assert said(capsys, "logs", "cartpole") == "iteration 1\n"


def test_logs_follow_a_pod_that_has_not_started_yet(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    place.edit(training__seed=2)
    place.world.reconcile()
    place.world.reconcile()
    place.tell()
    labels = {names.LABEL_NAME: "cartpole", names.LABEL_ROLE: "train", names.LABEL_RUN: place.world.status["training"]["run"]}

    def start(_: float) -> None:
        if place.kube.one("pods", "new"):
            place.kube.logs["new"] = "iteration 1\n"
        place.kube.put("pods", pod("new", labels))

    assert "no pod trains yet" in said(capsys, "logs", "cartpole", code=3)
    monkeypatch.setattr(commands.time, "sleep", start)
    assert said(capsys, "logs", "cartpole", "-f") == "iteration 1\n"


def test_logs_follow_a_pod_that_has_said_nothing_yet(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    labels = {names.LABEL_NAME: "cartpole", names.LABEL_ROLE: "train", names.LABEL_RUN: place.world.status["training"]["run"]}
    place.kube.put("pods", pod("new", labels))
    place.kube.logs["new"] = ""
    assert said(capsys, "logs", "cartpole") == ""
    monkeypatch.setattr(commands.time, "sleep", lambda _: place.kube.logs.update(new="iteration 1\n"))
    assert said(capsys, "logs", "cartpole", "-f") == "iteration 1\n"
    place.kube.logs["new"] = ""
    monkeypatch.setattr(commands.time, "sleep", lambda _: None)
    assert said(capsys, "logs", "cartpole", "-f") == ""


def test_logs_that_a_terminal_follows_have_their_progress_drawn_and_a_pipe_gets_them_as_they_are(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    labels = {names.LABEL_NAME: "cartpole", names.LABEL_ROLE: "train", names.LABEL_RUN: place.world.status["training"]["run"]}
    place.kube.put("pods", pod("new", labels))
    progress = {"iteration": 3, "envSteps": 3072, "episodeReturnMean": 61.2, "progressPercent": 25.0, "etaSeconds": 180}
    place.kube.logs["new"] = raw = "begins\n" + json.dumps({"progress": progress}) + "\n"
    assert said(capsys, "logs", "cartpole", "-f") == raw
    monkeypatch.setattr(commands.sys.stdout, "isatty", lambda: True)
    assert said(capsys, "logs", "cartpole") == raw
    assert said(capsys, "logs", "cartpole", "-f") == "begins\n\r\033[K[#####---------------] 25%  3 min left  mean return 61.2  ▁\n"


def test_logs_of_a_training_whose_pod_is_gone_say_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "its pod is gone" in said(capsys, "logs", "cartpole", "--follow", code=3)


def test_logs_of_what_serves_are_those_of_the_head_pod(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no head pod" in said(capsys, "logs", "cartpole", "--serve", code=3)
    for cluster in ("cartpole-ab1cd", "cartpole-two-ab1cd"):
        place.kube.put("pods", pod(f"{cluster}-head", {"ray.io/node-type": "head", "ray.io/cluster": cluster}))
        place.kube.logs[f"{cluster}-head"] = f"head of {cluster}\n"
    assert said(capsys, "logs", "cartpole", "--serve") == "head of cartpole-ab1cd\n"


# What is written.


def test_a_request_is_an_annotation_with_an_id_the_caller_and_the_time(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    canary.kube.user = "alice"
    assert "revision 2 is promoted" in said(capsys, "promote", "cartpole")
    asked = canary.asked("promote")
    assert (asked["user"], asked["revision"]) == ("alice", 2)
    assert len(asked["id"]) == 36
    assert asked["time"].endswith("Z")
    assert canary.kube.managers == ["policymodel-cli"]


def test_where_the_api_server_does_not_tell_who_asks_it_is_the_user_of_the_kubeconfig(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "retrain", "cartpole")
    assert place.asked("retrain")["user"] == "fake"


def test_a_promotion_that_is_waited_for_ends_when_every_replica_serves(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(said(capsys, "promote", "cartpole", "--wait", "-o", "json"))
    assert (told["verb"], told["changed"], told["reached"]) == ("promote", True, True)
    assert canary.world.status["serving"]["revision"] == 2
    assert canary.world.status["lastHandledRequests"]["promote"] == told["requestId"]


def test_an_abort_brings_every_session_back(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "abort", "cartpole", "--wait")
    assert canary.world.status["serving"]["revision"] == 1
    assert "candidate" not in canary.world.status
    assert "is over already" in said(capsys, "abort", "cartpole", code=1)


def test_a_revision_that_stayed_back_can_be_promoted(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "abort", "cartpole", "--wait")
    said(capsys, "promote", "cartpole", "--revision", "2", "--wait")
    assert canary.world.status["serving"]["revision"] == 2


@pytest.mark.parametrize("verb", ["promote", "abort"])
def test_what_is_not_being_rolled_out_is_neither_promoted_nor_aborted(place: Place, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert f"there is no rollout to {verb}: revision 1 serves" in said(capsys, verb, "cartpole", code=1)
    assert place.kube.managers == []
    place.edit(training__seed=2, **CANARY)
    place.until_step(1)
    assert "revision 1 is not being rolled out" in said(capsys, verb, "cartpole", "--revision", "1", code=1)


def test_what_is_asked_of_a_rollout_while_kuberay_switches_clusters_is_told_to_wait(
    canary: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    canary.edit(training__seed=2, serving__image="mine:2", **CANARY)
    canary.world.reconcile()
    canary.tell()
    for verb in ("promote", "abort"):
        assert cli.main((verb, "cartpole")) == 0
        assert "KubeRay prepares a second cluster: this waits until it has switched" in "".join(capsys.readouterr())


def test_a_request_that_the_operator_refuses_ends_the_wait_with_1(
    canary: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(_: float) -> None:
        canary.world.status["lastHandledRequests"] = {"abort": canary.asked("abort")["id"]}
        canary.world.annotations = canary.found["metadata"]["annotations"]
        canary.tell()

    monkeypatch.setattr(commands.time, "sleep", handle)
    said(capsys, "abort", "cartpole", "--wait", code=1)


def test_undo_goes_back_to_the_revision_before_and_unpin_forward_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.edit(training__seed=2)
    place.settle()
    assert "back from revision 2 to revision 1" in said(capsys, "undo", "cartpole", "--wait")
    assert place.found["spec"]["servedRevision"] == 1
    assert place.world.status["serving"]["revision"] == 1
    assert "is pinned already" in said(capsys, "pin", "cartpole", "1", "--wait")
    said(capsys, "unpin", "cartpole", "--wait")
    assert "servedRevision" not in place.found["spec"]
    assert place.world.status["serving"]["revision"] == 2
    assert place.kube.managers == ["policymodel-cli"] * 2
    assert said(capsys, "unpin", "cartpole") == "default/cartpole: no revision is pinned\n"
    assert len(place.kube.managers) == 2


def test_undo_after_a_revert_goes_to_the_newer_revision_that_served_before(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.edit(training__seed=2)
    place.settle()
    place.edit()
    place.settle()
    assert place.world.status["serving"]["revision"] == 1
    assert "back from revision 1 to revision 2" in said(capsys, "undo", "cartpole")


def test_undo_passes_over_a_revision_that_was_dropped_on_its_way(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    canary.edit(training__seed=4)
    canary.settle()
    assert canary.world.status["serving"]["revision"] == 3
    assert "back from revision 3 to revision 1" in said(capsys, "undo", "cartpole")


def test_undo_in_the_middle_of_a_rollout_says_what_aborts_it(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "policymodel abort cartpole" in said(capsys, "undo", "cartpole", code=1)
    assert "revision 1 is pinned" in said(capsys, "undo", "cartpole", "--to", "1")


def test_what_was_pruned_is_shown_and_is_neither_gone_back_to_nor_pinned_nor_approved(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (2, 6):
        place.edit(training__seed=seed, storage__keepRevisions=2)
        place.settle()
    first, second, third = said(capsys, "history", "cartpole").splitlines()[1:]
    assert (first.endswith("   pruned"), second.endswith("pruned"), third.endswith("   serves")) == (True, False, True)
    assert "revision       1, pruned" in said(capsys, "history", "cartpole", "--revision", "1")
    for words in (("undo", "cartpole", "--to", "1"), ("pin", "cartpole", "1"), ("approve", "cartpole", "--revision", "1")):
        assert "revision 1 was pruned (spec.storage.keepRevisions); there are: 2 and 3" in said(capsys, *words, code=3)
    assert "back from revision 3 to revision 2" in said(capsys, "undo", "cartpole", "--wait")
    assert "no revision beside 2 has served" not in said(capsys, "undo", "cartpole")


def test_what_is_asked_of_a_rollout_while_a_second_cluster_is_prepared_is_told_to_wait(
    canary: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    canary.world.condition("Ready").update(reason="SwitchingCluster")
    canary.tell()
    for verb in ("promote", "abort"):
        assert cli.main((verb, "cartpole")) == 0
        assert "KubeRay prepares a second cluster: this waits" in "".join(capsys.readouterr())


def test_there_is_nothing_to_undo_where_one_revision_is_all_there_is(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no revision beside 1 has served" in said(capsys, "undo", "cartpole", code=1)


def test_a_policy_that_failed_its_gate_is_not_pinned_but_can_be_approved(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.kube.user = "alice"
    place.edit(training__seed=3)
    place.settle()
    assert "has not passed the gate" in said(capsys, "pin", "cartpole", "2", code=1)
    assert "the gate said Fail" in said(capsys, "approve", "cartpole", "--revision", "2", "--wait")
    assert place.world.status["serving"]["revision"] == 2
    assert place.found["status"]["revisions"][1]["approval"]["user"] == "alice"
    assert "approved already, by alice" in said(capsys, "approve", "cartpole", "--revision", "2")
    assert "there is no revision 7; there are: 1 and 2" in said(capsys, "approve", "cartpole", "--revision", "7", code=3)


def test_the_approval_of_a_revision_of_another_spec_is_told_what_serves_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.edit(training__seed=3)
    place.settle()
    place.edit(training__seed=2)
    place.settle()
    assert cli.main(["approve", "cartpole", "--revision", "2"]) == 0
    assert "to serve it, policymodel pin cartpole 2" in capsys.readouterr().err


def test_a_retraining_that_the_gate_lets_through_is_waited_for(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.edit(training__seed=1)
    place.settle()
    said(capsys, "retrain", "cartpole", "--wait", "--timeout", "10m")
    assert place.world.status["serving"]["revision"] == 3


def test_a_retraining_that_fails_its_gate_ends_the_wait_with_1(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert "GateFailed" in said(capsys, "retrain", "cartpole", "--wait", code=1)


def test_a_wait_ends_at_its_timeout(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.time, "sleep", lambda _: None)
    assert "--timeout: it has not come to that" in said(capsys, "retrain", "cartpole", "--wait", "--timeout", "0s", code=1)


def test_a_pause_lets_requests_wait_and_a_resume_lets_them_through(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "pause", "cartpole")
    canary.get_on()
    assert "it is paused already" in said(capsys, "pause", "cartpole")
    assert "nothing was written" in said(capsys, "promote", "cartpole", "--wait", code=1)
    said(capsys, "promote", "cartpole")
    for _ in range(3):
        canary.get_on()
    assert canary.world.status["candidate"]["weight"] == 10
    assert "promote of revision 2 by fake" in said(capsys, "status", "cartpole")
    assert cli.main(["resume", "cartpole", "--wait"]) == 0
    assert "promote, asked for by fake, is seen to now" in capsys.readouterr().err
    assert canary.world.status["serving"]["revision"] == 2


def test_a_request_that_nobody_has_seen_to_yet_is_not_replaced_in_silence(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "retrain", "cartpole")
    first = place.asked("retrain")["id"]
    assert cli.main(["retrain", "cartpole"]) == 0
    assert f"the request {first} of fake" in capsys.readouterr().err


def test_what_is_asked_for_beside_a_pin_waits_for_nothing_in_silence(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "pin", "cartpole", "1", "--wait")
    text = said(capsys, "retrain", "cartpole", "--wait", code=1)
    assert "revision 1 is pinned, so no other is served until policymodel unpin cartpole; nothing was written" in text
    assert cli.main(["retrain", "cartpole"]) == 0
    assert "note: revision 1 is pinned" in capsys.readouterr().err


# What goes wrong.


def test_a_name_that_is_not_there_ends_with_3(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", "cart"], ["promote", "cart"], ["act", "cart", "[0]"]):
        assert "there is no PolicyModel cart in the namespace default" in said(capsys, *words, code=3)
    assert "in the namespace other" in said(capsys, "status", "cartpole", "-n", "other", code=3)


def test_a_right_that_is_lacking_ends_with_4_and_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.kube.forbidden = {"policymodels"}
    text = said(capsys, "status", "cartpole", code=4)
    assert "lacks the verb get on policymodels.policymodel.dev in the namespace default" in text
    place.kube.forbidden = {"pods"}
    assert "lacks the verb list on pods" in said(capsys, "logs", "cartpole", code=4)


def test_a_cluster_that_is_not_reached_ends_with_5(kube: Kube, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (tmp_path / "kubeconfig").read_text()
    away = tmp_path / "away"
    away.write_text(config.replace("127.0.0.1:", "127.0.0.1:1#"))
    assert "no cluster" in said(capsys, "status", "cartpole", "--kubeconfig", str(away), code=5)
    assert "no cluster" in said(capsys, "status", "cartpole", "--kubeconfig", str(tmp_path / "none"), code=5)


def test_a_context_that_is_not_there_ends_with_2(kube: Kube, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no context prod" in said(capsys, "status", "cartpole", "--context", "prod", code=2)


def test_the_namespace_is_that_of_the_context_unless_one_is_named(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.write_text((tmp_path / "kubeconfig").read_text().replace("user: fake\n", "user: fake\n    namespace: theirs\n", 1))
    assert "in the namespace theirs" in said(capsys, "status", "cartpole", "--kubeconfig", str(own), "--context", "fake", code=3)
    assert "default/cartpole" in said(capsys, "status", "cartpole", "--kubeconfig", str(own), "-n", "default")


@pytest.mark.parametrize(
    "words", [["pin", "cartpole"], ["approve", "cartpole"], ["pin", "cartpole", "0"], ["promote", "cartpole", "--timeout", "soon"]]
)
def test_wrong_flags_end_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_the_role_of_the_page_allows_every_verb_and_no_more(canary: Place, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent.parent / "docs/cli.md").read_text()
    role = next(yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S))
    allowed = {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}
    run = canary.world.status["training"]["run"]
    canary.kube.put("pods", pod("new", {names.LABEL_NAME: "cartpole", names.LABEL_ROLE: "train", names.LABEL_RUN: run}))
    canary.kube.logs["new"] = ""
    canary.kube.rights.clear()
    for verb in ("status", "history", "logs", "promote", "abort", "pause", "resume", "retrain", "unpin"):
        said(capsys, verb, "cartpole")
    said(capsys, "approve", "cartpole", "--revision", "1")
    said(capsys, "undo", "cartpole", "--to", "1")
    # Everybody may ask who they are.
    assert canary.kube.rights - {("create", "selfsubjectreviews")} == allowed


# What is asked of a policy.


@pytest.fixture
def policy() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A policy over HTTP that pushes the cart to where its pole leans, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "host": self.headers["Host"]})
            is_observation = isinstance(body.get("observation"), list)
            told = (
                {"action": int(body["observation"][2] > 0)}
                if is_observation
                else {"title": "Observation refused", "pointer": "/observation"}
            )
            text = json.dumps({"counted": True} if self.path.endswith("rewards") else told).encode()
            self.send_response(200 if is_observation or self.path.endswith("rewards") else 422)
            for header, value in {"Content-Length": str(len(text)), "x-policy-digest": "sha256:ab", "x-policy-revision": "1"}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cartpole-ppo", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_act_asks_the_policy_and_says_which_revision_answered(place: Place, policy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url, asked = policy
    assert said(capsys, "act", "cartpole", "[0, 0, 1, 0]", "--url", url) == "1   by revision 1 (sha256:ab)\n"
    told = json.loads(said(capsys, "act", "cartpole", "--url", url, "--explore", "--seed", "3", "-o", "json", "[0, 0, -1, 0]"))
    assert told == {"action": 0, "digest": "sha256:ab", "revision": 1}
    assert asked[0]["host"] == "cartpole.localhost"
    assert (asked[1]["explore"], asked[1]["seed"]) == (True, 3)


def test_act_says_what_is_wrong_with_an_observation(place: Place, policy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "422: Observation refused /observation" in said(capsys, "act", "cartpole", "1", "--url", policy[0], code=1)
    assert "is not JSON" in said(capsys, "act", "cartpole", "[0", "--url", policy[0], code=2)


def test_act_says_how_a_policy_is_reached_that_is_not(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "act", "cartpole", "[0]", "--url", "http://127.0.0.1:1/cartpole-ppo", code=5)
    assert "kubectl port-forward service/cartpole-serve-svc 8000" in text


def test_play_plays_episodes_and_tells_their_returns(place: Place, policy: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", "cartpole", "--url", policy[0], "--episodes", "2", "--seed", "0"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["episode 1", "episode 2", "mean return over 2 episodes"]
    assert cli.main(["play", "cartpole", "--url", policy[0], "-o", "json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["meanReturn"] == told["returns"][0] > 10


def test_play_ends_with_1_where_the_policy_is_not_reached(place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(verb_play, "_COMMAND", ("-c", "import sys; print('no step'); sys.exit(3)"))
    assert cli.main(["play", "cartpole", "--url", "http://127.0.0.1:1/x"]) == 1
    assert "port-forward" in capfd.readouterr().err


@pytest.mark.parametrize("environment", [{"entryPoint": "acme.games:Pong"}, {"id": "acme.games:Pong-v0"}])
def test_play_runs_no_code_that_the_resource_names_unless_it_is_allowed(
    place: Place, capsys: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    place.kube.change("policymodels", "cartpole", lambda found: found["spec"].update(environment=environment))
    assert "--entry-point-prefix acme.games" in said(capsys, "play", "cartpole", "--url", "http://127.0.0.1:1/x", code=2)


def test_play_says_what_has_to_be_installed(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    find: Callable[..., Any] = verb_play.importlib.util.find_spec
    monkeypatch.setattr(verb_play.importlib.util, "find_spec", lambda name: None if name == "gymnasium" else find(name))
    assert "gymnasium is not installed here" in said(capsys, "play", "cartpole", code=2)
