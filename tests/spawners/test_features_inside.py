"""marimo's features still work in a confined server: of a hub that runs as an ordinary user, and of root's.

BIG=1: a sort of 2 GB instead of a small one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator

import pytest
import requests
from websockets.sync.client import connect

from tests.spawners.escape.notebook import FETCH
from tests.spawners.escape.works import WORKS
from tests.spawners.escape.world import ATTACKER, OFFLINE, Open, World

BIG = os.environ.get("BIG", "") not in ("", "0")
ROWS, MEMORY = (250_000_000, "1GB") if BIG else (6_000_000, "60MB")  # 8 bytes each, and as much again while sorted
SQL = """
import marimo as mo, duckdb, os
snapshot = duckdb.connect(os.environ["MARIMOHUB_SNAPSHOT"], read_only=True)
found = mo.sql("SELECT count(*) AS n FROM sales.customers", engine=snapshot, output=False)
own = mo.sql("SELECT 6 * 7 AS answer", output=False)
print(found["n"][0] > 0, own["answer"][0])
"""
PLOT = """
import marimo as mo, altair as alt, polars as pl
chart = alt.Chart(pl.DataFrame({"x": [1, 2, 3], "y": [3, 1, 2]})).mark_line().encode(x="x", y="y")
print("vega" in mo.as_html(chart).text)
"""
ELEMENT = """
import marimo as mo
slider = mo.ui.slider(1, 10)
print(slider._id)
"""
SORT = """
import duckdb, os, tempfile
def sort(spill):
    con = duckdb.connect()
    con.execute("SET threads = 2; SET enable_progress_bar = false; SET preserve_insertion_order = false")
    con.execute("SET memory_limit = '{memory}'")
    con.execute(f"SET temp_directory = '{{tempfile.gettempdir()}}/spilled'")
    if not spill:
        con.execute("SET max_temp_directory_size = '0KB'")
    try:
        con.execute(f"CREATE TEMP TABLE sorted AS SELECT hash(range) AS h FROM range({rows}) ORDER BY h")
        return con.execute("SELECT count(*) FROM sorted").fetchone()[0]
    except duckdb.OutOfMemoryException:
        return "too little memory"
    finally:
        con.close()
print("found", [sort(spill=False), sort(spill=True), os.path.samefile(tempfile.gettempdir(), {temp!r})])
"""


@pytest.fixture(scope="module", params=["ordinary", "root"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can run a hub as root")
    with World(request.param) as world:
        yield world


@pytest.fixture
def one(world: World) -> Open:
    return world.opened[ATTACKER]


@pytest.fixture(scope="module")
def working(world: World) -> dict[str, str]:
    return world.try_inside(ATTACKER, list(WORKS), "works")


@pytest.mark.parametrize("name", WORKS)
def test_works(name: str, working: dict[str, str]) -> None:
    assert working[name].startswith("open: "), working[name]


def test_where_the_network_is_closed_the_hub_can_be_asked(world: World) -> None:
    found = world.try_inside(OFFLINE, ["the_hub", "the_network"], "works")
    assert found["the_hub"].startswith("open: "), found
    assert found["the_network"].startswith("denied: "), found


def test_sql_cells_read_the_snapshot_and_tables_of_their_own(one: Open) -> None:
    assert one.page.run(SQL).split() == ["True", "42"]


def test_plots(one: Open) -> None:
    assert one.page.run(PLOT).strip() == "True"


def test_elements_tell_their_values_to_the_kernel(one: Open) -> None:
    cell = one.page.cells[0]
    answer = one.page.post("api/kernel/run", {"cellIds": [cell, "second"], "codes": [ELEMENT, "print(slider.value)"]})
    assert answer.ok, answer.text
    element = one.page.printed_by(cell).strip()
    assert one.page.printed_by("second").strip() == "1"
    answer = one.page.post("api/kernel/set_ui_element_value", {"objectIds": [element], "values": [7]})
    assert answer.ok, answer.text
    assert one.page.printed_by("second").strip() == "7"


def test_file_browser(one: Open) -> None:
    def post(what: str, body: dict[str, object]) -> dict[str, object]:
        answer = one.page.post(f"api/files/{what}", body)
        assert answer.ok, answer.text
        found: dict[str, object] = answer.json()
        return found

    folder = one.folder / "notebooks"
    one.write("notebooks/table.csv", "a,b")
    listed = post("list_files", {"path": str(folder)})["files"]
    assert {"table.csv", f"{ATTACKER}.py"} <= {file["name"] for file in listed}  # type: ignore[attr-defined]
    assert post("file_details", {"path": str(folder / "table.csv")})["contents"] == "a,b"
    form = {"path": str(folder), "type": "directory", "name": "made"}
    created = one.page.post("api/files/create", form=form)
    assert created.json()["success"], created.text
    assert (folder / "made").is_dir()
    assert post("delete", {"path": str(folder / "made")})["success"]


def test_file_browser_shows_nothing_of_others(world: World, one: Open) -> None:
    for folder in (str(world.hub.data), world.targets["victim_home"]):
        listed = one.page.post("api/files/list_files", {"path": folder})
        assert not listed.ok or {file["name"] for file in listed.json()["files"]} <= {"users"}, listed.text
    for file in ("victim_home_file", "victim_notebook", "hub_database"):
        assert not one.page.post("api/files/file_details", {"path": world.targets[file]}).ok


def test_terminal_is_a_shell_in_the_same_sandbox(world: World, one: Open) -> None:
    """With nothing of the launcher's: neither its descriptors (three and that of `ls` remain) nor a token."""
    request = requests.Request("GET", one.page.server).prepare()
    cookies = requests.cookies.get_cookie_header(one.page.http.cookies, request) or ""
    url = f"{one.page.server}terminal/ws?mh_token={one.page.token}".replace("http", "ws", 1)
    parts = ("id -u", f"cat {world.targets['warehouse']} | wc -c", "ls /proc/self/fd | wc -l", "env | grep -c TOKEN")
    command = "echo '<'" + "".join(f"$({part})'|'" for part in parts) + "$((6*7))'>'\n"
    with connect(url, additional_headers={"Cookie": cookies}, origin=one.page.origin, proxy=None) as socket:
        socket.send(command)
        printed, deadline = "", time.monotonic() + 20
        while (found := re.search(r"<(\d+)\|(\d+)\|(\d+)\|(\d+)\|42>", printed)) is None:
            printed += str(socket.recv(timeout=deadline - time.monotonic()))
    uid = (one.folder / "home").stat().st_uid
    assert [int(value) for value in found.groups()] == [uid, 0, 4, 0], printed


def test_sort_bigger_than_its_memory_spills_into_the_own_temp_folder(one: Open) -> None:
    printed = one.page.run(SORT.format(rows=ROWS, memory=MEMORY, temp=str(one.folder / "tmp")), timeout=600)
    assert printed.strip() == f"found {['too little memory', ROWS, True]}"


def test_packages_page_lists_what_is_installed(one: Open) -> None:
    answer = one.page.http.get(
        f"{one.page.server}api/packages/list", headers={"Marimo-Server-Token": one.page.token, **FETCH}
    )
    assert answer.ok, answer.text
    assert "duckdb" in {package["name"] for package in json.loads(answer.text)["packages"]}
