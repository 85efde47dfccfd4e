"""A workspace with 1,000 notebooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub import Hub, Person
from tests.pages.conftest import Visit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    hub = Hub(tmp_path_factory.mktemp("long"))
    hub.start()
    folder = hub.data / "notebooks/default"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        (folder / f"notebook_{number:04}.py").write_text(f"import marimo  # {number}\n")
    yield Person(hub, "ann").set_up()
    hub.stop()


def test_all_of_a_thousand_notebooks_are_listed_searched_and_sorted(ann: Person, visit: Visit) -> None:
    page = visit(ann)
    rows = page.locator("tr[data-name]")
    page.wait_for_function("document.querySelectorAll('tr[data-name]').length === 1000")
    names = rows.evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert names == [f"notebook_{number:04}" for number in range(1000)]
    page.locator("#search").fill("0999")
    assert page.locator("tr[data-name]:visible").evaluate_all("r => r.map(x => x.dataset.name)") == ["notebook_0999"]
    page.locator("#search").fill("nothing like this")
    page.locator("#no-hit").wait_for()
    page.locator("#clear-search").click()
    page.locator(".mh-sort[data-sort=name]").click()
    assert rows.first.get_attribute("data-name") == "notebook_0999"
    # one beyond the rows that the server rendered works as any other
    page.locator("tr[data-name=notebook_0999] [data-action=delete]").click()
    page.locator("#confirm-dialog [data-confirm]").click()
    page.locator("tr[data-name=notebook_0999]").wait_for(state="detached")
