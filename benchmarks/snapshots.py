"""What snapshots cost against `cp` of the same file: plain, governed, after a change, cached, by fifty at once.

`SIZE` is the warehouse in GB (10^9 bytes; default 1). Ten equal tables; the policy masks three columns of each (a keyed
hash, a partial mask, a null), withholds one, and keeps three quarters of the rows. `all_visible_vs_cp` is the worst
case: a policy that lets everything through. All times are wall time from the request to the file in a person's
folder, the start of helper processes included; `cp` runs from a warm page cache.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import emit, note, percentile, quick
from benchmarks.snapshots_plain import make_warehouse, measure_plain, measure_reflink, measure_writer_slowdown, time_cp
from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from marimohub.governance.subject import Subject
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.masked import Limits, Raw
from marimohub.snapshots.plan import Plan

TABLES = 10
TICK = 0.005  # seconds
POLICY = """
version: 1
levels: [internal, restricted]
clearance: [{level: internal, everyone: true}]
tables:
  "*":
    level: internal
    columns: {"*": {}, note: {level: NOTE}}
grants: [{name: all, to: {everyone: true}, tables: ["*"]}]
"""
MASKS = """
masks:
  - {name: addresses, columns: [EMAIL], mask: hash}
  - {name: names, columns: [NAME], mask: {partial: {first: 1, last: 0}}}
  - {name: phones, columns: [PHONE], mask: "null"}
filters:
  - {name: branches, tables: ["*"], where: {column: branch, less_than: 150}}
"""


def policy(masked: bool) -> str:
    """The policy's text; with masks and a filter, or one that withholds nothing."""
    text = POLICY.replace("NOTE", "restricted" if masked else "internal")
    if not masked:
        return text
    masks = MASKS
    for key, column in (("EMAIL", "email"), ("NAME", "full_name"), ("PHONE", "phone")):
        masks = masks.replace(key, ", ".join(f"table_{number}.{column}" for number in range(TABLES)))
    return text + masks


class Bench:
    """One warehouse, and caches in a folder beside it."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder, self.source = folder, source
        self.policies = {masked: parse(policy(masked)) for masked in (True, False)}
        self.turn = 0

    def fresh(self) -> SnapshotCache:
        """An empty cache; the former one is removed."""
        shutil.rmtree(self.folder / f"cache{self.turn}", ignore_errors=True)
        self.turn += 1
        limits = Limits("4GB", os.cpu_count() or 2)
        return SnapshotCache(
            self.folder / f"cache{self.turn}", self.source, masking_key="k" * 22, deadline=600, limits=limits
        )

    async def open(self, cache: SnapshotCache, person: int = 0, *, masked: bool = True) -> float:
        """What opening a notebook does about snapshots; returns seconds."""
        began = time.perf_counter()
        raw = await cache.raw()
        plan = await asyncio.to_thread(self.plan, raw, masked)
        snapshot = await cache.governed(raw, plan)
        await asyncio.to_thread(cache.link, snapshot, self.folder / f"person{person}")
        return time.perf_counter() - began

    def plan(self, raw: Raw, masked: bool) -> Plan:
        return resolve(self.policies[masked], raw.schema, Subject("ann", "editor", frozenset(), {})).plan()

    def cp(self) -> float:
        """Seconds that `cp` takes: the median of three, after one that finds room in memory for its result."""
        return statistics.median([time_cp(self.source, self.folder / "cp") for _ in range(4)][1:])

    def change_one(self) -> None:
        """A sync that changes one table of ten."""
        code = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('UPDATE table_3 SET score = score + 1')"
        subprocess.run([sys.executable, "-c", code, str(self.source)], check=True)


async def delays(work: asyncio.Task[float], found: list[float]) -> float:
    """Await the work, and note by how many seconds the event loop was late meanwhile."""
    while not work.done():
        due = time.perf_counter() + TICK
        await asyncio.sleep(TICK)
        found.append(time.perf_counter() - due)
    return await work


async def measure(bench: Bench, repeats: int) -> None:
    """All governed figures of one warehouse."""
    late: list[float] = []
    ratios: dict[str, list[float]] = {"governed_vs_cp": [], "all_visible_vs_cp": [], "one_of_ten_vs_cp": []}
    for turn in range(repeats):
        cp = bench.cp()
        cache = bench.fresh()
        first = await delays(asyncio.create_task(bench.open(cache)), late)
        ratios["governed_vs_cp"].append(first / cp)
        bench.change_one()
        cp = bench.cp()
        changed = await delays(asyncio.create_task(bench.open(cache)), late)
        ratios["one_of_ten_vs_cp"].append(changed / cp)
        note(f"turn {turn + 1}: cp {cp:.2f} s, governed {first:.2f} s, one of ten changed {changed:.2f} s")
    cp = bench.cp()
    ratios["all_visible_vs_cp"].append(await bench.open(bench.fresh(), masked=False) / cp)
    for name, values in ratios.items():
        emit(name, statistics.median(values))
    cache = bench.fresh()
    began = time.perf_counter()
    await delays(asyncio.create_task(fifty(bench, cache)), late)
    emit("fifty_at_once_s", time.perf_counter() - began)
    cached = [await bench.open(cache, number % 50) for number in range(200)]
    emit("cached_ms", statistics.median(cached) * 1000)
    emit("cached_p99_ms", percentile(cached, 99) * 1000)
    emit("hub_delay_p99_ms", percentile(late, 99) * 1000)
    emit("hub_delay_max_ms", max(late) * 1000)


async def fifty(bench: Bench, cache: SnapshotCache) -> float:
    """Fifty people of one policy at once."""
    return max(await asyncio.gather(*(bench.open(cache, number) for number in range(50))))


def main() -> None:
    """Run all of it."""
    size = float(os.environ.get("SIZE", "0.1" if quick() else "1"))
    repeats = 1 if quick() else 3
    with tempfile.TemporaryDirectory(prefix="marimohub-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        source = folder / "team.duckdb"
        make_warehouse(source, size, TABLES)
        emit("plain_vs_cp", measure_plain(source, folder, repeats + 2)["ratio"])
        asyncio.run(measure(Bench(folder, source), repeats))
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        emit("writer_slowdown", measure_writer_slowdown(folder, 8 if quick() else 40))
    reflink = measure_reflink(min(size, 1.0))
    if reflink is not None:
        emit("plain_reflink_ms", reflink)


if __name__ == "__main__":
    main()
