"""The documented REST calls, against a running hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from tests.hub import Hub, Person

CONFIG = "c.MarimoHub.default_role = 'viewer'\n"


class Team:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.ann = Person(hub, "ann").set_up()
        self.bob, self.carol, self.vic = (Person(hub, name) for name in ("bob", "carol", "vic"))
        for person, role in ((self.bob, "editor"), (self.carol, "editor"), (self.vic, "viewer")):
            person.sign_up()
            self.ann.approve(person.name, role)
            person.sign_in()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    hub = Hub(tmp_path_factory.mktemp("api"), CONFIG)
    hub.start()
    yield Team(hub)
    hub.stop()


def error(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_create_answers_with_the_notebook_and_the_list_shows_it(team: Team) -> None:
    made = team.bob.api("POST", "/notebooks", {"name": "created", "template": "data_exploration"})
    assert made.status_code == 201
    assert made.json()["author_email"] == "bob@example.com"
    (row,) = [n for n in team.vic.api("GET", "/notebooks").json()["notebooks"] if n["name"] == "created"]
    assert row["lock"]["state"] == "available"
    assert row["file_exists"] is True
    assert row["actions"] == []
    assert (team.hub.data / "notebooks/default/created.py").read_text().startswith("import marimo")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"name": "a b"}, (400, "invalid_name")),
        ({"name": "x" * 101}, (400, "invalid_name")),
        ({"name": "duckdb"}, (400, "invalid_name")),
        ({"name": 3}, (400, "bad_field")),
        ({}, (400, "bad_field")),
        ([], (400, "bad_json")),
        ({"name": "fine", "template": "nope"}, (400, "unknown_template")),
    ],
)
def test_bad_create_is_refused_with_a_sentence(team: Team, body: object, expected: tuple[int, str]) -> None:
    answer = team.bob.api("POST", "/notebooks", body)
    assert error(answer) == expected
    assert answer.json()["error"]["message"].endswith(".")


def test_name_that_differs_only_in_case_is_taken(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "Case"})
    assert error(team.bob.api("POST", "/notebooks", {"name": "cASE"})) == (409, "name_taken")


def test_viewers_see_the_list_and_can_do_nothing(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "look"})
    assert team.vic.api("GET", "/notebooks").status_code == 200
    for method, path, body in (
        ("POST", "/notebooks", {"name": "mine"}),
        ("POST", "/notebooks/look/lock", {}),
        ("POST", "/notebooks/look/release", {}),
        ("POST", "/notebooks/look/heartbeat", {"fence": 1}),
        ("POST", "/notebooks/look/copy", {"name": "look2"}),
        ("PUT", "/notebooks/look/text", {"text": "", "base": "", "fence": 1}),
        ("GET", "/notebooks/look/text", None),
        ("DELETE", "/notebooks/look", None),
        ("DELETE", "/notebooks/look/lock", None),
    ):
        answer = team.vic.api(method, path, body)
        assert error(answer) == (403, "forbidden"), (method, path)


def test_viewers_get_no_server_by_jupyterhubs_own_ways_either(team: Team) -> None:
    answer = team.vic.api("POST", "/users/vic/server")
    assert answer.status_code == 403
    assert "editor or admin role" in answer.text
    assert team.vic.api("GET", "/users/vic").json()["server"] is None
    spawned = team.vic.page("/hub/spawn")
    assert "editor or admin role" in spawned.text
    assert "Traceback" not in spawned.text


def test_nobody_signed_in_gets_401(team: Team) -> None:
    for path in ("/hub/api/notebooks", "/api/notebooks", "/api/notebooks/x/text"):
        answer = requests.get(team.hub.url + path, timeout=30)
        assert error(answer) == (401, "unauthenticated")


def test_only_the_author_or_an_administrator_deletes(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "del1"})
    team.bob.api("POST", "/notebooks", {"name": "del2"})
    assert error(team.carol.api("DELETE", "/notebooks/del1")) == (403, "not_author")
    assert team.bob.api("DELETE", "/notebooks/del1").status_code == 204
    assert team.ann.api("DELETE", "/notebooks/del2").status_code == 204
    assert error(team.bob.api("DELETE", "/notebooks/del1")) == (404, "not_found")


def test_missing_file_is_told_in_the_documented_words_and_can_be_replaced(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "lost"})
    (team.hub.data / "notebooks/default/lost.py").unlink()
    (row,) = [n for n in team.bob.api("GET", "/notebooks").json()["notebooks"] if n["name"] == "lost"]
    assert row["file_exists"] is False
    opened = team.bob.api("POST", "/notebooks/lost/lock", {})
    assert error(opened) == (404, "file_missing")
    assert opened.json()["error"]["message"] == "Notebook file not found"
    assert team.carol.api("POST", "/notebooks", {"name": "lost"}).status_code == 201


def test_api_call_without_xsrf_token_is_refused(team: Team) -> None:
    answer = team.bob.session.post(
        f"{team.hub.url}/hub/api/notebooks",
        json={"name": "forged"},
        headers={"Sec-Fetch-Mode": "cors", "Origin": "http://evil.example"},
        timeout=30,
    )
    assert answer.status_code == 403
    # the hub's cookies do not reach the bare path at all
    bare = team.bob.session.post(f"{team.hub.url}/api/notebooks", json={"name": "forged"}, timeout=30)
    assert bare.status_code in (401, 403)
    assert "forged" not in team.bob.api("GET", "/notebooks").text


def test_token_works_on_the_bare_path(team: Team) -> None:
    token = team.bob.api("POST", "/users/bob/tokens", {}).json()["token"]
    headers = {"Authorization": f"token {token}"}
    made = requests.post(f"{team.hub.url}/api/notebooks", json={"name": "by_token"}, headers=headers, timeout=30)
    assert made.status_code == 201
    assert "by_token" in requests.get(f"{team.hub.url}/api/notebooks", headers=headers, timeout=30).text


def test_force_unlock_tells_the_holder_until_they_dismiss_it(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "stuck"})
    assert team.bob.api("POST", "/notebooks/stuck/lock", {}).status_code == 200
    assert error(team.carol.api("DELETE", "/notebooks/stuck/lock")) == (403, "forbidden")
    assert error(team.ann.api("DELETE", "/notebooks/stuck")) == (409, "locked")
    unlocked = team.ann.api("DELETE", "/notebooks/stuck/lock")
    assert unlocked.json()["notebook"]["lock"]["state"] == "available"
    (notice,) = team.bob.api("GET", "/notebooks").json()["notices"]
    assert notice["text"] == 'Your lock on "stuck" has been revoked by an administrator.'
    assert notice["text"] in team.bob.page("/hub/notebooks").text.replace("&#34;", '"')
    assert team.carol.api("DELETE", f"/notices/{notice['id']}").status_code == 404
    assert team.bob.api("DELETE", f"/notices/{notice['id']}").status_code == 204
    assert team.bob.api("GET", "/notebooks").json()["notices"] == []
    assert error(team.ann.api("DELETE", "/notebooks/stuck/lock")) == (409, "not_locked")


def test_lock_in_the_way_is_told_with_holder_and_since(team: Team) -> None:
    team.bob.api("POST", "/notebooks", {"name": "busy"})
    opened = team.bob.api("POST", "/notebooks/busy/lock", {})
    assert opened.json()["marimo_url"] == "/user/bob/?file=busy.py"
    refused = team.carol.api("POST", "/notebooks/busy/lock", {})
    assert error(refused) == (409, "lock_held")
    assert refused.json()["error"]["holder"] == "bob"
    assert refused.json()["error"]["since"] == opened.json()["notebook"]["lock"]["since"]
    (row,) = [n for n in team.carol.api("GET", "/notebooks").json()["notebooks"] if n["name"] == "busy"]
    assert row["lock"]["holder_email"] == "bob@example.com"
    assert row["actions"] == ["copy", "delete"]
    again = team.bob.api("POST", "/notebooks/busy/lock", {})
    assert again.json()["fence"] == opened.json()["fence"]
    assert error(team.carol.api("POST", "/notebooks/busy/release", {})) == (409, "not_holder")
    assert team.bob.api("POST", "/notebooks/busy/release", {}).status_code == 200


def test_socket_of_a_page_hears_of_changes_and_strangers_get_none(team: Team) -> None:
    def connect(cookie: str, origin: str) -> Any:
        url = f"ws://127.0.0.1:{team.hub.port}/hub/api/events"
        request = HTTPRequest(url, headers={"Cookie": cookie, "Origin": origin})
        return websocket_connect(request)

    async def listen() -> dict[str, Any]:
        cookie = "; ".join(f"{c.name}={c.value}" for c in team.vic.session.cookies if c.path == "/hub/")
        for bad_cookie, origin in (("", team.hub.url), (cookie, "http://evil.example")):
            with pytest.raises(HTTPClientError) as caught:
                await connect(bad_cookie, origin)
            assert caught.value.code == 403
        socket = await connect(cookie, team.hub.url)
        await asyncio.to_thread(team.bob.api, "POST", "/notebooks", {"name": "heard"})
        message = await asyncio.wait_for(socket.read_message(), 10)
        socket.close()
        heard: dict[str, Any] = json.loads(message)
        return heard

    assert asyncio.run(listen()) == {"event": "notebooks_changed"}


def test_unknown_workspace_is_told(team: Team) -> None:
    assert error(team.bob.api("GET", "/notebooks?workspace=nope")) == (404, "no_workspace")


def test_bare_address_leads_to_the_page(team: Team) -> None:
    for path in ("/notebooks", "/", "/hub/", "/hub/home"):
        assert team.bob.page(path).url == f"{team.hub.url}/hub/notebooks"


def test_page_of_a_person_shows_no_stack_trace_on_an_unknown_address(team: Team) -> None:
    answer = team.bob.page("/hub/nothing/here")
    assert answer.status_code == 404
    assert "Traceback" not in answer.text
