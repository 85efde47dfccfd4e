"""The policy: applying, checking, its history, and what people see under it; and people's attributes."""

from __future__ import annotations

from functools import partial
from typing import Any

from jupyterhub import orm

from marimohub import subjects
from marimohub.auth import roles
from marimohub.governance import store
from marimohub.governance.errors import Problem
from marimohub.governance.subject import Subject
from marimohub.governing import Governor
from marimohub.handlers.base import ApiHandler, RequestError, answers, row_id
from marimohub.policy_models import (
    attributes_model,
    entry_model,
    own_explanation,
    policy_model,
    problem_models,
    schema_model,
)
from marimohub.snapshots.errors import SnapshotError
from marimohub.snapshots.schema import WarehouseSchema

MAX_COMMENT = 2000
# Everybody may ask what they see, as often as they like: not each question is worth a copy of a busy warehouse.
LOOK_AGE = 60.0  # seconds


class PolicyApi(ApiHandler):
    """What the policy handlers share."""

    @property
    def governor(self) -> Governor:
        found = self.settings["marimohub_governor"]
        assert isinstance(found, Governor)
        return found

    async def schema(self, *, max_age: float = 0.0) -> WarehouseSchema:
        """What is in the warehouse now, or was within the last `max_age` seconds."""
        found = await self.hub_services.snapshots.schema(max_age=max_age)
        assert isinstance(found, WarehouseSchema)
        return found

    def subject(self, name: str | None) -> Subject:
        """The person of a name, or the one who asks."""
        return subjects.subject_of(subjects.find_person(self.db, self.own_name() if name is None else name), {})

    def own_name(self) -> str:
        if isinstance(self.current_user, orm.Service):
            raise RequestError(400, "bad_query", 'A service sees no data itself: say which "user" you ask about.')
        return str(self.current_user.name)

    def query(self, name: str) -> str | None:
        """A parameter of the query; None if it is left out."""
        return self.get_query_argument(name, None, strip=False)

    def revision(self, name: str) -> int:
        """A revision in the query, 0 for none."""
        value = self.query(name)
        if value == "0":
            return 0
        number = row_id(value or "")
        if not number:
            raise RequestError(400, "bad_query", f'The parameter "{name}" must be the number of a revision, or 0.')
        return number

    def text(self, body: dict[str, Any], name: str) -> str:
        """A text of the body that every database takes."""
        value = self.field(body, name, str)
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise RequestError(400, "bad_field", f'The field "{name}" holds characters that are no text.')
        return value


class PolicyHandler(PolicyApi):
    @answers
    async def get(self) -> None:
        """The policy that applies, and what is wrong with it by now."""
        self.require(roles.ADMIN)
        stored = await self.hub_services.database.read(store.current, await self.workspace_id())
        problems: list[Problem] = []
        if stored is not None:
            try:
                problems = await self.governor.check(stored.text, await self.schema())
            except SnapshotError as error:
                problems = [Problem("warehouse", error.message)]
        self.finish(self.model(stored, problems))

    @answers
    async def put(self) -> None:
        """Apply a policy as a new revision."""
        self.require(roles.ADMIN)
        workspace_id, body = await self.workspace_id(), self.json_object()
        text, comment = self.text(body, "text"), self.text({"comment": "", **body}, "comment")
        if len(comment) > MAX_COMMENT:
            raise RequestError(400, "bad_field", f"The comment is longer than {MAX_COMMENT} characters.")
        expected = self.field(body, "expected_revision", int) if "expected_revision" in body else None
        if expected is not None and expected < 0:
            raise RequestError(400, "bad_field", 'The field "expected_revision" must not be negative.')
        stored, problems = await self.governor.apply(
            workspace_id, text, await self.schema(), author=self.viewer.user, comment=comment, expected=expected
        )
        self.set_status(201)
        self.finish(self.model(stored, problems))

    def model(self, stored: store.StoredPolicy | None, problems: list[Problem]) -> dict[str, Any]:
        return {
            **policy_model(stored),
            "problems": problem_models(problems),
            "governance": "policy" if self.governor.enabled else "off",
        }


class CheckHandler(PolicyApi):
    @answers
    async def post(self) -> None:
        """What is wrong with a text, without applying it."""
        self.require(roles.ADMIN)
        text = self.field(self.json_object(), "text", str)
        problems = await self.governor.check(text, await self.schema())
        self.finish({"problems": problem_models(problems)})


