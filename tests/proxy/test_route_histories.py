"""Routes come, change and go at any speed: once a call has returned, only the new owner is served."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import pytest

from marimohub.proxy import EnvoyProxy, publisher
from tests.proxy.conftest import Hubs, Upstream, raw

Start = Callable[..., Upstream]
CONNECTIONS = 16


async def with_hub(hubs: Hubs, upstream: Start) -> EnvoyProxy:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    return proxy


class Kept:
    """A connection that is used again and again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, proxy: EnvoyProxy) -> Kept:
        port = int(proxy.public_url.rsplit(":", 1)[1].strip("/"))
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def ask(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    async def server(self) -> str:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].split()[0])
        return str(json.loads(await self._reader.readexactly(size))["server"])

    def close(self) -> None:
        self._writer.close()


@pytest.mark.parametrize("quick_from", [1, 1_000_000])
async def test_no_open_connection_sees_what_was_before(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch, quick_from: int
) -> None:
    """With more connections than Envoy has threads, so that each thread is asked at once."""
    monkeypatch.setattr(publisher, "QUICK_FROM", quick_from)
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 3600.0)
    proxy = await with_hub(hubs, upstream)
    alice, bob = upstream("alice").url, upstream("bob").url
    kept = [await Kept.open(proxy) for _ in range(CONNECTIONS)]
    for _ in range(12):
        for target, owner in ((alice, "alice"), (bob, "bob"), (None, "hub")):
            if target:
                await proxy.add_route("/user/alice/", target, {})
            else:
                await proxy.delete_route("/user/alice/")
            for connection in kept:
                connection.ask("/user/alice/")
            assert {await connection.server() for connection in kept} == {owner}
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_any_history_of_nested_routes_ends_at_the_right_owner(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(publisher, "QUICK_FROM", 1)
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 0.03)  # the table follows in the midst of it
    proxy = await with_hub(hubs, upstream)
    servers = {name: upstream(name).url for name in "abcd"}
    choose = random.Random(seed)

    async def live(user: str) -> None:
        top, below = f"/user/{user}/", f"/user/{user}/dev/"
        owners: dict[str, str] = {}
        for _ in range(12):
            spec = choose.choice((top, below))
            if spec in owners and choose.random() < 0.4:
                await proxy.delete_route(spec)
                del owners[spec]
            else:
                owners[spec] = choose.choice("abcd")
                await proxy.add_route(spec, servers[owners[spec]], {})
            expected = owners.get(top, "hub")
            assert (await raw(proxy, f"{top}x")).server == expected
            assert (await raw(proxy, f"{below}x")).server == owners.get(below, expected)

    await asyncio.gather(*(live(user) for user in ("alice", "alice2", "al", "b@c", "b%40d")))
