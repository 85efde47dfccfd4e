"""The data policy, what people see, and the age of one's own snapshot, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.hub import Hub, Person
from tests.pages.conftest import Visit, fits, lock, people
from tests.snapshots.conftest import commit

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>"
POLICY = """\
version: 1
levels: [internal, secret]
attributes: {countries: {type: text, list: true}}
tables:
  customers: {level: internal, columns: {"*": {}}}
  "\\"<img src=x onerror=alert(1)>\\"": {level: internal, columns: {"*": {}}}
grants:
  - {name: all, to: {roles: [editor, admin]}, tables: ["*"]}
masks:
  - {name: addresses, columns: [customers.email], mask: email_domain}
filters:
  - {name: "<b>own</b>", tables: [customers], except: {roles: [admin]}, where: {column: country, in: {user: countries}}}
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Person]]:
    folder = tmp_path_factory.mktemp("policy")
    with duckdb.connect(str(folder / "team.duckdb")) as connection:
        connection.execute("CREATE TABLE customers AS SELECT 1 AS id, 'ann@x.de' AS email, 'DE' AS country")
        connection.execute(f"""CREATE TABLE "{HOSTILE}" AS SELECT 1 AS "{HOSTILE}" """)
    hub = Hub(folder, f"c.MarimoHub.warehouse = {str(folder / 'team.duckdb')!r}")
    hub.start()
    team = people(hub)
    assert team["ann"].api("POST", "/notebooks", {"name": "one"}).status_code == 201
    yield team
    hub.stop()
    assert "Traceback" not in hub.log


def put(team: dict[str, Person], text: str = POLICY) -> None:
    assert team["ann"].api("PUT", "/policy", {"text": text}).status_code == 201


def goto(page: Any, person: Person, path: str) -> None:
    page.goto(f"{person.hub.url}/hub/{path}")


