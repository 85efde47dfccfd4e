"""No bytes of one request are taken for another one, and no header is made out of something else."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.proxy import http2
from tests.proxy.http2 import Fields
from tests.proxy.tap import HANDSHAKE
from tests.proxy.test_paths import Served, port, served

__all__ = ["served"]  # the fixture

GET = b"GET /user/alice/ HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /user/alice/ HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SOCKET = "\r\n".join(HANDSHAKE).encode() + b"\r\n"
NEXT = b"GET /user/alice2/smuggled HTTP/1.1\r\nHost: h\r\nX-Real-Ip: 9.9.9.9\r\n\r\n"

HIDDEN = NEXT.replace(b"X-Real-Ip: 9.9.9.9\r\n", b"")

# bytes that are refused: no server sees the hidden request
REFUSED = {
    "length and chunks": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + NEXT,
    "blank before the colon": POST + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "unknown encoding": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "two encodings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + NEXT,
    "list of encodings": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "length with a sign": POST + b"Content-Length: +5\r\n\r\nabcde" + NEXT,
    "list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nabcde" + NEXT,
    "the same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde" + NEXT,
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nabcde" + NEXT,
    "hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\nabcde" + NEXT,
    "length with a blank": POST + b"Content-Length: 5 5\r\n\r\nabcde" + NEXT,
    "length over 64 bits": POST + b"Content-Length: 18446744073709551621\r\n\r\nabcde" + NEXT,
    "empty length": POST + b"Content-Length: \r\n\r\nabcde" + NEXT,
    "negative length": POST + b"Content-Length: -5\r\n\r\nabcde" + NEXT,
    "negative chunk": CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n" + NEXT,
    "hexadecimal chunk": CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n" + NEXT,
    "chunk over 64 bits": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nabcde\r\n0\r\n\r\n" + NEXT,
    "chunks ended by LF": CHUNKED + b"5\nabcde\n0\n\n" + NEXT,
    "LF in a chunk's extension": CHUNKED + b"5;a\nb\r\nabcde\r\n0\r\n\r\n" + NEXT,
    "chunk longer than said": CHUNKED + b"5\r\nabcdeXX0\r\n\r\n" + NEXT,
    "NUL in a header": GET + b"X-A: b\0c\r\n\r\n" + NEXT,
    "folded first header": b"GET /user/alice/ HTTP/1.1\r\n X-A: b\r\nHost: h\r\n\r\n" + NEXT,
    "blank in a name": GET + b"X A: b\r\n\r\n" + NEXT,
    "no name": GET + b": b\r\n\r\n" + NEXT,
    "no colon": GET + b"X-A\r\n\r\n" + NEXT,
    "two targets": b"GET /user/alice/ /user/alice2/ HTTP/1.1\r\nHost: h\r\n\r\n" + NEXT,
    "slash in a method": b"GET/ /user/alice/ HTTP/1.1\r\nHost: h\r\n\r\n" + NEXT,
    "HTTP/0.9": b"GET /user/alice/\r\n\r\n" + NEXT,
    "HTTP/1.2": b"GET /user/alice/ HTTP/1.2\r\nHost: h\r\n\r\n" + NEXT,
    "HTTP/2.0 in words": b"GET /user/alice/ HTTP/2.0\r\nHost: h\r\n\r\n" + NEXT,
    "http/1.1": b"GET /user/alice/ http/1.1\r\nHost: h\r\n\r\n" + NEXT,
    "no host": b"GET /user/alice/ HTTP/1.1\r\n\r\n" + NEXT,
    "empty host": b"GET /user/alice/ HTTP/1.1\r\nHost:\r\nX-Forwarded-Host: evil\r\n\r\n",
    "two hosts": GET + b"Host: evil\r\n\r\n",
    "host with a path": b"GET /user/alice/ HTTP/1.1\r\nHost: h/user/alice2/\r\n\r\n",
    "host with a user": b"GET /user/alice/ HTTP/1.1\r\nHost: a@h\r\n\r\n",
    "host with a blank": b"GET /user/alice/ HTTP/1.1\r\nHost: a h\r\n\r\n",
    "https by plain text": b"GET https://h/user/alice/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "another scheme": b"GET ftp://h/user/alice/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "no path": b"GET http://h?/user/alice/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "a tunnel": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
    "a tunnel by a path": b"CONNECT /user/alice/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "the whole server": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "upgrade to TLS": GET + b"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n",
    "two upgrades": GET + b"Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
    "handshake of the hub with a body": b"POST /hub/ws HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n"
    + SOCKET
    + b"\r\nabcde",
}

# bytes that are one request, or two: what each server is asked
UNDERSTOOD = {
    "body of a GET": (GET + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, ["GET /user/alice/"]),
    "chunk's extension": (CHUNKED + b"5;a=b\r\nabcde\r\n0\r\n\r\n", ["POST /user/alice/"]),
    "LF as an end of line": (GET.replace(b"\r", b"") + b"X-A: b\n\n", ["GET /user/alice/"]),
    "CR in a header": (GET + b"X-A: b\rX-Real-Ip: 9.9.9.9\r\n\r\n", ["GET /user/alice/"]),
    "folded header": (GET + b"X-A: b\r\n X-Real-Ip: 9.9.9.9\r\n\r\n", ["GET /user/alice/"]),
    "LF in a header": (GET + b"X-A: b\nX-Real-Ip: 9.9.9.9\r\n\r\n", ["GET /user/alice/"]),
    "tabs": (b"GET\t/user/alice/\tHTTP/1.1\r\nHost: h\r\n\r\n", ["GET /user/alice/"]),
    "empty lines first": (b"\r\n\r\n" + GET + b"\r\n", ["GET /user/alice/"]),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\nX-Real-Ip: 9.9.9.9\r\n\r\n", ["POST /user/alice/"]),
    "underscores": (POST + b"Content_Length: 5\r\nX_Real_Ip: 9.9.9.9\r\n\r\n", ["POST /user/alice/"]),
    "HTTP/2 by an upgrade": (GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", ["GET /user/alice/"]),
    "one after the other": (GET + b"\r\n" + NEXT, ["GET /user/alice/", "GET /user/alice2/smuggled"]),
}


async def send(served: Served, content: bytes, answers: int = 1) -> tuple[list[int], bytes]:
    """Statuses and text of so many answers on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port(served.table))
    writer.write(content)
    found = b""
    async with asyncio.timeout(10):
        while len(re.findall(rb"\r\n\r\n", found)) < answers and (more := await reader.read(65536)):
            found += more
    writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", found)], found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", REFUSED)
