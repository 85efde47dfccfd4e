"""The one place that answers what a person sees: the stored policy, their attributes, and the warehouse together."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from marimohub import subjects
from marimohub.database import Database
from marimohub.governance import store
from marimohub.governance.access import Access, nothing
from marimohub.governance.attributes import AttributesInvalid, check_values
from marimohub.governance.checking import check
from marimohub.governance.drafting import draft
from marimohub.governance.errors import PolicyError, PolicyInvalid, Problem
from marimohub.governance.explain import diff, explain
from marimohub.governance.loading import parse
from marimohub.governance.model import AttributeType, Policy
from marimohub.governance.names import display, fold, parse_name
from marimohub.governance.resolve import resolve
from marimohub.governance.store import StoredPolicy
from marimohub.governance.subject import Subject
from marimohub.snapshots.plan import TablePlan
from marimohub.snapshots.schema import Table, View, WarehouseSchema

P = ParamSpec("P")
T = TypeVar("T")
Count = Callable[[list[TablePlan]], Awaitable[list[tuple[int, int]]]]

KEPT_POLICIES = 20
KEPT_ACCESSES = 500

# without a policy nothing is classified
NO_POLICY = Policy(levels=("none",))


class PolicyRefused(PolicyInvalid):
    """A text that cannot become the policy."""

    code = "invalid_policy"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        number = "an error" if len(problems) == 1 else f"{len(problems)} errors"
        self.message = f"The policy was not applied: it has {number}. Correct what the list of problems says."
        self.args = (self.message,)


class PolicyUnusable(PolicyInvalid):
    """The policy that is stored does not fit the warehouse as it is now (or this version of MarimoHub)."""

    code = "policy_unusable"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.message = "The policy does not fit the warehouse as it is now. An administrator has to correct it."
        self.args = (self.message,)


class NoObject(PolicyError):
    """The warehouse has no such table, view, or column."""

    code = "no_object"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"The warehouse has no {kind} {name!r}.")


@dataclass(frozen=True)
class Attributes:
    """What is stored about a person, what the policy declares, and which of the stored do not fit it."""

    values: dict[str, Any]
    declared: dict[str, AttributeType]
    unusable: list[str]


class Governor:
    """Policies, people, and what comes of both. Its methods wait in threads, never in the event loop.

    Args:
        clock: POSIX seconds.
        enabled: whether people's snapshots follow the policy at all (`MarimoHub.governance`).
    """

    def __init__(self, database: Database, clock: Callable[[], float], *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._database = database
        self._clock = clock
        self._threads = ThreadPoolExecutor(2, "marimohub-policy")
        self._policies: OrderedDict[tuple[int, int], tuple[StoredPolicy, Policy]] = OrderedDict()
        self._accesses: OrderedDict[tuple[object, ...], Access] = OrderedDict()
        self._digest: tuple[WarehouseSchema, str] | None = None

    async def policy(self, workspace_id: int) -> tuple[StoredPolicy | None, Policy | None]:
        """The policy that applies now, also if it was applied by another process; (None, None) if there is none.

        Raises:
            PolicyUnusable: another version of MarimoHub took it, and this one does not.
        """
        revision = await self._database.read(store.current_revision, workspace_id)
        return await self.revision(workspace_id, revision) if revision else (None, None)

    async def revision(self, workspace_id: int, revision: int) -> tuple[StoredPolicy, Policy]:
        """One revision, parsed.

        Raises:
            NoRevision, PolicyUnusable
        """
        key = workspace_id, revision
        if key not in self._policies:
            stored = await self._database.read(store.get, workspace_id, revision)
            try:
                parsed = await self._run(parse, stored.text)
            except PolicyInvalid as error:
                raise PolicyUnusable(error.problems) from error
            _keep(self._policies, key, (stored, parsed), KEPT_POLICIES)
        return self._policies[key]

    async def access(
        self, workspace_id: int, subject: Subject, schema: WarehouseSchema, *, revision: int | None = None
    ) -> Access:
        """What a person sees of a warehouse. Without a policy: nothing.

        Args:
            subject: the person; attributes are read from the database.
            revision: another than the one that applies; 0 is no policy.

        Raises:
            PolicyUnusable: the policy does not fit the warehouse.
            NoRevision
        """
        number, policy = await self._numbered(workspace_id, revision)
        if policy is None:
            return nothing(schema)
        subject = await self._with_attributes(subject)
        key = workspace_id, number, await self._run(self._digest_of, schema), _key(subject)
        if key in self._accesses:
            self._accesses.move_to_end(key)
        else:
            try:
                found = await self._run(resolve, policy, schema, subject)
            except PolicyInvalid as error:
                raise PolicyUnusable(error.problems) from error
            _keep(self._accesses, key, found, KEPT_ACCESSES)
        return self._accesses[key]

    async def check(self, text: str, schema: WarehouseSchema | None) -> list[Problem]:
        """What is wrong with a policy's text; without a schema only what the text itself tells."""
        return await self._run(check_text, text, schema)

    async def apply(
        self, workspace_id: int, text: str, schema: WarehouseSchema, *, author: str, comment: str, expected: int | None
    ) -> tuple[StoredPolicy, list[Problem]]:
        """Make a text the policy if it fits the warehouse; returns it with the warnings about it.

        Raises:
            PolicyRefused; PolicyChanged: another revision applies than `expected` (None: whatever there is).
        """
        problems = await self.check(text, schema)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            raise PolicyRefused(errors)
        stored = await self._database.write(
            store.apply, workspace_id, text, author=author, comment=comment, expected=expected, now=self._clock()
        )
        return stored, problems

    async def explain(
        self,
        workspace_id: int,
        subject: Subject,
        schema: WarehouseSchema,
        count: Count,
        *,
        table: str | None = None,
        column: str | None = None,
    ) -> dict[str, Any]:
        """What a person sees and by which rules, with the rows that are kept, as data for JSON.

        Args:
            table: only this table or view.
            column: only this column of it.

        Raises:
            PolicyUnusable, NoObject
        """
        revision, policy = await self._numbered(workspace_id, None)
        asked = _Asked.find(schema, table, column) if table is not None or column is not None else None
        if policy is None:
            explained = await self._run(explain, NO_POLICY, schema, subject)
        else:
            access = await self.access(workspace_id, subject, schema, revision=revision)
            counts = await _count(access, schema, count, asked)
            subject = await self._with_attributes(subject)
            explained = await self._run(explain, policy, schema, subject, counts)
        if asked is not None:
            explained = asked.only(explained)
        return {"revision": revision, "governance": "policy" if self.enabled else "off", **explained}

    async def compare_people(
        self, workspace_id: int, one: Subject, other: Subject, schema: WarehouseSchema
    ) -> dict[str, Any]:
        """What `other` sees differently from `one`.

        Raises:
            PolicyUnusable
        """
        before = await self.access(workspace_id, one, schema)
        return diff(before, await self.access(workspace_id, other, schema))

    async def compare_revisions(
        self, workspace_id: int, subject: Subject, before: int, after: int, schema: WarehouseSchema
    ) -> dict[str, Any]:
        """What a person sees differently under the revision `after`; 0 is no policy.

        Raises:
            NoRevision, PolicyUnusable
        """
        old = await self.access(workspace_id, subject, schema, revision=before)
        return diff(old, await self.access(workspace_id, subject, schema, revision=after))

    async def attributes(self, workspace_id: int, user: str) -> Attributes:
        """What is stored about a person.

        Raises:
            PolicyUnusable
        """
        _, policy = await self.policy(workspace_id)
        declared = policy.attributes if policy is not None else {}
        values = await self._database.read(store.attributes_of, user)
        return Attributes(values, declared, [problem.where for problem in check_values(declared, values)])

    async def set_attributes(self, workspace_id: int, user: str, values: dict[str, Any], *, by: str) -> Attributes:
        """Replace all that is stored about a person.

        Raises:
            AttributesInvalid: the policy declares no such attribute, or another type.
            NoPerson, PolicyUnusable
        """
        _, policy = await self.policy(workspace_id)
        declared = policy.attributes if policy is not None else {}
        problems = check_values(declared, values)
        if problems:
            raise AttributesInvalid(problems)
        await self._database.write(subjects.set_attributes, user, values, by=by, now=self._clock())
        return Attributes(values, declared, [])

    async def draft(self, schema: WarehouseSchema) -> str:
        """A first policy for a warehouse, which lets nobody see anything."""
        return await self._run(draft, schema)

    async def _numbered(self, workspace_id: int, revision: int | None) -> tuple[int, Policy | None]:
        """A revision, or the one that applies, with its number."""
        if revision is None:
            stored, policy = await self.policy(workspace_id)
            return (stored.revision if stored is not None else 0), policy
        return (revision, (await self.revision(workspace_id, revision))[1]) if revision else (0, None)

    async def _with_attributes(self, subject: Subject) -> Subject:
        return replace(subject, attributes=await self._database.read(store.attributes_of, subject.user))

    def _digest_of(self, schema: WarehouseSchema) -> str:
        """Names what resolving looks at: all but the numbers of rows."""
        known = self._digest
        if known is None or known[0] is not schema:
            bare = replace(schema, tables=tuple(replace(table, rows=0) for table in schema.tables))
            known = schema, hashlib.sha256(json.dumps(bare.to_dict()).encode()).hexdigest()
            self._digest = known
        return known[1]

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))


