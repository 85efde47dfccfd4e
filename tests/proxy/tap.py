"""Servers that believe whatever reaches them and write it down, as the weakest server behind a proxy would."""

from __future__ import annotations

import asyncio
import json

HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


class Tap:
    """Answers each request with its name and what it was asked, and every WebSocket handshake with a yes.

    Attributes:
        received: all bytes that ever reached it.
        asked: the first line of each request, as this server understood the bytes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = b""
        self.asked: list[str] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> Tap:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def forget(self) -> None:
        self.received, self.asked = b"", []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.received += head
                await self._answer(head.decode("latin-1"), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.rstrip("\r\n").split("\r\n")
        self.asked.append(first)
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        told = {"server": self.name, "uri": first.split(" ")[1], "headers": headers}
        if headers.get("upgrade") == ["websocket"] and "/refuse" not in first:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
            writer.write(f"X-Told: {json.dumps(told)}\r\n\r\n".encode("latin-1"))
            rest = await reader.read()
            self.received += rest
            raise ConnectionError
        if "/refuse" in first:  # without a look at the body, as some servers do
            writer.write(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
            await self._body(headers, reader)
            return
        body = await self._body(headers, reader)
        answer = json.dumps({**told, "body": body.decode("latin-1")}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
        writer.write(head.encode() + answer)

    async def _body(self, headers: dict[str, list[str]], reader: asyncio.StreamReader) -> bytes:
        body = b""
        if "transfer-encoding" in headers:
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            while (line := await reader.readline()) != b"\r\n":
                self.received += line  # trailers
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"][0]))
        self.received += body
        return body

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
