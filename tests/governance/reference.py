"""What a person sees, by the rules of the documentation and nothing else: plain Python over rows as dictionaries.

It shares no code with marimohub.governance, so that the two can be compared. Names of schemas, tables and columns are
compared by ASCII case; policies are those that are valid for the tables (no checks here); no `sql:` conditions.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import yaml

KEY = "k" * 64
ORDER = ["hide", "null", "constant", "hash", "year", "bucket", "email_domain", "partial"]
Row = dict[str, Any]
Key = tuple[str, str]


def low(name: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)


def split(text: str) -> list[str]:
    """Parts of a dotted name with optional quotes."""
    parts, current, quoted = [], "", False
    for position, char in enumerate(text):
        if char == '"':
            if quoted and text[position + 1 : position + 2] == '"':
                current += '"'
            elif not (quoted is False and position and text[position - 1] == '"' and current.endswith('"')):
                quoted = not quoted
            else:
                quoted = True
        elif char == "." and not quoted:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def pattern_rank(pattern: str, schema: str, table: str) -> int:
    """-1 if it does not match, else how specific it is."""
    if pattern == "*":
        return 0
    parts = split(pattern)
    if len(parts) == 1:
        parts = ["main", *parts]
    if low(parts[0]) != low(schema):
        return -1
    if parts[1] == "*" and not pattern.endswith('"'):
        return 1
    return 2 if low(parts[1]) == low(table) else -1


class Person:
    """One person under one policy."""

    def __init__(self, text: str, user: str, role: str | None, groups: set[str], attributes: dict[str, Any]) -> None:
        self.policy = yaml.safe_load(text)
        self.user, self.role, self.groups, self.attributes = user, role, groups, attributes
        self.levels: list[str] = self.policy["levels"]
        self.height = -1
        heights = [self.levels.index(c["level"]) for c in self.policy.get("clearance", []) if self.is_one(c)]
        self.height = max(heights, default=0)

    def attribute(self, name: str) -> list[Any] | None:
        """The values that somebody has; None for none, or for anything of a wrong type."""
        if name == "name":
            return [self.user]
        if name == "groups":
            return sorted(self.groups) or None
        wanted = self.policy["attributes"][name]
        held = self.attributes.get(name)
        if wanted.get("list"):
            if not isinstance(held, list) or not held:
                return None
            values = held
        else:
            values = [held]
        for value in values:
            good = {
                "text": type(value) is str,
                "number": type(value) in (int, float) and math.isfinite(value) and -(2**127) <= value < 2**127
                if type(value) is not float
                else math.isfinite(value),
                "boolean": type(value) is bool,
                "date": type(value) is str and is_date(value),
            }[wanted["type"]]
            if not good:
                return None
        return values

    def is_one(self, who: dict[str, Any]) -> bool:
        if "everyone" in who:
            return True
        return (
            ("roles" not in who or self.role in who["roles"])
            and ("users" not in who or self.user in who["users"])
            and ("groups" not in who or any(group in self.groups for group in who["groups"]))
            and ("clearance" not in who or self.height >= self.levels.index(who["clearance"]))
            and all(
                any(type(a) is type(b) and a == b for a in self.attribute(name) or [] for b in values)
                for name, values in who.get("attributes", {}).items()
            )
        )

    def applies(self, rule: dict[str, Any]) -> bool:
        return self.is_one(rule.get("for", {"everyone": True})) and not (
            "except" in rule and self.is_one(rule["except"])
        )

    def label(self, key: Key, column: str) -> tuple[str, set[str]] | None:
        """Level and tags of a column by what is written about it."""
        ranked = [(pattern_rank(p, *key), p) for p in self.policy["tables"]]
        rank, pattern = max(ranked, default=(-1, ""))
        if rank < 0:
            return None
        entry = self.policy["tables"][pattern] or {}
        written = {low(name): rule or {} for name, rule in (entry.get("columns") or {}).items()}
        rule = written.get(low(column), written.get("*"))
        if rule is None:
            return None
        level = rule.get("level", entry.get("level", self.levels[-1]))
        return level, set(entry.get("tags", [])) | set(rule.get("tags", []))

    def mask(self, key: Key, column: str, kind: str, parts: list[str]) -> tuple[bool, Any]:
        """Whether a column is there, and its mask as the policy writes it (False: none)."""
        own = self.label(key, column)
        labels = [own] + [self.label(key, part) for part in parts]
        if own is None or None in labels:
            return False, False
        if not any(
            any(pattern_rank(p, *key) >= 0 for p in grant["tables"])
            and ("columns" not in grant or low(column) in [low(c) for c in grant["columns"]])
            for grant in self.policy.get("grants", [])
            if self.is_one(grant["to"])
        ):
            return False, False
        height = max(self.levels.index(label[0]) for label in labels if label)
        tags = set().union(*(label[1] for label in labels if label))
        above = height > self.height
        masks, opened = [], not above
        for rule in self.policy.get("masks", []):
            if not self.applies(rule):
                continue
            named = [(low(s), low(t), low(c)) for s, t, c in (full(text) for text in rule.get("columns", []))]
            by_level = above and self.levels[height] in rule.get("levels", [])
            opened = opened or by_level
            mine = (low(key[0]), low(key[1]), low(column))
            itself = mine in named or set(rule.get("tags", [])) & own[1] or own[0] in rule.get("levels", [])
            if (
                by_level
                or set(rule.get("tags", [])) & tags
                or any((low(key[0]), low(key[1]), low(part)) in named for part in [column, *parts])
            ):
                # a mask that only comes with a source, and is not for this type, hides
                masks.append(rule["mask"] if itself or fits(rule["mask"], kind) else "hide")
        if not opened:
            return False, False
        if not masks:
            return True, False
        best = min(masks, key=lambda mask: ORDER.index(mask_name(mask)))
        return best != "hide", best

    def sees(
        self, key: Key, columns: list[tuple[str, str, list[str]]], rows: list[Row]
    ) -> tuple[list[str], list[list[Any]]] | None:
        """Names and masked rows, None if the table is not there; `columns` are name, type and what each is made of."""
        found = [(name, kind, *self.mask(key, name, kind, parts)) for name, kind, parts in columns]
        shown = [(name, kind, mask) for name, kind, visible, mask in found if visible]
        if not shown:
            return None
        kinds = {low(name): (name, kind) for name, kind, _ in columns}
        kept = [row for row in rows if self.keeps(key, row, kinds)]
        return [name for name, _, _ in shown], [
            [row[name] if mask is False else masked(mask, row[name], kind) for name, kind, mask in shown]
            for row in kept
        ]

    def keeps(self, key: Key, row: Row, kinds: dict[str, tuple[str, str]]) -> bool:
        filters = [
            rule
            for rule in self.policy.get("filters", [])
            if self.applies(rule) and any(pattern_rank(p, *key) >= 0 for p in rule["tables"])
        ]
        if any(self.attribute(name) is None for rule in filters for name in asked(rule["where"])):
            return False
        return all(self.truth(rule["where"], row, kinds) is True for rule in filters)

    def truth(self, condition: dict[str, Any], row: Row, kinds: dict[str, tuple[str, str]]) -> bool | None:
        if "all" in condition:
            parts = [self.truth(part, row, kinds) for part in condition["all"]]
            return False if False in parts else None if None in parts else True
        if "any" in condition:
            parts = [self.truth(part, row, kinds) for part in condition["any"]]
            return True if True in parts else None if None in parts else False
        if "not" in condition:
            part = self.truth(condition["not"], row, kinds)
            return None if part is None else not part
        name, kind = kinds[low(condition["column"])]
        value = row[name]
        ((operator, given),) = [(k, v) for k, v in condition.items() if k != "column"]
        if operator == "is_null":
            return (value is None) == given
        if value is None:
            return None
        values: list[Any] = []
        for each in given if isinstance(given, list) else [given]:
            values.extend((self.attribute(each["user"]) or []) if isinstance(each, dict) else [each])
        if operator == "starts_with":
            return str(value).startswith(values[0])
        x, *ys = comparable([value, *values], kind)
        return {
            "equals": lambda: x == ys[0],
            "not_equals": lambda: x != ys[0],
            "in": lambda: x in ys,
            "not_in": lambda: x not in ys,
            "less_than": lambda: x < ys[0],
            "at_most": lambda: x <= ys[0],
            "greater_than": lambda: x > ys[0],
            "at_least": lambda: x >= ys[0],
            "between": lambda: ys[0] <= x <= ys[1],
        }[operator]()


def full(text: str) -> list[str]:
    parts = split(text)
    return ["main", *parts] if len(parts) == 2 else parts


def is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text)) and bool(datetime.strptime(text, "%Y-%m-%d"))
    except ValueError:
        return False


def asked(condition: Any) -> set[str]:
    """Attributes that a condition names, anywhere in it."""
    if isinstance(condition, list):
        return set().union(*map(asked, condition)) if condition else set()
    if not isinstance(condition, dict):
        return set()
    return {condition["user"]} if "user" in condition else asked(list(condition.values()))


def comparable(values: list[Any], kind: str) -> list[Any]:
    """Values that Python orders as the column's type does."""
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return [value.encode() for value in values]
    if kind == "DATE":
        return [value if isinstance(value, date) else date.fromisoformat(value) for value in values]
    if kind == "TIMESTAMP":
        return [value if isinstance(value, datetime) else datetime.fromisoformat(value) for value in values]
    if kind.startswith("DECIMAL"):
        return [Decimal(str(value)) for value in values]
    if kind == "DOUBLE" or any(isinstance(value, float) for value in values):
        # NaN is equal to itself and above everything
        return [(math.isnan(float(value)), 0.0 if math.isnan(float(value)) else float(value)) for value in values]
    return values


