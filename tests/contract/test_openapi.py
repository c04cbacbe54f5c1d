"""The server keeps what its OpenAPI document promises, whatever is sent: no 5xx, and no answer that is not documented."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fakes.policies import Desk, nested, plain, recurrent
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.serving.asgi import PolicyApp

ROUTE = "/route"
EXAMPLES = 60


def document(desk: Desk) -> Any:
    """The document of a policy, with the app behind it as Serve mounts it."""

    async def status() -> dict[str, Any]:
        return {}

    app = PolicyApp(desk, "cartpole", status)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": ROUTE}, receive, send)

    return schemathesis.openapi.from_asgi(f"{ROUTE}/openapi.json", mounted)


DESKS = {
    "plain": Desk(plain()),
    "strict": Desk(plain(), rejects_out_of_bounds=True),
    "nested": Desk(nested()),
    "recurrent": Desk(recurrent()),
}
KEPT = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def operations() -> list[Any]:
    found = []
    for name, desk in DESKS.items():
        for operation in document(desk).get_all_operations():
            found.append(pytest.param(operation.ok(), id=f"{name} {operation.ok().label}"))
    return found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("operation", operations())
def test_every_answer_is_a_documented_one(operation: Any, mode: GenerationMode) -> None:
    if mode is GenerationMode.NEGATIVE and operation.method == "get":
        return

    @KEPT
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        # Which tensors a model takes, its metadata tell and OpenAPI cannot; nor that two lists have one length.
        unknowable = [positive_data_acceptance, negative_data_rejection] if operation.path.endswith("/infer") else []
        if isinstance(case.body, dict) and {"states", "action_masks"} & set(case.body):
            unknowable = [positive_data_acceptance]
        case.validate_response(case.call(), excluded_checks=unknowable)

    answered()
