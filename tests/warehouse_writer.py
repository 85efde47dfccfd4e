"""A sync job: keeps a DuckDB warehouse open for writing and commits until it is ended. Usage: writer PATH"""

from __future__ import annotations

import sys
import time

import duckdb


def main(path: str) -> None:
    connection = duckdb.connect(path)
    connection.execute("CREATE TABLE IF NOT EXISTS sync_log (turn BIGINT, synced TIMESTAMP)")
    turn = 0
    while True:
        turn += 1
        connection.execute("BEGIN")
        connection.execute("INSERT INTO sync_log SELECT ?, now()::TIMESTAMP FROM range(50)", [turn])
        connection.execute("COMMIT")
        if turn % 40 == 0:
            connection.execute("CHECKPOINT")
        print(turn, flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    main(sys.argv[1])
