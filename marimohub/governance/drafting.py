"""A first policy for a warehouse: everything is listed, at the highest level, and nothing is granted."""

from __future__ import annotations

import re
from collections.abc import Iterable

import yaml

from marimohub.governance.names import display
from marimohub.snapshots.schema import Column, Table, WarehouseSchema

# words of a name, and parts of words, that hint at data about a person
_WORDS = frozenset(
    {
        "address", "bic", "birth", "birthdate", "birthday", "born", "city", "contact", "dob", "fax", "firstname",
        "forename", "gender", "ip", "lastname", "login", "mail", "mobile", "name", "nationality", "passport", "person",
        "phone", "postcode", "salary", "sex", "ssn", "street", "surname", "tax", "tel", "user", "username", "zip",
    }
)  # fmt: skip
_PARTS = ("email", "phone", "iban", "birth", "passw", "address", "_name", "surname", "firstname", "lastname")
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])|(?<=\D)(?=\d)")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})

_HEAD = """\
# A first policy for this warehouse, made from its tables and columns.
#
# Nobody sees anything yet: every column has the highest level, and there are no clearances and no grants.
# 1. Lower the level of what may be seen, and correct the tags, which were guessed from names.
# 2. Say who may see what: uncomment "clearance" and "grants", and change them.
# 3. Check the text, apply it, and look at what single people see.
version: 1
levels: [public, internal, confidential, restricted]
tags:
  pii: Data about a person
"""

_TAIL = """\

# The highest level that people may see. Whoever is not named sees the lowest.
# clearance:
#   - {level: internal, roles: [editor, admin]}

# grants:
#   - name: Editors see all tables
#     to: {roles: [editor, admin]}
#     tables: ["*"]

# What becomes of values that people see, but not as they are.
# masks:
#   - name: Data about a person
#     tags: [pii]
#     mask: hash

# Which rows people see.
# attributes:
#   countries: {type: text, list: true}
# filters:
#   - name: Own countries
#     tables: [sales.customers]
#     where: {column: country, in: {user: countries}}
"""


def draft(schema: WarehouseSchema) -> str:
    """The text of a policy that names all of the warehouse and lets nobody see any of it."""
    lines = [_HEAD]
    if schema.tables:
        lines.append("tables:")
    else:
        lines.append("# The warehouse has no tables.\ntables: {}")
    for table in sorted(schema.tables, key=lambda table: (table.schema, table.name)):
        lines.extend(_table(table))
    if schema.views:
        lines.append("\n# Views are made of what a person sees. They need a grant, too.\n# views:")
        names = sorted(display(view.schema, view.name) for view in schema.views)
        lines.extend(f"#   - {_scalar(name)}" for name in names)
    return "\n".join(lines) + "\n" + _TAIL


def guess_tags(column: Column) -> list[str]:
    """Tags that a column's name hints at."""
    words = {word.lower() for word in _SPLIT.split(column.name)}
    hinted = words & _WORDS or any(part in column.name.lower() for part in _PARTS)
    return ["pii"] if hinted else []


def _table(table: Table) -> Iterable[str]:
    yield f"  {_scalar(display(table.schema, table.name))}:"
    yield "    level: restricted"
    yield "    columns:"
    for column in table.columns:
        tags = guess_tags(column)
        rule = f"{{tags: [{', '.join(tags)}]}}" if tags else "{}"
        yield f"      {_scalar(column.name)}: {rule}"


def _scalar(text: str) -> str:
    """The text as a YAML scalar on one line."""
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))).rstrip("\n")
