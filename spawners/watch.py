"""What the guard sees to while its server runs: that no notebook takes more than the server may use.

Where a control group holds a limit, the watch only finds out what the kernel did about it. Else it adds up, and ends
what is too big: for memory one notebook, the biggest; for processes and disk all notebooks; the server itself only if
it is the one, or if ending notebooks did not help. The person is told what happened, and why.

A check costs about 0.1 ms while the machine as a whole shows no change that this server could have made; the processes
are looked at once a second, and at once when there was such a change.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from marimohub.spawners import cgroups, disk, usage
from marimohub.spawners.freeze import come_first, frozen
from marimohub.spawners.job import Job
from marimohub.spawners.limits import OOM_NOTEBOOK, byte_text
from marimohub.spawners.usage import Memory, Stat

ZYGOTE_NAME = "kernel-zygote"  # as marimohub.singleuser.zygote calls its process

CALM, BUSY = 0.25, 0.1  # seconds between checks, far from the limits and near to them
LOOK_EVERY = 1.0  # seconds, at most, between two looks at all processes
EXACT_EVERY = 2.0  # seconds that a difference between memory counted in full and by part is good for
EXACT_PATIENCE, EXACT_PATIENCE_FROZEN = 0.5, 3.0  # seconds to find out, while all runs and while all is stopped
DYING = 5.0  # seconds that something killed may take to be gone
AGAIN = 10.0  # seconds in which the same once more means that what was ended was not the cause
STOP_PATIENCE = 3.0  # seconds to stop what forks on and on
_MIB = 1 << 20


@dataclass(frozen=True)
class Breach:
    """A limit was reached, and something was ended for it.

    Attributes:
        kind: "memory", "processes" or "disk".
        limit, used: bytes, or processes with threads, of the whole server.
        size: what of it the ended ones used.
        pid: the first process of what was ended (a notebook's kernel), None if the kernel did it and left no trace.
        pids: all that were ended.
        text: sentences for the log and for the person.
    """

    kind: str
    limit: int
    used: int
    size: int
    pid: int | None
    pids: tuple[int, ...]
    text: str

    def to_json(self) -> str:
        """The line for the hub and for the server."""
        return json.dumps({"event": "breach", **asdict(self)}) + "\n"


@dataclass
class _Notebook:
    """A kernel with all that it started, or something else that the server started."""

    top: int
    members: list[Stat]
    size: int = 0


class Watch:
    """One server's.

    Args:
        root_pid: the guard: everything the server starts stays below it.
        launcher_pid: the server itself.
    """

    def __init__(self, root_pid: int, launcher_pid: int, job: Job) -> None:
        self.pause = CALM
        self._root, self._launcher, self._job = root_pid, launcher_pid, job
        self._limits = job.limits
        self._uid = None if job.identity is None else job.identity.uid
        self._cgroup = None if job.cgroup is None else Path(job.cgroup)
        self._active = cgroups.active(job.cgroup)
        self._tree: dict[int, Stat] = {}
        self._killed: dict[tuple[int, int], float] = {}  # (pid, start) → when
        self._graded: set[tuple[int, int]] = set()
        self._looked_at = float("-inf")
        self._calm = (0, 0, 0)
        self._last: dict[str, tuple[float, int]] = {}  # kind → (when, how often in a row)
        self._used_memory, self._used_tasks = 0, 0
        self._overcount, self._exact_at = 0, float("-inf")
        self._memory_devices = disk.memory_devices()
        come_first()
        self._ooms = self._oom_kills()
        self._disk = (
            disk.DiskWatch(job.disk_folders, job.limits.disk)
            if job.limits.disk is not None and job.disk_folders
            else None
        )

    def check(self) -> Breach | None:
        """See whether a limit was reached, and end what is too much. To be called again after `pause` seconds."""
        now = time.monotonic()
        machine = _machine()
        breach = None
        if now - self._looked_at >= LOOK_EVERY or self._may_have_changed(machine):
            before = self._tree
            if self._may_be_a_bomb(machine):
                with self._frozen():
                    self._tree = self._look(now)
                    breach = self._check_tasks(now)
                if breach is None:
                    self._let_go_on()
            else:
                self._tree = self._look(now)
                breach = self._check_tasks(now)
            self._looked_at, self._calm = now, machine
            self._make_notebooks_die_first()
            breach = breach or self._check_memory(now, before)
        if self._disk is not None:
            breach = breach or self._check_disk(now)
        self.pause = BUSY if breach is not None or self._near() else CALM
        return breach

    def why_killed(self) -> Breach | None:
        """To be asked when the server itself was killed: whether that was for memory, by the kernel."""
        kills = self._oom_kills()
        if kills <= self._ooms or self._limits.memory is None:
            return None
        self._ooms = kills
        text = (
            f"The notebook server used all of the {byte_text(self._limits.memory)} of memory that it may use, and was "
            "ended. Saved code is kept."
        )
        return Breach("memory", self._limits.memory, self._limits.memory, 0, self._launcher, (self._launcher,), text)

    # what there is

    def _may_have_changed(self, machine: tuple[int, int, int]) -> bool:
        """Whether so much of the machine's processes or memory was taken that this server may be near its limit."""
        if self._may_be_a_bomb(machine):
            return True
        _, available, shared = (after - before for after, before in zip(machine, self._calm, strict=True))
        if self._limits.memory is None or "memory" in self._active:
            return False
        room = max(self._limits.memory - self._used_memory, 64 * _MIB)
        return -available * 4 > room or shared * 4 > room

    def _may_be_a_bomb(self, machine: tuple[int, int, int]) -> bool:
        """Whether so many processes came that looking at them would take too long while they run."""
        limit = self._limits.processes
        if limit is None or self._looked_at < 0:
            return False
        return (machine[0] - self._calm[0]) * 4 > max(limit - self._used_tasks, 100)

    def _frozen(self) -> contextlib.AbstractContextManager[bool]:
        groups = {one.group for one in self._tree.values()} - self._shared_groups()
        return frozen(self._job, self._launcher, self._zygote(self._tree), groups)

    def _let_go_on(self) -> None:
        for pid in self._tree:
            _signal(pid, signal.SIGCONT)

    def _near(self) -> bool:
        memory, processes = self._limits.memory, self._limits.processes
        return (
            (memory is not None and self._used_memory * 4 > memory * 3)
            or (processes is not None and self._used_tasks * 2 > processes)
            or (self._disk is not None and self._disk.busy)
        )

    def _look(self, now: float) -> dict[int, Stat]:
        """All processes below the guard that are alive, but for those that were killed just now."""
        self._killed = {key: at for key, at in self._killed.items() if now - at < DYING}
        stats = (usage.stat(pid) for pid in usage.below(self._root))
        found = [one for one in stats if one is not None and (one.pid, one.started) not in self._killed]
        # what has ended and nobody waited for counts in the system's own limits as well
        self._used_tasks = sum(one.threads for one in found)
        return {one.pid: one for one in found if not one.ended}

    def _zygote(self, tree: dict[int, Stat]) -> int | None:
        """The process that kernels are forked from. Its name alone proves nothing: notebooks may call theirs so."""
        if self._job.argv is not None:
            return None
        named = [one for one in tree.values() if one.parent == self._launcher and one.name == ZYGOTE_NAME]
        return min(named, key=lambda one: one.started).pid if named else None

    def _notebooks(self, tree: dict[int, Stat]) -> list[_Notebook]:
        """Everything but the server and the zygote, by what they started."""
        fixed = {self._root, self._launcher, self._zygote(tree)}
        found: dict[int, _Notebook] = {}
        for one in tree.values():
            if one.pid in fixed:
                continue
            top = one
            while top.parent not in fixed and top.parent in tree:
                top = tree[top.parent]
            found.setdefault(top.pid, _Notebook(top.pid, [])).members.append(one)
        return list(found.values())

    def _kernels(self, tree: dict[int, Stat]) -> set[int]:
        """What a page may belong to: the first process of each notebook, unless it lost its parent."""
        return {one.top for one in self._notebooks(tree) if tree[one.top].parent != self._root}

    def _make_notebooks_die_first(self) -> None:
        """Where the whole machine runs out of memory, the kernel shall take a notebook, not its server."""
        fixed = {self._launcher, self._zygote(self._tree)}
        alive = {(one.pid, one.started) for one in self._tree.values() if one.pid not in fixed}
        for pid, _ in alive - self._graded:
            with contextlib.suppress(OSError):  # gone, or hidden and so not ours to change
                Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_NOTEBOOK))
        self._graded = alive

    # processes

    def _check_tasks(self, now: float) -> Breach | None:
        used, limit = self._used_tasks, self._limits.processes
        if limit is None or used < limit:
            return None
        again = self._again("processes", now)
        victims = self._end_all(again)
        text = (
            f"The notebook server ran {used} processes and threads; it may run {limit}. "
            f"{_ended(again)} Saved code is kept."
        )
        return self._breach("processes", limit, used, used, victims, text)

    # memory

    def _check_memory(self, now: float, before: dict[int, Stat]) -> Breach | None:
        limit = self._limits.memory
        if limit is None:
            return None
        if "memory" in self._active:
            return self._kernel_killed(limit, before)
        rough = {pid: usage.memory_of(pid, exact=False) for pid in self._tree}
        files = self._memory_files()
        total = _total(rough.values(), sum(files.values()))
        self._used_memory = max(total - self._overcount, 0)
        if total <= limit or (self._used_memory <= limit and now - self._exact_at < EXACT_EVERY):
            return None
        exact = self._exact(rough, EXACT_PATIENCE)
        if exact is None:
            with self._frozen():
                exact = self._exact(rough, EXACT_PATIENCE_FROZEN)
            self._let_go_on()
        if exact is None:
            exact = rough
        self._used_memory = used = _total(exact.values(), sum(files.values()))
        self._overcount, self._exact_at = total - used, time.monotonic()
        return None if used <= limit else self._end_biggest(now, limit, used, exact, files)

    def _exact(self, rough: dict[int, Memory], seconds: float) -> dict[int, Memory] | None:
        """Memory by part where it can be read. The server hides itself; most of it is what the guard has, too."""
        found = usage.exact_memory(rough, seconds)
        if found is None:
            return None
        shared = usage.memory_of(self._root, exact=False).total
        for pid in (self._launcher, self._zygote(self._tree)):
            if pid in found and not (one := found[pid]).exact:
                found[pid] = Memory(max(one.own - shared, 0), one.shared, False)
        return found

    def _memory_files(self) -> dict[int, int]:
        """Files in memory that have no name, by the process that holds them; at 0 those that have one."""
        seen: set[tuple[int, int]] = set()
        found = {
            pid: sum(size for device, size in disk.open_nameless(pid, seen) if device in self._memory_devices)
            for pid in self._tree
        }
        return found | {0: disk.shared_memory(self._tree, self._uid)}

    def _end_biggest(
        self, now: float, limit: int, used: int, exact: dict[int, Memory], files: dict[int, int]
    ) -> Breach | None:
        """End the biggest notebook, and the next, until the rest is within the limit."""
        notebooks = self._notebooks(self._tree)
        for one in notebooks:
            own = [exact[member.pid] for member in one.members]
            one.size = _total(own, sum(files.get(member.pid, 0) for member in one.members))
        notebooks.sort(key=lambda one: one.size, reverse=True)
        server = exact[self._launcher].total if self._launcher in exact else 0
        if not notebooks or (server > limit // 2 and server > notebooks[0].size):
            _kill([self._launcher], self._mark)
            text = (
                f"The notebook server itself used {byte_text(server)} of memory, of the {byte_text(limit)} that it and "
                "its notebooks may use, and was ended. Saved code is kept."
            )
            return self._breach("memory", limit, used, server, [self._launcher], text)
        ended: list[int] = []
        size = 0
        left = used
        for one in notebooks:
            ended += self._end_tree(one)
            size += one.size
            left -= one.size
            if left <= limit:
                break
        if left > limit and not disk.clear_shared_memory((self._root, self._launcher), self._uid):
            # all notebooks are gone, and what they left in memory cannot be had away but with the server
            ended.append(self._launcher)
            _kill([self._launcher], self._mark)
        text = (
            f"A notebook used {byte_text(size)} of memory, and with it the server reached the {byte_text(limit)} that "
            "it may use, so the notebook was stopped. Other notebooks go on; saved code is kept."
        )
        return self._breach("memory", limit, used, size, ended, text)

    def _kernel_killed(self, limit: int, before: dict[int, Stat]) -> Breach | None:
        """What the kernel did where the control group holds the limit."""
        kills = self._oom_kills()
        if kills <= self._ooms:
            return None
        self._ooms = kills
        kernels = self._kernels(before)
        gone = sorted(before.keys() - self._tree.keys(), key=lambda pid: pid not in kernels)
        what = "A notebook" if gone and gone[0] in kernels else "A process that a notebook had started"
        text = (
            f"The server reached the {byte_text(limit)} of memory that it may use. {what} was ended for it; "
            "others go on, and saved code is kept."
        )
        return Breach("memory", limit, limit, 0, gone[0] if gone else None, tuple(gone), text)

    def _oom_kills(self) -> int:
        return 0 if self._cgroup is None else cgroups.events(self._cgroup, "memory.events").get("oom_kill", 0)

    # disk

    def _check_disk(self, now: float) -> Breach | None:
        assert self._disk is not None
        used = self._disk.count(now, self._tree)
        limit = self._disk.limit
        if used is None or not self._disk.too_much(used, bool(self._notebooks(self._tree))):
            return None
        victims = self._end_all(0)
        text = (
            f"Your files take {byte_text(used)}; {byte_text(limit)} are allowed. All notebooks were stopped so that it "
            "does not become more. Delete files in the file browser on the left, then run the notebook again. Saved "
            "code is kept."
        )
        return self._breach("disk", limit, used, used, victims, text)

    # ending

    def _again(self, kind: str, now: float) -> int:
        """How often the same has happened in a row, before now."""
        at, times = self._last.get(kind, (float("-inf"), -1))
        times = times + 1 if now - at < AGAIN else 0
        self._last[kind] = (now, times)
        return times

    def _end_all(self, again: int) -> list[int]:
        """End all notebooks; if that was just done, the zygote as well, and then the server."""
        kernels = self._kernels(self._tree)
        with self._frozen():
            ended = _end(lambda: self._below_all(spare_zygote=again == 0), self._mark, self._shared_groups())
            if again > 1:
                _kill([self._launcher], self._mark)
                ended.append(self._launcher)
        return sorted(ended, key=lambda pid: pid not in kernels)

    def _below_all(self, *, spare_zygote: bool) -> dict[int, Stat]:
        tree = _stats(usage.below(self._root))
        for pid in (self._launcher, self._zygote(tree) if spare_zygote else None):
            tree.pop(pid, None)  # type: ignore[arg-type]
        return tree

    def _shared_groups(self) -> set[int]:
        """Process groups that hold more than notebooks."""
        own = _stats([self._root, self._launcher, *filter(None, [self._zygote(self._tree)])])
        return {0, *(one.group for one in own.values())}

    def _end_tree(self, notebook: _Notebook) -> list[int]:
        """End one notebook: its kernel, and what that started."""
        tops = {notebook.top, *(member.pid for member in notebook.members)}

        def members() -> dict[int, Stat]:
            return _stats(tops | {pid for top in tops for pid in usage.below(top)})

        ended = _end(members, self._mark, self._shared_groups())
        return sorted(ended, key=lambda pid: pid != notebook.top)

    def _mark(self, pid: int) -> None:
        one = usage.stat(pid)
        if one is not None:
            self._killed[(pid, one.started)] = time.monotonic()
        self._tree.pop(pid, None)

    def _breach(self, kind: str, limit: int, used: int, size: int, victims: list[int], text: str) -> Breach:
        return Breach(kind, limit, used, size, victims[0] if victims else None, tuple(victims[:100]), text)


def _machine() -> tuple[int, int, int]:
    """Of the whole machine: processes and threads, available memory, memory in shared files. Two short reads."""
    tasks = int(usage.read("/proc/loadavg").split()[3].split(b"/")[1])
    available = shared = 0
    for line in usage.read("/proc/meminfo").splitlines():
        if line.startswith(b"MemAvailable:"):
            available = int(line.split()[1]) << 10
        elif line.startswith(b"Shmem:"):
            shared = int(line.split()[1]) << 10
            break
    return tasks, available, shared


def _total(memory: Iterable[Memory], files: int) -> int:
    """Memory of some processes. Files in memory that a process has mapped are in its shared memory already."""
    own = shared = 0
    for one in memory:
        own += one.own
        shared += one.shared
    return own + max(shared, files)


def _ended(again: int) -> str:
    if again > 1:
        return "The notebooks kept starting more, so the whole server was ended."
    return "All notebooks were stopped."


def _stats(pids: Iterable[int]) -> dict[int, Stat]:
    """Those that are alive."""
    found = (usage.stat(pid) for pid in pids)
    return {one.pid: one for one in found if one is not None and not one.ended}


def _end(find: Callable[[], dict[int, Stat]], mark: Callable[[int], None], not_groups: set[int]) -> list[int]:
    """Kill what `find` finds until it finds nothing. All are stopped before the first is killed: what is stopped starts
    nothing more. What has lost its parent in between is found when that is gone.

    Args:
        mark: is told of each.
        not_groups: process groups that must not be stopped as a whole.
    """
    until = time.monotonic() + STOP_PATIENCE
    stopped: set[int] = set()
    groups = set(not_groups)
    pause = 0.002
    while (found := find()) and time.monotonic() < until:
        new = found.keys() - stopped
        for pid in new:
            group = found[pid].group
            if group not in groups:
                groups.add(group)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGSTOP)
            _signal(pid, signal.SIGSTOP)
        stopped |= new
        if not new:
            _kill(stopped, mark)
            time.sleep(pause)  # they need the processor to end
            pause = min(pause * 2, 0.1)
    _kill(stopped, mark)
    return list(stopped)


def _kill(pids: Iterable[int], mark: Callable[[int], None]) -> None:
    for pid in pids:
        mark(pid)
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
