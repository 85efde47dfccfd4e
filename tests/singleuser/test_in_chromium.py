"""marimo's page in a real Chromium: cells run, saves arrive, refusals are seen, other pages get nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import duckdb
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.singleuser.server import NOTEBOOK, Server

pytestmark = pytest.mark.browser


WAREHOUSE = """    import os
    import duckdb
    import marimo as mo
    warehouse = duckdb.connect(os.environ["MARIMOHUB_SNAPSHOT"], read_only=True)
    mo.sql("select * from customers", engine=warehouse)
"""


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: Server) -> Iterator[Page]:
    server.hub.signed_in = "alice"
    page = context.new_page()
    yield page
    page.close()


def wait(condition: Callable[[], object], page: Page) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        page.wait_for_timeout(100)


def append(page: Page, text: str) -> None:
    page.locator(".cm-content").first.click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\n" + text)


def test_rows_are_shown_with_the_data_panel_open(page: Page, server: Server, name: str) -> None:
    connection = duckdb.connect(str(server.root / "warehouse.duckdb"))
    connection.execute("create or replace table customers as select range id, 'person ' || range who from range(50)")
    connection.close()
    server.hub.add(name, NOTEBOOK.replace("    answer = 6 * 7\n    answer\n", WAREHOUSE))
    page.goto(f"{server.url}?file={name}.py")
    expect(page.get_by_text("person 7", exact=True)).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Data sources", exact=False).first).to_be_visible()


def test_typing_is_saved_and_a_refused_save_is_seen_at_once(page: Page, server: Server, name: str) -> None:
    entry = server.hub.add(name, NOTEBOOK)
    page.goto(f"{server.url}?file={name}.py")
    expect(page.get_by_text("42", exact=True).first).to_be_visible(timeout=30_000)
    append(page, "typed = 1")
    wait(lambda: "typed = 1" in entry.text, page)
    entry.holder, entry.fence = "bob", 2
    expect(page.get_by_text("no longer locked for you")).to_be_visible(timeout=30_000)
    append(page, "lost = 1")
    expect(page.get_by_text("Your text is kept as a draft", exact=False).first).to_be_visible(timeout=30_000)
    assert "lost = 1" not in entry.text
    assert any("lost = 1" in text for _, text in server.hub.drafts.values())


def test_another_page_of_the_same_origin_gets_nothing(
    page: Page, context: BrowserContext, server: Server, name: str
) -> None:
    server.hub.add(name, NOTEBOOK)
    page.goto(f"{server.url}?file={name}.py")
    expect(page.get_by_text("42", exact=True).first).to_be_visible(timeout=30_000)
    # The server's own error answer stands for a page that somebody else controls on this origin.
    page.goto(f"{server.url}assets/none")
    address = f"/user/alice/?file={name}.py"
    assert page.evaluate("url => fetch(url).then(answer => answer.status)", address) == 403
    framed = """async url => {
        const frame = document.createElement("iframe"); frame.src = url; document.documentElement.append(frame);
        await new Promise(done => frame.onload = done);
        return frame.contentDocument ? frame.contentDocument.documentElement.innerHTML : null }"""
    assert page.evaluate(framed, address) is None
    opened = """async url => {
        const tab = window.open(url); await new Promise(done => setTimeout(done, 2000));
        try { return tab.document.documentElement.innerHTML } catch (error) { return error.name } }"""
    assert page.evaluate(opened, address) == "SecurityError"
    socket = """path => new Promise(done => {
        const socket = new WebSocket("ws://" + location.host + path);
        socket.onopen = () => done("open"); socket.onerror = () => done("refused") })"""
    for path in (f"ws?session_id=s_1&file={name}.py&kiosk=true", "terminal/ws"):
        assert page.evaluate(socket, f"/user/alice/{path}") == "refused", path
    assert page.evaluate("document.cookie") == ""
