"""Where routes lead: Unix sockets, and routes that are served before they are in Envoy's table."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from tornado import httpserver, netutil, web
from tornado.websocket import websocket_connect

from marimohub.proxy import BadRoute, EnvoyProxy, RouteNotServed, publisher, recent
from marimohub.proxy.routes import Route
from marimohub.proxy.table import RouteTable
from tests.proxy.conftest import Describe, Echo, Hubs, Upstream, raw
from tests.proxy.test_envoy import eventually, pid

Start = Callable[..., Upstream]
Listen = Callable[[str], str]


@pytest.fixture
async def on_socket(tmp_path: Path) -> AsyncIterator[Listen]:
    """Starts a named server on a Unix socket; gives its URL as JupyterHub writes it."""
    servers = []

    def start(name: str) -> str:
        path = str(tmp_path / f"{name} ü@:.sock")
        app = web.Application([(r".*/ws", Echo, {"name": name}), (r".*", Describe, {"name": name})])
        servers.append(httpserver.HTTPServer(app))
        servers[-1].add_socket(netutil.bind_unix_socket(path))
        return f"http+unix://{quote(path, safe='')}"

    yield start
    for server in servers:
        server.stop()
        await server.close_all_connections()


async def test_servers_on_unix_sockets_are_reached_by_http_and_websocket(hubs: Hubs, on_socket: Listen) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    for name in ("alice", "bob"):
        await proxy.add_route(f"/user/{name}/", on_socket(name), {"user": name})
    for name in ("alice", "bob", "alice"):
        answer = await raw(proxy, f"/user/{name}/x%2Fy?z")
        assert (answer.server, answer.json["uri"]) == (name, f"/user/{name}/x%2Fy?z")
        connection = await websocket_connect(proxy.public_url.replace("http", "ws", 1) + f"user/{name}/ws")
        await connection.write_message("hello")
        assert await connection.read_message() == f"{name}:'hello'"
        connection.close()


async def test_the_hub_itself_can_be_on_a_unix_socket(hubs: Hubs, on_socket: Listen) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", on_socket("hub"), {"hub": True})
    assert (await raw(proxy, "/hub/home")).server == "hub"
    posted = await raw(proxy, "/hub/api/x", "Content-Length: 0", method="POST")
    assert posted.server == "hub"
    assert "x-marimohub-route" in posted.json["headers"]


async def test_a_client_cannot_choose_a_socket_or_a_port(hubs: Hubs, upstream: Start, on_socket: Listen) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", on_socket("alice"), {})
    await proxy.add_route("/user/bob/", on_socket("bob"), {})
    other = upstream("other")
    forged = (f"x-envoy-original-dst-host: 127.0.0.1:{other.port}", "x-marimohub-upstream-name: other")
    answer = await raw(proxy, "/user/alice/", *forged, "socket: /tmp/x", "x-envoy-lb: bob")
    assert answer.server == "alice"
    assert not {"x-envoy-original-dst-host", "x-marimohub-upstream-name"} & answer.json["headers"].keys()


async def test_sockets_come_and_go_and_ports_take_their_place(
    hubs: Hubs, upstream: Start, on_socket: Listen, tmp_path: Path
) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    endpoints = hubs.folder / "proxy" / "eds" / "sockets.json"
    first, second, port = on_socket("first"), on_socket("second"), upstream("port").url
    for _ in range(5):
        for target, name in ((first, "first"), (port, "port"), (second, "second")):
            await proxy.add_route("/user/alice/", target, {})
            assert (await raw(proxy, "/user/alice/")).server == name
    assert "first" not in endpoints.read_text()
    await proxy.delete_route("/user/alice/")
    assert (await raw(proxy, "/user/alice/")).status == 503
    assert "second" not in endpoints.read_text()


async def test_an_open_websocket_to_a_socket_outlives_its_route(hubs: Hubs, on_socket: Listen) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", on_socket("alice"), {})
    connection = await websocket_connect(proxy.public_url.replace("http", "ws", 1) + "user/alice/ws")
    await proxy.delete_route("/user/alice/")
    await connection.write_message("x")
    assert await connection.read_message() == "alice:'x'"
    connection.close()


async def test_nobody_at_a_socket_is_our_page(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", "http+unix://%2Fno%2Fsuch.sock", {})
    answer = await raw(proxy, "/user/alice/")
    assert answer.status == 503
    assert b"<h1>" in answer.body


async def test_sockets_are_there_again_after_a_restart_of_hub_and_envoy(hubs: Hubs, on_socket: Listen) -> None:
    first = hubs.proxy()
    await first.start()
    await first.add_route("/user/alice/", on_socket("alice"), {})
    await hubs.kill(first)
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert second.adopted
    assert (await raw(second, "/user/alice/")).server == "alice"
    before = pid(second)
    os.kill(before, signal.SIGKILL)
    first._process._child.wait()  # type: ignore[union-attr]
    await eventually(lambda: pid(second) not in (before, 0))
    await second.add_route("/user/bob/", on_socket("bob"), {})
    assert (await raw(second, "/user/alice/")).server == "alice"
    assert (await raw(second, "/user/bob/")).server == "bob"


@pytest.mark.parametrize(
    "target",
    [
        "http+unix://",
        "http+unix://x.sock",
        "http+unix://@x",
        "http+unix:///tmp/x",
        "http+unix://%2Ftmp%2F",
        "http+unix://%2Fa%00b",
        "http+unix://%2F%FF",
        f"http+unix://%2F{'x' * 107}",
        "https+unix://%2Fx",
        "unix:/tmp/x",
    ],
)
async def test_a_socket_that_cannot_be_is_refused(hubs: Hubs, target: str) -> None:
    proxy = hubs.proxy()
    with pytest.raises(BadRoute):
        await proxy.add_route("/user/alice/", target, {})
    assert await proxy.get_all_routes() == {}


class ClosesKeptConnections:
    """Answers the first request on each connection, keeps it open, and closes it at the next, unanswered."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.unanswered = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answered in (False, True):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            self.received.append(head.decode().split()[0])
            if answered:
                self.unanswered += 1
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()