def check_text(text: str, schema: WarehouseSchema | None) -> list[Problem]:
    """What is wrong with a policy's text; without a schema only what the text itself tells."""
    try:
        policy = parse(text)
    except PolicyInvalid as error:
        return error.problems
    return check(policy, schema) if schema is not None else []


@dataclass(frozen=True)
class _Asked:
    """A table or view, or one column of it, by the names that the warehouse gives them."""

    schema: str
    name: str
    column: str | None

    @classmethod
    def find(cls, schema: WarehouseSchema, table: str | None, column: str | None) -> _Asked:
        try:
            wanted = tuple(fold(part) for part in parse_name(table or ""))
        except PolicyError:
            raise NoObject("table", table or "") from None
        every: tuple[Table | View, ...] = (*schema.tables, *schema.views)
        for found in every:
            if (fold(found.schema), fold(found.name)) == wanted:
                break
        else:
            raise NoObject("table", table or "")
        if column is None:
            return cls(found.schema, found.name, None)
        names = [each.name for each in found.columns if fold(each.name) == fold(column)]
        if not names:
            raise NoObject("column", f"{table}.{column}")
        return cls(found.schema, found.name, names[0])

    def is_table(self, schema: str, name: str) -> bool:
        return (self.schema, self.name) == (schema, name)

    def only(self, explained: dict[str, Any]) -> dict[str, Any]:
        """The part of an explanation that is about this."""
        name = display(self.schema, self.name)
        tables = [table for table in explained["tables"] if self.is_table(table["schema"], table["name"])]
        if self.column is not None:
            tables = [{**t, "columns": [c for c in t["columns"] if c["name"] == self.column]} for t in tables]
        places = {name, display(self.schema, self.name, self.column)} if self.column is not None else None
        omitted = [
            each
            for each in explained["omitted"]
            if (each["name"] in places if places else each["name"] == name or each["name"].startswith(f"{name}."))
        ]
        views = [view for view in explained["views"] if view == name]
        return {**explained, "tables": tables, "views": views, "omitted": omitted}


async def _count(access: Access, schema: WarehouseSchema, count: Count, asked: _Asked | None) -> dict[str, int]:
    """Rows that are kept, by displayed name. Only filtered tables have to be looked at."""
    rows = {(table.schema, table.name): table.rows for table in schema.tables}
    found, filtered = {}, []
    for table in access.tables:
        if asked is not None and not asked.is_table(table.schema, table.name):
            continue
        if table.filters and table.no_rows is None:
            filtered.append(table)
        found[display(table.schema, table.name)] = 0 if table.no_rows else rows.get((table.schema, table.name), 0)
    if filtered:
        counts = await count([table.plan() for table in filtered])
        for table, (kept, _total) in zip(filtered, counts, strict=True):
            found[display(table.schema, table.name)] = kept
    return found


def _key(subject: Subject) -> tuple[object, ...]:
    attributes = json.dumps(dict(subject.attributes), sort_keys=True)
    return subject.user, subject.role, tuple(sorted(subject.groups)), attributes


def _keep(cache: OrderedDict[Any, Any], key: object, value: object, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
