"""The local spawner under a real hub: what a person sees when it fails, what survives, and what a server may know."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from traitlets import TraitError
from traitlets.config import Config

from marimohub.spawners import confinement, endings, ports
from marimohub.spawners.confinement import CannotConfine, Places, Rules
from marimohub.spawners.local import LocalMarimoSpawner
from marimohub.spawners.marimo import folder_name
from marimohub.spawners.ports import NoPort
from marimohub.spawners.processes import descendants, process_start_time
from tests.hub import Hub, Person

# a command of the administrator's own, which is confined like ours; and one that fails
SWITCH = """
import os, sys
if os.path.exists("broken"):
    c.MarimoSpawner.cmd = ["sh", "-c", "echo the reason >&2; exit 3"]
if os.path.exists("custom"):
    look = f"head -c 1 {os.getcwd()}/marimohub-data/cookie_secret"
    c.MarimoSpawner.cmd = ["sh", "-c", f"{look} || echo no secret; exec {sys.executable} -m marimohub.singleuser"]
"""
PROFILES = """
c.MarimoSpawner.profiles = [
    {{"name": "usual"}},
    {{"name": "other", "python": {python!r}, "memory": "1G", "environment": {{"FLAVOUR": "sour"}}}},
]
"""


@pytest.mark.unit
def test_folder_names_never_meet() -> None:
    names = ["ann", "Ann", "ann@example.com", "ann_example_com", "ann-example", "../ann", "ü", "é", "x" * 80, "x" * 81]
    folders = [folder_name(name) for name in names]
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)


@pytest.mark.unit
def test_a_process_is_named_by_pid_and_start_time() -> None:
    assert process_start_time(os.getpid()).isdigit()
    assert process_start_time(2**22 - 1) == ""


@pytest.mark.unit
def test_settings_that_mean_nothing_are_refused() -> None:
    for setting in (
        {"port_range": (80, 90)},
        {"port_range": (30000, 20000)},
        {"outbound_ports": "http"},
        {"outbound_ports": "9-1"},
        {"sandbox": "maybe"},
    ):
        with pytest.raises(TraitError):
            LocalMarimoSpawner(**setting)


@pytest.mark.unit
def test_servers_listen_on_a_free_port_of_the_range() -> None:
    with ports.listen("127.0.0.1", (20000, 29999)) as first:
        port = first.getsockname()[1]
        assert 20000 <= port <= 29999
        with pytest.raises(NoPort, match=f"port {port} is in use"):
            ports.listen("127.0.0.1", (port, port))
    with ports.listen("127.0.0.1", (port, port)) as again:
        assert again.getsockname()[1] == port
    with pytest.raises(NoPort, match=re.escape("LocalMarimoSpawner.ip")):
        ports.listen("192.0.2.1", (20000, 20010))


@pytest.mark.unit
def test_sandbox_opens_the_persons_own_folders_and_the_hub_and_what_is_configured(tmp_path: Path) -> None:
    places = Places((tmp_path / "home",), tmp_path / "snapshot")

    def rules(outbound: str) -> Any:
        made = Rules([str(tmp_path)], [], outbound, (20000, 29999))
        return made.sandbox(sys.executable, places, "http://127.0.0.1:8081/hub/api", None)

    opened, closed = rules("1-9999"), rules("")
    assert opened.connect == ((1, 9999), (8081, 8081)) and opened.datagrams
    assert closed.connect == ((8081, 8081),) and not closed.datagrams
    assert opened.bind == ()
    assert str(tmp_path / "snapshot") in opened.read and str(tmp_path) in opened.read
    assert opened.write == (str(tmp_path / "home"),)
    exposed = Rules([], [], "1-65535", (20000, 29999)).problems(own_users=True)
    assert any("other people's servers" in problem for problem in exposed)


@pytest.mark.unit
def test_hub_does_not_start_where_it_cannot_confine_unless_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable = SimpleNamespace(problem=lambda *_, **__: None)
    monkeypatch.setattr(LocalMarimoSpawner, "identities", reachable)
    LocalMarimoSpawner.check(Config(), [tmp_path])
    for setting, secret in (("extra_read", tmp_path.parent), ("extra_write", tmp_path)):
        with pytest.raises(CannotConfine, match=re.escape(f"may read {secret}")):
            LocalMarimoSpawner.check(Config({"LocalMarimoSpawner": {setting: [str(secret)]}}), [tmp_path])
    monkeypatch.setattr(confinement.kernel, "unsupported", lambda: "This kernel has no Landlock.")
    with pytest.raises(CannotConfine) as caught:
        LocalMarimoSpawner.check(Config(), [tmp_path])
    assert "This kernel has no Landlock." in str(caught.value)
    assert 'c.LocalMarimoSpawner.sandbox = "off"' in str(caught.value)
    LocalMarimoSpawner.check(Config({"LocalMarimoSpawner": {"sandbox": "off"}}), [tmp_path])


@pytest.mark.unit
def test_why_a_server_ended_is_told_in_sentences() -> None:
    breach = {"kind": "memory", "pid": 5, "pids": [5], "text": "It used all of its 4 GB of memory."}
    assert endings.because(-9, [breach], 5) == "Your notebook server was ended. It used all of its 4 GB of memory."
    assert "SIGKILL" in endings.because(-9, [breach], 6), "that breach ended something else"
    assert "exit status 3" in endings.because(3, [], 5)
    assert "SIGSEGV" in endings.because(-signal.SIGSEGV, [], 5)
    assert "number 60" in endings.because(-60, [], 5)
    assert endings.because(None, [], 5) == "Your notebook server ended unexpectedly."
    assert endings.because(0, [], 5)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path, SWITCH)
    yield hub
    hub.stop()


def opening(person: Person, name: str, **options: Any) -> list[dict[str, Any]]:
    """Open as the page does; returns the events."""
    answer = person.api("POST", f"/notebooks/{name}/lock", options, Accept="text/event-stream")
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def server_pid(hub: Hub, user: str) -> int:
    """The newest server's first process, below its guard."""
    found = re.findall(rf"The server of {user}:? runs as process (\d+)", hub.log)
    assert found, f"{user} had no server"
    return int(found[-1])


