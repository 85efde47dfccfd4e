"""The whole path of two people in Chromium, while a sync job writes to the warehouse."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from marimohub.snapshots import sample
from tests.hub import Hub, Person

pytestmark = pytest.mark.browser
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sample warehouse under a live writer."""
    path = tmp_path_factory.mktemp("warehouse") / "team.duckdb"
    sample.build(path, lambda _line: None)
    writer = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "warehouse_writer.py"), str(path)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline()
    yield path
    assert writer.poll() is None, "the writer was disturbed"
    writer.kill()
    writer.wait()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, warehouse: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("journey"), f"c.MarimoHub.warehouse = {str(warehouse)!r}")
    hub.start()
    policy = (Path(__file__).parent.parent / "config/sample_policy.yaml").read_text()
    policy = policy.replace("views: [", '  sync_log: {level: internal, columns: {"*": {}}}\nviews: [')
    policy = policy.replace("tables: [sales.*,", "tables: [sync_log, sales.*,")
    command = hub.command("policy", "apply", "-")
    subprocess.run(command, cwd=hub.folder, env=hub.environment, input=policy, text=True, check=True)
    yield hub
    hub.stop()


def person(browser: Any, **options: Any) -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 900}, **options).new_page()
    page.set_default_timeout(30_000)
    return page


def fill(page: Any, **fields: str) -> None:
    for name, value in fields.items():
        page.locator(f"[name={name}]:not([type=hidden])").fill(value)


def create(page: Any, name: str, template: str) -> None:
    page.get_by_role("button", name="New Notebook").click()
    page.locator(f".dropdown-item[data-new={template}]").click()
    page.locator("#notebook-name").fill(name)
    page.keyboard.press("Enter")
    page.locator(f"tr[data-name={name}]").wait_for()


def open_notebook(page: Any, name: str) -> Any:
    with page.context.expect_page() as opened:
        page.locator(f"tr[data-name={name}] button.btn[data-action=open]").click()
    tab = opened.value
    tab.wait_for_url(re.compile(rf"/user/\w+/\?file={name}\.py"))
    return tab


def test_two_people_hand_a_notebook_over(hub: Hub, browser: Any, artifacts: Path) -> None:
    ann = person(browser)
    ann.goto(hub.setup_link())
    fill(ann, username="ann", email="ann@example.com", password=PASSWORD, password_confirmation=PASSWORD)
    ann.locator("main button[type=submit], form button[type=submit]").first.click()
    ann.wait_for_url("**/hub/notebooks")

    bob = person(browser)
    bob.goto(f"{hub.url}/hub/signup")
    fill(bob, username="bob", email="bob@example.com", password=PASSWORD, password_confirmation=PASSWORD)
    bob.locator("form button[type=submit]").first.click()
    bob.get_by_text("waits for an administrator").wait_for()
    ann.goto(f"{hub.url}/hub/accounts")
    ann.get_by_label("Role of bob").select_option("editor")
    ann.get_by_label("Approve bob").click()
    ann.get_by_text("bob can sign in now").wait_for()

    # create from Data Exploration
    ann.goto(f"{hub.url}/notebooks")
    create(ann, "sales", "data_exploration")
    ann.screenshot(path=artifacts / "notebooks.png")

    # open: marimo in a new tab, with rows of the warehouse
    tab = open_notebook(ann, "sales")
    tab.get_by_text("What is in the warehouse").first.wait_for()
    choices = tab.get_by_text("sales.customers", exact=True)
    for _ in range(10):  # while the notebook still runs, marimo closes the list again
        tab.locator("marimo-dropdown").first.get_by_text("analytics.customer_value").click()
        try:
            choices.last.click(timeout=3_000)
            break
        except PlaywrightTimeout:
            continue
    tab.get_by_text(re.compile(r"\*\*\*@\w+\.\w+")).first.wait_for()
    assert tab.get_by_text(re.compile(r"\w+\.\w+\d+@\w+")).count() == 0
    tab.locator("marimohub-snapshot").get_by_text("Data as of").wait_for()
    tab.screenshot(path=artifacts / "marimo.png")
    ann.locator("tr[data-name=sales] .status-mine").wait_for()

    # edit a cell and save
    editor = tab.locator(".cm-content").first
    editor.click()
    tab.keyboard.press("Control+End")
    tab.keyboard.type("\n# changed by ann")
    tab.keyboard.press("Control+s")
    published = hub.data / "notebooks/default/sales.py"
    for _ in range(100):
        if "# changed by ann" in published.read_text():
            break
        tab.wait_for_timeout(100)
    assert "# changed by ann" in published.read_text()

    # bob sees that ann is editing, and cannot get in
    bob.goto(f"{hub.url}/hub/login")
    fill(bob, username="bob", password=PASSWORD)
    bob.locator("form button[type=submit]").first.click()
    bob.wait_for_url("**/hub/notebooks")
    bob.locator("tr[data-name=sales] .status-locked").wait_for()
    assert bob.locator("tr[data-name=sales] [data-action=open]").count() == 0
    assert bob.goto(f"{hub.url}/user/ann/?file=sales.py").status == 403

    # hand over
    tab.close()
    ann.bring_to_front()
    ann.locator("tr[data-name=sales] [data-action=release]").click()
    ann.locator("tr[data-name=sales] .status-available").wait_for()
    bob.goto(f"{hub.url}/hub/notebooks")
    tab = open_notebook(bob, "sales")
    tab.locator(".cm-content", has_text="# changed by ann").first.wait_for()
    tab.screenshot(path=artifacts / "handed-over.png")
    assert hub.log.count("Traceback") == 0, hub.log


