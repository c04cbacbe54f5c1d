"""The HTTP face and the change of policies, without Ray."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from app.serving.asgi import BODY_BYTES, PolicyApp
from app.serving.replica import PolicyHolder
from app.storage import Storage

OBSERVATION = [0.1, 0.2, 0.3, 0.4]


def answered(holder: PolicyHolder, *requests: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> list[httpx.Response]:
    """What the app answers to requests, one after another."""

    async def status() -> dict[str, Any]:
        return holder.row()

    async def all_answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(PolicyApp(holder, "cartpole", status), root_path="/route")
        async with httpx.AsyncClient(transport=transport, base_url="http://policy") as client:
            return [await request(client) for request in requests]

    return asyncio.run(all_answers())


def posted(body: bytes | str) -> Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]:
    return lambda client: client.post("/route", content=body)


def wanted(storage: Storage, digest: str, revision: int = 1) -> dict[str, Any]:
    return {"serving": {"uri": storage.bundle_uri(digest), "digest": digest, "revision": revision}}


def holder_of(*user_configs: dict[str, Any]) -> PolicyHolder:
    """A holder that was given these configs, each after the one before was tried."""

    async def configured() -> PolicyHolder:
        holder = PolicyHolder()
        for user_config in user_configs:
            holder.want(user_config)
            for _ in range(500):
                await asyncio.sleep(0.002)
                if holder.is_settled:
                    break
        holder.close()
        return holder

    return asyncio.run(configured())


def test_one_observation_gets_one_action_with_its_digest_and_revision(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest = made_bundle()
    (response,) = answered(holder_of(wanted(storage, digest, 7)), posted(json.dumps({"observation": OBSERVATION})))
    assert (response.status_code, list(response.json())) == (200, ["action"])
    assert response.headers["x-policy-digest"] == digest
    assert response.headers["x-policy-revision"] == "7"
    assert int(response.headers["content-length"]) == len(response.content)


def test_many_observations_get_as_many_actions(storage: Storage, made_bundle: Callable[..., str]) -> None:
    holder = holder_of(wanted(storage, made_bundle()))
    (response,) = answered(holder, posted(json.dumps({"observations": [OBSERVATION] * 3})))
    assert len(response.json()["actions"]) == 3


def test_get_with_a_body_acts_and_any_content_type_is_read(storage: Storage, made_bundle: Callable[..., str]) -> None:
    holder = holder_of(wanted(storage, made_bundle()))
    body = json.dumps({"observation": OBSERVATION})
    got, typed = answered(
        holder,
        lambda client: client.request("GET", "/route", content=body),
        lambda client: client.post("/route/", content=body, headers={"content-type": "application/x-www-form-urlencoded"}),
    )
    assert got.json() == typed.json()


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ("", 400, None),
        ("{", 400, None),
        ("[" * 100_000, 400, None),
        ("[]", 422, ""),
        ("{}", 422, ""),
        ('{"observation": [1, 2, 3, 4], "secret": 1}', 422, ""),
        ('{"observation": [1, 2, 3]}', 422, "/observation"),
        ('{"observation": [1, 2, "x", 4]}', 422, "/observation/2"),
        ('{"observation": [1, 2, true, 4]}', 422, "/observation/2"),
        ('{"observation": [1, 2, NaN, 4]}', 422, "/observation/2"),
        ('{"observation": [1, 2, 3, -Infinity]}', 422, "/observation/3"),
        ('{"observation": [1, 1e400, 3, 4]}', 422, "/observation/1"),
        ('{"observation": [1, 1e39, 3, 4]}', 422, "/observation/1"),
        ('{"observation": [1' + "0" * 400 + ", 2, 3, 4]}", 422, "/observation/0"),
        ('{"observation": [[1], 2, 3, 4]}', 422, "/observation/0"),
        ('{"observation": "\\ud800"}', 422, "/observation"),
        ('{"observation": null}', 422, "/observation"),
        ('{"observations": []}', 422, "/observations"),
        ('{"observations": 3}', 422, "/observations"),
        ('{"observations": [[1, 2, 3, 4], [1, 2, 3]]}', 422, "/observations/1"),
        ('{"observations": [[1, 2, 3, 4], [1, 2, 3, null]]}', 422, "/observations/1/3"),
        (b"\xff\xfe\x00", 400, None),
        ("x" * (BODY_BYTES + 1), 413, None),
    ],
)
def test_bad_bodies_are_refused_by_their_place_and_not_echoed(
    storage: Storage, made_bundle: Callable[..., str], body: bytes | str, status: int, pointer: str | None
) -> None:
    (response,) = answered(holder_of(wanted(storage, made_bundle())), posted(body))
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem.get("pointer")) == (status, status, pointer)
    assert "secret" not in response.text


def test_other_paths_and_methods_are_refused(storage: Storage, made_bundle: Callable[..., str]) -> None:
    holder = holder_of(wanted(storage, made_bundle()))
    missing, put, health = answered(
        holder, lambda c: c.get("/route/nothing"), lambda c: c.put("/route", content="{}"), lambda c: c.get("/route/healthz")
    )
    assert (missing.status_code, put.status_code, health.status_code) == (404, 405, 200)
    assert put.headers["allow"] == "POST, GET"


def spoken_to(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What the app sends on one ASGI connection."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def status() -> dict[str, Any]:
        return {}

    asyncio.run(PolicyApp(PolicyHolder(), "cartpole", status)(scope, receive, send))
    return sent


def test_a_websocket_is_refused_and_not_a_fault() -> None:
    async def connect() -> Any:
        return {"type": "websocket.connect"}

    assert spoken_to({"type": "websocket", "path": "/", "headers": []}, connect) == [{"type": "websocket.close"}]


def test_without_a_policy_the_answer_is_503_and_when_to_try_again() -> None:
    (response,) = answered(holder_of({}), posted(json.dumps({"observation": OBSERVATION})))
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_an_observation_out_of_bounds_is_answered_and_counted_or_refused(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest, outside = made_bundle(), json.dumps({"observation": [5.0, 0, 0, 0]})
    lenient = holder_of({"outOfBounds": "Answer", **wanted(storage, digest)})
    strict = holder_of({"outOfBounds": "Reject", **wanted(storage, digest)})
    assert answered(lenient, posted(outside))[0].status_code == 200
    assert answered(strict, posted(outside))[0].json()["pointer"] == "/observation"
    assert (lenient.row()["outOfBounds"], strict.row()["outOfBounds"]) == (1, 1)


def test_a_new_policy_replaces_the_old_one(storage: Storage, made_bundle: Callable[..., str]) -> None:
    old, new = made_bundle(0), made_bundle(1)
    row = holder_of(wanted(storage, old, 1), wanted(storage, new, 2)).row()
    assert (row["serving"], row["error"]) == ({"digest": new, "revision": 2}, None)


def test_an_episode_ends_with_the_policy_that_it_began_with(storage: Storage, made_bundle: Callable[..., str]) -> None:
    old, new = made_bundle(0), made_bundle(1)
    holder = holder_of(wanted(storage, old, 1), wanted(storage, new, 2))
    body = json.dumps({"observation": OBSERVATION})
    pinned, other, unknown = answered(
        holder,
        lambda client: client.post("/route", content=body, headers={"x-policy-pin": old}),
        lambda client: client.post("/route", content=body),
        lambda client: client.post("/route", content=body, headers={"x-policy-pin": "sha256:" + "0" * 64}),
    )
    assert [answer.headers["x-policy-digest"] for answer in (pinned, other, unknown)] == [old, new, new]
    drained = holder_of({"drainSeconds": 0, **wanted(storage, old, 1)}, {"drainSeconds": 0, **wanted(storage, new, 2)})
    (late,) = answered(drained, lambda client: client.post("/route", content=body, headers={"x-policy-pin": old}))
    assert late.headers["x-policy-digest"] == new


def test_a_config_without_serving_keeps_what_is_held(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest = made_bundle()
    assert holder_of(wanted(storage, digest), {"outOfBounds": "Answer"}).row()["serving"]["digest"] == digest


def test_a_revert_to_what_serves_clears_the_error(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest = made_bundle()
    bad = wanted(storage, "sha256:" + "0" * 64, 2)
    row = holder_of(wanted(storage, digest), bad, wanted(storage, digest)).row()
    assert (row["serving"], row["error"]) == ({"digest": digest, "revision": 1}, None)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda storage, made: "sha256:" + "0" * 64, "Missing"),
        (lambda storage, made: "sha256:../../etc", "InvalidStorage"),
        (lambda storage, made: _spoiled(storage, made(1), "policy.onnx"), "DigestMismatch"),
        (lambda storage, made: _spoiled(storage, made(1), "manifest.json"), "DigestMismatch"),
        (lambda storage, made: made(1, golden_shift=0.01), "GoldenMismatch"),
    ],
)
def test_a_bundle_that_is_refused_is_told_and_the_old_one_stays(
    storage: Storage, made_bundle: Callable[..., str], spoil: Callable[..., str], reason: str
) -> None:
    digest = made_bundle(0)
    bad = spoil(storage, made_bundle)
    row = holder_of(wanted(storage, digest, 1), wanted(storage, bad, 2)).row()
    assert row["serving"] == {"digest": digest, "revision": 1}
    assert (row["error"]["digest"], row["error"]["reason"]) == (bad, reason)


def test_a_replica_stands_in_with_the_policy_of_another_and_tells_the_refusal(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest, missing = made_bundle(), "sha256:" + "0" * 64
    other = holder_of(wanted(storage, digest, 1)).held()
    assert other is not None
    new = holder_of(wanted(storage, missing, 2))
    assert asyncio.run(new.stand_in(other))
    row = new.row()
    assert row["serving"] == {"digest": digest, "revision": 1}
    assert row["error"]["digest"] == missing


def _spoiled(storage: Storage, digest: str, file: str) -> str:
    path = storage.bundles() / digest.removeprefix("sha256:") / file
    path.write_bytes(path.read_bytes() + b" ")
    return digest


def test_the_server_imports_neither_torch_nor_rllib_nor_gymnasium() -> None:
    program = (
        "import sys, app.serve, app.serving.deployment, app.serving.local_serve\n"
        "found = {'torch', 'gymnasium', 'ray.rllib', 'onnx', 'ray.tune'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
