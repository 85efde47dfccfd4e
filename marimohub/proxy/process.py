"""One Envoy process: starting it, finding it again after the hub went away, and ending it.

Envoy runs in a session of its own and outlives the hub, so that nobody's connection breaks while the hub restarts.
`envoy.json` in its folder says which process it is: pid, start time (a pid alone may have been given to another
program), the fingerprint of its static configuration, and the folder it works in, whose name is a secret: notebooks
that run with the hub's own user id could connect to the admin socket in there if they knew it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import secrets
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from marimohub.proxy import bootstrap
from marimohub.proxy.bootstrap import Settings
from marimohub.proxy.errors import CannotListen, PortInUse, ProxyError, ProxyStartFailed
from marimohub.proxy.table import write_atomically

STATE_FILE = "envoy.json"
BOOTSTRAP_FILE = "bootstrap.json"
LOG_FILE = "envoy.log"
LOG_LIMIT_BYTES = 10 * 1024 * 1024
LOG_FORMAT = "%Y-%m-%dT%T.%e [%l] [%n] %v"


@dataclass(frozen=True)
class Identity:
    """Names one process for good, the folder it works in, and the address it listens on.

    The latter two are "" for one that an older version started.
    """

    pid: int
    started: str
    fingerprint: str
    run: str
    address: str = ""

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return bool(self.started) and start_time(self.pid) == self.started


def start_time(pid: int) -> str:
    """When the kernel started the process, as opaque text; "" if there is none, or only its zombie."""
    try:
        # proc(5): the name in parentheses may hold blanks; state is field 3, start time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (ProcessLookupError, FileNotFoundError):
        if Path("/proc/self/stat").exists():
            return ""
    shown = subprocess.run(  # macOS
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return "" if not shown or shown.startswith("Z") else shown.split(None, 1)[1]


def check_listenable(settings: Settings) -> None:
    """Raise PortInUse or CannotListen if Envoy could not bind its address.

    Envoy sets SO_REUSEPORT: it would share the port with another Envoy of this user and say nothing.
    """
    if settings.unix_socket:
        probe = socket.socket(socket.AF_UNIX)
        with contextlib.closing(probe), contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(settings.unix_socket)
            raise PortInUse(settings.listens_on)
        return
    family = socket.AF_INET6 if ":" in settings.ip else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.ip == "::":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((settings.ip, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(settings.listens_on) from None
            raise CannotListen(settings.listens_on, os.strerror(error.errno or 0)) from None


class EnvoyProcess:
    """The Envoy of one folder. Methods that wait are coroutines; none blocks the event loop for long."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        binary: Path,
        concurrency: int,
        log_level: str,
        drain_seconds: float = 600.0,
        others: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`others` gives the folders below `folder` that other Envoys work in."""
        self.folder = folder
        self.settings = settings
        self.log_path = folder / LOG_FILE
        self._arguments = [
            str(binary),
            "--config-path",
            bootstrap.UP + BOOTSTRAP_FILE,
            "--concurrency",
            str(concurrency),
            "--log-level",
            log_level,
            "--log-format",
            LOG_FORMAT,
            "--file-flush-interval-msec",
            "1000",
            "--log-format-escaped",  # One line for one message, so that a reader can tell them apart.
            # How long an Envoy that was replaced keeps open WebSockets; see draining.py.
            "--drain-time-s",
            str(max(1, round(drain_seconds))),
            "--drain-strategy",
            "immediate",
            # Hot restart needs shared memory under a base id that every Envoy of this machine competes for.
            "--disable-hot-restart",
        ]
        version = binary.stat()
        self.fingerprint = bootstrap.fingerprint(
            settings, *self._arguments, str(version.st_size), str(version.st_mtime_ns)
        )
        self._others = others
        self.identity: Identity | None = None
        self._run = ""
        self._child: subprocess.Popen[bytes] | None = None
        # Opened early and kept: a hub that has run out of descriptors must still be able to watch and end Envoy.
        self._pidfd: int | None = None

    @property
    def admin_socket(self) -> Path:
        """Where the Envoy that was started or adopted last is asked."""
        return self.folder / self._run / bootstrap.ADMIN_SOCKET

    def find(self) -> Identity | None:
        """The Envoy that an earlier hub left running in this folder, whatever its configuration."""
        try:
            members = json.loads((self.folder / STATE_FILE).read_text())
            identity = Identity(
                int(members["pid"]),
                str(members["started"]),
                str(members["fingerprint"]),
                Path(members.get("run", "")).name,
                str(members.get("address", "")),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ProxyStartFailed(
                f"{self.folder / STATE_FILE} is damaged ({error}). End any process named envoy, then delete the file."
            ) from error
        return identity if identity.alive() else None

    def adopt(self, identity: Identity) -> None:
        """Take over an Envoy that `find` gave."""
        self.identity = identity
        self._run = identity.run
        self._open_pidfd(identity.pid)
        if not identity.alive():  # It ended, and the descriptor may name another process of this number.
            self._forget()

    def leaves_room(self, running: Identity) -> bool:
        """Whether another Envoy can be started while that one of ours runs."""
        if not running.address or self.settings.unix_socket or running.address.startswith("/"):
            return False  # A socket's name is for one: a second Envoy would take it from the first.
        if running.address != self.settings.listens_on:
            try:
                check_listenable(self.settings)
            except ProxyError:  # perhaps all addresses instead of one, on the same port
                return False
        return True

    def start_error(self, what: str) -> ProxyError:
        """Why it does not serve, from its log; `what` says what it did instead."""
        words = self.last_words()
        if "Address already in use" in words:
            return PortInUse(self.settings.listens_on)
        return ProxyStartFailed(f"Envoy {what}. Its last words:\n{words}")

    def start(self, *, beside: Identity | None = None) -> None:
        """Start Envoy; it is not ready yet. Raises PortInUse, CannotListen, ProxyStartFailed, OSError.

        After an error `stop` ends what was started so far.

        Args:
            beside: an Envoy of ours that still runs, and may listen on the same address.
        """
        self._forget()  # the one before, which ended or is not ours to watch any more
        if beside is None or beside.address != self.settings.listens_on:
            check_listenable(self.settings)
        run = self._make_run_folder()
        document = json.dumps(bootstrap.render(self.settings), indent=1)
        write_atomically(self.folder / BOOTSTRAP_FILE, document, durable=False)
        listeners = run / bootstrap.LISTENERS_FILE
        listeners.parent.mkdir(mode=0o700)
        write_atomically(listeners, bootstrap.render_listeners(self.settings), durable=False)
        limit = run / bootstrap.ACTIVITY_LIMIT_FILE
        write_atomically(limit, bootstrap.render_activity_limit(), durable=False)
        # Not in threads: cancelled or killed in between, the hub would leave an Envoy that nobody knows. A few ms.
        try:
            child = self._child = self._spawn(run)
        except OSError as error:
            raise ProxyStartFailed(f"Envoy could not be started: {error}.") from error
        started = start_time(child.pid)
        self.identity = Identity(child.pid, started, self.fingerprint, run.name, self.settings.listens_on)
        self._open_pidfd(child.pid)
        self._remember(self.identity)
        if hasattr(resource, "prlimit"):  # Two descriptors per WebSocket; the usual soft limit is 1,024.
            with contextlib.suppress(ProcessLookupError):
                _, most = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
                resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (most, most))

    def _remember(self, identity: Identity) -> None:
        write_atomically(self.folder / STATE_FILE, json.dumps(asdict(identity)), durable=True)

    def return_to(self, identity: Identity) -> None:
        """Take over the Envoy that `start` was told to start beside, since that failed and it still serves."""
        self._remember(identity)
        self.adopt(identity)

    def _make_run_folder(self) -> Path:
        self.remove_run_folders()
        run = self.folder / f"{bootstrap.RUN_PREFIX}{secrets.token_hex(8)}"
        run.mkdir(mode=0o700)
        self._run = run.name
        return run

    def remove_run_folders(self) -> None:
        """Of Envoys that ended."""
        kept = {*self._others(), *([self._run] if self.identity else [])}
        for former in self.folder.glob(f"{bootstrap.RUN_PREFIX}*"):
            if former.name not in kept:
                shutil.rmtree(former, ignore_errors=True)
        (self.folder / bootstrap.ADMIN_SOCKET).unlink(missing_ok=True)  # an older version's

    def _spawn(self, run: Path) -> subprocess.Popen[bytes]:
        with self._open_log() as log:
            return subprocess.Popen(
                self._arguments,
                cwd=run,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )

    def _open_pidfd(self, pid: int) -> None:
        if not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError as error:
                if error.errno != errno.ENOSYS:  # Linux before 5.3, and some sandboxes
                    raise

    def _open_log(self) -> IO[bytes]:
        self.trim_log()
        return os.fdopen(os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

    def trim_log(self) -> bool:
        """Empty the log if it is over LOG_LIMIT_BYTES. Envoy appends, so it goes on writing at the start."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(self.log_path, 0)
                return True
        return False

    def alive(self) -> bool:
        """Whether the process runs; reaps it if it was our child and ended."""
        if self._child is not None:
            return self._child.poll() is None
        if self._pidfd is not None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            return not ended.poll(0)
        try:
            return self.identity is not None and self.identity.alive()
        except OSError:  # It cannot be seen now (no descriptor left); what ran a moment ago counts as running.
            return True

    def last_words(self, lines: int = 5) -> str:
        """The end of Envoy's log, for an error message."""
        with contextlib.suppress(OSError), open(self.log_path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    async def wait_ended(self, seconds: float) -> bool:
        """Wait until the process is gone, at most `seconds`; whether it is. Notices at once on Linux."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.alive():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await self._wait_exit_event(left)
        return True

    async def _wait_exit_event(self, seconds: float) -> None:
        # a descriptor for each waiter: a loop has one reader for each, and another waiter may close ours meanwhile
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = None if self._pidfd is None else os.dup(self._pidfd)
        if descriptor is None:
            await asyncio.sleep(min(seconds, 0.1))
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds)
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def stop(self, grace: float) -> None:
        """End Envoy: SIGTERM, and SIGKILL after `grace` seconds. Nothing happens if it does not run."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            if not self.alive():
                break
            self._signal(number)
            if await self.wait_ended(seconds):
                break
        else:
            raise ProxyStartFailed("Envoy could not be ended, not even by SIGKILL.")
        self._forget()
        (self.folder / STATE_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # no descriptor left to look with; the next start does it
            self.remove_run_folders()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._child is not None:
                self._child.send_signal(number)
            elif self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self.identity is not None:
                os.kill(self.identity.pid, number)

    def _forget(self) -> None:
        self.identity = None
        self._child = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
