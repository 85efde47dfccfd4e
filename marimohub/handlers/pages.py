"""The Notebooks page, and where other addresses lead."""

from __future__ import annotations

from typing import Any

from jupyterhub.utils import url_path_join
from tornado import web

from marimohub import notebook_templates
from marimohub.handlers.base import ApiHandler, PageHandler, RequestError, answers
from marimohub.handlers.notebooks import listing, notices
from marimohub.orm import Notice


class NotebooksPage(PageHandler):
    @web.authenticated
    async def get(self) -> None:
        """The page that people land on after signing in."""
        services, viewer = self.hub_services, self.viewer
        if viewer.role is None:
            data: dict[str, Any] = {"workspace": services.workspace, "role": None, "user": viewer.user}
            data |= {"can_create": False, "notebooks": []}
        else:
            data = await listing(self)
        html = await self.render_template(
            "notebooks.html",
            listing=data,
            templates=[
                {"key": t.key, "title": t.title, "description": t.description}
                for t in notebook_templates.TEMPLATES.values()
            ],
            lock_ttl_minutes=round(services.lock_ttl / 60),
            notices=await services.database.read(notices, viewer.user),
        )
        self.finish(html)


class ToNotebooks(PageHandler):
    """JupyterHub's own landing pages lead to the Notebooks page."""

    @web.authenticated
    async def get(self) -> None:
        self.redirect(url_path_join(self.hub.base_url, "notebooks"))


class NoticeHandler(ApiHandler):
    @answers
    async def delete(self, notice: str) -> None:
        """Dismiss one of one's own notices."""
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
