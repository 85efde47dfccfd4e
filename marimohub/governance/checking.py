"""Whether a policy fits a warehouse: everything that an administrator has to correct, or may want to know."""

from __future__ import annotations

import threading
from collections import OrderedDict

from marimohub.governance.binding import check_sql
from marimohub.governance.classifying import Classified, classify
from marimohub.governance.errors import PolicyError, Problem
from marimohub.governance.kinds import attribute_families, check_value, kind_of
from marimohub.governance.model import Compare, Filter, Grant, MaskRule, Policy, Sql, UserValue, walk
from marimohub.governance.names import Pattern, display, fold
from marimohub.governance.sql import misfit
from marimohub.snapshots.schema import Table, WarehouseSchema

_KEPT = 32
_ORDERED = ("less_than", "at_most", "greater_than", "at_least", "between")

_lock = threading.Lock()
_checked: OrderedDict[tuple[int, int], tuple[Policy, WarehouseSchema, tuple[Problem, ...]]] = OrderedDict()


def check(policy: Policy, schema: WarehouseSchema) -> list[Problem]:
    """Problems, of which those of the severity `error` make the policy unusable for this warehouse."""
    key = (id(policy), id(schema))
    with _lock:
        known = _checked.get(key)
        if known is not None:
            _checked.move_to_end(key)
            return list(known[2])
    found = tuple(_Check(policy, schema).run())
    with _lock:
        # both objects are kept with the result, so that their ids stay theirs
        _checked[key] = (policy, schema, found)
        while len(_checked) > _KEPT:
            _checked.popitem(last=False)
    return list(found)


