"""EnvoyProxy with a real Envoy: routing, streaming, adoption, restart, and what people see when something is away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

from marimohub.proxy import BadCertificate, BadRoute, EnvoyProxy, PortInUse, ProxyStartFailed, RouteNotServed
from marimohub.proxy.admin import AdminUnavailable
from marimohub.proxy.bootstrap import ROUTE_STATS_FILTER
from tests.hub import free_port
from tests.proxy.conftest import Hubs, Upstream, raw, tcp_sockets

Start = Callable[..., Upstream]


def pid(proxy: EnvoyProxy) -> int:
    """Envoy's process id, 0 while there is none."""
    assert proxy._process is not None
    return proxy._process.identity.pid if proxy._process.identity else 0


def running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def eventually(check: Callable[[], bool], seconds: float = 30.0) -> float:
    start = time.monotonic()
    while not check():
        assert time.monotonic() - start < seconds, "did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


async def test_added_route_is_served_at_once_and_deleted_one_is_not(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    alice = upstream("alice").url
    for _ in range(20):
        await proxy.add_route("/user/alice/", alice, {"user": "alice"})
        assert (await raw(proxy, "/user/alice/")).server == "alice"
        await proxy.delete_route("/user/alice/")
        assert (await raw(proxy, "/user/alice/")).server == "hub"
    await proxy.delete_route("/user/nobody/")


async def test_changes_made_together_share_one_write(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    target = upstream("one").url
    _, publisher = proxy._open()
    before = publisher.writes
    await asyncio.gather(*(proxy.add_route(f"/user/u{n}/", target, {"user": f"u{n}"}) for n in range(300)))
    assert publisher.writes - before <= 2
    assert (await raw(proxy, "/user/u299/")).server == "one"
    await proxy.add_route("/user/u0/", target, {"user": "u0"})
    assert publisher.writes - before <= 2, "an unchanged route needs no write"


async def test_host_names_in_targets_are_resolved(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", f"http://localhost:{upstream('alice').port}", {"user": "alice"})
    assert (await raw(proxy, "/user/alice/")).server == "alice"
    assert (await proxy.get_all_routes())["/user/alice/"]["target"].startswith("http://localhost:")


async def test_unusable_routes_are_refused_and_harm_nobody(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    for spec, target in [
        ("/user/x/", "http://no-such-host.invalid:1"),
        ("/user/x/", "ftp://127.0.0.1:1"),
        ("/user/../", "http://127.0.0.1:1"),
    ]:
        with pytest.raises(BadRoute):
            await proxy.add_route(spec, target, {})
    assert await proxy.get_all_routes() == {}
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    assert (await raw(proxy, "/user/alice/")).server == "alice"


async def test_websocket_and_large_bodies_and_streams_pass(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    connection = await websocket_connect(proxy.public_url.replace("http", "ws", 1) + "user/alice/ws")
    await connection.write_message("hello")
    assert await connection.read_message() == "alice:'hello'"
    await connection.write_message(b"x" * 3_000_000, binary=True)
    assert len(str(await connection.read_message())) > 3_000_000
    connection.close()

    port = int(proxy.public_url.rsplit(":", 1)[1].strip("/"))
    size = 40_000_000
    for path in ("/user/alice/x", "/hub/api/x"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode())
        writer.write(bytes(size))
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()
    writer.write(b"GET /user/alice/slow HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"first\n")
    assert time.monotonic() - start < 0.4, "the first line of a stream is not held back"
    await reader.readuntil(b"second\n")
    writer.close()


async def test_hub_restart_keeps_envoy_its_routes_and_open_websockets(hubs: Hubs, upstream: Start) -> None:
    first = hubs.proxy()
    await first.start()
    await first.add_route("/user/alice/", upstream("alice").url, {"user": "alice", "server_name": ""})
    before = pid(first)
    connection = await websocket_connect(first.public_url.replace("http", "ws", 1) + "user/alice/ws")
    await hubs.kill(first)

    assert (await raw(first, "/user/alice/")).server == "alice", "served while no hub is there"
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert pid(second) == before
    routes = await second.get_all_routes()
    assert routes["/user/alice/"]["data"].items() >= {"user": "alice", "server_name": ""}.items()
    await second.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    assert (await raw(second, "/user/bob/")).server == "bob"
    await connection.write_message("still here")
    assert await connection.read_message() == "alice:'still here'"
    connection.close()
    await second.stop()
    assert not running(before)


async def test_changed_configuration_replaces_the_running_envoy(hubs: Hubs, upstream: Start) -> None:
    first = hubs.proxy()
    await first.start()
    await first.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    before = pid(first)
    await hubs.kill(first)
    second = hubs.proxy()  # another port
    await second.start()
    assert pid(second) != before
    assert not running(before)
    assert (await raw(second, "/user/alice/")).server == "alice"


async def test_killed_envoy_is_back_with_its_routes(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    for _ in range(2):
        before = pid(proxy)
        os.kill(before, signal.SIGKILL)
        await eventually(lambda before=before: pid(proxy) not in (before, 0))
        while True:
            try:
                answer = await raw(proxy, "/user/alice/")
                break
            except (OSError, EOFError):
                await asyncio.sleep(0.01)
        assert answer.server == "alice"
    assert any("ended unexpectedly" in line for line in hubs.records.lines)


async def test_adopted_envoy_is_supervised_too(hubs: Hubs) -> None:
    first = hubs.proxy()
    await first.start()
    await hubs.kill(first)
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    before = pid(second)
    os.kill(before, signal.SIGKILL)
    first._process._child.wait()  # type: ignore[union-attr]
    await eventually(lambda: pid(second) not in (before, 0))


async def test_hanging_envoy_is_replaced(hubs: Hubs) -> None:
    proxy = hubs.proxy(check_interval=0.05, stop_timeout=0.1)
    proxy._admin.timeout = 0.2
    await proxy.start()
    before = pid(proxy)
    os.kill(before, signal.SIGSTOP)
    await eventually(lambda: pid(proxy) not in (before, 0), 10)
    assert not running(before)


async def test_route_added_while_envoy_restarts_is_served(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    os.kill(pid(proxy), signal.SIGKILL)
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    assert (await raw(proxy, "/user/alice/")).server == "alice"


async def test_route_that_envoy_does_not_take_fails_in_time_and_is_forgotten(hubs: Hubs) -> None:
    proxy = hubs.proxy(route_timeout=0.5, check_interval=30)
    await proxy.start()
    os.kill(pid(proxy), signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RouteNotServed, match=r"within 0\.5 seconds"):
        await proxy.add_route("/user/alice/", "http://127.0.0.1:1", {})
    assert time.monotonic() - start < 3
    assert await proxy.get_all_routes() == {}
    os.kill(pid(proxy), signal.SIGCONT)


async def test_refused_table_fails_the_change_says_why_and_harms_nobody(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", upstream("alice").url, {})
    with monkeypatch.context() as fault:
        fault.setattr("marimohub.proxy.routes.CLUSTER", "")  # Envoy demands a name
        with pytest.raises(RouteNotServed, match="refused"):
            await proxy.add_route("/user/bad/", "http://127.0.0.1:1", {})
    assert list(await proxy.get_all_routes()) == ["/user/alice/"]
    await proxy.add_route("/user/bob/", upstream("bob").url, {})
    assert (await raw(proxy, "/user/alice/")).server == "alice"
    assert (await raw(proxy, "/user/bob/")).server == "bob"
    await eventually(lambda: any("WARNING Envoy: " in line and "rejected" in line for line in hubs.records.lines))


async def test_damaged_table_is_set_aside_and_said(hubs: Hubs) -> None:
    (hubs.folder / "proxy").mkdir()
    (hubs.folder / "proxy" / "routes.json").write_text('{"format":1,"rou')
    proxy = hubs.proxy()
    await proxy.start()
    assert await proxy.get_all_routes() == {}
    assert list((hubs.folder / "proxy").glob("routes.damaged-*"))
    assert any("is damaged" in line for line in hubs.records.lines)


async def test_port_in_use_is_one_clear_sentence(hubs: Hubs) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            await hubs.proxy(port).start()
        assert str(caught.value).startswith(f"The address 127.0.0.1:{port} is already in use by another program.")


async def test_port_taken_between_check_and_start_is_the_same_sentence(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marimohub.proxy.process.check_listenable", lambda settings: None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortInUse):
            await hubs.proxy(other.getsockname()[1]).start()


async def test_missing_program_and_bad_certificate_are_one_sentence(hubs: Hubs, tmp_path: Path) -> None:
    with pytest.raises(ProxyStartFailed, match="There is no Envoy at /nowhere"):
        await hubs.proxy(envoy="/nowhere").start()
    with pytest.raises(BadCertificate, match=r"ssl_cert and c.JupyterHub.ssl_key"):
        await hubs.proxy(ssl_cert=str(tmp_path / "no.pem"), ssl_key=str(tmp_path / "no.key")).start()


async def test_everything_in_the_folder_is_private(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", "http://127.0.0.1:1", {"hub": True})
    folder = hubs.folder / "proxy"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {"admin.sock", "bootstrap.json", "envoy.json", "envoy.log", "routes.json", "routes.pb"}
    names |= {"recent.json", "recent.pb", "sockets.json", "activity.log", "activity-limit.json", "listeners.json"}
    found = [(path.name, path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")]
    assert {(name, mode) for name, is_dir, mode in found if not is_dir} == {(name, 0o600) for name in names}
    assert {mode for _, is_dir, mode in found if is_dir} == {0o700}
    ports = {port for state, port, _ in tcp_sockets(pid(proxy)) if state == "0A"}
    assert ports == {int(proxy.public_url.rsplit(":", 1)[1].strip("/"))}, "no TCP port but the public one"


async def test_where_the_admin_socket_is_cannot_be_read_from_proc(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    secret = Path(os.readlink(f"/proc/{pid(proxy)}/cwd"))
    assert secret.parent == hubs.folder / "proxy"
    assert (secret / "admin.sock").is_socket()
    for shown in ("cmdline", "net/unix", "environ", "comm", "mountinfo"):
        text = Path(f"/proc/{pid(proxy)}/{shown}").read_bytes()
        assert secret.name.encode() not in text, shown
    assert b" admin.sock" in Path(f"/proc/{pid(proxy)}/net/unix").read_bytes()
    for file in ("bootstrap.json", "envoy.log"):
        assert secret.name not in (hubs.folder / "proxy" / file).read_text()
    before = pid(proxy)
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: pid(proxy) not in (before, 0))
    await eventually(lambda: len(list((hubs.folder / "proxy").glob("run-*/admin.sock"))) == 1)
    assert not secret.exists()
    await proxy.stop()
    assert not list((hubs.folder / "proxy").glob("run-*"))


NOT_ANSWERED = [
    ("POST", "/quitquitquit"),
    ("GET", "/config_dump"),
    ("GET", "/stats"),
    ("GET", "/stats?filter=.*"),
    ("GET", f"/stats?filter={ROUTE_STATS_FILTER}&format=json"),
    ("POST", "/logging?level=trace"),
    ("POST", "/runtime_modify?a=b"),
    ("POST", "/drain_listeners"),
    ("POST", "/reopen_logs"),
    ("GET", "/certs"),
    ("GET", "/ready/"),
    ("GET", "/"),
]


async def test_who_finds_the_admin_socket_can_do_nothing_with_it(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    answers = [await proxy._admin.get(path, method=method) for method, path in NOT_ANSWERED]
    assert [(status, "not allowed" in body) for status, body in answers] == [(403, True)] * len(NOT_ANSWERED)
    with pytest.raises(AdminUnavailable, match="403"):
        await proxy._admin.stats(".*")
    assert await proxy._admin.is_live()


async def test_envoy_of_an_older_version_is_ended_and_replaced(hubs: Hubs) -> None:
    first = hubs.proxy()
    await first.start()
    await hubs.kill(first)
    state = hubs.folder / "proxy" / "envoy.json"
    members = json.loads(state.read_text())
    del members["run"]
    state.write_text(json.dumps({**members, "fingerprint": "older"}))
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert second.adopted is False
    assert not running(members["pid"])
    assert await second._admin.is_live()


async def test_deep_folder_is_no_problem_for_the_admin_socket(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(data_dir=str(hubs.folder / ("d" * 100) / "e"))
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    assert (await raw(proxy, "/")).server == "hub"


async def test_stopped_server_shows_a_page_that_leads_to_the_notebooks(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/user/alice/", f"http://127.0.0.1:{free_port()}", {"user": "alice"})
    page = await raw(proxy, "/user/alice/", "Accept: text/html")
    assert (page.status, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert b"Your server is not running" in page.body
    assert b'href="/hub/notebooks"' in page.body
    answer = await raw(proxy, "/user/alice/", "Accept: application/json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["error"]["code"] == "server_not_running"


async def test_restarting_hub_shows_a_page_that_reloads(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    for ready in (False, True):  # first without any route, then with a hub that refuses connections
        if ready:
            await proxy.add_route("/", f"http://127.0.0.1:{free_port()}", {"hub": True})
        page = await raw(proxy, "/hub/home")
        assert page.status == 503
        assert b"The hub is restarting" in page.body and b'http-equiv="refresh"' in page.body
        assert page.headers["cache-control"] == "no-store"


async def test_requests_wait_for_a_hub_that_is_back_soon(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    port = free_port()
    await proxy.add_route("/", f"http://127.0.0.1:{port}", {"hub": True})
    waiting = asyncio.create_task(raw(proxy, "/hub/home"))
    await asyncio.sleep(0.5)
    upstream("hub", port=port)
    assert (await waiting).server == "hub"


async def test_host_routing_sends_each_host_to_its_user(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(host_routing=True)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("alice.hub.tld/user/alice/", upstream("alice").url, {"user": "alice"})
    with pytest.raises(ValueError, match="without host"):
        await proxy.add_route("/user/bob/", "http://127.0.0.1:1", {})
    assert (await raw(proxy, "/user/alice/", host="ALICE.hub.tld:8000")).server == "alice"
    assert (await raw(proxy, "/hub/", host="alice.hub.tld")).server == "hub"
    assert (await raw(proxy, "/user/alice/", host="bob.hub.tld")).server == "hub"
    assert (await raw(proxy, "/user/alice/", host="alice.hub.tld.evil")).server == "hub"


async def test_access_log_holds_no_query(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(access_log=True)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await raw(proxy, "/hub/oauth?code=secret")
    log = hubs.folder / "proxy" / "access.log"
    await proxy.stop()  # writes out what Envoy buffers
    line = json.loads(log.read_text().splitlines()[0])
    assert (line["path"], line["status"]) == ("/hub/oauth", 200)
    assert "secret" not in log.read_text()
