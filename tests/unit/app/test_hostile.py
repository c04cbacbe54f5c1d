"""Bodies that nobody sends by accident: each gets a 4xx with its reason, none is echoed, and the replica goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from fakes.policies import Desk, doubles, nested, plain, recurrent, switches

from app.serving.asgi import PolicyApp

MARK = "ZmluZCBtZQ"
GOOD = "[0.1, 0.2, 0.3, 0.4]"
VALUES = {
    "null": "null",
    "true": "true",
    "false": "false",
    "a number": "1",
    "a fraction": "0.5",
    "a negative": "-1",
    "a huge integer": "9" * 400,
    "2^63": str(2**63),
    "-2^63-1": str(-(2**63) - 1),
    "2^64": str(2**64),
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e400": "1e400",
    "-1e400": "-1e400",
    "1e-400": "1e-400",
    "text": f'"{MARK}"',
    "empty text": '""',
    "a number as text": '"0.1"',
    "a null character": f'"{MARK}\\u0000"',
    "a lone surrogate": '"\\ud800"',
    "a pair the wrong way": '"\\udc00\\ud800"',
    "markup": f'"<script>{MARK}</script>"',
    "a template": f'"${{jndi:ldap://{MARK}}}"',
    "a shell": f'"$(touch {MARK})"',
    "SQL": f'"\'; drop table {MARK}; --"',
    "a format": '"%s%s%n{0.__class__}"',
    "a path": f'"../../{MARK}"',
    "long text": f'"{MARK * 5000}"',
    "wide characters": '"\U0001f600\U0001f600"',
    "an empty list": "[]",
    "an empty object": "{}",
    "nested lists": "[" * 60 + "]" * 60,
    "lists deeper than Python goes": "[" * 600 + "]" * 600,
    "a list of lists": "[[[]]]",
    "a list of nulls": "[null, null, null, null]",
    "a list of objects": "[{}, {}, {}, {}]",
    "a list of text": f'["{MARK}", "b", "c", "d"]',
    "integers whose sum is none of float64": "[" + ", ".join(["1" + "0" * 308] * 4) + "]",
    "a mix": f'[0.1, "{MARK}", null, [1]]',
    "a long list": "[" + ", ".join(["0"] * 10_000) + "]",
    "a prototype": f'{{"__proto__": "{MARK}"}}',
    "a class": f'{{"__class__": "{MARK}"}}',
    "a reference": f'{{"$ref": "#/{MARK}"}}',
    "a key of nothing": '{"": 1}',
    "a number for a list": "1.5",
}
PLACES = {
    "as the body": "{value}",
    "as the observation": '{{"observation": {value}}}',
    "in the observation": '{{"observation": [0.1, {value}, 0.3, 0.4]}}',
    "as the observations": '{{"observations": {value}}}',
    "among the observations": f'{{{{"observations": [{GOOD}, {{value}}]}}}}',
    "as a seed": f'{{{{"observation": {GOOD}, "explore": true, "seed": {{value}}}}}}',
    "as explore": f'{{{{"observation": {GOOD}, "explore": {{value}}}}}}',
    "as a mask": f'{{{{"observation": {GOOD}, "action_mask": {{value}}}}}}',
    "as a state": f'{{{{"observation": {GOOD}, "state": {{value}}}}}}',
    "beside NaN": '{{"observation": {value}, "seed": NaN}}',
    "beside it": f'{{{{"observation": {GOOD}, "{MARK}": {{value}}}}}}',
    "to the protocol": '{{"inputs": {value}}}',
    "as a tensor": '{{"inputs": [{value}]}}',
    "as the data": '{{"inputs": [{{"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": {value}}}]}}',
    "as data of bools": '{{"inputs": [{{"name": "observation", "datatype": "BOOL", "shape": [1, 4], "data": {value}}}]}}',
    "in data of bools": '{{"inputs": [{{"name": "observation", "datatype": "BOOL", "shape": [1, 4], "data": [{value}]}}]}}',
    "as a shape": '{{"inputs": [{{"name": "observation", "datatype": "FP32", "shape": {value}, "data": [1, 2, 3, 4]}}]}}',
}
RAW = {
    "nothing": b"",
    "a space": b" ",
    "a byte order mark": b'\xef\xbb\xbf{"observation": [0.1, 0.2, 0.3, 0.4]}',
    "UTF-16": '{"observation": [0.1, 0.2, 0.3, 0.4]}'.encode("utf-16"),
    "no UTF-8": b'{"observation": "\xff\xfe\xfd"}',
    "an overlong slash": b'{"observation": "\xc0\xaf"}',
    "cut short": b'{"observation": [0.1, 0.2',
    "two documents": b'{"observation": [0.1, 0.2, 0.3, 0.4]} {"observation": 1}',
    "a trailing comma": b'{"observation": [0.1, 0.2, 0.3, 0.4,]}',
    "a comment": b'{"observation": [0.1, 0.2, 0.3, 0.4] /* x */}',
    "single quotes": b"{'observation': [0.1, 0.2, 0.3, 0.4]}",
    "a key twice": b'{"observation": 1, "observation": "x"}',
    "a form": b"observation=0.1&observation=0.2",
    "XML": b"<observation>0.1</observation>",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "MessagePack": b"\x81\xabobservation\x94\xca",
    "100,000 lists": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "a request in it": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}
EXPECTED = {200, 400, 413, 422}


def bodies() -> Iterator[tuple[str, bytes]]:
    for place, form in PLACES.items():
        for name, value in VALUES.items():
            yield f"{name} {place}", form.format(value=value).encode("utf-8", "surrogatepass")
    yield from RAW.items()


@pytest.mark.parametrize("made", [plain, doubles, switches, nested, recurrent])
def test_hostile_bodies_are_refused_and_the_replica_goes_on(made: Any) -> None:
    assert len(list(bodies())) >= 200
    desk = Desk(made())

    async def status() -> dict[str, Any]:
        return {}

    async def all_sent() -> None:
        transport = httpx.ASGITransport(PolicyApp(desk, "cartpole", status), root_path="/route")
        example = json.dumps({"observation": desk.serving.policy.manifest["golden"]["observations"][0]})
        async with httpx.AsyncClient(transport=transport, base_url="http://policy") as client:
            for name, body in bodies():
                path = "/route/v2/models/cartpole/infer" if b'"inputs"' in body else "/route"
                answer = await client.post(path, content=body)
                await asyncio.sleep(0)  # as between two requests of a real server
                assert answer.status_code in EXPECTED, (name, answer.status_code, answer.text[:200])
                orjson.loads(answer.content)
                assert MARK not in answer.text, name
                assert int(answer.headers["content-length"]) == len(answer.content), name
            assert (await client.post("/route", content=example)).status_code == 200

    asyncio.run(all_sent())
    assert set(desk.meter.requests) <= EXPECTED