@pytest.mark.parametrize("way", ["table", "recent", "socket"])
async def test_a_connection_that_the_server_closes_under_a_request_costs_no_reader_an_error(
    hubs: Hubs, upstream: Start, quick: None, way: str, tmp_path: Path
) -> None:
    behind = ClosesKeptConnections()
    socket = str(tmp_path / "s.sock")
    if way == "socket":
        server = await asyncio.start_unix_server(behind, socket)
        target = f"http+unix://{quote(socket, safe='')}"
    else:
        server = await asyncio.start_server(behind, "127.0.0.1", 0)
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", target, {})
    if way == "table":
        await merged(proxy)
    for _ in range(6):
        assert (await raw(proxy, "/user/alice/")).body == b"ok"
    assert behind.unanswered >= 2, "the fault did not happen"
    before = behind.received.count("POST")
    answers = [(await raw(proxy, "/user/alice/", "Content-Length: 0", method="POST")).status for _ in range(4)]
    assert behind.received.count("POST") - before == 4, "each is sent once, whatever becomes of it"
    assert set(answers) <= {200, 502, 503}
    server.close()
    assert not [line for line in hubs.records.lines if "WARNING" in line], "Envoy finds nothing wrong with the table"


# -- routes that are newer than the table --------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """New routes go into the small filter, and stay there."""
    monkeypatch.setattr(publisher, "QUICK_FROM", 1)
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 3600.0)


def recent_routes(proxy: EnvoyProxy) -> set[str]:
    return set(proxy._open()[1]._recent)


async def with_hub(hubs: Hubs, upstream: Start) -> EnvoyProxy:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    return proxy


async def merged(proxy: EnvoyProxy) -> None:
    await proxy._open()[1].served()
    assert recent_routes(proxy) == set()


