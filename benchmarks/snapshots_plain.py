"""Plain snapshots: a warehouse to copy, and what a copy costs against `cp`, as a reflink, and to the writer.

The building blocks for benchmarks/snapshots.py. A copy is always made as the hub makes it: by a helper process,
`python -P -m marimohub.snapshots copy --no-sync`, whose whole time counts where nothing else is said.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import emit, note, quick
from tests.snapshots.mounts import CannotMount, mounted

HELPER = [sys.executable, "-P", "-m", "marimohub.snapshots", "copy", "--json"]
WINDOW = 1.0  # seconds
COPY_EVERY = 0.5  # seconds
# The hub's own helper gives way to others like this.
GENTLE = ["nice", "-n", "10"]

COLUMNS = """
    i AS id,
    list_extract(['Ada', 'Ben', 'Chloe', 'David', 'Elif', 'Farid', 'Grete', 'Hugo'], 1 + (a & 7)::INT)
        || ' ' || printf('%x', a >> 40) AS full_name,
    printf('%x.%x@', a >> 44, i) || list_extract(['example.com', 'example.org', 'mail.example'], 1 + (b % 3)::INT)
        AS email,
    printf('+49 %d %d', 100 + (b >> 32) % 900, 1000000 + (b >> 16) % 9000000) AS phone,
    TIMESTAMP '2020-01-01' + to_microseconds((a >> 16)::BIGINT) AS created_at,
    DATE '2024-01-01' + ((b >> 20) % 900)::INT AS due_on,
    ((c >> 30) % 100000000 / 100)::DECIMAL(12, 2) AS amount,
    (c >> 11)::DOUBLE / 9007199254740992 AS score,
    list_extract(['new', 'active', 'paused', 'closed', 'fraud'], 1 + (b % 5)::INT) AS status,
    (c % 200)::SMALLINT AS branch,
    CASE WHEN c % 4 = 0 THEN NULL ELSE 'Order ' || printf('%x', c) || ' was sent with note ' || printf('%x', b >> 8) END
        AS note
"""
"""What every table holds; `full_name`, `email`, `phone` and `note` are what a policy would mask."""

BYTES_PER_ROW = 64.2
BUILD = """
import duckdb, sys
from concurrent.futures import ThreadPoolExecutor
path, tables, rows, columns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def build(number):
    connection.cursor().execute(
        f"CREATE TABLE table_{number} AS SELECT {columns} FROM (SELECT i, hash(i) AS a, "
        "hash(i + 1000000000000) AS b, hash(i + 2000000000000) AS c "
        f"FROM range({number * rows}, {(number + 1) * rows}) AS _(i))"
    )
with duckdb.connect(path) as connection:
    with ThreadPoolExecutor(2) as pool:  # range() itself runs in one thread
        list(pool.map(build, range(tables)))
    connection.execute("CHECKPOINT")
"""

WRITER = """
import duckdb, os, sys, threading
count = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.pwrite(count, bytes(8), 0)
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
with duckdb.connect(sys.argv[1]) as connection:
    connection.execute("CREATE TABLE debit(n BIGINT, amount BIGINT); CREATE TABLE credit(n BIGINT, amount BIGINT)")
    print(flush=True)
    number = 0
    while not stop.is_set():
        connection.execute("BEGIN")
        connection.execute("INSERT INTO debit VALUES (?, ?)", [number, number * 7])
        connection.execute("INSERT INTO credit VALUES (?, ?)", [number, number * 7])
        connection.execute("COMMIT")
        number += 1
        os.pwrite(count, number.to_bytes(8, "little"), 0)
"""

REPEATED = """
import json, sys
from marimohub.snapshots.source import copy
copies = [copy(sys.argv[1], sys.argv[2], sync=False) for _ in range(int(sys.argv[3]))]
print(json.dumps([(each.method, each.seconds - each.startup) for each in copies]))
"""


def make_warehouse(path: Path, gigabytes: float, tables: int = 10) -> None:
    """Build a warehouse of about that size (10^9 bytes), in a process of its own: always the same rows.

    The tables are called table_0, table_1 and so on, and are equal in columns and number of rows.
    """
    rows = int(gigabytes * 1e9 / tables / BYTES_PER_ROW)
    subprocess.run([sys.executable, "-c", BUILD, str(path), str(tables), str(rows), COLUMNS], check=True)
    note(f"{path}: {tables} tables of {rows} rows, {path.stat().st_size / 1e9:.2f} GB")


def time_cp(source: Path, destination: Path) -> float:
    """Seconds that `cp` takes, the start of its process included. The destination is removed afterwards."""
    return _timed(["cp", "--reflink=never", str(source), str(destination)], destination)[0]


def measure_plain(source: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Copy a file that nobody writes to, by `cp` and by our helper in turns, from a warm page cache.

    Returns medians of wall time in seconds: `cp`, `copy` (--no-sync), `cp_synced` (with `sync` of that file after it)
    and `copy_synced`; `ratio` and `ratio_synced` are the medians of the ratios within each turn, ours to theirs.
    """
    target = folder / "plain-copy.duckdb"
    ours = [*HELPER, str(source), str(target)]
    theirs = ["cp", "--reflink=never", str(source), str(target)]
    ways = {
        "cp": theirs,
        "copy": [*ours, "--no-sync"],
        "cp_synced": ["sh", "-c", 'cp --reflink=never "$0" "$1" && sync "$1"', str(source), str(target)],
        "copy_synced": ours,
    }
    _warm(source)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, command in ways.items():
            taken = _timed(command, target)[0]
            if turn:  # the first one has the programs' own files to read
                times[name].append(taken)
    result = {name: statistics.median(values) for name, values in times.items()}
    for suffix in ("", "_synced"):
        pairs = zip(times[f"copy{suffix}"], times[f"cp{suffix}"], strict=True)
        result[f"ratio{suffix}"] = statistics.median(our / their for our, their in pairs)
    return result


