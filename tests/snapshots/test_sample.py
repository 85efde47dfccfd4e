"""The sample warehouse: what it holds, and that it is the same every time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots.sample import build
from tests.snapshots.conftest import rows

pytestmark = pytest.mark.unit

TABLES = (
    "sales.customers", "sales.products", "sales.orders", "sales.order_items", "support.support_tickets",
    "analytics.monthly_revenue", "analytics.customer_value", "analytics.ticket_load",
)  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.duckdb"
    build(path, lambda _line: None)
    return path


def content(path: Path) -> dict[str, tuple[object, ...]]:
    # Sums of doubles depend on the order of rows; decimals and whole numbers do not.
    return {
        table: rows(path, f"SELECT count(*), sum(hash(t)::HUGEINT) FROM {table} t")[0]
        for table in TABLES
        if table != "analytics.ticket_load"
    }


def test_it_is_built_in_seconds_with_a_line_for_each_table(tmp_path):
    lines: list[str] = []
    begin = time.monotonic()
    counted = build(tmp_path / "s.duckdb", lines.append)
    assert time.monotonic() - begin < 10
    assert len(lines) == 5
    assert "sales.orders, 220,000 rows" in lines[2]
    assert counted["sales.orders"] >= 200_000
    assert counted["sales.customers"] >= 5_000
    assert os.listdir(tmp_path) == ["s.duckdb"]


def test_two_builds_hold_the_same_rows_whatever_the_number_of_threads(sample, tmp_path):
    code = (
        "import duckdb, sys, marimohub.snapshots.sample as s; real = duckdb.connect;"
        "duckdb.connect = lambda path: real(path, config={'threads': 1}); s.build(sys.argv[1], print)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.duckdb")], check=True, capture_output=True)
    assert content(tmp_path / "s.duckdb") == content(sample)


def test_every_reference_finds_its_row(sample):
    for child, column, parent in (
        ("sales.orders", "customer_id", "sales.customers"),
        ("sales.order_items", "order_id", "sales.orders"),
        ("sales.order_items", "product_id", "sales.products"),
        ("support.support_tickets", "customer_id", "sales.customers"),
        ("support.support_tickets", "order_id", "sales.orders"),
    ):
        query = f"FROM {child} ANTI JOIN {parent} USING ({column}) SELECT count(*) WHERE {column} IS NOT NULL"
        assert rows(sample, query) == [(0,)], (child, column)
    assert rows(sample, "SELECT count(*) - count(DISTINCT order_id) FROM sales.orders") == [(0,)]
    assert rows(
        sample,
        "SELECT count(*) FROM sales.orders JOIN sales.customers USING (customer_id) WHERE ordered_at < signup_date",
    ) == [(0,)]


def test_the_distributions_are_believable(sample):
    by_month = dict(rows(sample, "SELECT month(ordered_at), count(*) FROM sales.orders GROUP BY 1"))
    assert by_month[12] > 1.5 * by_month[8], "no season"
    (most, median), *_ = rows(
        sample, "SELECT max(n), median(n) FROM (SELECT count(*) AS n FROM sales.orders GROUP BY customer_id)"
    )
    assert 2 < most / median < 20
    countries = rows(sample, "SELECT upper(country) AS c, count(*) FROM sales.customers GROUP BY 1 ORDER BY 2 DESC")
    assert countries[0][0] == "DE"
    assert len(countries) == 11
    # Independent choices: the topic of a ticket says nothing about its hour or its number.
    assert len(rows(sample, "SELECT DISTINCT topic, priority FROM support.support_tickets LIMIT 100")) == 20


def test_a_quality_check_finds_something_but_not_much(sample):
    for query, least, most in (
        ("SELECT count(*) FROM sales.customers WHERE email IS NULL", 50, 400),
        ("SELECT count(*) FROM sales.customers WHERE email NOT LIKE '%_@_%.__%'", 3, 100),
        ("SELECT count(email) - count(DISTINCT email) FROM sales.customers", 5, 100),
        ("SELECT count(*) FROM sales.customers WHERE birth_date NOT BETWEEN '1910-01-01' AND '2020-01-01'", 3, 50),
        ("SELECT count(*) FROM sales.customers WHERE country <> upper(country)", 5, 100),
        ("SELECT count(*) FROM sales.orders WHERE shipped_at < ordered_at", 5, 100),
        ("SELECT count(*) FROM sales.orders WHERE status = 'Complete'", 3, 50),
        ("SELECT count(*) FROM sales.order_items WHERE quantity < 1", 3, 50),
        ("SELECT count(*) FROM sales.products WHERE unit_price = 0", 1, 3),
    ):
        assert least <= rows(sample, query)[0][0] <= most, query


def test_the_views_answer_and_nothing_temporary_is_stored(sample):
    for table in TABLES:
        assert rows(sample, f"SELECT count(*) FROM {table}")[0][0] > 100, table
    assert rows(sample, "SELECT count(*) FROM duckdb_tables()") == [(5,)]
    assert rows(sample, "SELECT count(*) FROM duckdb_functions() WHERE database_name = 'sample'") == [(0,)]
    assert not Path(f"{sample}.wal").exists()


def test_a_full_disk_gives_a_sentence_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "marimohub.snapshots", "sample", str(tmp_path / "s.duckdb")],
        capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("There is no room for the sample warehouse")
    assert os.listdir(tmp_path) == []


def test_the_command_line_builds_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "marimohub.snapshots", "sample", str(tmp_path / "s.duckdb")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 5
    with duckdb.connect(str(tmp_path / "s.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM sales.orders").fetchone() == (220_000,)
