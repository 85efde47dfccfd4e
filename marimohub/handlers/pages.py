"""The Notebooks page, and where other addresses lead."""

from __future__ import annotations

import functools
import json
from typing import Any

from jupyterhub.utils import url_path_join
from markupsafe import Markup
from tornado import web

from marimohub import notebook_templates
from marimohub.auth import roles
from marimohub.governance import store
from marimohub.handlers.base import ApiHandler, PageHandler, RequestError, answers
from marimohub.handlers.notebooks import listing, notices
from marimohub.handlers.profiles import server_model
from marimohub.notebook_errors import NoWorkspace
from marimohub.orm import Notice
from marimohub.permissions import ago


class NotebooksPage(PageHandler):
    @web.authenticated
    async def get(self) -> None:
        """The page that people land on after signing in."""
        services, viewer = self.hub_services, self.viewer
        if viewer.role is None:
            data: dict[str, Any] = {"workspace": services.workspace, "role": None, "user": viewer.user}
            data |= {"can_create": False, "notebooks": []}
        else:
            try:
                data = await listing(self)
            except NoWorkspace as error:
                raise web.HTTPError(404, error.message) from error
        # nothing in it waits, and Jinja's async mode costs a thousand rows dear
        macro = self.get_template("notebook_row.html", sync=True).module.rows
        html = self.render_template(
            "notebooks.html",
            sync=True,
            listing=data,
            rows=lambda notebooks: _rows(macro, notebooks, viewer.role, services.clock()),
            templates=[
                {"key": t.key, "title": t.title, "description": t.description}
                for t in notebook_templates.TEMPLATES.values()
            ],
            lock_ttl_minutes=round(services.lock_ttl / 60),
            notices=await services.database.read(notices, viewer.user),
            governance=await self._governance(data["workspace"]),
            server=server_model(self.current_user) if viewer.can_edit else None,
        )
        self.finish(html)

    async def _governance(self, workspace: str) -> str:
        """What decides who sees which data: `off`, `none` (there is no policy yet), or `policy`."""
        services = self.hub_services
        if not self.settings["marimohub_governor"].enabled:
            return "off"
        workspace_id = await services.database.read(services.store.workspaces.find, workspace)
        return "policy" if await services.database.read(store.current_revision, workspace_id) else "none"


def _rows(macro: Any, notebooks: list[dict[str, Any]], role: str | None, now: float) -> Markup:
    """The rows of the table as HTML."""
    made = []
    for notebook in notebooks:
        ages = ago(notebook["modified"], now), ago(notebook["lock"]["since"], now)
        made.append(_row(macro, json.dumps(notebook), role, ages))
    return Markup("").join(made)


# Most rows are what they were a moment ago, for everybody who has no more to do with them than to see them.
@functools.lru_cache(maxsize=10_000)
def _row(macro: Any, notebook: str, role: str | None, _ages: tuple[str, str]) -> Markup:
    return Markup(macro([json.loads(notebook)], role))


class ToNotebooks(PageHandler):
    """JupyterHub's own landing pages lead to the Notebooks page."""

    @web.authenticated
    async def get(self) -> None:
        self.redirect(url_path_join(self.hub.base_url, "notebooks"))


class NoticeHandler(ApiHandler):
    @answers
    async def delete(self, notice: str) -> None:
        """Dismiss one of one's own notices."""
        self.require(roles.READ)
        if not await self.hub_services.database.write(_dismiss, int(notice), self.viewer.user):
            raise RequestError(404, "not_found", "There is no such notice.")
        self.set_status(204)
        self.finish()


class StaticHandler(web.StaticFileHandler):
    """Our CSS and JavaScript; the address carries a version, so browsers may keep them."""

    def get_cache_time(self, *_args: Any) -> int:
        return 86400 * 30 if self.get_argument("v", "") else 0

    def set_extra_headers(self, path: str) -> None:
        if not self.get_argument("v", ""):
            # modules import each other without a version: ask again, and be told "not modified"
            self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")


def _dismiss(session: Any, notice: int, user: str) -> bool:
    deleted = session.query(Notice).filter(Notice.id == notice, Notice.user_name == user).delete()
    return bool(deleted)


handlers: list[tuple[Any, ...]] = [
    (r"/notebooks/?", NotebooksPage),
    (r"/home", ToNotebooks),
    (r"/api/notices/(\d{1,18})", NoticeHandler),
]
