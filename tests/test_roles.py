"""Who may do what: by role, call, own or other's notebook, and lock, as one table, against a running hub."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from marimohub import drafts, locks, versions
from marimohub.auth import roles
from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.governance import store
from marimohub.notebooks import NotebookStore
from marimohub.orm import Notice
from tests.hub import Hub, Person
from tests.test_openapi import described

# Columns: somebody with no role; a viewer; an editor; an administrator; the token of an editor's notebook server;
# a service with an editor's scope. "own" and "other": the notebook's author. "mine" and "theirs": who holds its lock.
# {p} a revision of the policy, {person} the viewer, {me} the caller.
# {n} a notebook, {v} its first version, {d} a draft of the caller's, {x} a draft of somebody else's, {m} a notice.
TABLE = """
GET    notebooks                          other free    403 200 200 200 403 200
POST   notebooks {name}                   other free    403 403 201 201 403 201
GET    notebooks/{n}                      other free    403 200 200 200 403 200
DELETE notebooks/{n}                      own   free    403 403 204 204 403 204
DELETE notebooks/{n}                      own   mine    403 403 409 409 403 409
DELETE notebooks/{n}                      own   theirs  403 403 409 409 403 409
DELETE notebooks/{n}                      other free    403 403 403 204 403 403
DELETE notebooks/{n}                      other mine    403 403 403 409 403 403
DELETE notebooks/{n}                      other theirs  403 403 403 409 403 403
POST   notebooks/{n}/lock                 own   free    403 403 200 200 403 403
POST   notebooks/{n}/lock                 other free    403 403 200 200 403 403
POST   notebooks/{n}/lock                 other mine    403 403 200 200 403 403
POST   notebooks/{n}/lock                 own   theirs  403 403 409 409 403 403
DELETE notebooks/{n}/lock                 own   free    403 403 403 409 403 403
DELETE notebooks/{n}/lock                 own   mine    403 403 403 200 403 403
DELETE notebooks/{n}/lock                 own   theirs  403 403 403 200 403 403
DELETE notebooks/{n}/lock                 other theirs  403 403 403 200 403 403
POST   notebooks/{n}/heartbeat {fence}    other mine    403 403 200 200 200 200
POST   notebooks/{n}/heartbeat {fence}    own   theirs  403 403 409 409 409 409
POST   notebooks/{n}/heartbeat {fence}    own   free    403 403 409 409 409 409
POST   notebooks/{n}/release              other mine    403 403 200 200 403 200
POST   notebooks/{n}/release              own   theirs  403 403 409 409 403 409
POST   notebooks/{n}/release              own   free    403 403 409 409 403 409
POST   notebooks/{n}/copy {name}          other free    403 403 201 201 403 201
POST   notebooks/{n}/copy {name}          other theirs  403 403 201 201 403 201
POST   notebooks/{n}/copy {name}          own   mine    403 403 201 201 403 201
GET    notebooks/{n}/text                 other theirs  403 403 200 200 200 200
PUT    notebooks/{n}/text {save}          other mine    403 403 200 200 200 200
PUT    notebooks/{n}/text {save}          own   theirs  403 403 409 409 409 409
PUT    notebooks/{n}/text {save}          own   free    403 403 409 409 409 409
GET    notebooks/{n}/versions             other theirs  403 403 200 200 403 200
GET    notebooks/{n}/versions/{v}         other theirs  403 403 200 200 403 200
POST   notebooks/{n}/versions/{v}/restore other mine    403 403 200 200 403 200
POST   notebooks/{n}/versions/{v}/restore own   theirs  403 403 409 409 403 409
POST   notebooks/{n}/versions/{v}/restore own   free    403 403 409 409 403 409
GET    notebooks/{n}/compare              other theirs  403 403 200 200 403 200
GET    notebooks/{n}/compare?left=draft:{d} other free  403 403 200 200 403 200
GET    notebooks/{n}/compare?left=draft:{x} own   mine  403 403 404 404 403 404
GET    drafts                             other free    403 403 200 200 403 200
GET    drafts/{d}                         other free    403 403 200 200 403 200
GET    drafts/{x}                         own   mine    403 403 404 404 403 404
DELETE drafts/{d}                         other free    403 403 204 204 403 204
DELETE drafts/{x}                         own   mine    403 403 404 404 403 404
POST   drafts/{d}/copy {name}             other theirs  403 403 201 201 403 201
POST   drafts/{x}/copy {name}             own   mine    403 403 404 404 403 404
POST   drafts/{d}/replace                 other mine    403 403 200 200 403 200
POST   drafts/{d}/replace                 own   theirs  403 403 409 409 403 409
POST   drafts/{d}/replace                 own   free    403 403 409 409 403 409
POST   drafts/{x}/replace                 own   mine    403 403 404 404 403 404
DELETE notices/{m}                        own   free    403 204 204 204 403 204
GET    policy                             own   free    403 403 403 200 403 403
PUT    policy {policy}                    own   free    403 403 403 201 403 403
POST   policy/check {policy}              own   free    403 403 403 200 403 403
POST   policy/draft                       own   free    403 403 403 200 403 403
GET    policy/schema                      own   free    403 403 403 200 403 403
GET    policy/history                     own   free    403 403 403 200 403 403
GET    policy/history/{p}                 own   free    403 403 403 200 403 403
GET    policy/explain?user={me}           own   free    403 200 200 200 403 403
GET    policy/explain?user={person}       own   free    403 200 403 200 403 403
GET    policy/diff?user=ed&other=vic      own   free    403 403 403 200 403 403
POST   policy/revoke                      own   free    403 403 403 200 403 403
GET    snapshot                           own   free    403 200 200 200 403 403
POST   snapshot/refresh                   own   free    403 403 200 200 200 403
GET    people/{person}/attributes         own   free    403 403 403 200 403 403
PUT    people/{person}/attributes {attributes} own free 403 403 403 200 403 403
GET    profiles                           own   free    403 403 200 200 403 403
PUT    server {profile}                   own   free    403 403 200 200 403 403
POST   server {profile}                   own   free    403 403 200 200 403 403
GET    servers                            own   free    403 403 403 200 403 403
GET    servers/{person}/log               own   free    403 403 403 200 403 403
GET    notebooks-openapi.json             own   free    200 200 200 200 200 200
"""
COLUMNS = ("none", "viewer", "editor", "admin", "server", "service")
SERVICE_TOKEN = "a-token-for-the-matrix-of-roles"
# the service has the name of a person
CONFIG = f"""
c.MarimoHub.default_role = 'none'
c.JupyterHub.services = [{{'name': 'ed', 'api_token': '{SERVICE_TOKEN}'}}]
c.JupyterHub.load_roles = [
    {{'name': 'robots', 'scopes': ['{roles.EDIT}'], 'services': ['ed']}},
]
"""
TEXT = "a = 1\n"
POLICY = "version: 1\nlevels: [public]\ntables: {}\n"
TTL = 900.0


class Scene:
    """A hub with one caller for each column, and hands that reach into its store to set the stage."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        ann = Person(hub, "ann").set_up()
        people = {"none": "nell", "viewer": "vic", "editor": "ed", "server": "sam"}
        self.names = {**people, "admin": "ann", "service": "service:ed"}
        self.tokens = {"service": SERVICE_TOKEN}
        for column, name in {**people, "admin": "ann"}.items():
            person = ann
            if column != "admin":
                # everybody makes their own token: not even an administrator makes another's
                person = Person(hub, name)
                assert person.sign_up().status_code == 200
                ann.approve(name, "editor" if column in ("editor", "server") else "viewer")
                person.sign_in()
            if column == "none":
                gone = ann.api("DELETE", "/groups/viewers/users", {"users": [name]})
                assert gone.status_code == 200, gone.text
            body: dict[str, Any] = {"note": "roles"}
            if column == "server":
                body["scopes"] = [s.replace("!user", f"!user={name}") for s in roles.SERVER_TOKEN_SCOPES]
            made = person.api("POST", f"/users/{name}/tokens", body)
            assert made.status_code == 201, made.text
            self.tokens[column] = made.json()["token"]
        self.database = Database(f"sqlite:///{hub.data / 'marimohub.sqlite'}")
        self.store = NotebookStore(self.database, hub.data / "notebooks")
        self.numbers = itertools.count()

    def new_name(self) -> str:
        return f"n{next(self.numbers)}"

    def stage(self, caller: str, author: str, lock: str) -> dict[str, Any]:
        """A fresh notebook in the wanted state, with what a row may name."""
        now, name = time.time(), self.new_name()
        self.store.create(1, name, TEXT, author=caller if author == "own" else "zoe", email=None, now=now)
        found: dict[str, Any] = {"n": name, "fence": 1}
        with self.database.transaction() as session:
            if lock != "free":
                holder = caller if lock == "mine" else "zoe"
                found["fence"] = locks.acquire(session, 1, name, holder, now=now, ttl=TTL).fence
            for key, owner in (("d", caller), ("x", "zoe")):
                found[key] = drafts.keep(
                    session, 1, name, f"{owner}\n", user=owner, base=text_hash(TEXT), reason="lock_lost", now=now
                )
            notice = Notice(user_name=caller, kind="test", text="A test.", created=now)
            session.add(notice)
            session.flush()
            found["m"] = notice.id
            policy = store.apply(session, 1, POLICY, author="zoe", comment="", expected=None, now=now)
            found |= {"p": policy.revision, "person": "vic", "me": caller.removeprefix("service:")}
        found["v"] = versions.history(self.store, 1, name, now=now)[0].id
        return found

    def call(self, token: str | None, method: str, path: str, kind: str, stage: dict[str, Any]) -> requests.Response:
        bodies: dict[str, Any] = {
            "": {} if method == "POST" else None,
            "{name}": {"name": self.new_name()},
            "{fence}": {"fence": stage["fence"]},
            "{policy}": {"text": POLICY},
            "{attributes}": {"attributes": {}},
            "{profile}": {"profile": "standard"},
            "{save}": {"text": "b = 1\n", "base": text_hash(TEXT), "fence": stage["fence"]},
        }
        return requests.request(
            method,
            f"http://127.0.0.1:{self.hub.hub_port}/hub/api/{path.format(**stage)}",
            json=bodies[kind],
            headers={"Authorization": f"token {token}"} if token else {},
            timeout=60,
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    hub = Hub(tmp_path_factory.mktemp("roles"), CONFIG)
    hub.start()
    scene = Scene(hub)
    yield scene
    scene.database.close()
    hub.stop()


def table() -> Iterator[Any]:
    for line in TABLE.strip().splitlines():
        method, path, *rest = line.split()
        kind = rest.pop(0) if rest[0].startswith("{") else ""
        author, lock, *expected = rest
        label = " ".join([method, path, author, lock])
        yield pytest.param(
            method, path, kind, author, lock, dict(zip(COLUMNS, map(int, expected), strict=True)), id=label
        )


@pytest.mark.parametrize(("method", "path", "kind", "author", "lock", "expected"), table())
def test_role_may_do_exactly_this(
    scene: Scene, method: str, path: str, kind: str, author: str, lock: str, expected: dict[str, int]
) -> None:
    found = {}
    for column in COLUMNS:
        stage = scene.stage(scene.names[column], author, lock)
        answer = scene.call(scene.tokens[column], method, path, kind, stage)
        found[column] = answer.status_code
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"].endswith("."), answer.text
        if answer.status_code == 403:
            # a refusal changes nothing
            assert scene.store.read(1, stage["n"], now=time.time()).text == TEXT
    assert found == expected
    stage = scene.stage("nobody", author, lock)
    stranger = scene.call(None, method, path, kind, stage)
    assert stranger.status_code == (200 if path.endswith("openapi.json") else 401)


def test_every_call_of_the_api_is_in_the_table() -> None:
    rows = {
        ("/api/" + re.sub(r"\{\w+\}", "{}", path.partition("?")[0]), method.lower())
        for method, path in (line.split()[:2] for line in TABLE.strip().splitlines())
    }
    # the socket, which tests/test_api.py tries
    assert rows == described(pages=True) - {("/api/events", "get")}


def test_draft_of_somebody_who_lost_the_editor_role_is_kept_and_they_are_told(scene: Scene) -> None:
    stage = scene.stage("vic", "other", "free")
    answer = scene.call(scene.tokens["viewer"], "GET", "drafts", "", stage)
    assert answer.status_code == 403
    assert "your drafts are kept" in answer.json()["error"]["message"]
    with scene.database.transaction(write=False) as session:
        assert drafts.get(session, 1, stage["d"], "vic", now=time.time())[1] == "vic\n"


def test_service_is_not_the_person_whose_name_it_has(scene: Scene) -> None:
    stage = scene.stage("ed", "own", "free")
    token = scene.tokens["service"]
    assert scene.call(token, "GET", "notebooks", "", stage).json()["user"] == "service:ed"
    assert scene.call(token, "GET", "drafts/{d}", "", stage).status_code == 404
    assert scene.call(token, "DELETE", "notebooks/{n}", "", stage).status_code == 403
    made = scene.call(token, "POST", "notebooks", "{name}", stage).json()
    assert (made["author"], made["author_email"]) == ("service:ed", None)
