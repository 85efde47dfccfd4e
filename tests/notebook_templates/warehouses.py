"""Small DuckDB files the template tests run against. Each builder closes its file before it returns."""

from collections.abc import Callable
from pathlib import Path

import duckdb

ZOO_COLUMNS = {
    "tiny": "255::UTINYINT",
    "huge": "170141183460469231731687303715884105727::HUGEINT",
    "uhuge": "340282366920938463463374607431768211455::UHUGEINT",
    "money": "1.23::DECIMAL(20, 4)",
    "wide money": "1.5::DECIMAL(38, 10)",
    "not a number": "'nan'::DOUBLE",
    "endless": "'infinity'::FLOAT",
    "big number": "123::BIGNUM",
    "uuid": "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::UUID",
    "blob": "'\\xAA\\x00'::BLOB",
    "list": "[1, 2]",
    "array": "[1, 2]::INTEGER[2]",
    "dates": "[DATE '2020-01-01']",
    "struct": "{'x': 1, 'y': [INTERVAL 1 DAY]}",
    "map": "MAP {'k': 1}",
    "union": "union_value(num := 1)",
    "variant": "42::VARIANT",
    "enum": "'b'::mood",
    "bit": "'0101'::BIT",
    "interval": "INTERVAL 1 MONTH",
    "instant": "TIMESTAMPTZ '2024-05-01 10:00:00+02'",
    "nanoseconds": "TIMESTAMP_NS '2024-05-01 10:00:00.123456789'",
    "time": "TIME '10:00'",
    "time with zone": "'10:00:00+02'::TIMETZ",
    "json": """'{"a": 1}'::JSON""",
    "nothing": "NULL",
    "only nulls": "NULL::INTEGER",
    "no dates": "NULL::TIMESTAMP",
    "open end": "'infinity'::DATE",
    "open start": "'-infinity'::TIMESTAMP",
    "before christ": "DATE '0290-12-22 (BC)'",
    "flag": "true",
    'quo"te': "'x'",
    "it's": "1",
    "select": "'reserved'",
    "Größe in °C": "21.5",
    "{braces}": "'x'",
    "a.b[0]": "3",
    "status": "'shadow'",
    "t": "1",
    "row_count": "7",
    "copies": "'x'",
    "</script><b>html</b>": "'<script>alert(1)</script>'",
    "$low": "5",
}


def empty(path: Path) -> None:
    """A warehouse without any table."""
    duckdb.connect(path).close()


def sample(path: Path) -> None:
    """What the hub's sample warehouse looks like, in small; `orders` is clean, `customers` has defects."""
    with duckdb.connect(path) as con:
        for statement in (
            "CREATE SCHEMA shop",
            """CREATE TABLE shop.orders AS SELECT i AS order_id, i % 50 AS customer_id, (i % 90 + 10)::DECIMAL(10, 2)
               AS amount, now()::TIMESTAMP - to_hours(i::INTEGER) AS ordered_at FROM range(1000) r(i)""",
            """CREATE TABLE shop.customers AS SELECT greatest(i, 3) AS customer_id,
               CASE WHEN i % 10 = 0 THEN 'mail' END AS email,
               CASE WHEN i = 99 THEN 9999999 ELSE i % 7 END AS visits,
               CASE WHEN i = 7 THEN DATE '2999-01-01' ELSE DATE '2019-01-01' + i::INTEGER END AS last_seen
               FROM range(100) r(i)""",
            "INSERT INTO shop.customers SELECT * FROM shop.customers LIMIT 5",
            """CREATE VIEW shop.monthly AS
               SELECT date_trunc('month', ordered_at) AS month, sum(amount) FROM shop.orders GROUP BY 1""",
        ):
            con.execute(statement).fetchall()


def zoo(path: Path) -> None:
    """Strange names, every type, empty and very wide tables, views that cannot be read."""
    with duckdb.connect(path) as con:
        columns = ", ".join(f'{sql} AS "{name.replace(chr(34), chr(34) * 2)}"' for name, sql in ZOO_COLUMNS.items())
        wide = ", ".join(f"i + {n} AS c{n}" if n % 2 else f"'v' || i AS c{n}" for n in range(300))
        for statement in (
            'CREATE SCHEMA "Weird ""Schema"""',
            "CREATE TYPE mood AS ENUM ('a', 'b')",
            f'CREATE TABLE "Weird ""Schema"""."Ünïcode table; --" AS SELECT {columns} FROM range(3)',
            'CREATE TABLE "select" AS SELECT 1 AS "from", NULL AS "where"',
            "CREATE TABLE nobody (id INTEGER PRIMARY KEY, born DATE, note VARCHAR)",
            f"CREATE TABLE wide AS SELECT {wide} FROM range(500) r(i)",
            "CREATE TABLE gone AS SELECT 1 AS x",
            "CREATE VIEW broken AS SELECT x FROM gone",
            "DROP TABLE gone",
            "CREATE TABLE words AS SELECT 'abc' AS word",
            "CREATE VIEW fails_late AS SELECT word::INTEGER AS number FROM words",
        ):
            con.execute(statement).fetchall()


def junk(path: Path) -> None:
    """No database at all."""
    path.write_text("This is not a warehouse.\n" * 1000)


BUILDERS: dict[str, Callable[[Path], None]] = {"empty": empty, "sample": sample, "zoo": zoo, "junk": junk}
