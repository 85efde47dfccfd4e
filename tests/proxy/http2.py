"""A client of HTTP/2 that sends any bytes as headers: what a library would refuse to send is what the tests are about.

Source: RFC 9113 (frames), RFC 7541 (HPACK; nothing is compressed here, and of answers only `:status` is read).
"""

from __future__ import annotations

import asyncio
import ssl

from tests.proxy.conftest import Answer

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK, PADDED = 1, 4, 1, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = list[tuple[bytes, bytes]]
_STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, length = len(text) - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + text


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """Header fields as a block, each literal and not indexed."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _digits(coded: bytes) -> str:
    """Huffman-coded digits."""
    bits, found = "".join(f"{byte:08b}" for byte in coded), ""
    while len(bits) >= 5 and not (len(bits) < 8 and set(bits) == {"1"}):
        short = int(bits[:5], 2) < 3
        found += str(int(bits[:5], 2) if short else int(bits[:6], 2) - 0x16)
        bits = bits[5 if short else 6 :]
    return found


def _status(block: bytes) -> int:
    while block[0] & 0xE0 == 0x20:  # the size of a table that is not used
        block = block[1:]
    if block[0] & 0x80:
        return _STATUSES[block[0] & 0x7F]
    assert block[0] & 0x3F in _STATUSES, "an answer begins with its status"
    length = block[1] & 0x7F
    text = block[2 : 2 + length]
    return int(_digits(text) if block[1] & 0x80 else text)


class Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._stream = -1
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"\0\1\0\0\0\0"))  # no table of headers

    @classmethod
    async def open(cls, port: int, certificate: str) -> Connection:
        context = ssl.create_default_context(cafile=certificate)
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        return cls(reader, writer)

    async def ask(self, *headers: tuple[bytes, bytes], body: bytes | None = None) -> Answer | None:
        """The answer, or None if the stream or the connection was reset."""
        self._stream += 2
        flags = END_HEADERS | (END_STREAM if body is None else 0)
        self._writer.write(frame(HEADERS, flags, self._stream, fields(*headers)))
        if body is not None:
            self._writer.write(frame(DATA, END_STREAM, self._stream, body))
        async with asyncio.timeout(10):
            return await self._answer()

    async def _answer(self) -> Answer | None:
        status, content = 0, b""
        while True:
            try:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == SETTINGS and not flags & ACK:
                self._writer.write(frame(SETTINGS, ACK, 0, b""))
            elif kind == GOAWAY:
                return None
            elif stream != self._stream:
                continue
            elif kind == RST_STREAM and not (status and payload == b"\0\0\0\0"):
                return None
            elif kind == HEADERS and not status:
                status = _status(payload)
            elif kind == DATA:
                content += payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return Answer(status, {}, content)

    def close(self) -> None:
        self._writer.close()


def request(
    path: bytes, *more: tuple[bytes, bytes], method: bytes = b"GET", host: bytes = b"hub"
) -> tuple[tuple[bytes, bytes], ...]:
    """The header fields of an ordinary request, and more."""
    return (b":method", method), (b":scheme", b"https"), (b":authority", host), (b":path", path), *more
