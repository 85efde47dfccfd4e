"""Whether an administrator's SQL condition fits a table: tried on DuckDB without a row, and by families of types."""

from __future__ import annotations

from collections.abc import Mapping

from marimohub.governance.errors import PolicyError
from marimohub.governance.kinds import kind_of, parse_moment
from marimohub.governance.model import Policy, Scalar, Sql
from marimohub.governance.names import fold, quoted
from marimohub.governance.parser import engine
from marimohub.governance.predicates import COMPARISONS, Node, columns, walk
from marimohub.governance.sql import Parameters, Rows, condition_sql

_SAMPLES: dict[str, Scalar] = {"text": "x", "number": 1, "date": "2000-01-01", "boolean": True}
_TEXTS = frozenset(["lower", "upper", "trim", "substring", "left", "right", "concat", "||"])
_NUMBERS = frozenset(["length", "abs", "round", "floor", "ceil", "year", "month", "day", "date_part", "*", "/"])
_ALIKE = frozenset(["nullif", "greatest", "least", *COMPARISONS.values()])
_TRUTHS = frozenset(["starts_with", "contains", "regexp_matches", "~~", "!~~", "~~*", "!~~*"])


def check_sql(leaf: Sql, policy: Policy, table: Mapping[str, tuple[str, str]]) -> None:
    """PolicyError if the condition cannot be used on a table (folded name: name and type of each column)."""
    missing = sorted(columns(leaf.tree) - set(table))
    if missing:
        raise PolicyError(f"there is no column {missing[0]} in it")
    _check_families(leaf.tree, policy, {name: kind_of(type_text).family for name, (_, type_text) in table.items()})

    def sample(name: str) -> tuple[Scalar, ...]:
        declared = policy.attribute(name)
        return (_SAMPLES[declared.type if declared else "text"],)

    parameters = Parameters()
    sql = condition_sql(leaf, Rows(table, policy.attribute, sample), parameters.bind)
    used = [table[name] for name in sorted(columns(leaf.tree))]
    source = ", ".join(f"CAST(NULL AS {type_text}) AS {quoted(name)}" for name, type_text in used) or "1 AS one"
    with engine() as cursor:
        from duckdb import Error

        try:
            cursor.execute(f"SELECT {sql} FROM (SELECT {source}) AS raw LIMIT 0", parameters.values)  # noqa: S608
            kind = str(cursor.description[0][1]) if cursor.description else ""
        except (Error, RuntimeError) as error:
            raise PolicyError(f"DuckDB refuses it: {str(error).splitlines()[0]}") from None
    if kind != "BOOLEAN":
        raise PolicyError(f"it gives {kind}, and a condition must be true or false")


def _check_families(tree: Node, policy: Policy, table: Mapping[str, str]) -> None:
    """PolicyError for a comparison of two kinds of values, which DuckDB would cast silently, or fail at some row."""

    def family(node: Node) -> str | None:
        match node.kind:
            case "column":
                found = table[fold(node.text)]
                return None if found == "other" else found
            case "parameter":
                declared = policy.attribute(node.text)
                return declared.type if declared else None
            case "string" | "number":
                return "literal" if node.kind == "string" else "number"
            case "keyword":
                return None if node.text == "NULL" else "boolean"
            case "cast" | "try_cast":
                found = kind_of(node.text).family
                return None if found == "other" else found
            case "in" | "between" | "prefix" | "postfix" | "infix":
                return "boolean"
            case "case":
                return next((each for child in node.children[1::2] if (each := family(child))), None)
            case "function" if node.text in _TEXTS:
                return "text"
            case "function" if node.text in _NUMBERS:
                return "number"
            case "function" if node.text in _TRUTHS:
                return "boolean"
            case "coalesce" | "function" if node.text in ("", "nullif", "greatest", "least"):
                return next((each for child in node.children if (each := family(child))), None)
        return None

    for node in walk(tree):
        alike = node.kind in ("in", "between", "coalesce") or node.text in _ALIKE
        together = node.children if alike and node.kind != "column" else ()
        found = {each for child in together if (each := family(child))}
        groups = {"date" if each == "timestamp" else each for each in found} - {"literal"}
        if len(groups) > 1 or ("literal" in found and groups & {"number", "boolean"}):
            names = " and ".join(sorted("text" if each == "literal" else each for each in found))
            raise PolicyError(f"it compares {names}: write a CAST if that is meant")
        for child in together if "date" in groups else ():
            if child.kind == "string":
                parse_moment(child.text)
