"""Envoy is watched, restarted and ended whatever the hub runs out of, and never left behind by a failed start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marimohub.proxy import EnvoyProxy, ProxyStartFailed
from tests.proxy.conftest import Hubs
from tests.proxy.test_envoy import eventually, pid, running


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))  # poll() itself refuses 0
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def adopted(hubs: Hubs) -> EnvoyProxy:
    first = hubs.proxy()
    await first.start()
    await hubs.kill(first)
    second = hubs.proxy(public_url=first.public_url)
    await second.start()
    assert second.adopted
    return second


async def own(hubs: Hubs) -> EnvoyProxy:
    proxy = hubs.proxy()
    await proxy.start()
    return proxy


@pytest.mark.parametrize("start", [own, adopted])
async def test_stop_ends_envoy_when_the_hub_has_no_descriptors_left(hubs: Hubs, start: object) -> None:
    proxy = await start(hubs)  # type: ignore[operator]
    before = pid(proxy)
    with no_descriptors():
        await asyncio.sleep(0.3)  # the supervisor looks at least once
        await proxy.stop()
    assert not running(before)


@pytest.mark.parametrize("start", [own, adopted])
async def test_supervision_survives_a_hub_without_descriptors(hubs: Hubs, start: object) -> None:
    proxy = await start(hubs)  # type: ignore[operator]
    before = pid(proxy)
    with no_descriptors():
        await asyncio.sleep(2)  # longer than the checks an Envoy may miss
        os.kill(before, 0)
        assert proxy._process is not None and proxy._process.alive(), "a hub that cannot look must not end Envoy"
        assert any("Too many open files" in line for line in hubs.records.lines)
        os.kill(before, signal.SIGKILL)
        await asyncio.sleep(0.5)
    await eventually(lambda: pid(proxy) not in (before, 0), 10)
    await eventually(lambda: running(pid(proxy)))


async def test_stop_ends_an_envoy_whose_supervision_has_died(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    before = pid(proxy)
    supervision = proxy._supervision
    assert supervision is not None

    async def broken() -> None:
        raise OSError("fault")

    supervision.cancel()
    proxy._supervision = asyncio.create_task(broken())
    await proxy.stop()
    assert not running(before)


def envoys(hubs: Hubs) -> list[int]:
    """Envoys of this test's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            folder = os.readlink(entry / "cwd")
        except OSError:
            continue
        if folder.startswith(str(hubs.folder / "proxy" / "run-")) and running(int(entry.name)):
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("function", ["start_time", "write_atomically"])
async def test_a_fault_right_after_the_process_was_made_leaves_none(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    proxy = hubs.proxy()

    def fault(path: object, *args: object, **kwargs: object) -> None:
        if function == "start_time" or Path(str(path)).name == "envoy.json":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(f"marimohub.proxy.process.{function}", fault)
        with pytest.raises(OSError, match="No space"):
            await proxy.start()
        assert envoys(hubs) == []
    await proxy.stop()
    await proxy.start()
    assert len(envoys(hubs)) == 1


async def test_a_start_that_takes_too_long_or_is_cancelled_leaves_no_envoy(
    hubs: Hubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*args: object, **kwargs: object) -> bool:
        return False

    proxy = hubs.proxy(start_timeout=0.3)
    monkeypatch.setattr(proxy._admin, "is_live", never)
    with pytest.raises(ProxyStartFailed, match="not ready"):
        await proxy.start()
    assert envoys(hubs) == []
    proxy.start_timeout = 30
    starting = asyncio.create_task(proxy.start())
    await eventually(lambda: bool(envoys(hubs)))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert envoys(hubs) == []
    await proxy.stop()


async def test_stop_works_before_during_and_after_a_start(hubs: Hubs) -> None:
    proxy = hubs.proxy()
    await proxy.stop()
    starting = asyncio.create_task(proxy.start())
    await eventually(lambda: bool(envoys(hubs)))
    await proxy.stop()
    # a fast start may be complete before it is told to stop
    with contextlib.suppress(ProxyStartFailed):
        await starting
    await proxy.stop()
    assert envoys(hubs) == []
