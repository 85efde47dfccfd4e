"""What one server may use: sizes as people write them, and how each limit is held on this machine.

A control group holds a limit exactly, for a server with everything it starts (cgroups.py). Where its controller is
missing, each process gets a resource limit, which it cannot raise again, and the guard's watch (watch.py) adds up what
all of them use.
"""

from __future__ import annotations

import math
import os
import random
import re
import resource
from collections.abc import Collection
from pathlib import Path

from marimohub.spawners import cgroups
from marimohub.spawners.job import Limits

# Which process the kernel ends when the whole machine is out of memory: servers before the hub, notebooks before their
# server. Source: proc_pid_oom_score_adj(5); a process may raise its own number, not lower it.
OOM_SERVER, OOM_NOTEBOOK = 100, 500

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_MOST_BYTES = 1 << 60
_SPARE_DATA = 256 << 20
# Beside a server's own processes those of the hub and of all other servers count for the same user id
_SHARED_USER_TASKS = 2048
_SOFT_FILES, _HARD_FILES = 8192, 65536

_first_user_namespace: str | None = None


def parse_bytes(value: str | int) -> int:
    """A size in bytes: a number, or a text such as "512M", "1.5G", "2 GB", in units of 1024.

    Raises:
        ValueError: it is none; the text is a sentence that says what would be one.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'{value!r} is not a size. Write it like "512M" or "2G".')
    found = _SIZE.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(f'{value!r} is not a size. Write it like "512M" or "2G".')
    count = round(float(found[1]) * 1024 ** _UNITS[found[2].upper()]) if found[2] else math.ceil(float(found[1]))
    if not 0 < count <= _MOST_BYTES:
        raise ValueError(f"{value!r} is not a size that a server could have.")
    return count


def byte_text(count: int) -> str:
    """Bytes as people read them: "512 MB", "1.5 GB", in units of 1024."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if count >= 1024**power:
            return f"{round(count / 1024**power, 1):g} {unit}"
    return f"{round(count / 1024):g} KB"


def apply_rlimits(limits: Limits, *, cgroup: str | Path | None, own_uid: bool) -> None:
    """Limit this process and what it will start. Called in the child before it changes its user id.

    Args:
        cgroup: the group that it is in already; limits that its controllers hold are left to them.
        own_uid: whether the server will run as a user of its own, so that the system counts its processes apart.
    Raises:
        OSError, ValueError: the system refuses a limit; the server must not start then.
    """
    global _first_user_namespace
    _first_user_namespace = _user_namespace()
    active = cgroups.active(cgroup)
    _lower(resource.RLIMIT_CORE, 0)  # a dump would hold what the memory held, and could be big
    _lower(resource.RLIMIT_RTPRIO, 0)
    _lower(resource.RLIMIT_NICE, 0)
    _lower(resource.RLIMIT_NOFILE, _SOFT_FILES, _HARD_FILES)
    if limits.memory is not None and "memory" not in active:
        _lower(resource.RLIMIT_DATA, data_limit(limits.memory))
    if limits.processes is not None:
        if own_uid:
            _lower(resource.RLIMIT_NPROC, cgroups.most_tasks(limits.processes))
        elif "pids" not in active:
            # A stop for what is faster than the watch, far above what the watch allows. No process here may use up
            # what the machine has, yet no server may be starved by what others do.
            _lower(resource.RLIMIT_NPROC, _tasks_of_machine() + limits.processes + _SHARED_USER_TASKS)
    if limits.disk is not None:
        # one file at most; Python ignores the signal and raises OSError (EFBIG)
        _lower(resource.RLIMIT_FSIZE, limits.disk)
    if limits.cpu is not None and "cpu" not in active:
        set_affinity(limits.cpu)
    _raise_oom_score(OOM_SERVER)


def limit_tasks(limits: Limits) -> None:
    """Limit processes once more, for this process and what it will start, where it has a user namespace of its own.

    There the system counts what is in it and nothing else of the same user. Called after `apply_rlimits`, and after the
    namespace was entered; it must be an ordinary user.
    """
    if limits.processes is not None and _user_namespace() not in (None, _first_user_namespace):
        _lower(resource.RLIMIT_NPROC, cgroups.most_tasks(limits.processes))


def _user_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/user")
    except OSError:
        return None


def data_limit(memory: int) -> int:
    """The private memory that one process may map where only the watch adds up what is used.

    More than the server may use: what is mapped counts here, also thread stacks and allocators' spare parts that are
    never touched. It stops one step that is too big at once, with a MemoryError in the cell; the watch, which counts
    what is used, acts before this is reached in small steps.
    """
    return memory + memory // 4 + _SPARE_DATA


def set_affinity(cpu: float) -> None:
    """Let this process and what it starts use `cpu` cores, rounded up, picked at random: servers spread over all."""
    usable = sorted(os.sched_getaffinity(0))
    wanted = max(1, math.ceil(cpu))
    if wanted < len(usable):
        os.sched_setaffinity(0, random.SystemRandom().sample(usable, wanted))


def in_force(limits: Limits, controllers: Collection[str], *, own_uid: bool = False) -> dict[str, str]:
    """How each limit is held, for the Admin page.

    Args:
        controllers: those of the server's control group (`cgroups.active(path)`, or `Cgroups.controllers`).
        own_uid: whether servers run as users of their own.

    Returns:
        For "memory", "cpu", "processes" and "disk": "cgroup" (the kernel, for the whole server), "rlimit" (the kernel,
        counted by user id), "affinity" (the kernel, in whole cores), "watch" (the guard adds up and kills), "none"
        (there is no limit).
    """
    found = {
        "memory": "cgroup" if "memory" in controllers else "watch",
        "cpu": "cgroup" if "cpu" in controllers else "affinity",
        "processes": "cgroup" if "pids" in controllers else "rlimit" if own_uid else "watch",
        "disk": "watch",
    }
    return {name: how if getattr(limits, name) is not None else "none" for name, how in found.items()}


def _lower(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, unless it is lower already."""
    soft_now, hard_now = resource.getrlimit(which)
    hard = _least(soft if hard is None else hard, hard_now)
    resource.setrlimit(which, (_least(_least(soft, soft_now), hard), hard))


def _least(one: int, other: int) -> int:
    # "no limit" is -1
    return max(one, other) if resource.RLIM_INFINITY in (one, other) else min(one, other)


def _tasks_of_machine() -> int:
    """Processes and threads there are now, of anybody."""
    return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])


def _raise_oom_score(least: int) -> None:
    path = Path("/proc/self/oom_score_adj")
    if int(path.read_text()) < least:
        path.write_text(str(least))
