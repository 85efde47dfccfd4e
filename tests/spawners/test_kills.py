"""kill -9 of every part of a busy hub: no process is left behind, and none is said to run that does not.

KILLS is how often each part is killed; `KILLS=20 pytest tests/spawners/test_kills.py` is the long run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed

from marimohub.spawners.processes import descendants, process_start_time
from marimohub.spawners.spawn_server import COMMAND
from tests.hub import Hub, Person
from tests.spawners.escape.notebook import NotebookPage

KILLS = int(os.environ.get("KILLS", "1"))
PATIENCE = 60.0  # seconds until what must become true is true
ROBOT = "robot-of-the-kill-tests-0123456789"
WORKERS, BUSY = ("ann", "bob"), ("cyd", "dan")
CONFIG = f"""
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.MarimoHub.default_role = "editor"
c.JupyterHub.services = [{{"name": "robot", "api_token": {ROBOT!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "robots", "services": ["robot"], "scopes": ["admin:users", "admin:servers", "list:users"]}},
]
"""
NOTEBOOK = """import marimo

app = marimo.App()


@app.cell
def _():
    42
    return


if __name__ == "__main__":
    app.run()
"""


def until(condition: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


class Field:
    """A hub with two people who have a notebook open, and two whose servers come and go without a pause."""

    def __init__(self, folder: Path) -> None:
        self.hub = Hub(folder, CONFIG)
        self.pages: dict[str, NotebookPage] = {}
        self.hubs: set[int] = set()  # every hub there was
        self.robot = requests.Session()
        self.robot.headers["Authorization"] = f"token {ROBOT}"
        self._stop = threading.Event()
        self._load = [threading.Thread(target=self._come_and_go, args=(name,)) for name in BUSY]
        self.rounds = dict.fromkeys(BUSY, 0)  # how often each was started or stopped
        self.left_by_kernels: list[int] = []

    def start(self) -> None:
        self.hub.start()
        assert self.hub.process is not None
        self.hubs.add(self.hub.process.pid)

    def begin(self) -> None:
        self.start()
        notebooks = self.hub.data / "notebooks" / "default"
        notebooks.mkdir(parents=True, exist_ok=True)
        for name in (*WORKERS, *BUSY):
            (notebooks / f"{name}.py").write_text(NOTEBOOK)
            self.call("POST", f"/users/{name}")
        for name in WORKERS:
            self.open(name)
        for thread in self._load:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._load:
            thread.join()
        for page in self.pages.values():
            page.close()
        self.hub.stop()

    def call(self, method: str, path: str) -> requests.Response:
        return self.robot.request(method, f"http://127.0.0.1:{self.hub.hub_port}/hub/api{path}", timeout=120)

    def _come_and_go(self, name: str) -> None:
        """Start and stop somebody's server as fast as it goes, whatever the hub answers."""
        with requests.Session() as session:
            session.headers["Authorization"] = f"token {ROBOT}"
            url = f"http://127.0.0.1:{self.hub.hub_port}/hub/api/users/{name}/server"
            while not self._stop.is_set():
                for method in ("POST", "DELETE"):
                    try:
                        if session.request(method, url, timeout=60).ok:
                            self.rounds[name] += 1
                    except requests.RequestException:
                        time.sleep(0.05)

    def open(self, name: str) -> None:
        """Open somebody's notebook as a browser does, and run a cell: there is a kernel then."""
        person = Person(self.hub, name)
        assert person.sign_in().ok
        assert person.api("GET", "/notebooks").ok
        answer = person.api("POST", f"/notebooks/{name}/lock", {})
        assert answer.ok, f"{answer.text}\n{self.hub.log[-3000:]}"
        if name in self.pages:
            self.pages[name].close()
        page = NotebookPage(person.session, f"{self.hub.url}/user/{name}/", name)
        page.load()
        page.connect()
        assert page.run("import os; print(os.getpid())").strip().isdigit()
        self.pages[name] = page

    def until_closed(self, name: str) -> None:
        """The server ends the page's connection when it has seen that its kernel is gone."""
        socket = self.pages[name].socket
        assert socket is not None
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionClosed):
            while True:
                socket.recv(timeout=deadline - time.monotonic())

    def server(self, name: str) -> dict[str, Any] | None:
        """What the hub says of somebody's server."""
        found: dict[str, Any] | None = self.call("GET", f"/users/{name}").json()["servers"].get("")
        return found

    def runs(self, name: str) -> bool:
        server = self.server(name)
        return server is not None and server["ready"] and not server["pending"]

    def described(self, name: str) -> dict[str, Any]:
        """The processes of somebody's server: state as the spawner stored it."""
        state = self.call("GET", f"/users/{name}?include_stopped_servers").json()["servers"][""]["state"]
        assert isinstance(state, dict)
        return state

    def spawn_server(self) -> int:
        """The one that the hub has now."""
        assert self.hub.process is not None
        own = self.hub.process.pid
        found: list[int] = []

        def there() -> bool:
            found[:] = [pid for pid in descendants(own) if _argument(pid, 4) == str(own) and _parent(pid) == own]
            return bool(found)

        until(there, "there is no spawn server")
        return found[0]

    def family(self) -> list[int]:
        """All that any of the hubs forked for servers: it has the command line of a spawn server of theirs."""
        return [
            int(entry.name)
            for entry in Path("/proc").glob("[0-9]*")
            if _argument(int(entry.name), 4) in set(map(str, self.hubs)) and process_start_time(int(entry.name))
        ]


