"""The warehouse changes, moves or breaks while the hub runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import requests

from tests.hub import Hub, Person


def make(path: Path, rows: int) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE OR REPLACE TABLE t AS SELECT range AS i FROM range({rows})")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Person, Path]]:
    folder = tmp_path_factory.mktemp("with space é")
    warehouse = folder / "my warehouse.duckdb"
    make(warehouse, 10)
    hub = Hub(
        tmp_path_factory.mktemp("changes"),
        f"c.MarimoHub.warehouse = {str(warehouse)!r}\nc.MarimoHub.governance = 'off'",
    )
    hub.start()
    ann = Person(hub, "ann").set_up()
    ann.api("POST", "/notebooks", {"name": "first"})
    yield hub, ann, warehouse
    hub.stop()


def opening(person: Person) -> requests.Response:
    return person.api("POST", "/notebooks/first/lock", {})


def snapshot(hub: Hub) -> Path:
    return hub.data / "users/ann/snapshot/warehouse.duckdb"


def rows(hub: Hub) -> int:
    with duckdb.connect(str(snapshot(hub)), read_only=True) as connection:
        count: int = connection.execute("SELECT count(*) FROM t").fetchall()[0][0]
        return count


def test_unchanged_warehouse_is_not_copied_again_and_a_changed_one_is(team: tuple[Hub, Person, Path]) -> None:
    hub, ann, warehouse = team
    assert opening(ann).status_code == 200
    first = snapshot(hub).stat().st_ino
    assert opening(ann).status_code == 200
    assert snapshot(hub).stat().st_ino == first
    make(warehouse, 20)
    assert opening(ann).status_code == 200
    assert snapshot(hub).stat().st_ino != first
    assert rows(hub) == 20
    with pytest.raises(duckdb.Error), duckdb.connect(str(snapshot(hub)), read_only=True) as connection:
        connection.execute("DELETE FROM t")


def test_warehouse_replaced_by_rename_is_seen(team: tuple[Hub, Person, Path]) -> None:
    hub, ann, warehouse = team
    other = warehouse.with_name("new.duckdb")
    make(other, 30)
    other.rename(warehouse)
    assert opening(ann).status_code == 200
    assert rows(hub) == 30


@pytest.mark.parametrize("harm", ["deleted", "cut off", "text"])
def test_broken_warehouse_is_told_gives_the_lock_back_and_recovers(team: tuple[Hub, Person, Path], harm: str) -> None:
    hub, ann, warehouse = team
    ann.api("POST", "/notebooks/first/release", {})
    good = warehouse.read_bytes()
    if harm == "deleted":
        warehouse.unlink()
    elif harm == "cut off":
        warehouse.write_bytes(good[:5000])
    else:
        warehouse.write_text("id,name\n")
    answer = opening(ann)
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message.endswith(".")
    assert "Traceback" not in message
    (row,) = ann.api("GET", "/notebooks").json()["notebooks"]
    assert row["lock"]["state"] == "available"
    warehouse.write_bytes(good)
    assert opening(ann).status_code == 200
    assert rows(hub) == 30
