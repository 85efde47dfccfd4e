"""What the probes share, and how they are run: standard library only, since all of it is sent into a notebook's kernel.

A probe is a function that tries one thing that a notebook must not be able to do. It gets the targets (a dictionary of
paths, process ids, ports and names: an attacker is assumed to know them all) and returns what it got. Being refused is
an OSError, or `Denied`. Its verdict is "open: …", "denied: …", or "error: …", which is no answer and fails every test.

Each probe is tried in a process of its own, so that it may break that.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]
Attempt = Callable[[Targets], object]

TIMEOUT = 20.0  # seconds for one probe
# name: the probe, and who it succeeds for outside of the sandbox: "hub" is the hub's own user, "root" whoever is root
PROBES: dict[str, tuple[Attempt, str]] = {}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
# x86_64, aarch64; the numbers from 424 on are the same everywhere
_NUMBERS = {
    "bpf": (321, 280),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "io_uring_setup": (425, 425),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
}


class Denied(Exception):
    """Refused in another way than by an error of the system."""


def probe(control: str = "hub") -> Callable[[Attempt], Attempt]:
    """Register a probe under its function's name."""

    def register(attempt: Attempt) -> Attempt:
        PROBES[attempt.__name__] = (attempt, control)
        return attempt

    return register


def call(result: int) -> int:
    """What a function of the C library returned; its error as an OSError."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def syscall(name: str, *arguments: Any) -> int:
    number = _NUMBERS[name][0 if platform.machine() == "x86_64" else 1]
    return call(libc.syscall(ctypes.c_long(number), *arguments))


def any_of(attempts: dict[str, Callable[[], object]]) -> str:
    """Several ways to the same: what the first one got that is open. If all are denied, how the first one was."""
    refused: OSError | Denied | None = None
    for name, attempt in attempts.items():
        try:
            got = attempt()
        except (OSError, Denied) as error:
            refused = refused or error
        else:
            return f"{name}: {got}"
    raise refused or AssertionError("nothing was tried")


def each_process(targets: Targets, attempt: Callable[[int], object]) -> str:
    """The same thing with every process that does not belong to the notebook's server."""
    return any_of({role: lambda pid=pid: attempt(pid) for role, pid in targets["foreign_pids"].items()})


def verdict(attempt: Attempt, targets: Targets) -> str:
    """Try one thing, here."""
    try:
        got = attempt(targets)
    except OSError as error:
        return f"denied: {errno.errorcode.get(error.errno or 0, str(error))}"
    except Denied as error:
        return f"denied: {error}"
    except BaseException as error:
        return f"error: {type(error).__name__}: {error}"
    return f"open: {got}"


def in_child(attempt: Attempt, targets: Targets) -> str:
    """Try one thing in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        text = verdict(attempt, targets)[:300]
        os.write(writing, text.encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    found = _read(reading)
    if found is None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if found is None:
        return "error: no answer"
    if os.WIFSIGNALED(status):
        ended_by = signal.Signals(os.WTERMSIG(status)).name
        return f"denied: {ended_by}" if ended_by == "SIGSYS" else f"error: ended by {ended_by}"
    return found


def _read(pipe: int) -> str | None:
    deadline, text = time.monotonic() + TIMEOUT, b""
    try:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(pipe, 4096)
            if not piece:
                return text.decode()
            text += piece
        return None
    finally:
        os.close(pipe)


def run(names: list[str], targets: Targets, attempts: dict[str, tuple[Attempt, str]] = PROBES) -> dict[str, str]:
    """The verdicts of these probes."""
    return {name: in_child(attempts[name][0], targets) for name in names}


def main() -> None:
    """Standard input: JSON with "names", "targets" and "kind" (whether features are meant). Prints the verdicts."""
    asked = json.load(sys.stdin)
    features = sys.modules["tests.spawners.escape.works"].WORKS if asked.get("kind") == "works" else PROBES
    print(json.dumps(run(asked["names"], asked["targets"], features)))
