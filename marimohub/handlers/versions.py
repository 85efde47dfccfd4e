"""Versions of a notebook: the list, one text, restore, and two texts side by side."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy.orm import Session

from marimohub import drafts, versions
from marimohub.auth import roles
from marimohub.compare import compare
from marimohub.handlers.base import RequestError, answers, row_id
from marimohub.handlers.notebooks import NotebookApi
from marimohub.permissions import SIDE_LABELS, isoformat, version_model

# difflib holds the interpreter: one comparison at a time leaves the hub its share
_comparing = ThreadPoolExecutor(1, "marimohub-compare")


class VersionsHandler(NotebookApi):
    @answers
    async def get(self, name: str) -> None:
        """The versions of a notebook, newest first."""
        self.require(roles.EDIT)
        services, workspace_id = self.hub_services, await self.workspace_id()
        found = await services.database.run(versions.history, services.store, workspace_id, name, now=services.clock())
        email_of = self.email_lookup()
        self.finish({"versions": [version_model(version, email_of) for version in found]})


class VersionHandler(NotebookApi):
    @answers
    async def get(self, name: str, version: str) -> None:
        """One version with its text."""
        self.require(roles.EDIT)
        workspace_id = await self.workspace_id()
        found, text = await self.hub_services.database.read(versions.get, workspace_id, name, row_id(version))
        self.finish({**version_model(found, self.email_of), "text": text})


class RestoreHandler(NotebookApi):
    @answers
    async def post(self, name: str, version: str) -> None:
        """Make a version the current text again, under one's own lock."""
        self.require(roles.EDIT)
        services, workspace_id = self.hub_services, await self.workspace_id()
        restored = await services.database.run(
            versions.restore,
            services.store,
            workspace_id,
            name,
            row_id(version),
            user=self.viewer.user,
            now=services.clock(),
        )
        self.changed()
        notebook = self.model(await self.info(workspace_id, name))
        self.finish({"notebook": notebook, "version": version_model(restored, self.email_of)})


class CompareHandler(NotebookApi):
    @answers
    async def get(self, name: str) -> None:
        """Two of: a version, one of one's own drafts, the current text."""
        self.require(roles.EDIT)
        workspace_id = await self.workspace_id()
        sides: dict[str, Any] = {}
        texts: list[str] = []
        for side in ("left", "right"):
            label, created, text = await self._side(workspace_id, name, self.get_query_argument(side, "current"))
            sides[side] = {"label": label, "created": isoformat(created)}
            texts.append(text)
        result = await asyncio.get_running_loop().run_in_executor(_comparing, compare, texts[0], texts[1])
        rows = [{"op": row.op, "left": row.left, "right": row.right} for row in result.rows]
        self.finish({**sides, "rows": rows, "truncated": result.truncated})

    async def _side(self, workspace_id: int, name: str, wanted: str) -> tuple[str, float, str]:
        """Label, time and text of what `left` or `right` names."""
        services = self.hub_services
        if wanted == "current":
            current = await services.database.run(services.store.read, workspace_id, name, now=services.clock())
            return SIDE_LABELS["current"], current.modified, current.text
        kind, _, number = wanted.partition(":")
        if kind == "version":
            version, text = await services.database.read(versions.get, workspace_id, name, row_id(number))
            label = SIDE_LABELS[version.kind]
            return f"{label} by {version.author}" if version.author else label, version.created, text
        if kind == "draft":
            draft, text = await services.database.read(self._draft, workspace_id, name, row_id(number))
            return SIDE_LABELS["own_draft"], draft.created, text
        raise RequestError(400, "bad_side", 'Compare "current", "version:ID" or "draft:ID".')

    def _draft(self, session: Session, workspace_id: int, name: str, draft_id: int) -> tuple[drafts.DraftInfo, str]:
        now = self.hub_services.clock()
        return drafts.get(session, workspace_id, draft_id, self.viewer.user, now=now, notebook=name)


handlers: list[tuple[Any, ...]] = [
    (r"/api/notebooks/([^/]+)/versions", VersionsHandler),
    (r"/api/notebooks/([^/]+)/versions/([^/]+)", VersionHandler),
    (r"/api/notebooks/([^/]+)/versions/([^/]+)/restore", RestoreHandler),
    (r"/api/notebooks/([^/]+)/compare", CompareHandler),
]
