"""Process A of a governed build: reads the raw copy, writes masked Parquet, and never makes a file that people get.

DuckDB writes blocks whole, with whatever its recycled memory held in their unused tail, so no process that has seen
raw values may write the database that people get (measured: raw values in 12 of 24 files). Parquet pages are written
to their length, from what the query returned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from marimohub.snapshots.engine import failure, full_name, opened
from marimohub.snapshots.plan import TablePlan
from marimohub.snapshots.types import literal, stored, wire

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MASKING_KEY = "masking_key"
# The file is read once or twice, from memory: compressing, or looking for a dictionary, costs more than it saves. Its
# row groups must not be larger than DuckDB's (122,880 rows; the writer adds up to a vector of 2,048 to what it is
# told): then each becomes one as it is. Else process B compresses most of them twice, and half of its file is unused.
_PARQUET = (
    "FORMAT parquet, PARQUET_VERSION V2, COMPRESSION uncompressed, DICTIONARY_SIZE_LIMIT 1, ROW_GROUP_SIZE 120832"
)


def mask_tables(spec: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """Write one Parquet file, and what is in it as JSON beside it, for each planned table.

    Args:
        spec: `raw` (path), `tables` (list of `plan` and `file`), `masking_key` (hexadecimal text), `memory_limit`,
            `threads`, `temporary`.
        progress: told how many tables are done.
    """
    files = [table["file"] for table in spec["tables"]]
    with opened(spec["raw"], "The warehouse's copy could not be read", spec, read_only=True, files=files) as connection:
        for done, table in enumerate(spec["tables"]):
            plan = TablePlan.from_dict(table["plan"])
            try:
                _mask(connection, plan, table["file"], spec["masking_key"])
            except duckdb.Error as error:
                raise failure(error, f"{plan.schema}.{plan.name} could not be masked") from error
            progress(done + 1)
    return {}


def _mask(connection: DuckDBPyConnection, plan: TablePlan, file: str, key: str) -> None:
    source = f"FROM {full_name(connection, plan.schema, plan.name)}"
    if plan.where is not None:
        source += f" WHERE ({plan.where})"
    columns = ", ".join(f"({column.sql}) AS c{i}" for i, column in enumerate(plan.columns))
    parameters = values(plan, f"{columns} {source}", key)
    kinds = connection.sql(f"SELECT {columns} {source} LIMIT 0", params=parameters).types
    casts = ", ".join(
        f"CAST(({c.sql}) AS {wire(kind)}) AS c{i}" for i, (c, kind) in enumerate(zip(plan.columns, kinds, strict=True))
    )
    counted = connection.execute(
        f"COPY (SELECT {casts} {source}) TO {literal(file)} ({_PARQUET})", parameters
    ).fetchone()
    described = {
        "rows": counted[0] if counted else 0,
        "columns": [{"name": c.name, "type": stored(kind)} for c, kind in zip(plan.columns, kinds, strict=True)],
    }
    Path(file).with_suffix(".json").write_text(json.dumps(described))
    os.chmod(file, 0o400)


def values(plan: TablePlan, text: str, key: str) -> dict[str, Any]:
    """The parameters of a statement: DuckDB refuses those that it does not name."""
    return plan.parameters | ({MASKING_KEY: key} if f"${MASKING_KEY}" in text else {})


def count_rows(spec: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """How many rows of each planned table its condition keeps, and how many there are.

    Args:
        spec: as of `mask_tables`, without `masking_key`; the tables' `file` is not used.
    Returns:
        `counts`, a list of [kept, total].
    """
    counts = []
    with opened(spec["raw"], "The warehouse's copy could not be read", spec, read_only=True) as connection:
        for done, table in enumerate(spec["tables"]):
            plan = TablePlan.from_dict(table["plan"])
            where = plan.where if plan.where is not None else "true"
            # by its full name: a macro of the warehouse may have the short one
            count = "system.main.count_star()"
            query = (
                f"SELECT {count} FILTER (WHERE ({where})), {count} FROM {full_name(connection, plan.schema, plan.name)}"
            )
            used = {name: value for name, value in plan.parameters.items() if _uses(query, name)}
            try:
                counts.append(connection.execute(query, used).fetchone())
            except duckdb.Error as error:
                raise failure(error, f"The rows of {plan.schema}.{plan.name} could not be counted") from error
            progress(done + 1)
    return {"counts": counts}


def _uses(query: str, name: str) -> bool:
    """Whether a statement names a parameter; one parameter's name may begin another's."""
    parts = query.split(f"${name}")
    return any(not (rest[:1].isalnum() or rest[:1] == "_") for rest in parts[1:])
