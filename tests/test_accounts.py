"""Set-up, sign-up, approval: who gets in, and as what."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from marimohub.auth import first_run
from marimohub.database import Database
from tests.hub import Hub, Person


@pytest.mark.unit
def test_set_up_link_works_once_for_an_hour_and_a_new_one_ends_the_old(database: Database) -> None:
    with database.transaction() as session:
        old = first_run.issue(session, now=0.0)
        token = first_run.issue(session, now=10.0)
        assert not first_run.valid(session, old, now=11.0)
        assert first_run.valid(session, token, now=11.0)
        assert not first_run.valid(session, token, now=10.0 + 3600)
        assert not first_run.consume(session, token, now=10.0 + 3600)
        assert first_run.consume(session, token, now=20.0)
        assert not first_run.consume(session, token, now=20.0)
        assert not first_run.valid(session, token, now=21.0)


@pytest.fixture(scope="module")
def new_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that nobody has set up yet."""
    hub = Hub(tmp_path_factory.mktemp("new"), "c.Authenticator.admin_users = {'chief'}")
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the administrator ann, the editor bob, and the viewer carol."""
    hub = Hub(tmp_path_factory.mktemp("accounts"))
    hub.start()
    ann = Person(hub, "ann").set_up()
    for name, role in (("bob", "editor"), ("carol", "viewer")):
        Person(hub, name).sign_up()
        ann.approve(name, role)
        Person(hub, name).sign_in()
    yield hub
    hub.stop()


def test_before_set_up_nobody_can_sign_up_and_no_name_makes_an_administrator(new_hub: Hub) -> None:
    for name in ("chief", "admin", "mallory"):
        person = Person(new_hub, name)
        answer = person.session.post(f"{new_hub.url}/hub/signup", data=person._form(), timeout=30)
        assert answer.status_code == 403
        person.page("/hub/login")
        assert person.sign_in().status_code == 403


def test_wrong_or_missing_set_up_token_shows_no_form(new_hub: Hub) -> None:
    for path in ("/hub/setup", "/hub/setup?token=wrong"):
        answer = requests.get(new_hub.url + path, timeout=30)
        assert answer.status_code == 403
        assert 'name="password"' not in answer.text


def test_whole_way_from_the_link_to_an_approved_colleague(new_hub: Hub) -> None:
    first_link = new_hub.setup_link()
    new_hub.kill()
    new_hub.start()
    deadline = time.monotonic() + 10
    while new_hub.setup_link() == first_link and time.monotonic() < deadline:
        time.sleep(0.05)
    assert new_hub.setup_link() != first_link
    assert requests.get(first_link, timeout=30).status_code == 403

    bad = Person(new_hub, "ann", "short")
    path = new_hub.setup_link()[len(new_hub.url) :]
    refused = bad.submit(path, token=path.partition("=")[2], **bad._form())
    assert refused.status_code == 400
    assert "at least 10 characters" in refused.text
    ann = Person(new_hub, "ann").set_up()
    assert requests.get(new_hub.setup_link(), timeout=30).status_code == 403

    # an administrator by configuration cannot be claimed by whoever registers the name
    assert Person(new_hub, "chief").sign_up().status_code == 400

    bob = Person(new_hub, "bob")
    assert bob.sign_up().status_code == 200
    waiting = bob.sign_in()
    assert waiting.status_code == 403
    assert "approval" in waiting.text
    # no state changes on GET: NativeAuthenticator's own addresses are gone
    assert ann.page("/hub/authorize/bob").status_code == 404
    assert bob.sign_in().status_code == 403
    ann.approve("bob", "editor")
    assert bob.sign_in().url.endswith("/hub/notebooks")
    assert bob.api("GET", "/notebooks").json()["role"] == "editor"
    # and nobody but an administrator approves
    assert bob.page("/hub/accounts").status_code == 403
    carol = Person(new_hub, "carol")
    carol.sign_up()
    refused = bob.session.post(
        f"{new_hub.url}/hub/accounts/carol", data={"action": "approve", "role": "admin", "_xsrf": bob.xsrf}, timeout=10
    )
    assert refused.status_code == 403
    assert carol.sign_in().status_code == 403
    ann.approve("carol", "viewer")
    carol.sign_in()
    assert carol.api("GET", "/notebooks").json()["role"] == "viewer"


def test_form_without_its_xsrf_token_changes_nothing(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()
    dave = Person(hub, "dave")
    dave.sign_up()
    answer = ann.session.post(f"{hub.url}/hub/accounts/dave", data={"action": "approve", "role": "admin"}, timeout=30)
    assert answer.status_code == 403
    assert dave.sign_in().status_code == 403


def test_wrong_password_and_unknown_name_look_alike(hub: Hub) -> None:
    def answer(name: str) -> str:
        person = Person(hub, name, "not the password")
        page = person.sign_in().text
        return re.sub(r'value="[^"]*"|xsrf_token: "[^"]*"', "", page.replace(name, ""))

    assert answer("ann") == answer("nobody")


def test_guessing_is_slowed_down_and_the_set_up_link_is_not_in_any_log(hub: Hub) -> None:
    erin = Person(hub, "erin")
    erin.sign_up()
    Person(hub, "ann").sign_in()
    guesser = Person(hub, "erin", "wrong password 1")
    for _ in range(10):
        assert guesser.sign_in().status_code == 403
    refused = guesser.sign_in()
    assert refused.status_code == 429
    assert "Too many attempts" in refused.text
    tokens = re.findall(r"setup\?token=(\S+)", hub.log)
    printed = [token for token in tokens if "secret" not in token]
    assert len(printed) == hub.log.count("This hub has no administrator yet")
    assert "xsrf cookie for" not in hub.log, "session ids are in the log"


def test_simultaneous_guesses_are_counted_before_they_are_compared(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()
    Person(hub, "gail").sign_up()
    ann.approve("gail", "viewer")
    guessers = [Person(hub, "gail", f"wrong password {n}") for n in range(12)] + [Person(hub, "gail")]
    for guesser in guessers:
        guesser.page("/hub/login")
    with ThreadPoolExecutor(len(guessers)) as pool:
        answers = list(pool.map(lambda guesser: guesser.sign_in().status_code, guessers))
    assert answers.count(403) <= 10
    assert answers.count(429) >= 2


def test_flood_of_passwords_holds_nothing_else_up(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()
    strangers = [Person(hub, f"stranger{n}", "wrong password") for n in range(30)]
    for stranger in strangers:
        stranger.page("/hub/login")
    with ThreadPoolExecutor(len(strangers)) as pool:
        running = [pool.submit(stranger.sign_in) for stranger in strangers]
        began = time.monotonic()
        assert ann.api("POST", "/notebooks", {"name": "meanwhile"}).status_code == 201
        took = time.monotonic() - began
        statuses = {job.result().status_code for job in running}
    assert statuses <= {403, 429}
    assert took < 3, "creating a notebook waited for the flood"


def test_changed_password_ends_all_other_sessions_and_tokens(hub: Hub) -> None:
    here, there = Person(hub, "carol"), Person(hub, "carol")
    here.sign_in()
    there.sign_in()
    token = there.api("POST", "/users/carol/tokens", {}).json()["token"]
    by_token = {"Authorization": f"token {token}"}
    assert requests.get(f"{hub.url}/hub/api/user", headers=by_token, timeout=30).status_code == 200
    new = "another horse battery"
    fields = {"new_password": new, "new_password_confirmation": new}
    assert here.submit("/hub/change-password", current_password="wrong password", **fields).status_code == 400
    assert here.submit("/hub/change-password", current_password=here.password, **fields).status_code == 200
    assert here.page("/hub/notebooks").url.endswith("/hub/notebooks")
    assert "/hub/login" in there.page("/hub/notebooks").url
    assert requests.get(f"{hub.url}/hub/api/user", headers=by_token, timeout=30).status_code == 403
    assert Person(hub, "carol").sign_in().status_code == 403
    assert Person(hub, "carol", new).sign_in().url.endswith("/hub/notebooks")


def test_administrator_cannot_act_as_somebody_else(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()
    assert ann.api("POST", "/users/bob/tokens", {}).status_code in (403, 404)
    assert ann.api("POST", "/shares/bob/", {"user": "ann"}).status_code in (403, 404)
    scopes = ann.api("GET", "/user").json()["scopes"]
    assert not [
        scope for scope in scopes if scope.startswith(("access:servers", "tokens", "shares")) and "!" not in scope
    ]
    renamed = ann.api("PATCH", "/users/bob", {"name": "robert"})
    assert renamed.status_code == 400
    assert "renamed" in renamed.text


def test_whoever_gets_the_name_of_a_deleted_person_gets_nothing_of_theirs(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()

    def join() -> Person:
        dora = Person(hub, "dora")
        assert dora.sign_up().status_code == 200
        ann.approve("dora", "editor")
        dora.sign_in()
        return dora

    first = join()
    first.api("POST", "/notebooks", {"name": "of_dora"})
    refused = first.api("PUT", "/notebooks/of_dora/text", {"text": "mine", "base": "0" * 64, "fence": 1})
    assert refused.status_code == 409
    assert len(first.api("GET", "/drafts").json()["drafts"]) == 1
    assert ann.api("DELETE", "/users/dora").status_code == 204
    second = join()
    assert second.api("GET", "/drafts").json()["drafts"] == []
    assert second.api("DELETE", "/notebooks/of_dora").status_code == 403


def test_name_that_the_hub_knows_already_cannot_be_registered(hub: Hub) -> None:
    ann = Person(hub, "ann")
    ann.sign_in()
    assert ann.api("POST", "/users/gina", {"admin": True}).status_code == 201
    assert Person(hub, "gina").sign_up().status_code == 400


def test_data_folder_and_its_files_are_private(hub: Hub) -> None:
    # root's servers run as other users, who pass through to their own folders, and see nothing on the way
    passage = {hub.data, hub.data / "users"} if os.geteuid() == 0 else set()
    for path in (hub.data, *hub.data.iterdir()):
        assert path.stat().st_mode & 0o077 == (0o011 if path in passage else 0), path
