"""Changed settings need a new Envoy: it takes over without a refused connection, and open ones go on for a time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from marimohub.proxy import EnvoyProxy, ProxyStartFailed
from marimohub.proxy.draining import Draining
from tests.proxy.conftest import Hubs, Upstream, raw, started, tcp_sockets
from tests.proxy.test_envoy import eventually, pid, running
from tests.proxy.test_faults import envoys

Start = Callable[..., Upstream]


async def restarted(hubs: Hubs, proxy: EnvoyProxy, **traits: Any) -> EnvoyProxy:
    """The next hub, after the former was killed."""
    await hubs.kill(proxy)
    second = hubs.proxy(public_url=proxy.public_url, **traits)
    await second.start()
    return second


async def websocket(proxy: EnvoyProxy) -> WebSocketClientConnection:
    return await websocket_connect(proxy.public_url.replace("http", "ws") + "user/alice/ws")


async def echoes(socket: WebSocketClientConnection) -> bool:
    await socket.write_message("hello")
    return await socket.read_message() == "alice:'hello'"


def listens(number: int) -> bool:
    return any(state == "0A" for state, _, _ in tcp_sockets(number))


async def test_a_changed_setting_closes_no_port_and_leaves_open_websockets(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream, concurrency=1)
    before = pid(first)
    socket = await websocket(first)
    answers: Counter[object] = Counter()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            try:
                answers[(await raw(first, "/user/alice/")).status] += 1
            except ConnectionResetError:  # one that was being set up when the old one stopped listening
                answers["reset"] += 1

    clients = [asyncio.create_task(ask()) for _ in range(4)]
    second = await restarted(hubs, first, concurrency=1, max_header_kb=32)
    await asyncio.sleep(0.5)
    done.set()
    await asyncio.gather(*clients)
    assert answers.keys() <= {200, "reset"}, "nobody was refused"
    assert answers["reset"] <= len(clients), "nor reset twice"
    assert answers[200] > 20
    assert pid(second) != before
    assert running(before) and not listens(before)
    assert await echoes(socket), "what was open goes on"
    assert (await raw(second, "/user/alice/", f"X-Large: {'x' * 40_000}")).status == 431, "the new settings hold"
    await second.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    assert (await raw(second, "/user/bob/")).server == "bob"
    assert "marimohub_proxy_draining 1" in await second.metrics()

    # with its last connection the old one ends, and leaves nothing
    socket.close()
    await eventually(lambda: not running(before), 20)
    folder = hubs.folder / "proxy"
    await eventually(lambda: len(list(folder.glob("run-*"))) == 1)
    assert json.loads((folder / "draining.json").read_text()) == []
    assert (await raw(second, "/user/alice/")).server == "alice"


async def test_open_websockets_are_closed_when_their_time_is_over(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream, drain_timeout=2.0)
    before = pid(first)
    socket = await websocket(first)
    second = await restarted(hubs, first, drain_timeout=2.0, max_header_kb=32)
    assert await echoes(socket)
    async with asyncio.timeout(30):
        assert await socket.read_message() is None, "closed"
    await eventually(lambda: not running(before), 20)
    again = await websocket(second)
    assert await echoes(again)
    again.close()


async def test_an_envoy_without_connections_ends_at_once(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream)
    before = pid(first)
    second = await restarted(hubs, first, max_header_kb=32)
    assert envoys(hubs) == [pid(second)]
    assert not running(before)


async def test_the_next_hub_looks_after_what_the_former_replaced(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream)
    oldest = pid(first)
    socket = await websocket(first)
    second = await restarted(hubs, first, max_header_kb=32)
    newer = pid(second)
    other = await websocket(second)
    third = await restarted(hubs, second, max_header_kb=16)
    fourth = await restarted(hubs, third, max_header_kb=16)
    assert fourth.adopted
    assert sorted(envoys(hubs)) == sorted([oldest, newer, pid(fourth)])
    assert await echoes(socket) and await echoes(other)
    socket.close()
    await eventually(lambda: not running(oldest), 20)
    assert running(newer)
    await fourth.stop()
    other.close()
    await eventually(lambda: envoys(hubs) == [])


async def test_a_hub_killed_in_the_middle_leaves_one_that_listens(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await started(hubs, upstream)
    before = pid(first)
    socket = await websocket(first)

    async def nothing(self: Draining) -> None:
        pass

    with monkeypatch.context() as killed:
        killed.setattr(Draining, "take_listeners", lambda self: None)
        killed.setattr(Draining, "settle", nothing)
        second = await restarted(hubs, first, max_header_kb=32)
    assert listens(before) and listens(pid(second))
    third = await restarted(hubs, second, max_header_kb=32)
    assert third.adopted
    await eventually(lambda: not listens(before))
    assert await echoes(socket)
    socket.close()


async def test_settings_that_envoy_refuses_leave_the_running_one_alone(
    hubs: Hubs, upstream: Start, tmp_path: Path
) -> None:
    first = await started(hubs, upstream)
    before = pid(first)
    socket = await websocket(first)
    await hubs.kill(first)
    broken = tmp_path / "envoy"
    broken.write_text("#!/bin/sh\necho no such option; exit 1\n")
    broken.chmod(0o700)
    failed = hubs.proxy(public_url=first.public_url, envoy=str(broken))
    with pytest.raises(ProxyStartFailed, match="no such option"):
        await failed.start()
    hubs.alive.remove(failed)
    assert envoys(hubs) == [before]
    assert (await raw(first, "/user/alice/")).server == "alice"
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert second.adopted and pid(second) == before
    assert await echoes(socket)
    socket.close()


async def test_an_envoy_that_hangs_is_ended_at_once(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream)
    before = pid(first)
    os.kill(before, signal.SIGSTOP)
    second = await restarted(hubs, first, max_header_kb=32, stop_timeout=0.2)
    assert envoys(hubs) == [pid(second)]
    assert (await raw(second, "/user/alice/")).server == "alice"


async def test_another_address_on_the_same_port_needs_an_end(hubs: Hubs, upstream: Start) -> None:
    first = await started(hubs, upstream)
    before = pid(first)
    port = first.public_url.rsplit(":", 1)[1]
    await hubs.kill(first)
    second = hubs.proxy(public_url=f"http://0.0.0.0:{port}")
    await second.start()
    assert not running(before)
    assert (await raw(second, "/user/alice/")).server == "alice"


async def test_a_unix_socket_is_taken_over_with_an_end(hubs: Hubs, tmp_path: Path) -> None:
    url = f"http+unix://{str(tmp_path / 'public.sock').replace('/', '%2F')}"
    first = hubs.proxy(public_url=url)
    await first.start()
    before = pid(first)
    await hubs.kill(first)
    second = hubs.proxy(public_url=url, max_header_kb=32)
    await second.start()
    assert envoys(hubs) == [pid(second)] != [before]


@pytest.mark.parametrize("text", ["", "{}", "[5]", '[{"identity": {"pid": 5}, "until": 1}]'])
async def test_a_damaged_list_is_one_sentence(hubs: Hubs, text: str) -> None:
    proxy = hubs.proxy()
    (hubs.folder / "proxy").mkdir()
    (hubs.folder / "proxy" / "draining.json").write_text(text)
    with pytest.raises(ProxyStartFailed, match=r"draining\.json is damaged"):
        await proxy.start()


@pytest.mark.unit
async def test_a_process_with_a_number_that_was_given_again_is_left_alone(tmp_path: Path) -> None:
    stored = [
        {
            "identity": {"pid": os.getpid(), "started": "1", "fingerprint": "x", "run": "run-1", "address": "a"},
            "until": time.time() - 100,
        }
    ]
    (tmp_path / "draining.json").write_text(json.dumps(stored))
    draining = Draining(tmp_path)
    draining.load()
    assert len(draining) == 0