class _Check:
    def __init__(self, policy: Policy, schema: WarehouseSchema) -> None:
        self.policy = policy
        self.tables = {(fold(table.schema), fold(table.name)): table for table in schema.tables}
        self.views = {(fold(view.schema), fold(view.name)) for view in schema.views}
        self.columns = {
            key: {fold(column.name): (column.name, column.type) for column in table.columns}
            for key, table in self.tables.items()
        }
        self.classified = {
            key: classify(policy, table)
            for key, table in self.tables.items()
            if policy.classification(table.schema, table.name) is not None
        }
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        """Everything."""
        self._tables()
        for number, pattern in enumerate(self.policy.views):
            self._view(pattern, f"views[{number}]")
        for grant in self.policy.grants:
            self._grant(grant)
        for rule in self.policy.masks:
            self._mask(rule)
        for each in self.policy.filters:
            self._filter(each)
        return self.problems

    def note(self, where: str, message: str, line: int = 0, severity: str = "error") -> None:
        """Something to correct, or to know."""
        self.problems.append(Problem(where, message, severity, line))

    def warn(self, where: str, message: str, line: int = 0) -> None:
        """Something that may be meant."""
        self.note(where, message, line, "warning")

    def _matching(self, pattern: Pattern) -> list[tuple[str, str]]:
        if pattern.exact:
            key = (pattern.schema or "", pattern.table or "")
            return [key] if key in self.tables else []
        return [key for key in self.tables if pattern.matches(*key)]

    def _tables(self) -> None:
        used = {id(self.policy.classification(*key)) for key in self.tables}
        for entry in self.policy.tables:
            keys = self._matching(entry.pattern)
            if entry.rest is None and not entry.columns:
                self.warn(entry.where, 'names no columns, so none is visible: add columns: {"*": {}}', entry.line)
            if not keys:
                self._missing(entry.pattern, entry.where, entry.line, "table")
                continue
            if id(entry) not in used:
                self.warn(entry.where, "every table that it matches has a more specific entry", entry.line)
            for column, _ in entry.columns:
                if not any(column in self.columns[key] for key in keys):
                    where = f"{entry.where}.columns.{column}"
                    message = f"there is no column {column} in {entry.pattern}"
                    self.note(where, message, entry.line, "error" if entry.pattern.exact else "warning")

    def _missing(self, pattern: Pattern, where: str, line: int, what: str) -> None:
        if not pattern.exact:
            self.warn(where, f"{pattern} matches no {what} of the warehouse", line)
        elif what == "table" and (pattern.schema, pattern.table) in self.views:
            self.note(
                where, f"{pattern} is a view: views are named under views:, and show what their tables show", line
            )
        else:
            self.note(where, f"there is no {what} {pattern} in the warehouse: correct the name or remove it", line)

    def _view(self, pattern: Pattern, where: str) -> None:
        if not any(pattern.matches(*view) for view in self.views):
            if pattern.exact and (pattern.schema, pattern.table) in self.tables:
                self.note(where, f"{pattern} is a table: tables are named under tables:")
            else:
                self._missing(pattern, where, 0, "view")

    def _grant(self, grant: Grant) -> None:
        found: list[tuple[str, str]] = []
        for number, pattern in enumerate(grant.tables):
            where = f"{grant.where}.tables[{number}]"
            keys = self._matching(pattern)
            views = [view for view in self.views if pattern.matches(*view)]
            if not keys and not views:
                self._missing(pattern, where, grant.line, "table or view")
            if views and grant.columns is not None:
                self.warn(where, f"{pattern} is a view, which a grant with columns does not cover", grant.line)
            if keys and not any(key in self.classified for key in keys):
                self.warn(where, f"{pattern} is not classified under tables:, so nothing of it is visible", grant.line)
            found.extend(keys)
        for column in grant.columns or ():
            if not any(column in self.columns[key] for key in found):
                self.note(
                    f"{grant.where}.columns", f"there is no column {column} in the tables of the grant", grant.line
                )

    def _mask(self, rule: MaskRule) -> None:
        for schema, table, column in sorted(rule.columns):
            name, where = display(schema, table, column), f"{rule.where}.columns"
            if (schema, table) not in self.tables:
                self._missing(Pattern(schema, table), where, rule.line, "table")
            elif column not in self.columns[(schema, table)]:
                self.note(where, f"there is no column {name} in the warehouse: correct or remove it", rule.line)
            elif not isinstance(self.classified.get((schema, table), {}).get(column), Classified):
                self.warn(where, f"{name} is not classified under tables:, so it is not visible anyway", rule.line)
        used = False
        for key, columns in self.classified.items():
            for column, found in columns.items():
                if not isinstance(found, Classified) or not (found.selected(rule) or found.level in rule.levels):
                    continue
                used = True
                name, type_text = self.columns[key][column]
                problem = misfit(rule.mask, type_text) if found.selected_itself(rule) else None
                if problem is not None:
                    self.note(f"{rule.where}.mask", f"{display(*key, name)}: {problem}", rule.line)
        self._spared(rule)
        if not used:
            self.warn(rule.where, f"the mask {rule.name!r} matches no column", rule.line)

    def _spared(self, rule: MaskRule | Filter) -> None:
        if rule.for_.attributes:
            message = "people without this attribute are not meant, and see more: `except` is safer"
            self.warn(f"{rule.where}.for.attributes", message, rule.line)

    def _filter(self, rule: Filter) -> None:
        self._spared(rule)
        found: dict[tuple[str, str], Table] = {}
        for number, pattern in enumerate(rule.tables):
            keys = self._matching(pattern)
            if not keys:
                self._missing(pattern, f"{rule.where}.tables[{number}]", rule.line, "table")
            found.update((key, self.tables[key]) for key in keys if key in self.classified)
        for key, table in found.items():
            for leaf in walk(rule.condition):
                try:
                    if isinstance(leaf, Sql):
                        check_sql(leaf, self.policy, self.columns[key])
                    else:
                        _check_compare(leaf, self.policy, self.columns[key])
                except PolicyError as error:
                    self.note(leaf.where, f"{display(table.schema, table.name)}: {error.message}", leaf.line)


def _check_compare(leaf: Compare, policy: Policy, table: dict[str, tuple[str, str]]) -> None:
    """PolicyError if the column is not there, or cannot be compared so."""
    if leaf.column not in table:
        raise PolicyError(f"there is no column {leaf.column} in it; name the tables that have it")
    if leaf.operator == "is_null":
        return
    name, type_text = table[leaf.column]
    kind = kind_of(type_text)
    if kind.family == "other":
        raise PolicyError(f"{name} is {type_text[:60]}, which only is_null can ask about")
    if kind.name == "UHUGEINT":
        raise PolicyError(f"{name} is UHUGEINT, which cannot be compared exactly: only is_null can ask about it")
    if leaf.operator == "starts_with" and kind.family != "text":
        raise PolicyError(f"starts_with is for text, and {name} is {kind.name}")
    if kind.family == "boolean" and leaf.operator in _ORDERED:
        raise PolicyError(f"{name} is BOOLEAN: use equals or not_equals")
    for value in leaf.values:
        if not isinstance(value, UserValue):
            check_value(value, kind)
            continue
        declared = policy.attribute(value.attribute)
        if declared is None or kind.family not in attribute_families(declared):
            of = declared.type if declared else "unknown"
            raise PolicyError(f"{name} is {kind.name}, and the attribute {value.attribute} is {of}")