async def test_ambiguous_bytes_are_refused(served: Served, name: str) -> None:
    served.forget()
    statuses, _ = await send(served, REFUSED[name])
    assert len(statuses) == 1 and 400 <= statuses[0] <= 503
    bodies = [line for tap in served.taps.values() for line in tap.asked]
    assert bodies in ([], ["POST /user/alice/ HTTP/1.1"]), "a body's beginning may have arrived, nothing after it"
    everything = b"".join(tap.received for tap in served.taps.values())
    assert b"smuggled" not in everything and b"9.9.9.9" not in everything


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_what_is_understood_arrives_as_envoy_understood_it(served: Served, name: str) -> None:
    content, asked = UNDERSTOOD[name]
    served.forget()
    statuses, _ = await send(served, content, len(asked))
    assert statuses == [200] * len(asked)
    assert [line.rpartition(" ")[0] for tap in served.taps.values() for line in tap.asked] == asked
    everything = b"".join(tap.received for tap in served.taps.values()).lower()
    assert b"\nx-real-ip:" not in everything and b"x_real_ip" not in everything
    assert b"upgrade" not in everything


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ["/user/alice/refuse", "/hub/refuse", "/user/alice/refuse#", "/hub/api/refuse"])
@pytest.mark.parametrize("more", ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_nothing_follows_a_handshake_that_was_refused(served: Served, path: str, more: str) -> None:
    served.forget()
    head = f"GET {path} HTTP/1.1\r\nHost: h\r\n{more}".encode() + SOCKET + b"\r\n"
    _, text = await send(served, head + NEXT)
    assert b" 101 " not in text
    assert b"smuggled" not in b"".join(tap.received for tap in served.taps.values())
    for _ in range(3):  # the next requests are whole
        statuses, answer = await send(served, GET + b"\r\n")
        assert statuses == [200]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["server"] == "alice"


def http_2(*more: tuple[bytes, bytes], path: bytes = b"/user/alice/", **options: bytes) -> Fields:
    return list(http2.request(path, *more, **options))


IN_HTTP_2: dict[str, Fields] = {
    "line break in a value": http_2((b"x-a", b"b\r\nx-real-ip: 9.9.9.9")),
    "line break in a name": http_2((b"x-a\r\nb", b"c")),
    "LF in a value": http_2((b"x-a", b"b\nc")),
    "NUL in a value": http_2((b"x-a", b"b\0c")),
    "capitals in a name": http_2((b"X-A", b"b")),
    "colon in a name": http_2((b"x-a:", b"b")),
    "no name": http_2((b"", b"b")),
    "blank in a name": http_2((b"x a", b"b")),
    "line break in the path": http_2(path=b"/user/alice/ HTTP/1.1\r\nX-A: b\r\n\r\nGET /user/alice2/smuggled"),
    "blank in the path": http_2(path=b"/user/alice/ /user/alice2/"),
    "tab in the path": http_2(path=b"/user/alice/\t"),
    "line break in the method": http_2(method=b"GET /user/alice2/smuggled HTTP/1.1\r\nHost: h\r\n\r\nGET"),
    "blank in the method": http_2(method=b"G ET"),
    "no method": http_2(method=b""),
    "line break in the host": http_2(host=b"h\r\nX-A: b"),
    "path in the host": http_2(host=b"h/user/alice2"),
    "user in the host": http_2(host=b"a@h"),
    "chunks": http_2((b"transfer-encoding", b"chunked")),
    "connection": http_2((b"connection", b"x-forwarded-for")),
    "te": http_2((b"te", b"trailers, chunked")),
    "two paths": http_2((b":path", b"/user/alice2/")),
    "path after a header": http_2((b"x-a", b"b"), (b":path", b"/user/alice2/")),
    "no path": http_2()[:3],
    "empty path": http_2(path=b""),
    "star": http_2(path=b"*"),
    "the whole server": http_2(path=b"*", method=b"OPTIONS"),
    "unknown pseudo-header": http_2((b":x", b"y")),
    "upgrade": http_2((b"upgrade", b"websocket"), (b"connection", b"upgrade")),
    "a WebSocket of RFC 8441": http_2((b":protocol", b"websocket"), method=b"CONNECT"),
    "a tunnel": [(b":method", b"CONNECT"), (b":authority", b"127.0.0.1:22")],
    "shorter than the body": http_2((b"content-length", b"3"), method=b"POST"),
    "longer than the body": http_2((b"content-length", b"50"), method=b"POST"),
    "two lengths": http_2((b"content-length", b"5"), (b"content-length", b"3"), method=b"POST"),
}


@pytest.mark.asyncio(loop_scope="module")
async def test_malformed_http_2_is_refused(served: Served) -> None:
    served.forget()

    async def ask(fields: Fields) -> int:
        connection = await http2.Connection.open(port(served.tls), served.certificate)
        # the body is what a careless proxy would send as a request of its own
        answer = await connection.ask(*fields, body=NEXT[:5])
        connection.close()
        return answer.status if answer else 400

    statuses = await asyncio.gather(*map(ask, IN_HTTP_2.values()))
    assert [name for name, status in zip(IN_HTTP_2, statuses, strict=True) if not 400 <= status <= 503] == []
    heard = {line for tap in served.taps.values() for line in tap.asked}
    assert heard <= {"POST /user/alice/ HTTP/1.1"}, "the beginning of a body that turned out shorter than said"
    assert b"smuggled" not in b"".join(tap.received for tap in served.taps.values())


@pytest.mark.asyncio(loop_scope="module")
async def test_host_of_http_2_is_the_authority(served: Served) -> None:
    connection = await http2.Connection.open(port(served.tls), served.certificate)
    answer = await connection.ask(*http_2((b"host", b"evil")))
    connection.close()
    assert answer is not None
    headers = answer.json["headers"]
    assert (headers["host"], headers["x-forwarded-host"]) == (["hub"], ["hub"])
