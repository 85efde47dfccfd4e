"""What locks cost: heartbeats of 500 holders, and the Notebooks page with 1,000 notebooks.

500 people hold a lock each. Their heartbeats go over HTTP to the port of a real hub on this machine, in a process of
their own, with the tokens that notebook servers have, on a few connections without a pause: so the rate is what the hub
can do, and the time of each heartbeat includes the wait for those before it. In life 500 holders send 8 heartbeats per
second; the second figure is of ten times that. The page is fetched by one person again and again, 500 of 1,000
notebooks being locked; its time includes the transfer over loopback.

For context on stderr: the same heartbeats without HTTP and JupyterHub, by the domain functions in worker threads alone.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyterhub import orm as jupyterhub_orm
from jupyterhub import roles as jupyterhub_roles
from jupyterhub import scopes as jupyterhub_scopes

from benchmarks.common import emit, note, percentile, quick
from marimohub import locks
from marimohub.auth.roles import SCOPES, SERVER_TOKEN_SCOPES
from marimohub.database import Database, sqlite_pragmas
from marimohub.notebooks import NotebookStore
from tests.hub import Hub, Person

HOLDERS = 500
NOTEBOOKS = 1000
LANES = 8
SECONDS = 4.0 if quick() else 15.0
PACED_PER_SECOND = 83
PAGES = 20 if quick() else 60
TTL = 900.0


@dataclass(frozen=True)
class Holder:
    """One person with a lock: what is needed to renew it."""

    user: str
    notebook: str
    fence: int
    token: str


def furnish(hub: Hub) -> list[Holder]:
    """Fill the database of a hub that does not run: people with their servers' tokens, notebooks, locks."""
    url = f"sqlite:///{hub.data / 'marimohub.sqlite'}"
    session = jupyterhub_orm.new_session_factory(url, pool_events=[(sqlite_pragmas, "connect")])()
    jupyterhub_scopes.define_custom_scopes(SCOPES)
    tokens = {}
    for number in range(HOLDERS):
        user = jupyterhub_orm.User(name=f"holder{number}")
        session.add(user)
        jupyterhub_roles.assign_default_roles(session, user)
        scopes = [scope.replace("!user", f"!user={user.name}") for scope in SERVER_TOKEN_SCOPES]
        tokens[user.name] = user.new_api_token(note=f"Server at /user/{user.name}/", scopes=scopes)
    session.commit()
    session.close()
    database = Database(url)
    store = NotebookStore(database, hub.data / "notebooks")
    for number in range(NOTEBOOKS):
        (store.folder(1) / f"notebook{number}.py").write_text(f"import marimo\nx = {number}\n")
    now = time.time()
    store.list_all(1, now=now)
    holders = []
    with database.transaction() as own:
        for number, (user_name, token) in enumerate(tokens.items()):
            name = f"notebook{number}"
            fence = locks.acquire(own, 1, name, user_name, now=now, ttl=TTL).fence
            holders.append(Holder(user_name, name, fence, token))
    database.close()
    return holders