def test_snapshots_opened_under_the_writer_are_whole(hub: Hub) -> None:
    (snapshot,) = hub.data.glob("users/ann/snapshot/warehouse.duckdb")
    assert snapshot.stat().st_mode & 0o777 == 0o440
    with duckdb.connect(str(snapshot), read_only=True) as connection:
        counts = connection.execute("SELECT turn, count(*) FROM sync_log GROUP BY turn").fetchall()
        assert counts
        assert {count for _, count in counts} == {50}


def test_hub_crash_is_survived_by_the_open_tab(hub: Hub, browser: Any) -> None:
    bob = person(browser)
    bob.goto(f"{hub.url}/hub/login")
    fill(bob, username="bob", password=PASSWORD)
    bob.locator("form button[type=submit]").first.click()
    bob.wait_for_url("**/hub/notebooks")
    create(bob, "survivor", "blank")
    tab = open_notebook(bob, "survivor")
    tab.get_by_text(re.compile(r"Warehouse snapshot of \d\d \w+ \d{4}")).first.wait_for()
    editor = tab.locator(".cm-content").last
    before = next(hub.data.glob("users/bob/server.log")).stat().st_ino
    hub.kill()

    # the tab goes on computing through the proxy
    editor.click()
    tab.keyboard.press("Control+End")
    tab.keyboard.type("\nprint(6 * 7, 'alive')")
    tab.keyboard.press("Control+Enter")
    tab.get_by_text("42 alive").first.wait_for()
    tab.keyboard.press("Control+s")
    tab.wait_for_timeout(500)
    published = hub.data / "notebooks/default/survivor.py"
    assert "alive" not in published.read_text()

    hub.start()
    assert next(hub.data.glob("users/bob/server.log")).stat().st_ino == before
    assert "bob still running" in hub.log
    ann = Person(hub, "ann")
    ann.sign_in()
    (row,) = [n for n in ann.api("GET", "/notebooks").json()["notebooks"] if n["name"] == "survivor"]
    assert row["lock"]["holder"] == "bob"
    # what was saved while the hub was down arrives, and saving works again
    for text in ("alive", "again"):
        if text == "again":
            editor.click()
            tab.keyboard.press("Control+End")
            tab.keyboard.type("\nprint('again')")
            tab.keyboard.press("Control+s")
        for _ in range(200):
            if text in published.read_text():
                break
            tab.wait_for_timeout(100)
        assert text in published.read_text(), next(hub.data.glob("users/bob/server.log")).read_text()
