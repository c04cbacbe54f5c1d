"""The documents say what is so."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from app.serving import acting, description, meter, problem
from controller import schema

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def reasons() -> set[str]:
    """Every reason that the controller, a Job or a replica can give: the CamelCase words in their code."""
    words = set()
    jobs_and_replicas = [
        ROOT / f"app/{name}.py" for name in ("bundle", "policy", "evaluate", "storage", "training/export", "serving/trial")
    ]
    for module in [*(ROOT / "controller").glob("*.py"), *jobs_and_replicas]:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call):
                words |= {
                    argument.value for argument in node.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                }
    return {word for word in words if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)*", word)} - KINDS


KINDS = {
    *("Job", "Pod", "Ingress", "Event", "RayService", "RayCluster", "RayJob", "Node", "PersistentVolumeClaim"),
    *("True", "False", "Unknown", "Stored", "Failed", "Exposed", "Retained", "Warning", "Normal"),
    *("Gate", "Request", "Schedule", "Canary", "Direct", "Promoted"),
}


def test_every_reason_is_explained() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    explained = set(re.findall(r"`([A-Z][A-Za-z]+)`", page))
    assert len(reasons()) > 80
    assert not reasons() - explained


def test_the_reference_is_the_crd_s() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/reference.md").read_text() == module.page()


def test_the_readme_shows_the_example_as_it_is() -> None:
    shown = re.search(r"```yaml\n(.*?)```", README, re.S).group(1)
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "k8s/examples/policymodel.yaml").read_text())


PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_every_file_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for line in re.findall(r"(?:^    |`)make ([a-z][a-z0-9 -]*)", text, re.M) for word in line.split()}
    assert named <= targets
    for path in re.findall(r"`((?:app|controller|docs|helm|k8s|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_page_and_to_a_heading_of_it(page: str) -> None:
    for path, heading in re.findall(r"\]\((?!http)([\w./-]*)(?:#([\w-]+))?\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not heading or heading in headings(target.read_text()), f"{path}#{heading}"


def headings(page: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    found = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in re.findall(r"^#+ (.+)$", page, re.M))
    return {heading.strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_every_part_of_a_spec_that_is_shown_is_accepted(page: str) -> None:
    example = yaml.safe_load((ROOT / "k8s/examples/policymodel.yaml").read_text())
    for shown in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.S):
        part = schema.loaded(shown)
        if not part.keys() <= schema.schema()["properties"]["spec"]["properties"].keys():
            assert "PolicyModel" not in shown or part == example
            continue
        # Of a training what is not shown is as in the example; of all else there is only what is shown.
        training = {**example["spec"]["training"], **part.get("training", {})}
        schema.defaulted({**example, "spec": {**example["spec"], **part, "training": training}})


def test_the_page_of_the_server_tells_every_metric_every_error_and_every_path() -> None:
    page = (ROOT / "docs/serving.md").read_text()
    assert {f"ray_{name}" for name in meter.DESCRIPTIONS} == set(re.findall(r"`(ray_policymodel_\w+)", page))
    told = {int(status) for row in re.findall(r"^\| ([\d, ]+)(?:, with Retry-After)? \|", page, re.M) for status in row.split(",")}
    assert told == set(problem.TITLES)
    assert all(f"`<route>{path}`" in page for path in description.PATHS)
    assert {*acting.MEMBERS, *(name for names in acting.MEMBERS.values() for name in names)} <= set(re.findall(r"`(\w+)(?:: true)?`", page))


def test_every_field_that_the_readme_names_is_in_the_schema() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    for field in re.findall(r"\| `((?:training|gate|serving|storage)\.\w+)", README):
        assert f"`spec.{field}`" in reference, field
