"""The process that kernels are forked from: has marimo and what notebooks import, and no thread, loop or secret.

The launcher forks it before it reads its secrets, so nothing of them is in a kernel's memory, and the pages of all
modules are shared between the launcher, the zygote and every kernel. It serves one client, the launcher, over an
inherited SOCK_SEQPACKET socket, and ends with it; kernels end with the zygote.

A request is one message of REQUEST with these descriptors: the pickled Start (a memory file), the pipe for the answer,
and what the kernel shall hold. The answer is two numbers: the kernel's pid, or minus the error number of a failed fork,
and later its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import logging
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marimohub.singleuser import databases
from marimohub.singleuser.frames import with_room
from marimohub.singleuser.handout import HandOut
from marimohub.singleuser.links import Inbox, KernelEnd, Outbox

REQUEST = b"kernel"
NUMBER = struct.Struct("!q")
MAX_DESCRIPTORS = 16

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15


@dataclass(frozen=True)
class Start:
    """What a kernel process runs, and its surroundings. `hidden`: packages that must look as if not yet imported."""

    target: Callable[..., object]
    args: tuple[Any, ...]
    env: dict[str, str]
    folder: str
    path: list[str]
    argv: list[str]
    hidden: tuple[str, ...] = ()


def prctl(option: int, value: int | bytes) -> None:
    """The system call, for the few options used here; they cannot fail."""
    _libc.prctl(option, value, 0, 0, 0)


def set_dumpable(on: bool) -> None:
    """Whether other processes of the same user may read this one's memory, environment and descriptors."""
    prctl(_PR_SET_DUMPABLE, int(on))


def set_name(name: str) -> None:
    """What `ps` and `top` show."""
    prctl(_PR_SET_NAME, name.encode())


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent, which must be `parent`, ends."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(control: socket.socket, parent: int) -> None:
    """Fork kernels until the launcher is gone. Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGUSR2, _stop_everything)
        set_dumpable(False)
        die_with(parent)
        set_name("kernel-zygote")  # the guard finds it by this name
        _forget_the_launcher()
        _close_all_but(control.fileno())
        _Zygote(control).run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._answers: dict[int, int] = {}  # pid of a kernel: pipe for its exit code
        self._wake, self._wake_write = os.pipe()
        for fd in (self._wake, self._wake_write):
            os.set_blocking(fd, False)

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)  # with a handler, the wake-up descriptor is written to
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._answer():
                return

    def _answer(self) -> bool:
        """Serve one request; False if the launcher is gone."""
        message, fds, _, _ = socket.recv_fds(self._control, 64, MAX_DESCRIPTORS)
        if not message:
            return False
        if len(fds) < 2:
            for fd in fds:  # the requester learns it from the end of its pipe
                os.close(fd)
            return True
        start, answer, *held = fds
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _write(answer, -(error.errno or 1))
            os.close(answer)
        else:
            if pid == 0:
                self._become_kernel(start, answer, held, zygote)
            _write(answer, pid)
            self._answers[pid] = answer
        for fd in (start, *held):
            os.close(fd)
        return True

    def _become_kernel(self, start: int, answer: int, held: list[int], zygote: int) -> None:
        code = 1
        try:
            die_with(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for fd in (self._wake, self._wake_write, answer, *self._answers.values()):
                os.close(fd)
            self._control.close()
            set_dumpable(True)  # its own /proc/self belongs to it, as in any process
            set_name("kernel")
            code = _run(start, held)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            answer = self._answers.pop(pid, None)
            if answer is not None:
                _write(answer, os.waitstatus_to_exitcode(status))
                os.close(answer)


def _run(start_fd: int, held: list[int]) -> int:
    """Run a kernel to its end; the exit code, as multiprocessing would have it."""
    from marimohub.singleuser import marimo_seam

    with open(start_fd, "rb") as file:
        start: Start = _Unpickler(file, held).load()
    os.environ.clear()
    os.environ.update(start.env)
    time.tzset()
    marimo_seam.read_environment()
    os.chdir(start.folder)
    sys.path[:] = start.path
    sys.argv[:] = start.argv
    # marimo puts the notebook there; until then it must not be the launcher
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.meta_path.insert(0, HandOut(start.hidden, {"duckdb": databases.settle_all}))
    # as in a kernel that marimo itself starts: what a notebook starts with multiprocessing begins afresh
    multiprocessing.set_start_method("spawn", force=True)
    _new_randomness()
    gc.enable()
    atexit._clear()
    # it takes part in the end of every process that multiprocessing made, or that uses it
    from multiprocessing.util import _exit_function  # type: ignore[attr-defined]

    atexit.register(_exit_function)
    try:
        with_room(start.target, *start.args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    return code


def _new_randomness() -> None:
    """What was drawn at an import is the same in everything forked since. (Python renews `random` itself.)"""
    multiprocessing.current_process().authkey = os.urandom(32)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _stop_everything(*_: object) -> None:
    """Stop every process of this sandbox but this one: the guard asks for it when one of them multiplies faster than
    it can be killed, and only where the sandbox keeps signals inside."""
    os.kill(-1, signal.SIGSTOP)


def _forget_the_launcher() -> None:
    """Take back what a process of this kind set up for itself and a kernel must not have."""
    gc.disable()  # collecting here would copy the pages that are to be shared
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in a terminal is for the launcher
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
    logging.root.setLevel(logging.WARNING)
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.FileHandler):
                handler.close()  # marimo's own log: its descriptor is closed next; it opens itself when it is needed
    tempfile.tempdir = None  # it remembers the folder of the process that asked first
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(max(3, kept + 1), os.sysconf("SC_OPEN_MAX"))


def _write(fd: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher asks no more
        os.write(fd, NUMBER.pack(number))


class Pickler(pickle.Pickler):
    """Lists the sockets that shall go along in `sockets`."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.sockets: list[socket.socket] = []

    def persistent_id(self, found: object) -> tuple[str, int] | None:
        if isinstance(found, Outbox):
            self.sockets.append(found.kernel_end)
            return "inbox", len(self.sockets) - 1
        if isinstance(found, KernelEnd):
            self.sockets.append(found.socket)
            return "link", len(self.sockets) - 1
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, held: list[int]) -> None:
        super().__init__(file)
        self._held = held

    def persistent_load(self, found: tuple[str, int]) -> object:
        kind, index = found
        end = socket.socket(fileno=self._held[index])
        return Inbox(end) if kind == "inbox" else KernelEnd(end)


def main() -> None:
    """A zygote that was not forked: `python -m marimohub.singleuser.zygote SOCKET PARENT`."""
    from marimohub.singleuser import warm

    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    warm.load()
    serve(control, parent)


if __name__ == "__main__":
    main()
