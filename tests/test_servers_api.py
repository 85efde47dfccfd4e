"""Profiles and everybody's servers over the API, with real servers: who may ask, what they get, what a choice does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from marimohub import openapi
from tests.hub import Hub, Person

CONFIG = """
import os
from jupyterhub.spawner import SpawnException
from marimohub.spawners.local import LocalMarimoSpawner

class CanBeTold(LocalMarimoSpawner):
    async def start(self):
        if os.path.exists("refuse"):
            raise SpawnException("Not today.", reason="test", status_code=503)
        return await super().start()

c.JupyterHub.spawner_class = CanBeTold
c.MarimoSpawner.memory_limit = "3G"
c.MarimoSpawner.profiles = [
    {"name": "basic", "description": "For most work.", "environment": {"KEY": "s3cret"}},
    {"name": "big", "memory": "5G", "cpu": 1, "processes": 300, "groups": ["editors"]},
    {"name": "lab", "groups": ["laboratory"]},
]
"""


class Team:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.ann = Person(hub, "ann").set_up()
        self.bob, self.eve, self.vic = (Person(hub, name) for name in ("bob", "eve", "vic"))
        for person, role in ((self.bob, "editor"), (self.eve, "editor"), (self.vic, "viewer")):
            person.sign_up()
            self.ann.approve(person.name, role)
            person.sign_in()
        self.bob.api("POST", "/notebooks", {"name": "one"})

    def servers(self) -> dict[str, dict[str, Any]]:
        """What the Admin page shows, by person."""
        answer = self.ann.api("GET", "/servers")
        assert answer.status_code == 200, answer.text
        Draft202012Validator({"$ref": "#/components/schemas/Servers", **DOCUMENT}).validate(answer.json())
        return {server["user"]: server for server in answer.json()["servers"]}

    def launcher(self, name: str) -> int:
        """The process of somebody's server."""
        with sqlite3.connect(self.hub.data / "marimohub.sqlite") as database:
            (state,) = database.execute(
                "select spawners.state from spawners join users on users.id = user_id where users.name = ?", (name,)
            ).fetchone()
        return int(json.loads(state)["launcher"])


DOCUMENT = {"components": openapi.document("/hub/api", pages=True)["components"]}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    hub = Hub(tmp_path_factory.mktemp("servers"), CONFIG)
    hub.start()
    yield Team(hub)
    hub.stop()