def _readable(pid: int, name: str) -> bytes:
    """A file of a process; nothing if it hides it from its own user, as servers do."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return b""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_failed_start_shows_a_sentence_and_the_log_to_administrators_and_gives_the_lock_back(hub: Hub) -> None:
    (hub.folder / "broken").touch()
    hub.start()
    ann = Person(hub, "ann").set_up()
    bob = Person(hub, "bob")
    bob.sign_up()
    ann.approve("bob", "editor")
    bob.sign_in()
    bob.api("POST", "/notebooks", {"name": "first"})
    began = time.monotonic()
    for person in (bob, ann):
        events = opening(person, "first")
        failed = events[-1]
        assert failed["phase"] == "failed"
        assert failed["error"]["code"] == "server_failed"
        assert "could not be started" in failed["error"]["message"]
        assert failed["error"].get("log") == (["the reason"] if person is ann else None)
        (row,) = person.api("GET", "/notebooks").json()["notebooks"]
        assert row["lock"]["state"] == "available"
    assert time.monotonic() - began < 20, "a dead server is noticed at once, not after a timeout"
    assert "the reason" in hub.log

    # once it is repaired, the next try works without any clean-up; a command of one's own is confined as ours is
    hub.kill()
    (hub.folder / "broken").unlink()
    (hub.folder / "custom").touch()
    hub.start()
    bob.sign_in()
    assert opening(bob, "first")[-1]["phase"] == "ready"
    log = (hub.data / "users/bob/server.log").read_text()
    assert "no secret" in log and "cookie_secret" in log


def test_server_that_died_is_told_at_once_and_started_again_by_the_next_open(hub: Hub) -> None:
    hub.start()
    ann = Person(hub, "ann").set_up()
    ann.api("POST", "/notebooks", {"name": "first"})
    phases = [event["phase"] for event in opening(ann, "first")]
    assert phases[0] == "lock"
    assert "snapshot" in phases
    assert "server" in phases
    assert phases[-1] == "ready"
    pid = server_pid(hub, "ann")
    os.kill(pid, signal.SIGKILL)
    until(lambda: ann.api("GET", "/profiles").json()["state"] == "stopped")
    assert "SIGKILL" in ann.api("GET", "/profiles").json()["ended"]["because"]
    assert opening(ann, "first")[-1]["phase"] == "ready"
    assert server_pid(hub, "ann") != pid

    # a server that outlives the hub is found by the next one, and ends with it
    pid = server_pid(hub, "ann")
    started = process_start_time(pid)
    hub.kill()
    hub.start()
    ann.sign_in()
    assert ann.api("GET", "/profiles").json()["state"] == "running"
    assert opening(ann, "first")[-1]["phase"] == "ready"
    assert process_start_time(pid) == started
    hub.stop()
    assert process_start_time(pid) == ""

    # one that ended while there was no hub is not running for the next
    hub.start()
    ann.sign_in()
    assert opening(ann, "first")[-1]["phase"] == "ready"
    hub.kill()
    os.kill(server_pid(hub, "ann"), signal.SIGKILL)
    until(lambda: process_start_time(server_pid(hub, "ann")) == "")
    hub.start()
    ann.sign_in()
    assert ann.api("GET", "/profiles").json()["state"] == "stopped"


def test_servers_know_nothing_of_the_hub_and_run_with_the_interpreter_of_their_profile(tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    (site,) = other.glob("lib/python*/site-packages")
    ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    config = PROFILES.format(python=str(other / "bin/python"))
    hub = Hub(tmp_path, config, DATABASE_PASSWORD="hush", MARIMOHUB_ADMIN="hush")
    hub.start()
    try:
        ann = Person(hub, "ann").set_up()
        ann.api("POST", "/notebooks", {"name": "first"})
        assert opening(ann, "first")[-1]["phase"] == "ready"
        usual = server_pid(hub, "ann")
        assert Path(f"/proc/{usual}/cmdline").read_bytes().startswith(sys.executable.encode())
        assert opening(ann, "first", profile="other", restart=True)[-1]["phase"] == "ready"
        pid = server_pid(hub, "ann")
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(str(other).encode())
        assert hub.process is not None
        family = descendants(hub.process.pid)
        assert pid in family and process_start_time(usual) == ""
        # of all processes that the hub has started for servers, and of the servers themselves
        for process in family:
            shown = _readable(process, "cmdline") + _readable(process, "environ")
            if b"spawn_server" in shown:
                assert b"hush" not in shown and b"API_TOKEN" not in shown
        assert not re.search(r"token=[0-9a-f]{32}|API_TOKEN", (hub.data / "users/ann/server.log").read_text())
        # without a sandbox it all works, too, and the log says so
        hub.stop()
        hub.config_path.write_text(hub.config_path.read_text() + 'c.LocalMarimoSpawner.sandbox = "off"\n')
        hub.start()
        ann.sign_in()
        assert opening(ann, "first")[-1]["phase"] == "ready"
        assert confinement.OFF in hub.log
    finally:
        hub.stop()
