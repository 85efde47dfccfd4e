"""People and their browsers for the tests of pages: signed in by cookie, errors of the console collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.hub import Hub, Person

Visit = Callable[..., Any]
# a failed request is news for the console too, and some tests provoke refusals
EXPECTED = ("Failed to load resource",)


def people(hub: Hub) -> dict[str, Person]:
    """ann is an administrator, bob and eve are editors, carol is a viewer."""
    ann = Person(hub, "ann").set_up()
    found = {"ann": ann}
    for name, role in {"bob": "editor", "eve": "editor", "carol": "viewer"}.items():
        found[name] = Person(hub, name)
        found[name].sign_up()
        ann.approve(name, role)
        found[name].sign_in()
    return found


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """`visit(person)` is their Notebooks page; at the end no page may have complained on its console."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def complain(text: str) -> None:
        if not text.startswith(EXPECTED):
            complaints.append(text)

    def visit(person: Person, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.add_cookies(
            [{"name": c.name, "value": c.value, "domain": c.domain, "path": c.path} for c in person.session.cookies]
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complain(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.goto(f"{person.hub.url}/hub/notebooks")
        page.locator("#notebooks").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def lock(person: Person, name: str) -> int:
    """Open a notebook by the API; returns the fence."""
    answer = person.api("POST", f"/notebooks/{name}/lock", {})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["fence"])


def fits(page: Any) -> bool:
    """Whether the page needs no horizontal scrolling."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
