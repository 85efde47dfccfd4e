"""People's servers for administrators: what holds them apart, what they use, why some ended, and their last log lines.

Nothing of people's work is in it: no notebook's name, no file, no text but what the server itself logged.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC
from typing import Any

from jupyterhub import orm
from sqlalchemy import Text, select, type_coerce
from sqlalchemy.orm import Session

from marimohub.handlers.base import ApiHandler, RequestError, answers
from marimohub.handlers.profiles import server_state
from marimohub.permissions import isoformat
from marimohub.server_usage import Measured, ServerUsage
from marimohub.spawners import usage
from marimohub.subjects import find_person

READ_SERVERS = "read:servers"
ADMIN_SERVERS = "admin:servers"
TELL_ENDED = 24 * 3600.0  # seconds that a server which ended by itself stays in the list


class ServersHandler(ApiHandler):
    @answers
    async def get(self) -> None:
        """Servers that run, with what they use and may use, what confines them, and those that ended by themselves."""
        self.require(READ_SERVERS)
        known = [spawner for user in list(self.users.values()) for spawner in list(user.spawners.values())]
        described = {spawner: _describe(spawner) for spawner in known if spawner.active}
        roots = {found["root_pid"]: found["disk_folders"] for found in described.values() if found["root_pid"]}
        failed = [_failed_model(spawner) for spawner in known if spawner._failed]
        ended = ended_models(self.db, time.time() - TELL_ENDED)
        self.db.commit()  # nothing of the database is held while others' files are counted
        measured = await self.usage.now(roots)
        models = {
            (model["user"], model["server"]): model
            for model in (
                *ended,
                *failed,
                *(_model(spawner, measured.get(found["root_pid"], Measured())) for spawner, found in described.items()),
            )
        }
        self.finish(
            {
                "confinement": self._confinement(),
                "cores": os.cpu_count() or 1,
                "servers": [models[key] for key in sorted(models)],
            }
        )

    @property
    def usage(self) -> ServerUsage:
        """One for all who ask."""
        found = self.settings.get("marimohub_server_usage")
        if found is None:
            found = self.settings["marimohub_server_usage"] = ServerUsage(usage.measure, usage.disk_bytes)
        assert isinstance(found, ServerUsage)
        return found

    def _confinement(self) -> dict[str, Any] | None:
        """What the spawner says of its sandbox; None for a spawner that is none of ours."""
        describe = getattr(self._any_spawner(), "describe_confinement", None)
        if describe is None:
            return None
        found = describe()
        return {
            "sandbox": found["sandbox"],
            "text": found["text"],
            "problems": list(found["problems"]),
            "limits": dict(found["limits"]),
        }

    def _any_spawner(self) -> Any:
        """It is the same for all people, so any will do: a service that asks has none."""
        for user in self.users.values():
            return user.spawner
        return self.spawner_class(config=self.config)


class ServerLogHandler(ApiHandler):
    @answers
    async def get(self, person: str) -> None:
        """The last lines that somebody's server logged."""
        self.require(ADMIN_SERVERS)
        find_person(self.db, person)
        user = self.find_user(person)
        tail = getattr(user.spawner, "log_tail", None) if user is not None else None
        if tail is None:
            raise RequestError(404, "no_log", "The spawner of this hub keeps no log that could be shown.")
        self.finish({"user": person, "lines": await asyncio.to_thread(tail)})


def _describe(spawner: Any) -> dict[str, Any]:
    describe = getattr(spawner, "describe_server", None)
    found = describe() if describe is not None else {}
    return {"root_pid": found.get("root_pid", 0), "disk_folders": tuple(map(str, found.get("disk_folders", ())))}


def _model(spawner: Any, used: Measured) -> dict[str, Any]:
    profile = getattr(spawner, "profile", None)
    limits = profile.limits if profile is not None else None
    started = spawner.orm_spawner.started
    return {
        "user": spawner.user.name,
        "server": spawner.name,
        "state": server_state(spawner),
        "message": None,
        "profile": {"name": profile.name, "title": profile.title} if profile is not None else None,
        "since": isoformat(started.replace(tzinfo=UTC).timestamp()) if started is not None else None,
        "cpu": None if used.cpu is None else round(used.cpu, 3),
        "memory": used.memory,
        "processes": used.processes,
        "disk": used.disk,
        "cpu_limit": getattr(limits, "cpu", None),
        "memory_limit": getattr(limits, "memory", None),
        "process_limit": getattr(limits, "processes", None),
        "disk_limit": getattr(limits, "disk", None),
    }


_MEASURES = ("cpu", "memory", "processes", "disk", "cpu_limit", "memory_limit", "process_limit", "disk_limit")
_NOTHING = dict.fromkeys(("profile", "since", *_MEASURES))


def _failed_model(spawner: Any) -> dict[str, Any]:
    """A server whose last start failed."""
    error = spawner._spawn_future.exception()
    message = getattr(error, "message", None) or "It did not start. Its log, or the hub's, says why."
    what = {"user": spawner.user.name, "server": spawner.name, "state": "failed", "message": _told(str(message))}
    return {**_NOTHING, **what}


def _told(message: str) -> str:
    """What was written for a server's owner, for an administrator."""
    return message.replace("Your notebook server", "The server", 1)


def ended_models(session: Session, after: float) -> list[dict[str, Any]]:
    """Servers that ended by themselves after a time (POSIX seconds) and were not started again."""
    found = session.execute(
        select(orm.User.name, orm.Spawner.name, orm.Spawner.state)
        .join(orm.User, orm.Spawner.user_id == orm.User.id)
        .where(orm.Spawner.server_id.is_(None), type_coerce(orm.Spawner.state, Text).like('%"ended_because"%'))
    )
    models = []
    for user, server, state in found:
        because, at = state.get("ended_because"), state.get("ended_at")
        if isinstance(because, str) and isinstance(at, int | float) and at > after:
            what = {"user": user, "server": server, "state": "ended", "message": _told(because), "since": isoformat(at)}
            models.append({**_NOTHING, **what})
    return models


handlers: list[tuple[Any, ...]] = [
    (r"/api/servers", ServersHandler),
    (r"/api/servers/([^/]+)/log", ServerLogHandler),
]
