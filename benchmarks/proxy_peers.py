"""The proxies that are compared, and the server behind them: each with one route for HTTP and one for WebSockets.

The proxy that is measured has a core of its own; the client and what is behind the proxy have the others. As people run
them: configurable-http-proxy with its defaults, nginx with connections kept open to the server behind it. One worker
each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.start import proxy_command
from marimohub.proxy import EnvoyProxy

SMALL, LARGE = "/user/bench/small", "/user/bench/large"
CORES = sorted(os.sched_getaffinity(0))
LARGE_BYTES = 1_000_000

_NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; }}
http {{
  access_log off; keepalive_requests 100000000; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {http}
}}
"""
_BEHIND = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{small}"; }}
    location = /user/bench/large {{ alias {folder}/large; }}
  }}
"""
_PEER = """
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream behind {{ server 127.0.0.1:{behind}; keepalive 256; keepalive_requests 100000000; }}
  proxy_http_version 1.1; proxy_max_temp_file_size 0;
  proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
  proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_read_timeout 1h;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /user/bench/ {{ proxy_pass http://behind; }}
    location /user/echo/ {{ proxy_pass http://127.0.0.1:{echo}; }}
  }}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(pid: int, cores: list[int]) -> None:
    """Keep every thread of a process and its children on these cores."""
    tasks = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    for task in tasks:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(task, cores)
        children = Path(f"/proc/{pid}/task/{task}/children")
        for child in children.read_text().split() if children.exists() else []:
            pin(int(child), cores)


def wait_listening(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and (process is None or process.poll() is None):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"Nothing listens on port {port}.")


@contextlib.contextmanager
def running(command: list[str], cores: list[int], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours on these cores, ended afterwards."""
    process = subprocess.Popen(["taskset", "-c", ",".join(map(str, cores)), *command], **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        process.terminate()
        process.wait(10)


def nginx(folder: Path, cores: list[int], http: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    folder.mkdir(mode=0o755)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, http=http))
    program = str(shutil.which("nginx") or "/usr/sbin/nginx")
    return running([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], cores, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def behind(folder: Path) -> Iterator[tuple[int, int]]:
    """Ports of the HTTP server and of the WebSocket echo server."""
    port = free_port()
    configuration = _BEHIND.format(port=port, small="x" * 200, folder=folder / "behind")
    with nginx(folder / "behind", CORES[1:], configuration) as server:
        (folder / "behind" / "large").write_bytes(os.urandom(LARGE_BYTES))
        wait_listening(port, server)
        command = [sys.executable, "-m", "benchmarks.proxy_sockets", "echo"]
        with running(command, CORES[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
            assert echo.stdout is not None
            yield port, int(echo.stdout.readline())


@contextlib.contextmanager
def peer_nginx(folder: Path, http: int, echo: int) -> Iterator[tuple[int, int]]:
    """Port and process id of an nginx with the two routes."""
    port = free_port()
    with nginx(folder / "nginx", CORES[:1], _PEER.format(port=port, behind=http, echo=echo)) as process:
        wait_listening(port, process)
        yield port, process.pid


@contextlib.contextmanager
def peer_chp(folder: Path, http: int, echo: int) -> Iterator[tuple[int, int]]:
    """Port and process id of a configurable-http-proxy with the two routes. Raises RuntimeError without npm."""
    program = proxy_command()
    if program is None:
        raise RuntimeError("configurable-http-proxy needs npm and node.")
    port, api = free_port(), free_port()
    command = [str(program), "--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={api}"]
    environment = {**os.environ, "CONFIGPROXY_AUTH_TOKEN": "bench"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running([*command, "--log-level=error"], CORES[:1], env=environment, **quiet) as process:
        wait_listening(port, process)
        wait_listening(api, process)
        for path, target in (("bench", http), ("echo", echo)):
            request = urllib.request.Request(
                f"http://127.0.0.1:{api}/api/routes/user/{path}",
                json.dumps({"target": f"http://127.0.0.1:{target}"}).encode(),
                {"Authorization": "token bench"},
            )
            urllib.request.urlopen(request, timeout=10).close()
        yield port, process.pid


async def start_envoy(folder: Path, http: int, echo: int) -> tuple[EnvoyProxy, int, int]:
    """Our proxy with the two routes, its port and process id. The hub's side of it runs in this process."""
    port = free_port()
    app = types.SimpleNamespace(subdomain_host="", data_dir=str(folder / "envoy"))
    proxy = EnvoyProxy(
        app=app, log=logging.getLogger("benchmark"), public_url=f"http://127.0.0.1:{port}/", concurrency=1
    )
    await proxy.start()
    await proxy.add_route("/user/bench/", f"http://127.0.0.1:{http}", {"user": "bench"})
    await proxy.add_route("/user/echo/", f"http://127.0.0.1:{echo}", {"user": "echo"})
    assert proxy._process is not None and proxy._process.identity is not None
    pid = proxy._process.identity.pid
    pin(pid, CORES[:1])
    await asyncio.to_thread(check, port)
    return proxy, port, pid


def check(port: int) -> None:
    """Raise RuntimeError unless the two pages come through a proxy whole."""
    for path, size in ((SMALL, 200), (LARGE, LARGE_BYTES)):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            if len(answer.read()) != size:
                raise RuntimeError(f"{path} came through the proxy with another size.")


def status(port: int, path: str) -> int:
    """What the proxy answers to one request."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
