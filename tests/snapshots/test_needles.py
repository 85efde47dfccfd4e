"""No byte of a governed file, and of the parts it is made from, is of what its plan hides.

NEEDLE_BUILDS asks for more builds than the few of a usual run (100 and more are the full size), NEEDLE_ROWS for more
rows in each of the warehouse's tables.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.masked import Limits
from tests.snapshots import needles
from tests.snapshots.needles import COMPRESSIONS, Secrets

BUILDS = int(os.environ.get("NEEDLE_BUILDS", "12"))
ROWS = int(os.environ.get("NEEDLE_ROWS", "1500"))
CONTROLS = 20
MEMORY = ("64MB", "80MB", "100MB", "200MB", "2GB")


@pytest.fixture(scope="module")
def haystack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Secrets]:
    path = tmp_path_factory.mktemp("needles") / "warehouse.duckdb"
    return path, needles.make_warehouse(path, ROWS, seed=1)


def tables_of(chance: random.Random) -> list[int]:
    return chance.sample(range(len(COMPRESSIONS)), chance.randint(len(COMPRESSIONS) // 2, len(COMPRESSIONS)))


def test_the_search_finds_what_is_there(haystack):
    path, secrets = haystack
    assert len(secrets.among(path.read_bytes())) > len(secrets.words) // 2
    text = secrets.text()
    for offset in range(8):
        assert len(secrets.among(b"." * offset + text.encode() + b"...")) == 3
    assert secrets.dumped(f"('{text}',)".encode())
    assert secrets.dumped(next(iter(secrets.numbers)))
    assert not secrets.among(b"public 4711 " * 1000)


async def test_governed_files_and_parts_hold_no_byte_of_a_secret(haystack, tmp_path):
    path, secrets = haystack
    cache = SnapshotCache(tmp_path / "cache", path, masking_key="0123456789abcdef" * 2)
    raw = await cache.raw()
    chance = random.Random(4711)
    parts = 0
    for number in range(BUILDS):
        cache.limits = Limits(chance.choice(MEMORY), chance.randint(1, 4))
        built = await cache.governed(raw, needles.make_plan(chance, tables_of(chance)))
        assert not built.reused
        assert secrets.among(built.path.read_bytes()) == set(), (number, cache.limits)
        assert secrets.dumped(await asyncio.to_thread(needles.dump, built.path)) == set(), (number, cache.limits)
        for part in (cache.root / "parts").iterdir():
            assert secrets.among(part.read_bytes()) == set(), (number, cache.limits, part.name)
            part.unlink()
            parts += part.suffix == ".parquet"
        built.path.unlink()
    assert parts >= BUILDS * len(COMPRESSIONS) // 2


def test_the_same_masks_in_one_process_do_leave_secrets_in_the_file(haystack, tmp_path):
    path, secrets = haystack
    chance = random.Random(4711)
    for number in range(CONTROLS):
        out = tmp_path / f"{number}.duckdb"
        plan = needles.make_plan(chance, tables_of(chance))
        needles.build_in_one_process(path, plan, out, "200MB", 1 + number % 4)
        if secrets.among(out.read_bytes()):
            return
        out.unlink()
    pytest.fail("the control shows nothing, so the search proves nothing")
