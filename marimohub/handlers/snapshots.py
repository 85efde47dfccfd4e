"""One's own snapshot: how old it is, a new one without a restart; and taking others' away."""

from __future__ import annotations

from typing import Any

from marimohub.auth import roles
from marimohub.handlers.base import RequestError, answers
from marimohub.handlers.servers import ServerApi
from marimohub.opening import ServerFailed
from marimohub.orm import AuditEntry
from marimohub.snapshots.errors import SnapshotError


class SnapshotApi(ServerApi):
    """What the handlers of one's own snapshot share."""

    async def model(self) -> dict[str, Any] | None:
        """The snapshot in the folder of the person who asks, None if there is none."""
        place = await self.place_of(self.person())
        personal = self.hub_services.personal
        linked = personal.cache.linked(place.folder)
        if not linked:
            return None
        return {
            "created": linked["created"],
            "checked": linked["checked"],
            "version": linked["version"],
            "governed": bool(linked["plan"]),
            "current": await personal.is_current(place),
        }


class SnapshotHandler(SnapshotApi):
    @answers
    async def get(self) -> None:
        """When one's own snapshot was taken, and whether it is what one may see now."""
        self.require(roles.READ)
        self.finish({"snapshot": await self.model()})


class RefreshHandler(SnapshotApi):
    @answers
    async def post(self) -> None:
        """A new snapshot beside the running server, which goes on."""
        self.require(roles.SYNC)
        user = self.person()
        place = await self.place_of(user)
        before = self.hub_services.personal.cache.linked(place.folder).get("version")

        async def nothing_runs() -> None:
            return

        # a running server would keep what it has open: then the person decides when it ends
        stop = None if user.spawners[""].active else nothing_runs
        snapshot = await self.hub_services.personal.give(place, stop=stop)
        self.finish({"snapshot": await self.model(), "changed": snapshot.version != before})


class RevokeHandler(ServerApi):
    @answers
    async def post(self) -> None:
        """Take snapshots away now whose access has changed: link removed, server ended and started on a new one."""
        self.require(roles.ADMIN)
        body = self.json_object()
        names = body.get("users")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise RequestError(
                400, "bad_field", 'The field "users" must be a list of names, or be left out for everybody.'
            )
        personal = self.hub_services.personal
        found = []
        for linked in personal.cache.links():
            name = linked.get("user", "")
            if names is None or name in names:
                found.append(await self._revoke(name, always=names is not None))
        await self.hub_services.database.write(_note, self.viewer.user, found, self.hub_services.clock())
        self.finish({"people": [one for one in found if one is not None]})

    async def _revoke(self, name: str, *, always: bool) -> dict[str, Any] | None:
        """Outcome for one person: `restarted`, `stopped`, or `failed` with a message. None: nothing had changed."""
        user = self.user_from_username(name) if self.find_user(name) else None
        if user is None:
            return None
        place = await self.place_of(user)
        personal = self.hub_services.personal
        if not always and await personal.is_current(place):
            return None
        running = bool(user.spawners[""].active)
        try:
            await personal.take(place, lambda: self.stop_server(user))
        except (SnapshotError, ServerFailed) as error:
            self.log.error("The snapshot of %s could not be taken away: %s", name, error.message)
            return {"user": name, "outcome": "failed", "message": error.message}
        if not running:
            return {"user": name, "outcome": "stopped", "message": ""}
        try:
            # the start itself puts a new snapshot there first
            await self.spawn_single_user(user)
        except Exception as error:
            message = (
                getattr(error, "message", None) or getattr(error, "log_message", None) or "Their server did not start."
            )
            return {"user": name, "outcome": "stopped", "message": str(message)}
        return {"user": name, "outcome": "restarted", "message": ""}


def _note(session: Any, actor: str, found: list[dict[str, Any] | None], now: float) -> None:
    for one in found:
        if one is not None:
            session.add(
                AuditEntry(
                    created=now, actor=actor, action="revoke_snapshot", target=one["user"], detail=one["outcome"]
                )
            )


handlers: list[tuple[Any, ...]] = [
    (r"/api/snapshot", SnapshotHandler),
    (r"/api/snapshot/refresh", RefreshHandler),
    (r"/api/policy/revoke", RevokeHandler),
]
