"""The choice of a profile on the Notebooks page, and "Notebook servers" on the Admin page, in Chromium."""

from __future__ import annotations

import json
import os
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
expect.set_options(timeout=30_000)  # as the pages of visit(): a machine may be busy

CONFIG = """
import json, os
from jupyterhub.spawner import SpawnException
from marimohub.spawners.local import LocalMarimoSpawner

class Told(LocalMarimoSpawner):
    def describe_confinement(self):
        return {**super().describe_confinement(), **(json.load(open("say")) if os.path.exists("say") else {})}

    async def start(self):
        if self.user.name == "ann":
            raise SpawnException("No <i>free</i> memory.", reason="test", status_code=503)
        return await super().start()

c.JupyterHub.spawner_class = Told
c.MarimoSpawner.profiles = [
    {"name": "basic", "description": "For most work."},
    {"name": "large", "title": "Large <img src=x>", "memory": "6G", "cpu": 2, "groups": ["editors"]},
]
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    hub = Hub(tmp_path_factory.mktemp("server_pages"), CONFIG)
    hub.start()
    found = people(hub)
    found["bob"].api("POST", "/notebooks", {"name": "sums"})
    yield found
    hub.stop()


def admin_page(visit: Visit, ann: Person, **options: Any) -> Any:
    page = visit(ann, **options)
    page.goto(f"{ann.hub.url}/hub/admin")
    page.locator("#servers-waiting").wait_for(state="hidden")
    return page


def kill_server(person: Person) -> None:
    with sqlite3.connect(person.hub.data / "marimohub.sqlite") as database:
        (state,) = database.execute(
            "select spawners.state from spawners join users on users.id = user_id where users.name = ?", (person.name,)
        ).fetchone()
    os.kill(json.loads(state)["launcher"], signal.SIGKILL)


def test_only_who_has_a_choice_sees_one(team: dict[str, Person], visit: Visit) -> None:
    assert visit(team["bob"]).locator("#server-line").is_visible()
    assert not visit(team["ann"]).locator("#server-line").is_visible()
    assert visit(team["carol"]).locator("#server-line").count() == 0


def test_choice_by_keyboard_is_kept_and_a_running_server_restarts_only_after_it_is_said(
    team: dict[str, Person], visit: Visit
) -> None:
    page = visit(team["bob"])
    line, confirm = page.locator("#server-text"), page.locator("#profile-dialog [data-confirm]")
    expect(line).to_have_text("Your server: Basic · 4 GB · not running")
    page.locator("#choose-profile").focus()
    page.keyboard.press("Enter")
    expect(confirm).to_have_text("Keep Basic")
    page.keyboard.press("ArrowDown")
    expect(confirm).to_have_text("Use Large <img src=x>")
    assert not page.locator("#profile-warning").is_visible()
    page.keyboard.press("Enter")
    expect(line).to_have_text("Your server: Large <img src=x> · 6 GB · 2 CPUs · not running")
    expect(page.locator("#choose-profile")).to_be_focused()
    page.reload()
    with page.context.expect_page():
        page.locator("tr[data-name=sums] button.btn[data-action=open]").click()
    expect(line).to_have_text("Your server: Large <img src=x> · 6 GB · 2 CPUs · running")

    page.locator("#choose-profile").click()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#profile-warning")).to_contain_text(
        "has to restart. The values in your open notebooks are lost"
    )
    page.keyboard.press("Escape")
    expect(page.locator("#profile-dialog")).to_be_hidden()
    assert team["bob"].api("GET", "/profiles").json()["running"]["name"] == "large"
    page.locator("#choose-profile").click()
    page.keyboard.press("ArrowUp")
    confirm.click()
    expect(line).to_have_text("Your server: Basic · 4 GB · running")
    assert team["bob"].api("GET", "/profiles").json()["running"]["name"] == "basic"


def test_server_that_was_killed_says_so_at_once_and_until_it_is_dismissed(
    team: dict[str, Person], visit: Visit
) -> None:
    eve = team["eve"]
    assert eve.api("POST", "/server", {}).status_code == 200
    page = visit(eve)
    kill_server(eve)
    box = page.locator("[data-ended]")
    expect(box).to_contain_text("SIGKILL")
    expect(box).to_contain_text("What you saved is kept.")
    page.reload()
    box.locator(".mh-dismiss").click()
    expect(box).to_have_count(0)
    page.reload()
    expect(page.locator("#server-text")).to_contain_text("not running")
    expect(box).to_have_count(0)
    page.goto(f"{eve.hub.url}/user/eve/")
    expect(page.locator("h1")).to_have_text("Your notebook server has ended")
    expect(page.locator("#ended-because")).to_contain_text("SIGKILL")


def test_administrators_see_servers_stop_them_and_read_why_one_did_not_start(
    team: dict[str, Person], visit: Visit
) -> None:
    ann, bob = team["ann"], team["bob"]
    bob.api("POST", "/server", {"profile": "large", "restart": True})
    assert ann.api("POST", "/server", {}).status_code == 503
    page = admin_page(visit, ann)
    row = page.locator("tr[data-key*=bob]")
    expect(row.locator(".c-user")).to_contain_text("Large <img src=x>")
    expect(row.locator(".status")).to_have_text("Running")
    expect(row.locator(".c-memory")).to_contain_text("of 6 GB")
    expect(row.locator(".c-processes")).to_contain_text("of 1,024")
    expect(row.locator(".c-disk")).to_contain_text("of 20 GB")
    expect(row.locator(".c-cpu")).to_contain_text("of 2")
    row.get_by_role("button", name="Log: bob").click()
    expect(page.locator("#log-dialog pre")).to_contain_text("serving")
    page.keyboard.press("Escape")
    expect(row.get_by_role("button", name="Log: bob")).to_be_focused()

    failed = page.locator("tr[data-key*=ann]")
    expect(failed.locator(".status")).to_have_text("Did not start")
    expect(failed.locator(".c-why")).to_have_text("No <i>free</i> memory.")
    assert failed.get_by_role("button", name="Stop").count() == 0

    row.get_by_role("button", name="Stop: bob").click()
    expect(page.locator("#confirm-dialog-text")).to_contain_text("The values in them are lost")
    page.keyboard.press("Enter")  # the safe button has the focus
    assert bob.api("GET", "/profiles").json()["state"] == "running"
    row.get_by_role("button", name="Stop: bob").click()
    page.locator("#confirm-dialog [data-confirm]").click()
    expect(row).to_have_count(0)
    assert bob.api("GET", "/profiles").json()["state"] == "stopped"


def test_sorting_keeps_what_has_ended_last(team: dict[str, Person], visit: Visit) -> None:
    ann = team["ann"]
    for name in ("bob", "eve"):
        team[name].api("POST", "/server", {})
    ann.api("POST", "/server", {})
    page = admin_page(visit, ann)
    names = page.locator("#servers-rows .name")
    expect(names).to_have_text(["bob", "eve", "ann"])
    page.locator(".is-servers [data-sort=user]").click()
    expect(names).to_have_text(["eve", "bob", "ann"])
    expect(page.locator(".is-servers th[aria-sort]")).to_have_attribute("aria-sort", "descending")


def test_a_sandbox_that_is_off_is_red_and_one_that_is_on_says_what_it_leaves_open(
    team: dict[str, Person], visit: Visit
) -> None:
    ann = team["ann"]
    said = Path(ann.hub.folder) / "say"
    page = admin_page(visit, ann)
    expect(page.locator(".mh-confined")).to_be_visible()
    assert page.locator(".mh-off").count() == 0
    said.write_text(json.dumps({"sandbox": "off", "problems": ["The sandbox is off: <b>everything</b> is open."]}))
    page.reload()
    banner = page.get_by_role("alert").filter(has_text="Notebooks are not confined.")
    expect(banner).to_contain_text("<b>everything</b> is open.")
    red, green, blue = page.evaluate(
        "e => getComputedStyle(e).borderTopColor.match(/\\d+/g).map(Number)", banner.element_handle()
    )
    assert red > 150 and green < 60 and blue < 60
    said.write_text(json.dumps({"problems": ["UDP is open."], "limits": {"memory": "none", "cpu": "affinity"}}))
    page.reload()
    expect(page.get_by_text("UDP is open.")).to_be_hidden()
    page.get_by_text("What confinement does not cover here (1)").click()
    expect(page.get_by_text("UDP is open.")).to_be_visible()
    expect(page.locator(".mh-fold .is-none")).to_have_text("Memory not held")
    said.unlink()


def test_a_hub_that_does_not_answer_is_told_and_asked_again(team: dict[str, Person], visit: Visit) -> None:
    page = visit(team["ann"])
    page.route("**/api/servers*", lambda route: route.abort())
    page.goto(f"{team['ann'].hub.url}/hub/admin")
    problem = page.locator("#alerts [data-key=servers]")
    expect(problem).to_contain_text("What runs is not known just now")
    page.unroute("**/api/servers*")
    problem.get_by_role("button", name="Try again").click()
    expect(problem).to_have_count(0)
    expect(page.locator("#confinement p").first).to_be_visible()


def test_pages_fit_a_phone_in_light_and_dark(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    bob = team["bob"]
    bob.api("POST", "/server", {})
    admin = admin_page(visit, team["ann"], width=390, height=844)
    notebooks = visit(bob, width=390, height=844)
    for scheme in ("light", "dark"):
        for page in (admin, notebooks):
            page.emulate_media(color_scheme=scheme)
            page.reload()
        admin.locator("tr[data-key*=bob]").wait_for()
        assert fits(admin)
        admin.screenshot(path=artifacts / f"servers-{scheme}-390.png")
        notebooks.locator("#choose-profile").click()
        assert fits(notebooks)
        notebooks.screenshot(path=artifacts / f"profiles-{scheme}-390.png")
