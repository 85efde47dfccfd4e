"""Families of DuckDB types, and how a policy's constants and people's attributes become values of a column's type."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from marimohub.governance.errors import PolicyError
from marimohub.governance.model import AttributeType, Scalar

Bind = Callable[[Any], str]

_INTEGERS = {
    f"{sign}{name}": (sign, bits)
    for sign in ("", "U")
    for name, bits in (("TINYINT", 8), ("SMALLINT", 16), ("INTEGER", 32), ("BIGINT", 64), ("HUGEINT", 128))
}
_TIMES = ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2})[ T](\d{2}:\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?(Z|[+-]\d{2}:\d{2})?")
HUGE = 2**127


@dataclass(frozen=True)
class Kind:
    """A column's type: `family` is text, number, boolean, date, timestamp or other; `name` is the type to cast to."""

    family: str
    name: str
    integer: bool = False
    low: int = 0
    high: int = 0
    scale: int = 0
    width: int = 0

    @property
    def zoned(self) -> bool:
        """Whether it is a moment with a time zone."""
        return self.name == "TIMESTAMPTZ"


def kind_of(type_text: str) -> Kind:
    """The kind of a column, from DuckDB's text for its type. What is not known is of the family `other`."""
    text = type_text.upper()
    if text in _INTEGERS:
        sign, bits = _INTEGERS[text]
        low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return Kind("number", text, integer=True, low=low, high=high)
    if text in ("FLOAT", "DOUBLE"):
        return Kind("number", text)
    if found := _DECIMAL.fullmatch(text):
        width, scale = int(found.group(1)), int(found.group(2))
        return Kind("number", f"DECIMAL({width},{scale})", width=width, scale=scale)
    if text == "VARCHAR" or is_enum(type_text):
        return Kind("text", "VARCHAR")
    if text in ("BOOLEAN", "DATE"):
        return Kind(text.lower(), text)
    if text in _TIMES:
        return Kind("timestamp", "TIMESTAMPTZ" if text.endswith(("ZONE", "TZ")) else text)
    return Kind("other", type_text)


def is_enum(type_text: str) -> bool:
    """Whether the type itself is an ENUM (not a list or struct of such)."""
    return type_text.startswith("ENUM(") and type_text.endswith(")")


def has_enum(type_text: str) -> bool:
    """Whether labels of an ENUM are part of the type."""
    return "ENUM(" in type_text.upper()


