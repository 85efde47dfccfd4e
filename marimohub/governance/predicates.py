"""The administrator's own SQL condition: parsed by DuckDB, allowed node by node, and written anew from its tree.

No character of the given text reaches a query: what is not known here is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from marimohub.governance.errors import PolicyError
from marimohub.governance.names import fold, quoted
from marimohub.governance.parser import engine

MAX_TEXT = 4000
MAX_DEPTH = 40

COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}
FUNCTIONS = frozenset(
    [
        "lower",
        "upper",
        "trim",
        "length",
        "substring",
        "left",
        "right",
        "starts_with",
        "contains",
        "concat",
        "abs",
        "round",
        "floor",
        "ceil",
        "year",
        "month",
        "day",
        "date_trunc",
        "date_part",
        "nullif",
        "regexp_matches",
        "greatest",
        "least",
    ]
)
OPERATORS = frozenset(["+", "-", "*", "/", "||", "~~", "!~~", "~~*", "!~~*"])
TYPES = [
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "FLOAT",
    "DOUBLE",
    "VARCHAR",
    "DATE",
    "TIME",
    "TIMESTAMP",
]
CASTS = {"INT": "INTEGER", "TEXT": "VARCHAR", "STRING": "VARCHAR", "BOOL": "BOOLEAN", "REAL": "FLOAT"} | {
    name: name for name in TYPES
}
_NUMBER = re.compile(r"-?[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|-?\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*")
_IGNORED = {"class", "type", "alias", "query_location", "query_location_length"}


@dataclass(frozen=True)
class Node:
    """A part of an expression: `kind` says which, `text` its operator, name, type or value."""

    kind: str
    text: str = ""
    children: tuple[Node, ...] = ()


@dataclass
class Names:
    """How `render` writes the leaves: a column's quoted name, and the SQL of a parameter's value or values."""

    column: Callable[[str], str] = quoted
    parameter: Callable[[str], list[str]] = field(default=lambda name: [f"${name}"])


def parse(text: str) -> Node:
    """The tree of a condition; PolicyError if it is not one expression made of what is allowed."""
    if len(text) > MAX_TEXT:
        raise PolicyError(f"the SQL has more than {MAX_TEXT} characters")
    if "\0" in text or not text.strip():
        raise PolicyError("the SQL is empty, or has a NUL character")
    alone = _expression(f"SELECT {text}")
    if _expression(f"SELECT ({text}\n)") != alone:
        raise PolicyError("the SQL must be one expression, without a name, a semicolon or a clause after it")
    return alone


def parse_generation(text: str) -> set[str] | None:
    """Columns (folded) that the expression of a generated column refers to; None if that cannot be told."""
    try:
        tree = _serialized(f"SELECT ({text}\n)")
    except PolicyError:
        return None
    found: set[str] = set()
    pending: list[Any] = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            if value.get("class") in ("SUBQUERY", "STAR", "LAMBDA", "PARAMETER"):
                return None
            if value.get("class") == "COLUMN_REF":
                found.update(fold(str(part)) for part in value.get("column_names", ()))
            pending.extend(value.values())
    return found


def columns(tree: Node) -> set[str]:
    """Names of the columns in the tree, folded."""
    return {fold(node.text) for node in walk(tree) if node.kind == "column"}


def parameters(tree: Node) -> set[str]:
    """Names of the attributes that the tree asks for."""
    return {node.text for node in walk(tree) if node.kind == "parameter"}


def misplaced_lists(tree: Node, lists: set[str]) -> set[str]:
    """Those of the given list attributes that stand anywhere but in `x IN ($list)`."""
    inside = {child for node in walk(tree) if node.kind == "in" for child in node.children[1:]}
    others = {child for node in walk(tree) for child in (node.children[:1] if node.kind == "in" else node.children)} | {
        tree
    }
    return {node.text for node in others if node.kind == "parameter" and node.text in lists} | {
        node.text for node in inside & others if node.kind == "parameter" and node.text in lists
    }


def walk(tree: Node) -> Iterator[Node]:
    """The tree's nodes, itself first."""
    yield tree
    for child in tree.children:
        yield from walk(child)


