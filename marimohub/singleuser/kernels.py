"""marimo's kernels, forked from a warm process of the server's own instead of started from nothing.

The launcher calls `start_zygote()` while it still has neither threads nor secrets. `get_context` stands in marimo for
multiprocessing's; marimo_seam.py puts it there.

A zygote that died (somebody's code may kill it, and its kernels with it) is replaced at the next start of a kernel by a
fresh program, which is as slow as marimo's own way: forking the server itself, with its threads and its token, is out
of the question.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from marimohub.singleuser import zygote
from marimohub.singleuser.links import Outbox

log = logging.getLogger("marimohub.singleuser")

_START_TIMEOUT = 30.0  # seconds that a zygote may take to fork: one that was just executed imports marimo first
_count = itertools.count(1)


class KernelNotStarted(Exception):
    """The operating system refused a new process. The text says why."""


@dataclass
class _Zygote:
    pid: int
    control: socket.socket


_current: _Zygote | None = None


def start_zygote() -> int:
    """Fork the zygote. Call it in the main thread, before any other and before secrets are read. Returns its pid."""
    global _current
    others = len(os.listdir("/proc/self/task")) - 1
    if others:
        raise RuntimeError(f"{others} threads are running already: a fork would copy their locks")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what waits in their buffers would be written twice
    pid = os.fork()
    if pid == 0:
        zygote.serve(theirs, parent)
    theirs.close()
    _current = _Zygote(pid, ours)
    return pid


def _execute_zygote() -> _Zygote:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        # -P: the folder with the notebooks is no place to import from
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", zygote.__name__, str(number), str(os.getpid())],
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
        )
    process.returncode = 0  # it is waited for below; without this Popen warns that it still runs
    return _Zygote(process.pid, ours)


def _ask(fds: list[int]) -> None:
    """Send a request to the zygote, to a new one if it is gone."""
    global _current
    if _current is not None:
        try:
            socket.send_fds(_current.control, [zygote.REQUEST], fds)
            return
        except (BrokenPipeError, ConnectionResetError):
            log.warning("the process that kernels are forked from is gone: starting a new one")
            _forget(_current)
    _current = _execute_zygote()
    socket.send_fds(_current.control, [zygote.REQUEST], fds)


def _forget(gone: _Zygote) -> None:
    gone.control.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(gone.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(gone.pid, 0)


class KernelProcess:
    """One kernel, with the part of multiprocessing.Process that marimo uses."""

    hidden: ClassVar[tuple[str, ...]] = ()  # packages that a kernel shall not have imported by itself

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...] = (), daemon: bool | None = None) -> None:
        del daemon
        self.name = f"Kernel-{next(_count)}"
        self.pid: int | None = None
        self.exitcode: int | None = None
        self._target, self._args = target, args
        self._status = -1

    def start(self) -> None:
        """Raises KernelNotStarted."""
        packed = io.BytesIO()
        pickler = zygote.Pickler(packed)
        pickler.dump(
            zygote.Start(
                self._target, self._args, dict(os.environ), os.getcwd(), _module_path(), list(sys.argv), self.hidden
            )
        )
        start = os.memfd_create("kernel", os.MFD_CLOEXEC)
        try:
            with open(start, "wb", closefd=False) as file:
                file.write(packed.getbuffer())
            held = [end.fileno() for end in pickler.sockets]
            # a zygote that dies just now gives no answer: one more try, with a new one
            pid = self._request(start, held) or self._request(start, held)
        finally:
            os.close(start)
            for end in pickler.sockets:
                end.close()
        if pid is None or pid < 0:
            reason = "its parent process ended" if pid is None else os.strerror(-pid)
            raise KernelNotStarted(f"A kernel could not be started: {reason}.")
        self.pid = pid
        del self._target, self._args

    def is_alive(self) -> bool:
        self._wait(0)
        return self.pid is not None and self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        self._wait(timeout)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _request(self, start: int, held: list[int]) -> int | None:
        """Ask for the kernel: its pid, minus an error number, or None if the zygote died."""
        os.lseek(start, 0, os.SEEK_SET)
        self._status, answer = os.pipe()
        try:
            _ask([start, answer, *held])
        finally:
            os.close(answer)  # so that the end of the zygote is the end of the pipe
        number = self._read(_START_TIMEOUT)
        if number is None or number < 0:
            self._close()
        return number

    def _wait(self, timeout: float | None) -> None:
        """See whether it has ended, for `timeout` seconds."""
        if self._status < 0 or not _readable(self._status, timeout):
            return
        number = self._read(0)
        self._close()
        # killed with the zygote, which would have told
        self.exitcode = -signal.SIGKILL if number is None else number

    def _read(self, timeout: float) -> int | None:
        """The next number of the answer; None at its end, or if there is none in time."""
        if not _readable(self._status, timeout):
            return None
        data = os.read(self._status, zygote.NUMBER.size)
        return int(zygote.NUMBER.unpack(data)[0]) if len(data) == zygote.NUMBER.size else None

    def _close(self) -> None:
        os.close(self._status)
        self._status = -1

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def __del__(self) -> None:
        if self._status >= 0:
            self._close()


def _module_path() -> list[str]:
    """Where a kernel imports from. A server that was forked has not read $PYTHONPATH, which its profile may set."""
    chosen = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return [*chosen, *(folder for folder in sys.path if folder not in chosen)]


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


class Context:
    """Stands for `multiprocessing.get_context("spawn")` where marimo makes a kernel and its queues."""

    Process = KernelProcess
    Queue = Outbox


def get_context(method: str | None = None) -> Context:
    """Stands for multiprocessing's function of that name."""
    del method
    return Context()
