"""What every backend shares: the command, the environment, the user's folders, progress, and the log of a failed start.

Use it as the first base beside a JupyterHub spawner:
`class DockerMarimoSpawner(MarimoSpawner, DockerSpawner)`.
"""

from __future__ import annotations

import asyncio
import hashlib
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
from traitlets import Integer, Unicode, default
from traitlets.config import Configurable

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

    @default("env_keep")
    def _env_keep_default(self) -> list[str]:
        return ["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ"]

    @default("server_token_scopes")
    def _server_token_scopes_default(self) -> list[str]:
        return ["users:activity!user", "custom:notebooks:sync"]

    async def run_pre_spawn_hook(self) -> None:
        """Refuse a server to those who may not edit: JupyterHub's own pages and API would start one for anybody.

        And see that it finds a snapshot of what the person may see now, or none, whoever asked for the start.

        Raises:
            SpawnException: 403; 503 if there can be no snapshot now.
        """
        if self.required_scope and self.required_scope not in get_scopes_for(self.user.orm_user):
            raise SpawnException(
                "Starting notebooks requires the editor or admin role. Ask an administrator for it.",
                reason="role",
                status_code=403,
            )
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
            aside = self.user_folder.with_name(f".deleted-{self.user_folder.name}-{int(time.time())}")
            shutil.move(self.user_folder, aside)
            self.log.info("Moved the folder of deleted user %s to %s", self.user.name, aside)

    def log_tail(self) -> list[str]:
        """The last lines that the server logged, for an administrator who asks why it did not start."""
        return []

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """What JupyterHub's own progress page shows."""
        yield {"progress": 30, "message": "Starting your notebook server"}
        while self._spawn_pending and not self._waiting_for_response:
            await asyncio.sleep(0.2)
        yield {"progress": 70, "message": "Waiting for marimo to answer"}