def request_bytes(holder: Holder, port: int) -> bytes:
    body = json.dumps({"fence": holder.fence}).encode()
    head = (
        f"POST /hub/api/notebooks/{holder.notebook}/heartbeat HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: token {holder.token}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    """Send one heartbeat; returns the seconds to its answer."""
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    taken = time.perf_counter() - began
    if not head.startswith(b"HTTP/1.1 200"):
        raise AssertionError(f"a heartbeat was refused: {head.decode()}{body.decode()}")
    return taken


async def unpaced(port: int, holders: list[Holder], seconds: float | None) -> tuple[float, list[float]]:
    """Heartbeats without a pause on LANES connections, for some time or one of each; returns operations/s and times."""
    times: list[float] = []
    end = time.perf_counter() + (seconds if seconds is not None else 1e9)

    async def lane(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        requests = [request_bytes(holder, port) for holder in holders[number::LANES]]
        while True:
            for request in requests:
                if time.perf_counter() > end:
                    writer.close()
                    return
                times.append(await send(reader, writer, request))
            if seconds is None:
                writer.close()
                return

    began = time.perf_counter()
    await asyncio.gather(*(lane(number) for number in range(LANES)))
    return len(times) / (time.perf_counter() - began), times


async def paced(port: int, holders: list[Holder], seconds: float) -> list[float]:
    """A steady stream of heartbeats, each on its due moment; returns the times."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LANES)]
    free: asyncio.Queue[Any] = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    times: list[float] = []

    async def one(holder: Holder) -> None:
        began = time.perf_counter()
        reader, writer = await free.get()
        await send(reader, writer, request_bytes(holder, port))
        times.append(time.perf_counter() - began)
        free.put_nowait((reader, writer))

    began = time.perf_counter()
    running = []
    for number in range(int(seconds * PACED_PER_SECOND)):
        await asyncio.sleep(max(began + number / PACED_PER_SECOND - time.perf_counter(), 0))
        running.append(asyncio.create_task(one(holders[number % len(holders)])))
    await asyncio.gather(*running)
    for _, writer in connections:
        writer.close()
    return times


def load(port: int, hub_pid: int, holders: list[Holder], results: Any) -> None:
    """The client process."""
    # the hub loads each person once, and notes their activity twice a minute
    asyncio.run(unpaced(port, holders, None))
    before = cpu_seconds(hub_pid)
    rate, times = asyncio.run(unpaced(port, holders, SECONDS))
    cpu = (cpu_seconds(hub_pid) - before) / len(times)
    results.put((rate, times, cpu, asyncio.run(paced(port, holders, SECONDS / 2))))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_heartbeats(hub: Hub, holders: list[Holder]) -> None:
    assert hub.process is not None
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    client = context.Process(target=load, args=(hub.hub_port, hub.process.pid, holders, results))
    client.start()
    while True:
        try:
            rate, times, cpu, calm = results.get(timeout=1)
            break
        except Exception:
            if not client.is_alive():
                raise AssertionError("the client failed, see above") from None
    client.join()
    median, calm_median = (statistics.median(values) * 1000 for values in (times, calm))
    note(f"{len(times)} heartbeats of {HOLDERS} holders on {LANES} connections, median {median:.1f} ms")
    note(f"processor time of the hub per heartbeat: {cpu * 1000:.2f} ms, so one processor does {1 / cpu:.0f}/s")
    note(f"{len(calm)} heartbeats at {PACED_PER_SECOND}/s, median {calm_median:.1f} ms")
    emit("lock_paced_p99_ms", percentile(calm, 99) * 1000)
    emit("lock_ops_per_s", rate)
    emit("lock_p99_ms", percentile(times, 99) * 1000)


def measure_page(hub: Hub, person: Person) -> None:
    assert hub.process is not None
    times, before = [], 0.0
    for number in range(PAGES + 3):
        if number == 3:
            before = cpu_seconds(hub.process.pid)
        began = time.perf_counter()
        answer = person.session.get(f"http://127.0.0.1:{hub.hub_port}/hub/notebooks", timeout=30)
        taken = time.perf_counter() - began
        assert answer.status_code == 200 and f"notebook{NOTEBOOKS - 1}" in answer.text, answer.text[:1000]
        if number >= 3:
            times.append(taken)
    cpu = (cpu_seconds(hub.process.pid) - before) / PAGES
    note(f"processor time of the hub per page: {cpu * 1000:.0f} ms")
    note(
        f"page with {NOTEBOOKS} notebooks: {len(answer.content) // 1024} KiB, p95 {percentile(times, 95) * 1000:.0f} ms"
    )
    emit("page_1000_ms", statistics.median(times) * 1000)


async def domain_only(url: str, holders: list[Holder]) -> tuple[float, list[float]]:
    """The same heartbeats by the domain functions alone."""
    database = Database(url)
    times: list[float] = []
    end = time.perf_counter() + SECONDS / 2

    async def lane(number: int) -> None:
        while time.perf_counter() < end:
            for holder in holders[number::LANES]:
                began = time.perf_counter()
                await database.write(
                    locks.heartbeat, 1, holder.notebook, holder.user, holder.fence, now=time.time(), ttl=TTL
                )
                times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(lane(number) for number in range(LANES)))
    rate = len(times) / (time.perf_counter() - began)
    database.close()
    return rate, times


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="marimohub-bench-") as name:
        folder = Path(name)
        hub = Hub(folder, "c.MarimoHub.default_role = 'editor'\nc.JupyterHub.log_level = 'WARN'\n")
        hub.start()
        person = Person(hub, "ann").set_up()
        hub.stop()
        holders = furnish(hub)
        rate, times = asyncio.run(domain_only(f"sqlite:///{hub.data / 'marimohub.sqlite'}", holders))
        note(f"domain functions alone: {rate:.0f} heartbeats/s, p99 {percentile(times, 99) * 1000:.1f} ms")
        note(f"load average before the run: {os.getloadavg()[0]:.1f}, processors: {os.cpu_count()}")
        hub.start()
        try:
            measure_heartbeats(hub, holders)
            measure_page(hub, person)
        finally:
            hub.stop()


if __name__ == "__main__":
    main()
