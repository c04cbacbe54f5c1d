"""`policymodel report`: a page that stands for itself, from a cluster and from the state of a local run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fakes.kube import Kube
from fakes.world import World

from controller import cli
from controller.verbs import play as verb_play
from controller.verbs.report import BINS

STEPS = tuple((0.01 * step, 0.0, 0.002 * step, 0.0) for step in range(20))


def parsed(text: str) -> ElementTree.Element:
    """The page; it is well-formed but for the doctype and the tags that HTML leaves open."""
    assert text.startswith("<!doctype html>")
    return ElementTree.fromstring(
        text.removeprefix("<!doctype html>")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width">', "")
    )


def words(page: ElementTree.Element) -> str:
    return " ".join(page.itertext())


@pytest.fixture
def world() -> World:
    found = World()
    found.settle()
    found.edit(training__seed=2)
    found.settle()
    return found


@pytest.fixture
def state(world: World, tmp_path: Path) -> Path:
    """What `policymodel run` leaves: the status, and a bundle with its evaluation for each revision."""
    home = tmp_path / "state" / "default" / "cartpole"
    status = json.loads(json.dumps(world.status))
    for revision in status["revisions"]:
        bundle = home / "bundles" / revision["digest"].removeprefix("sha256:")
        bundle.mkdir(parents=True)
        revision["uri"] = bundle.as_uri()
        curve = [[1, 1024, None], [2, 2048, 20.5], [3, 3072, 475.25]]
        manifest = {"curve": curve, "environment": {"id": "CartPole-v1", "config": {}}, "parent": None}
        if revision["number"] == 2:
            manifest["parent"] = status["revisions"][0]["digest"]
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        rows = [{"seed": 1000 + index, "return": 480.0 + index, "length": 500} for index in range(BINS)]
        (home / "evaluations").mkdir(exist_ok=True)
        (home / "evaluations" / f"{revision['evaluation']['id']}.json").write_text(json.dumps({"rows": rows}))
    (home / "local").mkdir()
    (home / "local" / "status.json").write_text(json.dumps(status))
    return tmp_path / "state"


def in_cluster(kube: Kube, world: World, *logs: str | None, **more: str) -> None:
    """The training's pods, oldest first, each with its log, if it has one still; and with `evaluation` the pod that played it."""
    training, last = world.status["training"], world.status["revisions"][-1]
    labels = {"policymodel.dev/name": "cartpole", "policymodel.dev/role": "train", "policymodel.dev/run": training["run"]}
    metadata = {"name": "cartpole", "generation": world.generation}
    kube.put("policymodels", {"metadata": metadata, "spec": world.document["spec"], "status": json.loads(json.dumps(world.status))})
    pods = [(f"trainer-{9 - index}", labels, log) for index, log in enumerate(logs)]
    if "evaluation" in more:
        played = {"policymodel.dev/role": "evaluate", "policymodel.dev/evaluation": last["evaluation"]["id"]}
        pods.append(("player", labels | played, more["evaluation"]))
    for index, (name, labels_, log) in enumerate(pods):
        made = {"name": name, "labels": labels_, "creationTimestamp": f"2026-01-01T1{index}:00:00Z"}
        kube.put("pods", {"metadata": made, "status": {"phase": "Succeeded"}})
        if log is not None:
            kube.logs[name] = log


def line(iteration: int, mean: float | None) -> str:
    return json.dumps({"progress": {"iteration": iteration, "envSteps": 1024 * iteration, "episodeReturnMean": mean}}) + "\n"


def curve(page: ElementTree.Element) -> list[str]:
    """Its points, from left to right."""
    (found,) = page.iter("polyline")
    return found.get("points", "").split()


