"""Open WebSockets stay open, whatever happens to the hub and to other routes.

MARIMOHUB_MANY_SOCKETS=1000 MARIMOHUB_MANY_CHANGES=10000 is the full size (two minutes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.hub import Hub
from tests.proxy.conftest import Hubs, Upstream, raw
from tests.proxy.test_envoy import pid

Start = Callable[..., Upstream]
SOCKETS = int(os.environ.get("MARIMOHUB_MANY_SOCKETS", "200"))
CHANGES = int(os.environ.get("MARIMOHUB_MANY_CHANGES", "500"))
AT_ONCE = 50


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Both ends of each socket but Envoy's are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * SOCKETS + 500)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def open_sockets(url: str) -> list[WebSocketClientConnection]:
    found: list[WebSocketClientConnection] = []
    while len(found) < SOCKETS:
        some = min(AT_ONCE, SOCKETS - len(found))
        found += await asyncio.gather(*(websocket_connect(url) for _ in range(some)))
    return found


async def answering(sockets: list[WebSocketClientConnection], word: str) -> int:
    """How many of them are open: a word goes there and comes back."""

    async def answers(socket: WebSocketClientConnection) -> bool:
        with contextlib.suppress(Exception):
            await socket.write_message(word)
            async with asyncio.timeout(20):
                return await socket.read_message() == f"echo:{word!r}"
        return False

    return sum(await asyncio.gather(*map(answers, sockets)))


async def test_no_socket_is_dropped_by_route_changes(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    target, other = upstream("echo").url, upstream("other").url
    await proxy.add_route("/", target, {"hub": True})
    await proxy.add_route("/user/alice/", target, {"user": "alice"})
    before = pid(proxy)
    sockets = await open_sockets(proxy.public_url.replace("http", "ws", 1) + "user/alice/ws")
    assert await answering(sockets, "first") == SOCKETS
    # one after the other among few routes and among many, then together, as a hub with many users does
    made = 0
    while made < CHANGES:
        number = made % 200
        for name in (f"u{number}", f"alice{number}", f"alice/{number}"):
            await proxy.add_route(f"/user/{name}/", other, {"user": name})
        await proxy.delete_route(f"/user/alice{number}/")
        await asyncio.gather(*(proxy.add_route(f"/user/m{made}-{n}/", other, {}) for n in range(10)))
        await asyncio.gather(*(proxy.delete_route(f"/user/m{made}-{n}/") for n in range(10)))
        if number == 199:
            await asyncio.gather(*(proxy.delete_route(f"/user/u{n}/") for n in range(200)))
        made += 24
        if made % 960 == 0:
            assert await answering(sockets, str(made)) == SOCKETS
    await proxy.delete_route("/user/alice/")  # even their own
    assert await answering(sockets, "last") == SOCKETS
    assert (await raw(proxy, "/user/alice/x")).server == "echo", "the hub now"
    assert pid(proxy) == before
    for socket in sockets:
        socket.close()


async def test_no_socket_is_dropped_by_a_killed_hub(tmp_path: Path, upstream: Start) -> None:
    echo = upstream("echo")
    hub = Hub(tmp_path, f'c.JupyterHub.services = [{{"name": "echo", "url": "{echo.url}"}}]')
    await asyncio.to_thread(hub.start)
    try:
        sockets = await open_sockets(hub.url.replace("http", "ws", 1) + "/services/echo/ws")
        assert await answering(sockets, "first") == SOCKETS
        hub.kill()
        assert await answering(sockets, "alone") == SOCKETS
        await asyncio.to_thread(hub.start)
        assert "Keeping the running Envoy" in hub.log
        assert await answering(sockets, "again") == SOCKETS
        for socket in sockets:
            socket.close()
    finally:
        await asyncio.to_thread(hub.stop)
