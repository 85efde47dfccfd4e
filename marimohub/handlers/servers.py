"""What handlers that open notebooks, choose profiles, or take snapshots away do with people's servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jupyterhub.spawner import SpawnException

from marimohub.handlers.base import ApiHandler, RequestError
from marimohub.opening import Report, ServerFailed
from marimohub.personal import Place
from marimohub.subjects import subject_of

STOP_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Choice:
    """What somebody wants their server to be.

    Attributes:
        profile: a profile's name; None: whatever runs, else their last choice, else their default.
        restart: whether a server that runs with another profile may be ended for it.
    """

    profile: str | None = None
    restart: bool = False


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

    def wanted(self) -> Choice:
        """What the body asks for, as far as its form goes.

        Raises:
            RequestError: 400.
        """
        body = self.json_object()
        profile, restart = body.get("profile"), body.get("restart", False)
        if "profile" in body and not isinstance(profile, str):
            raise RequestError(400, "bad_field", 'The field "profile" must be a profile\'s name.')
        if not isinstance(restart, bool):
            raise RequestError(400, "bad_field", 'The field "restart" must be true or false.')
        return Choice(profile, restart)

    def knowing(self, spawner: Any) -> Any:
        """The spawner, if it is one that knows profiles.

        Raises:
            RequestError: 400.
        """
        if not hasattr(spawner, "find_profile"):
            raise RequestError(400, "no_profile", "The spawner of this hub does not know profiles.")
        return spawner

    def choice(self, user: Any) -> Choice:
        """What the body asks for.

        Raises:
            RequestError: 400, 403: there is no such profile, or it is not theirs. 409: their server runs with another,
                and `restart` is not set.
        """
        choice = self.wanted()
        if choice.profile is not None:
            with refusals():
                self.knowing(user.spawner).find_profile(choice.profile)
            self.must_restart(user.spawner, choice)
        return choice

    def must_restart(self, spawner: Any, choice: Choice) -> bool:
        """Whether a running server has to end for a choice.

        Raises:
            RequestError: 409: it has to, and the choice does not allow it.
        """
        if choice.profile is None or not spawner.ready or spawner.profile.name == choice.profile:
            return False
        if not choice.restart:
            raise RequestError(
                409,
                "other_profile",
                f'Your notebook server runs with the profile "{spawner.profile.title}". To change that it must '
                "restart: the values in your open notebooks are lost then, and what you saved stays.",
            )
        return True

    async def start_server(self, report: Report, choice: Choice = Choice()) -> None:
        """See that the server of the person who asks runs, as JupyterHub starts it, with the profile of their choice.

        Raises:
            RequestError: the profile is not theirs, or the server runs with another and may not be ended.
            ServerFailed: it did not start.
        """
        user = self.current_user
        spawner = user.spawners[""]
        await self.wait_for_stop(spawner)
        if choice.profile is not None and spawner.pending == "spawn" and spawner._spawn_future is not None:
            await asyncio.wait([spawner._spawn_future])  # it may be a start with another profile
            spawner = user.spawners[""]
        if spawner.ready and not await self._answers(spawner) and await spawner.poll() is not None:
            # it died since the last poll: clear it away as the poll would
            await self.user_stopped(user, "")
        spawner = user.spawners[""]
        if self.must_restart(spawner, choice):
            await report("server", 55, "Ending your notebook server")
            await self.stop_server(user)
            spawner = user.spawners[""]
        if spawner.ready:
            return
        await report("server", 60, "Starting your notebook server")
        try:
            if spawner.pending != "spawn":
                await self.spawn_single_user(user, options=_options(user.spawner, choice))
            spawner = user.spawners[""]
            if spawner._spawn_future is not None:
                await asyncio.shield(spawner._spawn_future)
        except Exception as error:
            if isinstance(error, SpawnException) and error.reason == "profile":
                raise _refused(error) from error
            tail = spawner.log_tail() if hasattr(spawner, "log_tail") else []
            self.log.error("The server of %s did not start: %s\n%s", user.name, error, "\n".join(tail))
            status = getattr(error, "status_code", None)
            if status == 429:
                raise ServerFailed(str(error.log_message), []) from error  # type: ignore[attr-defined]
            why = "Try again; if it fails again, tell an administrator."
            if isinstance(error, SpawnException) and error.reason != "exited":
                why = str(error.message)
            raise ServerFailed(f"Your notebook server could not be started. {why}", tail) from error
        if not user.spawners[""].ready:
            raise ServerFailed("Your notebook server stopped while it was starting. Try again.", spawner.log_tail())
        if choice.profile is not None and user.spawners[""].profile.name != choice.profile:
            raise ServerFailed("Your notebook server was started with another profile meanwhile. Try again.", [])
        await report("server", 95, "Your notebook server is running")

    async def _answers(self, spawner: Any) -> bool:
        """Whether a server that should run does answer. A process that is just dying still counts as running."""
        try:
            await spawner.server.wait_up(timeout=2, http=True, extra_path="api")
        except TimeoutError:
            return False
        return True


def _options(spawner: Any, choice: Choice) -> dict[str, Any] | None:
    """JupyterHub's `user_options` for a start; None: those of the last start."""
    if choice.profile is not None:
        return {"profile": choice.profile}
    stored = spawner.orm_spawner.user_options
    if isinstance(stored, dict) and "profile" in stored and getattr(spawner, "remembered_profile", None) is None:
        # the last choice is not offered any more: the default is better than a refusal
        return {key: value for key, value in stored.items() if key != "profile"}
    return None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A profile that is refused, as an answer."""
    try:
        yield
    except SpawnException as error:
        raise _refused(error) from error


def _refused(error: SpawnException) -> RequestError:
    status = int(error.status_code)
    return RequestError(status, "no_profile" if status == 400 else "profile_not_offered", str(error.message))
