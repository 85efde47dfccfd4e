"""The hub gets requests when their bodies are complete; users' servers get bodies as they come."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from marimohub.proxy import EnvoyProxy
from tests.proxy.conftest import Hubs, Upstream, raw

Start = Callable[..., Upstream]
MB = 1024 * 1024


@pytest.fixture
async def proxy(hubs: Hubs, upstream: Start) -> AsyncIterator[EnvoyProxy]:
    proxy = hubs.proxy(hub_api_body_limit_mb=3)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await proxy.add_route("/services/svc/", upstream("svc").url, {})
    yield proxy


def port(proxy: EnvoyProxy) -> int:
    return int(proxy.public_url.rsplit(":", 1)[1].strip("/"))


async def send(proxy: EnvoyProxy, *lines: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
    writer.write(("\r\n".join([*lines, "Host: hub"]) + "\r\n\r\n").encode() + body)
    await writer.drain()
    return reader, writer


async def post(proxy: EnvoyProxy, path: str, size: int, *headers: str) -> tuple[int, bytes]:
    """Status and body of a POST of `size` bytes."""
    lines = (f"POST {path} HTTP/1.1", f"Content-Length: {size}", "Connection: close", *headers)
    reader, writer = await send(proxy, *lines, body=bytes(size))
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length
    answer = await reader.readexactly(int(length[1]))
    writer.close()
    return int(head.split(b" ", 2)[1]), answer


async def active(proxy: EnvoyProxy) -> int:
    """Connections from Envoy to any server."""
    found = re.search(
        r'^envoy_cluster_upstream_cx_active{envoy_cluster_name="upstream"} (\d+)$', await proxy._admin.metrics(), re.M
    )
    assert found
    return int(found[1])


SLOW = [
    ("POST /hub/login HTTP/1.1", "Content-Length: 1000"),
    ("POST /hub/api/users HTTP/1.1", "Transfer-Encoding: chunked"),
    ("GET /hub/home HTTP/1.1", "Content-Length: 1000"),
    ("POST /hub/login HTTP/1.1", "Content-Length: 1000", "Connection: Upgrade", "Upgrade: websocket"),
    ("GET /hub/ws HTTP/1.1", "Content-Length: 1000", "Connection: Upgrade", "Upgrade: WebSocket"),
    ("GET /hub/ws HTTP/1.1", "Transfer-Encoding: chunked", "Connection: Upgrade", "Upgrade: websocket"),
]


async def test_slow_bodies_hold_no_connection_of_the_hub(proxy: EnvoyProxy) -> None:
    held = [await send(proxy, *lines, body=b"1\r\n") for lines in SLOW * 40]
    await asyncio.sleep(3.5)  # longer than an unused connection to a server is kept
    assert await active(proxy) == 0
    start = time.monotonic()
    assert (await raw(proxy, "/hub/login")).server == "hub"
    assert time.monotonic() - start < 1
    for _, writer in held:
        writer.close()


async def test_a_slow_body_arrives_once_it_is_complete(proxy: EnvoyProxy) -> None:
    reader, writer = await send(proxy, "POST /hub/login HTTP/1.1", "Content-Length: 10", body=b"12345")
    await asyncio.sleep(0.1)
    writer.write(b"67890")
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    reader, writer = await send(proxy, "POST /hub/api/x HTTP/1.1", "Transfer-Encoding: chunked", "Connection: close")
    for chunk in (b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"):
        writer.write(chunk)
        await asyncio.sleep(0.05)
    assert json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["body"] == 5
    writer.close()


async def test_a_users_server_gets_its_body_as_it_comes(proxy: EnvoyProxy) -> None:
    for path in ("/user/alice/x", "/services/svc/x"):
        _, writer = await send(proxy, f"POST {path} HTTP/1.1", "Content-Length: 1000", body=b"1")
        await asyncio.sleep(0.3)
        assert await active(proxy) >= 1, path
        writer.close()


@pytest.mark.parametrize(
    ("path", "most"), [("/hub/login", 1), ("/", 1), ("/hub/apix/", 1), ("/hub/api/x", 3), ("/api/x", 3)]
)
async def test_a_body_over_the_limit_is_refused_with_a_page(proxy: EnvoyProxy, path: str, most: int) -> None:
    assert (await post(proxy, path, most * MB))[0] == 200
    status, page = await post(proxy, path, most * MB + 1)
    assert status == 413 and b"This is too large" in page
    status, answer = await post(proxy, path, most * MB + 1, "Accept: application/json")
    assert status == 413 and json.loads(answer)["error"]["code"] == "too_large"


async def test_users_servers_and_services_have_no_limit(proxy: EnvoyProxy) -> None:
    for path in ("/user/alice/x", "/services/svc/x"):
        status, answer = await post(proxy, path, 10 * MB)
        assert status == 200 and json.loads(answer)["body"] == 10 * MB


async def test_the_limits_follow_the_base_url(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(hub_api_body_limit_mb=3)
    await proxy.start()
    await proxy.add_route("/a@b/", upstream("hub").url, {"hub": True})
    for spelled in ("/a@b", "/a%40b"):
        assert (await post(proxy, f"{spelled}/hub/api/x", MB + 1))[0] == 200
        assert (await post(proxy, f"{spelled}/hub/x", MB + 1))[0] == 413


async def test_the_hubs_websockets_and_event_streams_are_not_held_back(proxy: EnvoyProxy) -> None:
    socket: WebSocketClientConnection = await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/hub/ws")
    await socket.write_message("hello")
    assert await socket.read_message() == "hub:'hello'"
    socket.close()
    start = time.monotonic()
    reader, writer = await send(proxy, "GET /hub/slow HTTP/1.1")
    await reader.readuntil(b"first\n")
    assert time.monotonic() - start < 0.4
    await reader.readuntil(b"second\n")
    writer.close()


async def test_the_same_holds_for_http_2(proxy: EnvoyProxy, tmp_path: object) -> None:
    curl = shutil.which("curl")
    assert curl, "this test needs curl"

    async def status(path: str, size: int) -> str:
        command = [curl, "-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--data-binary", "@-", f"http://127.0.0.1:{port(proxy)}{path}"],
            input=bytes(size),
            capture_output=True,
            check=False,
        )
        return done.stdout.decode()

    assert await status("/hub/x", MB) == "2 200"
    assert await status("/hub/x", MB + 1) == "2 413"
    assert await status("/hub/api/x", 2 * MB) == "2 200"
    assert await status("/user/alice/x", 5 * MB) == "2 200"


async def test_a_body_that_makes_no_progress_ends_the_request(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marimohub.proxy.routes.HUB_IDLE_SECONDS", 1)
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    socket = await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/hub/ws")
    slow, writer = await send(proxy, "POST /hub/login HTTP/1.1", "Content-Length: 1000", body=b"a")
    streaming, other = await send(proxy, "POST /user/alice/x HTTP/1.1", "Content-Length: 2", body=b"a")
    assert b" 408 " in await asyncio.wait_for(slow.readuntil(b"\r\n\r\n"), 5)
    await asyncio.sleep(1)
    other.write(b"b")
    assert b" 200 " in await streaming.readuntil(b"\r\n\r\n"), "a user's server may take its time"
    await socket.write_message("quiet for long")
    assert await socket.read_message() == "hub:'quiet for long'"
    socket.close()
    writer.close()
    other.close()


async def test_stalled_bodies_are_given_up_sooner_when_memory_gets_short(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(max_memory_mb=135)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    socket = await websocket_connect(f"ws://127.0.0.1:{port(proxy)}/user/alice/ws")
    lines = ("POST /hub/api/x HTTP/1.1", f"Content-Length: {30 * MB}")
    held = [await send(proxy, *lines, body=bytes(25 * MB)) for _ in range(4)]
    answers = [asyncio.create_task(reader.readuntil(b"\r\n\r\n")) for reader, _ in held]
    # 10 seconds, not 120; when some are gone and memory is no longer short, the others may go on
    given_up, left = await asyncio.wait(answers, timeout=30)
    assert len(given_up) >= 2 and all(b" 408 " in task.result() for task in given_up)
    for task in left:
        task.cancel()
    for _, writer in held:
        writer.close()
    assert (await raw(proxy, "/hub/login")).server == "hub"
    await socket.write_message("hello")
    assert await socket.read_message() == "alice:'hello'"
    socket.close()
