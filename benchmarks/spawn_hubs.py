"""The two hubs that benchmarks/spawn.py compares: ours, and JupyterHub with plain `marimo edit` processes."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from benchmarks.common import descendants
from benchmarks.spawn_timed import TIMES
from tests.hub import Hub, Person
from tests.singleuser.server import NOTEBOOK
from tests.spawners.escape.notebook import NotebookPage

ROOT = Path(__file__).parent.parent
ROBOT = "robot-of-the-spawn-benchmark-0123456789"
SHARED = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.spawn_timed import PlainSpawner, timed
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.log_level = "WARN"
c.JupyterHub.services = [{{"name": "robot", "api_token": {ROBOT!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "robots", "services": ["robot"], "scopes": ["admin:users", "admin:servers", "list:users"]}},
]
"""
OURS = """
from marimohub.spawners.local import LocalMarimoSpawner
c.MarimoHub.default_role = "editor"
c.JupyterHub.spawner_class = timed(LocalMarimoSpawner)
"""
PLAIN = """
c.JupyterHub.ip = "127.0.0.1"
c.JupyterHub.proxy_class = "marimo-envoy"
c.JupyterHub.spawner_class = timed(PlainSpawner)
c.PlainSpawner.cmd = PlainSpawner.command()
c.PlainSpawner.home_dir_template = {home!r}
"""


class SpawnHub(Hub):
    """A hub whose servers are started and stopped by an administrator's token; people are made as needed."""

    def __init__(self, folder: Path, config: str) -> None:
        self.times = folder / "times.jsonl"
        super().__init__(folder, SHARED + config, **{TIMES: str(self.times)})
        self.robot = requests.Session()
        self.robot.headers["Authorization"] = f"token {ROBOT}"
        self.robot.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))
        self.people: dict[str, Person] = {}

    def call(self, method: str, path: str) -> requests.Response:
        return self.robot.request(method, f"http://127.0.0.1:{self.hub_port}/hub/api{path}", timeout=300)

    def add(self, name: str) -> None:
        """A person with a notebook of the same name."""
        answer = self.call("POST", f"/users/{name}")
        assert answer.status_code == 201, answer.text
        self.put_notebook(name)

    def put_notebook(self, name: str) -> None:
        raise NotImplementedError

    def before_page(self, name: str) -> None:
        """What the Notebooks page does before it opens the notebook's page."""

    def spawn(self, name: str) -> float:
        """Start somebody's server; returns the seconds until it answered HTTP."""
        answer = self.call("POST", f"/users/{name}/server")
        assert answer.status_code in (201, 202), f"{answer.text}\n{self.log[-3000:]}"
        self.wait(name, running=True)
        lines = [json.loads(line) for line in self.times.read_text().splitlines()]
        return float([line["seconds"] for line in lines if line["user"] == name][-1])

    def end(self, name: str) -> None:
        answer = self.call("DELETE", f"/users/{name}/server")
        assert answer.status_code in (202, 204), answer.text
        self.wait(name, running=False)

    def wait(self, name: str, *, running: bool) -> None:
        deadline = time.monotonic() + 120
        while True:
            server = self.call("GET", f"/users/{name}").json()["servers"].get("")
            if (server is not None and server["ready"]) if running else server is None:
                return
            assert time.monotonic() < deadline, f"{name} waited in vain:\n{self.log[-3000:]}"
            assert not running or server is not None, f"the server of {name} failed:\n{self.log[-3000:]}"
            time.sleep(0.05)

    def spawn_all(self, names: list[str]) -> float:
        """Start many at once; returns the seconds until all were ready."""
        began = time.monotonic()
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(self.spawn, names))
        return time.monotonic() - began

    def end_all(self, names: list[str]) -> float:
        """Stop many at once; returns the seconds until the hub said that all were gone."""
        began = time.monotonic()
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(self.end, names))
        return time.monotonic() - began

    def page(self, name: str) -> NotebookPage:
        """The notebook's page, loaded: signed in, and nothing started yet."""
        person = self.people.get(name)
        if person is None:
            person = self.people[name] = Person(self, name)
            assert person.sign_in().ok
        self.before_page(name)
        page = NotebookPage(person.session, f"{self.url}/user/{name}/", name)
        page.load()
        return page

    def server_processes(self) -> list[int]:
        """Everything below the hub but its proxy and its passing helpers: what its servers cost."""
        assert self.process is not None
        proxy = int(json.loads((self.proxy_folder / "envoy.json").read_text())["pid"])
        others = {proxy, *descendants(proxy)}
        return [pid for pid in descendants(self.process.pid) if pid not in others and not _is_snapshot_worker(pid)]

    @property
    def proxy_folder(self) -> Path:
        return next(path.parent for path in self.folder.rglob("envoy.json"))


class OurHub(SpawnHub):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, OURS)

    def put_notebook(self, name: str) -> None:
        folder = self.data / "notebooks" / "default"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(NOTEBOOK)

    def before_page(self, name: str) -> None:
        person = self.people[name]
        assert person.api("GET", "/notebooks").ok  # finds the new file
        answer = person.api("POST", f"/notebooks/{name}/lock", {})
        assert answer.ok, answer.text


class PlainHub(SpawnHub):
    """JupyterHub as it comes, behind the same proxy."""

    def __init__(self, folder: Path) -> None:
        self.homes = folder / "homes"
        super().__init__(folder, PLAIN.format(home=f"{self.homes}/{{username}}"))

    def command(self, *arguments: str) -> list[str]:
        return [*super().command()[:1], "-m", "jupyterhub", "-f", str(self.config_path), *arguments]

    def put_notebook(self, name: str) -> None:
        folder = self.homes / name
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(NOTEBOOK)


def _is_snapshot_worker(pid: int) -> bool:
    try:
        return b"marimohub.snapshots" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def make_hubs(folder: Path) -> tuple[OurHub, PlainHub]:
    """Both, not started, each in a folder of its own below `folder`, which other users can pass."""
    os.chmod(folder, 0o711)
    for name in ("ours", "plain"):
        (folder / name).mkdir(mode=0o711)
    return OurHub(folder / "ours"), PlainHub(folder / "plain")
