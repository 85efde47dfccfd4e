"""The notebook templates against real warehouses, awkward ones and none, with the real marimo."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import duckdb
import pytest

from marimohub.notebook_templates import TEMPLATES, UnknownTemplate, render, title_of
from marimohub.snapshots import sample
from tests.notebook_templates import warehouses

RUNNER = Path(__file__).with_name("runner.py")
STATUSES = {"Pass", "Warn", "Fail", "Skipped"}
CHECKS = [
    "Rows",
    "Missing values",
    "Duplicate rows",
    "Duplicate keys",
    "Outliers",
    "Your limits",
    "Dates",
    "Freshness",
]
# the cells around the table picker, as a person would leave them
WIDGETS = {
    "blank": {},
    "data_exploration": {"preview_rows": {"value": 10}},
    "data_quality": {"every_row": {"value": False}},
}
NOTHING_THERE = {"junk", "missing", "unset"}
READABLE = ["hub_sample", "empty", "sample", "zoo"]
Job = dict[str, Any]
Result = dict[str, Any]


def environment(snapshot: str | None) -> dict[str, str]:
    """As in a single-user server: nothing of the hub can be imported from the folder."""
    kept = {k: v for k, v in os.environ.items() if k not in ("MARIMOHUB_SNAPSHOT", "PYTHONPATH")}
    return kept | ({"MARIMOHUB_SNAPSHOT": snapshot} if snapshot else {})


def tables_of(warehouse: Path) -> list[list[str]]:
    with duckdb.connect(warehouse, read_only=True) as con:
        found = con.sql("SELECT table_schema, table_name FROM information_schema.tables").fetchall()
    return sorted(list(row) for row in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All warehouses and all notebooks."""
    folder = tmp_path_factory.mktemp("templates")
    sample.build(folder / "hub_sample.duckdb", lambda line: None)
    for name, build in warehouses.BUILDERS.items():
        build(folder / f"{name}.duckdb")
    for key in TEMPLATES:
        (folder / f"{key}.py").write_text(render(key, "my_book"), encoding="utf-8")
    return folder


def run(folder: Path, key: str, jobs: list[Job]) -> list[Result]:
    answer = folder / f"{key}.json"
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(folder / f"{key}.py"), str(answer)],
        input=json.dumps(jobs),
        cwd=folder,
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    results: list[Result] = json.loads(answer.read_text())
    return results


@pytest.fixture(scope="module")
def results(folder: Path) -> Callable[[str], dict[tuple[str, ...], Result]]:
    """Per template: what came out for (warehouse,) as opened, and (warehouse, schema, table) with that table chosen."""
    cache: dict[str, dict[tuple[str, ...], Result]] = {}

    def of(key: str) -> dict[tuple[str, ...], Result]:
        if key not in cache:
            jobs: dict[tuple[str, ...], Job] = {}
            for name in (*READABLE, *sorted(NOTHING_THERE)):
                snapshot = None if name == "unset" else str(folder / f"{name}.duckdb")
                jobs[(name,)] = {"snapshot": snapshot}
                if key == "blank" or name in NOTHING_THERE:
                    continue
                for table in tables_of(folder / f"{name}.duckdb"):
                    if name == "hub_sample" and table[1] not in ("customers", "orders", "ticket_load"):
                        continue  # for the tests' speed
                    charts = key == "data_exploration" and name != "hub_sample" and table[1] != "wide"
                    jobs[(name, *table)] = {
                        "snapshot": snapshot,
                        "table": table,
                        "widgets": WIDGETS[key],
                        "charts": charts,
                    }
            before = fingerprint(folder)
            cache[key] = dict(zip(jobs, run(folder, key, list(jobs.values())), strict=True))
            assert fingerprint(folder) == before, "a notebook changed the warehouse"
        return cache[key]

    return of


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.duckdb*")}


def test_notebooks_run_as_scripts(folder: Path) -> None:
    """`python notebook.py` with a warehouse; without one, all of them in one go."""
    every = "import runpy, sys; [runpy.run_path(path, run_name='__main__') for path in sys.argv[1:]]"
    commands: list[tuple[list[str], str | None]] = [
        *(([f"{key}.py"], str(folder / "hub_sample.duckdb")) for key in TEMPLATES),
        (["-c", every, *(f"{key}.py" for key in TEMPLATES)], None),
    ]
    for arguments, snapshot in commands:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(snapshot),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (arguments, done.stderr)
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr, (arguments, done.stderr)


@pytest.mark.parametrize("key", TEMPLATES)
def test_no_cell_raises(results: Callable[[str], dict[tuple[str, ...], Result]], key: str) -> None:
    failed = {what: result["error"] for what, result in results(key).items() if "error" in result}
    assert not failed, "\n".join(f"{what}: {error}" for what, error in failed.items())


