"""Values of people's attributes, held against what the policy declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marimohub.governance.errors import PolicyInvalid, Problem
from marimohub.governance.kinds import fits_attribute
from marimohub.governance.model import AttributeType

MAX_LENGTH = 1000
MAX_VALUES = 1000

_WORDS = {"text": "text", "number": "a number", "date": "a date as YYYY-MM-DD", "boolean": "true or false"}


class AttributesInvalid(PolicyInvalid):
    """Attributes that the policy does not declare, or values of another type; `problems` has all of them."""

    code = "invalid_attributes"


def check_values(declared: Mapping[str, AttributeType], values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a person's attributes; empty if nothing is."""
    found = []
    for name, value in values.items():
        kind = declared.get(name)
        if kind is None:
            found.append(Problem(name, "The policy declares no such attribute."))
        elif not _fits(kind, value):
            found.append(Problem(name, f"The value must be {_describe(kind)}."))
    return found


def from_text(kind: AttributeType, text: str) -> Any:
    """A value that was typed: `3`, `true`, `2026-01-31`, `DE`; for a list `DE,FR`. What cannot be read stays text."""
    if kind.list:
        return [_scalar(kind.type, part.strip()) for part in text.split(",") if part.strip()]
    return _scalar(kind.type, text)


def _scalar(kind: str, text: str) -> Any:
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "number":
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _describe(kind: AttributeType) -> str:
    word = _WORDS[kind.type]
    return f"a list of at most {MAX_VALUES} values, each {word}" if kind.list else word


def _fits(kind: AttributeType, value: Any) -> bool:
    if kind.list:
        return isinstance(value, list) and len(value) <= MAX_VALUES and all(_is(kind, one) for one in value)
    return _is(kind, value)


def _is(kind: AttributeType, value: Any) -> bool:
    if isinstance(value, str) and (len(value) > MAX_LENGTH or "\0" in value):
        return False
    return fits_attribute(value, kind)
