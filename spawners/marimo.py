"""What every backend shares: the command, the profile, the environment, the user's folders, progress, the log.

Use it as the first base beside a JupyterHub spawner:
`class DockerMarimoSpawner(MarimoSpawner, DockerSpawner)`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub.scopes import get_scopes_for
from jupyterhub.spawner import SpawnException
from jupyterhub.traitlets import Command
from jupyterhub.utils import maybe_future
from sqlalchemy.orm import object_session
from traitlets import Any as AnyTrait
from traitlets import Integer, List, TraitError, Unicode, default, validate
from traitlets.config import Configurable

from marimohub.spawners import profiles as profile_rules
from marimohub.spawners.job import Limits
from marimohub.spawners.profiles import BadProfile, Profile

_SAFE = re.compile(r"[a-z0-9_]{1,40}")
LOG_TAIL_LINES = 20

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Base
else:
    # JupyterHub wants every subclass of Spawner to start and stop something; this one is half a spawner
    _Base = Configurable


def folder_name(user: str) -> str:
    """A folder name for a user name of any kind: readable, and never the same for two names."""
    if _SAFE.fullmatch(user):
        return user
    readable = re.sub(r"[^a-z0-9_]+", "_", user.lower())[:40].strip("_")
    return f"{readable}-{hashlib.sha256(user.encode()).hexdigest()[:12]}"


def _asked_profile(options: Any) -> Any:
    """What `user_options` ask for, of any type: they come from the API, a form or a query as they were sent."""
    wanted = options.get("profile") if isinstance(options, dict) else None
    return wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted


class MarimoSpawner(_Base):
    """Starts `marimohub.singleuser`, which runs marimo behind the hub's sign-in."""

    users_dir = Unicode(
        "marimohub-data/users",
        help="Folder with one private folder per user (home, notebooks, snapshot). Set from MarimoHub.data_dir.",
    ).tag(config=True)
    heartbeat_interval = Integer(
        60, help="How often an open notebook renews its lock, in seconds. Set from MarimoHub.heartbeat_interval."
    ).tag(config=True)
    workspace = Unicode("default", help="Name of the workspace whose notebooks the server opens.").tag(config=True)

    required_scope = Unicode(
        "custom:notebooks:edit",
        help="Scope that a user must hold to get a server, however it is asked for. Empty for none.",
    ).tag(config=True)

    cmd = Command(
        [sys.executable, "-m", "marimohub.singleuser"],
        help="The command that starts the server in the user's environment.",
    ).tag(config=True)

    profiles: Any = List(
        help="""Sizes and environments that people choose from, each a dictionary with `name` and any of `title`,
        `description`, `memory`, `cpu`, `processes`, `disk`, `python`, `environment`, `groups`, `default_for`. Empty:
        one size for all, of the settings below. What a profile leaves out is as they say."""
    ).tag(config=True)
    memory_limit = AnyTrait(
        "4G", help='Memory that a server with its notebooks may use: "4G", a number of bytes, or None for no limit.'
    ).tag(config=True)
    cpu_limit = AnyTrait(None, help="Cores that a server may use, for example 1.5. None: no limit.").tag(config=True)
    process_limit = AnyTrait(
        1024, help="Processes and threads that a server may have at one time. None: no limit."
    ).tag(config=True)
    disk_limit = AnyTrait(
        "20G", help='What a person\'s folders may hold: "20G", a number of bytes, or None for no limit.'
    ).tag(config=True)

    ended_because: str | None = None
    """Why the last server ended by itself, for its owner; None while one runs, after a stop, and if it is not known."""

    ended_at: float | None = None
    """When that was, in POSIX seconds."""

    _profile: Profile | None = None

    @validate("memory_limit", "cpu_limit", "process_limit", "disk_limit")
    def _check_limit(self, proposal: Any) -> Any:
        name = proposal.trait.name
        key = {"process_limit": "processes"}.get(name, name.removesuffix("_limit"))
        try:
            profile_rules.parse_limits({key: proposal.value})
        except BadProfile as error:
            raise TraitError(f"{type(self).__name__}.{name}: {error}") from error
        return proposal.value

    @validate("profiles")
    def _check_profiles(self, proposal: Any) -> Any:
        try:
            profile_rules.parse(proposal.value)
        except BadProfile as error:
            raise TraitError(f"{type(self).__name__}.profiles: {error}") from error
        return proposal.value

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Any:
        # what is chosen is checked in run_pre_spawn_hook, which no setting turns off
        return lambda spawner, options: None

    @default("env_keep")
    def _env_keep_default(self) -> list[str]:
        return ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ"]

    @default("server_token_scopes")
    def _server_token_scopes_default(self) -> list[str]:
        return ["users:activity!user", "custom:notebooks:sync"]

    async def run_pre_spawn_hook(self) -> None:
        """Refuse a server to those who may not edit: JupyterHub's own pages and API would start one for anybody.

        Nor does anybody get a profile that is not theirs, whatever was sent. And see that the server finds a snapshot
        of what the person may see now, or none, whoever asked for the start.

        Raises:
            SpawnException: 400; 403; 503 if there can be no snapshot now.
        """
        if self.required_scope and self.required_scope not in get_scopes_for(self.user.orm_user):
            raise SpawnException(
                "Starting notebooks requires the editor or admin role. Ask an administrator for it.",
                reason="role",
                status_code=403,
            )
        self.ended_because = self.ended_at = None
        self._profile = self._chosen_profile()
        prepare = self.user.settings.get("marimohub_before_start")
        if prepare is not None:
            try:
                await prepare(self.user)
            except Exception as error:
                message = getattr(error, "message", None)
                if message is None:
                    raise
                raise SpawnException(message, reason="snapshot", log_message=message, status_code=503) from error
        await maybe_future(super().run_pre_spawn_hook())

    def configured_profiles(self) -> tuple[Profile, ...]:
        """All profiles, in the configuration's order.

        Raises:
            BadProfile
        """
        sizes = {
            "memory": self.memory_limit,
            "cpu": self.cpu_limit,
            "processes": self.process_limit,
            "disk": self.disk_limit,
        }
        return profile_rules.parse(list(self.profiles), profile_rules.parse_limits(sizes))

    @property
    def _groups(self) -> set[str]:
        return {group.name for group in self.user.groups} if self.user is not None else set()

    def offered_profiles(self) -> tuple[Profile, ...]:
        """What this person may choose from."""
        return profile_rules.offered(self.configured_profiles(), self._groups)

    def default_profile(self) -> Profile | None:
        """What this person gets unless they choose; None if they may use none."""
        return profile_rules.default(self.configured_profiles(), self._groups)

    @property
    def remembered_profile(self) -> str | None:
        """The name of this person's own last choice, if it is still offered to them."""
        name = _asked_profile(self.orm_spawner.user_options)
        return next((profile.name for profile in self.offered_profiles() if profile.name == name), None)

    @property
    def profile(self) -> Profile:
        """That of the running server; before a start, what would be taken without a choice."""
        return self._profile or self.default_profile() or self.configured_profiles()[0]

    @property
    def limits(self) -> Limits:
        """What the server may use."""
        return self.profile.limits

    @property
    def interpreter(self) -> str:
        """The Python that runs the server; not resolved, since a venv's is a link."""
        return self.profile.python or sys.executable

    def find_profile(self, wanted: object) -> Profile:
        """The profile of a name, if this person may use it.

        Raises:
            SpawnException: 400 if there is none of that name, 403 if it is not theirs.
        """
        own = self.offered_profiles()
        found = next((profile for profile in own if profile.name == wanted), None)
        if found is not None:
            return found
        names = ", ".join(profile.name for profile in own)
        choose = f" Choose one of these: {names}." if names else " Ask an administrator for one."
        if not isinstance(wanted, str):
            raise SpawnException(f"The profile must be a name.{choose}", reason="profile", status_code=400)
        shown = wanted[:60] if wanted.isprintable() else repr(wanted[:60])
        if wanted in {profile.name for profile in self.configured_profiles()}:
            message = f'The profile "{shown}" is not offered to you.{choose}'
            raise SpawnException(message, reason="profile", status_code=403)
        raise SpawnException(f'There is no profile "{shown}".{choose}', reason="profile", status_code=400)

    def remember_profile(self, wanted: str) -> None:
        """Make a profile this person's choice, from the next start on.

        Raises:
            SpawnException: as `find_profile`.
        """
        self._store_options({"profile": self.find_profile(wanted).name})

    def _store_options(self, options: dict[str, Any]) -> None:
        """What JupyterHub takes for each start that says nothing else."""
        self.orm_spawner.user_options = options
        session = object_session(self.orm_spawner)
        if session is not None:
            session.commit()

    def _chosen_profile(self) -> Profile:
        """What `user_options` ask for, whoever sent them, or this person's default.

        Raises:
            SpawnException
        """
        wanted = _asked_profile(self.user_options)
        if wanted is None:
            found = self.default_profile()
            if found is None:
                raise SpawnException(
                    "No profile is offered to you, so you cannot start notebooks. Ask an administrator for one.",
                    reason="profile",
                    status_code=403,
                )
            return found
        try:
            return self.find_profile(wanted)
        except SpawnException:
            self._store_options({})  # JupyterHub stored what was asked as the choice for every later start
            raise

    def get_args(self) -> list[str]:
        """None: the launcher reads everything from its environment."""
        return []

    @property
    def user_folder(self) -> Path:
        """The user's private folder on the hub's machine."""
        return Path(self.users_dir).absolute() / folder_name(self.user.name)

    @property
    def snapshot_folder(self) -> Path:
        """Where the hub puts the user's current snapshot."""
        return self.user_folder / "snapshot"

    # as the server sees them; containers override these

    @property
    def home_path(self) -> Path:
        return self.user_folder / "home"

    @property
    def notebook_path(self) -> Path:
        return self.user_folder / "notebooks"

    @property
    def snapshot_path(self) -> Path:
        return self.snapshot_folder / "warehouse.duckdb"

    def get_env(self) -> dict[str, str]:
        """JupyterHub's variables and ours."""
        env: dict[str, str] = super().get_env()
        profile = self.profile
        env.update(profile.environment)
        if profile.python is not None:
            programs = os.path.dirname(profile.python)
            env["PATH"] = f"{programs}:{env.get('PATH', os.defpath)}"
            env["VIRTUAL_ENV"] = os.path.dirname(programs)
        # JupyterHub's words for it: libraries that size themselves by the machine can read these
        if profile.limits.memory is not None:
            env["MEM_LIMIT"] = env["MARIMOHUB_MEMORY_LIMIT"] = str(profile.limits.memory)
        env.pop("CPU_LIMIT", None)
        if profile.limits.cpu is not None:
            env["CPU_LIMIT"] = str(profile.limits.cpu)
        env["HOME"] = str(self.home_path)
        env["MARIMOHUB_SNAPSHOT"] = str(self.snapshot_path)
        env["MARIMOHUB_NOTEBOOK_DIR"] = str(self.notebook_path)
        env["MARIMOHUB_WORKSPACE"] = self.workspace
        env["MARIMOHUB_HEARTBEAT_INTERVAL"] = str(self.heartbeat_interval)
        return env

    def make_folders(self) -> None:
        """Create the user's folders, readable by nobody else. Blocks shortly."""
        for folder in (self.user_folder, self.home_path, self.notebook_path, self.snapshot_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def delete_forever(self) -> None:
        """Put a deleted user's folder aside, so that a later user of that name does not get it."""
        super().delete_forever()
        if not self.name and self.user_folder.is_dir():
            shutil.rmtree(self.snapshot_folder, ignore_errors=True)  # what they made is kept, not what they could see
            aside = self.user_folder.with_name(f".deleted-{self.user_folder.name}-{time.time_ns()}")
            shutil.move(self.user_folder, aside)
            self.log.info("Moved the folder of deleted user %s to %s", self.user.name, aside)

    def load_state(self, state: dict[str, Any]) -> None:
        """What an earlier hub knew of the server: its profile, or why it ended."""
        super().load_state(state)
        self._profile = Profile.from_state(state.get("profile"))
        because, at = state.get("ended_because"), state.get("ended_at")
        self.ended_because = because if isinstance(because, str) else None
        self.ended_at = float(at) if isinstance(at, int | float) else None

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self._profile is not None:
            state["profile"] = self._profile.to_state()
        if self.ended_because is not None:
            state["ended_because"], state["ended_at"] = self.ended_because, self.ended_at
        return state

    def clear_state(self) -> None:
        """At a start, and after an end. Why the server ended is still true then."""
        super().clear_state()
        self._profile = None

    def run_post_stop_hook(self) -> Any:
        """Tell the person's open pages that the server ended, and why, if it ended by itself."""
        if self.ended_because is not None and self.ended_at is None:
            self.ended_at = time.time()
            tell = self.user.settings.get("marimohub_events")
            if tell is not None:
                tell.send({"event": "server_ended"}, user=self.user.name)
        return super().run_post_stop_hook()

    def describe_confinement(self) -> dict[str, Any]:
        """What holds the servers of this hub apart, for the Admin page. None of it is known here."""
        unknown = dict.fromkeys(("memory", "cpu", "processes", "disk"), "none")
        return {"sandbox": "unknown", "text": "", "problems": [], "limits": unknown}

    def describe_server(self) -> dict[str, Any]:
        """The running server for the Admin page: its first process (0: none on this machine) and its folders."""
        return {"root_pid": 0, "disk_folders": []}

    def log_tail(self) -> list[str]:
        """The last lines that the server logged, for an administrator who asks why it did not start."""
        return []

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """What JupyterHub's own progress page shows."""
        yield {"progress": 30, "message": "Starting your notebook server"}
        while self._spawn_pending and not self._waiting_for_response:
            await asyncio.sleep(0.2)
        yield {"progress": 70, "message": "Waiting for marimo to answer"}
