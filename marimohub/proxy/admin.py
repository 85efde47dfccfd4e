"""Envoy's admin interface over its Unix socket."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from pathlib import Path

from marimohub.proxy.metrics import PATH

_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less the closing NUL.


class AdminUnavailable(Exception):
    """Nobody answers on the admin socket, or not in time."""


class Admin:
    """Asks the Envoy of `socket_path`. Each call is one short connection, and gives up after `timeout` seconds."""

    def __init__(self, socket_path: Path, *, timeout: float = 2.0) -> None:
        self.socket_path = socket_path
        self.timeout = timeout

    async def get(self, path: str, *, timeout: float | None = None, method: str = "GET") -> tuple[int, str]:
        """(status, body) of an admin request; raises AdminUnavailable."""
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await self._get(path, method)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            raise AdminUnavailable(f"{self.socket_path}: {error!r}") from error

    async def _get(self, path: str, method: str) -> tuple[int, str]:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            await self._connect(connection)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            request = f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            writer.write(request.encode())
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            if "transfer-encoding: chunked" not in head.lower():
                return status, (await reader.read()).decode()
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            return status, body.decode()
        finally:
            writer.close()

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if len(os.fsencode(self.socket_path)) <= _SOCKET_PATH_BYTES:
            await loop.sock_connect(connection, str(self.socket_path))
            return
        # A deep data folder: reach the socket through an open descriptor of its folder (Linux).
        folder = os.open(self.socket_path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            await loop.sock_connect(connection, f"/proc/self/fd/{folder}/{self.socket_path.name}")
        finally:
            os.close(folder)

    async def is_live(self, *, timeout: float | None = None) -> bool:
        """Whether Envoy is initialised and not draining. Raises OSError if we have no descriptor left to ask with."""
        try:
            status, body = await self.get("/ready", timeout=timeout)
        except AdminUnavailable as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE):
                raise error.__cause__ from None  # That says nothing about Envoy, which must not be ended for it.
            return False
        return status == 200 and body.strip() == "LIVE"

    async def stats(self, pattern: str, *, timeout: float | None = None) -> dict[str, str]:
        """Statistics whose name matches the regular expression (no `&` or blanks in it).

        Raises:
            AdminUnavailable: also for one that Envoy is not set up to answer, see `bootstrap.ADMIN_PATHS`.
        """
        status, body = await self.get(f"/stats?filter={pattern}", timeout=timeout)
        if status != 200:
            raise AdminUnavailable(f"{self.socket_path}: {status} {body[:200]}")
        return dict(re.findall(r"^(\S+): (.*)$", body, re.MULTILINE))

    async def metrics(self) -> str:
        """Envoy's statistics as Prometheus reads them. Raises AdminUnavailable."""
        status, body = await self.get(PATH)
        if status != 200:
            raise AdminUnavailable(f"{self.socket_path}: {status} {body[:200]}")
        return body
