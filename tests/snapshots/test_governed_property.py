"""For any warehouse, policy and person: the snapshot holds exactly what the rules say, worked out a second time."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import duckdb
from hypothesis import HealthCheck, given, settings

from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from marimohub.snapshots.build_process import build
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.mask_process import mask_tables
from marimohub.snapshots.masked import Limits
from tests.governance.reference import KEY, Person
from tests.governance.strategies import Case, cases
from tests.governance.test_property import exact, load, quoted

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "40"))
WHOLE = int(os.environ.get("PROPERTY_WHOLE", "4"))
slow = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def make_warehouse(path: Path, case: Case) -> None:
    with duckdb.connect(str(path)) as connection:
        for table in case.schema.tables:
            load(connection, table, case.rows[table.schema, table.name])


def compare(case: Case, snapshot: Path) -> None:
    """Every table of the snapshot, and none else."""
    subject = case.subject
    person = Person(case.text, subject.user, subject.role, set(subject.groups), dict(subject.attributes))
    with duckdb.connect(str(snapshot), read_only=True) as connection:
        there = set(connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall())
        for table in case.schema.tables:
            key = (table.schema, table.name)
            columns = [(column.name, column.type, []) for column in table.columns]
            expected = person.sees(key, columns, case.rows[key])
            assert (expected is not None) == (key in there)
            if expected is None:
                continue
            found = connection.execute(f"FROM {quoted(table.schema)}.{quoted(table.name)}")
            names = [column[0] for column in found.description or ()]
            assert exact((names, [list(row) for row in found.fetchall()])) == exact(expected)
        assert there <= {(table.schema, table.name) for table in case.schema.tables}


@settings(max_examples=EXAMPLES, **slow)
@given(cases(generated=False))
def test_what_the_two_processes_build_is_what_the_rules_say(case: Case) -> None:
    plan = resolve(parse(case.text), case.schema, case.subject).plan()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        make_warehouse(folder / "raw.duckdb", case)
        limits = {"memory_limit": "500MB", "threads": 1, "temporary": str(folder / "spill")}
        files = [str(folder / f"{number}.parquet") for number in range(len(plan.tables))]
        tables = [{"plan": asdict(t), "file": file} for t, file in zip(plan.tables, files, strict=True)]
        raw = str(folder / "raw.duckdb")
        mask_tables({"raw": raw, "tables": tables, "masking_key": KEY, **limits}, lambda _done: None)
        named = [{"schema": t.schema, "name": t.name, "file": f} for t, f in zip(plan.tables, files, strict=True)]
        out = folder / "snapshot.duckdb"
        build({"destination": str(out), "tables": named, "views": [], **limits}, lambda _done: None)
        compare(case, out)


@settings(max_examples=WHOLE, **slow)
@given(cases(generated=False))
def test_what_the_cache_gives_is_what_the_rules_say(case: Case) -> None:
    async def give(folder: Path) -> Path:
        cache = SnapshotCache(folder / "cache", folder / "raw.duckdb", masking_key=KEY, limits=Limits("500MB", 1, 60))
        raw = await cache.raw()
        # the catalogue that the copy was read to have, not the one that made it
        plan = resolve(parse(case.text), raw.schema, case.subject).plan()
        snapshot = await cache.governed(raw, plan)
        return await asyncio.to_thread(cache.link, snapshot, folder / "person")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_warehouse(folder / "raw.duckdb", case)
        compare(case, asyncio.run(give(folder)))
