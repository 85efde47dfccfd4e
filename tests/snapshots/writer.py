"""A sync job that writes to a warehouse, run as a process of its own: `python writer.py PATH PROGRESS MODE`.

After each commit of the ledger the number of it stands in the file PROGRESS (8 bytes), so a test knows which commit
had returned. MODE: `busy` (commits, bulk loads, drops, checkpoints, in two threads), `idle` (one commit, then hold
the lock until stdin is closed), `checkpoints` (nothing but checkpoints of a changed file).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import duckdb


def create(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("CREATE TABLE debit(n BIGINT, amount BIGINT)")
    connection.execute("CREATE TABLE credit(n BIGINT, amount BIGINT)")
    connection.execute("CREATE TABLE counter(n BIGINT)")
    connection.execute("CREATE TABLE bulk_sum(total HUGEINT, rows BIGINT)")
    connection.execute("CREATE TABLE bulk AS SELECT range AS i, hash(range) AS h FROM range(150000)")
    connection.execute("INSERT INTO bulk_sum SELECT sum(h), count(*) FROM bulk")
    connection.execute("INSERT INTO counter VALUES (0)")
    connection.execute("CHECKPOINT")


def ledger(database: duckdb.DuckDBPyConnection, progress: int, stop: threading.Event, pause: float) -> None:
    connection = database.cursor()
    number = 0
    while not stop.is_set():
        try:
            connection.execute("BEGIN")
            connection.execute("UPDATE counter SET n = ?", [number + 1])
            connection.execute("INSERT INTO debit VALUES (?, ?)", [number, number * 7])
            connection.execute("INSERT INTO credit VALUES (?, ?)", [number, number * 7])
            if number % 40 == 39:
                connection.execute("DELETE FROM debit WHERE n < ?", [number - 200])
                connection.execute("DELETE FROM credit WHERE n < ?", [number - 200])
            connection.execute("COMMIT")
        except duckdb.TransactionException:
            connection.execute("ROLLBACK")
            continue
        number += 1
        os.pwrite(progress, number.to_bytes(8, "little"), 0)
        time.sleep(pause)


def loads(database: duckdb.DuckDBPyConnection, stop: threading.Event) -> None:
    connection = database.cursor()
    turn = 0
    while not stop.is_set():
        turn += 1
        try:
            rows = 130_000 + turn % 7 * 20_000
            connection.execute("BEGIN")
            if turn % 3:
                connection.execute("DROP TABLE bulk")
                connection.execute(
                    f"CREATE TABLE bulk AS SELECT range AS i, hash(range + {turn}) AS h FROM range({rows})"
                )
            else:
                connection.execute(f"INSERT INTO bulk SELECT range, hash(range * {turn}) FROM range({rows})")
            connection.execute("DELETE FROM bulk_sum")
            connection.execute("INSERT INTO bulk_sum SELECT sum(h), count(*) FROM bulk")
            connection.execute("COMMIT")
        except duckdb.TransactionException:
            connection.execute("ROLLBACK")
            continue
        if turn % 4 == 0:
            with contextlib.suppress(duckdb.TransactionException):  # another one is open: the job goes on
                connection.execute("CHECKPOINT")
        time.sleep(0.02)


def main() -> None:
    path, progress_path, mode = sys.argv[1:4]
    progress = os.open(progress_path, os.O_RDWR | os.O_CREAT)
    with duckdb.connect(path) as database:
        if not database.execute("SELECT count(*) FROM duckdb_tables()").fetchone()[0]:
            create(database)
        stop = threading.Event()
        threads = []
        if mode == "idle":
            database.execute("INSERT INTO debit VALUES (1, 5)")
            database.execute("INSERT INTO credit VALUES (1, 5)")
        elif mode == "busy":
            threads = [
                threading.Thread(target=ledger, args=(database, progress, stop, 0.002)),
                threading.Thread(target=loads, args=(database, stop)),
            ]
        elif mode == "checkpoints":

            def checkpoints() -> None:
                connection = database.cursor()
                while not stop.is_set():
                    connection.execute("UPDATE counter SET n = n + 1")
                    connection.execute("CHECKPOINT")

            threads = [threading.Thread(target=checkpoints)]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
