"""What all local spawners of one hub share: warm processes, people's user ids, control groups."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any

from marimohub.spawners import processes
from marimohub.spawners.cgroups import CgroupError, Cgroups
from marimohub.spawners.identities import Identities
from marimohub.spawners.job import Limits
from marimohub.spawners.spawn_client import SpawnServer


class Pool:
    """One for each hub; it belongs to the hub's event loop."""

    def __init__(self, log: logging.Logger | Any) -> None:
        self._log = log
        self._spawn_servers: dict[tuple[str, tuple[str, ...]], SpawnServer] = {}
        self._identities: dict[tuple[Path, tuple[int, int]], Identities] = {}
        self._cgroups: Cgroups | None = None
        self._cgroups_found = False
        self._finding = asyncio.Lock()
        self._kept: set[Path] = set()
        self._clearing: dict[Path, asyncio.Task[None]] = {}

    def spawn_server(self, python: str, preload: Sequence[str]) -> SpawnServer:
        """The warm process of an interpreter, not necessarily started yet."""
        key = (python, tuple(preload))
        if key not in self._spawn_servers:
            self._spawn_servers[key] = SpawnServer(python, preload, self._log)
        return self._spawn_servers[key]

    def identities(self, users_dir: Path, uid_range: tuple[int, int]) -> Identities:
        """One for each folder, since it remembers what it has checked. Raises IdentityError."""
        key = (users_dir, uid_range)
        if key not in self._identities:
            self._identities[key] = Identities(users_dir, uid_range)
        return self._identities[key]

    @property
    def controllers(self) -> frozenset[str]:
        """Those of the control groups that servers get."""
        return self._cgroups.controllers if self._cgroups is not None else frozenset()

    def keep_cgroup(self, path: str | None) -> None:
        """A server of an earlier hub lives in this group. Called before the first group is made."""
        if path is not None:
            self._kept.add(Path(path))

    async def prepare_cgroups(self, users_dir: str) -> None:
        """Find out whether groups can be made, and end what lives in groups of servers that nobody knows."""
        async with self._finding:
            if not self._cgroups_found:
                self._cgroups = await asyncio.to_thread(self._find_cgroups, users_dir)
                self._cgroups_found = True

    def _find_cgroups(self, users_dir: str) -> Cgroups | None:
        # another hub on this machine has another folder for its people
        found = Cgroups.find(f"hub_{hashlib.sha256(os.path.abspath(users_dir).encode()).hexdigest()[:12]}")
        if found is not None:
            found.sweep(self._kept)
        return found

    async def make_cgroup(self, name: str, limits: Limits) -> str | None:
        """An empty group for a server; None if the hub cannot make any. Raises CgroupError."""
        if self._cgroups is None:
            return None
        return str(await asyncio.to_thread(self._cgroups.create, name, limits))

    def clear_up(self, folder: Path, uid: int | None, cgroup: str | None) -> None:
        """End what a server left whose guard was killed. `settled` waits for it.

        Args:
            folder: the person's.
            uid: a user id that only what was left has; None if there is none of that kind.
        """
        earlier = self._clearing.get(folder)

        async def clear() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            left = await asyncio.to_thread(self._end, uid, cgroup)
            if left:
                self._log.error("Processes %s of an ended server cannot be ended: the kernel holds them", left)

        task = asyncio.get_running_loop().create_task(clear())
        self._clearing[folder] = task
        task.add_done_callback(lambda done: self._cleared(folder, done))

    def _cleared(self, folder: Path, task: asyncio.Task[None]) -> None:
        if self._clearing.get(folder) is task:
            del self._clearing[folder]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("What a server left could not be ended: %s", error)

    def _end(self, uid: int | None, cgroup: str | None) -> list[int]:
        if cgroup is not None and self._cgroups is not None:
            try:
                self._cgroups.destroy(Path(cgroup))
            except CgroupError as error:
                self._log.warning("%s", error)
        if uid is None:
            return []
        return processes.end_all(lambda: processes.of_user(uid), reaps=False)

    async def settled(self, folder: Path) -> None:
        """Return when nothing of an ended server of this person is left."""
        task = self._clearing.get(folder)
        if task is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        """End the warm processes; servers live on."""
        await _all(server.close() for server in self._spawn_servers.values())
        self._spawn_servers.clear()
        await _all(asyncio.wait([task]) for task in list(self._clearing.values()))
        if self._cgroups is not None:
            await asyncio.to_thread(self._cgroups.close)


async def _all(work: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*work, return_exceptions=True)
