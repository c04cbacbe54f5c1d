"""An episode that pins its policy ends with the policy that it began with, whatever is rolled out meanwhile; a rollback excepted."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from fakes.policies import linear_model, published
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.client_wire import Episode
from app.serving.replica import PolicyHolder
from app.storage import Storage, file_uri, open_storage

SESSIONS = 4
HAPPENINGS = {
    "ask": st.integers(0, SESSIONS - 1),
    "begin": st.integers(0, SESSIONS - 1),
    "try": st.sampled_from(["Canary", "Shadow"]),
    "step": st.integers(0, 99),
    "promote": st.none(),
    "replace": st.none(),
    "roll back": st.none(),
}
# Clients ask more often than policies change.
WORDS = st.sampled_from([*["ask"] * 15, *["begin"] * 5, *HAPPENINGS])
histories = st.lists(WORDS.flatmap(lambda word: st.tuples(st.just(word), HAPPENINGS[word])), min_size=40, max_size=80)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, list[str]]:
    storage = open_storage(file_uri(tmp_path_factory.mktemp("bundles")))
    return storage, [published(storage, linear_model(np.random.default_rng(i).normal(size=(4, 2)))) for i in range(6)]


class World:
    """A replica, and the clients of some episodes; told by the words above what happens."""

    def __init__(self, storage: Storage, digests: list[str]) -> None:
        self.holder = PolicyHolder("r1")
        self.storage = storage
        self.digests = digests
        self.serving, self.candidate = digests[:2]
        self.mode, self.weight = "Canary", 50
        self.episodes = [Episode(None) for _ in range(SESSIONS)]
        self.seen: list[set[str]] = [set() for _ in range(SESSIONS)]
        for i in range(SESSIONS):
            self.begin(i)

    def named(self, digest: str) -> dict[str, Any]:
        return {"uri": self.storage.bundle_uri(digest), "digest": digest, "revision": self.digests.index(digest)}

    async def tell(self) -> None:
        config: dict[str, Any] = {"serving": self.named(self.serving)}
        if self.candidate:
            config["candidate"] = {**self.named(self.candidate), "mode": self.mode, "weight": self.weight}
        self.holder.want(config)
        await self.holder.first_attempt()

    def begin(self, i: int) -> None:
        self.episodes[i].begin(None)
        self.seen[i] = set()

    def ask(self, i: int) -> None:
        # Every other client tells no session, only its pin: chance decides for the first answer, and for no further one.
        sent = {name: value for name, value in self.episodes[i].headers().items() if i % 2 == 0 or name == "x-policy-pin"}
        headers = [(name.encode(), value.encode()) for name, value in sent.items()]
        rollout = self.holder.rollout
        serving = self.holder.serving if rollout is None else rollout.chosen(headers)[0]
        self.episodes[i].saw(serving.policy.digest)
        self.seen[i].add(serving.policy.digest)
        assert len(self.seen[i]) == 1

    async def happen(self, what: str, how: Any) -> None:
        unused = [digest for digest in self.digests if digest not in (self.serving, self.candidate)]
        match what:
            case "ask":
                self.ask(how)
                return
            case "begin":
                self.begin(how)
                return
            case "try" if not self.candidate:
                self.candidate, self.mode = unused[0], how
            case "step":
                self.weight = how
            case "promote" if self.candidate:
                self.serving, self.candidate = self.candidate, ""
            case "replace" if not self.candidate:
                self.serving = unused[-1]
            case "roll back" if self.candidate:
                gone, self.candidate = self.candidate, ""
                # Their episodes may go on with another policy, which is what a rollback is for; that one they keep.
                for seen in self.seen:
                    seen.discard(gone)
        await self.tell()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, seed=st.integers(0, 2**32))
def test_an_episode_that_pins_sees_one_policy(bundles: tuple[Storage, list[str]], history: list[tuple[str, Any]], seed: int) -> None:
    random.seed(seed)  # Hypothesis would let chance fall alike in every example

    async def lived() -> None:
        world = World(*bundles)
        await world.tell()
        try:
            for what, how in history:
                await world.happen(what, how)
        finally:
            world.holder.close()

    asyncio.run(lived())