def mask_name(mask: Any) -> str:
    if mask is None:
        return "null"
    return mask if isinstance(mask, str) else next(iter(mask))


def fits(mask: Any, kind: str) -> bool:
    """For masks on VARCHAR only, which all generated columns are in these tests."""
    assert kind == "VARCHAR"
    return mask_name(mask) not in ("year", "bucket")


def masked(mask: Any, value: Any, kind: str) -> Any:
    name = mask_name(mask)
    if name == "constant":
        return constant(mask["constant"], kind)
    if name == "null" or value is None:
        return None
    if name == "hash":
        return hashlib.sha256((KEY + text_of(value)).encode()).hexdigest()[:32]
    if name == "email_domain":
        _, at, domain = value.rpartition("@")
        return "***@" + domain if at and re.fullmatch(r"[A-Za-z0-9.-]{1,253}", domain) else "***"
    if name == "partial":
        first, last = mask["partial"].get("first", 0), mask["partial"].get("last", 0)
        fill = mask["partial"].get("fill", "***")
        return fill if len(value) < first + last + 3 else value[:first] + fill + value[len(value) - last :]
    if name == "year":
        return truncated(value, "year")
    bucket = mask["bucket"]
    if "unit" in bucket:
        return truncated(value, bucket["unit"])
    size = bucket["size"]
    if isinstance(value, int) and size == int(size):
        result = value // int(size) * int(size)
        bits = 127 if kind in ("UBIGINT", "HUGEINT") else 63
        return result if -(2**bits) <= result < 2**bits else None
    quotient = float(value) / float(size)
    return (math.floor(quotient) if math.isfinite(quotient) else quotient) * float(size)


def constant(value: Any, kind: str) -> Any:
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if kind == "DOUBLE":
        return float(value)
    if kind == "DATE":
        return date.fromisoformat(value)
    if kind == "TIMESTAMP":
        return datetime.fromisoformat(value)
    return Decimal(str(value)) if kind.startswith("DECIMAL") else value


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        text = value.isoformat(" ")
        return text.rstrip("0") if value.microsecond else text
    return str(value)


def truncated(value: date, unit: str) -> date:
    if not isinstance(value, datetime):
        start = truncated(datetime(value.year, value.month, value.day), unit)
        return date(start.year, start.month, start.day)
    if unit == "hour":
        return value.replace(minute=0, second=0, microsecond=0)
    day = value.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "week":
        return day - timedelta(days=day.weekday())
    if unit == "day":
        return day
    month = {"month": day.month, "quarter": (day.month - 1) // 3 * 3 + 1, "year": 1}[unit]
    return day.replace(day=1, month=month)
