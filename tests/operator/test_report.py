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
        (bundle / "manifest.json").write_text(json.dumps({"curve": curve, "environment": {"id": "CartPole-v1", "config": {}}}))
        rows = [{"seed": 1000 + index, "return": 480.0 + index, "length": 500} for index in range(BINS)]
        (home / "evaluations").mkdir(exist_ok=True)
        (home / "evaluations" / f"{revision['evaluation']['id']}.json").write_text(json.dumps({"rows": rows}))
    (home / "local").mkdir()
    (home / "local" / "status.json").write_text(json.dumps(status))
    return tmp_path / "state"


def in_cluster(kube: Kube, world: World, log: str) -> None:
    run = world.status["training"]["run"]
    labels = {"policymodel.dev/name": "cartpole", "policymodel.dev/role": "train", "policymodel.dev/run": run}
    metadata = {"name": "cartpole", "generation": world.generation}
    kube.put("policymodels", {"metadata": metadata, "spec": world.document["spec"], "status": json.loads(json.dumps(world.status))})
    if log:
        kube.put("pods", {"metadata": {"name": "trainer", "labels": labels}, "status": {"phase": "Succeeded"}})
        kube.logs["trainer"] = log


def test_a_page_of_a_local_run_has_the_curve_the_gate_the_histogram_and_the_lineage(state: Path, tmp_path: Path, capsys: Any) -> None:
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


def test_a_page_brings_all_that_it_needs_and_runs_nothing(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    cli.main(["report", "cartpole", "--state", str(state), "--revision", "1", "--file", str(path)])
    text = path.read_text()
    assert "revision 1" in text
    assert not any(word in text for word in ("<script", "<link", "src=", "href=", "http"))


def test_an_episode_of_cartpole_moves(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb_play, "observed_episode", lambda view, where, prefixes: STEPS)
    path = tmp_path / "page.html"
    assert cli.main(["report", "cartpole", "--state", str(state), "--episode", "--url", "http://x", "--file", str(path)]) == 0
    moves = [move.get("type") for move in parsed(path.read_text()).iter("animateTransform")]
    assert moves == ["translate", "rotate"]


def test_in_a_cluster_the_curve_is_that_of_the_log(kube: Kube, world: World, capsys: Any) -> None:
    points = [{"iteration": 1, "envSteps": 1024, "episodeReturnMean": None}, {"iteration": 2, "envSteps": 2048, "episodeReturnMean": 20.5}]
    points.append({"iteration": 3, "envSteps": 3072, "episodeReturnMean": 475.25})
    in_cluster(kube, world, "".join(json.dumps({"progress": point}) + "\n" for point in points))
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    page = parsed(capsys.readouterr().out)
    (line,) = page.iter("polyline")
    assert len(line.get("points", "").split()) == 2
    assert "cannot be read from here" in words(page)


def test_of_a_search_the_curve_is_that_of_the_trial_that_was_published(kube: Kube, world: World, capsys: Any) -> None:
    def line(*told: tuple[int, int, float | None]) -> str:
        trials = [{"trial": trial, "envSteps": steps, "episodeReturnMean": mean} for trial, steps, mean in told]
        return json.dumps({"progress": {"envSteps": 9, "episodeReturnMean": 9.0, "search": {"best": 1, "trials": trials}}}) + "\n"

    log = line((1, 1024, 20.0), (2, 0, None)) + line((1, 2048, 30.0), (2, 0, None))
    log += "".join(line((1, 2048, 30.0), (2, 1024 * step, 10.0 * step)) for step in (1, 2, 3))
    world.status["revisions"][-1]["search"] = {"trial": 2, "trials": 2, "seed": 7, "config": {"lr": 0.1}}
    in_cluster(kube, world, log + '{"progress": {"search": 3}}\n')
    assert cli.main(["report", "cartpole", "--file", "-"]) == 0
    (curve,) = parsed(capsys.readouterr().out).iter("polyline")
    assert len(curve.get("points", "").split()) == 3


def test_without_a_pod_the_page_says_what_it_lacks(kube: Kube, world: World, capsys: Any) -> None:
    in_cluster(kube, world, "")
    assert cli.main(["report", "cartpole", "--revision", "1", "--file", "-"]) == 0
    assert "and that is gone" in words(parsed(capsys.readouterr().out))


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