def measure_reflink(gigabytes: float, repeats: int = 7) -> float | None:
    """Milliseconds that a copy takes on xfs, where blocks are shared; None where xfs cannot be mounted.

    From the first look at the file to its final name, with DuckDB's check of the copy, in a process where DuckDB has
    been loaded and started. What that takes does not depend on the file: the whole helper process stands on stderr.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marimohub-bench-")))
        try:
            point = stack.enter_context(mounted("xfs", folder / "xfs", gigabytes * 1.5 + 2))
        except CannotMount as error:
            note(f"no reflink copy: {error}")
            return None
        source, target = point / "team.duckdb", point / "copy.duckdb"
        make_warehouse(source, gigabytes)
        _warm(source)
        copies = json.loads(
            subprocess.run(
                [sys.executable, "-P", "-c", REPEATED, str(source), str(target), str(repeats + 1)],
                check=True, capture_output=True,
            ).stdout
        )  # fmt: skip
        target.unlink()
        methods = {method for method, _ in copies}
        if methods != {"reflink"}:
            note(f"no reflink copy: the bytes moved by {methods}")
            return None
        wholes = [_timed([*HELPER, str(source), str(target), "--no-sync"], target)[0] for _ in range(repeats)]
        note(f"reflink copy of {gigabytes:g} GB: helper process {statistics.median(wholes) * 1000:.0f} ms in all")
        return statistics.median(seconds for _, seconds in copies[1:]) * 1000


def measure_writer_slowdown(folder: Path, seconds: float, gigabytes: float = 0.2) -> float:
    """How much slower a writer commits while a copy begins every half a second: 1.05 is 5 % slower.

    A process commits one small transaction after another; windows with and without copies take turns over `seconds`,
    and the medians of their rates are compared. A window's copies end within it.
    """
    live, target = folder / "slowdown.duckdb", folder / "slowdown-copy.duckdb"
    make_warehouse(live, gigabytes)
    count = folder / "slowdown.count"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(live), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    rates: dict[bool, list[float]] = {False: [], True: []}
    copies = 0
    try:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        for turn in range(max(2, int(seconds / WINDOW))):
            copying = turn % 4 in (1, 2)  # in the order without, with, with, without: a drift cancels out
            before, began = _count(count), time.perf_counter()
            while (passed := time.perf_counter() - began) < WINDOW:
                if copying:
                    _timed([*GENTLE, *HELPER, str(live), str(target), "--no-sync"], target)
                    copies += 1
                time.sleep(max(0.0, began + passed + COPY_EVERY - time.perf_counter()))
            rates[copying].append((_count(count) - before) / (time.perf_counter() - began))
    finally:
        if writer.stdin:
            writer.stdin.close()
        writer.wait()
    without, during = (statistics.median(rates[copying]) for copying in (False, True))
    note(f"writer: {without:.0f} commits/s alone, {during:.0f} commits/s during {copies} copies of {gigabytes:g} GB")
    for path in (live, count):
        path.unlink()
    return without / during


def _timed(command: list[str], target: Path) -> tuple[float, dict[str, Any]]:
    """Run a command that makes `target` and remove that; returns wall seconds and the command's report, if any."""
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    taken = time.perf_counter() - began
    target.unlink()
    return taken, json.loads(done.stdout) if done.stdout else {}


def _warm(path: Path) -> None:
    with open(path, "rb") as file:
        while file.read(2**24):
            pass


def _count(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def main() -> None:
    """A run of all this by itself."""
    with tempfile.TemporaryDirectory(prefix="marimohub-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        source = folder / "team.duckdb"
        make_warehouse(source, 0.2 if quick() else 1.0)
        for key, value in measure_plain(source, folder, 3 if quick() else 5).items():
            emit(f"snapshot_plain_{key}", value)
        source.unlink()
        reflink = measure_reflink(0.2 if quick() else 1.0)
        if reflink is not None:
            emit("snapshot_reflink_ms", reflink)
        emit("snapshot_writer_slowdown", measure_writer_slowdown(folder, 16 if quick() else 60))


if __name__ == "__main__":
    main()
