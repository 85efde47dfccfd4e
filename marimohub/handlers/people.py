"""JupyterHub's calls that delete or rename a user, with what that means for the person's notebooks and drafts."""

from __future__ import annotations

import time
from typing import Any

from jupyterhub.apihandlers.users import UserAPIHandler
from tornado import web

from marimohub import people
from marimohub.handlers.base import Services


class PersonHandler(Services, UserAPIHandler):
    async def delete(self, user_name: str) -> None:
        """Delete a user; what they left is kept under a name that nobody can register."""
        await UserAPIHandler.delete(self, user_name)
        if self.find_user(user_name) is None:
            await self.hub_services.database.write(people.forget, user_name, now=time.time())

    async def patch(self, user_name: str) -> None:
        """Change a user, but not the name: notebooks, drafts, locks and the private folder belong to it."""
        wanted = (self.get_json_body() or {}).get("name", user_name)
        if wanted != user_name:
            raise web.HTTPError(400, "People cannot be renamed here. Approve an account with the new name instead.")
        await UserAPIHandler.patch(self, user_name)


handlers: list[tuple[Any, ...]] = [(r"/api/users/([^/]+)", PersonHandler)]
