"""Two texts side by side, line by line, with bounds on time and size."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import islice, zip_longest

MAX_ROWS = 5_000
MAX_LINE = 2_000
DEADLINE_SECONDS = 1.0

Line = tuple[int, str]


@dataclass(frozen=True)
class Row:
    """`op`: equal, delete (left only), insert (right only) or change; lines with their numbers from 1."""

    op: str
    left: Line | None
    right: Line | None


@dataclass(frozen=True)
class Comparison:
    """`truncated`: rows after the first MAX_ROWS are left off, or lines are cut to MAX_LINE characters."""

    rows: list[Row]
    truncated: bool


def compare(left: str, right: str) -> Comparison:
    """Compare two texts; call it in a worker thread.

    A comparison that would take longer than DEADLINE_SECONDS is coarse: what lies between the equal start and the
    equal end is one change. A last empty line stands for the line break at a text's end.
    """
    before, after = left.split("\n"), right.split("\n")
    rows = list(islice(_rows(before, after), MAX_ROWS + 1))
    cut = any(line is not None and len(line[1]) > MAX_LINE for row in rows for line in (row.left, row.right))
    truncated = cut or len(rows) > MAX_ROWS
    return Comparison([Row(row.op, _cut(row.left), _cut(row.right)) for row in rows[:MAX_ROWS]], truncated)


class _TooSlow(Exception):
    pass


class _Matcher(SequenceMatcher[str]):
    """difflib's matcher, whose worst case is quadratic, with a deadline between its steps."""

    deadline = float("inf")

    def find_longest_match(  # the steps that `get_opcodes` is made of
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Match:
        if time.monotonic() > self.deadline:
            raise _TooSlow
        return super().find_longest_match(alo, ahi, blo, bhi)


def _rows(left: list[str], right: list[str]) -> Iterator[Row]:
    for op, left_from, left_to, right_from, right_to in _opcodes(left, right):
        pairs = zip_longest(range(left_from, left_to), range(right_from, right_to))
        for before, after in pairs:
            kind = op
            if op == "replace":
                kind = "insert" if before is None else "delete" if after is None else "change"
            yield Row(
                kind,
                None if before is None else (before + 1, left[before]),
                None if after is None else (after + 1, right[after]),
            )


def _opcodes(left: list[str], right: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    shorter = min(len(left), len(right))
    start = next((n for n in range(shorter) if left[n] != right[n]), shorter)
    end = next((n for n in range(shorter - start) if left[-1 - n] != right[-1 - n]), shorter - start)
    if start:
        yield "equal", 0, start, 0, start
    left_middle, right_middle = left[start : len(left) - end], right[start : len(right) - end]
    for op, left_from, left_to, right_from, right_to in _middle(left_middle, right_middle):
        yield op, start + left_from, start + left_to, start + right_from, start + right_to
    if end:
        yield "equal", len(left) - end, len(left), len(right) - end, len(right)


def _middle(left: list[str], right: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    if not left and not right:
        return []
    whole = [("replace", 0, len(left), 0, len(right))]
    if not left or not right or len(left) + len(right) > 4 * MAX_ROWS:
        return whole
    matcher = _Matcher(None, left, right)
    matcher.deadline = time.monotonic() + DEADLINE_SECONDS
    try:
        return list(matcher.get_opcodes())
    except _TooSlow:
        return whole


def _cut(line: Line | None) -> Line | None:
    if line is None or len(line[1]) <= MAX_LINE:
        return line
    return line[0], line[1][:MAX_LINE] + "…"
