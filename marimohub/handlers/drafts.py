"""One's own drafts: the list, one text, discard, save as copy, replace the notebook."""

from __future__ import annotations

from typing import Any

from marimohub import drafts
from marimohub.auth import roles
from marimohub.handlers.base import RequestError, answers, row_id
from marimohub.handlers.notebooks import NotebookApi
from marimohub.permissions import draft_model


class DraftApi(NotebookApi):
    def require_editor(self) -> None:
        """As `require`, for somebody who may have left drafts behind."""
        if roles.EDIT not in self.expanded_scopes:
            raise RequestError(
                403,
                "forbidden",
                "This needs the editor or admin role. Ask an administrator for it; your drafts are kept until then.",
            )


class DraftsHandler(DraftApi):
    @answers
    async def get(self) -> None:
        """The caller's own drafts, newest first."""
        self.require_editor()
        services, workspace_id = self.hub_services, await self.workspace_id()
        found = await services.database.read(drafts.of_user, workspace_id, self.viewer.user, now=services.clock())
        self.finish({"drafts": [draft_model(draft) for draft in found]})


class DraftHandler(DraftApi):
    @answers
    async def get(self, draft: str) -> None:
        """One draft with its text."""
        self.require_editor()
        services, workspace_id = self.hub_services, await self.workspace_id()
        found, text = await services.database.read(
            drafts.get, workspace_id, row_id(draft), self.viewer.user, now=services.clock()
        )
        self.finish({**draft_model(found), "text": text})

    @answers
    async def delete(self, draft: str) -> None:
        """Discard a draft."""
        self.require_editor()
        workspace_id = await self.workspace_id()
        await self.hub_services.database.write(drafts.discard, workspace_id, row_id(draft), self.viewer.user)
        self.changed()
        self.set_status(204)
        self.finish()


class DraftCopyHandler(DraftApi):
    @answers
    async def post(self, draft: str) -> None:
        """Make a new notebook of a draft."""
        self.require_editor()
        services, workspace_id, user = self.hub_services, await self.workspace_id(), self.viewer.user
        name = self.field(self.json_object(), "name", str)
        info = await services.database.run(
            drafts.copy,
            services.store,
            workspace_id,
            row_id(draft),
            name,
            user=user,
            email=self.email_of(user),
            now=services.clock(),
        )
        self.changed()
        self.set_status(201)
        self.finish(self.model(info))


class DraftReplaceHandler(DraftApi):
    @answers
    async def post(self, draft: str) -> None:
        """Publish a draft over its notebook, under one's own lock."""
        self.require_editor()
        services, workspace_id = self.hub_services, await self.workspace_id()
        name = await services.database.run(
            drafts.replace,
            services.store,
            workspace_id,
            row_id(draft),
            user=self.viewer.user,
            now=services.clock(),
        )
        self.changed()
        await self.write_notebook(workspace_id, name)


handlers: list[tuple[Any, ...]] = [
    (r"/api/drafts", DraftsHandler),
    (r"/api/drafts/([^/]+)", DraftHandler),
    (r"/api/drafts/([^/]+)/copy", DraftCopyHandler),
    (r"/api/drafts/([^/]+)/replace", DraftReplaceHandler),
]
