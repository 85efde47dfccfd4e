"""The notebooks API. One set of handlers serves `/hub/api/notebooks…` (cookies) and `/api/notebooks…` (tokens)."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError

from marimohub import drafts, locks, notebook_templates
from marimohub.auth import roles
from marimohub.handlers.base import ApiHandler, RequestError, answers, describe
from marimohub.handlers.servers import ServerApi
from marimohub.names import check_name, is_well_formed
from marimohub.notebook_errors import NotFound
from marimohub.notebooks import NotebookInfo
from marimohub.opening import open_notebook
from marimohub.orm import Notice
from marimohub.permissions import draft_model, isoformat, notebook_model
from marimohub.revoking import force_unlock


class NotebookApi(ApiHandler):
    """What the notebook handlers share."""

    def model(self, info: NotebookInfo) -> dict[str, Any]:
        """A notebook as the person who asks sees it."""
        return notebook_model(info, self.viewer, self.email_of)

    async def info(self, workspace_id: int, name: str) -> NotebookInfo:
        services = self.hub_services
        return await services.database.run(services.store.get, workspace_id, name, now=services.clock())

    async def write_notebook(self, workspace_id: int, name: str) -> None:
        self.finish({"notebook": self.model(await self.info(workspace_id, name))})


class NotebooksHandler(NotebookApi):
    @answers
    async def get(self) -> None:
        """All notebooks with lock state, author, and file existence."""
        self.require(roles.READ)
        self.finish(await listing(self))

    @answers
    async def post(self) -> None:
        """Create a notebook from a template."""
        self.require(roles.EDIT)
        services, body = self.hub_services, self.json_object()
        workspace_id = await self.workspace_id()
        name = check_name(self.field(body, "name", str))
        template = self.field({"template": "blank", **body}, "template", str)
        text = notebook_templates.render(template, name)
        info = await services.database.run(
            services.store.create,
            workspace_id,
            name,
            text,
            author=self.viewer.user,
            email=self.email_of(self.viewer.user),
            now=services.clock(),
        )
        self.changed()
        self.set_status(201)
        self.finish(self.model(info))


async def listing(handler: Any) -> dict[str, Any]:
    """The Notebooks page as data, for the person who asks."""
    services, viewer = handler.hub_services, handler.viewer
    workspace = handler.get_query_argument("workspace", services.workspace)
    workspace_id = await services.database.run(services.store.workspace_id, workspace)
    found = await services.database.run(services.store.list_all, workspace_id, now=services.clock())
    own = []
    if viewer.can_edit:
        own = await services.database.read(drafts.of_user, workspace_id, viewer.user, now=services.clock())
    email_of = handler.email_lookup()
    return {
        "notices": await services.database.read(notices, viewer.user),
        "drafts": [draft_model(draft) for draft in own],
        "workspace": workspace,
        "role": viewer.role,
        "user": viewer.user,
        "can_create": viewer.can_edit,
        "notebooks": [notebook_model(info, viewer, email_of) for info in found],
    }


def notices(session: Any, user: str) -> list[dict[str, Any]]:
    """What waits for a user until they dismiss it."""
    found = session.query(Notice).filter(Notice.user_name == user).order_by(Notice.created)
    return [{"id": notice.id, "text": notice.text} for notice in found]


class NotebookHandler(NotebookApi):
    @answers
    async def get(self, name: str) -> None:
        """One notebook."""
        self.require(roles.READ)
        workspace_id = await self.workspace_id()
        self.finish(self.model(await self.info(workspace_id, name)))

    @answers
    async def delete(self, name: str) -> None:
        """Remove the file and the metadata."""
        self.require(roles.EDIT)
        services, viewer = self.hub_services, self.viewer
        workspace_id = await self.workspace_id()
        await services.database.run(
            services.store.delete,
            workspace_id,
            name,
            user=viewer.user,
            admin=viewer.is_admin,
            now=services.clock(),
        )
        self.changed()
        self.set_status(204)
        self.finish()


class LockHandler(ServerApi, NotebookApi):
    """Open: takes the lock, a snapshot, and starts the server. A client that accepts events sees the progress."""

    _streaming = False

    @answers
    async def post(self, name: str) -> None:
        self.require(roles.EDIT)
        user = self.person()
        workspace_id = await self.workspace_id()
        choice = self.choice(user)
        self._streaming = "text/event-stream" in self.request.headers.get("Accept", "")
        if self._streaming:
            self.set_header("Content-Type", "text/event-stream")
            self.set_header("Cache-Control", "no-cache")
        try:
            lock = await open_notebook(
                self.hub_services,
                workspace_id,
                name,
                user.name,
                place=await self.place_of(user),
                stop_server=lambda: self.stop_server(user),
                start_server=lambda report: self.start_server(report, choice),
                report=self.report,
            )
            self.changed()
            answer = {
                "marimo_url": f"{user.server_url('')}?file={quote(name)}.py",
                "fence": lock.fence,
                "expires": isoformat(lock.expires),
                "notebook": self.model(await self.info(workspace_id, name)),
            }
        except Exception as error:
            described = describe(error, admin=self.viewer.is_admin)
            if not self._streaming:
                raise
            if described is None:
                self.log.exception("Opening %s for %s failed", name, user.name)
                described = (
                    500,
                    {"error": {"code": "internal", "message": "The hub could not do this. Its log says why."}},
                )
            await self.event({"phase": "failed", **described[1]})
            return
        if self._streaming:
            await self.event({"phase": "ready", "progress": 100, "message": "Ready", **answer})
        else:
            self.finish(answer)

    @answers
    async def delete(self, name: str) -> None:
        """Force unlock: revokes somebody's lock, and tells them."""
        self.require(roles.ADMIN)
        workspace_id = await self.workspace_id()
        services = self.hub_services
        revoked = await services.database.write(
            force_unlock, workspace_id, name, actor=self.viewer.user, now=services.clock()
        )
        self.changed()
        event = {
            "event": "notebook_lock_revoked",
            "notebook": name,
            "notice": {"id": revoked.notice, "text": revoked.text},
        }
        self.broadcaster.send(event, user=revoked.holder)
        await self.write_notebook(workspace_id, name)

    async def report(self, phase: str, progress: int, message: str) -> None:
        if self._streaming:
            await self.event({"phase": phase, "progress": progress, "message": message})

    async def event(self, data: dict[str, Any]) -> None:
        """One server-sent event. A page that went away does not stop the opening."""
        self.write(f"data: {json.dumps(data)}\n\n")
        try:
            await self.flush()
        except StreamClosedError:
            self._streaming = False