@pytest.mark.parametrize("key", TEMPLATES)
@pytest.mark.parametrize("name", sorted(NOTHING_THERE))
def test_without_a_snapshot_there_is_one_calm_message(
    results: Callable[[str], dict[tuple[str, ...], Result]], key: str, name: str
) -> None:
    result = results(key)[(name,)]
    [message] = result["callouts"]
    assert "from the hub" in message and "Traceback" not in message
    assert not {"con", "tables", "checks"} & set(result["defs"])


@pytest.mark.parametrize("key", TEMPLATES)
def test_the_warehouse_can_be_read_but_not_changed(
    results: Callable[[str], dict[tuple[str, ...], Result]], key: str
) -> None:
    for what, result in results(key).items():
        if what[0] not in NOTHING_THERE:
            assert result["writes"] == [], what


@pytest.mark.parametrize("key", ["data_exploration", "data_quality"])
@pytest.mark.parametrize("name", READABLE)
def test_all_tables_are_offered(
    results: Callable[[str], dict[tuple[str, ...], Result]], folder: Path, key: str, name: str
) -> None:
    result = results(key)[(name,)]
    assert result["tables"] == tables_of(folder / f"{name}.duckdb")
    if name == "empty":
        [message] = result["callouts"]
        assert "no tables here" in message
    else:
        assert result["callouts"] == []


@pytest.mark.parametrize("key", ["data_exploration", "data_quality"])
@pytest.mark.parametrize("view", ["broken", "fails_late"])
def test_a_view_that_cannot_be_read_says_why(
    results: Callable[[str], dict[tuple[str, ...], Result]], key: str, view: str
) -> None:
    messages = results(key)[("zoo", "main", view)]["callouts"]
    assert messages
    for message in messages:
        assert "DuckDB cannot read this" in message and ("gone" in message or "abc" in message)


