"""A small warehouse and a policy for it, for tests that say what they change."""

from __future__ import annotations

from marimohub.governance.subject import Subject
from marimohub.snapshots.schema import Column, Other, Table, View, WarehouseSchema

WAREHOUSE = WarehouseSchema(
    tables=(
        Table(
            "sales",
            "customers",
            (
                Column("id", "INTEGER"),
                Column("Email", "VARCHAR"),
                Column("country", "VARCHAR"),
                Column("born", "DATE"),
                Column("spent", "DECIMAL(9,2)"),
                Column("active", "BOOLEAN"),
                Column("login", "VARCHAR", 'lower("Email")'),
                Column("extra", "STRUCT(a INTEGER)"),
            ),
            3,
        ),
        Table("support", "tickets", (Column("id", "INTEGER"), Column("opened", "TIMESTAMP")), 2),
        Table("main", "secret", (Column("x", "INTEGER"),), 1),
    ),
    views=(
        View("sales", "active_customers", (), "CREATE VIEW sales.active_customers AS SELECT id FROM sales.customers;"),
        View("main", "other", (), "CREATE VIEW other AS SELECT 1;"),
    ),
    others=(Other("macro", "main.f"), Other("sequence", "main.s")),
)

POLICY = """\
version: 1
levels: [public, internal, secret]
tags: {pii: Data about a person}
attributes: {countries: {type: text, list: true}, desk: {type: number}, region: {type: text}}
clearance:
  - {level: internal, roles: [viewer, editor, admin]}
  - {level: secret, groups: [dpo]}
tables:
  sales.customers:
    level: internal
    columns:
      email: {tags: [pii]}
      "*": {}
  support.*: {level: public, columns: {"*": {}}}
views: [sales.*]
grants:
  - {name: All, to: {everyone: true}, tables: ["*"]}
"""

ANN = Subject("ann", "editor", frozenset({"finance"}), {"countries": ["DE", "FR"], "desk": 5})


def masked(mask: str, selector: str = "tags: [pii]", more: str = "") -> str:
    """The policy with one mask."""
    return f"{POLICY}masks:\n  - {{name: m, {selector}, mask: {mask}{more}}}\n"


def filtered(where: str, tables: str = "sales.customers", more: str = "") -> str:
    """The policy with one filter."""
    return f"{POLICY}filters:\n  - {{name: f, tables: [{tables}], where: {where}{more}}}\n"
