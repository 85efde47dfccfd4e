"""What a person's server finds to read: their own view, a new one when it changes, and nothing when that is unclear."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.policy_hub import POLICY, Office
from tests.snapshots.conftest import commit


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    office = Office(tmp_path_factory.mktemp("governed")).open()
    for name in ("one", "two"):
        assert office.ann.api("POST", "/notebooks", {"name": name}).status_code == 201
    yield office
    office.hub.stop()


@pytest.fixture(autouse=True)
def usual(office: Office) -> Iterator[None]:
    """Every test begins with the usual policy, two countries for ed, and nobody's server running."""
    office.apply()
    attributes(office, "ed", countries=["DE"])
    yield
    for person in office.people.values():
        for name in ("one", "two"):
            person.api("POST", f"/notebooks/{name}/release")
        person.api("DELETE", f"/users/{person.name}/server")
    wait(lambda: not any(running(office, name) for name in office.people))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def attributes(office: Office, name: str, **values: Any) -> None:
    assert office.call("ann", "PUT", f"/people/{name}/attributes", {"attributes": values}).status_code == 200


def running(office: Office, name: str) -> bool:
    found = office.call("ann", "GET", f"/users/{name}").json()
    return bool(found["servers"] or found.get("pending"))


def started(office: Office, name: str) -> str:
    found: str = office.call("ann", "GET", f"/users/{name}").json()["servers"][""]["started"]
    return found


def open_(office: Office, name: str, notebook: str = "one") -> Any:
    return office.people[name].api("POST", f"/notebooks/{notebook}/lock")


def folder(office: Office, name: str) -> Path:
    return office.hub.data / "users" / name / "snapshot"


def read(office: Office, name: str, query: str) -> list[tuple]:
    path = os.path.realpath(folder(office, name) / "warehouse.duckdb")
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(query).fetchall()


def tables(office: Office, name: str) -> list[str]:
    found = read(office, name, "SELECT table_name FROM duckdb_tables() ORDER BY 1")
    return [table for (table,) in found]


