"""What people see when a server or the hub is away, and that open pages come back by themselves, in Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.hub import Hub, Person
from tests.pages.conftest import Visit, fits, people

pytestmark = pytest.mark.browser

CONFIG = """
import asyncio, os
from marimohub.spawners.local import LocalMarimoSpawner

class Slow(LocalMarimoSpawner):
    async def start(self):
        while os.path.exists("wait-" + self.user.name):
            await asyncio.sleep(0.1)
        return await super().start()

c.JupyterHub.spawner_class = Slow
"""
SIZES = [("light", 1280), ("dark", 390)]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    hub = Hub(tmp_path_factory.mktemp("proxy_pages"), CONFIG)
    hub.start()
    found = people(hub)
    found["bob"].api("POST", "/notebooks", {"name": "sums"})
    yield found
    hub.stop()


def launcher(person: Person) -> int:
    with sqlite3.connect(person.hub.data / "marimohub.sqlite") as database:
        (state,) = database.execute(
            "select spawners.state from spawners join users on users.id = user_id where users.name = ?", (person.name,)
        ).fetchone()
    return int(json.loads(state)["launcher"])


def envoy(hub: Hub) -> int:
    return int(json.loads((hub.data / "proxy" / "envoy.json").read_text())["pid"])


def hub_process(hub: Hub) -> int:
    assert hub.process is not None
    return hub.process.pid


def look(visit: Visit, person: Person, path: str, name: str, artifacts: Path) -> Iterator[Any]:
    """First gets browsers ready; then the page in light and dark on a desk and on a phone, with a picture of each."""
    # signed in before: some of these pages are there while no hub is
    pages = [visit(person, width=width, height=844, color_scheme=scheme) for scheme, width in SIZES]
    for page in pages:
        page.goto("about:blank")
    yield
    for page, (scheme, width) in zip(pages, SIZES, strict=True):
        page.goto(f"{person.hub.url}{path}")
        assert fits(page)
        page.screenshot(path=artifacts / f"{name}-{scheme}-{width}.png")
    yield pages[0]


def test_a_crashed_server_is_a_page_that_leads_to_the_notebooks_until_the_hub_knows_more(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    bob = team["bob"]
    assert bob.api("POST", "/server", {}).status_code == 200
    looking = look(visit, bob, "/user/bob/?file=sums.py", "proxy-crashed", artifacts)
    next(looking)
    os.kill(hub_process(bob.hub), signal.SIGSTOP)  # it has not noticed yet
    try:
        os.kill(launcher(bob), signal.SIGKILL)
        page = next(looking)
        expect(page.locator("h1")).to_have_text("Your server is not running")
        button = page.get_by_role("link", name="Go to Notebooks")
        assert button.get_attribute("href") == "/hub/notebooks"
        assert page.evaluate("getComputedStyle(document.querySelector('a')).backgroundColor") == "rgb(15, 118, 110)"
        button.focus()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    finally:
        os.kill(hub_process(bob.hub), signal.SIGCONT)
    # nobody touches it: the hub takes the route away and says on its own page what happened
    expect(page.locator("h1")).to_have_text("Your notebook server has ended", timeout=60_000)
    page.get_by_role("link", name="Go to Notebooks").click()
    page.wait_for_url("**/hub/notebooks")


def test_a_hub_that_is_away_is_a_page_that_comes_back_by_itself(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    bob = team["bob"]
    looking = look(visit, bob, "/hub/notebooks", "proxy-hub-away", artifacts)
    next(looking)
    bob.hub.kill()
    page = next(looking)
    expect(page.locator("h1")).to_have_text("The hub is restarting")
    bob.hub.start()
    page.locator("tr[data-name=sums]").wait_for()


def test_a_stopped_server_an_unknown_address_and_a_starting_server_are_pages_with_a_way_out(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    eve = team["eve"]
    looking = look(visit, eve, "/user/eve/..;/x", "proxy-400", artifacts)
    next(looking)
    page = next(looking)
    for path, heading, button in (
        ("/user/eve/..;/x", "This address is not valid", "Go to Notebooks"),
        ("/user/eve/", "Your notebook server is not running", "Go to Notebooks"),
        ("/hub/nothing/here", "There is no page here", "Back to Notebooks"),
        ("/nothing/here", "There is no page here", "Back to Notebooks"),
    ):
        page.goto(f"{eve.hub.url}{path}")
        expect(page.locator("h1")).to_have_text(heading)
        page.get_by_role("link", name=button).click()
        page.wait_for_url("**/hub/notebooks")
    waits = eve.hub.folder / "wait-eve"
    waits.touch()
    try:
        page.goto(f"{eve.hub.url}/hub/spawn/eve")
        expect(page.locator("h1")).to_have_text("Your notebook server is starting")
        assert page.get_by_role("link", name="Back to Notebooks").is_visible()
        page.screenshot(path=artifacts / "proxy-starting.png")
        page.goto(f"{eve.hub.url}/user/eve/")
        expect(page.locator("h1")).to_have_text("Your notebook server is starting")
    finally:
        waits.unlink()
    page.wait_for_url("**/hub/notebooks")
    expect(page.locator("#server-text")).to_contain_text("running")


def test_an_open_notebook_goes_on_by_itself_after_envoy_was_killed(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    bob = team["bob"]
    page = visit(bob)
    with page.context.expect_page() as opened:
        page.locator("tr[data-name=sums] button.btn[data-action=open]").click()
    tab = opened.value
    tab.set_default_timeout(60_000)
    editor = tab.locator(".cm-content").last

    def say(word: str) -> None:
        editor.click()
        tab.keyboard.press("Control+End")
        tab.keyboard.type(f"\nprint('{word}' * 2)")
        tab.keyboard.press("Control+Enter")

    # its first cells have run
    tab.get_by_text(re.compile("^There is no warehouse snapshot here|^Warehouse snapshot of")).first.wait_for()
    say("before")
    tab.get_by_text("beforebefore").first.wait_for()
    killed = envoy(bob.hub)
    os.kill(killed, signal.SIGKILL)
    tab.get_by_text("You have reconnected").first.wait_for()  # nobody touched it
    assert envoy(bob.hub) != killed
    say("after")
    tab.get_by_text("afterafter").first.wait_for()
    tab.screenshot(path=artifacts / "proxy-envoy-back.png")
