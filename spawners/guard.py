"""The process that stands between the hub and one server: it starts it, watches it, and sweeps up after it.

It is forked from the spawn server, runs as the hub's user and is not confined; what it forks is. It keeps nothing of
the person's and loads nothing that the spawn server has not loaded. It outlives the hub, which finds it again by pid
and start time. Signals: SIGTERM ends the server orderly, then by force after `Job.grace` seconds; SIGUSR1 at once.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from marimohub.spawners import processes
from marimohub.spawners.cgroups import Cgroups
from marimohub.spawners.child import Handles, become
from marimohub.spawners.job import KEEP, MAX_JOB_BYTES, BadJob, Job
from marimohub.spawners.sweep import TempFolder
from marimohub.spawners.watch import Breach, Watch

JOB_TIMEOUT = 10.0  # seconds for the hub to send the job
CHECK_LOG_EVERY = 1.0  # seconds
MAX_LOG_BYTES = 32 << 20
_MOMENT = 0.02  # seconds
_PATIENCE = 5.0  # seconds to end what a server has left running
_HANDLED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
FAILED = 70  # exit status of a guard that could not do its work (EX_SOFTWARE)


def run(job: int, listener: int, secrets: int, log: int, hub_pid: int) -> NoReturn:
    """Guard one server, from reading its job to its end. Called in a fresh fork; the numbers are file descriptors."""
    status = FAILED
    try:
        gc.enable()
        os.setsid()
        os.umask(0o077)
        processes.adopt_orphans()
        processes.set_name("marimohub-guard")
        _take_log(log)
        keep = sorted({job, listener, secrets})
        for low, high in zip([2, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        status = Guard(socket.socket(fileno=job), listener, secrets, hub_pid).run()
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _take_log(log: int) -> None:
    """Output goes to the server's log, input comes from nowhere."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that made this pair of sockets."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


