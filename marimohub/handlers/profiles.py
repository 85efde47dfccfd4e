"""Profiles: what is offered to the person who asks, and their server with one of them."""

from __future__ import annotations

from typing import Any

from marimohub.auth import roles
from marimohub.handlers.base import RequestError, answers
from marimohub.handlers.servers import ServerApi, refusals
from marimohub.permissions import isoformat


def profile_model(profile: Any) -> dict[str, Any]:
    """A profile as the people see it whom it is offered to: nothing of its environment or interpreter."""
    return {
        "name": profile.name,
        "title": profile.title,
        "description": profile.description,
        "size": profile.size,
        "memory": profile.limits.memory,
        "cpu": profile.limits.cpu,
        "processes": profile.limits.processes,
        "disk": profile.limits.disk,
    }


def server_state(spawner: Any) -> str:
    """`stopped`, `starting`, `running` or `stopping`."""
    if spawner.pending == "stop":
        return "stopping"
    if spawner.pending:
        return "starting"
    return "running" if spawner.ready else "stopped"


def server_model(user: Any) -> dict[str, Any]:
    """A person's own server with the profiles they may choose from; none if the hub's spawner knows none."""
    spawner = user.spawner
    state = server_state(spawner)
    knows = hasattr(spawner, "offered_profiles")
    default = spawner.default_profile() if knows else None
    return {
        "profiles": [profile_model(profile) for profile in spawner.offered_profiles()] if knows else [],
        "default": default.name if default else None,
        "chosen": spawner.remembered_profile if knows else None,
        "state": state,
        "running": {"name": spawner.profile.name, "title": spawner.profile.title}
        if knows and state == "running"
        else None,
        "ended": ended_model(spawner) if state == "stopped" else None,
    }


def ended_model(spawner: Any) -> dict[str, str] | None:
    """Why and when a server ended by itself, None if it did not."""
    because, at = getattr(spawner, "ended_because", None), getattr(spawner, "ended_at", None)
    return {"because": because, "at": isoformat(at)} if because is not None and at is not None else None


class ProfilesHandler(ServerApi):
    @answers
    async def get(self) -> None:
        """The profiles that one may use, and what one's server runs with."""
        self.require(roles.EDIT)
        self.finish(server_model(self.person()))


class OwnServerHandler(ServerApi):
    @answers
    async def put(self) -> None:
        """Choose the profile of one's next start. Nothing is started or ended."""
        self.require(roles.EDIT)
        user = self.person()
        wanted = self.wanted().profile
        if wanted is None:
            raise RequestError(400, "bad_field", 'The field "profile" must be a profile\'s name.')
        with refusals():
            self.knowing(user.spawner).remember_profile(wanted)
        self.finish(server_model(user))

    @answers
    async def post(self) -> None:
        """Start one's own server, or have it restarted with another profile."""
        self.require(roles.EDIT)
        user = self.person()
        await self.start_server(self._untold, self.choice(user))
        self.finish(server_model(user))

    async def _untold(self, phase: str, progress: int, message: str) -> None:
        """Nobody hears of the progress."""


handlers: list[tuple[Any, ...]] = [
    (r"/api/profiles", ProfilesHandler),
    (r"/api/server", OwnServerHandler),
]
