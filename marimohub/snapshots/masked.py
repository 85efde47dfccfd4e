"""The governed build: from a raw copy and a plan to a database that holds what the plan says and no other byte.

Two processes, because DuckDB writes recycled memory into the unused tail of its blocks (facts: raw values in 12 of 24
files that one process had built):

A  (mask_process)   opens the raw copy, writes one Parquet file per table with masks and row filters applied
B  (build_process)  never opened raw data, makes tables without constraints, then the views that still bind; or
   (update_process) replaces what changed in a copy of the last snapshot of the same plan

Both run with `enable_external_access = false`, `lock_configuration = true`, and only the named files allowed. The
Parquet files are kept ("parts"): a part's key is the table's content, its plan and the masking key, so of a warehouse
where one table changed only that one is masked again, and people with different policies share what they have in
common. A snapshot's key is the warehouse's version, the whole plan and the masking key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from marimohub.snapshots import helper
from marimohub.snapshots.flights import Report
from marimohub.snapshots.plan import Plan, TablePlan
from marimohub.snapshots.schema import WarehouseSchema, table_key
from marimohub.snapshots.shelf import Entry, Shelf

# Names the way of building: raise it when the same plan gives other bytes than before.
BUILDER = "1"


@dataclass(frozen=True)
class Limits:
    """What a helper process may use: DuckDB's memory (such as "2GB"), threads, and seconds for one task."""

    memory: str = "2GB"
    threads: int = 2
    timeout: float = 1800.0

    def of(self, folder: Path) -> dict[str, Any]:
        """As a task gets them; what does not fit into memory goes into `folder`."""
        return {"memory_limit": self.memory, "threads": self.threads, "temporary": str(folder / "spill")}


@dataclass(frozen=True)
class Raw:
    """A raw copy with its catalogue: only helper processes read it."""

    entry: Entry

    @property
    def version(self) -> str:
        return self.entry.key

    @cached_property
    def schema(self) -> WarehouseSchema:
        return WarehouseSchema.from_dict(self.entry.about["schema"])

    @property
    def fingerprints(self) -> dict[str, str]:
        found: dict[str, str] = self.entry.about["fingerprints"]
        return found


def snapshot_key(raw: Raw, plan: Plan, masking_key: str) -> str:
    """The key of the snapshot that a plan makes of a raw copy."""
    return _key("snapshot", raw.version, plan.digest(), masking_key)


def part_key(raw: Raw, table: TablePlan, masking_key: str) -> str:
    """The key of one table's masked Parquet."""
    return _key("part", raw.fingerprints[table_key(table.schema, table.name)], table.digest(), masking_key)


def _key(*parts: str) -> str:
    # the masking key is in no file name: whoever sees one learns nothing about it from a SHA-256 of 128 random bits
    return hashlib.sha256(json.dumps([BUILDER, *parts]).encode()).hexdigest()


async def build(
    raw: Raw,
    plan: Plan,
    parts: Shelf,
    folder: Path,
    *,
    base: Entry | None,
    masking_key: str,
    limits: Limits,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    """Make the governed database in `folder`, an empty one that only the hub can use.

    Args:
        base: a former snapshot of the same plan, to start from where most tables did not change.

    Returns:
        the file, and what `manifest` needs to describe it.

    Raises:
        SnapshotError: as the helper says; nothing but files in `folder` and finished parts is left.
    """
    keys = [part_key(raw, table, masking_key) for table in plan.tables]
    with parts.held(keys):
        return await _build(
            raw, plan, keys, parts, folder, base=base, masking_key=masking_key, limits=limits, report=report
        )


async def _build(
    raw: Raw,
    plan: Plan,
    keys: list[str],
    parts: Shelf,
    folder: Path,
    *,
    base: Entry | None,
    masking_key: str,
    limits: Limits,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    found = await asyncio.to_thread(lambda: {key: parts.find(key) for key in keys})
    missing = [(key, table) for key, table in zip(keys, plan.tables, strict=True) if found[key] is None]
    if missing:
        found |= await _mask(raw, missing, parts, folder, masking_key=masking_key, limits=limits, report=report)
    entries = [found[key] for key in keys]
    destination = folder / "warehouse.duckdb"  # as it will be called: what is ambiguous then does not bind now

    def progress(done: int) -> None:
        report(
            0.6 + 0.4 * done / max(1, len(plan.tables)), f"Building your snapshot ({done} of {len(plan.tables)} tables)"
        )

    progress(0)
    names = [(table.schema, table.name) for table in plan.tables]
    former = {(schema, name): key for schema, name, key in base.about["parts"]} if base is not None else {}
    spec = {
        "destination": str(destination),
        "tables": [
            {"schema": schema, "name": name, "file": str(parts.path(key)), "keep": former.get((schema, name)) == key}
            for (schema, name), key in zip(names, keys, strict=True)
        ],
        "views": [asdict(view) for view in plan.views],
        **limits.of(folder),
    }
    unbound = None
    if base is not None and any(table["keep"] for table in spec["tables"]):
        updating = {**spec, "base": str(base.path)}
        updated = await helper.run("update", updating, timeout=limits.timeout, progress=progress)
        unbound = updated["unbound"]
    if unbound is None:
        unbound = (await helper.run("build", spec, timeout=limits.timeout, progress=progress))["unbound"]
    tables = [
        {
            "schema": table.schema,
            "name": table.name,
            "rows": entry.about["rows"],
            "filtered": table.where is not None,
            "columns": entry.about["columns"],
        }
        for table, entry in zip(plan.tables, entries, strict=True)
        if entry is not None
    ]
    made_of = [[schema, name, key] for (schema, name), key in zip(names, keys, strict=True)]
    about = {"tables": tables, "unbound": unbound, "plan": plan.digest(), "builder": BUILDER, "parts": made_of}
    return destination, about


async def _mask(
    raw: Raw,
    missing: list[tuple[str, TablePlan]],
    parts: Shelf,
    folder: Path,
    *,
    masking_key: str,
    limits: Limits,
    report: Report,
) -> dict[str, Entry | None]:
    """Run process A for the tables that no part is there of."""
    files = {key: folder / f"{key}.parquet" for key, _table in missing}

    def progress(done: int) -> None:
        report(0.6 * done / len(missing), f"Applying your masks ({done} of {len(missing)} tables)")

    progress(0)
    await helper.run(
        "mask",
        {
            "raw": str(raw.entry.path),
            "tables": [{"plan": asdict(table), "file": str(files[key])} for key, table in missing],
            "masking_key": masking_key,
            **limits.of(folder),
        },
        timeout=limits.timeout,
        progress=progress,
    )

    def adopt() -> dict[str, Entry | None]:
        return {
            key: parts.put(key, file, json.loads(file.with_suffix(".json").read_bytes())) for key, file in files.items()
        }

    return await asyncio.to_thread(adopt)


def manifest(plan: Plan, about: dict[str, Any]) -> dict[str, Any]:
    """What a snapshot holds, and what it does not and why: the reasons are those of the person whose plan it is.

    Args:
        about: what `build` returned for the same plan, or for one that gives the same.
    """
    unbound = {(schema, name) for schema, name in about["unbound"]}
    views = [(view.schema, view.name) for view in plan.views]
    return {
        "tables": about["tables"],
        "views": [{"schema": schema, "name": name} for schema, name in views if (schema, name) not in unbound],
        "omitted": [
            *({"kind": kind, "name": name, "reason": reason} for kind, name, reason in plan.omitted),
            *(
                {"kind": "view", "name": f"{schema}.{name}", "reason": "It does not work on what you may see."}
                for schema, name in about["unbound"]
            ),
        ],
    }
