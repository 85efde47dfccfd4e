"""What all of our handlers share: services, roles, and one table from domain errors to answers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from jupyterhub import orm
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.handlers.base import BaseHandler
from tornado import web

from marimohub import locks, notebook_errors
from marimohub.auth import roles
from marimohub.files import NoSpace
from marimohub.governance.attributes import AttributesInvalid
from marimohub.governance.errors import PolicyInvalid
from marimohub.governance.store import NoRevision, PolicyChanged
from marimohub.governing import NoObject, PolicyRefused
from marimohub.names import InvalidName
from marimohub.notebook_templates import UnknownTemplate
from marimohub.opening import HubServices, ServerFailed
from marimohub.permissions import Viewer, isoformat
from marimohub.personal import AccessChanged
from marimohub.policy_models import problem_models
from marimohub.snapshots.errors import SnapshotError
from marimohub.subjects import NoPerson

MAX_ID = 2**63 - 1
# JSON may write a character of two bytes as six (`\u00fc`), so a text grows to at most three times its size
MAX_BODY_BYTES = 3 * notebook_errors.MAX_TEXT_BYTES + 64 * 1024

P = ParamSpec("P")
T = TypeVar("T")


class RequestError(Exception):
    """A request that is refused before any domain function is called."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


STATUS: dict[type[Exception], int] = {
    InvalidName: 400,
    UnknownTemplate: 400,
    notebook_errors.InvalidText: 400,
    notebook_errors.TextTooLarge: 413,
    notebook_errors.NotAuthor: 403,
    notebook_errors.NotFound: 404,
    notebook_errors.FileMissing: 404,
    notebook_errors.NoWorkspace: 404,
    notebook_errors.NoVersion: 404,
    notebook_errors.NoDraft: 404,
    notebook_errors.NotebookError: 409,
    locks.LockError: 409,
    PolicyRefused: 400,
    AttributesInvalid: 400,
    AccessChanged: 409,
    PolicyChanged: 409,
    PolicyInvalid: 409,
    NoRevision: 404,
    NoObject: 404,
    NoPerson: 404,
    NoSpace: 507,
    SnapshotError: 503,
    ServerFailed: 503,
}


def describe(error: Exception, *, admin: bool) -> tuple[int, dict[str, Any]] | None:
    """Status and JSON body for an error that a caller can act on, None for any other.

    Args:
        admin: whether to include what only administrators should see.
    """
    if isinstance(error, RequestError):
        return error.status, {"error": {"code": error.code, "message": error.message}}
    for kind, status in STATUS.items():
        if not isinstance(error, kind):
            continue
        body = {"code": getattr(error, "code", None) or _code(error), "message": getattr(error, "message", str(error))}
        if isinstance(error, locks.LockHeld):
            body |= {"holder": error.holder, "since": isoformat(error.since)}
        elif isinstance(error, notebook_errors.SaveRefused):
            body |= {"draft": error.draft}
        elif isinstance(error, PolicyInvalid) and admin:
            body |= {"problems": problem_models(error.problems)}
        elif isinstance(error, ServerFailed) and admin:
            body |= {"log": error.log}
        return status, {"error": body}
    return None


def _code(error: Exception) -> str:
    """`UnknownTemplate` as `unknown_template`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()


def answers(
    method: Callable[Concatenate[Any, P], Awaitable[None]],
) -> Callable[Concatenate[Any, P], Awaitable[None]]:
    """Turn the errors that an API method raises into their status and JSON body."""

    @functools.wraps(method)
    async def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await method(self, *args, **kwargs)
        except Exception as error:
            described = describe(error, admin=self.viewer.is_admin)
            if described is None:
                raise
            status, body = described
            self.set_status(status)
            self.finish(json.dumps(body))

    return wrapped


def row_id(text: str) -> int:
    """A number in a path. What cannot be the id of anything is one that nothing has."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    return number if number <= MAX_ID else 0


