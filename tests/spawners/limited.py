"""Run by test_limits.py: takes on limits as a server does, and prints what it can still do, as JSON.

`python -P limited.py JSON` with "limits", "uid" (to become; None: stay), "cgroup", "namespace" (of the user's own), and
"try": names of functions below.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from marimohub.spawners.job import Limits
from marimohub.spawners.limits import apply_rlimits, limit_tasks

ask = json.loads(sys.argv[1])
MIB = 1 << 20


def memory() -> str:
    """A step that is too big at once; the process lives on."""
    try:
        bytearray(ask.get("step", 1024) * MIB)
    except MemoryError:
        bytearray(10 * MIB)
        return "MemoryError"
    return "there was room"


def file() -> str:
    path = Path(f"/tmp/marimohub-limited-{os.getpid()}")
    try:
        with open(path, "wb") as big:
            big.truncate(1024 * MIB)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        path.unlink(missing_ok=True)
    return "there was room"


def forks() -> int:
    """How many processes there can be at a time, up to 100."""
    children = []
    reading, writing = os.pipe()
    try:
        while len(children) < 100:
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(pid)
    except BlockingIOError:
        pass
    os.close(writing)
    for pid in children:
        os.waitpid(pid, 0)
    return len(children)


def raised() -> list[str]:
    """The limits that this process could raise again."""
    found = []
    for name in ("RLIMIT_DATA", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_RTPRIO"):
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            try:
                resource.setrlimit(which, (hard + 1, hard + 1))
            except (ValueError, OSError):
                continue
        found.append(name)
    return found


def state() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "data": resource.getrlimit(resource.RLIMIT_DATA)[1],
        "tasks": resource.getrlimit(resource.RLIMIT_NPROC)[1],
        "file": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
        "oom": int(Path("/proc/self/oom_score_adj").read_text()),
    }


limits = Limits(**ask["limits"])
apply_rlimits(limits, cgroup=ask.get("cgroup"), own_uid=ask.get("own_uid", False))
if ask.get("uid") is not None:
    os.setgroups(())
    os.setresgid(ask["uid"], ask["uid"], ask["uid"])
    os.setresuid(ask["uid"], ask["uid"], ask["uid"])
if ask.get("namespace") and ctypes.CDLL(None).unshare(0x10000000) != 0:  # CLONE_NEWUSER
    sys.exit(77)
limit_tasks(limits)
print(json.dumps({name: globals()[name]() for name in ask["try"]}))
