"""Policies, problems and explanations as aligned text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from marimohub.governance.errors import Problem


def table(rows: Iterable[Sequence[str]], *, indent: str = "") -> str:
    """Rows in columns of equal width, without a line's end after the last."""
    clean = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*clean, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in clean)
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def problems(found: Sequence[Problem]) -> str:
    """Each problem on a line, and how many there are; nothing for none."""
    if not found:
        return ""
    rows = [(p.severity, (p.where or "the policy") + (f" (line {p.line})" if p.line else ""), p.message) for p in found]
    return f"{table(rows)}\n{count_problems(found)}\n"


def count_problems(found: Sequence[Problem]) -> str:
    """`2 errors, 1 warning`."""
    errors = sum(problem.severity == "error" for problem in found)
    parts = [_counted(errors, "error"), _counted(len(found) - errors, "warning")]
    return ", ".join(part for part in parts if part)


def history(revisions: Sequence[dict[str, Any]]) -> str:
    """The revisions, newest first."""
    if not revisions:
        return "There is no policy yet."
    rows = [(str(r["revision"]), r["created"], r["author"], r["comment"]) for r in revisions]
    return table([("revision", "applied", "by", "comment"), *rows])


def attributes(model: dict[str, Any]) -> str:
    """What is known about a person."""
    rows = []
    for name in sorted({*model["attributes"], *model["declared"]}):
        value = model["attributes"].get(name)
        values = value if isinstance(value, list) else [value]
        told = ", ".join(_value(each) for each in values) if name in model["attributes"] else "-"
        declared = model["declared"].get(name)
        kind = f"{declared['type']}{' list' if declared['list'] else ''}" if declared else "not declared"
        rows.append((name, kind, told, "does not count: not as declared" if name in model["unusable"] else ""))
    if not rows:
        return f"Nothing is known about {_plain(model['user'])}, and the policy declares no attributes."
    return table([("attribute", "type", "value", ""), *rows])


def explanation(model: dict[str, Any]) -> str:
    """What a person sees, and why."""
    about = [
        ("person", model["user"]),
        ("role", model["role"] or "none"),
        ("groups", ", ".join(model["groups"]) or "none"),
        ("clearance", model["clearance"]),
        *((f"attribute {name}", _held(held)) for name, held in model["attributes"].items()),
        ("policy", f"revision {model['revision']}" if model["revision"] else "none: nobody sees anything"),
    ]
    if model["governance"] == "off":
        about.append(("governance", "off: everybody sees all of the warehouse, whatever the policy says"))
    parts = [table(about)]
    for found in model["tables"]:
        shown = "no column is visible"
        if found["visible"]:
            shown = f"{found['visible_rows']} of {_counted(found['rows'], 'row', none='no rows')}"
        if found["filters"]:
            shown += f", filtered by: {', '.join(found['filters'])}"
        lines = [f"{_plain(found['display'])}: {_plain(shown)}"]
        if found["no_rows"] and found["visible"]:
            lines.append(f"  {_plain(found['no_rows'])}")
        if found["columns"]:
            columns = [(c["name"], c["type"], c["level"] or "-", _shown(c), c["reason"]) for c in found["columns"]]
            lines.append(table(columns, indent="  "))
        parts.append("\n".join(lines))
    if model["views"]:
        parts.append("\n".join(["Views, if they can be made of this:", *(f"  {_plain(v)}" for v in model["views"])]))
    absent = [(o["kind"], o["name"], o["reason"]) for o in model["omitted"] if o["kind"] != "column"]
    if absent:
        parts.append("Not there:\n" + table(absent, indent="  "))
    return "\n\n".join(parts)


def difference(model: dict[str, Any]) -> str:
    """What the second sees otherwise than the first."""
    rows = [("+ table", name, "") for name in model["tables_added"]]
    rows += [("- table", name, "") for name in model["tables_removed"]]
    for changed in model["changed"]:
        name = changed["table"]
        rows += [("+ column", f"{name}.{column}", "") for column in changed["columns_added"]]
        rows += [("- column", f"{name}.{column}", "") for column in changed["columns_removed"]]
        for mask in changed["masks"]:
            was, now = mask["before"] or "as it is", mask["after"] or "as it is"
            rows.append(("~ column", f"{name}.{mask['column']}", f"{was} -> {now}"))
        if changed["rows"]:
            was, now = (_filters(changed, when) for when in ("before", "after"))
            rows.append(("~ rows", name, f"{was} -> {now}" if was != now else f"{now}, with other values"))
    rows += [("+ view", name, "") for name in model["views_added"]]
    rows += [("- view", name, "") for name in model["views_removed"]]
    rows += [("~ view", name, "") for name in model["views_changed"]]
    if not rows:
        return "Both see the same." if model["same"] else "Both see the same objects, in a different form."
    return table(rows)


def _filters(changed: dict[str, Any], when: str) -> str:
    if changed[f"no_rows_{when}"]:
        return "none"
    return ", ".join(changed[f"filters_{when}"]) or "all"


def _shown(column: dict[str, Any]) -> str:
    if not column["visible"]:
        return "absent"
    return column["mask"] or "as it is"


def _held(held: dict[str, Any]) -> str:
    if not held["held"]:
        return "lacking"
    value = held["value"]
    return ", ".join(_value(each) for each in (value if isinstance(value, list) else [value]))


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _counted(number: int, word: str, *, none: str = "") -> str:
    return f"{number} {word}{'' if number == 1 else 's'}" if number else none


def _plain(text: str) -> str:
    """On one line, and without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
