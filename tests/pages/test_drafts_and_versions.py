"""Drafts and versions on the Notebooks page, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub, Person
from tests.pages.conftest import Visit, fits, lock, people

pytestmark = pytest.mark.browser
NO_LOCK = "Open the notebook first: replacing needs its lock."
RELOAD = "Reload the notebook's tab to see it."


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    hub = Hub(tmp_path_factory.mktemp("drafts"))
    hub.start()
    yield people(hub)
    hub.stop()
    assert "Traceback" not in hub.log


def create(person: Person, name: str) -> None:
    assert person.api("POST", "/notebooks", {"name": name, "template": "blank"}).status_code == 201


def text_of(person: Person, name: str) -> dict[str, Any]:
    found: dict[str, Any] = person.api("GET", f"/notebooks/{name}/text").json()
    return found


def edited(text: str) -> str:
    """Some lines more at the end, and a long stretch unchanged."""
    return text + "\n# one more line\n# <b>and another</b>\n"


def draft(person: Person, name: str) -> str:
    """Save with a base that is not the current text: the hub keeps it as a draft. Returns the text."""
    text = edited(text_of(person, name)["text"])
    answer = person.api("PUT", f"/notebooks/{name}/text", {"text": text, "base": "0" * 64, "fence": 1})
    assert answer.status_code == 409
    assert answer.json()["error"]["draft"]
    return text


def save(person: Person, name: str, fence: int, text: str) -> None:
    base = text_of(person, name)["hash"]
    answer = person.api("PUT", f"/notebooks/{name}/text", {"text": text, "base": base, "fence": fence})
    assert answer.status_code == 200, answer.text


def row(page: Any, name: str) -> Any:
    return page.locator(f".mh-draft:has(b:text-is('{name}'))")


def test_refused_save_appears_as_a_draft_without_reload(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    bob = team["bob"]
    create(bob, "report")
    page = visit(bob)
    assert not page.locator("#drafts").is_visible()
    draft(bob, "report")
    row(page, "report").wait_for()
    assert "was not published" in row(page, "report").inner_text()
    assert row(page, "report").locator("time").get_attribute("title")
    labels = row(page, "report").locator("button").all_inner_texts()
    assert labels == ["Compare", "Save as copy", "Replace", "Discard"]
    replace = row(page, "report").get_by_text("Replace", exact=True)
    assert replace.get_attribute("aria-disabled") == "true"
    assert replace.get_attribute("data-why") == NO_LOCK
    page.screenshot(path=artifacts / "drafts.png")
    # nobody else sees it
    assert not visit(team["ann"]).locator("#drafts").is_visible()


def test_compare_shows_what_the_draft_would_change(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    bob = team["bob"]
    create(bob, "compared")
    draft(bob, "compared")
    for scheme, width, shot in (("light", 1280, "compare"), ("dark", 390, "compare-dark-390")):
        page = visit(bob, width=width, height=900, color_scheme=scheme)
        row(page, "compared").get_by_text("Compare", exact=True).click()
        dialog = page.locator("#compare-dialog")
        added = dialog.locator("tr.op-insert")
        added.first.wait_for()
        assert "# <b>and another</b>" in added.locator(".side-right.c-line").all_inner_texts()
        assert set(added.locator(".side-right.c-mark").all_inner_texts()) == {"+"}
        assert re.fullmatch(r"… \d+ unchanged lines?", dialog.locator(".mh-unfold").first.inner_text())
        assert fits(page)
        page.screenshot(path=artifacts / f"{shot}.png")
        before = dialog.locator("tr.op-equal").count()
        dialog.locator(".mh-unfold").first.click()
        assert dialog.locator("tr.op-equal").count() > before
        page.keyboard.press("Escape")
        assert not dialog.is_visible()


def test_draft_saved_as_a_copy_becomes_ones_own_notebook(team: dict[str, Person], visit: Visit) -> None:
    bob = team["bob"]
    create(team["ann"], "shared")
    text = draft(bob, "shared")
    page = visit(bob)
    row(page, "shared").get_by_text("Save as copy").click()
    assert page.locator("#notebook-name").input_value() == "shared_draft"
    page.keyboard.press("Enter")
    page.locator("tr[data-name=shared_draft]").wait_for()
    row(page, "shared").wait_for(state="detached")
    assert text_of(bob, "shared_draft")["text"] == text
    assert page.locator("tr[data-name=shared_draft] .c-author").text_content() == "bob@example.com"


def test_draft_replaces_its_notebook_under_ones_own_lock(team: dict[str, Person], visit: Visit) -> None:
    bob = team["bob"]
    create(bob, "replaced")
    text = draft(bob, "replaced")
    page = visit(bob)
    button = row(page, "replaced").get_by_text("Replace", exact=True)
    button.click(force=True)
    assert not page.locator("#confirm-dialog").is_visible()
    lock(bob, "replaced")
    page.locator(".mh-draft:has(b:text-is('replaced')) [data-draft-action=replace]:not([aria-disabled])").click()
    page.locator("#confirm-dialog [data-confirm]").click()
    row(page, "replaced").wait_for(state="detached")
    page.get_by_text(RELOAD).wait_for()
    assert text_of(bob, "replaced")["text"] == text


def test_discarded_draft_is_gone_after_one_question(team: dict[str, Person], visit: Visit) -> None:
    bob = team["bob"]
    create(bob, "discarded")
    draft(bob, "discarded")
    page = visit(bob)
    row(page, "discarded").get_by_text("Discard", exact=True).click()
    page.keyboard.press("Enter")  # the safe button has the focus
    assert row(page, "discarded").is_visible()
    row(page, "discarded").get_by_text("Discard", exact=True).click()
    assert "cannot be undone" in page.locator("#confirm-dialog-text").inner_text()
    page.locator("#confirm-dialog [data-confirm]").click()
    row(page, "discarded").wait_for(state="detached")


def test_versions_are_listed_compared_and_restored_under_the_lock(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    bob = team["bob"]
    create(bob, "history")
    first = text_of(bob, "history")["text"]
    fence = lock(bob, "history")
    save(bob, "history", fence, edited(first))
    assert bob.api("POST", "/notebooks/history/release", {}).status_code == 200

    page = visit(bob)
    page.get_by_role("button", name="Versions of history").click()
    dialog = page.locator("#versions-dialog")
    dialog.locator(".mh-version").first.wait_for()
    kinds = [text.split("\n")[0].split(" by")[0] for text in dialog.locator(".mh-version-kind").all_inner_texts()]
    assert kinds == ["saved", "created"]
    assert "bob@example.com" in dialog.locator(".mh-version").first.inner_text()
    restore = dialog.locator("[data-restore]")
    assert restore.get_attribute("aria-disabled") == "true"
    assert "restoring needs its lock" in dialog.inner_text()
    restore.click(force=True)
    assert text_of(bob, "history")["text"] == edited(first)
    page.screenshot(path=artifacts / "versions.png")

    dialog.locator("[data-compare]").click()
    compare = page.locator("#compare-dialog")
    compare.locator("tr.op-insert").first.wait_for()
    assert "Created by bob" in compare.inner_text()
    compare.get_by_label("Close").click()

    # the buttons follow the lock, also in an open dialog
    lock(bob, "history")
    dialog.locator("[data-restore]:not([aria-disabled])").click()
    dialog.get_by_text(RELOAD).wait_for()
    assert text_of(bob, "history")["text"] == first
    assert dialog.locator(".mh-version").first.locator(".mh-version-kind").inner_text().startswith("restored")
    page.screenshot(path=artifacts / "versions-restored.png")


def test_versions_fit_a_phone(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    bob = team["bob"]
    create(bob, "phone")
    draft(bob, "phone")
    page = visit(bob, width=390, height=844, color_scheme="dark")
    row(page, "phone").wait_for()
    assert fits(page)
    page.screenshot(path=artifacts / "drafts-dark-390.png")
    page.get_by_role("button", name="Versions of phone").click()
    page.locator(".mh-version").first.wait_for()
    assert fits(page)
    page.screenshot(path=artifacts / "versions-dark-390.png")


def test_viewer_has_neither_drafts_nor_versions(team: dict[str, Person], visit: Visit) -> None:
    create(team["ann"], "seen")
    page = visit(team["carol"])
    page.locator("tr[data-name=seen]").wait_for()
    assert page.locator("#drafts, #versions-dialog, [data-action=versions]").count() == 0
