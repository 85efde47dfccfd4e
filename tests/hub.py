"""A real hub in a process of its own, for tests and benchmarks: free ports, its own folder, killed at the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

START_TIMEOUT = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def let_others_pass(folder: Path) -> None:
    """Root's hub runs servers as other users, who must get through the closed folders that tests are given."""
    top = Path(tempfile.gettempdir())
    for part in (folder, *folder.parents):
        if os.geteuid() == 0 and part != top and part.is_relative_to(top):
            part.chmod(part.stat().st_mode | 0o011)


class Hub:
    """Starts, kills and restarts one hub over one data folder."""

    def __init__(
        self, folder: Path, config: str = "", *, scheme: str = "http", prefix: str = "", **environment: str
    ) -> None:
        """`scheme` and `prefix` tell what address `config` gives the hub."""
        let_others_pass(folder)
        self.folder = folder
        self.port, self.hub_port = free_port(), free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}{prefix}"
        self.log_path = folder / "hub.log"
        self.config_path = folder / "marimohub_config.py"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTERHUB", "MARIMOHUB"))}
        self.environment.update(environment)
        self.config_path.write_text(
            f"c = get_config()\nc.JupyterHub.port = {self.port}\nc.JupyterHub.hub_port = {self.hub_port}\n{config}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "marimohub-data"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "marimohub", *arguments]

    def start(self, *arguments: str, wait: bool = True) -> float:
        """Start the hub; returns the seconds until its sign-in page was served."""
        began = time.monotonic()
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_ready(began)
        return time.monotonic() - began

    def wait_ready(self, began: float) -> None:
        while time.monotonic() - began < START_TIMEOUT:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the hub ended with status {self.process.returncode}:\n{self.log[-3000:]}")
            try:
                if requests.get(f"{self.url}/hub/login", timeout=2, verify=False).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.02)
        raise AssertionError(f"the hub did not answer within {START_TIMEOUT} s:\n{self.log[-3000:]}")

    def kill(self) -> None:
        """SIGKILL the hub process alone, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the hub with all that it started."""
        if self.process is None:
            return
        if self.process.poll() is not None:
            # a killed hub leaves servers and proxy running: a new one takes them over and ends them
            self.start()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def setup_link(self) -> str:
        """The newest set-up link in the log."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = re.findall(r"https?://\S+/hub/setup\?token=\S+", self.log)
            if found:
                return str(found[-1])
            time.sleep(0.05)
        raise AssertionError(f"no set-up link in the log:\n{self.log[-2000:]}")


class Person:
    """Somebody with a browser's cookies, over plain HTTP."""

    def __init__(self, hub: Hub, name: str, password: str = "correct horse battery") -> None:
        self.hub, self.name, self.password = hub, name, password
        self.session = requests.Session()
        self.session.verify = False
        self.session.headers["User-Agent"] = "MarimoHub tests"

    def page(self, path: str, **kwargs: Any) -> requests.Response:
        return self.session.get(f"{self.hub.url}{path}", timeout=30, **kwargs)

    @property
    def xsrf(self) -> str:
        # several cookies of this name may exist on different paths
        return next(c.value or "" for c in self.session.cookies if c.name == "_xsrf" and c.path == "/hub/")

    def submit(self, path: str, **fields: str) -> requests.Response:
        """Load a form's page, then send it."""
        self.page(path)
        return self.session.post(
            f"{self.hub.url}{path.partition('?')[0]}", data={**fields, "_xsrf": self.xsrf}, timeout=30
        )

    def set_up(self) -> Person:
        """Become the first administrator by the link on the terminal."""
        link = self.hub.setup_link()
        path = link[len(self.hub.url) :]
        token = link.partition("token=")[2]
        answer = self.submit(path, token=token, **self._form())
        assert answer.status_code == 200 and answer.url.endswith("/hub/notebooks"), answer.text[-2000:]
        return self

    def _form(self) -> dict[str, str]:
        return {
            "username": self.name,
            "email": f"{self.name}@example.com",
            "password": self.password,
            "password_confirmation": self.password,
        }

    def sign_up(self) -> requests.Response:
        return self.submit("/hub/signup", **self._form())

    def sign_in(self) -> requests.Response:
        return self.submit("/hub/login", username=self.name, password=self.password)

    def approve(self, name: str, role: str) -> None:
        answer = self.submit(f"/hub/accounts/{name}", action="approve", role=role)
        assert answer.status_code == 200, answer.text[-2000:]

    def api(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Call the API as the page does."""
        if not any(c.name == "_xsrf" and c.path == "/hub/" for c in self.session.cookies):
            self.page("/hub/notebooks")
        return self.session.request(
            method,
            f"{self.hub.url}/hub/api{path}",
            json=body,
            headers={"X-XSRFToken": self.xsrf, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin", **headers},
            timeout=90,
        )
