"""A launcher that gets its socket and secrets from a guard, as the local spawner starts it, and cells to run in it."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.singleuser.conftest import Browser, Page
from tests.singleuser.server import Server

# As a confined server of a shared user runs: no Unix socket by a name.
CONFINED = """
import ctypes, platform, sys
from marimohub.spawners import seccomp
filter_ = seccomp.program(
    platform.machine(), datagrams=True, unix_sockets=False, shared_user=True, truncate=True, affinity=True)
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
seccomp.install(filter_)
from marimohub.singleuser import launcher
sys.exit(launcher.main())
"""
PLAIN = "import sys; from marimohub.singleuser import launcher; sys.exit(launcher.main())"


@dataclass
class Handed(Server):
    """See the module. `guard` is the guard's end of the socket on which it tells what it has killed."""

    guard: socket.socket | None = None

    def environment(self) -> dict[str, str]:
        found = super().environment()
        return {name: value for name, value in found.items() if not name.endswith("API_TOKEN")}

    def start(self, timeout: float = 30.0) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.hub.server_origin = f"http://127.0.0.1:{self.port}"
        for folder in (self.folder, self.root / "home", self.root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        self.guard, theirs = socket.socketpair()
        pipe, writing = os.pipe()
        os.write(writing, json.dumps({"JUPYTERHUB_API_TOKEN": self.hub.server_token}).encode())
        os.close(writing)
        handed = {"LISTEN": listener.fileno(), "SECRETS": pipe, "GUARD": theirs.fileno()}
        filtered = platform.machine() in ("x86_64", "aarch64")
        with (self.root / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", CONFINED if filtered else PLAIN],
                env=self.environment() | {f"MARIMOHUB_{name}_FD": str(number) for name, number in handed.items()},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=list(handed.values()),
                start_new_session=True,
            )
        listener.close()
        theirs.close()
        os.close(pipe)
        self.wait(timeout)

    def tell(self, **breach: Any) -> None:
        """Say what a guard says of a limit that was exceeded."""
        assert self.guard is not None
        line = {"event": "breach", "kind": "memory", "limit": 1 << 30, "used": 1 << 30, "text": "x"} | breach
        self.guard.sendall(json.dumps(line).encode() + b"\n")


class Cells:
    """A notebook whose only cell runs one piece of code after the other."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._said: list[str] = []
        self._running = False

    @classmethod
    async def open(cls, browser: Browser, name: str) -> Cells:
        page = await browser.open(name)
        await page.connect()
        return cls(page)

    async def start(self, code: str) -> None:
        """Run code, wait for nothing."""
        self._said, self._running = [], False
        status, text = await self.page.post("api/kernel/run", {"cellIds": self.page.cells[:1], "codes": [code]})
        assert status == 200, text

    async def run(self, code: str) -> str:
        """What code printed and what it failed with."""
        await self.start(code)
        return await self.finished()

    async def finished(self) -> str:
        """Wait for the end of what runs; what it printed, without the tags of a traceback."""
        async with asyncio.timeout(60):
            while await self._next() != "idle" or not self._running:
                pass
        return re.sub(r"<[^>]+>", "", "".join(self._said)).strip()

    async def until_printed(self, text: str) -> None:
        async with asyncio.timeout(60):
            while text not in "".join(self._said):
                await self._next()

    async def _next(self) -> str | None:
        """Take one message about the cell: its status, if that has changed."""
        found = await self.page.until("cell-op", timeout=30)
        console = found.get("console") or []
        for part in console if isinstance(console, list) else [console]:
            self._said.append(str(part["data"]))
        output = found.get("output") or {}
        if output.get("channel") == "marimo-error":
            self._said.append(json.dumps(output["data"]))
        status: str | None = found.get("status")
        self._running = self._running or status == "running"
        return status

    async def pid(self) -> int:
        return int(await self.run("import os; print(os.getpid())"))
