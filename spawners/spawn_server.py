"""The warm process: it has loaded what a notebook server needs, and forks.

The hub starts one for each Python interpreter, as `python -P -c "from marimohub.spawners.spawn_server import main; …"`:
with `-m` this module would be loaded a second time under its own name. At the time of a fork it has one thread, no
event loop and no secret: it hands the job, which it never reads, to the fork. Servers outlive it. It ends with the hub.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from marimohub.spawners import guard, processes, sandbox

COMMAND = "from marimohub.spawners.spawn_server import main; main()"
SPAWN = b"spawn"
HANDED_OVER = 4  # job socket, listening socket, secrets pipe, log
# loads what servers and notebooks need; first, since it loads less of JupyterHub than the launcher alone would
WARM = "marimohub.singleuser.warm"
# what is loaded beside the configured modules
ESSENTIAL = (WARM, "marimohub.singleuser.launcher", "marimohub.spawners.child")
STRAYS_PATIENCE = 2.0  # seconds; no server is started meanwhile
UNUSABLE = 3  # exit status: started again, it would end the same way


class CannotPreload(Exception):
    """The process cannot be made warm; the text is a sentence."""


def main() -> NoReturn:
    """`argv`: the control socket's number, the hub's pid, and the modules to load, with commas between them."""
    control, hub_pid, preload = int(sys.argv[1]), int(sys.argv[2]), [name for name in sys.argv[3].split(",") if name]
    os.umask(0o077)
    os.chdir("/")
    processes.set_name("marimohub-spawn")
    processes.adopt_orphans()
    connection = socket.socket(fileno=control)
    connection.set_inheritable(False)
    if guard.peer(connection) != (hub_pid, os.getuid()):
        sys.exit("The control socket is not the hub's.")
    try:
        missing = load(preload)
    except CannotPreload as error:
        connection.send(json.dumps({"unusable": str(error)}).encode())
        sys.exit(UNUSABLE)
    sandbox.prepare()
    connection.send(json.dumps({"ready": os.getpid(), "missing": missing}).encode())
    serve(connection, hub_pid)
    os._exit(0)


def load(preload: list[str]) -> list[str]:
    """Import what servers need, and take it out of the collector's sight, so that the memory stays shared.

    Returns:
        Configured modules that this interpreter does not have: its servers do without them, too.
    Raises:
        CannotPreload: marimo or the launcher is missing, or a module starts threads, which a fork would lose.
    """
    gc.disable()
    logging.disable(logging.WARNING)  # what they say of having no home
    missing = []
    for name in (*ESSENTIAL, *preload):
        try:
            importlib.import_module(name)
            if name == WARM:
                sys.modules[name].load()
        except ModuleNotFoundError as error:
            if name in ESSENTIAL:
                raise CannotPreload(f"It has no module {error.name}. Install marimohub into it.") from error
            missing.append(name)
        except Exception as error:
            raise CannotPreload(f"The module {name} cannot be loaded: {type(error).__name__}: {error}.") from error
        _require_one_thread(f"Loading the module {name} has started threads")
    logging.disable(logging.NOTSET)
    gc.collect()
    gc.freeze()
    return missing


def _require_one_thread(what: str) -> None:
    if len(os.listdir("/proc/self/task")) != 1:
        names = ", ".join(sorted(processes.threads())[:8])
        raise CannotPreload(f"{what} ({names}), and a fork would lose them. Remove it from LocalMarimoSpawner.preload.")


def serve(control: socket.socket, hub_pid: int) -> None:
    """Fork a guard for each message, until the hub is gone."""
    wake, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(wake, select.POLLIN)
    guards: set[int] = set()
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 512)
                _clean_up(guards)
            elif not _answer(control, hub_pid, guards):
                return


def _answer(control: socket.socket, hub_pid: int, guards: set[int]) -> bool:
    """Take one message. False: there will be no more."""
    room = socket.CMSG_SPACE(HANDED_OVER * array.array("i").itemsize)
    try:
        message, ancillary, flags, _ = control.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return False
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    try:
        if not message:
            return False
        if message != SPAWN or flags & socket.MSG_CTRUNC or len(descriptors) != HANDED_OVER:
            print(f"ignored a message that is none of the hub's: {message!r}", file=sys.stderr, flush=True)
            return True
        pid = _fork_guard(list(descriptors), hub_pid)
        if pid:
            guards.add(pid)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _fork_guard(descriptors: list[int], hub_pid: int) -> int:
    """Returns the guard's pid, or 0 if there is none: the hub was told why."""
    try:
        _require_one_thread("The spawn server has threads")
        pid = os.fork()
    except (CannotPreload, OSError) as error:
        text = str(error) if isinstance(error, CannotPreload) else f"No process could be started: {error.strerror}."
        with socket.socket(fileno=os.dup(descriptors[0])) as hub, contextlib.suppress(OSError):
            hub.send(json.dumps({"event": "failed", "message": text}).encode(), socket.MSG_DONTWAIT)
        return 0
    if pid == 0:
        signal.set_wakeup_fd(-1)
        guard.run(descriptors[0], descriptors[1], descriptors[2], descriptors[3], hub_pid)
    return pid


def _clean_up(guards: set[int]) -> None:
    """Bury guards. What one that was killed has left behind is this process's by now, and ends."""
    own = os.getpid()
    ended = processes.reap()
    guards -= ended.keys()
    if any(status < 0 for status in ended.values()):
        left = processes.end_all(lambda: processes.descendants(own, without=guards), STRAYS_PATIENCE)
        if left:
            print(f"processes that cannot be ended, the kernel holds them: {left}", file=sys.stderr, flush=True)
        guards &= processes.descendants(own).keys()