class Guard:
    """One server's life."""

    def __init__(self, hub: socket.socket, listener: int, secrets: int, hub_pid: int) -> None:
        self._hub: socket.socket | None = hub
        self._listener, self._secrets, self._hub_pid = listener, secrets, hub_pid
        self._asked_at: float | None = None  # when a SIGTERM came
        self._kill_now = False
        self._kept = False

    def run(self) -> int:
        """Returns the exit status: the server's own, or 128 and the number of the signal that ended it."""
        try:
            job = self._read_job()
        except (BadJob, OSError) as error:
            self._tell(event="failed", message=f"The guard of a server got no job: {error}.")
            return FAILED
        wake = self._catch_signals()
        own = os.getpid()
        self._tell(event="guard", pid=own, started=processes.process_start_time(own))
        temp = TempFolder(job.temp, job.identity)
        temp.take()
        status = self._supervise(job, wake)
        self._end_rest(job)
        self._tell(event="exit", status=status)
        temp.leave()
        return status if status >= 0 else 128 - status

    def _end_rest(self, job: Job) -> None:
        """End what the server has left running."""
        if job.cgroup is not None:
            Cgroups.remove(Path(job.cgroup))
        if processes.childless(_MOMENT):  # as a rule: what is of the server's own dies with it
            return

        def below() -> dict[int, str]:
            return processes.descendants(os.getpid())

        left = processes.end_all(below, _PATIENCE)
        if left and job.identity is not None:
            # faster than anything can fork, at the price of other servers that the same person may have
            processes.kill_all_of(job.identity.uid, job.identity.gid)
            left = processes.end_all(below, _PATIENCE)
        if left:
            print(f"[guard] processes that cannot be ended, the kernel holds them: {left}", file=sys.stderr)

    def _read_job(self) -> Job:
        """Raises BadJob, OSError."""
        assert self._hub is not None
        if peer(self._hub) != (self._hub_pid, os.getuid()):
            raise BadJob("the socket is not the hub's")
        self._hub.settimeout(JOB_TIMEOUT)
        job = Job.from_json(self._hub.recv(MAX_JOB_BYTES))
        self._hub.setblocking(False)
        return job

    def _catch_signals(self) -> int:
        """From now on signals only set marks and wake the loop. Returns the descriptor that becomes readable."""
        wake, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, self._signalled)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        return wake

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM and self._asked_at is None:
            self._asked_at = time.monotonic()
        elif number == signal.SIGUSR1:
            self._kill_now = True

    def _supervise(self, job: Job, wake: int) -> int:
        """Start the server and stay with it until it ends. Returns its exit status, or minus a signal's number."""
        launcher, link, told = self._fork(job)
        started = processes.process_start_time(launcher)
        watch: Watch | None = None
        poller = select.poll()
        for descriptor in (wake, told):
            poller.register(descriptor, select.POLLIN)
        if self._hub is not None:
            poller.register(self._hub, select.POLLIN)
        asked = False
        while True:
            pause = CHECK_LOG_EVERY if watch is None else watch.pause
            for descriptor, _ in poller.poll(pause * 1000):
                if descriptor == wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 512)
                elif descriptor == told:
                    poller.unregister(told)
                    failure = _read_all(told)
                    if failure:
                        self._tell(event="failed", message=failure)
                    else:
                        self._tell(event="started", pid=launcher, started=started)
                        watch = Watch(os.getpid(), launcher, job)
                elif self._hub is not None and descriptor == self._hub.fileno():
                    self._hear(poller)
            ended = processes.reap()
            if launcher in ended:
                link.close()
                if (
                    watch is not None
                    and ended[launcher] == -signal.SIGKILL
                    and (breach := watch.why_killed()) is not None
                ):
                    self._send(breach.to_json().encode())
                return ended[launcher]
            if self._asked_at is not None:
                if not asked:
                    os.kill(launcher, signal.SIGTERM)
                    asked = True
                self._kill_now |= time.monotonic() - self._asked_at > job.grace
            if self._kill_now:
                os.kill(launcher, signal.SIGKILL)
            elif watch is not None:
                self._check(watch, link)
            _bound_log()

    def _fork(self, job: Job) -> tuple[int, socket.socket, int]:
        """The new process, what it hears of breaches by, and the pipe that tells whether it became the server."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        mine.setblocking(False)
        told, telling = os.pipe2(os.O_CLOEXEC)
        own = os.getpid()
        # a signal that the fork takes before it is a process of its own would be lost in it
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        pid = os.fork()
        if pid == 0:
            become(job, Handles(self._listener, self._secrets, theirs.fileno(), telling), own)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        for descriptor in (self._listener, self._secrets, telling):
            os.close(descriptor)
        theirs.close()
        return pid, mine, told

    def _check(self, watch: Watch, launcher: socket.socket) -> None:
        breach = watch.check()
        self._report(breach)
        if breach is not None:
            with contextlib.suppress(OSError):
                launcher.send(breach.to_json().rstrip("\n").encode() + b"\n")

    def _report(self, breach: Breach | None) -> None:
        """Put it into the log, and tell the hub."""
        if breach is not None:
            print(f"[guard] {breach.text}", file=sys.stderr, flush=True)
            self._send(breach.to_json().encode())

    def _hear(self, poller: select.poll) -> None:
        """The hub keeps the server, or is gone."""
        assert self._hub is not None
        try:
            heard = self._hub.recv(1024)
        except (BlockingIOError, ConnectionError):
            return  # a reset is told once, before what the hub had said
        self._kept |= heard == KEEP
        if not heard:
            self._kill_now |= not self._kept
            poller.unregister(self._hub)
            self._hub.close()
            self._hub = None

    def _tell(self, **event: Any) -> None:
        self._send(json.dumps(event).encode())

    def _send(self, message: bytes) -> None:
        """Tell the hub, if it is still there and listens."""
        if self._hub is not None:
            with contextlib.suppress(OSError):
                self._hub.send(message, socket.MSG_DONTWAIT)


def _read_all(descriptor: int) -> str:
    """What is in a pipe until its end: writers write at once, or never. Closes it."""
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read()


def _bound_log() -> None:
    """Begin the log anew before it fills the disk: anybody's notebook may print without end."""
    if os.fstat(2).st_size > MAX_LOG_BYTES:
        os.ftruncate(2, 0)
        print(f"[guard] the log was longer than {MAX_LOG_BYTES >> 20} MiB and begins anew", file=sys.stderr, flush=True)
