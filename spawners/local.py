"""A notebook server as confined processes on the hub's machine, forked from a warm one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub.spawner import Spawner, SpawnException
from jupyterhub.utils import fmt_ip_url, make_ssl_context
from sqlalchemy.orm import object_session
from traitlets import Float, default

from marimohub.singleuser.settings import SECRETS
from marimohub.spawners import endings, ports
from marimohub.spawners.answers import first_answer
from marimohub.spawners.cgroups import CgroupError
from marimohub.spawners.confinement import CannotConfine, Places
from marimohub.spawners.identities import IdentityError
from marimohub.spawners.job import Identity, Job
from marimohub.spawners.local_settings import LocalSettings
from marimohub.spawners.marimo import LOG_TAIL_LINES, folder_name
from marimohub.spawners.pool import Pool
from marimohub.spawners.ports import NoPort
from marimohub.spawners.processes import process_start_time
from marimohub.spawners.servers import GuardLost, Server, StartFailed
from marimohub.spawners.spawn_client import SpawnServerFailed

COMMAND = [sys.executable, "-m", "marimohub.singleuser"]
_END = 5.0  # seconds for what is left to do when a server has ended, or was told to at once


class LocalMarimoSpawner(LocalSettings, Spawner):
    """Starts each server by a fork of a process that has loaded everything, confined and limited.

    Each has a guard, which is what `poll` and `stop` speak of: it lives as long as anything of the server does, and
    longer than the hub, which finds it again by its pid and start time. Output goes to `<user folder>/server.log`.
    """

    term_timeout = Float(
        10.0, min=0.0, help="How long a server may take to end by itself when it is stopped, in seconds."
    ).tag(config=True)

    _guarded: Server | None = None
    _identity: Identity | None = None
    _uid: int | None = None  # the identity's, also after the hub was started again
    _cgroup: str | None = None
    _own_port = 0  # the port, if it is not from the configuration
    _status = 0  # JupyterHub's word for a server that is gone and did not say how
    _answered = False
    _stopping = False
    _telling: asyncio.Task[None] | None = None

    if TYPE_CHECKING:  # JupyterHub's traits carry no types
        port: int
        _stop_pending: bool

    @default("cmd")
    def _cmd_default(self) -> list[str]:
        return list(COMMAND)

    # what the hub does with all of them

    @classmethod
    async def warm_up(cls, hub: Any) -> None:
        """Begin to load what servers need, so that the first one need not wait; returns before it is loaded."""
        spawner = cls(config=hub.config)
        pool = cls._pool(hub.log)
        await pool.prepare_cgroups(spawner.users_dir)
        pool.spawn_server(sys.executable, spawner.preload).start_soon()

    @classmethod
    async def close(cls) -> None:
        """End the warm processes. Servers live on."""
        pool, LocalSettings.pool = LocalSettings.pool, None
        if pool is not None:
            await pool.close()

    # one server's surroundings

    @property
    def log_path(self) -> Path:
        """The server's output since its last start."""
        return self.user_folder / (f"server-{folder_name(self.name)}.log" if self.name else "server.log")

    @property
    def temp_folder(self) -> Path:
        """The person's temp folder: emptied when their last server has ended."""
        return self.user_folder / "tmp"

    def make_folders(self) -> None:
        """Make the person's folders, owned by whom their servers run as. Blocks. Raises IdentityError."""
        self._identity = self.identities.of(self.user_folder)
        self._uid = self._identity.uid if self._identity is not None else None

    def get_env(self) -> dict[str, str]:
        """As the base; the hub's machine need not know the user."""
        env = super().get_env()
        env["USER"] = env["LOGNAME"] = self.user.name
        env["SHELL"] = "/bin/bash"
        env["TMPDIR"] = str(self.temp_folder)
        if self.limits.memory is not None:
            env["MARIMOHUB_MEMORY_LIMIT"] = str(self.limits.memory)
        return {name: str(value) for name, value in env.items()}

    def _job(self, env: dict[str, str], argv: tuple[str, ...] | None) -> Job:
        """Blocks. Raises CannotConfine."""
        own = (self.home_path, self.notebook_path, self.temp_folder)
        confined = None
        if self.sandbox == "on":
            places, port = Places(own, self.snapshot_folder), None if argv is None else self.port
            confined = self.rules.sandbox(self.interpreter, places, env["JUPYTERHUB_API_URL"], port)
        return Job(
            name=f"{self.user.name}/{self.name}".rstrip("/"),
            argv=argv,
            env=env,
            folder=str(self.notebook_path),
            temp=str(self.temp_folder),
            disk_folders=tuple(map(str, own)),
            identity=self._identity,
            sandbox=confined,
            limits=self.limits,
            cgroup=self._cgroup,
            grace=self.term_timeout,
        )

    # start

    async def start(self) -> tuple[str, int]:
        """Start the server; returns its address once it answers.

        Raises:
            SpawnException: it could not be started, or ended.
        """
        began = time.monotonic()
        self._answered = self._stopping = False
        pool = self._pool(self.log)
        try:
            await pool.settled(self.user_folder)
            await pool.prepare_cgroups(self.users_dir)
            await asyncio.to_thread(self.make_folders)
            self._cgroup = await pool.make_cgroup(self._log_name, self.limits)
            with self._handed_over() as (listener, log):
                server = await self._spawn(pool, listener, log)
            self._hold(server)
            self._remember()
            server.keep()
            await asyncio.shield(server.started)
        except (CannotConfine, CgroupError, NoPort, SpawnServerFailed, StartFailed, GuardLost) as error:
            raise _refused(str(error), type(error).__name__) from error
        except IdentityError as error:
            raise _refused(error.message, "IdentityError") from error
        host = self.ip or "127.0.0.1"
        prepared = time.monotonic()
        await self._wait_for_answer(server, host)
        self._answered = True
        answered = time.monotonic()
        self.log.info(
            "The server of %s runs as process %i: started in %.0f ms, answered after %.0f ms",
            self._log_name,
            server.launcher,
            (prepared - began) * 1000,
            (answered - began) * 1000,
        )
        return host, self.port

    @contextlib.contextmanager
    def _handed_over(self) -> Iterator[tuple[int, int]]:
        """The socket that the server gets, already listening, and its log. Sets the port. Raises NoPort."""
        log = os.open(
            self.log_path,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        try:
            fixed = self.port not in (0, self._own_port)
            listener = ports.listen(self.ip or "127.0.0.1", (self.port, self.port) if fixed else tuple(self.port_range))
            with listener:
                self.port = listener.getsockname()[1]
                self._own_port = 0 if fixed else self.port
                if self.cmd == COMMAND:
                    yield listener.fileno(), log
            if self.cmd != COMMAND:  # it listens itself
                with open(os.devnull) as nothing:
                    yield nothing.fileno(), log
        finally:
            os.close(log)

    async def _spawn(self, pool: Pool, listener: int, log: int) -> Server:
        env = self.get_env()
        secrets = {name: env.pop(name) for name in SECRETS if name in env}
        argv = None if self.cmd == COMMAND else (*self.cmd, *self.get_args())
        job = await asyncio.to_thread(self._job, env, argv)
        spawn_server = pool.spawn_server(self.interpreter if argv is None else sys.executable, self.preload)
        return await spawn_server.spawn(job, listener, secrets, log)

    def _hold(self, server: Server) -> None:
        self._guarded = server
        server.ended.add_done_callback(lambda _: self._on_end(server))
        server.gone.add_done_callback(lambda _: self._on_gone(server))

    def _remember(self) -> None:
        """Store the guard at once: a hub that dies before the start is complete finds it again."""
        self.orm_spawner.state = self.get_state()
        session = object_session(self.orm_spawner)
        if session is not None:
            session.commit()

    async def _wait_for_answer(self, server: Server, host: str) -> None:
        """JupyterHub alone would wait for `http_timeout`, also for a server that has ended. Raises SpawnException."""
        tls = make_ssl_context(**self.cert_paths) if self.internal_ssl else None
        path = f"{self.server.base_url}api" if self.server else "/api"
        asking = asyncio.create_task(first_answer(host, self.port, path, tls))
        try:
            both: set[asyncio.Future[Any]] = {asking, server.ended}
            await asyncio.wait(both, timeout=self.http_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
        if server.ended.done():
            status = server.ended.result()
            raise SpawnException(
                "Your notebook server ended while it was starting.",
                reason="exited",
                log_message=f"The server of {self._log_name} ended with status {status} before it answered",
                status_code=500,
            )
        if not asking.done():
            raise SpawnException(
                f"Your notebook server did not answer within {self.http_timeout} seconds.",
                reason="timeout",
                status_code=500,
            )

    # state

    async def get_url(self) -> str:
        """Also of a server whose hub died while it was starting."""
        if self._own_port and self.server:
            scheme = "https" if self.internal_ssl else "http"
            return f"{scheme}://{fmt_ip_url(self.ip or '127.0.0.1')}:{self._own_port}{self.server.base_url}"
        url: str = await super().get_url()
        return url

    def load_state(self, state: dict[str, Any]) -> None:
        """Find the server of an earlier hub again: by pid and start time, since pids come round."""
        super().load_state(state)
        if "pid" not in state:
            return
        if "launcher" not in state:
            self._end_old(int(state["pid"]), str(state.get("started_at", "")))
            return
        server = Server.adopt(self.log, state)
        if server is None:
            self.ended_because = endings.UNSEEN
            return
        self._own_port = int(state.get("port", 0))
        self.port = self._own_port or self.port
        self._cgroup, self._uid = state.get("cgroup"), state.get("uid")
        self._answered = True
        self._pool(self.log).keep_cgroup(self._cgroup)
        self._hold(server)

    def _end_old(self, pid: int, started_at: str) -> None:
        """End a server of a hub before this version: it has no guard, and is not confined."""
        if started_at and process_start_time(pid) == started_at:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.ended_because = "Your notebook server was ended, because the hub was updated. Open the notebook again."

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self._guarded is not None and not self._guarded.ended.done():
            state.update(self._guarded.state(), port=self._own_port, cgroup=self._cgroup, uid=self._uid)
        return state

    def clear_state(self) -> None:
        super().clear_state()
        self._guarded = None
        if self.port == self._own_port:
            self.port = self._own_port = 0

    async def poll(self) -> int | None:
        """None while the server runs; else its exit status, minus a signal's number, or 0 if that is not known."""
        if self._guarded is None:
            return self._status
        if not self._guarded.ended.done():
            return None
        self._status = self._guarded.ended.result()
        return self._status

    def add_poll_callback(self, callback: Any, *args: Any, **kwargs: Any) -> None:
        """As the base; a server that has ended before is told of as well."""
        super().add_poll_callback(callback, *args, **kwargs)
        if self._guarded is not None and self._guarded.ended.done():
            self._on_end(self._guarded)

    def _on_end(self, server: Server) -> None:
        """The server ended: have the hub hear of it now, not when it polls next."""
        if self._guarded is not server or self._stopping or not self._answered:
            return
        if self.ended_because is None:
            status = None if server.lost else server.ended.result()
            self.ended_because = endings.because(status, server.breaches, server.launcher)
            self.log.warning("Server of %s: %s", self._log_name, self.ended_because)
        if self._callbacks and not self._stop_pending:
            self._stop_pending = True  # nobody is to be sent there any more
            self._telling = asyncio.get_running_loop().create_task(self._tell_end())

    async def _tell_end(self) -> None:
        try:
            await self.poll_and_notify()
        finally:
            self._stop_pending = False

    def _on_gone(self, server: Server) -> None:
        """Its guard is gone. One that was killed could not clear up."""
        if not server.lost:
            return
        others = any(
            other is not self and getattr(other, "_guarded", None) is not None and not other._guarded.ended.done()
            for other in self.user.spawners.values()
        )
        self._pool(self.log).clear_up(self.user_folder, None if others else self._uid, self._cgroup)

    async def stop(self, now: bool = False) -> None:
        """End the server and everything it started; return when all of it is gone."""
        server = self._guarded
        if server is None:
            return
        self._stopping = True
        steps = ((server.terminate, self.term_timeout + _END), (server.kill, _END), (server.kill_guard, _END))
        for act, patience in steps[now:]:
            act()
            await asyncio.wait([server.gone], timeout=patience)
            if server.gone.done():
                await self._pool(self.log).settled(self.user_folder)
                return
        self.log.error("The server of %s does not end: see process %i", self._log_name, server.pid)

    # for administrators

    def describe_server(self) -> dict[str, Any]:
        """See the base; `launcher_pid` is the server itself below its guard."""
        server = self._guarded
        running = server is not None and not server.ended.done()
        folders = (self.home_path, self.notebook_path, self.temp_folder)
        return {
            "root_pid": server.pid if server is not None and running else 0,
            "launcher_pid": server.launcher if server is not None and running else 0,
            "disk_folders": [str(folder) for folder in folders],
        }

    def log_tail(self) -> list[str]:
        try:
            with open(self.log_path, errors="replace", opener=_no_links) as file:
                return [line.rstrip() for line in deque(file, LOG_TAIL_LINES)]
        except OSError:
            return []


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _refused(sentence: str, reason: str) -> SpawnException:
    return SpawnException(sentence, reason=reason, log_message=sentence, status_code=503)
