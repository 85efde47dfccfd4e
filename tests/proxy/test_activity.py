"""`last_activity` says when a server was used, told by the traffic through Envoy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from marimohub.proxy import EnvoyProxy
from marimohub.proxy.activity import Activity, ActivityUnreadable, Lines
from tests.proxy.conftest import Hubs, Upstream, raw

Start = Callable[..., Upstream]
SERVER = "127.0.0.1:8888"


def periodic(start: int, seconds: float, received: int, sent: int, stream: str = "a", code: int = 101) -> str:
    return f"P {start} {code} {int(seconds * 1000)} {stream} {received} {sent} {SERVER}"


@pytest.mark.unit
@pytest.mark.parametrize("code", [101, 200, 204, 304])
def test_a_request_that_was_answered_counts_when_it_began(code: int) -> None:
    assert Lines(30).take([f"E 1000 {code} {SERVER}", f"E 990 {code} {SERVER}"]) == {SERVER: 1000.0}


@pytest.mark.unit
@pytest.mark.parametrize("code", [0, 302, 400, 401, 403, 404, 429, 500, 502, 503])
def test_strangers_who_are_turned_away_do_not_keep_a_server_running(code: int) -> None:
    assert Lines(30).take([f"E 1000 {code} {SERVER}", periodic(1000, 30, 9999, 9999, code=code)]) == {}


@pytest.mark.unit
def test_an_open_websocket_counts_while_something_is_said() -> None:
    lines = Lines(30)
    assert lines.take([periodic(1000, 30, 0, 500)]) == {SERVER: 1030.0}
    assert lines.take([periodic(1000, 60, 0, 500)]) == {}
    assert lines.take([periodic(1000, 90, 400, 500)]) == {SERVER: 1090.0}
    assert lines.take([periodic(1000, 120, 400, 501)]) == {}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("interval", "seconds", "answer", "question"), [(30, 20, 10, 6), (1, 20, 14, 10), (30, 30, 6, 2)]
)
def test_pings_alone_are_no_use(interval: int, seconds: int, answer: int, question: int) -> None:
    lines = Lines(interval)
    told = [
        periodic(1000, now, now // seconds * answer, now // seconds * question)
        for now in range(interval, 600, interval)
    ]
    assert lines.take(told) == {}


@pytest.mark.unit
def test_a_stream_whose_beginning_is_not_known_counts_from_its_second_line() -> None:
    lines = Lines(30)
    assert lines.take([periodic(1000, 3000, 10_000, 10_000)]) == {}
    assert lines.take([periodic(1000, 3030, 10_000, 10_000)]) == {}
    assert lines.take([periodic(1000, 3060, 10_100, 10_000)]) == {SERVER: 4060.0}


@pytest.mark.unit
def test_streams_that_ended_are_forgotten() -> None:
    lines = Lines(30)
    lines.take([periodic(1000, 30, 0, 0, stream=f"s{n}") for n in range(1000)])
    lines.take([periodic(1000, 500, 0, 0, stream="last")])
    assert list(lines._streams) == ["last"]


@pytest.mark.unit
def test_what_is_no_line_is_passed_over() -> None:
    odd = ["", "E", "E x 200 y", "P 1000 101 -", "P 1000 101 30000 a - 5 x", "\ufffd", f"E 1000 200 {SERVER}"]
    assert Lines(30).take(odd) == {SERVER: 1000.0}


@pytest.mark.unit
def test_a_path_of_a_socket_may_hold_blanks() -> None:
    assert Lines(30).take(["E 1000 200 /run/my server/s.sock"]) == {"/run/my server/s.sock": 1000.0}


@pytest.mark.unit
async def test_the_log_is_emptied_only_when_what_it_said_is_stored(tmp_path: Path) -> None:
    log = tmp_path / "activity.log"
    now = int(time.time())
    log.write_text(
        f"E {now} 200 {SERVER}\n" * 50_000 + f"E {now + 5} 2"
    )  # over a megabyte; the last line is not complete
    first = Activity(log, 30)
    await first.update([SERVER])
    assert first.last(SERVER) == now
    assert log.stat().st_size == 0
    with open(log, "a") as file:
        file.write(f"E {now + 9} 200 {SERVER}\n")
    second = Activity(log, 30)
    second.load()
    assert second.last(SERVER) == now
    await second.update([SERVER])
    assert second.last(SERVER) == now + 9
    await second.update([])
    assert second.last(SERVER) is None, "a server without a route is forgotten"


@pytest.mark.unit
async def test_another_server_at_the_same_address_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "activity.log"
    now = int(time.time())
    log.write_text(f"E {now - 60} 200 {SERVER}\n")
    activity = Activity(log, 30)
    await activity.update([SERVER])
    assert activity.last(SERVER) == now - 60
    with open(log, "a") as file:
        file.write(f"E {now - 50} 200 {SERVER}\n")
    activity.begin(SERVER)
    await activity.update([SERVER])
    assert activity.last(SERVER) is None
    with open(log, "a") as file:
        file.write(f"E {now + 1} 200 {SERVER}\n")
    await activity.update([SERVER])
    assert activity.last(SERVER) == now + 1


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "[]", '{"used": 5, "since": {}}', '{"used": {"a": "x"}, "since": {}}'])
async def test_a_damaged_store_is_told_and_replaced(tmp_path: Path, text: str) -> None:
    log = tmp_path / "activity.log"
    (tmp_path / "activity.json").write_text(text)
    activity = Activity(log, 30)
    with pytest.raises(ActivityUnreadable, match=r"activity\.json is damaged"):
        activity.load()
    assert activity.last("a") is None


async def last(proxy: EnvoyProxy, routespec: str = "/user/alice/") -> float | None:
    found = (await proxy.get_all_routes())[routespec]["data"].get("last_activity")
    return None if found is None else datetime.fromisoformat(found).timestamp()


async def until_later(proxy: EnvoyProxy, moment: float) -> float:
    """The last use, once it is after that moment."""
    async with asyncio.timeout(15):
        while (found := await last(proxy) or 0.0) <= moment:
            await asyncio.sleep(0.1)
    return found


async def websocket(proxy: EnvoyProxy) -> WebSocketClientConnection:
    return await websocket_connect(proxy.public_url.replace("http", "ws") + "user/alice/ws")


async def test_traffic_through_envoy_is_told_and_silence_is_not(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(activity_interval=0.5)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await proxy.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    assert await last(proxy) is None
    began = int(time.time())
    assert (await raw(proxy, "/user/alice/")).server == "alice"
    opened = await until_later(proxy, began - 1)
    assert opened <= time.time()
    assert await last(proxy, "/user/bob/") is None

    socket = await websocket(proxy)
    for _ in range(4):
        await socket.write_message("x" * 40)
        await socket.read_message()
        await asyncio.sleep(0.5)
    told = await until_later(proxy, opened + 0.5)
    await hubs.kill(proxy)

    # the next hub goes on from there, and a socket on which nothing is said does not count
    second = hubs.proxy(public_url=proxy.public_url, activity_interval=0.5)
    await second.start()
    assert second.adopted
    await asyncio.sleep(3)  # Envoy's last lines of what was said
    after = await last(second)
    assert after is not None and after >= told
    await asyncio.sleep(2)
    assert await last(second) == after
    await socket.write_message("y" * 40)
    await socket.read_message()
    assert await until_later(second, after) > after
    socket.close()


async def test_no_byte_of_a_client_reaches_the_activity_log(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy(activity_interval=0.5)
    await proxy.start()
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await raw(proxy, "/user/alice/secret%0AE?code=secret", "X-Request-Id: secret", "User-Agent: secret", host="secret")
    await until_later(proxy, 0)
    log = hubs.folder / "proxy" / "activity.log"
    assert log.read_text().startswith("E 1")
    assert "secret" not in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


async def test_the_log_grows_slowly_whatever_a_client_does(
    hubs: Hubs, upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marimohub.proxy.bootstrap.ACTIVITY_LINES_PER_SECOND", 1)
    proxy = hubs.proxy(activity_interval=0.5)
    await proxy.start()
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    socket = await websocket(proxy)
    await asyncio.gather(*(raw(proxy, "/user/alice/") for _ in range(200)))
    await socket.write_message("x" * 40)
    await until_later(proxy, 0)
    async with asyncio.timeout(15):  # open connections are told of whatever the others do
        log = hubs.folder / "proxy" / "activity.log"
        while "P " not in (text := log.read_text()):
            await asyncio.sleep(0.1)
    assert text.startswith("E ") or "\nE " in text
    assert len([line for line in text.splitlines() if line.startswith("E ")]) < 100
    socket.close()
