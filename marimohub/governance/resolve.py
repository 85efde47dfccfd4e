"""From a policy, a warehouse's schema and a person to what that person sees. Nothing bypasses it."""

from __future__ import annotations

from dataclasses import dataclass

from marimohub.governance.access import Access, ColumnAccess, Omission, TableAccess, digest_of, make_plan
from marimohub.governance.checking import check
from marimohub.governance.classifying import Classified, classify
from marimohub.governance.errors import PolicyInvalid
from marimohub.governance.model import PROTECTIVE, Grant, Mask, MaskRule, Policy, walk
from marimohub.governance.names import display, fold, quoted
from marimohub.governance.sql import Parameters, Rows, condition_sql, mask_sql, misfit, needed
from marimohub.governance.subject import Subject, clearance, includes, is_meant
from marimohub.snapshots.plan import ColumnPlan, TablePlan
from marimohub.snapshots.schema import Column, Table, View, WarehouseSchema

__all__ = ["Access", "ColumnAccess", "Omission", "TableAccess", "resolve"]


def resolve(policy: Policy, schema: WarehouseSchema, subject: Subject) -> Access:
    """What the person sees; PolicyInvalid if the policy does not fit the warehouse."""
    errors = [problem for problem in check(policy, schema) if problem.severity == "error"]
    if errors:
        raise PolicyInvalid(errors)
    person = _Person(policy, subject, clearance(policy, subject))
    shown: list[TableAccess] = []
    hidden: list[TableAccess] = []
    omitted: list[Omission] = []
    for table in sorted(schema.tables, key=lambda table: (fold(table.schema), fold(table.name))):
        name = display(table.schema, table.name)
        if policy.classification(table.schema, table.name) is None:
            omitted.append(Omission("table", name, "not classified: the policy does not name it"))
            continue
        access = person.table(table)
        if not access.visible:
            hidden.append(access)
            reasons = {column.reason for column in access.columns}
            omitted.append(
                Omission("table", name, reasons.pop() if len(reasons) == 1 else "none of its columns is visible")
            )
            continue
        shown.append(access)
        omitted.extend(
            Omission("column", display(table.schema, table.name, column.name), column.reason)
            for column in access.columns
            if not column.visible
        )
    views = tuple(
        view
        for view in sorted(schema.views, key=lambda view: (fold(view.schema), fold(view.name)))
        if person.sees_view(view, omitted)
    )
    omitted.extend(Omission(other.kind, other.name, "never part of a governed snapshot") for other in schema.others)
    parts = tuple(shown), views, tuple(omitted)
    return Access(*parts, tuple(hidden), person.cleared, digest_of(make_plan(*parts)))


@dataclass(frozen=True)
class _Choice:
    """A mask that won, and the rule it is of."""

    mask: Mask
    rule: str
    reason: str


