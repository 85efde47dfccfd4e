"""What running servers use, for the Admin page: measured when somebody asks, at most once a second, whoever asks.

Processor time is kept from one measurement to the next, so that a share of it can be told; nothing is measured while
nobody asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

FRESH = 1.0  # seconds that a measurement is good for
# a share of processor time over more than this is no answer to "what is it doing now"
LONGEST_WINDOW = 20.0
DISK_FRESH = 30.0  # seconds; counting a folder's files is work


class _Used(Protocol):
    @property
    def cpu_seconds(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def processes(self) -> int: ...


@dataclass(frozen=True)
class Measured:
    """One server. None: not known (yet).

    Attributes:
        cpu: cores in use, on average since the last measurement.
        memory: bytes.
        processes: processes and threads.
        disk: bytes in the person's folders.
    """

    cpu: float | None = None
    memory: int | None = None
    processes: int | None = None
    disk: int | None = None


class ServerUsage:
    """All running servers of the hub.

    Args:
        measure: what process trees use, by the pid of their root; blocking, run in a thread.
        count_disk: bytes below folders; blocking, run in a thread.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        measure: Callable[[Iterable[int]], Mapping[int, _Used]],
        count_disk: Callable[[Sequence[str]], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._measure, self._count_disk, self._clock = measure, count_disk, clock
        self._lock = asyncio.Lock()
        self._at = float("-inf")
        self._used: Mapping[int, _Used] = {}
        self._cores: dict[int, float] = {}
        self._disk: dict[tuple[str, ...], tuple[float, int | None]] = {}
        self._counting: asyncio.Task[None] | None = None

    async def now(self, servers: Mapping[int, Sequence[str]]) -> dict[int, Measured]:
        """What each server uses, by its pid; one that ended is missing.

        Args:
            servers: the root's pid and the person's folders, of all running servers.
        """
        async with self._lock:
            if self._clock() - self._at >= FRESH:
                await self._take(list(servers))
        folders = {tuple(found) for found in servers.values() if found}
        self._disk = {key: value for key, value in self._disk.items() if key in folders}
        self._count(folders)
        return {
            pid: Measured(
                self._cores.get(pid),
                used.memory_bytes,
                used.processes,
                self._disk.get(tuple(servers[pid]), (0, None))[1],
            )
            for pid, used in self._used.items()
            if pid in servers
        }

    async def _take(self, pids: list[int]) -> None:
        used = await asyncio.to_thread(self._measure, pids)
        at = self._clock()
        passed = at - self._at
        self._cores = {}
        if 0 < passed <= LONGEST_WINDOW:
            for pid, now in used.items():
                if (before := self._used.get(pid)) is not None:
                    self._cores[pid] = max(0.0, now.cpu_seconds - before.cpu_seconds) / passed
        self._at, self._used = at, used

    def _count(self, folders: set[tuple[str, ...]]) -> None:
        """Have the folders counted that were not for a while; answers do not wait for it."""
        if self._counting is not None and not self._counting.done():
            return
        old = self._clock() - DISK_FRESH
        due = [key for key in folders if self._disk.get(key, (float("-inf"), None))[0] <= old]
        if due:
            self._counting = asyncio.create_task(self._count_all(due))

    async def _count_all(self, due: list[tuple[str, ...]]) -> None:
        for key in due:
            try:
                count: int | None = await asyncio.to_thread(self._count_disk, key)
            except OSError:
                count = None
            self._disk[key] = (self._clock(), count)
