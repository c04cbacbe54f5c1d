"""Asks a served policy for actions from asyncio, over HTTPX: the same methods, errors and repetitions as `app.client` has."""

import asyncio
import copy
import random
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from app import client_wire as wire
from app.client_wire import Answer, BatchAnswer, PolicyClientError, Retries, Timeouts, Unreachable


class AsyncPolicyClient:
    """Asks one served policy over kept connections, as many at once as are needed.

    Many tasks may share one for single steps; each episode that runs beside others needs its own `episode()`.

    Args:
        url, host, headers, session_id, timeouts, retries: as those of `app.client.PolicyClient`.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        host: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        session_id: str | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._url = wire.checked_url(url)
        self._timeouts = timeouts or Timeouts()
        self._retries = retries or Retries()
        self._episode = wire.Episode(session_id)
        sent = {"Content-Type": "application/json", **(headers or {}), **({} if host is None else {"Host": host})}
        # HTTPX's own limit of 100 connections would make the 101st task wait for `pool` seconds and fail.
        self._client = httpx.AsyncClient(headers=sent, limits=httpx.Limits(max_connections=None, max_keepalive_connections=100))

    async def act(
        self, observation: Any, *, explore: bool = False, seed: int | None = None, action_mask: Any = None, state: Any = None
    ) -> Answer:
        """The action for one observation; see `app.client.PolicyClient.act`."""
        content, headers = await self._sent("POST", "", wire.body(observation, explore, seed, action_mask, state))
        answer = wire.answer_of(content, headers)
        self._episode.saw(answer.digest)
        return answer

    async def act_batch(
        self, observations: Any, *, explore: bool = False, seed: int | None = None, action_masks: Any = None, states: Any = None
    ) -> BatchAnswer:
        """The actions for many observations; see `app.client.PolicyClient.act_batch`."""
        content, headers = await self._sent("POST", "", wire.batch_body(observations, explore, seed, action_masks, states))
        answer = wire.batch_answer_of(content, headers)
        self._episode.saw(answer.digest)
        return answer

    async def spec(self) -> dict[str, Any]:
        """The spaces of the policy as JSON Schema, `GET <route>/v1/spec`."""
        return (await self._sent("GET", "/v1/spec", None))[0]

    async def status(self) -> dict[str, Any]:
        """What every replica holds, `GET <route>/v1/status`."""
        return (await self._sent("GET", "/v1/status", None))[0]

    def new_episode(self, session_id: str | None = None) -> None:
        """Begins an episode; see `app.client.PolicyClient.new_episode`."""
        self._episode.begin(session_id)

    def episode(self, session_id: str | None = None) -> Self:
        """A client of its own for one episode; see `app.client.PolicyClient.episode`."""
        other = copy.copy(self)
        other._episode = wire.Episode(None)
        other.new_episode(session_id)
        return other

    async def report_return(self, total: float, *, done: bool = True) -> bool:
        """Reports the return of the episode; see `app.client.PolicyClient.report_return`."""
        return bool((await self._sent("POST", "/v1/rewards", self._episode.return_body(total, done)))[0].get("counted"))

    async def close(self) -> None:
        """Closes the kept connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _sent(self, method: str, path: str, body: bytes | None) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The JSON object of the answer, and its headers."""
        began, tried = time.monotonic(), 0
        while True:
            try:
                return await self._sent_once(method, path, body, self._retries.deadline_s - (time.monotonic() - began))
            except PolicyClientError as failure:
                tried += 1
                pause_s = self._retries.pause_s(tried, failure, time.monotonic() - began, random.random())
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    async def _sent_once(self, method: str, path: str, body: bytes | None, left_s: float) -> tuple[dict[str, Any], Mapping[str, str]]:
        limits = self._timeouts.within(left_s)
        timeout = httpx.Timeout(limits.read_s, connect=limits.connect_s)
        try:
            response = await self._client.request(
                method, self._url + path, content=body, headers=self._episode.headers(), timeout=timeout, follow_redirects=False
            )
        except httpx.TransportError as error:
            raise Unreachable(f"no answer: {type(error).__name__}") from error
        return wire.content_of(response.status_code, response.headers, response.content), response.headers
