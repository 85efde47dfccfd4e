"""Set-up, sign-up, approval: who gets in, and as what."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

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
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("accounts"), "c.Authenticator.admin_users = {'chief'}")
    hub.start()
    yield hub
    hub.stop()


def test_before_set_up_nobody_can_sign_up_and_no_name_makes_an_administrator(hub: Hub) -> None:
    for name in ("chief", "admin", "mallory"):
        person = Person(hub, name)
        answer = person.session.post(f"{hub.url}/hub/signup", data=person._form(), timeout=10)
        assert answer.status_code == 403
        person.page("/hub/login")
        assert person.sign_in().status_code == 403


def test_wrong_or_missing_set_up_token_shows_no_form(hub: Hub) -> None:
    for path in ("/hub/setup", "/hub/setup?token=wrong"):
        answer = requests.get(hub.url + path, timeout=10)
        assert answer.status_code == 403
        assert 'name="password"' not in answer.text


def test_whole_way_from_the_link_to_an_approved_colleague(hub: Hub) -> None:
    first_link = hub.setup_link()
    hub.kill()
    hub.start()
    deadline = time.monotonic() + 10
    while hub.setup_link() == first_link and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hub.setup_link() != first_link
    assert requests.get(first_link, timeout=10).status_code == 403

    bad = Person(hub, "ann", "short")
    path = hub.setup_link()[len(hub.url) :]
    refused = bad.submit(path, token=path.partition("=")[2], **bad._form())
    assert refused.status_code == 400
    assert "at least 10 characters" in refused.text
    ann = Person(hub, "ann").set_up()
    assert requests.get(hub.setup_link(), timeout=10).status_code == 403

    # an administrator by configuration cannot be claimed by whoever registers the name
    assert Person(hub, "chief").sign_up().status_code == 400

    bob = Person(hub, "bob")
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
    carol = Person(hub, "carol")
    carol.sign_up()
    refused = bob.session.post(
        f"{hub.url}/hub/accounts/carol", data={"action": "approve", "role": "admin", "_xsrf": bob.xsrf}, timeout=10
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
    answer = ann.session.post(f"{hub.url}/hub/accounts/dave", data={"action": "approve", "role": "admin"}, timeout=10)
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
    assert "Too many attempts" in guesser.sign_in().text
    tokens = re.findall(r"setup\?token=(\S+)", hub.log)
    printed = [token for token in tokens if "secret" not in token]
    assert len(printed) == hub.log.count("This hub has no administrator yet")


def test_data_folder_and_its_files_are_private(hub: Hub) -> None:
    assert hub.data.stat().st_mode & 0o777 == 0o700
    assert (hub.data / "cookie_secret").stat().st_mode & 0o077 == 0