def test_a_page_of_a_local_run_has_the_curve_the_gate_the_histogram_and_the_lineage(
    state: Path, world: World, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "page.html"
    assert cli.main(["report", "cartpole", "--state", str(state), "--file", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    page = parsed(path.read_text())
    assert "default/cartpole, revision 2" in words(page)
    assert [figure.get("aria-label") for figure in page.iter("svg")] == [
        "mean return of recent episodes, exploring, over environment steps",
        "returns of 20 episodes, and their mean",
    ]
    assert len(list(page.iter("rect"))) == BINS
    assert "Pass" in words(page)
    rows = [[cell.text for cell in row] for row in page.findall(".//table")[-1]]
    assert [row[0] for row in rows] == ["Revision", "2", "1"]
    assert f"The training began with what revision 1, {world.status['revisions'][0]['digest']} had learnt." in words(page)


def test_a_page_brings_all_that_it_needs_and_runs_nothing(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    cli.main(["report", "cartpole", "--state", str(state), "--revision", "1", "--file", str(path)])
    text = path.read_text()
    assert "revision 1" in text
    assert "began with" not in text
    assert not any(word in text for word in ("<script", "<link", "src=", "href=", "http"))


def test_an_episode_of_cartpole_moves(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb_play, "observed_episode", lambda view, where, prefixes: STEPS)
    path = tmp_path / "page.html"
    assert cli.main(["report", "cartpole", "--state", str(state), "--episode", "--url", "http://x", "--file", str(path)]) == 0
    moves = [move.get("type") for move in parsed(path.read_text()).iter("animateTransform")]
    assert moves == ["translate", "rotate"]


def test_in_a_cluster_the_curve_is_that_of_the_log(kube: Kube, world: World, capsys: Any) -> None:
    in_cluster(kube, world, line(1, None) + line(2, 20.5) + line(3, 475.25))
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    page = parsed(capsys.readouterr().out)
    assert len(curve(page)) == 2
    assert "cannot be read from here" in words(page)
    assert "it begins at iteration" not in words(page)


def test_the_curve_of_several_attempts_is_that_of_all_their_logs(kube: Kube, world: World, capsys: Any) -> None:
    whole = "".join(line(iteration, 10.0 * iteration) for iteration in range(1, 7))
    in_cluster(kube, world, whole)
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    wanted = curve(parsed(capsys.readouterr().out))
    first = line(1, 10.0) + line(2, 20.0) + line(3, 999.0) + line(4, 999.0) + line(5, 999.0)[:30]
    in_cluster(kube, world, first, line(3, 30.0), line(3, 30.0) + line(4, 40.0) + line(5, 50.0) + line(6, 60.0))
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    page = parsed(capsys.readouterr().out)
    assert curve(page) == wanted
    assert "it begins at iteration" not in words(page)


def test_a_curve_whose_beginning_is_gone_says_so(kube: Kube, world: World, capsys: Any) -> None:
    in_cluster(kube, world, None, line(3, 30.0) + line(4, 40.0))
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    page = parsed(capsys.readouterr().out)
    assert len(curve(page)) == 2
    assert "Learning curve: it begins at iteration 3, because the log of what was before is gone" in words(page)


def test_the_histogram_is_of_the_returns_that_the_result_tells(kube: Kube, world: World, capsys: Any) -> None:
    last = world.status["revisions"][-1]

    def result(id_: str, returns: Any, digest: str = last["digest"]) -> str:
        return json.dumps({"result": {"digest": digest, "evaluation": {"id": id_, "returns": returns}}}) + "\n"

    wanted = result(last["evaluation"]["id"], [480.0, 500, 490.5])
    others = result("another", [1.0, 2.0]) + result(last["evaluation"]["id"], [1.0], "sha256:other") + '{"result": {"evaluation": 3}}\n'
    for logs, more in (((line(1, 9.0) + wanted,), {}), ((line(1, 9.0) + others,), {"evaluation": wanted})):
        in_cluster(kube, world, *logs, **more)
        assert cli.main(["report", "cartpole", "--file", "-"]) == 0
        page = parsed(capsys.readouterr().out)
        assert [figure.get("aria-label") for figure in page.iter("svg")] == ["returns of 3 episodes, and their mean"]
        assert "cannot be read from here" not in words(page)
    for wrong in (["480"], "480", [True, None]):
        in_cluster(kube, world, result(last["evaluation"]["id"], wrong), evaluation="")
        assert cli.main(["report", "cartpole", "--file", "-"]) == 0
        assert "cannot be read from here" in words(parsed(capsys.readouterr().out))


def test_of_a_search_the_curve_is_that_of_the_trial_that_was_published(kube: Kube, world: World, capsys: Any) -> None:
    def standings(*told: tuple[int, int, float | None]) -> str:
        trials = [{"trial": trial, "envSteps": steps, "episodeReturnMean": mean} for trial, steps, mean in told]
        return json.dumps({"progress": {"envSteps": 9, "episodeReturnMean": 9.0, "search": {"best": 1, "trials": trials}}}) + "\n"

    log = standings((1, 1024, 20.0), (2, 0, None)) + standings((1, 2048, 30.0), (2, 0, None))
    log += "".join(standings((1, 2048, 30.0), (2, 1024 * step, 10.0 * step)) for step in (1, 2, 3))
    world.status["revisions"][-1]["search"] = {"trial": 2, "trials": 2, "seed": 7, "config": {"lr": 0.1}}
    in_cluster(kube, world, log + '{"progress": {"search": 3}}\n')
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    assert len(curve(parsed(capsys.readouterr().out))) == 3


def test_without_a_pod_the_page_says_what_it_lacks(kube: Kube, world: World, capsys: Any) -> None:
    in_cluster(kube, world)
    assert cli.main(["report", "cartpole", "--revision", "1", "--file", "-"]) == 0
    assert "and they are gone" in words(parsed(capsys.readouterr().out))


def test_what_is_not_there_is_told(state: Path, capsys: Any) -> None:
    assert cli.main(["report", "other", "--state", str(state)]) == 3
    assert "--state" in capsys.readouterr().err
    assert cli.main(["report", "cartpole", "--state", str(state), "--revision", "9"]) == 3
    assert "there is no revision 9; there are: 1 and 2" in capsys.readouterr().err


def test_text_of_others_is_text(state: Path, tmp_path: Path) -> None:
    path = state / "default" / "cartpole" / "local" / "status.json"
    status = json.loads(path.read_text())
    status["revisions"][-1]["image"] = "<b>bold</b>"
    path.write_text(json.dumps(status))
    out = tmp_path / "page.html"
    cli.main(["report", "cartpole", "--state", str(state), "--file", str(out)])
    assert "&lt;b&gt;bold&lt;/b&gt;" in out.read_text()
