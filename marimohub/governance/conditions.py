"""The conditions of row filters, from their nodes in a policy's text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from marimohub.governance import predicates
from marimohub.governance.documents import Node
from marimohub.governance.kinds import check_scalar
from marimohub.governance.model import (
    OPERATORS,
    All,
    AnyOf,
    AttributeType,
    Compare,
    Condition,
    Not,
    Scalar,
    Sql,
    UserValue,
)
from marimohub.governance.names import fold
from marimohub.governance.reader import Reader

ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
EXAMPLE = "such as {column: country, in: {user: countries}}"

Types = Mapping[str, AttributeType]


def read_condition(reader: Reader, types: Types, node: Node, where: str) -> Condition | None:
    """The condition at a node; None, and noted, if it is none. `types` are all attributes that it may ask for."""
    parts = reader.mapping(node, where, ("all", "any", "not", "sql", "column", *OPERATORS))
    if "column" in parts:
        return _compare(reader, types, node, parts, where)
    if len(parts) != 1 or not {"all", "any", "not", "sql"} & set(parts):
        if node.kind == "mapping":
            reader.note(node, where, f"must be one of all, any, not, sql, or a comparison {EXAMPLE}")
        return None
    ((key, value),) = parts.items()
    if key == "sql":
        return _sql(reader, types, value, f"{where}.sql")
    if key == "not":
        part = read_condition(reader, types, value, f"{where}.not")
        return None if part is None else Not(part)
    items = reader.items(value, f"{where}.{key}")
    found = [read_condition(reader, types, item, f"{where}.{key}[{n}]") for n, item in enumerate(items)]
    kept = tuple(part for part in found if part is not None)
    return All(kept) if key == "all" else AnyOf(kept)


def _compare(reader: Reader, types: Types, node: Node, parts: dict[str, Node], where: str) -> Condition | None:
    column = reader.text(parts["column"], f"{where}.column")
    operators = [key for key in parts if key != "column"]
    if len(operators) != 1 or operators[0] not in OPERATORS:
        reader.note(node, where, f"needs one operator ({', '.join(OPERATORS)}) beside column")
        return None
    operator = operators[0]
    value, place = parts[operator], f"{where}.{operator}"
    values: list[Scalar | UserValue | None]
    if operator == "is_null":
        values = [reader.boolean(value, place)]
    elif operator in ("in", "not_in"):
        if value.kind == "mapping":
            values = [_user(reader, types, value, place, many=True)]
        else:
            values = [
                reader.scalar(item, f"{place}[{n}]", check_scalar) for n, item in enumerate(reader.items(value, place))
            ]
    elif operator == "between":
        items = reader.items(value, place)
        if len(items) != 2:
            reader.note(value, place, "must be a list of two values: [low, high], both included")
        values = [_value(reader, types, item, f"{place}[{n}]") for n, item in enumerate(items)]
        low, high = [*values, None, None][:2]
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            reader.note(value, place, "the low value is above the high one: no row could ever be kept")
    else:
        values = [_value(reader, types, value, place)]
    kept = tuple(each for each in values if each is not None)
    if column is None or len(kept) != len(values) or not kept:
        return None
    return Compare(fold(column), operator, kept, where, node.line)


def _value(reader: Reader, types: Types, node: Node, where: str) -> Scalar | UserValue | None:
    if node.kind == "mapping":
        return _user(reader, types, node, where, many=False)
    if node.kind == "scalar" and node.value is None:
        reader.note(node, where, "a comparison with null is never true: use is_null")
        return None
    return reader.scalar(node, where, check_scalar)


def _user(reader: Reader, types: Types, node: Node, where: str, many: bool) -> UserValue | None:
    parts = reader.mapping(node, where, ("user",), required=("user",))
    name = reader.text(parts["user"], f"{where}.user") if "user" in parts else None
    if name is None:
        return None
    declared = types.get(name)
    if declared is None:
        reader.note(node, f"{where}.user", f"{name!r} is not among `attributes:` (name and groups are built in)")
        return None
    if declared.list != many:
        hint = "is a list: use in or not_in" if declared.list else "is one value and no list: use equals or not_equals"
        reader.note(node, f"{where}.user", f"{name!r} {hint}")
        return None
    return UserValue(name)


def _sql(reader: Reader, types: Types, node: Node, where: str) -> Condition | None:
    text = reader.text(node, where)
    tree = None if text is None else reader.attempt(node, where, lambda: predicates.parse(text))
    if text is None or tree is None:
        return None
    unknown = sorted(predicates.parameters(tree) - set(types))
    if unknown:
        reader.note(node, where, f"${unknown[0]} is not among `attributes:` (name and groups are built in)")
        return None
    lists = {name for name, declared in types.items() if declared.list}
    for name in sorted(predicates.misplaced_lists(tree, lists)):
        reader.note(node, where, f"${name} is a list: write column IN ($" + name + ")")
    return Sql(text, tree, where, node.line)
