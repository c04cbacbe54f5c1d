"""The ceiling of `make bench-serve` is our own handler, holding the policy that it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from app.storage import Storage
from benchmarks.serve.servers import asgi
from benchmarks.serve.targets import own_body


def test_the_handler_without_serve_answers_what_the_benchmark_asks(storage: Storage, made_bundle: Callable[..., str]) -> None:
    digest = made_bundle()

    async def answers() -> list[httpx.Response]:
        app = await asgi.app(storage.bundle_uri(digest), digest)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://policy") as client:
            return [await client.post("/", content=own_body(batch)) for batch in (1, 64)]

    one, many = asyncio.run(answers())
    assert one.json()["action"] in (0, 1)
    assert len(many.json()["actions"]) == 64
