"""Fault points: every call that reaches the disk or the database is a step, and a chosen step fails or kills.

A step is counted before and after each call, so that "killed between two steps" needs no knowledge of the code under
test. Patches are never undone: use them in a forked child (`in_child`).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

FILE_CALLS = ("fsync", "rename", "replace", "link", "unlink", "write")
Step = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a child ended: `signal` if it was killed, else its exit `status`; `step` is the last one it told."""

    status: int
    signal: int
    step: str


def watch_files(step: Step) -> None:
    """Report each file-system call that changes something, before and after."""
    for name in FILE_CALLS:
        setattr(os, name, _watched(name, getattr(os, name), step))
    create = os.open

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            step("before create")
        return create(path, flags, *args, **kwargs)

    os.open = opened


def watch_database(step: Step) -> None:
    """Report each statement and commit, before and after."""
    event.listen(Engine, "before_cursor_execute", lambda _c, _cur, statement, *_: step(f"before {statement[:40]!r}"))
    event.listen(Engine, "after_cursor_execute", lambda _c, _cur, statement, *_: step(f"after {statement[:40]!r}"))
    commit = Session.commit

    def watched(self: Session) -> None:
        step("before commit")
        commit(self)
        step("after commit")

    Session.commit = watched  # type: ignore[method-assign]


def kill_at(number: int, tell: Callable[[str], None]) -> Step:
    """A step function that ends this process with SIGKILL at the step `number`, counted from 1."""
    steps = iter(range(1, sys.maxsize))

    def step(label: str) -> None:
        if next(steps) == number:
            tell(label)
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def full_at(number: int, tell: Callable[[str], None]) -> Step:
    """A step function that lets the file-system call `number` fail as on a full disk; removing works on one."""
    steps = iter(range(1, sys.maxsize))

    def step(label: str) -> None:
        when, _, call = label.partition(" ")
        if when == "before" and call != "unlink" and next(steps) == number:
            tell(label)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return step


def in_child(work: Callable[[Callable[[str], None]], object]) -> Ended:
    """Fork, run `work(tell)` and exit with 0; `tell` leaves the last word for the parent.

    The caller must hold no open database connection: SQLite forbids to carry one over a fork.
    """
    receive, send = os.pipe()
    write = os.write
    child = os.fork()
    if child == 0:
        try:

            def tell(label: str) -> None:
                write(send, label.encode() + b"\n")

            work(tell)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    os.close(send)
    with os.fdopen(receive) as told:
        lines = told.read().splitlines()
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), os.WTERMSIG(status), lines[-1] if lines else "")


def _watched(name: str, call: Callable[..., Any], step: Step) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        step(f"before {name}")
        result = call(*args, **kwargs)
        step(f"after {name}")
        return result

    return watched
