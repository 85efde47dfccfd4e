"""Processes of this machine, as /proc tells of them. Standard library only: guards and the spawn server use it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Container
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def set_name(name: str) -> None:
    """What `ps` and `top` show as the command of this thread; at most 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def die_with_parent() -> None:
    """Be killed when the parent ends. A change of the user id undoes this, so call it afterwards."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of whatever loses its own below this process, so that nothing gets away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def process_start_time(pid: int) -> str:
    """When the kernel started a process, in clock ticks since boot: with the pid, it names one process for good.

    Returns:
        "" if there is no such process, or only its zombie.
    Source: proc(5), field 22 of /proc/PID/stat; the state is field 3.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def threads() -> list[str]:
    """The names of this process's threads."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
    return names


def descendants(root: int, without: Container[int] = ()) -> dict[int, str]:
    """All processes below `root` that are no zombies: pid → state letter.

    Those of `without`, and what is below them, are left out. All of it is judged by one reading of /proc: with two,
    what moved in between would look like a stray.
    """
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split(None, 2)
        except OSError:
            continue
        pid = int(entry)
        states[pid] = fields[0].decode()
        children.setdefault(int(fields[1]), []).append(pid)
    found: dict[int, str] = {}
    below = list(children.get(root, ()))
    while below:
        pid = below.pop()
        if pid in without:
            continue
        if states[pid] not in "ZX":
            found[pid] = states[pid]
        below += children.get(pid, ())
    return found


def reap() -> dict[int, int]:
    """Collect the children of this process that have ended: pid → status, negative for a signal."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def of_user(uid: int) -> dict[int, str]:
    """All processes of a user id that are no zombies: pid → state letter."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{entry}/status").read_text()
                state = status.partition("\nState:")[2].split(None, 1)[0]
                owners = status.partition("\nUid:")[2].partition("\n")[0].split()
                if state not in "ZX" and str(uid) in owners:
                    found[int(entry)] = state
    return found


def childless(patience: float) -> bool:
    """Collect ended children until there are none, for some seconds: then nothing is below one that adopts orphans."""
    until = time.monotonic() + patience
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.002)


def end_all(victims: Callable[[], dict[int, str]], patience: float = 10.0, *, reaps: bool = True) -> list[int]:
    """Kill what `victims` finds, and what that starts meanwhile: all are stopped before the first is killed.

    A process that is stopped forks no more, so the circle of those to kill cannot run away. If `victims` looks for
    descendants, the caller must adopt orphans, so that it keeps seeing all of them.

    Args:
        reaps: whether to collect the caller's ended children, whichever: not where others wait for them.
    Returns:
        The processes that are still there after `patience` seconds: the kernel holds them (a hung disk, say).
    """
    until = time.monotonic() + patience
    pause = 0.001
    while True:
        stopped: set[int] = set()
        while new := victims().keys() - stopped:
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            stopped |= new
        for pid in stopped:
            _signal(pid, signal.SIGKILL)
        if reaps:
            reap()
        left = victims()
        if not left:
            return []
        if time.monotonic() > until:
            return sorted(left)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_all_of(uid: int, gid: int) -> None:
    """Kill whatever a user id runs, at one instant, so that nothing forks away. For root; the caller has one thread."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(())
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
