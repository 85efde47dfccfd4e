"""Several Envoys with one hub's routes: what one serves the others serve, and none what was taken away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

from marimohub.proxy import ProxyStartFailed, follower, share
from marimohub.proxy.envoy import EnvoyProxy
from marimohub.proxy.errors import ReplicaBehind
from marimohub.proxy.follower import ShareUnreadable, check_private, version_of
from marimohub.proxy.replica import Replica
from marimohub.proxy.share import Share, Status
from marimohub.proxy.sockets import render
from tests.hub import free_port
from tests.proxy.conftest import Hubs, Records, Upstream, raw
from tests.proxy.test_tls import make_certificate
from tests.proxy.test_tls import request as request_by_tls

Start = Callable[..., Upstream]
Add = Callable[..., Awaitable[Replica]]


async def until(what: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until it answers something true, for 20 seconds at the most."""
    async with asyncio.timeout(20):
        while not (found := await what()):
            await asyncio.sleep(0.02)
    return found


async def served(proxy: EnvoyProxy, path: str) -> str | None:
    """The name of the server that answers there."""
    return (await raw(proxy, path)).server


def served_is(proxy: EnvoyProxy, path: str, name: str | None) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        try:
            return await served(proxy, path) == name
        except (OSError, asyncio.IncompleteReadError):
            return False  # not listening

    return ask


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "share"