def render(tree: Node, names: Names | None = None) -> str:
    """The tree as SQL, every part in parentheses."""
    names = names or Names()

    def sql(node: Node) -> str:
        parts = [sql(child) for child in node.children] if node.kind not in ("in", "parameter") else []
        match node.kind:
            case "string":
                return "'" + node.text.replace("'", "''") + "'"
            case "number" | "keyword":
                return node.text
            case "column":
                return names.column(node.text)
            case "parameter":
                return names.parameter(node.text)[0]
            case "in":
                members = [
                    text
                    for child in node.children[1:]
                    for text in (names.parameter(child.text) if child.kind == "parameter" else [sql(child)])
                ]
                return f"({sql(node.children[0])} IN ({', '.join(members)}))"
            case "infix":
                return "(" + f" {node.text} ".join(parts) + ")"
            case "function":
                # by its full name: a macro of the warehouse with the same name would come first, also for operators
                return f"system.main.{quoted(node.text)}({', '.join(parts)})"
            case "coalesce":
                return f"coalesce({', '.join(parts)})"
            case "prefix":
                return f"({node.text} {parts[0]})"
            case "postfix":
                return f"({parts[0]} {node.text})"
            case "between":
                return f"({parts[0]} BETWEEN {parts[1]} AND {parts[2]})"
            case "cast":
                return f"CAST({parts[0]} AS {node.text})"
            case "try_cast":
                return f"TRY_CAST({parts[0]} AS {node.text})"
            case "case":
                checks = "".join(f" WHEN {parts[n]} THEN {parts[n + 1]}" for n in range(0, len(parts) - 1, 2))
                return f"(CASE{checks} ELSE {parts[-1]} END)"
        raise AssertionError(f"unknown node {node.kind}")

    return sql(tree)


def _serialized(statement: str) -> dict[str, Any]:
    """DuckDB's tree of one statement."""
    with engine() as connection:
        from duckdb import Error

        try:
            row = connection.execute("SELECT json_serialize_sql($text)", {"text": statement}).fetchone()
            found: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
        except (Error, RecursionError, ValueError) as error:
            raise PolicyError(f"the SQL cannot be read: {str(error).splitlines()[0]}") from None
    if found.get("error"):
        raise PolicyError(f"the SQL cannot be read: {found.get('error_message', 'not a query')}")
    if len(found["statements"]) != 1:
        raise PolicyError("the SQL has several statements: write one condition, without semicolons")
    statement_: dict[str, Any] = found["statements"][0]
    return statement_


def _expression(statement: str) -> Node:
    """The tree of `SELECT <one expression>`."""
    node = _serialized(statement)["node"]
    if node.get("type") != "SELECT_NODE" or len(node.get("select_list", ())) != 1:
        raise PolicyError("the SQL must be one expression, such as country = 'DE' AND amount < 100")
    if {key: node[key] for key in node if key != "select_list"} != _bare_select():
        raise PolicyError("the SQL must be one expression: FROM, UNION, LIMIT and the like are not allowed in it")
    return _node(node["select_list"][0], 0)


def _bare_select() -> dict[str, Any]:
    """What a SELECT has that is nothing but one expression."""
    if not _BARE:
        node = _serialized("SELECT 1")["node"]
        _BARE.update({key: node[key] for key in node if key != "select_list"})
    return _BARE


_BARE: dict[str, Any] = {}


def _only(value: dict[str, Any], *keys: str) -> None:
    """Refuse a node that says more than the named keys do."""
    if value.get("alias"):
        raise PolicyError(f"names (AS {value['alias']}) are not allowed in the SQL")
    for key, found in value.items():
        if key not in _IGNORED and key not in keys and found not in (None, False, "", [], {}):
            raise PolicyError(f"{key} is not allowed in the SQL")


