"""The Data policy page, and the pages that show what people see under it."""

from __future__ import annotations

from typing import Any

from jupyterhub import orm
from jupyterhub.utils import url_path_join
from sqlalchemy import select
from tornado import web
from tornado.httputil import url_concat

from marimohub.governance import store
from marimohub.governing import Governor
from marimohub.handlers.base import PageHandler
from marimohub.policy_models import policy_model


class PolicyPages(PageHandler):
    """What these pages share."""

    def require_admin(self) -> None:
        if not self.viewer.is_admin:
            raise web.HTTPError(403, "Only an administrator can do this.")

    @property
    def governed(self) -> bool:
        governor = self.settings["marimohub_governor"]
        assert isinstance(governor, Governor)
        return governor.enabled

    async def stored(self) -> store.StoredPolicy | None:
        database, workspaces = self.hub_services.database, self.hub_services.store.workspaces
        workspace_id = await database.read(workspaces.find, self.hub_services.workspace)
        return await database.read(store.current, workspace_id)

    async def show(self, template: str, path: str, **values: Any) -> None:
        self.set_header("Cache-Control", "no-store")
        hub = url_path_join(self.hub.base_url, "")
        data = {
            "api": url_path_join(hub, "api/"),
            "login": url_concat(url_path_join(hub, "login"), {"next": url_path_join(hub, path)}),
            "workspace": self.hub_services.workspace,
            "governed": self.governed,
            "xsrf": self.xsrf_token.decode("ascii"),
            **values,
        }
        self.finish(await self.render_template(template, data=data))


class PolicyPage(PolicyPages):
    @web.authenticated
    async def get(self) -> None:
        """The policy as text. Whether it fits the warehouse takes longer to tell: the page asks for that itself."""
        self.require_admin()
        await self.show("policy.html", "policy", policy=policy_model(await self.stored(), text=True))


class PeoplePage(PolicyPages):
    @web.authenticated
    async def get(self) -> None:
        """What somebody sees, for administrators."""
        self.require_admin()
        people = list(self.db.scalars(select(orm.User.name).order_by(orm.User.name)))
        asked = self.get_query_argument("user", self.viewer.user)
        chosen = asked if asked in people else None
        await self.show("people.html", "policy/people", people=people, user=chosen, asked=asked, own=False)


class MyDataPage(PolicyPages):
    @web.authenticated
    async def get(self) -> None:
        """What one sees oneself."""
        if self.viewer.role is None:
            raise web.HTTPError(403, "You have no role in this workspace. Ask an administrator for one.")
        await self.show("people.html", "policy/me", people=[], user=self.viewer.user, asked=self.viewer.user, own=True)


handlers: list[tuple[Any, ...]] = [
    (r"/policy/?", PolicyPage),
    (r"/policy/people", PeoplePage),
    (r"/policy/me", MyDataPage),
]