class _Person:
    """The parts of a policy that are about one person."""

    def __init__(self, policy: Policy, subject: Subject, cleared: str) -> None:
        self.policy = policy
        self.subject = subject
        self.cleared = cleared
        self.rank = policy.rank(cleared)
        self.grants = [grant for grant in policy.grants if includes(policy, grant.to, subject, cleared)]
        self.masks = [rule for rule in policy.masks if is_meant(policy, rule.for_, rule.except_, subject, cleared)]
        self.filters = [rule for rule in policy.filters if is_meant(policy, rule.for_, rule.except_, subject, cleared)]

    def sees_view(self, view: View, omitted: list[Omission]) -> bool:
        """Whether a view may be there; if not, that is noted."""
        name = display(view.schema, view.name)
        if not any(pattern.matches(view.schema, view.name) for pattern in self.policy.views):
            omitted.append(Omission("view", name, "the policy's views: do not name it"))
        elif not any(
            grant.columns is None and any(pattern.matches(view.schema, view.name) for pattern in grant.tables)
            for grant in self.grants
        ):
            omitted.append(Omission("view", name, "no grant covers it"))
        else:
            return True
        return False

    def table(self, table: Table) -> TableAccess:
        """A classified table."""
        parameters = Parameters()
        classified = classify(self.policy, table)
        grants = [
            grant for grant in self.grants if any(pattern.matches(table.schema, table.name) for pattern in grant.tables)
        ]
        columns = tuple(self._column(column, classified[fold(column.name)], grants) for column in table.columns)
        plans = tuple(
            ColumnPlan(
                column.name,
                quoted(column.name)
                if column.mask is None
                else mask_sql(column.mask, column.name, column.type, parameters.bind),
            )
            for column in columns
            if column.visible
        )
        filters = [
            rule for rule in self.filters if any(pattern.matches(table.schema, table.name) for pattern in rule.tables)
        ]
        where, no_rows = None, None
        for rule in filters:
            names = {name for leaf in walk(rule.condition) for name in needed(leaf)}
            lacking = sorted(name for name in names if self.subject.values(self.policy, name) is None)
            if lacking and no_rows is None:
                no_rows = f"The filter {rule.name} needs the attribute {lacking[0]}, which this person does not have."
        if no_rows is not None:
            where = "false"
        elif filters:
            rows = Rows(
                {fold(column.name): (column.name, column.type) for column in table.columns},
                self.policy.attribute,
                lambda name: self.subject.values(self.policy, name),
            )
            where = " AND ".join(condition_sql(rule.condition, rows, parameters.bind) for rule in filters)
        plan = TablePlan(table.schema, table.name, plans, where, parameters.values)
        return TableAccess(table.schema, table.name, columns, tuple(rule.name for rule in filters), no_rows, plan)

    def _column(self, column: Column, found: Classified | str, grants: list[Grant]) -> ColumnAccess:
        if isinstance(found, str):
            return ColumnAccess(
                column.name, column.type, None, (), False, None, None, f"Not classified: {found}.", None
            )
        grant = next((grant for grant in grants if grant.columns is None or fold(column.name) in grant.columns), None)
        tags = tuple(sorted(found.tags))

        def result(visible: bool, reason: str, choice: _Choice | None = None) -> ColumnAccess:
            return ColumnAccess(
                column.name,
                column.type,
                found.level,
                tags,
                visible,
                choice.mask if choice else None,
                choice.rule if choice else None,
                reason,
                grant.name if grant else None,
            )

        if grant is None:
            return result(False, "No grant covers it.")
        above = self.policy.rank(found.level) > self.rank
        by_level = above and any(found.level in rule.levels for rule in self.masks)
        choice = self._mask(column, found, above)
        if choice is not None and choice.mask.kind == "hide":
            return result(False, choice.reason, choice)
        if above and not by_level:
            return result(False, f"Its level {found.level} is above the clearance {self.cleared}.")
        if choice is not None:
            return result(True, choice.reason, choice)
        return result(True, f"Granted by {grant.name}.")

    def _mask(self, column: Column, found: Classified, above: bool) -> _Choice | None:
        """The most protective mask of those that apply; the first in the file among equals."""
        best: _Choice | None = None
        for rule in self.masks:
            if not (found.selected(rule) or (above and found.level in rule.levels)):
                continue
            choice = _choose(rule, column, found)
            if best is None or PROTECTIVE.index(choice.mask.kind) < PROTECTIVE.index(best.mask.kind):
                best = choice
        return best


def _choose(rule: MaskRule, column: Column, found: Classified) -> _Choice:
    if not found.selected_itself(rule) and misfit(rule.mask, column.type) is not None:
        # inherited from a column of another type: what cannot be masked the same way is not shown
        return _Choice(Mask("hide"), rule.name, f"Made of a column that {rule.name} masks with {rule.mask.kind}.")
    verb = "Hidden" if rule.mask.kind == "hide" else f"Masked with {rule.mask.describe()}"
    return _Choice(rule.mask, rule.name, f"{verb} by {rule.name}.")
