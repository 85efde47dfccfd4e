"""Whether a server answers HTTP yet."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1  # seconds between tries


async def first_answer(host: str, port: int, path: str, tls: ssl.SSLContext | None = None) -> None:
    """Ask until the server gives a status line, whatever it says."""
    pause = FIRST_PAUSE
    while not await _answers(host, port, path, tls):
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def _answers(host: str, port: int, path: str, tls: ssl.SSLContext | None) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=host if tls else None)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/")
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
