"""The watch over a server that is at a limit: what it ends, what it lets be, and what it says. See watched.py."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners.cgroups import Cgroups, NoCgroups
from marimohub.spawners.job import Job, Limits
from marimohub.spawners.watch import Watch
from tests.other_users import open_folder

MIB = 1 << 20
UID = 64213  # nobody else's; a bomb that runs away has this user's limit of processes
OTHER_UID = 64214
READABLE = ["/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", str(Path(__file__).parents[2])]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives servers users of their own")


HOWS = pytest.mark.parametrize(
    "how",
    [
        pytest.param({"ordinary": True}, id="one-after-another"),
        pytest.param({"ordinary": True, "readable": READABLE}, id="by-the-zygote"),
        pytest.param({"uid": OTHER_UID}, id="by-a-process-of-the-user", marks=as_root),
    ],
)


def watched(*, ordinary: bool = False, **ask: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Breaches, and what is left. `ordinary`: the guard is an ordinary user, and its server the same one."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("watched.py")), json.dumps(ask)]
    if ordinary and os.geteuid() == 0:
        command = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[:-1], lines[-1]


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_notebook_that_eats_memory_dies_alone_with_its_workers(ordinary: bool) -> None:
    breaches, end = watched(ordinary=ordinary, limits={"memory": 120 * MIB}, kernels=["sleep", "eat", "sleep"], alive=4)
    assert end == {"alive": ["kernel-zygote", "launcher", "sleep", "sleep"], "stopped": [], "server": None}
    (breach,) = breaches
    assert breach["event"] == "breach" and breach["kind"] == "memory" and breach["limit"] == 120 * MIB
    assert breach["used"] > 120 * MIB and breach["used"] > breach["size"] > 80 * MIB
    assert len(breach["pids"]) == 2 and breach["pid"] == breach["pids"][0]
    assert "the 120 MB that it may use, so the notebook was stopped" in breach["text"]


def test_memory_spread_over_processes_without_parents_is_found() -> None:
    breaches, end = watched(limits={"memory": 200 * MIB}, kernels=["sleep", "spread"], settle=0.5)
    assert breaches[0]["kind"] == "memory"
    assert {"kernel-zygote", "launcher", "sleep"} <= set(end["alive"])
    assert end["alive"].count("spread") < 9  # each has 50 MB


def test_memory_behind_a_first_thread_that_has_ended_is_found() -> None:
    limits = {"memory": 120 * MIB}
    breaches, end = watched(ordinary=True, limits=limits, kernels=["eat_behind_a_dead_thread", "sleep"], alive=3)
    assert breaches[0]["kind"] == "memory" and breaches[0]["size"] > 80 * MIB
    assert end["alive"] == ["kernel-zygote", "launcher", "sleep"]


def test_files_in_memory_without_a_name_are_memory_of_who_holds_them() -> None:
    breaches, end = watched(limits={"memory": 200 * MIB}, kernels=["sleep", "eat_nameless"], alive=3)
    assert breaches[0]["kind"] == "memory" and breaches[0]["size"] > 150 * MIB
    assert end["alive"] == ["kernel-zygote", "launcher", "sleep"]


@pytest.mark.parametrize("ordinary", [False, True])
def test_memory_that_processes_share_counts_once(ordinary: bool) -> None:
    # 40 MB from before the fork and 40 MB shared, in six processes: 480 MB if each counted in full
    with open_folder(0o777) as folder:
        breaches, end = watched(
            ordinary=ordinary,
            limits={"memory": 150 * MIB},
            preloaded=40,
            kernels=["share"],
            until_file=str(folder / "ready"),
            alive=7,
        )
    assert breaches == []
    assert end["alive"] == ["kernel-zygote", "launcher", *["share"] * 5]


def test_a_server_that_eats_memory_itself_is_ended_and_not_its_notebooks_for_it() -> None:
    breaches, end = watched(limits={"memory": 120 * MIB}, kernels=["sleep"], server="eat_alone", alive=2)
    (breach,) = breaches
    assert "The notebook server itself" in breach["text"] and end["server"] == -9
    assert "sleep" in end["alive"]


@HOWS
def test_a_fork_bomb_is_ended_and_the_server_lives(how: dict[str, Any]) -> None:
    breaches, end = watched(limits={"processes": 60}, kernels=["sleep", "bomb"], alive=2, **how)
    (breach,) = breaches
    assert breach["kind"] == "processes" and breach["limit"] == 60 <= breach["used"]
    assert len(breach["pids"]) > 30  # the bomb, and the other notebook
    assert end == {"alive": ["kernel-zygote", "launcher"], "stopped": [], "server": None}


@HOWS
def test_a_false_alarm_lets_all_go_on(how: dict[str, Any]) -> None:
    with open_folder(0o777) as folder:
        ready = str(folder / "ready")
        breaches, end = watched(
            limits={"processes": 60},
            kernels=["sleep", "work"],
            alarm=True,
            until_file=ready,
            writable=[str(folder)],
            alive=4,
            **how,
        )
        assert os.path.exists(ready)
    assert breaches == []
    assert end == {"alive": ["kernel-zygote", "launcher", "sleep", "work"], "stopped": [], "server": None}


def test_processes_that_have_ended_and_nobody_waited_for_count() -> None:
    breaches, end = watched(ordinary=True, limits={"processes": 60}, kernels=["zombies"], alive=2)
    assert breaches[0]["kind"] == "processes"
    assert end == {"alive": ["kernel-zygote", "launcher"], "stopped": [], "server": None}


@as_root
def test_a_fork_bomb_in_a_control_group_is_frozen_and_ended() -> None:
    try:
        groups = Cgroups.prepare(f"test-{os.getpid()}")
    except NoCgroups as error:
        pytest.skip(str(error))
    group = groups.create("bomb", Limits())
    try:
        breaches, end = watched(limits={"processes": 60}, kernels=["bomb"], alive=2, uid=OTHER_UID, cgroup=str(group))
    finally:
        groups.destroy(group)
        groups.close()
    assert breaches[0]["kind"] == "processes"
    assert end == {"alive": ["kernel-zygote", "launcher"], "stopped": [], "server": None}


def test_what_goes_on_under_a_trusted_name_is_spared_once() -> None:
    # a terminal's program that calls itself the zygote, after it ended that
    breaches, end = watched(
        ordinary=True, limits={"processes": 60}, zygote=False, kernels=[], beside=["bomb"], breaches=2, alive=1
    )
    first, second = breaches
    assert first["kind"] == second["kind"] == "processes"
    assert end == {"alive": ["launcher"], "stopped": [], "server": None}


@pytest.mark.parametrize("filler", ["fill", "fill_nameless"])
def test_notebooks_that_fill_the_disk_are_ended(filler: str, tmp_path: Path) -> None:
    breaches, end = watched(limits={"disk": 40 * MIB}, kernels=["sleep", filler], folder=str(tmp_path), alive=2)
    (breach,) = breaches
    assert breach["kind"] == "disk" and breach["used"] > 40 * MIB
    assert "Delete files in the file browser" in breach["text"]
    assert end["alive"] == ["kernel-zygote", "launcher"]


def kernel_says(group: Path, kills: int) -> None:
    (group / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")


@pytest.mark.unit
def test_what_the_kernel_killed_in_a_control_group_is_told(tmp_path: Path) -> None:
    # this machine has no memory controller for v2 groups: its files are made by hand
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    kernel_says(tmp_path, 2)
    job = Job("test", {}, "/", "/", argv=("sleep",), limits=Limits(memory=500 * MIB), cgroup=str(tmp_path))
    server = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], stdout=subprocess.PIPE)
    watch = Watch(os.getpid(), server.pid, job)
    try:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        while len(children.read_text().split()) < 2:
            pass
        assert watch.check() is None
        victim = int(children.read_text().split()[0])
        os.kill(victim, 9)
        with contextlib.suppress(OSError):  # it is gone
            while "Z" not in Path(f"/proc/{victim}/stat").read_text():
                pass
        kernel_says(tmp_path, 3)
        watch._looked_at = float("-inf")
        breach = watch.check()
        assert breach is not None and breach.kind == "memory" and breach.limit == 500 * MIB
        assert breach.pid == victim and "others go on" in breach.text
        assert watch.check() is None and watch.why_killed() is None
        kernel_says(tmp_path, 4)
        told = watch.why_killed()
        assert told is not None and told.pid == server.pid and "used all of the 500 MB" in told.text
    finally:
        for pid in children.read_text().split():
            os.kill(int(pid), 9)
        server.wait()


@pytest.mark.unit
def test_a_server_without_limits_is_let_be() -> None:
    watch = Watch(os.getpid(), os.getpid(), Job("test", {}, "/", "/"))
    assert watch.check() is None and watch.pause > 0