@pytest.fixture
async def add_replica(hubs: Hubs, shared: Path, tmp_path: Path) -> AsyncIterator[Add]:
    """Starts one more proxy, which reaches the shared folder by a name of its own."""
    made: list[Replica] = []

    async def start(**traits: Any) -> Replica:
        number = len(made)
        way = tmp_path / f"way-{number}"
        way.symlink_to(shared)
        app = types.SimpleNamespace(subdomain_host="", data_dir=str(tmp_path / f"replica-{number}"))
        traits.setdefault("listen", f"http://127.0.0.1:{free_port()}/")
        replica = Replica(app=app, log=hubs.log, share_dir=str(way), check_interval=0.1, **traits)
        made.append(replica)
        await replica.start()
        return replica

    start.made = made  # type: ignore[attr-defined]
    yield start
    for replica in made:
        await replica.stop()
        await replica.follower.leave()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times than in life, in the same order."""
    monkeypatch.setattr(follower, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(follower, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 3.0)


async def with_hub(hubs: Hubs, shared: Path, upstream: Start, **traits: Any) -> EnvoyProxy:
    hub = hubs.proxy(share_dir=str(shared), **traits)
    await hub.start()
    await hub.add_route("/", upstream("hub").url, {"hub": True})
    return hub


async def with_alice(hubs: Hubs, shared: Path, upstream: Start, add_replica: Add) -> tuple[EnvoyProxy, Replica]:
    """A hub's proxy and a replica that serves alice's route, too."""
    hub = await with_hub(hubs, shared, upstream)
    replica = await add_replica()
    await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await until(served_is(replica, "/user/alice/", "alice"))
    return hub, replica


def cut_off(replica: Replica) -> Callable[[], None]:
    """Take the shared folder from the replica; the answer gives it back."""
    way = Path(replica.share_dir)
    target = way.readlink()
    way.unlink()
    return lambda: way.symlink_to(target)


async def test_a_route_is_served_by_every_proxy_when_add_route_returns(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub = await with_hub(hubs, shared, upstream)
    replicas = [await add_replica(), await add_replica()]
    for replica in replicas:
        await until(served_is(replica, "/hub/", "hub"))
    alice, other = upstream("alice"), upstream("other")
    for number in range(60):  # more than the overlay begins with
        await hub.add_route(f"/user/u{number}/", alice.url, {"user": "alice"})
        assert [await served(replica, f"/user/u{number}/x") for replica in replicas] == ["alice", "alice"]
    await hub.add_route("/user/u59/", other.url, {"user": "alice"})
    assert [await served(replica, "/user/u59/x") for replica in replicas] == ["other", "other"]
    await hub.delete_route("/user/u58/")
    assert [await served(replica, "/user/u58/x") for replica in replicas] == ["hub", "hub"]


async def test_open_websockets_outlive_route_changes_and_a_killed_hub(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub, replica = await with_alice(hubs, shared, upstream, add_replica)
    connection = await websocket_connect(replica.public_url.replace("http", "ws", 1) + "user/alice/ws")
    port = int(hub.public_url.rsplit(":", 1)[1].strip("/"))
    await hubs.kill(hub)
    assert await served(replica, "/user/alice/") == "alice"
    again = hubs.proxy(port, share_dir=str(shared))
    await again.start()
    assert again.adopted
    await again.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    assert await served(replica, "/user/bob/") == "bob"
    await connection.write_message("still")
    assert await connection.read_message() == "alice:'still'"
    connection.close()


async def test_a_proxy_that_lost_the_folder_serves_no_routes_and_keeps_open_connections(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add, impatient: None
) -> None:
    hub, replica = await with_alice(hubs, shared, upstream, add_replica)
    connection = await websocket_connect(replica.public_url.replace("http", "ws", 1) + "user/alice/ws")
    give_back = cut_off(replica)
    await hub.delete_route("/user/alice/")  # the hub waits for its sign of life, and no longer
    lost = await raw(replica, "/user/alice/")
    assert lost.status == 503
    assert any("is lost: serving no routes" in line for line in hubs.records.lines)
    assert any("gives no sign of life" in line for line in hubs.records.lines)
    await connection.write_message("still")
    assert await connection.read_message() == "alice:'still'"
    connection.close()
    give_back()
    await until(served_is(replica, "/user/alice/", "hub"))
    await hub.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    assert await served(replica, "/user/bob/") == "bob"


async def test_an_envoy_that_takes_no_routes_is_ended_before_the_hub_says_they_are_gone(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add, impatient: None
) -> None:
    hub, replica = await with_alice(hubs, shared, upstream, add_replica)
    stuck = replica._process.identity  # type: ignore[union-attr]
    os.kill(stuck.pid, signal.SIGSTOP)
    await hub.delete_route("/user/alice/")
    assert not stuck.alive()
    await until(served_is(replica, "/user/alice/", "hub"))


async def test_a_replica_whose_envoy_was_killed_serves_again(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub = await with_hub(hubs, shared, upstream)
    replica = await add_replica()
    await until(served_is(replica, "/hub/", "hub"))
    os.kill(replica._process.identity.pid, signal.SIGKILL)  # type: ignore[union-attr]
    await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await until(served_is(replica, "/user/alice/", "alice"))


async def test_a_change_that_cannot_be_shared_fails_and_the_hubs_own_envoy_goes_on(
    hubs: Hubs, upstream: Start, shared: Path, tmp_path: Path
) -> None:
    hub = await with_hub(hubs, shared, upstream)
    away = tmp_path / "away"
    shared.rename(away)
    with pytest.raises(ReplicaBehind, match="cannot be used"):
        await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    assert "/user/alice/" not in await hub.get_all_routes()
    os.kill(hub._process.identity.pid, signal.SIGKILL)  # type: ignore[union-attr]
    await until(served_is(hub, "/hub/", "hub"))
    away.rename(shared)
    await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    assert await served(hub, "/user/alice/") == "alice"


async def test_a_replica_that_lives_and_never_serves_a_change_makes_it_fail(
    hubs: Hubs, upstream: Start, shared: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.5)
    hub = await with_hub(hubs, shared, upstream)
    beats = iter(range(1, 100_000))

    async def live() -> None:
        while True:
            Status(next(beats), True, {}, {}).write(shared / "replicas" / "liar.json")
            await asyncio.sleep(0.05)

    liar = asyncio.create_task(live())
    await asyncio.sleep(0.1)
    with pytest.raises(ReplicaBehind, match="liar"):
        await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    liar.cancel()


async def test_another_configuration_of_the_hub_reaches_the_replica(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub = await with_hub(hubs, shared, upstream)
    replica = await add_replica()
    await until(served_is(replica, "/hub/", "hub"))
    ended = asyncio.Event()
    await replica._stop_watching()
    running = asyncio.create_task(replica.run(ended))

    async def is_watched() -> bool:
        return replica._supervision is not None

    await until(is_watched)
    long = "X-Long: " + "x" * 20_000

    async def taken() -> bool:
        return (await raw(replica, "/hub/", long)).status == 200

    await until(taken)
    port = int(hub.public_url.rsplit(":", 1)[1].strip("/"))
    await hubs.kill(hub)
    again = hubs.proxy(port, share_dir=str(shared), max_header_kb=8)
    await again.start()

    async def refused() -> bool:
        try:
            return (await raw(replica, "/hub/", long)).status == 431
        except (OSError, asyncio.IncompleteReadError):
            return False

    await until(refused)
    await until(served_is(replica, "/hub/", "hub"))
    ended.set()
    await running
    add_replica.made.remove(replica)  # type: ignore[attr-defined]
    assert list((shared / "replicas").iterdir()) == []


async def test_a_replica_that_is_started_again_takes_its_envoy_over_with_the_routes_of_now(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub, replica = await with_alice(hubs, shared, upstream, add_replica)
    connection = await websocket_connect(replica.public_url.replace("http", "ws", 1) + "user/alice/ws")
    await replica._stop_watching()
    await replica.follower.leave()
    await hub.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    again = Replica(app=replica.app, log=hubs.log, share_dir=replica.share_dir, listen=replica.listen)
    add_replica.made[:] = [again]  # type: ignore[attr-defined]
    await again.start()
    assert again.adopted
    assert [await served(again, f"/user/{name}/") for name in ("alice", "bob")] == ["alice", "bob"]
    await connection.write_message("still")
    assert await connection.read_message() == "alice:'still'"
    connection.close()


async def test_use_through_a_replica_counts_as_activity(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add
) -> None:
    hub = await with_hub(hubs, shared, upstream)
    replica = await add_replica()
    await hub.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    await hub.add_route("/user/bob/", upstream("bob").url, {"user": "bob"})
    await until(served_is(replica, "/user/alice/", "alice"))

    async def told() -> bool:
        return "last_activity" in (await hub.get_all_routes())["/user/alice/"]["data"]

    await until(told)
    assert "last_activity" not in (await hub.get_all_routes())["/user/bob/"]["data"]


async def test_the_hubs_certificate_is_the_replicas_too_and_is_renewed(
    hubs: Hubs, upstream: Start, shared: Path, add_replica: Add, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "first")
    url = f"https://127.0.0.1:{free_port()}/"
    await with_hub(hubs, shared, upstream, public_url=url, ssl_cert=certificate, ssl_key=key)
    replica = await add_replica(listen=f"https://127.0.0.1:{free_port()}/")

    def shows(name: str) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            try:
                return (await request_by_tls(replica, certificate))[1] == name
            except (OSError, ValueError):
                return False

        return ask

    await until(shows("first"))
    make_certificate(tmp_path, "second")
    await until(shows("second"))


async def test_what_is_shared_is_closed_to_others(hubs: Hubs, upstream: Start, shared: Path, add_replica: Add) -> None:
    await with_hub(hubs, shared, upstream)
    await add_replica()
    folders = [shared, *(path for path in shared.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in shared.rglob("*") if path.is_file()} == {0o600}


async def test_the_command_waits_for_the_hub_and_ends_with_its_envoy(
    hubs: Hubs, upstream: Start, shared: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    command = [sys.executable, "-m", "marimohub", "proxy", f"--share={shared}", f"--listen={url}"]
    with open(tmp_path / "replica.log", "wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        await with_hub(hubs, shared, upstream)
        there = types.SimpleNamespace(public_url=url)
        await until(served_is(there, "/hub/", "hub"))  # type: ignore[arg-type]
        envoy = json.loads((tmp_path / "marimohub-proxy" / "proxy" / "envoy.json").read_text())["pid"]
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0, (tmp_path / "replica.log").read_text()
        assert not Path(f"/proc/{envoy}").exists()
        assert list((shared / "replicas").iterdir()) == []
    finally:
        process.kill()
        process.wait()


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "marimohub", "proxy"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "--share" in done.stderr) == (1, True), done.stderr


@pytest.mark.unit
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    folder.mkdir(mode=0o700)
    check_private(folder)
    folder.chmod(0o770)
    with pytest.raises(ProxyStartFailed, match="others than this user"):
        check_private(folder)
    with pytest.raises(ProxyStartFailed, match="cannot be read"):
        check_private(tmp_path / "missing")


@pytest.mark.unit
def test_the_version_of_a_file_is_found_or_the_file_refused() -> None:
    assert version_of(render("12ab.7", [])) == "12ab.7"
    for damaged in (b"", b"\n", b"\n\x09short", b"{", b"{}", b"\x12\x01a"):
        with pytest.raises(ShareUnreadable):
            version_of(damaged)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.json", "{"),
        ("settings.json", '{"format": 2}'),
        ("settings.json", '{"format": 1, "settings": {"a": 1}}'),
    ],
)
async def test_settings_of_another_version_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    app = types.SimpleNamespace(subdomain_host="", data_dir=str(tmp_path / "replica"))
    replica = Replica(app=app, share_dir=str(tmp_path))
    with pytest.raises(ProxyStartFailed, match="of another version"):
        await replica._settings()


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"beat": 1, "serving": true, "versions": [], "used": {}}'])
async def test_a_damaged_word_of_a_replica_confirms_nothing(tmp_path: Path, text: str, impatient: None) -> None:
    records, log = Records(), Hubs(tmp_path).log
    log.addHandler(records)
    hub = Share(tmp_path, log)
    hub.open()
    path = tmp_path / "replicas" / "one.json"
    path.write_text(text)
    waiting = asyncio.create_task(hub.confirm("routes", "a.2"))

    def heard(beat: int) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            return hub._heard.get("one", (0, 0.0))[0] == beat

        return ask

    await until(heard(-1))
    assert len([line for line in records.lines if "damaged" in line]) == 1
    for beat, version in enumerate(("", "b.9", "a.1", "a.", "nonsense"), start=1):
        Status(beat, True, {"routes": version}, {}).write(path)
        await until(heard(beat))
        assert not waiting.done()
    Status(9, True, {"routes": "a.2"}, {}).write(path)
    await waiting