def test_exploration_reads_and_draws_every_column(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    unreadable = {("zoo", "main", "broken"), ("zoo", "main", "fails_late")}
    for what, result in results("data_exploration").items():
        if len(what) == 1 or what in unreadable:
            continue
        rows = {"nobody": 0, "select": 1, "words": 1, "Ünïcode table; --": 3}.get(what[2])
        assert result["rows"] == rows if rows is not None else 0 < result["rows"] <= 100, what
        empty = ["This table has no rows yet"] if what[2] == "nobody" else []
        assert [message[1:27] for message in result["callouts"]] == empty, what

    drawn = results("data_exploration")[("zoo", 'Weird "Schema"', "Ünïcode table; --")]["charts"]
    assert list(drawn) == list(warehouses.ZOO_COLUMNS)
    # infinity, "not a number" and nothing but NULL leave nothing to draw, and the notebook says so
    nothing = {"not a number", "endless", "only nulls", "no dates", "open end", "open start", "before christ"}
    assert {name for name, kind in drawn.items() if kind == "callout"} == nothing
    assert drawn["money"] == drawn["uhuge"] == drawn["it's"] == "histogram"
    assert drawn["instant"] == drawn["nanoseconds"] == "over_time"
    assert drawn["struct"] == drawn["dates"] == drawn["</script><b>html</b>"] == "top_values"


def statuses(result: Result) -> dict[str, str]:
    return {check: status for check, (status, _) in result["checks"].items()}


def test_quality_has_a_status_for_every_check(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    checked = {what: result for what, result in results("data_quality").items() if "checks" in result}
    assert len(checked) > 10
    for what, result in checked.items():
        assert list(result["checks"]) == CHECKS, what
        assert set(statuses(result).values()) <= STATUSES, what


def test_quality_passes_a_clean_table(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    clean = statuses(results("data_quality")[("sample", "shop", "orders")])
    assert clean.pop("Your limits") == "Skipped"
    assert set(clean.values()) == {"Pass"}


def test_quality_finds_the_defects(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    checks = results("data_quality")[("sample", "shop", "customers")]["checks"]
    assert checks["Rows"] == ["Pass", "105 rows"]
    assert checks["Missing values"] == ["Fail", "1 column: email"]
    assert checks["Duplicate rows"] == ["Fail", "5 rows repeat another row"]
    # 5 repeated rows, and 0, 1, 2 became 3
    assert checks["Duplicate keys"] == ["Fail", '"customer_id": 8 repeated, 0 empty']
    assert checks["Outliers"] == ["Warn", "1 column: visits"]
    assert checks["Dates"] == ["Fail", "1 column: last_seen"]
    assert checks["Freshness"][0] == "Fail"


def test_quality_finds_what_the_hubs_sample_hides(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    customers = results("data_quality")[("hub_sample", "sales", "customers")]["checks"]
    assert customers["Dates"] == ["Fail", "1 column: birth_date"]
    orders = statuses(results("data_quality")[("hub_sample", "sales", "orders")])
    # the sample's history ends on a fixed day, so that it gets older; the rest is in order
    assert orders.pop("Freshness") in ("Pass", "Fail")
    assert orders.pop("Your limits") == "Skipped"
    assert set(orders.values()) == {"Pass"}


def test_quality_of_an_empty_table(results: Callable[[str], dict[tuple[str, ...], Result]]) -> None:
    checks = results("data_quality")[("zoo", "main", "nobody")]["checks"]
    assert checks.pop("Rows") == ["Warn", "The table is empty"]
    assert {status for status, _ in checks.values()} == {"Skipped"}
    assert checks["Duplicate keys"][1] == "Nothing to check"


def test_quality_follows_its_widgets(folder: Path) -> None:
    def limits(column: str, lowest: str, highest: str) -> dict[str, Any]:
        return {"limited_column": {"value": column}, "lowest": {"value": lowest}, "highest": {"value": highest}}

    choices: list[tuple[dict[str, Any], str, list[str]]] = [
        (limits("visits", "0", ""), "Your limits", ["Pass", "visits: 0 of 105 rows lie outside"]),
        (limits("visits", "0", "6"), "Your limits", ["Fail", "visits: 1 of 105 rows lie outside"]),
        (limits("last_seen", "", "2030-01-01"), "Your limits", ["Fail", "last_seen: 1 of 105 rows lie outside"]),
        (limits("visits", "few", ""), "Your limits", ["Skipped", "“few” is not a value of type BIGINT"]),
        (
            limits("visits", "0); DROP TABLE x", ""),
            "Your limits",
            ["Skipped", "“0); DROP TABLE x” is not a value of type BIGINT"],
        ),
        ({"may_be_future": {"value": ["last_seen"]}}, "Dates", ["Pass", "No date lies in the future"]),
        ({"null_limits": {"value": [50, 95]}}, "Missing values", ["Warn", "1 column: email"]),
        ({"null_limits": {"value": [95, 99]}}, "Missing values", ["Pass", "No column is more than 95 % empty"]),
        ({"key_picker": {"value": []}}, "Duplicate keys", ["Skipped", "No key columns are chosen"]),
        ({"key_picker": {"value": ["email"]}}, "Duplicate keys", ["Fail", '"email": 103 repeated, 94 empty']),
        ({"every_row": {"value": True}}, "Rows", ["Pass", "105 rows"]),
    ]
    jobs = [
        {
            "snapshot": str(folder / "sample.duckdb"),
            "table": ["shop", "customers"],
            "widgets": WIDGETS["data_quality"] | widgets,
        }
        for widgets, _, _ in choices
    ]
    for (widgets, check, expected), result in zip(choices, run(folder, "data_quality", jobs), strict=True):
        assert "error" not in result, (widgets, result["error"])
        assert result["checks"][check] == expected, widgets


@pytest.mark.unit
@pytest.mark.parametrize("key", TEMPLATES)
def test_marimo_would_save_it_exactly_so(tmp_path: Path, key: str) -> None:
    """Otherwise the first save would show changes nobody made."""
    from marimo._ast.app import InternalApp
    from marimo._ast.load import get_notebook_status, load_app
    from marimo._convert.converters import MarimoConvert

    text = render(key, "weekly_sales")
    path = tmp_path / "weekly_sales.py"
    path.write_text(text, encoding="utf-8")
    status = get_notebook_status(str(path))
    assert status.status == "valid" and status.notebook is not None
    assert not status.notebook.violations
    assert MarimoConvert.from_py(text).to_py() == text
    app = load_app(path)
    assert app is not None
    assert InternalApp(app).to_py() == text


@pytest.mark.unit
@pytest.mark.parametrize("key", TEMPLATES)
def test_rendered_text(key: str) -> None:
    text = render(key, "weekly_sales")
    values = {
        node.targets[0].id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(values["__generated_with"]) == metadata.version("marimo")
    assert 'app_title="Weekly sales"' in text
    assert "NOTEBOOK_TITLE" not in text and "MARIMO_VERSION" not in text
    assert text.endswith("app.run()\n")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "title"), [("weekly_sales", "Weekly sales"), ("x", "X"), ("Q3", "Q3"), ("__", "__"), ("_a__b_", "A b")]
)
def test_title(name: str, title: str) -> None:
    assert title_of(name) == title
    assert f'app_title="{title}"' in render("blank", name)


@pytest.mark.unit
@pytest.mark.parametrize("key", ["nope", "", "Blank", "../notebook_templates/blank", "__init__"])
def test_unknown_template(key: str) -> None:
    with pytest.raises(UnknownTemplate) as caught:
        render(key, "fine")
    assert caught.value.key == key
    assert all(known in caught.value.message for known in TEMPLATES)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["", "a b", 'x"; import os', "a\nb", "a\n", "ü", "../x", "a.py"])
def test_a_name_never_becomes_code(name: str) -> None:
    with pytest.raises(ValueError, match="not a notebook name"):
        render("blank", name)


@pytest.mark.unit
def test_the_hub_renders_without_marimo() -> None:
    code = (
        "import sys\n"
        "from marimohub.notebook_templates import TEMPLATES, render\n"
        "assert all(render(key, 'x') for key in TEMPLATES)\n"
        "print([name for name in ('marimo', 'duckdb', 'polars', 'altair') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