def test_everybody_reads_their_own_view_administrators_included(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    assert open_(office, "ann", "two").status_code == 200
    assert read(office, "ed", "SELECT id, country FROM sales.customers ORDER BY 1") == [(1, "DE"), (3, "DE")]
    assert "balance" not in str(read(office, "ed", "DESCRIBE sales.customers"))
    assert tables(office, "ed") == ["customers", "notes"]
    # ann is a boss, and still sees no table that nobody granted her
    assert read(office, "ann", "SELECT email, balance FROM sales.customers ORDER BY id")[0] == ("a@x.de", 1.5)
    assert tables(office, "ann") == ["customers"]
    data = b"".join(path.read_bytes() for path in folder(office, "ed").rglob("*.*"))
    assert b"a@x.de" not in data and b"b@x.fr" not in data and b"hello" in data


def test_the_manifest_says_what_is_there_and_what_is_not(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    about = json.loads((folder(office, "ed") / "warehouse.json").read_text())
    assert about["governed"] is True
    assert {(table["name"], table["rows"], table["filtered"]) for table in about["tables"]} == {
        ("customers", 2, True),
        ("notes", 2, False),
    }
    omitted = {(one["kind"], one["name"]) for one in about["omitted"]}
    assert ("table", "main.secrets") in omitted or ("table", "secrets") in omitted
    assert any(kind == "view" for kind, _ in omitted)
    assert all(one["reason"] for one in about["omitted"])


def test_a_policy_change_restarts_the_server_at_the_next_open(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    before, former = started(office, "ed"), os.path.realpath(folder(office, "ed") / "warehouse.duckdb")
    office.apply(POLICY.replace("tables: [notes]", "tables: [sales.customers]"))
    assert office.people["ed"].api("GET", "/snapshot").json()["snapshot"]["current"] is False
    assert open_(office, "ed", "two").status_code == 200
    assert started(office, "ed") != before
    assert tables(office, "ed") == ["customers"]
    assert not Path(former).exists()


def test_a_policy_change_that_changes_nothing_for_a_person_leaves_their_server_alone(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    before = started(office, "ed")
    office.apply(POLICY + "\n# a comment\n")
    assert office.people["ed"].api("GET", "/snapshot").json()["snapshot"]["current"] is True
    assert office.call("ann", "POST", "/policy/revoke", {}).json() == {"people": []}
    assert open_(office, "ed", "two").status_code == 200
    assert started(office, "ed") == before
    assert office.people["ed"].api("GET", "/snapshot").json()["snapshot"]["current"] is True


def test_a_lost_attribute_and_a_lost_group_count_at_the_next_open(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    assert open_(office, "ann", "two").status_code == 200
    attributes(office, "ed")
    assert office.call("ann", "DELETE", "/groups/bosses/users", {"users": ["ann"]}).status_code == 200
    try:
        assert open_(office, "ed", "one").status_code == 200
        assert read(office, "ed", "SELECT count(*) FROM sales.customers") == [(0,)]
        assert open_(office, "ann", "two").status_code == 200
        assert "balance" not in str(read(office, "ann", "DESCRIBE sales.customers"))
    finally:
        assert office.call("ann", "POST", "/groups/bosses/users", {"users": ["ann"]}).status_code == 200


def test_a_start_by_other_ways_than_open_finds_no_outdated_snapshot(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    assert office.people["ed"].api("DELETE", "/users/ed/server").status_code in (202, 204)
    wait(lambda: not running(office, "ed"))
    office.apply(POLICY.replace("tables: [notes]", "tables: [sales.customers]"))
    assert office.people["ed"].api("POST", "/users/ed/server").status_code in (201, 202)
    wait(lambda: running(office, "ed"))
    assert tables(office, "ed") == ["customers"]


def test_refresh_takes_new_rows_without_a_restart(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    before = started(office, "ed")
    former = os.path.realpath(folder(office, "ed") / "warehouse.duckdb")
    nothing = office.people["ed"].api("POST", "/snapshot/refresh")
    assert nothing.status_code == 200 and nothing.json()["changed"] is False
    commit(office.hub.folder / "team.duckdb", "INSERT INTO notes VALUES ('a new one')")
    answer = office.people["ed"].api("POST", "/snapshot/refresh")
    assert answer.status_code == 200 and answer.json()["changed"] is True
    assert ("a new one",) in read(office, "ed", "FROM notes")
    assert started(office, "ed") == before
    # who is just connecting to the former one still can
    assert Path(former).exists()
    modes = {path.parent.name: path.lstat().st_mode & 0o777 for path in folder(office, "ed").glob("*/warehouse.duckdb")}
    assert set(modes.values()) == {0o440} and len(modes) == 2


def test_refresh_does_not_end_a_server_whose_access_has_changed(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    attributes(office, "ed", countries=["FR"])
    answer = office.people["ed"].api("POST", "/snapshot/refresh")
    assert answer.status_code == 409 and answer.json()["error"]["code"] == "access_changed"
    assert running(office, "ed")


def test_revoking_takes_the_link_away_and_restarts_those_who_are_concerned(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    assert open_(office, "ann", "two").status_code == 200
    ed, ann = started(office, "ed"), started(office, "ann")
    former = os.path.realpath(folder(office, "ed") / "warehouse.duckdb")
    attributes(office, "ed", countries=["FR"])
    answer = office.call("ann", "POST", "/policy/revoke", {})
    assert answer.status_code == 200, answer.text
    assert answer.json()["people"] == [{"user": "ed", "outcome": "restarted", "message": ""}]
    wait(lambda: running(office, "ed"))
    assert started(office, "ed") != ed and started(office, "ann") == ann
    assert not Path(former).exists()
    assert read(office, "ed", "SELECT id FROM sales.customers") == [(2,)]
    assert office.call("ed", "POST", "/policy/revoke", {}).status_code == 403


def test_a_policy_that_no_longer_fits_stops_the_build_and_keeps_nothing_wider_in_use(office: Office) -> None:
    assert open_(office, "ed").status_code == 200
    attributes(office, "ed", countries=["FR"])
    commit(office.hub.folder / "team.duckdb", "ALTER TABLE sales.customers RENAME COLUMN country TO land")
    try:
        answer = open_(office, "ed", "two")
        assert answer.status_code == 409, answer.text
        assert answer.json()["error"]["code"] == "policy_unusable"
        assert list(folder(office, "ed").rglob("*.duckdb")) == []
        wait(lambda: not running(office, "ed"))
        # the lock that this opening took is given back
        assert office.people["ed"].api("GET", "/notebooks/two").json()["lock"]["state"] == "available"
        start = office.people["ed"].api("POST", "/users/ed/server")
        assert start.status_code >= 400 or not running(office, "ed")
        assert list(folder(office, "ed").rglob("*.duckdb")) == []
    finally:
        commit(office.hub.folder / "team.duckdb", "ALTER TABLE sales.customers RENAME COLUMN land TO country")


def test_without_a_policy_nobody_sees_anything(tmp_path: Path) -> None:
    office = Office(tmp_path).open()
    try:
        assert office.ann.api("POST", "/notebooks", {"name": "one"}).status_code == 201
        assert open_(office, "ann").status_code == 200
        assert read(office, "ann", "SELECT count(*) FROM duckdb_tables()") == [(0,)]
        about = json.loads((folder(office, "ann") / "warehouse.json").read_text())
        assert about["tables"] == [] and about["omitted"]
    finally:
        office.hub.stop()
