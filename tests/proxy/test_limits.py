"""What one client may use: requests per second to the hub, connections that do nothing, memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Callable

import pytest
from tornado import httpserver, iostream, netutil, web
from tornado.websocket import websocket_connect

from marimohub.proxy import EnvoyProxy, limits
from tests.proxy.conftest import Answer, Hubs, Upstream, raw, started

Start = Callable[..., Upstream]
MB = 1024 * 1024


def port(proxy: EnvoyProxy) -> int:
    return int(proxy.public_url.rsplit(":", 1)[1].strip("/"))


async def ask(proxy: EnvoyProxy, client: str, target: str = "/hub/home", *headers: str, method: str = "GET") -> Answer:
    """As a load balancer in front would pass it on."""
    return await raw(proxy, target, f"X-Forwarded-For: {client}", *headers, method=method)


async def statuses(proxy: EnvoyProxy, count: int, client: str, target: str, *, method: str = "GET") -> Counter[int]:
    answers = await asyncio.gather(*(ask(proxy, client, target, method=method) for _ in range(count)))
    return Counter(answer.status for answer in answers)


async def test_too_many_requests_of_one_client_to_the_hub_are_refused(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, trusted_hops=1, hub_requests_per_second=1)
    found = await statuses(proxy, 100, "203.0.113.7", "/hub/home")
    assert found.keys() == {200, 429}
    assert found[200] >= limits.BURST_SECONDS
    assert found[429] >= 10
    page = await ask(proxy, "203.0.113.7", "/hub/home", "Accept: text/html")
    assert page.status == 429
    assert b"Too many requests" in page.body
    assert page.headers["retry-after"] == "5"
    told = await ask(proxy, "203.0.113.7", "/hub/api/notebooks", "Accept: application/json")
    assert told.json["error"]["code"] == "too_many_requests"
    # others, and the same client's own server, are served
    assert (await ask(proxy, "203.0.113.8")).status == 200
    assert (await statuses(proxy, 100, "203.0.113.7", "/user/alice/")) == {200: 100}


async def test_a_client_is_a_network_of_ipv6(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, trusted_hops=1, hub_requests_per_second=1)
    answers = await asyncio.gather(*(ask(proxy, f"2001:db8::{n:x}") for n in range(100)))
    assert Counter(answer.status for answer in answers)[429] >= 10
    assert (await ask(proxy, "2001:db8:0:1::1")).status == 200


async def test_sign_ins_have_a_limit_of_their_own(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, trusted_hops=1, sign_ins_per_second=1)
    found = await statuses(proxy, 100, "203.0.113.7", "/hub/login?next=%2Fhub%2F", method="POST")
    assert found[200] >= limits.BURST_SECONDS
    assert found[429] >= 10
    assert (await ask(proxy, "203.0.113.7", "/hub/signup", method="POST")).status == 429
    assert (await ask(proxy, "203.0.113.7", "/hub/login")).status == 200, "looking at the form is no sign-in"
    assert (await ask(proxy, "203.0.113.7", "/hub/api/notebooks", method="POST")).status == 200
    assert (await ask(proxy, "203.0.113.8", "/hub/login", method="POST")).status == 200


async def test_websocket_handshakes_with_the_hub_are_counted(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, trusted_hops=1, hub_requests_per_second=1)
    handshake = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="

    async def open_one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
        lines = ("GET /hub/ws HTTP/1.1", "Host: hub", "X-Forwarded-For: 203.0.113.7", *handshake, key)
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return int(head.split(b" ", 2)[1])

    found = Counter(await asyncio.gather(*(open_one() for _ in range(100))))
    assert found.keys() == {101, 429}
    assert found[101] >= limits.BURST_SECONDS


async def test_requests_of_this_machine_are_not_counted(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, hub_requests_per_second=1, sign_ins_per_second=1)
    answers = await asyncio.gather(*(raw(proxy, "/hub/login", method="POST") for _ in range(100)))
    assert {answer.status for answer in answers} == {200}


async def test_no_limit_is_no_limit(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, trusted_hops=1, hub_requests_per_second=0, sign_ins_per_second=0)
    assert await statuses(proxy, 200, "203.0.113.7", "/hub/login", method="POST") == {200: 200}


async def test_large_and_many_headers_are_refused(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, max_header_kb=8)
    assert (await raw(proxy, "/user/alice/", f"X-Large: {'x' * 7000}")).server == "alice"
    assert (await raw(proxy, "/user/alice/", f"X-Large: {'x' * 9000}")).status == 431
    assert (await raw(proxy, "/user/alice/", *(f"X-{n}: x" for n in range(200)))).status == 431


async def test_connections_beyond_the_limit_are_closed_and_those_within_it_go_on(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, max_connections=3)
    held = [await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/user/alice/ws") for _ in range(3)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /user/alice/ HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert await reader.read() == b""
    writer.close()
    await held[0].write_message("hello")
    assert await held[0].read_message() == "alice:'hello'"
    held.pop().close()

    async def served() -> bool:
        try:
            return (await raw(proxy, "/user/alice/")).server == "alice"
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async with asyncio.timeout(20):
        while not await served():
            await asyncio.sleep(0.05)
    for each in held:
        each.close()


async def test_an_unused_connection_is_closed_and_a_quiet_websocket_is_not(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, client_idle_timeout=1.0, client_stall_timeout=1.0)
    quiet = await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/user/alice/ws")
    reader, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
    writer.write(b"GET /user/alice/ HTTP/1.1\r\nHost: hub\r\n\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    never, other = await asyncio.open_connection("127.0.0.1", port(proxy))
    async with asyncio.timeout(20):
        await reader.read()  # until its end
        assert await never.read() == b""
    await quiet.write_message("hello")
    assert await quiet.read_message() == "alice:'hello'"
    for each in (writer, other, quiet):
        each.close()


async def test_a_client_that_reads_nothing_is_given_up(hubs: Hubs) -> None:
    ended = asyncio.Event()

    class Endless(web.RequestHandler):
        async def get(self) -> None:
            try:
                while True:
                    self.write(bytes(MB))
                    await self.flush()
            except iostream.StreamClosedError:
                ended.set()

    sockets = netutil.bind_sockets(0, "127.0.0.1")
    server = httpserver.HTTPServer(web.Application([(r".*", Endless)]))
    server.add_sockets(sockets)
    proxy = hubs.proxy(client_stall_timeout=1.0)
    await proxy.start()
    await proxy.add_route("/user/alice/", f"http://127.0.0.1:{sockets[0].getsockname()[1]}", {"user": "alice"})
    client = socket.create_connection(("127.0.0.1", port(proxy)))
    client.sendall(b"GET /user/alice/ HTTP/1.1\r\nHost: hub\r\n\r\n")
    async with asyncio.timeout(60):
        await ended.wait()
    client.close()
    server.stop()


async def test_without_memory_new_requests_get_a_page_and_open_websockets_stay(hubs: Hubs, upstream: Start) -> None:
    proxy = await started(hubs, upstream, max_memory_mb=100)
    open_before = await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/user/alice/ws")
    held = []
    for _ in range(8):
        _, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
        writer.write(f"POST /hub/api/x HTTP/1.1\r\nHost: hub\r\nContent-Length: {30 * MB}\r\n\r\n".encode())
        writer.write(bytes(25 * MB))
        held.append(writer)
    async with asyncio.timeout(30):
        while (refused := await raw(proxy, "/user/alice/", "Accept: text/html")).status != 503:
            await asyncio.sleep(0.05)
    assert b"The hub is very busy" in refused.body
    assert refused.headers["retry-after"] == "5"
    await open_before.write_message("hello")
    assert await open_before.read_message() == "alice:'hello'"
    open_before.close()
    for writer in held:
        writer.transport.abort()
    async with asyncio.timeout(30):
        while (await raw(proxy, "/user/alice/")).status != 200:
            await asyncio.sleep(0.05)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("/hub/login", True),
        ("/base/hub/login?next=/hub/home", True),
        ("/hub/signup", True),
        ("/hub/change-password/alice", True),
        ("/hub/login-help", False),
        ("/hub/home?next=/hub/login", False),
        ("/user/alice/login", False),
    ],
)
def test_what_a_sign_in_is(path: str, counted: bool) -> None:
    assert bool(re.fullmatch(limits._SIGN_IN, path)) is counted
