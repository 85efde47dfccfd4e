"""Runs the real launcher as the hub would, and talks to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.singleuser.standin import StandInHub, free_port

NOTEBOOK = """import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell
def _():
    answer = 6 * 7
    answer
    return


if __name__ == "__main__":
    app.run()
"""


@dataclass
class Server:
    """One launcher process."""

    hub: StandInHub
    root: Path
    port: int = field(default_factory=free_port)
    prefix: str = "/user/alice/"
    extra: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.root / "notebooks"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    def environment(self) -> dict[str, str]:
        api = f"http://127.0.0.1:{self.hub.port}/hub/api"
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "JUPYTERHUB_API_TOKEN": self.hub.server_token,
            "JPY_API_TOKEN": self.hub.server_token,
            "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-alice",
            "JUPYTERHUB_HOST": f"http://127.0.0.1:{self.hub.port}",
            "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{self.prefix}oauth_callback",
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps(["access:servers!server=alice/", "access:servers!user=alice"]),
            "JUPYTERHUB_USER": "alice",
            "JUPYTERHUB_SERVER_NAME": "",
            "JUPYTERHUB_API_URL": api,
            "JUPYTERHUB_ACTIVITY_URL": f"{api}/users/alice/activity",
            "JUPYTERHUB_BASE_URL": "/",
            "JUPYTERHUB_SERVICE_PREFIX": self.prefix,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{self.port}{self.prefix}",
            "MARIMOHUB_SNAPSHOT": str(self.root / "warehouse.duckdb"),
            "MARIMOHUB_NOTEBOOK_DIR": str(self.folder),
            "MARIMOHUB_WORKSPACE": "default",
            "MARIMOHUB_HEARTBEAT_INTERVAL": "0.2",
            **self.extra,
        }

    def start(self, timeout: float = 20.0) -> None:
        """Start it unless it runs; returns when it answers."""
        if self.process is not None and self.process.poll() is None:
            return
        self.hub.server_origin = f"http://127.0.0.1:{self.port}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.root / "home").mkdir(exist_ok=True)
        log = (self.root / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "marimohub.singleuser"],
            env=self.environment(),
            cwd=self.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.wait(timeout)

    def wait(self, timeout: float) -> None:
        """Return when it answers."""
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "api", timeout=1)
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
        raise AssertionError(f"the launcher did not start:\n{self.log}")

    def stop(self, timeout: float = 10.0) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def server_token(self, page: str) -> str:
        found = re.search(r'<marimo-server-token data-token="([^"]+)"', page)
        assert found, page[:500]
        return found.group(1)
