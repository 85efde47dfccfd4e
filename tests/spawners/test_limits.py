"""Limits that processes carry: what can still be done under them, as root and as an ordinary user. See limited.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners.cgroups import most_tasks
from marimohub.spawners.job import Limits
from marimohub.spawners.limits import OOM_SERVER, byte_text, data_limit, in_force, parse_bytes

pytestmark = pytest.mark.unit

MIB = 1 << 20
UID = 64211
ROOT = os.geteuid() == 0


def limited(*tries: str, uid: int | None = UID, **ask: Any) -> dict[str, Any]:
    """What is possible under limits, after a change to the user `uid` where only root can make one."""
    ask |= {"try": tries, "uid": uid if ROOT else None}
    command = [sys.executable, "-P", str(Path(__file__).with_name("limited.py")), json.dumps(ask)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("ordinary users may not have user namespaces here")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2G", 2 << 30),
        ("512M", 512 << 20),
        ("1.5 GB", 3 << 29),
        ("1TiB", 1 << 40),
        ("64k", 64 << 10),
        (" 100 ", 100),
        (4096, 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e9", "2X", "0", 0, -5, True, None, 1.5, "1G 2G", "9" * 15 + "T"])
def test_what_is_no_size_is_refused_in_a_sentence(text: Any) -> None:
    with pytest.raises(ValueError, match=r"not a size.*\.$"):
        parse_bytes(text)


def test_sizes_are_told_as_people_read_them() -> None:
    assert [byte_text(count) for count in (1023 << 10, 512 << 20, 3 << 29, 20 << 30, 1 << 40)] == [
        "1023 KB",
        "512 MB",
        "1.5 GB",
        "20 GB",
        "1 TB",
    ]


def test_each_process_of_a_server_keeps_within_what_no_group_limits() -> None:
    limits = {"memory": 400 * MIB, "disk": 100 * MIB, "cpu": 0.5, "processes": 200}
    found = limited("state", "memory", "file", "raised", limits=limits)
    assert found["memory"] == "MemoryError"
    assert found["file"] == "EFBIG"
    assert found["raised"] == []
    state = found["state"]
    assert state["core"] == [0, 0] and state["cores"] == 1
    assert state["data"] == data_limit(400 * MIB) and state["file"] == 100 * MIB
    assert state["oom"] >= OOM_SERVER


def test_what_a_control_group_limits_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    before = limited("state", limits={})["state"]
    limits = {"memory": 10 * MIB, "cpu": 0.5, "processes": 50}
    found = limited("state", "memory", limits=limits, step=300, cgroup=str(tmp_path), uid=None)
    assert data_limit(10 * MIB) < 300 * MIB
    assert found["memory"] == "there was room"
    assert found["state"] == before | {"data": -1}


@pytest.mark.skipif(not ROOT, reason="only root gives servers users of their own")
def test_a_user_of_its_own_has_its_processes_counted_by_the_system() -> None:
    found = limited("forks", "raised", limits={"processes": 40}, own_uid=True)
    assert found["forks"] == most_tasks(40) - 1 < 100  # and the one that asks
    assert "RLIMIT_NPROC" not in found["raised"]


def test_in_a_user_namespace_a_servers_processes_are_counted_apart_from_others_of_the_user() -> None:
    found = limited("forks", limits={"processes": 40}, namespace=True)
    assert found["forks"] == most_tasks(40) - 1 < 100  # and the one that asks


def test_a_shared_user_gets_no_limit_that_other_servers_could_use_up() -> None:
    tasks = limited("state", limits={"processes": 40})["state"]["tasks"]
    running = sum(
        int(line.split()[1])
        for status in Path("/proc").glob("[0-9]*/status")
        for line in status.read_text().splitlines()
        if line.startswith("Threads:")
    )
    assert tasks == -1 or tasks > min(running + 1000, 30_000)


def test_the_admin_page_is_told_how_each_limit_is_held() -> None:
    all_of_them = Limits(memory=1, cpu=1.0, processes=1, disk=1)
    assert in_force(all_of_them, {"memory", "cpu", "pids"}) == {
        "memory": "cgroup",
        "cpu": "cgroup",
        "processes": "cgroup",
        "disk": "watch",
    }
    assert in_force(all_of_them, ()) == {
        "memory": "watch",
        "cpu": "affinity",
        "processes": "watch",
        "disk": "watch",
    }
    assert in_force(all_of_them, {"memory"}, own_uid=True)["processes"] == "rlimit"
    assert set(in_force(Limits(), {"memory"}).values()) == {"none"}