def _node(value: Any, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise PolicyError(f"the SQL is nested more than {MAX_DEPTH} deep")
    kind, name = value.get("class"), value.get("type", "")

    def all_of(values: list[Any]) -> tuple[Node, ...]:
        return tuple(_node(each, depth + 1) for each in values)

    match kind:
        case "CONSTANT":
            _only(value, "literal")
            return _constant(value["literal"])
        case "COLUMN_REF":
            _only(value, "column_names")
            if len(value["column_names"]) != 1:
                raise PolicyError(
                    f"{'.'.join(value['column_names'])}: columns are written without a table, and parts of a struct "
                    "cannot be reached"
                )
            return Node("column", str(value["column_names"][0]))
        case "PARAMETER":
            _only(value, "identifier")
            if not _PARAMETER.fullmatch(fold(str(value["identifier"]))):
                raise PolicyError("parameters are written $attribute, with the name of an attribute of people")
            return Node("parameter", fold(str(value["identifier"])))
        case "COMPARISON" if name in COMPARISONS:
            _only(value, "left", "right")
            return Node("infix", COMPARISONS[name], all_of([value["left"], value["right"]]))
        case "CONJUNCTION" if name in ("CONJUNCTION_AND", "CONJUNCTION_OR"):
            _only(value, "children")
            return Node("infix", name.removeprefix("CONJUNCTION_"), all_of(value["children"]))
        case "BETWEEN" if name == "COMPARE_BETWEEN":
            _only(value, "input", "lower", "upper")
            return Node("between", "", all_of([value["input"], value["lower"], value["upper"]]))
        case "OPERATOR":
            _only(value, "children")
            return _operator(name, all_of(value["children"]))
        case "CASE":
            _only(value, "case_checks", "else_expr")
            checks = [check[key] for check in value["case_checks"] for key in ("when_expr", "then_expr")]
            return Node("case", "", all_of([*checks, value["else_expr"]]))
        case "CAST":
            _only(value, "child", "try_cast", "type_expr")
            return Node(
                "try_cast" if value.get("try_cast") else "cast", _cast(value["type_expr"]), all_of([value["child"]])
            )
        case "FUNCTION":
            return _function(value, all_of)
    raise PolicyError(f"{str(kind or name).lower()} is not allowed in the SQL")


def _constant(literal: dict[str, Any]) -> Node:
    kind, text = literal.get("kind"), str(literal.get("text", ""))
    if kind == "STRING" and "\0" not in text:
        return Node("string", text)
    if kind in ("INTEGER", "NUMERIC") and _NUMBER.fullmatch(text):
        return Node("number", text.replace("_", ""))
    if kind == "BOOLEAN" and text in ("true", "false"):
        return Node("keyword", text.upper())
    if kind == "NULL_LITERAL":
        return Node("keyword", "NULL")
    raise PolicyError(f"a constant of the kind {str(kind).lower()} is not allowed in the SQL")


def _operator(name: str, children: tuple[Node, ...]) -> Node:
    if name == "OPERATOR_NOT":
        return Node("prefix", "NOT", children)
    if name in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
        return Node("postfix", name.removeprefix("OPERATOR_").replace("_", " "), children)
    if name == "OPERATOR_COALESCE":
        return Node("coalesce", "", children)
    if name in ("COMPARE_IN", "COMPARE_NOT_IN"):
        found = Node("in", "", children)
        return found if name == "COMPARE_IN" else Node("prefix", "NOT", (found,))
    raise PolicyError(f"{name.removeprefix('OPERATOR_').lower()} is not allowed in the SQL")


def _function(value: dict[str, Any], all_of: Callable[[list[Any]], tuple[Node, ...]]) -> Node:
    order = value.get("order_bys") or {}
    if any(found for key, found in order.items() if key != "type"):
        raise PolicyError("ORDER BY is not allowed in the SQL")
    _only(value, "function_name", "order_bys", "is_operator", "arguments", "qualified_name")
    name = str(value["function_name"])
    if value.get("qualified_name", {}).get("path") != [name]:
        raise PolicyError(f"{name}: functions are written without a schema")
    arguments = value.get("arguments") or []
    if any(set(argument) - {"name", "expression"} or argument.get("name") for argument in arguments):
        raise PolicyError(f"{name}: arguments with names are not allowed in the SQL")
    children = all_of([argument["expression"] for argument in arguments])
    if value.get("is_operator") and name in OPERATORS and len(children) in ((1, 2) if name in "+-" else (2,)):
        return Node("function", name, children)
    if not value.get("is_operator") and fold(name) in FUNCTIONS:
        if fold(name) == "contains" and children and children[0].kind == "parameter":
            return Node("in", "", (children[1], children[0]))
        return Node("function", fold(name), children)
    raise PolicyError(f"{name} is not allowed in the SQL; these functions are: {', '.join(sorted(FUNCTIONS))}")


def _cast(value: dict[str, Any]) -> str:
    _only(value, "type_name", "children", "qualified_name")
    name = str(value.get("type_name", "")).upper()
    if value.get("class") != "TYPE" or len(value.get("qualified_name", {}).get("path", [""])) != 1:
        raise PolicyError("this type is not allowed in a CAST in the SQL")
    texts = [str(child.get("literal", {}).get("text", "")) for child in value.get("children") or []]
    if name in ("DECIMAL", "NUMERIC", "DEC"):
        if not texts:
            return "DECIMAL(18,3)"
        if len(texts) <= 2 and all(re.fullmatch("[0-9]{1,2}", text) for text in texts):
            return f"DECIMAL({','.join(texts)})"
    elif not texts and name in CASTS:
        return CASTS[name]
    raise PolicyError(f"a CAST to {name} is not allowed in the SQL; allowed: {', '.join(TYPES)}, DECIMAL")