class HeartbeatHandler(NotebookApi):
    @answers
    async def post(self, name: str) -> None:
        """Renew one's lock; the single-user side calls it while a tab is connected."""
        self.require(roles.SYNC)
        services, workspace_id = self.hub_services, await self.workspace_id()
        fence = self.field(self.json_object(), "fence", int)
        if not is_well_formed(name):
            raise NotFound(name)
        # one that a power failure takes back is followed by the next
        state = await services.database.write_soon(
            locks.heartbeat, workspace_id, name, self.viewer.user, fence, now=services.clock(), ttl=services.lock_ttl
        )
        self.finish({"fence": state.fence, "expires": isoformat(state.expires)})


class ReleaseHandler(NotebookApi):
    @answers
    async def post(self, name: str) -> None:
        """Give one's own lock back."""
        self.require(roles.EDIT)
        services, workspace_id = self.hub_services, await self.workspace_id()
        info = await self.info(workspace_id, name)
        await services.database.write(locks.release, workspace_id, info.name, self.viewer.user, now=services.clock())
        self.changed()
        await self.write_notebook(workspace_id, info.name)


class CopyHandler(NotebookApi):
    @answers
    async def post(self, name: str) -> None:
        """Duplicate a notebook under a new name."""
        self.require(roles.EDIT)
        services, workspace_id = self.hub_services, await self.workspace_id()
        new_name = self.field(self.json_object(), "name", str)
        info = await services.database.run(
            services.store.copy,
            workspace_id,
            name,
            new_name,
            author=self.viewer.user,
            email=self.email_of(self.viewer.user),
            now=services.clock(),
        )
        self.changed()
        self.set_status(201)
        self.finish(self.model(info))


class TextHandler(NotebookApi):
    """The text of a notebook, for the single-user side."""

    @answers
    async def get(self, name: str) -> None:
        self.require(roles.SYNC)
        services, workspace_id = self.hub_services, await self.workspace_id()
        now = services.clock()
        found = await services.database.run(services.store.read, workspace_id, name, now=now)
        info = await self.info(workspace_id, name)
        self.finish(
            {
                "name": name,
                "workspace": self.get_query_argument("workspace", services.workspace),
                "text": found.text,
                "hash": found.hash,
                "modified": isoformat(found.modified),
                "fence": info.lock.fence if info.lock.held_by(self.viewer.user) else None,
                "lock": self.model(info)["lock"],
            }
        )

    @answers
    async def put(self, name: str) -> None:
        self.require(roles.SYNC)
        services, workspace_id, body = self.hub_services, await self.workspace_id(), self.json_object()
        try:
            saved = await services.database.run(
                services.store.save,
                workspace_id,
                name,
                self.field(body, "text", str),
                user=self.viewer.user,
                fence=self.field(body, "fence", int),
                base=self._base(body),
                now=services.clock(),
            )
        finally:
            # a refused save has made a draft
            self.changed()
        self.finish({"hash": saved.hash, "modified": isoformat(saved.modified)})

    def _base(self, body: dict[str, Any]) -> str:
        base = self.field(body, "base", str)
        if not re.fullmatch(r"[0-9a-f]{64}", base):
            raise RequestError(400, "bad_field", 'The field "base" must be the SHA-256 of a text, in hex.')
        return base


_NAME = r"([^/]+)"
handlers: list[tuple[Any, ...]] = [
    (r"/api/notebooks", NotebooksHandler),
    (rf"/api/notebooks/{_NAME}", NotebookHandler),
    (rf"/api/notebooks/{_NAME}/lock", LockHandler),
    (rf"/api/notebooks/{_NAME}/heartbeat", HeartbeatHandler),
    (rf"/api/notebooks/{_NAME}/release", ReleaseHandler),
    (rf"/api/notebooks/{_NAME}/copy", CopyHandler),
    (rf"/api/notebooks/{_NAME}/text", TextHandler),
]