def test_without_a_policy_the_page_offers_a_draft_and_the_notebooks_page_says_so(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    page = visit(team["ann"])
    # a click is not lost when it comes before the page's module
    held: list[Any] = []
    page.route("**/policy.js*", lambda route: held.append(route))
    page.locator("#no-policy a").click(no_wait_after=True)
    page.locator("#draft").click()
    page.wait_for_timeout(200)
    assert page.locator("#policy-text").is_hidden()
    for route in held:
        route.continue_()
    page.locator("#policy-text").wait_for()
    assert "customers" in page.locator("#policy-text").input_value()
    page.screenshot(path=artifacts / "policy-draft.png")
    bob = visit(team["bob"])
    assert "has not given anybody access" in bob.locator("#no-policy").inner_text()


def test_a_policy_is_checked_corrected_and_applied(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    put(team)
    page = visit(team["ann"])
    goto(page, team["ann"], "policy")
    text = page.locator("#policy-text")
    text.fill(POLICY.replace("column: country", "column: land"))
    page.locator("#check").click()
    page.locator("#findings").get_by_text("there is no column land").wait_for()
    page.screenshot(path=artifacts / "policy-problem.png")
    # what does not fit cannot be applied either, and nothing typed is lost
    page.locator("#apply").click()
    page.locator("#apply-dialog [data-confirm]").click()
    page.locator("#apply-dialog, #findings").get_by_text("no column land").first.wait_for()
    assert "column: land" in text.input_value()
    if page.locator("#apply-dialog[open]").count():
        page.locator("#apply-dialog [data-cancel]").click()
    text.fill(POLICY + "# mended\n")
    page.locator("#apply").click()
    page.locator("#apply-comment").fill("mended")
    page.locator("#apply-dialog [data-confirm]").click()
    page.locator("#policy-state").get_by_text("mended").wait_for()
    assert team["ann"].api("GET", "/policy").json()["text"].endswith("# mended\n")


def test_what_somebody_else_applied_meanwhile_is_not_overwritten(team: dict[str, Person], visit: Visit) -> None:
    put(team)
    page = visit(team["ann"])
    goto(page, team["ann"], "policy")
    page.locator("#policy-text").fill(POLICY + "# mine\n")
    put(team, POLICY + "# theirs\n")
    page.locator("#apply").click()
    page.locator("#apply-dialog [data-confirm]").click()
    page.get_by_text("in the meantime. Your text is kept.").wait_for()
    page.get_by_role("button", name="Compare with mine").click()
    page.locator("dialog[open]").get_by_text("# theirs").first.wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#policy-text").input_value().endswith("# mine\n")
    assert team["ann"].api("GET", "/policy").json()["text"].endswith("# theirs\n")


def test_applying_can_take_older_snapshots_away(team: dict[str, Person], visit: Visit) -> None:
    put(team)
    lock(team["ann"], "one")
    page = visit(team["ann"])
    goto(page, team["ann"], "policy")
    page.locator("#policy-text").fill(POLICY.replace("mask: email_domain", "mask: hide"))
    page.locator("#apply").click()
    page.locator("#apply-revoke").check()
    page.locator("#apply-dialog [data-confirm]").click()
    page.get_by_text("restarted", exact=True).wait_for(timeout=30_000)
    team["ann"].api("POST", "/notebooks/one/release")


@pytest.mark.parametrize("width,scheme", [(1280, "light"), (390, "dark")])
def test_an_administrator_sees_what_others_see_and_gives_them_attributes(
    team: dict[str, Person], visit: Visit, artifacts: Path, width: int, scheme: str
) -> None:
    put(team)
    ann = team["ann"]
    ann.api("PUT", "/people/bob/attributes", {"attributes": {}})
    page = visit(ann, width, color_scheme=scheme)
    goto(page, ann, "policy/people?user=bob")
    page.locator("#explanation").get_by_text("customers", exact=False).first.wait_for()
    assert "no rows" in page.locator("#explanation").inner_text()
    page.locator("#explanation textarea").first.fill("DE")
    page.get_by_role("button", name="Save attributes").click()
    page.locator("#explanation").get_by_text("1 of 1 row").first.wait_for()
    assert ann.api("GET", "/people/bob/attributes").json()["attributes"] == {"countries": ["DE"]}
    # names are text, whatever they are
    assert HOSTILE in page.locator("#explanation").inner_text()
    assert page.locator("#explanation img").count() == 0
    page.locator("#other").select_option("carol")
    page.locator("#difference-body").get_by_text("customers").first.wait_for()
    page.screenshot(path=artifacts / f"people-{scheme}-{width}.png", full_page=True)
    assert fits(page)
    goto(page, ann, "policy")
    page.locator("#policy-text").wait_for()
    page.screenshot(path=artifacts / f"policy-{scheme}-{width}.png")
    assert fits(page)


def test_people_see_their_own_view_and_no_others(team: dict[str, Person], visit: Visit, artifacts: Path) -> None:
    put(team)
    page = visit(team["bob"], 390, color_scheme="dark")
    goto(page, team["bob"], "policy/me")
    page.locator("#explanation").get_by_text("customers").first.wait_for()
    page.screenshot(path=artifacts / "my-data-dark-390.png", full_page=True)
    assert fits(page)
    for path in ("policy", "policy/people"):
        assert team["bob"].page(f"/hub/{path}").status_code == 403
    wide = visit(team["bob"])
    assert wide.get_by_role("link", name="Data policy").count() == 0


def test_the_notebooks_page_tells_the_snapshots_age_and_refreshes_it(
    team: dict[str, Person], visit: Visit, artifacts: Path
) -> None:
    put(team)
    ann = team["ann"]
    lock(ann, "one")
    page = visit(ann)
    page.locator("#data-age").get_by_text("Your data: as of just now").wait_for()
    page.locator("#refresh-snapshot").click()
    page.locator("#data-said").get_by_text("Nothing newer").wait_for()
    commit(ann.hub.folder / "team.duckdb", "INSERT INTO customers VALUES (2, 'bob@x.fr', 'FR')")
    page.locator("#refresh-snapshot").click()
    page.locator("#data-said").get_by_text("New snapshot").wait_for()
    page.screenshot(path=artifacts / "notebooks-age.png")
    # what ann may see changes: her server has to start anew first
    put(team, POLICY.replace("mask: email_domain", "mask: hash"))
    page.locator("#refresh-snapshot").click()
    page.locator("#alerts").get_by_text("What you may see has changed").wait_for()
    ann.api("POST", "/notebooks/one/release")
