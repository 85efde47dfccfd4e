"""The hammer: eight processes work on fifty notebooks at once while the hub is killed, again and again.

Two runs. The first does the mass of the operations against a stand-in for the hub (tests/hammer_server.py): one process
with the very domain functions, threads and start-up repair of the hub, without JupyterHub's cost per request, on SQLite
and on PostgreSQL, killed 20 times with SIGKILL. The second is smaller and goes to a real hub over HTTP, with real
notebook servers behind the locks, and kills that 3 times. What the clients were told is held against the database and
the files at the end (tests/hammer_check.py). Locks live for half a second or two, so that many expire under their
holders.

HAMMER_OPERATIONS sets the number of operations of the first run (100000 for the figures in docs).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.database import Database
from tests.databases import KINDS, new_url
from tests.hammer_check import check
from tests.hammer_client import Client, HttpCaller, SocketCaller, is_whole
from tests.hub import Hub, Person

OPERATIONS = int(os.environ.get("HAMMER_OPERATIONS", "8000"))
PROCESSES = 8
FIXED = [f"nb{number}" for number in range(40)]
VOLATILE = [f"vol{number}" for number in range(10)]
KILLS = 20
TTL = 0.5


class StandIn:
    """The stand-in hub, its kills and restarts."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder, self.root, self.socket = folder, folder / "notebooks", folder / "hub.sock"
        self.command = [sys.executable, "-m", "tests.hammer_server", url, str(self.root), str(self.socket), str(TTL)]
        self.repairs = self.kills = self.pid = 0

    def __enter__(self) -> StandIn:
        with open(self.folder / "server.log", "ab") as log:
            self.parent = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[1]
            )
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.parent.kill()
        self.parent.wait()

    def start(self) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.write(b"start\n")
        self.parent.stdin.flush()
        told = self._told("pid")
        self.pid = told["pid"]
        self.repairs += len(told["repairs"])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self._told("ended")["ended"] == self.pid
        self.kills += 1
        for path in (self.root / "default").glob("*.py"):
            assert is_whole(path.read_text()), f"{path.name} is torn after a kill"

    def _told(self, key: str) -> dict[str, Any]:
        assert self.parent.stdout is not None
        told = json.loads(self.parent.stdout.readline() or "{}")
        assert key in told, (self.folder / "server.log").read_text()[-3000:]
        return dict(told)


def hammer(user: str, socket: Path, log: Path, operations: int, done: Any) -> None:
    """One client process. `done` counts what it did."""

    def told() -> None:
        done.value += 1

    Client(user, SocketCaller(socket), log, FIXED, VOLATILE, may_revoke=True).work(operations, told)


def furnish(hub: StandIn, log_path: Path) -> Path:
    """Make all notebooks; returns the log of what was made."""
    client = Client("setup", SocketCaller(hub.socket), log_path, [], [], may_revoke=False)
    with open(log_path, "w") as log:
        for name in FIXED + VOLATILE:
            client.count += 1
            answer = client.call({"op": "create", "user": "setup", "name": name, "text": client.text()})
            assert answer is not None and "error" not in answer
            log.write(json.dumps({"op": "create", "name": name, "hash": answer["hash"], "answer": answer}) + "\n")
    return log_path


@pytest.fixture
def clients() -> Iterator[list[Any]]:
    processes: list[Any] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_or_doubled_while_the_hub_is_killed_twenty_times(
    kind: str, memory_folder: Path, request: pytest.FixtureRequest, clients: list[Any]
) -> None:
    url = new_url(kind, memory_folder, request)
    with StandIn(url, memory_folder) as hub:
        logs = [furnish(hub, memory_folder / "log-setup")]
        context = multiprocessing.get_context("fork")
        counters = []
        began = time.monotonic()
        for number in range(PROCESSES):
            logs.append(memory_folder / f"log-{number}")
            counters.append(context.Value("q", 0))
            arguments = (f"user{number}", hub.socket, logs[-1], OPERATIONS // PROCESSES, counters[-1])
            clients.append(context.Process(target=hammer, args=arguments))
            clients[-1].start()
        while any(client.is_alive() for client in clients):
            done = sum(counter.value for counter in counters)
            if hub.kills < KILLS and done >= (hub.kills + 1) * OPERATIONS / (KILLS + 1):
                hub.kill()
                hub.start()
            time.sleep(random.uniform(0.001, 0.01))
        seconds = time.monotonic() - began
        assert [client.exitcode for client in clients] == [0] * PROCESSES
        # the last word is a repaired start's, as it would be in production
        hub.kill()
        hub.start()
    database = Database(url)
    try:
        counts = check(logs, database, hub.root / "default")
    finally:
        database.close()
    print(counts.lines(f"hammer on {kind}, {PROCESSES} processes, {len(FIXED + VOLATILE)} notebooks", hub.kills))
    print(f"  {counts.operations / seconds:.0f} operations/s with all restarts, {hub.repairs} repairs at start")
    assert hub.kills >= KILLS
    assert counts.operations >= OPERATIONS // PROCESSES * PROCESSES
    assert min(counts.accepted, counts.refused, counts.unknown, counts.deleted) > 0


def test_a_real_hub_keeps_its_word_over_http_through_kills(tmp_path: Path) -> None:
    """Four people, real locks with real notebook servers behind them, a real hub killed three times."""
    operations, people, kills = 600, ["ann", "bob", "carol", "dave"], 3
    hub = Hub(tmp_path, "c.MarimoHub.lock_ttl = 2\n")
    hub.start()
    try:
        ann = Person(hub, "ann").set_up()
        tokens = {}
        for name in people:
            person = ann if name == "ann" else Person(hub, name)
            if person is not ann:
                person.sign_up()
                ann.approve(name, "editor")
                person.sign_in()
            tokens[name] = person.api("POST", f"/users/{name}/tokens", {}).json()["token"]
        notebooks = FIXED[:12]
        for name in notebooks:
            assert ann.api("POST", "/notebooks", {"name": name}).status_code == 201
        api = f"http://127.0.0.1:{hub.hub_port}/hub/api"
        done: list[str] = []
        failures: list[BaseException] = []
        logs = [tmp_path / f"log-{name}" for name in people]

        def work(name: str, log: Path) -> None:
            try:
                client = Client(name, HttpCaller(api, tokens[name]), log, notebooks, [], may_revoke=name == "ann")
                client.work(operations // len(people), lambda: done.append(name))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(people, logs, strict=True)]
        for thread in threads:
            thread.start()
        killed = 0
        while any(thread.is_alive() for thread in threads):
            if killed < kills and len(done) >= (killed + 1) * operations / (kills + 1):
                hub.kill()
                killed += 1
                hub.start()
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert failures == []
    finally:
        hub.stop()
    database = Database(f"sqlite:///{hub.data / 'marimohub.sqlite'}")
    try:
        counts = check(logs, database, hub.data / "notebooks" / "default")
    finally:
        database.close()
    print(counts.lines(f"hammer on a real hub, {len(people)} people, {len(notebooks)} notebooks", killed))
    assert killed == kills
    assert min(counts.accepted, counts.refused) > 0
