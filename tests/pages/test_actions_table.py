"""The actions, indicators and modals of requirements/notebooks-page.txt, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.hub import Hub, Person
from tests.pages.conftest import Visit, fits, lock, people

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    """bob wrote three notebooks: one is free, one is locked by himself, one by eve."""
    hub = Hub(tmp_path_factory.mktemp("actions"))
    hub.start()
    found = people(hub)
    for name in ("free", "by_bob", "by_eve"):
        found["bob"].api("POST", "/notebooks", {"name": name})
    lock(found["bob"], "by_bob")
    lock(found["eve"], "by_eve")
    yield found
    hub.stop()


def buttons(page: Any, name: str) -> list[str]:
    # not inner texts: those are empty while the browser has not laid a row out (content-visibility)
    found: list[str] = page.locator(f"tr[data-name={name}] .c-actions button").all_text_contents()
    return found


def status(page: Any, name: str) -> tuple[str, str]:
    badge = page.locator(f"tr[data-name={name}] .status")
    return badge.text_content(), badge.get_attribute("class").split()[-1]


TABLE = {
    "bob": {"free": ["Open", "Delete"], "by_bob": ["Release Lock", "Delete"], "by_eve": ["Copy", "Delete"]},
    "eve": {"free": ["Open", "Delete"], "by_bob": ["Copy", "Delete"], "by_eve": ["Release Lock", "Delete"]},
    "ann": {
        "free": ["Open", "Delete"],
        "by_bob": ["Copy", "Force Unlock", "Delete"],
        "by_eve": ["Copy", "Force Unlock", "Delete"],
    },
    "carol": {"free": [], "by_bob": [], "by_eve": []},
}


@pytest.mark.parametrize("person", TABLE)
def test_actions_depend_on_lock_state_and_role(team: dict[str, Person], visit: Visit, person: str) -> None:
    """ "Not locked: Open, Delete. Locked by you: Release Lock, Delete. Locked by another user: Copy, Force Unlock
    (admin only), Delete." "Viewers can see the notebooks list but cannot interact with them." """
    page = visit(team[person])
    assert {name: buttons(page, name) for name in TABLE[person]} == TABLE[person]


def test_lock_indicators_have_the_documented_words_and_colours(team: dict[str, Person], visit: Visit) -> None:
    """ "Available: Green. Editing (Xh ago): Blue. Locked by …: Orange." """
    page = visit(team["bob"])
    assert status(page, "free") == ("Available", "status-available")
    assert status(page, "by_bob")[0].startswith("Editing (")
    assert status(page, "by_bob")[1] == "status-mine"
    assert status(page, "by_eve") == ("Locked by eve@example.com", "status-locked")


def test_delete_explains_itself_when_blocked_and_asks_in_the_documented_words(
    team: dict[str, Person], visit: Visit
) -> None:
    """ "Are you sure you want to delete notebook_name? This cannot be undone." """
    page = visit(team["bob"])
    for name in ("by_bob", "by_eve"):
        button = page.locator(f"tr[data-name={name}] [data-action=delete]")
        assert button.get_attribute("aria-disabled") == "true"
        assert "lock" in button.get_attribute("data-why")
    button = visit(team["eve"]).locator("tr[data-name=free] [data-action=delete]")
    assert button.get_attribute("data-why") == "Only its author or an administrator can delete this notebook."
    team["bob"].api("POST", "/notebooks", {"name": "doomed"})
    page.locator("tr[data-name=doomed] [data-action=delete]").click()
    words = page.locator("#confirm-dialog-text").inner_text()
    assert words == "Are you sure you want to delete doomed? This cannot be undone."
    page.keyboard.press("Escape")
    assert page.locator("tr[data-name=doomed]").count() == 1
    page.locator("tr[data-name=doomed] [data-action=delete]").click()
    page.locator("#confirm-dialog").get_by_role("button", name="Delete").click()
    page.locator("tr[data-name=doomed]").wait_for(state="detached")


def test_new_notebook_by_keyboard_alone(team: dict[str, Person], visit: Visit) -> None:
    """ "Click the New Notebook button. Choose a template from the dropdown. Enter a name in the modal (letters,
    numbers, and underscores only). Click Create." """
    page = visit(team["eve"])
    titles = [text.split("\n")[0] for text in page.locator(".dropdown-item[data-new] b").all_text_contents()]
    assert titles == ["Blank", "Data Exploration", "Data Quality"]
    page.get_by_role("button", name="New Notebook").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.type("not allowed!")
    page.keyboard.press("Enter")
    assert page.locator("#notebook-name-problem").inner_text() != ""
    page.keyboard.press("Control+a")
    page.keyboard.type("typed_by_eve")
    page.keyboard.press("Enter")
    page.locator("tr[data-name=typed_by_eve]").wait_for()


