"""The local spawner under a real hub: what a person sees when it fails, and what survives."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners.local import process_start_time
from marimohub.spawners.marimo import folder_name
from tests.hub import Hub, Person

SWITCH = """
import os, sys
def cmd():
    return [sys.executable, "-m", "marimohub.singleuser"]
if os.path.exists("broken"):
    c.MarimoSpawner.cmd = ["sh", "-c", "echo the reason >&2; exit 3"]
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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path, SWITCH)
    yield hub
    hub.stop()


def opening(person: Person, name: str) -> list[dict[str, Any]]:
    """Open as the page does; returns the events."""
    answer = person.api("POST", f"/notebooks/{name}/lock", {}, Accept="text/event-stream")
    assert answer.status_code == 200
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def server_pid(hub: Hub, user: str) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if (
                f"HOME={hub.data}/users/{user}/home".encode() in environment
                and b"singleuser" in (process / "cmdline").read_bytes()
            ):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"{user} has no server")


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

    # once it is repaired, the next try works without any clean-up
    hub.kill()
    (hub.folder / "broken").unlink()
    hub.start()
    bob.sign_in()
    assert opening(bob, "first")[-1]["phase"] == "ready"


def test_server_that_died_is_started_again_by_the_next_open(hub: Hub) -> None:
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
    assert opening(ann, "first")[-1]["phase"] == "ready"
    assert server_pid(hub, "ann") != pid

    # private folders, and a server that outlives the hub is found by the next one
    folder = hub.data / "users/ann"
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "home", folder / "notebooks")} == {0o700}
    pid = server_pid(hub, "ann")
    hub.kill()
    hub.start()
    ann.sign_in()
    assert opening(ann, "first")[-1]["phase"] == "ready"
    assert server_pid(hub, "ann") == pid
    hub.stop()
    with pytest.raises(AssertionError, match="has no server"):
        server_pid(hub, "ann")


def test_hubs_environment_does_not_reach_a_server(tmp_path: Path) -> None:
    hub = Hub(tmp_path, DATABASE_PASSWORD="secret")
    hub.start()
    try:
        ann = Person(hub, "ann").set_up()
        ann.api("POST", "/notebooks", {"name": "first"})
        assert opening(ann, "first")[-1]["phase"] == "ready"
        environment = Path(f"/proc/{server_pid(hub, 'ann')}/environ").read_bytes()
        assert b"DATABASE_PASSWORD" not in environment
    finally:
        hub.stop()