NAMES = ("alice", "alice2", "b@c", "b%40c", "ALICE", "al%69ce", "alic", "alice%32", "%61lice")
RESTS = ("", "/", "/x", "?q", "/..", "/../alice2/", "/%2e%2e/alice2/", "%2F", "%2Fx", ";/", "//", "/.;/", "\\", "#f")
OTHERS = (
    "/",
    "//user/alice/",
    "/user//alice/",
    "/user/",
    "/user/alice2/alice/",
    "/hub/user/alice/",
    "/user/alice/dev/x",
)
TARGETS = [*(f"/user/{name}{rest}" for name in NAMES for rest in RESTS), *OTHERS]


async def test_a_recent_route_answers_every_path_as_the_table_does(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = await with_hub(hubs, upstream)
    for name in ("alice", "alice2", "b@c", "alice/dev"):
        await proxy.add_route(f"/user/{name}/", upstream(name).url, {})
    assert len(recent_routes(proxy)) == 4

    async def ask(target: str) -> tuple[int, str | None, object]:
        answer = await raw(proxy, target)
        return answer.status, answer.server, answer.json["uri"] if answer.status == 200 else None

    before = [await ask(target) for target in TARGETS]
    await merged(proxy)
    assert [await ask(target) for target in TARGETS] == before
    asked = dict(zip(TARGETS, before, strict=True))
    assert asked["/user/alice/x"][1] == "alice"
    assert asked["/user/alice2/x"][1] == "alice2"
    assert asked["/user/b%40c/x"][1] == asked["/user/b@c/x"][1] == "b@c"
    assert asked["/user/alice/dev/x"][1] == "alice/dev"
    assert asked["/user/alice/../alice2/"][0] == 400
    assert {server for _, server, _ in before} == {"hub", "alice", "alice2", "b@c", "alice/dev", None}


async def test_recent_routes_are_served_at_once_changed_at_once_and_gone_at_once(
    hubs: Hubs, upstream: Start, quick: None
) -> None:
    proxy = await with_hub(hubs, upstream)
    one, two = upstream("one").url, upstream("two").url
    writes = proxy._open()[1].writes
    for number in range(20):
        path = f"/user/u{number}/"
        for target, name in ((one, "one"), (two, "two")):
            await proxy.add_route(path, target, {})
            assert (await raw(proxy, path)).server == name
    assert proxy._open()[1].writes == writes, "the table was not written"
    for number in range(20):
        await proxy.delete_route(f"/user/u{number}/")
        assert (await raw(proxy, f"/user/u{number}/")).server == "hub"


async def test_a_recent_path_does_not_hide_the_routes_below_it(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/dev/", upstream("dev").url, {})
    await merged(proxy)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    assert recent_routes(proxy) == {"/user/alice/", "/user/alice/dev/"}
    assert (await raw(proxy, "/user/alice/dev/x")).server == "dev"
    assert (await raw(proxy, "/user/alice/x")).server == "alice"
    await proxy.delete_route("/user/alice/dev/")
    assert (await raw(proxy, "/user/alice/dev/x")).server == "alice"


async def test_what_needs_more_than_a_target_goes_into_the_table(
    hubs: Hubs, upstream: Start, on_socket: Listen, quick: None
) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    assert recent_routes(proxy) == {"/user/alice/"}
    await proxy.add_route("/user/alice/s/", on_socket("socket"), {})
    assert recent_routes(proxy) == set()
    assert (await raw(proxy, "/user/alice/s/")).server == "socket"
    await proxy.add_route("/user/alice/", upstream("other").url, {})
    assert recent_routes(proxy) == set(), "a route below it cannot be there"
    assert (await raw(proxy, "/user/alice/")).server == "other"
    assert (await raw(proxy, "/user/alice/s/")).server == "socket"


async def test_recent_routes_are_not_used_where_host_names_decide(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = hubs.proxy(host_routing=True)
    await proxy.start()
    await proxy.add_route("hub.tld/", upstream("hub").url, {"hub": True})
    await proxy.add_route("ann.hub.tld/user/ann/", upstream("ann").url, {})
    assert recent_routes(proxy) == set()
    assert (await raw(proxy, "/user/ann/", host="ann.hub.tld")).server == "ann"
    assert (await raw(proxy, "/user/ann/", host="hub.tld")).server == "hub"


async def test_more_than_fit_go_into_the_table(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = await with_hub(hubs, upstream)
    target = upstream("one").url
    paths = [f"/user/u{number}/" for number in range(recent.LIMIT + 5)]
    await asyncio.gather(*(proxy.add_route(path, target, {}) for path in paths))
    for path in (paths[0], paths[recent.LIMIT], paths[-1]):
        assert (await raw(proxy, path)).server == "one"


async def test_the_table_follows_by_itself(hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "QUICK_FROM", 1)
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 0.1)
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    assert recent_routes(proxy) == {"/user/alice/"}
    await eventually(lambda: not recent_routes(proxy))
    assert "/user/alice/" in (hubs.folder / "proxy" / "routes.json").read_text()
    assert (await raw(proxy, "/user/alice/")).server == "alice"


async def test_the_table_follows_even_if_whoever_added_the_route_gave_up(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "QUICK_FROM", 1)
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 0.1)
    proxy = await with_hub(hubs, upstream)
    os.kill(pid(proxy), signal.SIGSTOP)
    adding = asyncio.create_task(proxy.add_route("/user/alice/", upstream("alice").url, {}))
    await eventually(lambda: recent_routes(proxy) == {"/user/alice/"})
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    os.kill(pid(proxy), signal.SIGCONT)
    await eventually(lambda: not recent_routes(proxy))
    assert (await raw(proxy, "/user/alice/")).server == "alice"


async def test_recent_routes_survive_a_killed_hub_and_a_killed_envoy(hubs: Hubs, upstream: Start, quick: None) -> None:
    first = await with_hub(hubs, upstream)
    await first.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await hubs.kill(first)
    assert (await raw(first, "/user/alice/")).server == "alice"
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert second.adopted
    assert (await second.get_all_routes())["/user/alice/"]["data"]["user"] == "alice"
    assert (await raw(second, "/user/alice/")).server == "alice"
    await second.add_route("/user/bob/", upstream("bob").url, {})
    assert recent_routes(second) == {"/user/bob/"}
    before = pid(second)
    os.kill(before, signal.SIGKILL)
    first._process._child.wait()  # type: ignore[union-attr]
    await second.add_route("/user/carl/", upstream("carl").url, {})
    for name in ("alice", "bob", "carl"):
        assert (await raw(second, f"/user/{name}/")).server == name


async def test_bodies_and_websockets_to_a_recent_route_are_not_treated_as_the_hubs(
    hubs: Hubs, upstream: Start, quick: None
) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    connection = await websocket_connect(proxy.public_url.replace("http", "ws", 1) + "user/alice/ws")
    await connection.write_message("hello")
    assert await connection.read_message() == "alice:'hello'"
    port = int(proxy.public_url.rsplit(":", 1)[1].strip("/"))
    size = proxy.hub_api_body_limit_mb * 1024 * 1024 + 1
    for path in ("/user/alice/x", "/user/alice/hub/api/x"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode())
        writer.write(bytes(size))
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert recent_routes(proxy) == {"/user/alice/"}
    await merged(proxy)
    await connection.write_message("still")
    assert await connection.read_message() == "alice:'still'"
    connection.close()


async def test_one_connection_carries_a_target_to_no_other_request(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    port = int(proxy.public_url.rsplit(":", 1)[1].strip("/"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for path, expected in (("/user/alice/", "alice"), ("/hub/", "hub"), ("/user/alice/", "alice"), ("/user/x/", "hub")):
        writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].split()[0])
        assert json.loads(await reader.readexactly(size))["server"] == expected
    writer.close()


async def test_headers_of_clients_choose_nothing_on_a_recent_route(hubs: Hubs, upstream: Start, quick: None) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    other = upstream("other")
    for path, expected in (("/user/alice/", "alice"), ("/hub/", "hub")):
        forged = (f"x-envoy-original-dst-host: 127.0.0.1:{other.port}", f"marimohub.recent: 127.0.0.1:{other.port}")
        answer = await raw(proxy, path, *forged, "X-Forwarded-For: 6.6.6.6", "X-Real-IP: 6.6.6.6")
        assert (answer.server, answer.json["remote_ip"]) == (expected, "127.0.0.1")
        assert answer.json["headers"]["x-envoy-original-dst-host"] != [f"127.0.0.1:{other.port}"]


async def test_a_recent_route_that_envoy_refuses_fails_and_harms_nobody(
    hubs: Hubs, upstream: Start, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await with_hub(hubs, upstream)
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    with monkeypatch.context() as fault:
        fault.setattr(recent, "RECENT_STATE", "")  # Envoy demands a name
        with pytest.raises(RouteNotServed, match="refused"):
            await proxy.add_route("/user/bad/", "http://127.0.0.1:1", {})
    assert "/user/bad/" not in await proxy.get_all_routes()
    await proxy.add_route("/user/bob/", upstream("bob").url, {})
    for name in ("alice", "bob"):
        assert (await raw(proxy, f"/user/{name}/")).server == name


@pytest.mark.parametrize("change", ["add", "delete"])
async def test_an_envoy_that_comes_back_late_serves_no_recent_route_that_failed_or_was_removed(
    hubs: Hubs, upstream: Start, quick: None, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.2)
    proxy = hubs.proxy(route_timeout=0.5, check_interval=30)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    alice = upstream("alice").url
    if change == "delete":
        await proxy.add_route("/user/alice/", alice, {})
        assert recent_routes(proxy) == {"/user/alice/"}
    os.kill(pid(proxy), signal.SIGSTOP)
    with pytest.raises(RouteNotServed, match="within"):
        await (proxy.add_route("/user/alice/", alice, {}) if change == "add" else proxy.delete_route("/user/alice/"))
    await asyncio.sleep(1)  # the hub has given up more than once
    os.kill(pid(proxy), signal.SIGCONT)
    assert "/user/alice/" not in await proxy.get_all_routes()
    await eventually(lambda: not recent_routes(proxy) and not proxy._open()[1].pending)
    assert (await raw(proxy, "/user/alice/")).server == "hub"
    assert (hubs.folder / "proxy" / "recent.json").read_text().count("alice") == 0


@pytest.mark.unit
def test_an_old_recent_route_never_replaces_what_the_table_says(tmp_path: Path) -> None:
    stored = tmp_path / "routes.json"
    table = RouteTable()
    old = Route("/user/a/", "http://127.0.0.1:1", "127.0.0.1:1", {})
    new = Route("/user/a/", "http://127.0.0.1:2", "127.0.0.1:2", {})
    table.set(old)
    publisher.save_recent(tmp_path / "recent.json", [(old, table.changes)])
    assert RouteTable.load(stored).values() == [old], "newer than no table"
    table.set(new)
    table.snapshot().save(stored)
    assert RouteTable.load(stored).values() == [new]
    table.remove("/user/a/")
    table.snapshot().save(stored)
    loaded = RouteTable.load(stored)
    assert loaded.values() == []
    assert loaded.changes == table.changes


@pytest.mark.parametrize("text", ["", "{", '{"format":1,"latest":9,"routes":{"/a/":{"change":"x"}}}', '{"format":2}'])
async def test_damaged_recent_routes_are_set_aside_and_the_table_is_kept(hubs: Hubs, text: str) -> None:
    folder = hubs.folder / "proxy"
    folder.mkdir()
    table = RouteTable()
    table.set(Route("/user/a/", "http://127.0.0.1:1", "127.0.0.1:1", {}))
    table.snapshot().save(folder / "routes.json")
    (folder / "recent.json").write_text(text)
    assert list(await hubs.proxy().get_all_routes()) == ["/user/a/"]
    assert list(folder.glob("recent.damaged-*"))
    assert any("recent.json" in line for line in hubs.records.lines)
