"""Names as DuckDB compares them: only the case of ASCII letters is ignored, and nothing is normalised."""

from __future__ import annotations

import re
from dataclasses import dataclass

from marimohub.governance.errors import PolicyError

MAIN = "main"
MAX_NAME = 1000

_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FOLD = str.maketrans(_UPPER, _UPPER.lower())
_PART = re.compile(r'"((?:[^"]|"")*)"|([^".\s](?:[^".]*[^".\s])?)')
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def fold(name: str) -> str:
    """The name with ASCII letters in lower case: two names are one object if these are equal."""
    return name.translate(_FOLD)


def quoted(name: str) -> str:
    """The name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def display(schema: str, table: str | None = None, column: str | None = None) -> str:
    """A readable name that `parse_name` reads again: parts are quoted where they must be."""
    parts = [part for part in (schema, table, column) if part is not None]
    return ".".join(part if _PLAIN.fullmatch(part) else quoted(part) for part in parts)


def parse_name(text: str) -> tuple[str, str]:
    """Schema and table of `table`, `schema.table` or `"a.b"."c"`; PolicyError if it is none of these."""
    parts = [part for part, _ in _parts(text)]
    if len(parts) > 2:
        raise PolicyError(f"{text!r} has more than two parts: write schema.table, with quotes around names with dots")
    return (MAIN, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


def parse_column(text: str) -> tuple[str, str, str]:
    """Schema, table and column of `schema.table.column` or `table.column`; PolicyError if it is neither."""
    parts = [part for part, _ in _parts(text)]
    if len(parts) not in (2, 3):
        raise PolicyError(f"{text!r} names no column: write schema.table.column")
    return (MAIN, parts[0], parts[1]) if len(parts) == 2 else (parts[0], parts[1], parts[2])


@dataclass(frozen=True)
class Pattern:
    """An exact table (both parts), every table of a schema (`schema.*`), or every table (`*`); parts are folded."""

    schema: str | None
    table: str | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From `table`, `schema.table`, `schema.*` or `*`; a quoted star is a name. PolicyError for anything else."""
        parts = _parts(text)
        stars = [not quotes and part == "*" for part, quotes in parts]
        if any("*" in part and not star and not quotes for (part, quotes), star in zip(parts, stars, strict=True)):
            raise PolicyError(f"{text!r} is no pattern that can be used: write schema.table, schema.* or *")
        if stars == [True]:
            return cls(None, None)
        if len(parts) == 1:
            return cls(MAIN, fold(parts[0][0]))
        if len(parts) > 2:
            raise PolicyError(f"{text!r} has more than two parts: write schema.table, schema.* or *")
        if stars[0]:
            raise PolicyError(f"{text!r}: a schema cannot be a star, except in * alone")
        return cls(fold(parts[0][0]), None if stars[1] else fold(parts[1][0]))

    @property
    def exact(self) -> bool:
        """Whether it names one table."""
        return self.table is not None

    @property
    def rank(self) -> int:
        """2 for an exact name, 1 for `schema.*`, 0 for `*`: the higher one is the more specific."""
        return (self.schema is not None) + (self.table is not None)

    def matches(self, schema: str, table: str) -> bool:
        """Whether the table, with its names as the catalogue gives them, is meant."""
        return self.schema in (None, fold(schema)) and self.table in (None, fold(table))

    def __str__(self) -> str:
        if self.schema is None:
            return "*"
        return f"{display(self.schema)}.*" if self.table is None else display(self.schema, self.table)


def _parts(text: str) -> list[tuple[str, bool]]:
    """The parts between dots, each with whether it was quoted."""
    if len(text) > MAX_NAME:
        raise PolicyError(f"a name is longer than {MAX_NAME} characters")
    message = f'{text!r} is not a name: write schema.table, with "quotes" around parts with dots or spaces'
    found: list[tuple[str, bool]] = []
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None or match.group(1) == "":
            raise PolicyError(message)
        quotes = match.group(1) is not None
        found.append((match.group(1).replace('""', '"') if quotes else match.group(2), quotes))
        position = match.end()
        if position == len(text):
            return found
        if text[position] != ".":
            raise PolicyError(message)
        position += 1
