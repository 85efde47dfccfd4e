"""Real Envoys and small upstream servers on free ports, in a temporary folder, all ended afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado import httpserver, netutil, web, websocket

from marimohub.proxy import EnvoyProxy
from tests.hub import free_port


class Describe(web.RequestHandler):
    """Answers with what arrived: the server's name, the raw request target, the headers, the size of the body."""

    def initialize(self, name: str) -> None:
        self.name = name

    def check_xsrf_cookie(self) -> None:
        pass

    async def answer(self) -> None:
        self.set_header("Content-Type", "application/json")
        headers: dict[str, list[str]] = {}
        for key, value in self.request.headers.get_all():
            headers.setdefault(key.lower(), []).append(value)
        self.write(
            json.dumps(
                {
                    "server": self.name,
                    "uri": self.request.uri,
                    "headers": headers,
                    "body": len(self.request.body),
                    "remote_ip": self.request.remote_ip,
                    "protocol": self.request.protocol,
                }
            )
        )

    get = post = put = delete = options = answer


class Echo(websocket.WebSocketHandler):
    def initialize(self, name: str) -> None:
        self.name = name

    def check_origin(self, origin: str) -> bool:
        return True

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(f"{self.name}:{message!r}")


class Slow(web.RequestHandler):
    """Sends a line, waits for the test, and sends another: a stream like server-sent events."""

    def initialize(self, name: str) -> None:
        self.name = name

    async def get(self) -> None:
        self.write("first\n")
        await self.flush()
        await asyncio.sleep(0.5)
        self.write("second\n")


class Upstream:
    """A server with a name."""

    def __init__(self, name: str, port: int = 0, ssl_options: Any = None) -> None:
        context = {"name": name}
        app = web.Application([(r".*/ws", Echo, context), (r".*/slow", Slow, context), (r".*", Describe, context)])
        self.server = httpserver.HTTPServer(
            app, xheaders=True, ssl_options=ssl_options, max_buffer_size=1 << 28, max_body_size=1 << 28
        )
        sockets = netutil.bind_sockets(port, "127.0.0.1")
        self.server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.url = f"{'https' if ssl_options else 'http'}://127.0.0.1:{self.port}"

    async def close(self) -> None:
        self.server.stop()
        await self.server.close_all_connections()


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Upstream]]:
    started: list[Upstream] = []

    def start(name: str, **kwargs: Any) -> Upstream:
        started.append(Upstream(name, **kwargs))
        return started[-1]

    yield start
    for server in started:
        await server.close()


class Records(logging.Handler):
    """Keeps what the proxy said to the hub's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


class Hubs:
    """Makes EnvoyProxy objects as hubs would, and forgets them as a killed hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alive: list[EnvoyProxy] = []
        self.records = Records()
        self.log = logging.Logger("test-proxy", logging.DEBUG)
        self.log.addHandler(self.records)

    def proxy(self, port: int | None = None, **traits: Any) -> EnvoyProxy:
        app = types.SimpleNamespace(subdomain_host=traits.pop("subdomain_host", ""), data_dir=str(self.folder))
        traits.setdefault("public_url", f"http://127.0.0.1:{port or free_port()}/")
        traits.setdefault("check_interval", 0.2)
        proxy = EnvoyProxy(app=app, log=self.log, **traits)
        self.alive.append(proxy)
        return proxy

    async def kill(self, proxy: EnvoyProxy) -> None:
        """What SIGKILL of the hub leaves: nothing of Python's, Envoy untouched."""
        assert proxy._supervision is not None
        proxy._supervision.cancel()
        proxy._open()[1].cancel()  # what it planned to write
        self.alive.remove(proxy)

    async def end(self) -> None:
        for proxy in self.alive:
            await proxy.stop()
        state = self.folder / "proxy" / "envoy.json"
        if state.exists():  # A test failed between a kill and the next start.
            os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
            draining = self.folder / "proxy" / "draining.json"
            for old in json.loads(draining.read_text()) if draining.exists() else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(old["identity"]["pid"], signal.SIGKILL)


@pytest.fixture
async def hubs(tmp_path: Path) -> AsyncIterator[Hubs]:
    made = Hubs(tmp_path)
    yield made
    await made.end()


def tcp_sockets(pid: int) -> list[tuple[str, int, int]]:
    """State ("01" connected, "0A" listening), own port and the other side's of each IPv4 socket of a process.

    Source: proc(5), /proc/PID/net/tcp.
    """
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(entry).removeprefix("socket:[").rstrip("]"))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    ports = [(f[3], *(int(f[n].split(":")[1], 16) for n in (1, 2))) for f in lines if f[9] in inodes]
    return [(state, own, other) for state, own, other in ports]


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def server(self) -> str | None:
        return self.json["server"] if self.status == 200 else None


async def raw(proxy: EnvoyProxy, target: str | bytes, *headers: str, method: str = "GET", host: str = "hub") -> Answer:
    """One request whose target and headers reach Envoy byte for byte as given."""
    port = int(proxy.public_url.rsplit(":", 1)[1].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    target = target.encode() if isinstance(target, str) else target
    lines = [f"Host: {host}", "Connection: close", *headers]
    writer.write(method.encode() + b" " + target + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    await writer.drain()
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
    first, *rest = head.rstrip().split("\r\n")
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
    body = b""
    if fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    writer.close()
    return Answer(int(first.split(" ", 2)[1]), fields, body)


async def started(hubs: Hubs, upstream: Callable[..., Upstream], **traits: Any) -> EnvoyProxy:
    """A proxy with the routes of a hub and of alice."""
    proxy = hubs.proxy(**traits)
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    await proxy.add_route("/user/alice/", upstream("alice").url, {"user": "alice"})
    return proxy
