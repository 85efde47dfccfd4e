"""Loaded by the hubs of benchmarks/spawn.py: spawners that write down how long a start took, and the plain peer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from jupyterhub.spawner import SimpleLocalProcessSpawner

TIMES = "MARIMOHUB_BENCHMARK_TIMES"  # the variable with the file to write to


def timed(base: type[Any]) -> type[Any]:
    """`base`, with a line {"user", "seconds"} per start: from its beginning until the server answers HTTP."""

    async def start(self: Any) -> Any:
        began = time.monotonic()
        ip, port = await base.start(self)
        await first_answer(ip, port, f"{self.server.base_url}api" if self.server else f"/user/{self.user.name}/api")
        line = json.dumps({"user": self.user.name, "seconds": time.monotonic() - began})
        with open(os.environ[TIMES], "a") as file:
            file.write(line + "\n")
        return ip, port

    # the name stays, so that the configuration of the base applies
    return type(base.__name__, (base,), {"start": start, "__module__": __name__})


async def first_answer(ip: str, port: int, path: str) -> None:
    """Ask without a pause until the server gives a status line."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(ip, port)
        except OSError:
            await asyncio.sleep(0.005)
            continue
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {ip}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        writer.close()
        if status.startswith(b"HTTP/"):
            return
        await asyncio.sleep(0.005)


class PlainSpawner(SimpleLocalProcessSpawner):
    """`marimo edit` as it comes, on a folder of the user's own."""

    @property
    def folder(self) -> Path:
        return Path(self.home_dir)

    def make_preexec_fn(self, name: str) -> Any:
        return lambda: os.chdir(self.folder)

    def get_args(self) -> list[str]:
        """What somebody who does without a launcher would configure."""
        options = ["--headless", "--no-token", "--skip-update-check", "-p", str(self.port)]
        return ["edit", *options, "--base-url", self.server.base_url.rstrip("/"), str(self.folder)]

    @classmethod
    def command(cls) -> list[str]:
        return [sys.executable, "-m", "marimo", "-y"]
