"""Both ends of the torture test, each a process of its own that is told what to do by arguments and stdin.

`torture_writer.py write PATH PROGRESS` does all that a sync job may do to a warehouse, in four threads, until stdin is
closed; now and then it closes the file and opens it again. The number of each thread's last commit that had returned
stands in the file PROGRESS (three times 8 bytes: ledger, bulk, stock).

`torture_writer.py check` reads lines of JSON, `[path, [ledger, bulk, stock]]`, and answers each with a line of JSON:
what is wrong with that copy, given the commits that it has to hold. A copy may be bad enough to end this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import duckdb

LEDGER, BULK, STOCK = range(3)
SESSION = 4.0  # seconds between two times that the writer closes its file
SCHEMA = """
    CREATE TABLE counter AS SELECT 0::BIGINT AS n;
    CREATE TABLE debit(n BIGINT, amount BIGINT);
    CREATE TABLE credit(n BIGINT, amount BIGINT);
    CREATE TABLE letters(n BIGINT PRIMARY KEY, body VARCHAR, length BIGINT);
    CREATE TABLE bulk AS SELECT range AS i, hash(range) AS h FROM range(150000);
    CREATE TABLE bulk_sum AS SELECT sum(h) AS total, count(*) AS rows, 0::BIGINT AS turn FROM bulk;
    CREATE TABLE stock AS SELECT range AS item, 0::BIGINT AS amount, 'shelf ' || range AS place FROM range(40000);
    CREATE TABLE stock_turn AS SELECT 0::BIGINT AS turn;
    CREATE TABLE ballast AS SELECT range AS i, hash(range) AS h FROM range(6000000);
    CHECKPOINT;
"""


class Job:
    """One thread of the writer: turns, each a transaction, of which the last that returned is published."""

    def __init__(self, progress: int, slot: int, pause: float, turn: Callable[[duckdb.DuckDBPyConnection, int], None]):
        self.progress, self.slot, self.pause, self.turn = progress, slot, pause, turn
        self.number = 0

    def run(self, connection: duckdb.DuckDBPyConnection, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                connection.execute("BEGIN")
                self.turn(connection, self.number + 1)
                connection.execute("COMMIT")
            except duckdb.TransactionException:
                with contextlib.suppress(duckdb.TransactionException):
                    connection.execute("ROLLBACK")
            else:
                self.number += 1
                os.pwrite(self.progress, self.number.to_bytes(8, "little"), 8 * self.slot)
            time.sleep(self.pause)


def ledger(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Small commits, some with a text that needs overflow blocks."""
    connection.execute("UPDATE counter SET n = ?", [number])
    connection.execute("INSERT INTO debit VALUES (?, ?)", [number, number * 7])
    connection.execute("INSERT INTO credit VALUES (?, ?)", [number, number * 7])
    if number % 10 == 0:
        length = 3000 + number % 7 * 50_000
        connection.execute("INSERT OR REPLACE INTO letters VALUES (?, repeat('x', ?), ?)", [number, length, length])
        connection.execute("DELETE FROM letters WHERE n < ?", [number - 300])
    if number % 40 == 0:
        connection.execute("DELETE FROM debit WHERE n < ?", [number - 200])
        connection.execute("DELETE FROM credit WHERE n < ?", [number - 200])