def error(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def own(person: Person) -> dict[str, Any]:
    answer = person.api("GET", "/profiles")
    assert answer.status_code == 200, answer.text
    Draft202012Validator({"$ref": "#/components/schemas/OwnServer", **DOCUMENT}).validate(answer.json())
    found: dict[str, Any] = answer.json()
    return found


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return found


def test_people_see_the_profiles_of_their_groups_and_nothing_of_their_insides(team: Team) -> None:
    found = own(team.bob)
    assert [profile["name"] for profile in found["profiles"]] == ["basic", "big"]
    assert [profile["name"] for profile in own(team.ann)["profiles"]] == ["basic"]
    assert (found["default"], found["chosen"], found["state"], found["running"]) == ("basic", None, "stopped", None)
    assert found["profiles"][1]["size"] == "5 GB · 1 CPU"
    assert "s3cret" not in json.dumps(found)


CALLS = [
    ("GET", "/profiles", None),
    ("PUT", "/server", {"profile": "basic"}),
    ("POST", "/server", {}),
    ("GET", "/servers", None),
    ("GET", "/servers/ann/log", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_viewers_strangers_and_forgers_are_refused(team: Team, method: str, path: str, body: Any) -> None:
    assert error(team.vic.api(method, path, body)) == (403, "forbidden")
    stranger = requests.request(method, f"{team.hub.url}/hub/api{path}", json=body, timeout=30)
    assert error(stranger) == (401, "unauthenticated")
    forged = team.ann.session.request(
        method,
        f"{team.hub.url}/hub/api{path}",
        json=body,
        headers={"Sec-Fetch-Mode": "cors", "Origin": "http://evil.example"},
        timeout=30,
    )
    assert forged.status_code == 403
    assert team.servers() == {}, "nothing was started"


def test_only_administrators_learn_of_others_and_a_token_of_fewer_scopes_learns_less(team: Team) -> None:
    for path in ("/servers", "/servers/bob/log", "/servers/ann/log"):
        assert error(team.bob.api("GET", path)) == (403, "forbidden")
    made = team.ann.api("POST", "/users/ann/tokens", {"note": "monitoring", "scopes": ["read:servers"]})
    headers = {"Authorization": f"token {made.json()['token']}"}

    def ask(path: str) -> requests.Response:
        return requests.get(f"{team.hub.url}/api{path}", headers=headers, timeout=30)

    assert ask("/servers").status_code == 200
    assert error(ask("/servers/bob/log")) == (403, "forbidden")
    assert error(ask("/profiles")) == (403, "forbidden")


@pytest.mark.parametrize("name", ["nobody", "%2e%2e", "a%2Fb", "%00", "%ED%A0%80", "x" * 3000])
def test_log_of_nobody_is_a_404(team: Team, name: str) -> None:
    token = team.ann.api("POST", "/users/ann/tokens", {"note": "tests"}).json()["token"]
    # past the proxy, which would turn the worst away
    url = f"http://127.0.0.1:{team.hub.hub_port}/hub/api/servers/{name}/log"
    answer = requests.get(url, headers={"Authorization": f"token {token}"}, timeout=30)
    assert error(answer) in {(404, "no_person"), (400, "http_400"), (404, "not_found")}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"profile": "nothing"}, (400, "no_profile")),
        ({"profile": "lab"}, (403, "profile_not_offered")),
        ({"profile": ["basic"]}, (400, "bad_field")),
        ({"profile": {}}, (400, "bad_field")),
        ({"profile": "a\0b"}, (400, "no_profile")),
        ({"profile": "\ud800"}, (400, "no_profile")),
        ([], (400, "bad_json")),
    ],
)
def test_profile_that_one_may_not_have_starts_nothing(team: Team, body: Any, expected: tuple[int, str]) -> None:
    for method, path in (("PUT", "/server"), ("POST", "/server"), ("POST", "/notebooks/one/lock")):
        answer = team.bob.api(method, path, body)
        assert error(answer) == expected, (method, path)
        assert answer.json()["error"]["message"].endswith(".")
    assert team.bob.api("GET", "/notebooks/one").json()["lock"]["state"] == "available"
    assert own(team.bob)["chosen"] is None
    assert error(team.bob.api("POST", "/server", {"restart": "yes"})) == (400, "bad_field")
    assert error(team.bob.api("PUT", "/server", {})) == (400, "bad_field")


def test_jupyterhubs_own_api_gives_no_other_profile_and_remembers_none(team: Team) -> None:
    for options in ({"profile": "lab"}, {"user_options": {"profile": ["lab"]}}):
        refused = team.bob.api("POST", "/users/bob/server", options)
        assert refused.status_code == 403
        assert "not offered to you" in refused.text
    assert own(team.bob)["chosen"] is None
    assert "bob" not in {name for name, server in team.servers().items() if server["state"] != "failed"}


def test_choice_is_kept_for_the_next_start_which_opening_makes(team: Team) -> None:
    chosen = team.bob.api("PUT", "/server", {"profile": "big"}).json()
    assert (chosen["chosen"], chosen["state"]) == ("big", "stopped")
    assert team.bob.api("POST", "/notebooks/one/lock", {}).status_code == 200
    assert own(team.bob)["running"] == {"name": "big", "title": "Big"}
    server = team.servers()["bob"]
    assert (server["state"], server["profile"]["name"]) == ("running", "big")
    assert (server["memory_limit"], server["cpu_limit"]) == (5 << 30, 1.0)
    assert (server["process_limit"], server["disk_limit"]) == (300, 20 << 30)


