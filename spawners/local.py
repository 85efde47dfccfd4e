"""A notebook server as a process on the hub's machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub.spawner import LocalProcessSpawner, SpawnException
from sqlalchemy.orm import object_session
from traitlets import Integer

from marimohub.spawners.marimo import LOG_TAIL_LINES, MarimoSpawner


def process_start_time(pid: int) -> str:
    """When the kernel started a process, in clock ticks since boot: with the pid, it names one process for good.

    Returns:
        "" if there is no such process, or only its zombie.
    Source: proc(5), field 22 of /proc/PID/stat; the state is field 3.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


class LocalMarimoSpawner(MarimoSpawner, LocalProcessSpawner):
    """Starts each user's server as an own process group, with its output in `<user folder>/server.log`.

    Not confined yet: every server runs with the hub's own user id, and the hub says so in its log at start.
    """

    interrupt_timeout = Integer(0, help="Not used: the server is asked to end by SIGTERM.").tag(config=True)
    term_timeout = Integer(10, help="Seconds between SIGTERM and SIGKILL at a stop.").tag(config=True)

    _started_at = ""

    if TYPE_CHECKING:  # JupyterHub's traits carry no types
        pid: int
        popen_kwargs: dict[str, Any]

    @property
    def log_path(self) -> Path:
        """The server's output since its last start."""
        return self.user_folder / "server.log"

    def make_preexec_fn(self, name: str) -> Any:
        """Runs in the child before exec: private files, and the notebooks folder as working directory."""
        folder = self.notebook_path

        def preexec() -> None:
            os.umask(0o077)
            os.chdir(folder)

        return preexec

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """HOME is set by the base; the hub's machine need not know the user."""
        env["USER"] = self.user.name
        env["SHELL"] = "/bin/bash"
        return env

    async def move_certs(self, paths: dict[str, str]) -> dict[str, str]:
        """The server runs with the hub's user id, so it reads the certificates where they are."""
        return paths

    async def start(self) -> tuple[str, int]:
        """Start the process; returns the address where it will listen."""
        await asyncio.to_thread(self.make_folders)
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self.popen_kwargs = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **self.popen_kwargs}
            address: tuple[str, int] = await super().start()
        finally:
            os.close(log)
            self.popen_kwargs = {k: v for k, v in self.popen_kwargs.items() if k not in ("stdin", "stdout", "stderr")}
        self._started_at = process_start_time(self.pid)
        self._remember()
        await self._wait_listening(*address)
        return address

    def _remember(self) -> None:
        """Store the process at once: a hub that dies before the start is complete finds it, and ends it, later."""
        self.orm_spawner.state = self.get_state()
        session = object_session(self.orm_spawner)
        if session is not None:
            session.commit()

    async def _wait_listening(self, host: str, port: int) -> None:
        """Wait until the server accepts connections.

        Raises:
            SpawnException: it ended instead; its log says why. (JupyterHub alone would wait for `http_timeout`.)
        """
        while (status := await self.poll()) is None:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
        raise SpawnException(
            "Your notebook server ended while it was starting.",
            reason="exited",
            log_message=f"The server of {self.user.name} ended with status {status} before it answered",
            status_code=500,
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Find the server of an earlier hub again: by pid and start time, since pids come round."""
        super().load_state(state)
        self._started_at = state.get("started_at", "")
        if self.pid and process_start_time(self.pid) != self._started_at:
            self.pid = 0

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self.pid:
            state["started_at"] = self._started_at
        return state

    async def _signal(self, sig: int) -> bool:
        """Signal the server; False if it is gone, or if its pid is another process by now."""
        if not self.pid or (self._started_at and process_start_time(self.pid) != self._started_at):
            return False
        return bool(await super()._signal(sig))

    async def stop(self, now: bool = False) -> None:
        """End the server and everything it started."""
        group = self.pid
        await super().stop(now=True)
        # kernels end with their server; what a user's code has left running in the group does not
        if group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def log_tail(self) -> list[str]:
        try:
            with open(self.log_path, errors="replace") as file:
                return [line.rstrip() for line in deque(file, LOG_TAIL_LINES)]
        except OSError:
            return []