class Services:
    """Access to what the app put into the settings."""

    settings: dict[str, Any]
    expanded_scopes: set[str]
    current_user: Any
    authenticator: Any

    @property
    def hub_services(self) -> HubServices:
        found = self.settings["marimohub"]
        assert isinstance(found, HubServices)
        return found

    @property
    def broadcaster(self) -> Any:
        """Where events for open pages go (handlers/events.py)."""
        return self.settings["marimohub_events"]

    def email_of(self, user: str | None) -> str | None:
        """The e-mail address of a user, if it is known."""
        if user is None:
            return None
        find = getattr(self.authenticator, "email_of", None)
        address = find(user) if find else None
        return address or (user if "@" in user else None)

    def email_lookup(self) -> Callable[[str | None], str | None]:
        """`email_of` for a whole list: the database is asked once, not for each row."""
        find_all = getattr(self.authenticator, "emails", None)
        if find_all is None:
            return functools.cache(self.email_of)
        known = find_all()
        return lambda user: (known.get(user) or (user if "@" in user else None)) if user is not None else None

    @property
    def viewer(self) -> Viewer:
        """Who asks, with the role that the request's scopes amount to."""
        who = self.current_user
        name = who.name if who else ""
        if isinstance(who, orm.Service):
            name = f"service:{name}"  # a service may be called like a person, and must not pass for them
        return Viewer(name, roles.role_of(self.expanded_scopes))


class ApiHandler(Services, APIHandler):
    """Base of the JSON API: cookie with XSRF token below /hub/, tokens anywhere."""

    async def prepare(self) -> None:
        await super().prepare()
        if self.current_user is None:
            self.set_status(401)
            self.finish(
                json.dumps({"error": {"code": "unauthenticated", "message": "Sign in, or send a valid token."}})
            )

    def require(self, scope: str) -> None:
        """Refuse the request unless its scopes include `scope`."""
        if scope not in self.expanded_scopes:
            raise RequestError(403, "forbidden", _REASONS[scope])

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; empty for no body."""
        if len(self.request.body) > MAX_BODY_BYTES:
            raise notebook_errors.TextTooLarge
        try:
            body = json.loads(self.request.body) if self.request.body else {}
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "bad_json", "The body is not valid JSON.") from error
        if not isinstance(body, dict):
            raise RequestError(400, "bad_json", "The body must be a JSON object.")
        return body

    def field(self, body: dict[str, Any], name: str, kind: type[T]) -> T:
        """A required field of the body."""
        value = body.get(name)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        if not isinstance(value, kind) or isinstance(value, bool):
            words = {str: "text", int: "a whole number"}
            raise RequestError(400, "bad_field", f'The field "{name}" must be {words.get(kind, kind.__name__)}.')
        if isinstance(value, int) and abs(value) > MAX_ID:
            raise RequestError(400, "bad_field", f'The field "{name}" is out of range.')
        return value

    def changed(self) -> None:
        """Tell open Notebooks pages that the list is not what they show."""
        self.broadcaster.send({"event": "notebooks_changed"})

    async def workspace_id(self) -> int:
        """The workspace that the request names, or the default one."""
        name = self.get_query_argument("workspace", self.hub_services.workspace)
        workspaces = self.hub_services.store.workspaces
        known = workspaces.known_id(name)
        return known if known is not None else await self.hub_services.database.read(workspaces.find, name)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Any other failure, as JSON and without its cause."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        message = ""
        if isinstance(error, web.HTTPError) and status_code < 500:
            message = error.log_message or error.reason or ""
        self.set_header("Content-Type", "application/json")
        if status_code == 405:
            # RFC 9110 wants to hear what is allowed
            inherited = {method: getattr(ApiHandler, method.lower()) for method in self.SUPPORTED_METHODS}
            own = [method for method, found in inherited.items() if getattr(type(self), method.lower()) is not found]
            self.set_header("Allow", ", ".join(own))
            message = f"This address does not know the method {self.request.method}."
        body = {"code": f"http_{status_code}", "message": message or "The hub could not do this. Its log says why."}
        self.finish(json.dumps({"error": body}))


class PageHandler(Services, BaseHandler):
    """Base of the pages."""


_REASONS = {
    roles.READ: "You have no role in this workspace. Ask an administrator for one.",
    roles.EDIT: "This needs the editor or admin role. Ask an administrator for it.",
    roles.ADMIN: "Only an administrator can do this.",
    roles.SYNC: "This needs the editor or admin role. Ask an administrator for it.",
    "read:servers": "Only an administrator can do this.",
    "admin:servers": "Only an administrator can do this.",
}
