"""Our proxy against configurable-http-proxy and nginx, in turns, in one run; and what one more route costs.

Each proxy has one worker on one core, the client (wrk) and the server behind them have the others; 64 connections.
Needs nginx, wrk, and npm with node (configurable-http-proxy is installed below .venv/), and two cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import proxy_peers
from benchmarks.common import emit, note, percentile, quick
from benchmarks.proxy_peers import CORES, LARGE, SMALL
from marimohub.proxy import EnvoyProxy

ROUNDS = 2 if quick() else 5
SECONDS = 1 if quick() else 6  # whole ones, for wrk
CONNECTIONS = 64
LARGE_CONNECTIONS = 8
IDLE_SOCKETS = 2000
REQUESTS = 20_000 if quick() else 1_000_000
ADDED = 10 if quick() else 60
SIZES = (100, 1000, 10_000)


@dataclass
class Load:
    """What wrk measured in one go."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # processor time of the proxy for each request


@dataclass
class Measured:
    """One proxy and its figures."""

    name: str
    port: int
    pid: int
    small: list[Load] = field(default_factory=list)
    large: list[Load] = field(default_factory=list)
    echoes: list[float] = field(default_factory=list)
    echo_cpu_us: list[float] = field(default_factory=list)
    idle_mb: float = 0.0