def bulk(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Loads of more than a row group, which DuckDB writes past its log, and drops that free their blocks."""
    if number % 3:
        rows = 130_000 + number % 7 * 20_000
        connection.execute("DROP TABLE bulk")
        connection.execute(f"CREATE TABLE bulk AS SELECT range AS i, hash(range + {number}) AS h FROM range({rows})")
    else:
        connection.execute(f"INSERT INTO bulk SELECT range, hash(range * {number}) FROM range(130000)")
        connection.execute("DELETE FROM bulk WHERE i % 11 = ?", [number % 11])
    connection.execute("DELETE FROM bulk_sum")
    connection.execute("INSERT INTO bulk_sum SELECT sum(h), count(*), ? FROM bulk", [number])


def stock(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Updates in place, whose amounts always add up to nothing, and changes of the schema."""
    first = number * 977 % 19_500
    connection.execute("UPDATE stock SET amount = amount + 5 WHERE item BETWEEN ? AND ?", [first, first + 499])
    connection.execute(
        "UPDATE stock SET amount = amount - 5, place = 'moved ' || ? WHERE item BETWEEN ? AND ?",
        [number, first + 20_000, first + 20_499],
    )
    connection.execute("UPDATE stock_turn SET turn = ?", [number])
    if number % 5 == 0:
        connection.execute("ALTER TABLE stock ADD COLUMN extra BIGINT DEFAULT 3")
    elif number % 5 == 2 and number > 5:
        connection.execute("ALTER TABLE stock DROP COLUMN extra")
    connection.execute(
        f"CREATE OR REPLACE TABLE passing{number % 4} AS SELECT range AS i FROM range(?)", [number % 999]
    )


def checkpoints(connection: duckdb.DuckDBPyConnection, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        with contextlib.suppress(duckdb.TransactionException):  # others are open: it is done the next time
            connection.execute("CHECKPOINT")


def write(path: str, progress_path: str) -> None:
    progress = os.open(progress_path, os.O_RDWR | os.O_CREAT)
    os.pwrite(progress, bytes(24), 0)
    with duckdb.connect(path) as database:
        database.execute(SCHEMA)
    jobs = [Job(progress, LEDGER, 0.003, ledger), Job(progress, BULK, 0.05, bulk), Job(progress, STOCK, 0.02, stock)]
    closed = threading.Event()
    threading.Thread(target=wait_for_stdin, args=(closed,), daemon=True).start()
    print("ready", flush=True)
    while not closed.is_set():
        stop = threading.Event()
        with duckdb.connect(path) as database:  # a copy that held a lock would make this fail
            runs: list[Callable[[duckdb.DuckDBPyConnection, threading.Event], None]] = [job.run for job in jobs]
            threads = [
                threading.Thread(target=guarded, args=(run, database.cursor(), stop)) for run in [*runs, checkpoints]
            ]
            for thread in threads:
                thread.start()
            closed.wait(SESSION)
            stop.set()
            for thread in threads:
                thread.join()


def wait_for_stdin(closed: threading.Event) -> None:
    sys.stdin.read()
    closed.set()


def guarded(
    run: Callable[[duckdb.DuckDBPyConnection, threading.Event], None],
    connection: duckdb.DuckDBPyConnection,
    stop: threading.Event,
) -> None:
    """End the whole writer when one thread meets an error that is not a conflict with another one."""
    try:
        run(connection, stop)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def faults(path: str, least: list[int]) -> list[str]:
    """What is wrong with a copy that must hold the commits of the numbers in `least`; empty if nothing is."""
    try:
        found, again = answers(path), answers(path)
    except duckdb.Error as error:
        return [f"cannot be read: {str(error).splitlines()[0]}"]
    wrong = [] if found == again else ["opened twice, it answers differently"]
    (counter,), (turn, total, rows), (stock_turn,) = found["counter"], found["bulk_sum"], found["stock_turn"]
    if counter < least[LEDGER] or turn < least[BULK] or stock_turn < least[STOCK]:
        wrong.append(f"holds {counter}, {turn}, {stock_turn}, although {least} had been committed")
    if found["debit"] != found["credit"] or found["debit"][2] not in (counter, None):
        wrong.append(f"half a transaction: {counter}, {found['debit']}, {found['credit']}")
    if found["bulk"] != (total, rows):
        wrong.append(f"bulk holds {found['bulk']}, its transaction wrote {(total, rows)}")
    if found["stock"] != (0, 40_000):
        wrong.append(f"stock adds up to {found['stock']}")
    if found["letters"] != (0,):
        wrong.append(f"{found['letters'][0]} texts are not what was written")
    return wrong


def answers(path: str) -> dict[str, tuple]:
    """Read every value of every table of a copy, and ask what must add up."""
    found: dict[str, tuple] = {}
    with duckdb.connect(path, read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
        for (name,) in names:
            found[f"all of {name}"] = _one(connection, f"SELECT count(*), sum(hash(t)) FROM {name} AS t")
        for name in ("debit", "credit"):
            found[name] = _one(connection, f"SELECT sum(amount), count(*), max(n), sum(amount - 7 * n) FROM {name}")
        found["counter"] = _one(connection, "SELECT n FROM counter")
        found["bulk"] = _one(connection, "SELECT sum(h), count(*) FROM bulk")
        found["bulk_sum"] = _one(connection, "SELECT turn, total, rows FROM bulk_sum")
        found["stock"] = _one(connection, "SELECT sum(amount), count(*) FROM stock")
        found["stock_turn"] = _one(connection, "SELECT turn FROM stock_turn")
        found["letters"] = _one(
            connection, "SELECT count(*) FROM letters WHERE body IS DISTINCT FROM repeat('x', length)"
        )
    return found


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    row = connection.execute(query).fetchone()
    if row is None:
        raise duckdb.DataError(f"no row: {query}")
    return row


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:4])
    else:
        for line in sys.stdin:
            print(json.dumps(faults(*json.loads(line))), flush=True)
