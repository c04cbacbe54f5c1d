"""The clients against a server that fails as it is told; both say and do the same."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from fakes.policy_server import DIGEST, Reply, policy_server
from gymnasium import spaces

from app import client as script
from app.async_client import AsyncPolicyClient
from app.client import ObservationRefused, PolicyClient, PolicyClientError, RequestRefused, Retries, Timeouts, Unavailable, Unreachable
from app.client_wire import Answer, BatchAnswer, plain

ROOT = Path(__file__).parents[3]
OBSERVATION = [0.1, 0.2, 0.3, 0.4]
QUICK = Retries(tries=3, first_pause_s=0.001, longest_pause_s=0.01)
PROBLEM_JSON = {"content-type": "application/problem+json"}
PROBLEM = {"type": "about:blank", "title": "Observation refused", "status": 422, "detail": "must be a number", "pointer": "/observation/2"}

# Does something with a client of a URL and gives what its calls gave.
Play = Callable[..., list[Any]]


def played(url: str, *calls: tuple[str, tuple[Any, ...], dict[str, Any]], **options: Any) -> list[Any]:
    with PolicyClient(url, **{"retries": QUICK, **options}) as client:
        return [getattr(client, name)(*arguments, **named) for name, arguments, named in calls]


def played_async(url: str, *calls: tuple[str, tuple[Any, ...], dict[str, Any]], **options: Any) -> list[Any]:
    async def all_calls() -> list[Any]:
        async with AsyncPolicyClient(url, **{"retries": QUICK, **options}) as client:
            given = []
            for name, arguments, named in calls:
                result = getattr(client, name)(*arguments, **named)
                given.append(await result if asyncio.iscoroutine(result) else result)
            return given

    return asyncio.run(all_calls())


@pytest.fixture(params=[played, played_async], ids=["sync", "async"])
def play(request: pytest.FixtureRequest) -> Play:
    chosen: Play = request.param
    return chosen


def act(observation: Any = OBSERVATION, **named: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return ("act", (observation,), named)


def new_episode(session_id: str | None = None) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    return ("new_episode", (session_id,), {})


def test_an_answer_holds_the_action_and_the_policy_that_gave_it(play: Play) -> None:
    with policy_server() as server:
        assert play(server.url, act()) == [Answer(1, DIGEST, 3, None)]
    assert (server.asked[0].method, server.asked[0].path, server.asked[0].body) == ("POST", "/route", {"observation": OBSERVATION})
    assert server.asked[0].headers["content-type"] == "application/json"


def test_a_policy_without_a_revision_has_none(play: Play) -> None:
    with policy_server(Reply(headers={"x-policy-digest": DIGEST})) as server:
        assert play(server.url, act())[0].revision is None


def test_options_are_sent_only_where_they_are_given(play: Play) -> None:
    with policy_server(Reply(content={"action": 0, "state": {"h": [2.0]}})) as server:
        options = {"explore": True, "seed": 7, "action_mask": np.array([True, False]), "state": {"h": np.ones(1)}}
        plain_answer, full_answer = play(server.url, act(explore=False), act(**options))
    assert server.asked[0].body == {"observation": OBSERVATION}
    sent = {"explore": True, "seed": 7, "action_mask": [True, False], "state": {"h": [1.0]}}
    assert server.asked[1].body == {"observation": OBSERVATION, **sent}
    assert full_answer.state == plain_answer.state == {"h": [2.0]}


def test_a_batch_is_one_request(play: Play) -> None:
    reply = Reply(content={"actions": [0, 1], "states": [{"h": [1.0]}, {"h": [2.0]}]})
    options = {"explore": True, "seed": 0, "action_masks": [[1, 0], [1, 1]], "states": [{"h": [0.0]}, {"h": [0.5]}]}
    with policy_server(reply) as server:
        (answer,) = play(server.url, ("act_batch", (np.zeros((2, 4), np.float32),), options))
    assert answer == BatchAnswer([0, 1], DIGEST, 3, [{"h": [1.0]}, {"h": [2.0]}])
    assert [asked.body for asked in server.asked] == [{"observations": [[0.0] * 4] * 2, **options}]


def test_spec_and_status_are_asked_for_below_the_route(play: Play) -> None:
    with policy_server(Reply(content={"a": 1}), Reply(content={"b": 2})) as server:
        assert play(server.url + "/", ("spec", (), {}), ("status", (), {})) == [{"a": 1}, {"b": 2}]
    assert [(asked.method, asked.path) for asked in server.asked] == [("GET", "/route/v1/spec"), ("GET", "/route/v1/status")]


def test_whoever_names_an_environment_allows_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for named in ({"id": "registering:Walk-v0"}, {"entryPoint": "registering:Walk"}, {"id": "CartPole-v1"}):
        assert script._parsed(json.dumps(named)).described() == {**named, "config": {}}


@pytest.mark.parametrize(
    ("space", "value", "sent"),
    [
        (spaces.Box(-1, 1, (2,)), np.array([0.5, -1], np.float32), [0.5, -1.0]),
        (spaces.Box(0, 255, (1, 2), np.uint8), np.array([[1, 2]], np.uint8), [[1, 2]]),
        (spaces.Discrete(5), np.int64(3), 3),
        (spaces.Discrete(5), 3, 3),
        (spaces.MultiBinary(2), np.array([0, 1], np.int8), [0, 1]),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,)))), (np.int64(1), np.array([0.5], np.float32)), [1, [0.5]]),
        (
            spaces.Dict(a=spaces.Discrete(2), b=spaces.Dict(c=spaces.Discrete(2))),
            {"a": np.int64(1), "b": {"c": 0}},
            {"a": 1, "b": {"c": 0}},
        ),
    ],
)
def test_what_an_environment_observes_is_sent_and_taken_back(space: Any, value: Any, sent: Any) -> None:
    assert plain(value) == sent
    assert space.contains(script.as_the_environment_takes_it(space, sent))


def test_what_json_does_not_have_is_refused_before_it_is_sent(play: Play) -> None:
    with policy_server() as server:
        with pytest.raises(TypeError, match="object cannot be sent"):
            play(server.url, act({"a": object()}))
        with pytest.raises(TypeError, match="sequence of observations"):
            play(server.url, ("act_batch", ({"a": 1},), {}))
    assert server.asked == []


def test_a_refused_observation_is_told_by_its_place_and_not_sent_again(play: Play) -> None:
    with policy_server(Reply(422, PROBLEM)) as server, pytest.raises(ObservationRefused) as refused:
        play(server.url, act())
    assert (refused.value.pointer, refused.value.detail, refused.value.status) == ("/observation/2", "must be a number", 422)
    assert str(refused.value) == "422: /observation/2 must be a number"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, {"title": "No such path"}, PROBLEM_JSON),
        Reply(429, b"slow down", {"retry-after": "0"}),
        Reply(308, b"", {"location": "https://elsewhere/"}),
        Reply(200, {"tables": 3}),
    ],
    ids=["404", "429", "308", "another server"],
)
def test_what_is_no_policy_is_told_and_not_asked_again(play: Play, reply: Reply) -> None:
    with policy_server(reply) as server, pytest.raises(RequestRefused) as refused:
        play(server.url, act())
    assert refused.value.status == reply.status
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "failing",
    [
        Reply(502, b"bad gateway"),
        Reply(503, {"detail": "no policy has been approved yet"}, {"retry-after": "0"}),
        Reply(504, b""),
        Reply(500, b"Internal Server Error", {"content-type": "text/plain"}),
        Reply(404, b"404 page not found", {"content-type": "text/plain"}),
        Reply(cut=True),
        Reply(wait_s=0.4),
        Reply(200, b'{"action": '),
    ],
    ids=["502", "503", "504", "500 of HAProxy", "404 of an ingress", "cut", "slow", "cut without a length"],
)
def test_what_passes_is_asked_again_and_the_same(play: Play, failing: Reply) -> None:
    with policy_server(failing, failing, Reply()) as server:
        (answer,) = play(server.url, act(seed=7, explore=True), timeouts=Timeouts(read_s=0.1))
    assert answer.action == 1
    assert [asked.body for asked in server.asked] == [{"observation": OBSERVATION, "explore": True, "seed": 7}] * 3


def test_a_server_that_stays_without_a_policy_is_unavailable(play: Play) -> None:
    with policy_server(Reply(503, {"detail": "no policy"}, {"retry-after": "5"})) as server, pytest.raises(Unavailable) as unavailable:
        play(server.url, act())
    assert (unavailable.value.retry_after_s, str(unavailable.value)) == (5, "503: no policy")
    assert len(server.asked) == QUICK.tries


def test_a_fault_of_the_server_is_not_asked_again(play: Play) -> None:
    with policy_server(Reply(500, {"detail": "the policy could not act"}, PROBLEM_JSON)) as server, pytest.raises(Unavailable, match="500"):
        play(server.url, act())
    assert len(server.asked) == 1


def test_a_port_without_a_server_is_unreachable(play: Play) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(Unreachable):
            play(f"http://127.0.0.1:{bound.getsockname()[1]}/route", act())


def test_the_deadline_ends_all_tries_together(play: Play) -> None:
    patient = Retries(tries=1000, first_pause_s=0.01, longest_pause_s=0.02, deadline_s=0.3)
    with policy_server(Reply(503, {}, {"retry-after": "60"})) as server, pytest.raises(PolicyClientError):
        play(server.url, act(), retries=patient)
    assert 3 <= len(server.asked) <= 16


def test_pauses_double_up_to_their_cap_and_are_spread() -> None:
    retries, failure = Retries(tries=9, first_pause_s=0.1, longest_pause_s=1.0, deadline_s=100), Unreachable("")
    assert [retries.pause_s(tried, failure, 0, 0.999999) for tried in (1, 2, 3, 4, 5, 8, 9)] == [
        *(pytest.approx(pause_s, rel=1e-4) for pause_s in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)),
        None,
    ]
    assert retries.pause_s(1, failure, 0, 0.0) == pytest.approx(0.05)


def test_what_a_server_asks_to_wait_is_waited_up_to_the_cap() -> None:
    retries = Retries(longest_pause_s=5.0, deadline_s=100)
    assert retries.pause_s(1, Unavailable(503, "", 2.0), 0, 0.0) == 2.0
    assert retries.pause_s(1, Unavailable(503, "", 3600.0), 0, 0.0) == 5.0
    assert retries.pause_s(1, Unavailable(503, "", 3.0), 98, 0.0) is None


def test_a_path_that_nobody_knows_is_asked_for_again_for_some_seconds() -> None:
    pauses = [Retries().pause_s(tried, RequestRefused(404, "", is_of_another=True), 0, 0.0) for tried in range(1, 6)]
    assert pauses == [1.0, 1.0, 1.0, 1.0, None]


def test_connections_are_kept(play: Play) -> None:
    with policy_server() as server:
        play(server.url, act(), act(), act())
    assert server.connections == 1


def test_the_host_and_further_headers_are_sent(play: Play) -> None:
    with policy_server() as server:
        play(server.url, act(), host="cartpole.localhost", headers={"Authorization": "Bearer x"})
    assert (server.asked[0].headers["host"], server.asked[0].headers["authorization"]) == ("cartpole.localhost", "Bearer x")


def test_an_episode_is_pinned_to_the_policy_that_answered_and_the_next_one_is_free(play: Play) -> None:
    other = "sha256:" + "b" * 64
    replies = [Reply(), Reply(headers={"x-policy-digest": other})]
    with policy_server(*replies) as server:
        play(server.url, new_episode("one"), act(), act(), act(), new_episode("two"), act())
    pins = [(asked.headers["x-session-id"], asked.headers.get("x-policy-pin")) for asked in server.asked]
    assert pins == [("one", None), ("one", DIGEST), ("one", other), ("two", None)]


def test_each_episode_has_a_name_of_its_own(play: Play) -> None:
    with policy_server() as server:
        play(server.url, new_episode(), act(), act(), new_episode(), act())
    first, again, second = (asked.headers["x-session-id"] for asked in server.asked)
    assert first == again != second


def test_the_return_of_an_episode_is_reported_with_its_policy_and_how_far_it_is(play: Play) -> None:
    counted = Reply(content={"action": 1, "counted": True})
    with policy_server(counted) as server:
        given = play(
            server.url,
            new_episode("one"),
            *(act(), act()),
            ("report_return", (2.5,), {"done": False}),
            act(),
            ("report_return", (np.float32(4.0),), {}),
        )
    reports = [asked for asked in server.asked if asked.path == "/route/v1/rewards"]
    assert [asked.body for asked in reports] == [
        {"session": "one", "step": 2, "return": 2.5, "done": False, "digest": DIGEST},
        {"session": "one", "step": 3, "return": 4.0, "done": True, "digest": DIGEST},
    ]
    assert {asked.headers["x-policy-pin"] for asked in reports} == {DIGEST}
    assert given[-1] is True


def test_there_is_no_return_without_an_episode(play: Play) -> None:
    with policy_server() as server:
        with pytest.raises(ValueError, match="that of an episode"):
            play(server.url, act(), ("report_return", (1.0,), {}))
        with pytest.raises(ValueError, match="that of an episode"):
            play(server.url, new_episode(), ("report_return", (1.0,), {}))


def test_several_episodes_run_beside_one_another_over_the_same_connections() -> None:
    replies = [Reply(), Reply(headers={"x-policy-digest": "sha256:" + "b" * 64}), Reply()]
    with policy_server(*replies) as server, PolicyClient(server.url) as client:
        one, two = client.episode("one"), client.episode("two")
        for episode in (one, two, one, two):
            episode.act(OBSERVATION)
        client.act(OBSERVATION)
    sent = [(asked.headers.get("x-session-id"), asked.headers.get("x-policy-pin", "")[7:8]) for asked in server.asked]
    assert sent == [("one", ""), ("two", ""), ("one", "a"), ("two", "b"), (None, "")]
    assert server.connections == 1


def test_what_a_server_does_not_take_of_a_return_does_not_end_the_play(capsys: pytest.CaptureFixture[str]) -> None:
    taken = [Reply(content={"action": [1, [0.5]]})] * 2
    with policy_server(*taken, Reply(404, b"Path not found")) as server, PolicyClient(server.url, retries=QUICK) as client:
        assert script.played_episode(client, Nested(), None, quiet=True) == 2.0
    assert capsys.readouterr().err == "the return was not reported: 404: the server says nothing more\n"


def test_a_client_that_knows_no_episodes_pins_nothing(play: Play) -> None:
    with policy_server() as server:
        play(server.url, act(), act())
    assert not any({"x-session-id", "x-policy-pin"} & set(asked.headers) for asked in server.asked)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000/x", "ftp://host/x", "http:///x"])
def test_a_url_that_is_none_is_refused_at_once(play: Play, url: str) -> None:
    with pytest.raises(ValueError, match="looks like http://"):
        play(url)


class Nested(gymnasium.Env[Any, Any]):
    """Two steps of an environment whose spaces are nested."""

    observation_space = spaces.Dict(seen=spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,)))))
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,))))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return {"seen": (np.int64(1), np.zeros(2, np.float32))}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        return {"seen": (np.int64(2), np.ones(2, np.float32))}, 1.0, self.steps == 2, False, {}


def test_the_loop_plays_nested_spaces_and_hands_the_state_on(capsys: pytest.CaptureFixture[str]) -> None:
    with policy_server(Reply(content={"action": [1, [0.5]], "state": {"h": [1.0]}})) as server, PolicyClient(server.url) as client:
        assert script.played_episode(client, Nested(), None, quiet=False) == 2.0
    first, second, reported = (asked.body for asked in server.asked)
    assert first == {"observation": {"seen": [1, [0.0, 0.0]]}}
    assert second == {"observation": {"seen": [2, [1.0, 1.0]]}, "state": {"h": [1.0]}}
    assert {name: reported[name] for name in ("step", "return", "done")} == {"step": 2, "return": 2.0, "done": True}
    said = capsys.readouterr().out.splitlines()
    assert said[0] == '-> Sending observation {"seen": [1, [0.0, 0.0]]}'
    assert said[1] == '<- Received response {"action": [1, [0.5]], "state": {"h": [1.0]}}'


def test_the_script_says_what_the_tutorial_says(capsys: pytest.CaptureFixture[str]) -> None:
    with policy_server() as server:
        script.run(["--url", server.url, "--episodes", "2", "--seed", "0"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("-> Sending observation [")
    assert said[1] == '<- Received response {"action": 1}'
    totals = [float(line.removeprefix("total reward ")) for line in said if line.startswith("total reward ")]
    assert len(totals) == 2
    assert said[-1] == f"mean return over 2 episodes: {sum(totals) / 2:.1f}"


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply(422, PROBLEM), 2, "Refused: URL answered 422: /observation/2 must be a number"),
        (Reply(500, {"detail": "broken"}), 1, "Unavailable: URL answered 500: broken"),
    ],
)
def test_the_script_ends_with_one_sentence_and_a_code(reply: Reply, code: int, said: str) -> None:
    with policy_server(reply) as server:
        command = [sys.executable, "-m", "app.client", "--url", server.url]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (code, said.replace("URL", server.url))


def test_a_wrong_url_is_told_by_its_flag() -> None:
    with pytest.raises(script.InputError, match="--url: the URL of a policy looks like"):
        script.run(["--url", "127.0.0.1:8000"])


def test_the_clients_need_neither_numpy_nor_gymnasium_nor_ray() -> None:
    program = (
        "import sys, app.client, app.async_client\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'numpy', 'gymnasium', 'ray', 'torch', 'onnxruntime'}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"


def test_every_failure_is_one_kind_of_error() -> None:
    assert all(issubclass(error, PolicyClientError) for error in (ObservationRefused, RequestRefused, Unavailable, Unreachable))
