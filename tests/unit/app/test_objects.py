"""Storage in a bucket, against an S3 server that answers 503, forgets keys and holds torn objects."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.s3 import BUCKET, PYTHON, S3, s3_server

from app import bundle, objects
from app.bundle import BundleRefused, held_bundle, published_bundle, read_bundle
from app.errors import RetryableError
from app.storage import Storage, children, open_storage, read_json, storage_faults, write_aside
from app.training.checkpoints import Attempts, RunState, known_attempts, restored_state, write_attempts, write_checkpoint
from app.training.stop import Point

if not PYTHON.exists() and not os.environ.get("CI"):
    pytest.skip("there is no S3 server; `make .venv-s3/.installed` installs it", allow_module_level=True)

FACTS = {"environment": {"id": "CartPole-v1"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bundle.tempfile, "tempdir", str(tmp_path))
    objects._store.cache_clear()
    yield server
    server.take("first")
    server.hand_out("first")
    server.answer_503(False)
    objects._store.cache_clear()


@pytest.fixture
def storage(s3: S3, tmp_path: Path) -> Storage:
    return open_storage(f"s3://{BUCKET}/all/{tmp_path.name}/default/cartpole")


def hexed(digest: str) -> str:
    return digest.removeprefix("sha256:")


def test_a_bundle_is_published_and_read_as_on_a_disk(storage: Storage) -> None:
    digest = published_bundle(storage, FACTS, b"model")
    assert published_bundle(storage, FACTS, b"model") == digest
    assert storage.bundle_uri(digest) == str(storage.bundles() / hexed(digest))
    assert read_bundle(storage.bundles() / hexed(digest), digest).model == b"model"
    assert children(storage.bundles()) == [hexed(digest)]


def test_a_large_model_goes_in_parts(storage: Storage) -> None:
    model = os.urandom(12 * 1024 * 1024)
    digest = published_bundle(storage, FACTS, model)
    assert read_bundle(storage.bundles() / hexed(digest), digest).model == model


def test_what_was_damaged_is_refused(storage: Storage) -> None:
    digest = published_bundle(storage, FACTS, b"model")
    write_aside(storage.bundles() / hexed(digest) / "policy.onnx", b"other")
    with pytest.raises(BundleRefused) as refused:
        read_bundle(storage.bundles() / hexed(digest), digest)
    assert refused.value.reason == "DigestMismatch"


def test_a_bundle_without_its_manifest_is_missing_and_is_completed(storage: Storage) -> None:
    digest = published_bundle(storage, FACTS, b"model")
    place = storage.bundles() / hexed(digest)
    place.remove(["manifest.json"])
    with pytest.raises(BundleRefused) as refused:
        read_bundle(place, digest)
    assert refused.value.reason == "Missing"
    assert published_bundle(storage, FACTS, b"model") == digest
    assert read_bundle(place, digest).model == b"model"


def test_a_replica_keeps_what_it_has_fetched_and_checks_it(storage: Storage, tmp_path: Path) -> None:
    digest = published_bundle(storage, FACTS, b"model")
    place = storage.bundles() / hexed(digest)
    held_bundle(place, digest)
    place.remove(["policy.onnx", "manifest.json"])
    assert held_bundle(place, digest).model == b"model"
    (tmp_path / "policymodel-bundles" / hexed(digest) / "policy.onnx").write_bytes(b"bad")
    with pytest.raises(BundleRefused) as refused:
        held_bundle(place, digest)
    assert refused.value.reason == "Missing"


def test_the_cache_of_a_replica_keeps_the_newest_bundles(storage: Storage, tmp_path: Path) -> None:
    for count in range(bundle.BUNDLES_KEPT + 2):
        digest = published_bundle(storage, FACTS, b"model %d" % count)
        held_bundle(storage.bundles() / hexed(digest), digest)
    kept = {path.name for path in (tmp_path / "policymodel-bundles").iterdir()}
    assert len(kept) == bundle.BUNDLES_KEPT
    assert hexed(digest) in kept


def saved(content: bytes) -> Callable[[Path], None]:
    def save(algorithm: Path) -> None:
        (algorithm / "deep").mkdir(parents=True)
        (algorithm / "deep" / "weights").write_bytes(content)

    return save


def restored(storage: Storage) -> tuple[RunState | None, list[bytes]]:
    given: list[bytes] = []
    state = restored_state(storage.run("r1") / "checkpoints", lambda path: given.append((path / "deep" / "weights").read_bytes()))
    return state, given


def state(iteration: int) -> RunState:
    return RunState([Point(iteration, 100, 1, 2.0, 2.0)], 1.0)


def test_checkpoints_are_kept_read_and_passed_over_as_on_a_disk(storage: Storage) -> None:
    checkpoints = storage.run("r1") / "checkpoints"
    for iteration in (5, 10, 15):
        write_checkpoint(checkpoints, state(iteration), saved(b"%d" % iteration))
    assert children(checkpoints) == ["00000010", "00000015"]
    assert restored(storage) == (state(15), [b"15"])
    write_aside(checkpoints / "00000015" / "algorithm" / "deep" / "weights", b"1")
    assert restored(storage) == (state(10), [b"10"])
    assert children(checkpoints) == ["00000010"]


def test_records_are_read_as_they_were_written(storage: Storage) -> None:
    assert read_json(storage.evaluation("e1")) is None
    write_aside(storage.evaluation("e1"), b'{"a": 1}')
    assert read_json(storage.evaluation("e1")) == {"a": 1}
    write_attempts(storage.run("r1"), Attempts(2, 3.5))
    assert known_attempts(storage.run("r1")) == Attempts(2, 3.5)


def test_a_store_that_answers_503_in_the_middle_of_a_checkpoint_delays_it_and_no_more(storage: Storage, s3: S3) -> None:
    checkpoints = storage.run("r1") / "checkpoints"
    write_checkpoint(checkpoints, state(5), saved(b"5"))
    back = threading.Timer(4, s3.answer_503, [False])

    def save(algorithm: Path) -> None:
        saved(b"10")(algorithm)
        s3.answer_503(True)
        back.start()

    write_checkpoint(checkpoints, state(10), save)
    back.join()
    assert restored(storage) == (state(10), [b"10"])


def test_a_store_that_stays_away_fails_the_attempt_and_harms_nothing(
    storage: Storage, s3: S3, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    digest = published_bundle(storage, FACTS, b"model")
    monkeypatch.setattr(objects, "GONE_S", 1)
    objects._store.cache_clear()
    s3.answer_503(True)
    with pytest.raises(RetryableError) as failed, storage_faults():
        published_bundle(storage, FACTS, b"another")
    assert failed.value.reason == "StorageUnavailable"
    with pytest.raises(BundleRefused) as refused:
        read_bundle(storage.bundles() / hexed(digest), digest)
    assert refused.value.reason == "Unreadable"
    s3.answer_503(False)
    assert children(storage.bundles()) == [hexed(digest)]
    assert "s%cret" not in capfd.readouterr().err + failed.value.message + refused.value.message


def test_keys_may_be_exchanged_while_it_runs(storage: Storage, s3: S3) -> None:
    write_aside(storage.evaluation("e1"), b"{}")
    s3.hand_out("second")
    s3.take("second")
    write_aside(storage.evaluation("e2"), b"{}")
    assert read_json(storage.evaluation("e2")) == {}


def test_keys_that_are_not_taken_are_told_and_harm_nothing(storage: Storage, s3: S3) -> None:
    s3.take("another")
    with pytest.raises(RetryableError) as failed, storage_faults():
        write_aside(storage.evaluation("e1"), b"{}")
    assert str(storage.evaluation("e1")) in failed.value.message


@pytest.mark.full
def test_a_run_is_trained_evaluated_and_said_again_from_a_bucket(storage: Storage, s3: S3, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"id": "CartPole-v1"})
    assert done.code == 0, done.stderr
    result = done.last["result"]
    assert result["uri"] == storage.bundle_uri(result["digest"])
    assert trained(storage, {"id": "CartPole-v1"}).lines == [done.last]
