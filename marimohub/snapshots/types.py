"""Column types on their way from the raw copy through Parquet into a governed snapshot.

`stored` is the type in the snapshot: the raw one, but ENUMs and UNIONs are text (an ENUM's labels name values that no
row need have), as is what has no faithful way through a file. `wire` is the type in the Parquet file: what Parquet
would change (https://parquet.apache.org/docs/file-format/types/ has no 128-bit integers, no time zones of times, no
bit strings, and intervals to the millisecond) travels as text and is cast back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from duckdb.sqltypes import DuckDBPyType

_SAME = frozenset(
    {
        "boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "float",
        "double", "varchar", "blob", "date", "time", "timestamp", "timestamp with time zone", "timestamp_s",
        "timestamp_ms", "timestamp_ns", "uuid",
    }
)  # fmt: skip
_AS_TEXT = frozenset({"hugeint", "uhugeint", "bignum", "bit", "interval", "time with time zone", "time_ns"})


def stored(kind: DuckDBPyType) -> str:
    """The type of a column in the snapshot, as SQL."""
    return _text(kind, wire=False)


def wire(kind: DuckDBPyType) -> str:
    """The type of a column in the Parquet file, as SQL."""
    return _text(kind, wire=True)


def _text(kind: DuckDBPyType, wire: bool) -> str:
    name = kind.id
    if name in _SAME:
        return str(kind)  # JSON is a VARCHAR by id, and should stay JSON
    if name in _AS_TEXT:
        return "VARCHAR" if wire else str(kind)
    if name == "decimal":
        return str(kind)
    if name in ("list", "array", "map", "struct"):
        parts = cast("dict[str, DuckDBPyType]", dict(kind.children))  # but an array's "size" is a number
        if name == "struct":
            fields = (f"{quoted(field)} {_text(part, wire)}" for field, part in parts.items())
            return f"STRUCT({', '.join(fields)})"
        if name == "map":
            return f"MAP({_text(parts['key'], wire)}, {_text(parts['value'], wire)})"
        size = "" if name == "list" or wire else str(parts["size"])
        return f"{_text(parts['child'], wire)}[{size}]"
    return "VARCHAR"


def quoted(name: str) -> str:
    """An identifier as DuckDB reads it back."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text constant, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"