def _argument(pid: int, index: int) -> str | None:
    """python -P -c COMMAND socket hub modules → index 5 is the hub; counted without the socket's number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return words[index + 1] if len(words) > index + 1 and words[3] == COMMAND else None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    made = Field(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        print(made.hub.log[-10000:])
        made.end()


def test_nothing_is_left_behind_and_nothing_said_to_run_that_does_not(field: Field) -> None:
    took: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], None]) -> None:
        began = time.monotonic()
        work()
        took.setdefault(part, []).append(time.monotonic() - began)

    for _ in range(KILLS):
        timed("kernel", lambda: kill_kernel(field))
        timed("spawn server", lambda: kill_spawn_server(field))
        timed("launcher", lambda: kill_server(field, "launcher"))
        timed("guard", lambda: kill_server(field, "pid"))
        timed("hub", lambda: kill_hub(field))
    assert min(field.rounds.values()) > KILLS, "others started and stopped servers all the time"
    field.end()
    until(lambda: not field.family(), f"left behind: {field.family()}")
    for part, seconds in took.items():
        worst, mean = max(seconds), sum(seconds) / len(seconds)
        print(f"{part}: killed {len(seconds)} times, all well again after {mean:.2f} s, at most {worst:.2f} s")
    print(f"{sum(field.rounds.values())} starts and stops meanwhile")


def kill_kernel(field: Field) -> None:
    """The kernel alone is gone; its server goes on, and the notebook gets another kernel."""
    server = field.described("ann")
    page = field.pages["ann"]
    page.run("import subprocess; child = subprocess.Popen(['sleep', '300'])")
    (kernel,) = _kernels(server["launcher"])
    children = list(descendants(kernel))
    assert children
    os.kill(kernel, signal.SIGKILL)
    until(lambda: process_start_time(kernel) == "", "a killed kernel lives")
    # as in any shell, what it has started goes on, but not beyond its server's end
    assert set(children) <= descendants(server["pid"]).keys()
    field.until_closed("ann")
    assert field.runs("ann")
    assert field.described("ann")["launcher"] == server["launcher"]
    field.open("ann")
    field.left_by_kernels += children


def _kernels(launcher: int) -> list[int]:
    """Kernels, which their zygote has forked, and nobody else."""
    return [pid for pid in descendants(launcher) if _name(pid) == "kernel"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill_spawn_server(field: Field) -> None:
    """Running servers and their kernels do not notice; the next server is started by another one."""
    before = {name: field.described(name)["launcher"] for name in WORKERS}
    victim = field.spawn_server()
    os.kill(victim, signal.SIGKILL)
    until(lambda: process_start_time(victim) == "", "a killed process lives")
    for name in WORKERS:
        assert field.pages[name].run("print(6 * 7)").strip() == "42"
        assert field.runs(name)
        assert field.described(name)["launcher"] == before[name]
    assert field.spawn_server() != victim
    assert field.call("DELETE", "/users/ann/server").status_code in (202, 204)
    until(lambda: field.server("ann") is None, "ann's server does not stop")
    until(lambda: process_start_time(before["ann"]) == "", "a stopped server lives")
    assert not any(map(process_start_time, field.left_by_kernels))
    field.open("ann")


def kill_server(field: Field, part: str) -> None:
    """`part` is "launcher", or "pid" for its guard: all of it goes, the hub says so, the port is free."""
    state = field.described("bob")
    all_of_it = [state["pid"], *descendants(state["pid"])]
    assert len(all_of_it) >= 4, "guard, launcher, zygote, kernel"
    assert _listens(state["port"])
    os.kill(state[part], signal.SIGKILL)
    until(lambda: field.server("bob") is None, "the hub believes that a killed server runs")
    until(lambda: not any(process_start_time(pid) for pid in all_of_it), "a part of a killed server lives")
    # a process whose first thread has ended may have others that have not, which keep its socket for a moment
    until(lambda: not _listens(state["port"]), "the port of a killed server is not free")
    field.open("bob")


def kill_hub(field: Field) -> None:
    """Servers and kernels outlive it, and the next hub knows what runs, whatever was on its way."""
    states = {name: field.described(name) for name in WORKERS}
    field.hub.kill()
    for name in WORKERS:
        assert process_start_time(states[name]["launcher"]), "a server died with the hub"
    # one that ends while nobody looks
    os.kill(states["bob"]["launcher"], signal.SIGKILL)
    until(lambda: process_start_time(states["bob"]["pid"]) == "", "a guard outlives its server")
    field.start()
    assert field.runs("ann")
    assert field.described("ann")["launcher"] == states["ann"]["launcher"]
    assert field.pages["ann"].run("print(6 * 7)").strip() == "42"
    assert not field.runs("bob"), "the hub believes in a server that ended while it was away"
    # what was being started or stopped by the last hub hangs nowhere
    before = dict(field.rounds)
    until(lambda: all(field.rounds[name] >= before[name] + 2 for name in BUSY), "a start hangs")
    field.open("bob")
