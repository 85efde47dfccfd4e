"""What handlers that open notebooks or take snapshots away do with people's servers."""

from __future__ import annotations

import asyncio
from typing import Any

from marimohub.handlers.base import ApiHandler, RequestError
from marimohub.opening import ServerFailed
from marimohub.personal import Place
from marimohub.subjects import subject_of

STOP_WAIT_SECONDS = 60


class ServerApi(ApiHandler):
    """Base of handlers that work with a person's server and snapshot folder."""

    def person(self) -> Any:
        """The person who asks. Raises RequestError for a service, which has no server."""
        user = self.current_user
        if getattr(user, "spawners", None) is None:
            raise RequestError(403, "forbidden", "Only a person has a notebook server, not a service.")
        return user

    async def place_of(self, user: Any) -> Place:
        """Where a person's snapshot goes. Raises RequestError if the hub's spawner is none of ours."""
        folder = getattr(user.spawner, "snapshot_folder", None)
        if folder is None:
            raise RequestError(501, "no_snapshots", "The spawner of this hub does not know snapshots.")
        return Place(await self.workspace_id(), subject_of(user, {}), folder)

    async def stop_server(self, user: Any) -> None:
        """End a person's server, whatever state it is in.

        Raises:
            ServerFailed: it could not be ended.
        """
        spawner = user.spawners[""]
        if spawner.pending == "spawn" and spawner._spawn_future is not None:
            await asyncio.wait([spawner._spawn_future])
            spawner = user.spawners[""]
        await self.wait_for_stop(spawner)
        if spawner.active:
            await self.stop_single_user(user, "")
            await self.wait_for_stop(user.spawners[""])
        if user.spawners[""].active:
            raise ServerFailed("The notebook server could not be stopped. Try again in a minute.", [])

    async def wait_for_stop(self, spawner: Any) -> None:
        """Wait until a server that is stopping has stopped."""
        for _ in range(STOP_WAIT_SECONDS * 10):
            if spawner.pending != "stop":
                return
            await asyncio.sleep(0.1)
        raise ServerFailed("Your notebook server is still stopping. Try again in a minute.", [])