def rss_mb(pid: int) -> float:
    """Resident memory of a process and of its workers, MiB."""
    total = 0
    for task in (pid, *children(pid)):
        for line in Path(f"/proc/{task}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_us(pid: int) -> float:
    """Processor time that a process and its workers have used so far, microseconds."""
    tasks = [task for one in (pid, *children(pid)) for task in Path(f"/proc/{one}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def output(*command: str) -> str:
    """What a program prints, run on the client's cores. Raises RuntimeError if it fails."""
    pinned = ("taskset", "-c", ",".join(map(str, CORES[1:])), *command)
    process = await asyncio.create_subprocess_exec(*pinned, stdout=subprocess.PIPE)
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {printed.decode()}")
    return printed.decode()


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


async def load(proxy: Measured, path: str, seconds: int = SECONDS, connections: int = CONNECTIONS) -> Load:
    before = cpu_us(proxy.pid)
    address = f"http://127.0.0.1:{proxy.port}{path}"
    printed = await output("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", address)
    used = cpu_us(proxy.pid) - before
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise RuntimeError(printed)
    found = dict(re.findall(r"^\s+(50|99)%\s+(\S+)\s*$", printed, re.MULTILINE))
    requests = re.search(r"(\d+) requests in", printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    assert requests and rate
    if requests[1] == "0":
        raise RuntimeError(f"Nothing was answered in {seconds} s: the machine has too much else to do.")
    p50, p99 = (milliseconds(found[q]) for q in ("50", "99"))
    return Load(int(requests[1]), float(rate[1]), p50, p99, used / int(requests[1]))


async def echo(proxy: Measured) -> None:
    """Measure echoes per second, and the proxy's processor time for each."""
    before = cpu_us(proxy.pid)
    module = ("-m", "benchmarks.proxy_sockets", "rate", str(proxy.port), str(CONNECTIONS), str(SECONDS))
    rate = float((await output(sys.executable, *module)).split()[0])
    proxy.echoes.append(rate)
    proxy.echo_cpu_us.append((cpu_us(proxy.pid) - before) / (rate * SECONDS))


async def idle_memory(proxy: Measured) -> float:
    """MiB of a proxy while IDLE_SOCKETS WebSockets are open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.proxy_sockets", "idle", str(proxy.port), str(IDLE_SOCKETS)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    opened = int(await process.stdout.readline() or 0)
    if opened != IDLE_SOCKETS:
        raise RuntimeError(f"{proxy.name} opened {opened} of {IDLE_SOCKETS} WebSockets.")
    held = rss_mb(proxy.pid)
    process.stdin.close()
    await process.wait()
    return held


async def growth(proxy: Measured) -> float:
    """By how much memory grew over REQUESTS requests, in percent; the first tenth of them warms it up."""
    done, before = 0, 0.0
    while done < REQUESTS:
        if not before and done >= REQUESTS / 10:
            before = rss_mb(proxy.pid)
        done += (await load(proxy, SMALL, 2 if quick() else 10)).requests
    return (rss_mb(proxy.pid) / before - 1) * 100 if before else 0.0


async def one_more(proxy: EnvoyProxy, port: int, target: str, size: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each add_route, and of some delete_route, on top of `size` routes. Each is then asked for."""
    have = len(await proxy.get_all_routes())
    fill = range(have, size)
    await asyncio.gather(*(proxy.add_route(f"/user/u{n}@example.org/", target, {"user": f"u{n}"}) for n in fill))
    await proxy._open()[1].served()  # what was added is part of the table
    added, deleted = [], []
    for number in range(ADDED):
        path = f"/user/more{number}/"
        start = time.perf_counter()
        await proxy.add_route(path, target, {"user": f"more{number}", "server_name": ""})
        added.append((time.perf_counter() - start) * 1000)
        if await asyncio.to_thread(proxy_peers.status, port, path) != 200:
            raise RuntimeError("add_route returned before the route was served.")
        await asyncio.sleep(0.05)
    for number in range(5):
        path = f"/user/more{number}/"
        start = time.perf_counter()
        await proxy.delete_route(path)
        deleted.append((time.perf_counter() - start) * 1000)
        if await asyncio.to_thread(proxy_peers.status, port, path) == 200:
            raise RuntimeError("delete_route returned while the route was served.")
    await asyncio.gather(*(proxy.delete_route(f"/user/more{number}/") for number in range(5, ADDED)))
    return added, deleted


def best(loads: list[Load], name: str) -> float:
    """The best of all rounds: what else the machine does can only slow a proxy down."""
    return (max if name == "rate" else min)(getattr(one, name) for one in loads)


async def compare(proxies: list[Measured]) -> None:
    for number in range(ROUNDS):
        for proxy in proxies:
            proxy.small.append(await load(proxy, SMALL))
            note(f"round {number + 1} of {ROUNDS}, {proxy.name}: {proxy.small[-1].rate:.0f} requests/s")
    for _ in range(1 if quick() else 3):
        for proxy in proxies:
            proxy.large.append(await load(proxy, LARGE, connections=LARGE_CONNECTIONS))
            await echo(proxy)
    for proxy in proxies:
        proxy.idle_mb = await idle_memory(proxy)


def tell(chp: Measured, nginx: Measured, ours: Measured) -> None:
    def rate(proxy: Measured) -> float:
        return best(proxy.small, "rate")

    emit("rps_vs_chp", rate(ours) / rate(chp))
    emit("p99_vs_chp", best(ours.small, "p99_ms") / best(chp.small, "p99_ms"))
    emit("rps_vs_nginx", rate(ours) / rate(nginx))
    emit("ws_vs_chp", max(ours.echoes) / max(chp.echoes))
    emit("cpu_vs_chp", best(ours.small, "cpu_us") / best(chp.small, "cpu_us"))
    emit("cpu_vs_nginx", best(ours.small, "cpu_us") / best(nginx.small, "cpu_us"))
    emit("ws_cpu_vs_chp", min(ours.echo_cpu_us) / min(chp.echo_cpu_us))
    emit("large_vs_chp", best(ours.large, "rate") / best(chp.large, "rate"))
    emit("large_vs_nginx", best(ours.large, "rate") / best(nginx.large, "rate"))
    for proxy in (ours, chp, nginx):
        emit(f"rps_{proxy.name}", rate(proxy))
        emit(f"p50_ms_{proxy.name}", best(proxy.small, "p50_ms"))
        emit(f"p99_ms_{proxy.name}", best(proxy.small, "p99_ms"))
        emit(f"cpu_us_{proxy.name}", best(proxy.small, "cpu_us"))
        emit(f"ws_cpu_us_{proxy.name}", min(proxy.echo_cpu_us))
        emit(f"large_mb_s_{proxy.name}", best(proxy.large, "rate") * proxy_peers.LARGE_BYTES / 1e6)
        emit(f"ws_echo_s_{proxy.name}", max(proxy.echoes))
        emit(f"rss_mb_2000_ws_{proxy.name}", proxy.idle_mb)


async def measure(folder: Path) -> None:
    with contextlib.ExitStack() as ended:
        http, echo = ended.enter_context(proxy_peers.behind(folder))
        chp = Measured("chp", *ended.enter_context(proxy_peers.peer_chp(folder, http, echo)))
        nginx = Measured("nginx", *ended.enter_context(proxy_peers.peer_nginx(folder, http, echo)))
        for peer in (chp, nginx):
            proxy_peers.check(peer.port)
        proxy, port, pid = await proxy_peers.start_envoy(folder, http, echo)
        ours = Measured("envoy", port, pid)
        try:
            await compare([chp, nginx, ours])
            tell(chp, nginx, ours)
            emit("rss_growth_percent", await growth(ours))
        finally:
            await proxy.stop()
        await routes(folder / "more", http, echo)


async def routes(folder: Path, http: int, echo: int) -> None:
    """What one more route costs, in an Envoy that has done nothing else."""
    proxy, port, pid = await proxy_peers.start_envoy(folder, http, echo)
    ours = Measured("envoy", port, pid)
    try:
        few = [await load(ours, SMALL) for _ in range(ROUNDS - 1)]
        for size in SIZES:
            added, deleted = await one_more(proxy, port, f"http://127.0.0.1:{http}", size)
            emit(f"route_ms_{size}", statistics.median(added))
            emit(f"route_p90_ms_{size}", percentile(added, 90))
            emit(f"route_worst_ms_{size}", max(added))
            emit(f"route_delete_ms_{size}", statistics.median(deleted))
        emit("rss_mb_10000", rss_mb(pid))
        many = [await load(ours, SMALL) for _ in range(ROUNDS - 1)]
        emit("cpu_10000_routes_vs_2", best(many, "cpu_us") / best(few, "cpu_us"))
    finally:
        await proxy.stop()


def main() -> int:
    missing = [name for name in ("wrk", "npm", "node", "taskset") if shutil.which(name) is None]
    if shutil.which("nginx") is None and not os.access("/usr/sbin/nginx", os.X_OK):
        missing.append("nginx")
    if missing or len(CORES) < 2:
        note(f"Not measured. Two cores are needed, there are {len(CORES)}. Missing: {', '.join(missing) or 'nothing'}")
        return 1
    os.sched_setaffinity(0, CORES[1:])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        asyncio.run(measure(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