def check_scalar(value: Scalar) -> None:
    """PolicyError for a value that no database could hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise PolicyError("a number must be finite")
    if isinstance(value, int) and not -HUGE <= value < HUGE:
        raise PolicyError("an integer must lie between -2^127 and 2^127 - 1")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PolicyError("the text has half of a surrogate pair, which is not a character") from None


def fits_attribute(value: object, declared: AttributeType) -> bool:
    """Whether one value (an item of it, if it is a list) is of the type that the policy declares."""
    if declared.type == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        check_scalar(value)
        if declared.type == "number":
            return not isinstance(value, str)
        if declared.type == "date":
            return isinstance(value, str) and parse_date(value) is not None
    except PolicyError:
        return False
    return isinstance(value, str)


def parse_date(text: str) -> date:
    """A date written YYYY-MM-DD; PolicyError for anything else."""
    try:
        if _DATE.fullmatch(text) and text.isascii():
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise PolicyError(f"{text!r} is not a date: write YYYY-MM-DD")


def parse_moment(text: str) -> tuple[datetime, bool]:
    """A date or `YYYY-MM-DD hh:mm[:ss[.ffffff]][Z|+hh:mm]`, in UTC if it has an offset, and whether it had one."""
    found = _MOMENT.fullmatch(text) if text.isascii() else None
    if found is None:
        moment = parse_date(text)
        return datetime(moment.year, moment.month, moment.day), False
    day, clock, seconds, fraction, offset = found.groups()
    try:
        moment_ = datetime.fromisoformat(f"{day} {clock}:{seconds or '00'}.{(fraction or '').ljust(6, '0')}")
        if offset and offset != "Z":
            shift = timedelta(hours=int(offset[1:3]), minutes=int(offset[4:6]))
            moment_ = moment_ + shift if offset[0] == "-" else moment_ - shift
    except (ValueError, OverflowError):
        raise PolicyError(f"{text!r} is not a moment: write YYYY-MM-DD hh:mm:ss") from None
    return moment_, offset is not None


def check_value(value: Scalar, kind: Kind) -> None:
    """PolicyError if a constant cannot be compared with a column of this kind, without any silent cast."""
    if kind.family == "text":
        if not isinstance(value, str):
            raise PolicyError(f"the column is text, and {value!r} is not: put it in quotes if text is meant")
    elif kind.family == "boolean":
        if not isinstance(value, bool):
            raise PolicyError(f"the column is BOOLEAN: write true or false, not {value!r}")
    elif kind.family == "number":
        if isinstance(value, bool | str):
            raise PolicyError(f"the column is {kind.name}, and {value!r} is not a number")
    elif not isinstance(value, str):
        raise PolicyError(f"the column is {kind.name}, and {value!r} is not a date")
    elif kind.family == "date":
        parse_date(value)
    elif parse_moment(value)[1] and not kind.zoned:
        raise PolicyError(f"{value!r} has a time zone, and the column ({kind.name}) has none")


def attribute_families(declared: AttributeType) -> tuple[str, ...]:
    """Families of columns that an attribute can be compared with."""
    return {"text": ("text",), "number": ("number",), "boolean": ("boolean",)}.get(declared.type, ("date", "timestamp"))


def column_sql(column: str, kind: Kind, values: list[Scalar]) -> str:
    """The side of a comparison that is the column; `column` is its quoted name."""
    if kind.family == "text":
        return f"CAST({column} AS VARCHAR)"
    if kind.integer:
        exact = all(isinstance(value, int) for value in values) and kind.name != "UHUGEINT"
        return f"CAST({column} AS {'HUGEINT' if exact else 'DOUBLE'})"
    if kind.scale or kind.width:
        scale = _shared_scale(kind, values)
        return f"CAST({column} AS {'DOUBLE' if scale is None else f'DECIMAL(38,{scale})'})"
    if kind.family == "number":
        return f"CAST({column} AS DOUBLE)"
    if kind.family == "timestamp" and not kind.zoned:
        return f"CAST({column} AS TIMESTAMP)"
    return column


def value_sql(value: Scalar, kind: Kind, values: list[Scalar], bind: Bind) -> str:
    """The side that is a constant; `values` are all that stand in the same comparison, for a type they share."""
    if kind.family == "text":
        return f"CAST({bind(value)} AS VARCHAR)"
    if kind.family == "boolean":
        return f"CAST({bind(value)} AS BOOLEAN)"
    if kind.family == "date":
        return f"CAST({bind(parse_date(str(value)).isoformat())} AS DATE)"
    if kind.family == "timestamp":
        text = parse_moment(str(value))[0].isoformat(" ")
        return f"CAST({bind(text + ('+00' if kind.zoned else ''))} AS {'TIMESTAMPTZ' if kind.zoned else 'TIMESTAMP'})"
    if kind.integer and kind.name != "UHUGEINT" and all(isinstance(each, int) for each in values):
        return f"CAST({bind(value)} AS HUGEINT)"
    if kind.width:
        scale = _shared_scale(kind, values)
        if scale is not None:
            return f"CAST({bind(format(Decimal(str(value)), 'f'))} AS DECIMAL(38,{scale}))"
    return f"CAST({bind(as_float(value, kind))} AS DOUBLE)"


def as_float(value: Scalar, kind: Kind) -> float:
    """The number as DOUBLE; next to a FLOAT column rounded as that column's values are, so that 0.1 equals 0.1."""
    number = float(value)
    if kind.name == "FLOAT":
        with suppress(OverflowError):
            number = struct.unpack("f", struct.pack("f", number))[0]
    return number


def _shared_scale(kind: Kind, values: list[Scalar]) -> int | None:
    """Digits after the point that hold the column and all values exactly in DECIMAL(38, n); None if there are none."""
    numbers = [Decimal(str(value)).normalize() for value in values]
    scale = max([kind.scale, *(-int(number.as_tuple().exponent) for number in numbers)])
    whole = max([kind.width - kind.scale, *(number.adjusted() + 1 for number in numbers)])
    return scale if scale + max(whole, 0) <= 38 else None


def constant_sql(value: Scalar, kind: Kind, bind: Bind) -> str:
    """A constant mask's value as a column's own type (VARCHAR for text and ENUM); PolicyError if it cannot be one."""
    check_scalar(value)
    if kind.family == "text":
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f"CAST({bind(text)} AS VARCHAR)"
    if kind.family == "other":
        raise PolicyError(f"a constant cannot stand for {kind.name}: use null, hash or hide")
    check_value(value, kind)
    if kind.integer and not (isinstance(value, int) and kind.low <= value <= kind.high):
        raise PolicyError(f"{value!r} does not fit {kind.name}")
    if kind.width:
        number = Decimal(str(value)).normalize()
        if -int(number.as_tuple().exponent) > kind.scale or number.adjusted() + 1 > kind.width - kind.scale:
            raise PolicyError(f"{value!r} does not fit {kind.name}")
        return f"CAST({bind(format(number, 'f'))} AS {kind.name})"
    if kind.integer:
        return f"CAST({bind(value)} AS {kind.name})"
    if kind.name == "FLOAT" and abs(float(value)) > 3.4e38:
        raise PolicyError(f"{value!r} does not fit FLOAT")
    sql = value_sql(value, kind, [value], bind)
    return f"CAST({sql} AS {kind.name})" if kind.family in ("number", "timestamp") else sql
