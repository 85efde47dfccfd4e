"""What trees of processes use: processor time, memory, processes. Read from /proc; nothing is kept between calls.

Memory is what limits count: anonymous and shared memory, and what of it was swapped out. A page that several processes
share counts for each by its part (PSS), so fifty servers forked from one parent do not look like fifty parents. Where
PSS may not be read (a process of another user, or one that hides itself), the resident pages count in full, less what
the root of the tree shares with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from marimohub.spawners.disk import disk_bytes

__all__ = ["Memory", "Stat", "Usage", "all_processes", "below", "disk_bytes", "measure", "memory_of", "stat"]

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024
_BY_PART = ((b"Pss_Anon:", b"SwapPss:"), (b"Pss_Shmem:",))
_IN_FULL = ((b"RssAnon:", b"VmSwap:"), (b"RssShmem:",))


@dataclass(frozen=True)
class Usage:
    """What a server uses with everything it started. `processes` counts threads, as the limit does.

    `cpu_seconds` includes ended processes that were waited for.
    """

    cpu_seconds: float
    memory_bytes: int
    processes: int


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes: `own` anonymous memory, and `shared` memory that it has mapped.

    `exact`: what it shares with others counts by its part; else in full.
    """

    own: int
    shared: int
    exact: bool

    @property
    def total(self) -> int:
        return self.own + self.shared


@dataclass(frozen=True)
class Stat:
    """Of /proc/PID/stat. `cpu` and `reaped_cpu` (that of ended children) are seconds."""

    pid: int
    name: str
    parent: int
    group: int
    state: str
    cpu: float
    reaped_cpu: float
    threads: int
    started: int

    @property
    def ended(self) -> bool:
        """A process whose first thread has ended looks like a zombie, though the others run on."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(text: bytes) -> Stat:
    """Source: proc(5). The name, field 2, is in brackets and may hold anything, brackets too."""
    head, _, rest = text.rpartition(b")")
    pid, _, name = head.partition(b" (")
    fields = rest.split()
    return Stat(
        pid=int(pid),
        name=name.decode("utf-8", "replace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
        reaped_cpu=(int(fields[13]) + int(fields[14])) / _TICKS,
        threads=int(fields[17]),
        started=int(fields[19]),
    )


def read(path: str) -> bytes:
    """A file of /proc or a cgroup in few system calls. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def stat(pid: int) -> Stat | None:
    """None: there is no such process (any more)."""
    try:
        return parse_stat(read(f"/proc/{pid}/stat"))
    except (OSError, IndexError, ValueError):
        return None


def children(pid: int) -> list[int]:
    """The children of a process and of all its threads.

    While processes start and end, the kernel may leave some out: whoever must have all asks until nothing changes.
    Kernels built without CONFIG_PROC_CHILDREN are asked by way of all processes.
    """
    if not _HAS_CHILDREN:
        return [one.pid for one in all_processes().values() if one.parent == pid]
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


_HAS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def below(pid: int) -> list[int]:
    """All descendants of a process, parents before children; not itself."""
    found = children(pid)
    seen = set(found)
    for one in found:
        for child in children(one):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def all_processes() -> dict[int, Stat]:
    """Every process that this one can see, from one pass over /proc."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (one := stat(int(name))) is not None:
            found[one.pid] = one
    return found


def memory_of(pid: int, *, exact: bool) -> Memory:
    """Memory of one process, nothing if it is gone.

    Args:
        exact: count what is shared by part, if that may be read. Takes milliseconds for each GB; without it no time.
    """
    for place in places(pid):
        if exact:
            try:
                return _memory(read(f"{place}/smaps_rollup"), *_BY_PART, exact=True)
            except OSError:
                pass  # it is gone, or not ours to read
        with contextlib.suppress(OSError):
            text = read(f"{place}/status")
            if b"\nRssAnon:" in text:
                return _memory(text, *_IN_FULL, exact=False)
    return Memory(0, 0, True)


def exact_memory(pids: Iterable[int], seconds: float) -> dict[int, Memory] | None:
    """Memory of some processes with what is shared by part, read in a child process. None: not within `seconds`.

    Who reads it waits for a lock that the process itself holds while it forks or maps memory: a fork bomb that gets no
    processor keeps it for as long as it likes.
    """
    asked = list(pids)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            found = [[pid, one.own, one.shared, one.exact] for pid in asked for one in [memory_of(pid, exact=True)]]
            with open(writing, "w") as pipe:
                json.dump(found, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        text = _read_until(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    if text is None:
        return None
    return {pid: Memory(own, shared, exact) for pid, own, shared, exact in json.loads(text)}


def _read_until(fd: int, deadline: float) -> bytes | None:
    """All there is to read; None if its end did not come in time, or nothing came."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    parts: list[bytes] = []
    while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None


def places(pid: int) -> Iterator[str]:
    """Folders of /proc that tell of a process; the next one is to be asked where one knows nothing.

    What a process has is told in each of its threads' folders, but not in that of one that has ended, as the first may.
    """
    yield f"/proc/{pid}"
    with contextlib.suppress(OSError):
        yield from (f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task"))


def _memory(text: bytes, own: tuple[bytes, ...], shared: tuple[bytes, ...], *, exact: bool) -> Memory:
    lines = text.splitlines()

    def total(names: tuple[bytes, ...]) -> int:
        return sum(int(line.split()[1]) for line in lines if line.startswith(names)) * _KIB

    return Memory(total(own), total(shared), exact)


def measure(root_pids: Iterable[int]) -> dict[int, Usage]:
    """What each tree uses; roots that do not run are left out. One pass over /proc, tens of milliseconds."""
    processes = all_processes()
    below_of: dict[int, list[int]] = {}
    for one in processes.values():
        below_of.setdefault(one.parent, []).append(one.pid)
    found = {}
    for root in root_pids:
        if root not in processes or processes[root].ended:
            continue
        shared = memory_of(root, exact=False).total
        pids, cpu, memory, count = [root], 0.0, 0, 0
        for pid in pids:
            one = processes[pid]
            cpu += one.cpu + one.reaped_cpu
            pids += below_of.get(pid, ())
            if one.ended:
                continue
            count += one.threads
            used = memory_of(pid, exact=True)
            memory += used.total if used.exact else max(used.total - shared, 0)
        found[root] = Usage(cpu, memory, count)
    return found
