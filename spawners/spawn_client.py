"""The hub's side of the spawn servers: it starts them, asks them for servers, and hears what becomes of those.

Everything here runs in the hub's event loop and blocks it nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from marimohub.spawners.job import Job
from marimohub.spawners.servers import GuardLost, Server
from marimohub.spawners.spawn_server import COMMAND, SPAWN

READY_TIMEOUT = 120.0  # seconds to load everything, on a cold disk
GUARD_TIMEOUT = 40.0  # seconds until a guard must have come to life, on a machine that is busy
STEADY = 60.0  # seconds after which a spawn server that ends counts as its first failure
LONGEST_PAUSE = 10.0  # seconds between two starts of one that keeps failing
END_TIMEOUT = 3.0  # seconds
# the environment of the warm process; servers get one of their own, but may be able to read this one
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")


class SpawnServerFailed(Exception):
    """There is no spawn server to start anything; the text is a sentence."""


class _DiedLoading(SpawnServerFailed):
    """It ended before it was warm, and did not say why: somebody may have killed it."""


class SpawnServer:
    """One warm process for one interpreter, started when it is first needed, and again when it ends."""

    def __init__(self, python: str, preload: Sequence[str], log: logging.Logger | Any) -> None:
        self.python, self._preload, self._log = python, tuple(preload), log
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._output: deque[str] = deque(maxlen=20)
        self._ready_at = 0.0
        self._pause = 0.0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Its process, while it is ready to fork."""
        return self._process.pid if self._process is not None and self._control is not None else None

    def start_soon(self) -> None:
        """Begin to load, unless it is loaded or loading. What fails is logged, and raised by `warm_up`."""
        if self._control is None and self._starting is None:
            self._starting = self._task(self._start(0.0))

    async def warm_up(self) -> None:
        """Return when it is ready to fork. Raises SpawnServerFailed."""
        self.start_soon()
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def spawn(self, job: Job, listener: int, secrets: Mapping[str, str], log: int) -> Server:
        """Start a server. Returns when its guard lives; `Server.started` tells when it runs, after `Server.keep`.

        Args:
            listener: a listening socket; for a job with `argv`, any descriptor.
            secrets: what the server alone gets to know.
            log: where its output goes. The caller closes its own copies of the descriptors afterwards.

        Raises:
            SpawnServerFailed: twice there was nobody to do it.
            OSError: the job is too big to be sent.
        """
        for last in (False, True):
            try:
                await self.warm_up()
            except _DiedLoading:
                if last:
                    raise
                continue
            server = Server(self._log)
            try:
                self._send(server, job, listener, secrets, log)
                async with asyncio.timeout(GUARD_TIMEOUT):
                    await asyncio.shield(server.guarded)
            except (GuardLost, ConnectionError) as error:
                server.forget()
                self._log.warning("A spawn server went away with a start of %s on its way: %s", job.name, error)
            except TimeoutError:
                server.forget()
                self._log.error("The spawn server does not answer; it is ended")
                self._kill()
            except BaseException:
                server.forget()
                raise
            else:
                self._pause = 0.0  # it is good for something, so its next end is no reason to wait
                return server
            if last:
                raise SpawnServerFailed("The hub's process that starts notebook servers failed twice. Try again.")
            # what ended it is noticed in the same moment or the next
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while self._control is not None:
                        await asyncio.sleep(0.005)
        raise AssertionError("not reached")

    def _send(self, server: Server, job: Job, listener: int, secrets: Mapping[str, str], log: int) -> None:
        """Hand the server's descriptors to the spawn server, and the job to whatever it forks."""
        if self._control is None:
            raise ConnectionResetError("it has just ended")
        theirs = server.connect()
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            text = json.dumps(dict(secrets)).encode()
            if os.write(writing, text) != len(text):
                raise OSError("the secrets do not fit into a pipe")
            os.set_blocking(reading, True)
            descriptors = array("i", [theirs.fileno(), listener, reading, log])
            self._control.sendmsg([SPAWN], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            server.send(job.to_json().encode())
        finally:
            os.close(writing)
            os.close(reading)
            theirs.close()

    async def close(self) -> None:
        """End it. The servers that it has started live on."""
        self._closed = True
        process = self._process
        self._disconnect()
        if process is not None:
            try:
                async with asyncio.timeout(END_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                self._kill()
        for task in list(self._tasks):
            task.cancel()

    async def _start(self, pause: float) -> None:
        try:
            await asyncio.sleep(pause)
            await self._start_now()
        except SpawnServerFailed as error:
            self._log.error("%s", error)
            raise
        finally:
            self._starting = None

    async def _start_now(self) -> None:
        began = time.monotonic()
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self._output.clear()
        try:
            process = await asyncio.create_subprocess_exec(
                self.python,
                "-P",
                "-c",
                COMMAND,
                str(theirs.fileno()),
                str(os.getpid()),
                ",".join(self._preload),
                # HOME: nothing that is loaded now may remember a folder of the hub's user, or make one, even as root
                env={**environment, "HOME": os.devnull},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            mine.close()
            raise SpawnServerFailed(f"The interpreter {self.python} cannot be run: {error.strerror}.") from error
        finally:
            theirs.close()
        self._process = process
        reading = self._task(self._pass_output(process))
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                answer = await asyncio.get_running_loop().sock_recv(mine, 65536)
            said = json.loads(answer) if answer else {}
        except (TimeoutError, ConnectionError):
            said = {}
        except BaseException:
            mine.close()
            self._kill()
            raise
        if "ready" not in said:
            mine.close()
            self._kill()
            await asyncio.wait({reading}, timeout=1.0)
            if self._output and self._output[-1].startswith("ModuleNotFoundError: "):
                said["unusable"] = f"{self._output[-1]}. Install marimohub into it."
            if "unusable" in said:
                raise SpawnServerFailed(f"{self.python} cannot run notebook servers: {said['unusable']}")
            last = f": {self._output[-1]}" if self._output else "."
            raise _DiedLoading(
                f"The process that starts notebook servers with {self.python} ended before it could{last}"
            )
        if said["missing"]:
            self._log.info("%s has no %s; its servers do without", self.python, ", ".join(said["missing"]))
        self._control, self._ready_at = mine, time.monotonic()
        asyncio.get_running_loop().add_reader(mine, self._ended)
        self._log.info("Spawn server %i for %s is warm after %.1f s", process.pid, self.python, self._ready_at - began)

    async def _pass_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # a line without end
            async for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                self._output.append(text)
                self._log.warning("[spawn server %i] %s", process.pid, text)
        await process.wait()

    def _ended(self) -> None:
        """It says nothing after it was ready, so this is its end."""
        process = self._process
        self._disconnect()
        if self._closed:
            return
        steady = time.monotonic() - self._ready_at > STEADY
        pause, self._pause = self._pause, 0.5 if steady else min(max(self._pause * 2, 0.5), LONGEST_PAUSE)
        pause = 0.0 if steady else pause
        if process is not None:
            self._log.error("Spawn server %i has ended; running servers live on. Starting another", process.pid)
        if self._starting is None:
            self._starting = self._task(self._start(pause))

    def _disconnect(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
        self._control = None

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        """A task that is not lost, and whose failure is either awaited or has been logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()

        task.add_done_callback(done)
        return task
