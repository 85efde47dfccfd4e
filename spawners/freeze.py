"""Stop everything that a server has started, at one moment, so that it can be looked through and ended in peace.

Whoever stops a fork bomb one process after another loses the race: it gets a thousandth of the processor, and each look
is out of date. What stops all of them in one step depends on the machine:

- a control group freezes what is in it (any cgroup v2 tree can, without controllers);
- a process of the user's own id sends SIGSTOP to all it may signal, which is that user's processes;
- so does the zygote from inside of the sandbox, whose scope of signals ends where the server ends: it does when it gets
  SIGUSR2, see marimohub.singleuser.zygote. It has to wait for its turn, so what is in the notebooks' process groups is
  stopped before.

Without any of them it is process groups, and the rest one after another (watch.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from marimohub.spawners import cgroups, landlock, usage
from marimohub.spawners.job import Identity, Job

_PATIENCE = 5.0  # seconds for processes to stop
_STEP = 0.005


@contextlib.contextmanager
def frozen(job: Job, launcher: int, zygote: int | None, groups: Iterable[int]) -> Iterator[bool]:
    """Keep the server, with all it started, from running.

    Args:
        zygote: the process that its kernels are forked from.
        groups: process groups with nothing in them but notebooks.
    Yields:
        Whether all is stopped. If not, or if nobody has a user id of their own, only the server itself goes on
        afterwards: the caller has ended notebooks, or sends them SIGCONT.
    """
    if job.cgroup is not None and _freeze_group(Path(job.cgroup)):
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):  # it is gone
                _freeze(Path(job.cgroup), 0)
    elif job.identity is not None:
        _signal_all_as(job.identity, signal.SIGSTOP)
        try:
            yield _wait(lambda: _is_stopped(launcher))
        finally:
            _signal_all_as(job.identity, signal.SIGCONT)
    elif job.sandbox is not None and landlock.has_scopes(landlock.abi()) and _waits_for(zygote, signal.SIGUSR2):
        assert zygote is not None
        _stop_groups(groups)
        _signal(zygote, signal.SIGUSR2)
        try:
            yield _wait(lambda: _is_stopped(launcher))
        finally:
            _signal(launcher, signal.SIGCONT)
    else:
        _stop_groups(groups)
        yield False


def _stop_groups(groups: Iterable[int]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGSTOP)


def _freeze_group(path: Path) -> bool:
    try:
        _freeze(path, 1)
    except OSError:
        return False
    # what is not frozen yet has a signal pending, and so starts nothing more
    _wait(lambda: cgroups.events(path, "cgroup.events").get("frozen", 1) == 1)
    return True


def _freeze(path: Path, on: int) -> None:
    # not made if it is missing: before Linux 5.2 there is no such file
    with open(path / "cgroup.freeze", "r+") as file:
        file.write(str(on))


def _signal_all_as(identity: Identity, number: int) -> None:
    """Signal every process of a user, all at once: the kernel lets none of them fork meanwhile, see kill(2)."""
    come_first(with_children=True)
    try:
        pid = os.fork()
    finally:
        come_first()
    if pid == 0:
        try:
            os.setgroups(())
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
            os.kill(-1, number)  # reaches all but this one
        finally:
            os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def come_first(*, with_children: bool = False) -> None:
    """Have this process run before others when it wants to: a thousand busy ones of a notebook would not let it.

    Only root may; others do without. The real-time class is for moments alone: in wait() the kernel spins
    while somebody looks at the ended process in /proc, and a real-time process does not let that somebody go on.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        Path("/proc/self/autogroup").write_text("-20")  # the guard's session is a group of its own, see sched(7)
    with contextlib.suppress(OSError):
        policy = os.SCHED_RR if with_children else os.SCHED_OTHER
        os.sched_setscheduler(0, policy, os.sched_param(1 if with_children else 0))


def _waits_for(pid: int | None, number: int) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise."""
    if pid is not None:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _is_stopped(pid: int) -> bool:
    one = usage.stat(pid)
    return one is None or one.state in "TtZX"


def _wait(done: Callable[[], bool]) -> bool:
    until = time.monotonic() + _PATIENCE
    while not (reached := done()) and time.monotonic() < until:
        time.sleep(_STEP)
    return reached


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
