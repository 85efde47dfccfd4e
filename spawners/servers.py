"""A running server as the hub sees it: its guard process, held by a descriptor, and what the guard says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from marimohub.spawners.job import KEEP
from marimohub.spawners.processes import process_start_time

_MAX_EVENT_BYTES = 1 << 16
_UNKNOWN = 0  # JupyterHub's status for a server that ended unseen


class GuardLost(Exception):
    """The guard is gone, or never was, and did not say why. The text is a sentence."""


class StartFailed(Exception):
    """The server could not be prepared. The text is the sentence that the guard had for it."""


class Server:
    """One server. All of it belongs to the event loop.

    Attributes:
        guarded: done when the guard lives (`pid` and `started_at` are known), or with GuardLost.
        started: done when the server runs confined (`launcher` is known), or with GuardLost or StartFailed.
        ended: done when the server and everything it started is gone; its exit status, or minus a signal's number.
        gone: done when the guard is gone, too; only then its person's temp folder is nobody's.
        lost: nobody saw how the server ended: its guard was killed, or it was an earlier hub's.
        breaches: limits that it reached, as the watch reports them, the last ones.
    """

    def __init__(self, log: logging.Logger | Any) -> None:
        self._log = log
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.guarded: asyncio.Future[None] = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        for future in (self.guarded, self.started):
            future.add_done_callback(lambda f: f.cancelled() or f.exception())  # not everybody waits for both
        self.pid, self.started_at = 0, ""
        self.launcher, self.launcher_started_at = 0, ""
        self.breaches: list[dict[str, Any]] = []
        self.on_breach: Callable[[dict[str, Any]], None] | None = None
        self.lost = False
        self._connection: socket.socket | None = None
        self._pidfd: int | None = None
        self._adopted = False

    @classmethod
    def adopt(cls, log: logging.Logger | Any, state: dict[str, Any]) -> Server | None:
        """The server of an earlier hub, by what `state` says of it; None if it is gone."""
        server = cls(log)
        server._adopted = True
        server.launcher, server.launcher_started_at = state.get("launcher", 0), state.get("launcher_started_at", "")
        try:
            server._hold(int(state.get("pid", 0)), str(state.get("started_at", "")))
        except GuardLost:
            return None
        server.guarded.set_result(None)
        server.started.set_result(None)
        return server

    def state(self) -> dict[str, Any]:
        """What `adopt` needs."""
        return {
            "pid": self.pid,
            "started_at": self.started_at,
            "launcher": self.launcher,
            "launcher_started_at": self.launcher_started_at,
        }

    def connect(self) -> socket.socket:
        """Make the job socket; returns the guard's end."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        self._connection = mine
        self._loop.add_reader(mine, self._hear)
        return theirs

    def send(self, message: bytes) -> None:
        """Raises OSError: it does not fit into a socket's buffer."""
        assert self._connection is not None
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(message) * 2 + 4096)
        self._connection.send(message)

    def keep(self) -> None:
        """Tell the guard that the hub has written it down: from now on the server outlives the hub."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(KEEP)

    def terminate(self) -> None:
        """Ask it to end; its guard sees to it that it does."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, with all it started, at once."""
        self._signal(signal.SIGUSR1)

    def kill_guard(self) -> None:
        """The last resort: the server dies with its guard, and the spawn server ends what else there is."""
        self._signal(signal.SIGKILL)

    def forget(self) -> None:
        """Give up before `keep`: if there is a guard, or will be one, it ends with what it started."""
        self._close()

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _hold(self, pid: int, started_at: str) -> None:
        """Hold on to a process by a descriptor, which stands for it and no other. Raises GuardLost."""
        if pid <= 0:
            raise GuardLost("It has no process.")
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise GuardLost("Its process has ended.") from error
        self.pid, self.started_at = pid, started_at
        if process_start_time(pid) != started_at:
            os.close(self._pidfd)
            self._pidfd = None
            raise GuardLost("Its process has ended.")
        self._loop.add_reader(self._pidfd, self._is_gone)

    def _hear(self) -> None:
        assert self._connection is not None
        try:
            message = self._connection.recv(_MAX_EVENT_BYTES)
        except (BlockingIOError, ConnectionError):
            return  # a reset is told once, before what the guard had said
        if not message:
            self._disconnect()
            lost = GuardLost("The process that guards it ended without a word. Try again.")
            if not self.guarded.done():
                self.guarded.set_exception(lost)
            if not self.started.done():
                self.started.set_exception(lost)
            return
        try:
            self._event(json.loads(message))
        except (ValueError, KeyError, TypeError) as error:
            self._log.error("A guard said what the hub does not understand: %r", error)

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "guard":
            try:
                self._hold(int(event["pid"]), str(event["started"]))
            except GuardLost as error:
                if not self.guarded.done():
                    self.guarded.set_exception(error)
                return
            if not self.guarded.done():
                self.guarded.set_result(None)
        elif kind == "started":
            self.launcher, self.launcher_started_at = int(event["pid"]), str(event["started"])
            if not self.started.done():
                self.started.set_result(None)
        elif kind == "failed":
            failure = StartFailed(str(event["message"]))
            for future in (self.guarded, self.started):
                if not future.done():
                    future.set_exception(failure)
        elif kind == "breach":
            self.breaches = [*self.breaches[-9:], event]
            if self.on_breach is not None:
                self.on_breach(event)
        elif kind == "exit":
            self._has_ended(int(event["status"]))

    def _has_ended(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    def _is_gone(self) -> None:
        """The guard's process has ended; what it said last may still be in the socket."""
        while self._connection is not None:
            before = self._connection
            self._hear()
            if self._connection is before and not _readable(before):
                break
        # a guard that ended without a word was killed, and its server with it; one of an earlier hub has nobody to tell
        self.lost = not self.ended.done()
        self._has_ended(_UNKNOWN if self._adopted else -signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # a hub that is process 1 inherits guards whose spawn server ended
        self._close()
        if not self.gone.done():
            self.gone.set_result(None)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._loop.remove_reader(self._connection)
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        self._disconnect()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _readable(connection: socket.socket) -> bool:
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