def test_copy_while_locked_makes_ones_own_notebook(team: dict[str, Person], visit: Visit) -> None:
    """ "If a notebook is locked by another user, click Copy to create a duplicate with a new name." """
    page = visit(team["bob"])
    page.locator("tr[data-name=by_eve] [data-action=copy]").click()
    page.locator("#notebook-name").fill("bobs_own")
    page.keyboard.press("Enter")
    page.locator("tr[data-name=bobs_own]").wait_for()
    assert buttons(page, "bobs_own") == ["Open", "Delete"]


def test_missing_file_has_a_yellow_badge(team: dict[str, Person], visit: Visit) -> None:
    """ "A yellow "missing file" badge appears if the .py file has been deleted from disk." """
    team["bob"].api("POST", "/notebooks", {"name": "gone"})
    (team["bob"].hub.data / "notebooks/default/gone.py").unlink()
    page = visit(team["bob"])
    assert page.locator("tr[data-name=gone] .badge-missing").text_content() == "missing file"


def test_force_unlock_shows_a_banner_at_once_and_until_it_is_dismissed(team: dict[str, Person], visit: Visit) -> None:
    """ "Your lock on "notebook_name" has been revoked by an administrator." """
    team["eve"].api("POST", "/notebooks", {"name": "stuck"})
    lock(team["eve"], "stuck")
    eve, ann = visit(team["eve"]), visit(team["ann"])
    ann.locator("tr[data-name=stuck] [data-action=force_unlock]").click()
    ann.locator("#confirm-dialog [data-confirm]").click()
    words = 'Your lock on "stuck" has been revoked by an administrator.'
    eve.get_by_text(words).wait_for()
    ann.locator("tr[data-name=stuck] .status-available").wait_for()
    later = visit(team["eve"])
    later.get_by_text(words).wait_for()
    later.locator("[data-notice] .mh-dismiss").first.click()
    later.get_by_text(words).wait_for(state="detached")
    assert visit(team["eve"]).get_by_text(words).count() == 0


def test_changes_by_others_appear_without_reload_even_if_sockets_are_blocked(
    team: dict[str, Person], browser: Any
) -> None:
    bob = team["bob"]
    context = browser.new_context()
    context.add_cookies(
        [{"name": c.name, "value": c.value, "domain": c.domain, "path": c.path} for c in bob.session.cookies]
    )
    page = context.new_page()
    page.route_web_socket("**/api/events*", lambda socket: socket.close())
    page.goto(f"{bob.hub.url}/hub/notebooks")
    team["eve"].api("POST", "/notebooks", {"name": "news"})
    page.locator("tr[data-name=news]").wait_for(timeout=25_000)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(team: dict[str, Person], visit: Visit, scheme: str, artifacts: Any) -> None:
    page = visit(team["ann"], width=390, height=844, color_scheme=scheme)
    assert fits(page)
    page.screenshot(path=artifacts / f"notebooks-{scheme}-390.png")


def test_lock_of_a_closed_tab_ends_by_itself(
    tmp_path_factory: pytest.TempPathFactory, browser: Any, visit: Visit
) -> None:
    """ "Locks expire 15 minutes after the last heartbeat, so if you close the tab without releasing the lock, it
    becomes available to other users." Shortened to ten seconds."""
    config = "c.MarimoHub.lock_ttl = 10\nc.MarimoHub.heartbeat_interval = 1\n"
    hub = Hub(tmp_path_factory.mktemp("expiry"), config)
    hub.start()
    try:
        ann = Person(hub, "ann").set_up()
        ann.api("POST", "/notebooks", {"name": "short"})
        page = visit(ann)
        with page.context.expect_page() as opened:
            page.locator("tr[data-name=short] button.btn[data-action=open]").click()
        tab = opened.value
        tab.locator(".cm-content").first.wait_for()
        # longer than the ttl: the heartbeats keep it
        tab.wait_for_timeout(12_000)
        assert page.locator("tr[data-name=short] .status-mine").count() == 1
        tab.close()
        page.locator("tr[data-name=short] .status-available").wait_for(timeout=30_000)
        page.close()
    finally:
        hub.stop()