def test_other_profile_restarts_a_running_server_only_when_told_to(team: Team) -> None:
    team.bob.api("POST", "/server", {"profile": "big"})
    before = team.servers()["bob"]["since"]
    for path in ("/server", "/notebooks/one/lock"):
        refused = team.bob.api("POST", path, {"profile": "basic"})
        assert error(refused) == (409, "other_profile")
        assert 'runs with the profile "Big"' in refused.json()["error"]["message"]
    assert team.bob.api("POST", "/server", {"profile": "big", "restart": True}).status_code == 200
    assert team.servers()["bob"]["since"] == before, "it has that profile already"
    streamed = team.bob.api(
        "POST", "/notebooks/one/lock", {"profile": "basic", "restart": True}, Accept="text/event-stream"
    )
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert "Ending your notebook server" in [event.get("message") for event in events]
    assert events[-1]["phase"] == "ready"
    assert own(team.bob)["running"]["name"] == "basic"
    assert team.servers()["bob"]["since"] > before


def test_usage_of_running_servers_is_measured(team: Team) -> None:
    team.bob.api("POST", "/server", {})

    def measured() -> dict[str, Any] | None:
        server = team.servers()["bob"]
        return server if None not in (server["cpu"], server["disk"]) else None

    server = until(measured)
    assert 5 << 20 < server["memory"] < server["memory_limit"]
    assert 1 <= server["processes"] < 300
    assert 0 <= server["cpu"] <= os.cpu_count()  # type: ignore[operator]
    assert 0 < server["disk"] < 100 << 20


def test_confinement_is_told_in_sentences(team: Team) -> None:
    found = team.ann.api("GET", "/servers").json()["confinement"]
    assert found["sandbox"] == "on"
    assert found["text"].endswith(".")
    assert all(problem.endswith(".") for problem in found["problems"])
    assert found["limits"]["memory"] in ("cgroup", "watch")


def test_failed_start_is_told_to_its_owner_and_shown_with_its_log(team: Team) -> None:
    refuse = team.hub.folder / "refuse"
    refuse.touch()
    try:
        answer = team.eve.api("POST", "/server", {})
    finally:
        refuse.unlink()
    assert error(answer) == (503, "server_failed")
    assert answer.json()["error"]["message"] == "Your notebook server could not be started. Not today."
    failed = team.servers()["eve"]
    assert (failed["state"], failed["message"], failed["memory"]) == ("failed", "Not today.", None)
    assert team.ann.api("GET", "/servers/eve/log").json() == {"user": "eve", "lines": []}
    assert team.eve.api("POST", "/server", {}).status_code == 200
    assert team.servers()["eve"]["state"] == "running"
    assert any("serving" in line for line in team.ann.api("GET", "/servers/eve/log").json()["lines"])


def test_server_that_ends_by_itself_says_why_until_the_next_start_also_after_a_restart_of_the_hub(team: Team) -> None:
    team.eve.api("POST", "/server", {})

    async def listen(person: Person, act: Callable[[], Any]) -> str:
        cookie = "; ".join(f"{c.name}={c.value}" for c in person.session.cookies if c.path == "/hub/")
        url = f"ws://127.0.0.1:{team.hub.port}/hub/api/events"
        socket = await websocket_connect(HTTPRequest(url, headers={"Cookie": cookie, "Origin": team.hub.url}))
        act()
        message = await asyncio.wait_for(socket.read_message(), 30)
        socket.close()
        return str(message)

    heard = asyncio.run(listen(team.eve, lambda: os.kill(team.launcher("eve"), signal.SIGKILL)))
    assert json.loads(heard) == {"event": "server_ended"}
    ended = until(lambda: own(team.eve)["ended"])
    assert "SIGKILL" in ended["because"] and ended["because"].endswith(".")
    shown = team.servers()["eve"]
    assert (shown["state"], shown["since"]) == ("ended", ended["at"])
    assert shown["message"] == ended["because"].replace("Your notebook server", "The server")
    page = team.eve.page("/user/eve/")
    assert page.status_code == 424
    assert ended["because"] in page.text and "Your notebook server has ended" in page.text
    assert own(team.bob)["ended"] is None

    team.hub.kill()
    team.hub.start()
    assert own(team.eve)["ended"] == ended
    assert team.servers()["eve"]["state"] == "ended"
    assert team.eve.api("POST", "/server", {}).json()["ended"] is None
    team.eve.api("DELETE", "/users/eve/server")
    until(lambda: own(team.eve)["state"] == "stopped")
    assert own(team.eve)["ended"] is None, "an ordinary stop needs no reason"
    assert "eve" not in team.servers()