class DraftHandler(PolicyApi):
    @answers
    async def post(self) -> None:
        """A first policy for the warehouse as it is."""
        self.require(roles.ADMIN)
        self.finish({"text": await self.governor.draft(await self.schema())})


class SchemaHandler(PolicyApi):
    @answers
    async def get(self) -> None:
        """What is in the warehouse, for the editor."""
        self.require(roles.ADMIN)
        self.finish(schema_model(await self.schema()))


class HistoryHandler(PolicyApi):
    @answers
    async def get(self) -> None:
        """All revisions, newest first."""
        self.require(roles.ADMIN)
        found = await self.hub_services.database.read(store.history, await self.workspace_id())
        self.finish({"revisions": [entry_model(entry) for entry in found]})


class RevisionHandler(PolicyApi):
    @answers
    async def get(self, revision: str) -> None:
        """One revision with its text."""
        self.require(roles.ADMIN)
        workspace_id = await self.workspace_id()
        stored = await self.hub_services.database.read(store.get, workspace_id, row_id(revision))
        self.finish(policy_model(stored))


class ExplainHandler(PolicyApi):
    @answers
    async def get(self) -> None:
        """What a person sees and why: an administrator asks about everybody, others about themselves."""
        self.require(roles.READ)
        name = self.query("user")
        if not self.viewer.is_admin:
            if name not in (None, self.viewer.user):
                raise RequestError(403, "forbidden", "Only an administrator can ask what other people see.")
            name = self.own_name()
        workspace_id, subject = await self.workspace_id(), self.subject(name)
        explained = await self.governor.explain(
            workspace_id,
            subject,
            await self.schema(max_age=LOOK_AGE),
            partial(self.hub_services.snapshots.count, max_age=LOOK_AGE),
            table=self.query("table"),
            column=self.query("column"),
        )
        self.finish(explained if self.viewer.is_admin else own_explanation(explained))


class DiffHandler(PolicyApi):
    @answers
    async def get(self) -> None:
        """What two people see differently, or one person under two revisions."""
        self.require(roles.ADMIN)
        workspace_id, name, other = await self.workspace_id(), self.query("user"), self.query("other")
        revisions = self.query("from") is not None or self.query("to") is not None
        if name is None or (other is not None) == revisions:
            raise RequestError(400, "bad_query", 'Give "user" and "other", or "user", "from" and "to".')
        one = self.subject(name)
        if other is not None:
            two, schema = self.subject(other), await self.schema()
            self.finish(await self.governor.compare_people(workspace_id, one, two, schema))
            return
        before, after = self.revision("from"), self.revision("to")
        self.finish(await self.governor.compare_revisions(workspace_id, one, before, after, await self.schema()))


class AttributesHandler(PolicyApi):
    @answers
    async def get(self, person: str) -> None:
        """What is known about a person for the policy's rules."""
        self.require(roles.ADMIN)
        workspace_id, subject = await self.workspace_id(), self.subject(person)
        self.finish(attributes_model(subject.user, await self.governor.attributes(workspace_id, subject.user)))

    @answers
    async def put(self, person: str) -> None:
        """Replace all attributes of a person."""
        self.require(roles.ADMIN)
        workspace_id, subject = await self.workspace_id(), self.subject(person)
        values = self.json_object().get("attributes")
        if not isinstance(values, dict):
            raise RequestError(400, "bad_field", 'The field "attributes" must be an object.')
        changed = await self.governor.set_attributes(workspace_id, subject.user, values, by=self.viewer.user)
        self.finish(attributes_model(subject.user, changed))


handlers: list[tuple[Any, ...]] = [
    (r"/api/policy", PolicyHandler),
    (r"/api/policy/check", CheckHandler),
    (r"/api/policy/draft", DraftHandler),
    (r"/api/policy/schema", SchemaHandler),
    (r"/api/policy/history", HistoryHandler),
    (r"/api/policy/history/([^/]+)", RevisionHandler),
    (r"/api/policy/explain", ExplainHandler),
    (r"/api/policy/diff", DiffHandler),
    (r"/api/people/([^/]+)/attributes", AttributesHandler),
]
