"""Control groups. What needs no controller is tried on the machine's real v2 tree, as root; the controllers' files, and
trees of other kinds, are made by hand: on machines with v1 groups a v2 tree has no memory, pids or cpu controller.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from marimohub.spawners import cgroups
from marimohub.spawners.cgroups import CgroupError, Cgroups, Mount, NoCgroups
from marimohub.spawners.job import Limits

pytestmark = pytest.mark.unit

MIB = 1 << 20
MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 25 0:26 / /sys/fs/cgroup/unified rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""


@pytest.fixture
def groups() -> Iterator[Cgroups]:
    try:
        found = Cgroups.prepare(f"test of {os.getpid()}")
    except NoCgroups as error:
        pytest.skip(str(error))
    yield found
    found.sweep()
    found.close()
    assert not found.base.exists()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a child."""
    process = subprocess.Popen(["sh", "-c", "echo; read line; sleep 60 & wait"], stdin=subprocess.PIPE, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_group_names_counts_and_ends_all_that_a_server_started(
    groups: Cgroups, sleeper: subprocess.Popen[bytes]
) -> None:
    group = groups.create("anna/notebooks ..", Limits(memory=1 << 30, cpu=1.0, processes=100))
    assert group.parent == groups.base and group == groups.path_of("anna/notebooks ..")
    assert cgroups.active(group) == groups.controllers
    assert groups.usage(group).processes == 0
    groups.add(group, sleeper.pid)
    assert sleeper.stdin is not None
    sleeper.stdin.write(b"\n")
    sleeper.stdin.flush()
    while len(cgroups.pids(group)) < 2:
        pass
    assert sleeper.pid in cgroups.pids(group)
    usage = groups.usage(group)
    assert usage.processes == 2 and usage.cpu_seconds >= 0
    groups.kill(group)
    assert cgroups.pids(group) == []
    assert sleeper.wait() == -signal.SIGKILL
    groups.destroy(group)
    groups.destroy(group)
    assert not group.exists()


def test_a_new_server_finds_its_group_empty(groups: Cgroups, sleeper: subprocess.Popen[bytes]) -> None:
    groups.add(groups.create("anna", Limits()), sleeper.pid)
    group = groups.create("anna", Limits())
    assert sleeper.wait() == -signal.SIGKILL
    assert cgroups.pids(group) == []


def test_groups_of_servers_that_nobody_knows_are_swept(groups: Cgroups, sleeper: subprocess.Popen[bytes]) -> None:
    known, lost = groups.create("known", Limits()), groups.create("lost", Limits())
    groups.add(lost, sleeper.pid)
    assert groups.sweep(keep=[known]) == [lost]
    assert known.exists() and not lost.exists()
    assert sleeper.wait() == -signal.SIGKILL
    Cgroups.remove(known)
    Cgroups.remove(known)
    assert not known.exists()


def test_what_is_no_group_of_the_hub_is_left_alone(groups: Cgroups) -> None:
    for path in (groups.base, groups.base.parent, Path("/sys/fs/cgroup")):
        with pytest.raises(CgroupError, match="no group of this hub"):
            groups.destroy(path)
    with pytest.raises(CgroupError, match="cannot be put into"):
        groups.add(groups.path_of("missing"), os.getpid())


def test_limits_are_written_as_the_kernel_takes_them(tmp_path: Path) -> None:
    group = Cgroups(tmp_path, ("memory", "pids", "cpu")).create("all", Limits(512 * MIB, 1.5, 100, 1))
    assert {path.name: path.read_text() for path in group.iterdir()} == {
        "memory.max": "536870912",
        "memory.oom.group": "0",
        "pids.max": str(cgroups.most_tasks(100)),
        "cpu.max": "150000 100000",
    }
    assert list(Cgroups(tmp_path, ("pids",)).create("one", Limits(512 * MIB, 1.5, 100)).iterdir()) == [
        tmp_path / "one" / "pids.max"
    ]
    assert list(Cgroups(tmp_path, ("memory", "pids", "cpu")).create("none", Limits()).iterdir()) == []


def test_a_limit_that_cannot_be_set_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(CgroupError, match="cannot be made: No space left"):
        Cgroups(tmp_path, ("pids",)).create("one", Limits(processes=5))
    assert list(tmp_path.iterdir()) == []


def test_usage_is_read_from_the_controllers(tmp_path: Path) -> None:
    group = tmp_path / "one"
    group.mkdir()
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (group / "memory.stat").write_text("anon 1000\nfile 5000\nshmem 24\nslab 9\n")
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (group / "pids.current").write_text("7\n")
    groups = Cgroups(tmp_path, ("memory", "pids"))
    usage = groups.usage(group)
    assert (usage.cpu_seconds, usage.memory_bytes, usage.processes) == (2.5, 1024, 7)
    assert groups.oom_kills(group) == 2
    with pytest.raises(CgroupError, match="cannot be read"):
        groups.usage(tmp_path / "gone")


def test_the_mount_and_the_own_group_are_found() -> None:
    mount = cgroups.find_mount(MOUNTS)
    assert mount == Mount(Path("/sys/fs/cgroup/unified"), "/")
    assert cgroups.find_mount("1 1 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu") is None
    spaced = cgroups.find_mount("1 1 0:1 / /mnt/a\\040b rw - cgroup2 none rw")
    assert spaced is not None and spaced.point == Path("/mnt/a b")
    assert cgroups.own_path("5:memory:/x\n0::/user.slice/a\n") == "/user.slice/a"
    assert cgroups.own_path("5:memory:/x\n") is None
    inside = Mount(Path("/sys/fs/cgroup"), "/docker/abc")
    assert cgroups.own_folder(inside, "/docker/abc/hub") == Path("/sys/fs/cgroup/hub")
    assert cgroups.own_folder(inside, "/elsewhere") is None


def tree(root: Path, *names: str, controllers: str = "cpu memory pids") -> Path:
    """Groups inside each other, with the files of the kernel's that matter; returns the innermost."""
    folder = root
    for name in ("", *names):
        folder = folder / name
        folder.mkdir(exist_ok=True)
        for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            (folder / file).touch()
        (folder / "cgroup.controllers").write_text(controllers)
        if name:
            (folder / "cgroup.type").write_text("domain\n")
    return folder


@pytest.fixture
def delegated(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that systemd gave away."""
    folders: list[Path] = []

    def getxattr(path: Path, name: str) -> bytes:
        if path in folders and name == "user.delegate":
            return b"1"
        raise OSError(61, "No data available")

    monkeypatch.setattr(os, "getxattr", getxattr)
    return folders


def test_groups_are_made_where_systemd_gave_a_part_of_the_tree(tmp_path: Path, delegated: list[Path]) -> None:
    own = tree(tmp_path, "system.slice", "hub.service")
    delegated.append(own)
    assert cgroups._place(Mount(tmp_path, "/"), own) == own
    # the second time the hub is in the leaf that the first one made
    leaf = tree(own, "hub")
    assert cgroups._place(Mount(tmp_path, "/"), leaf) == own


def test_as_root_nothing_is_made_below_what_systemd_keeps(
    tmp_path: Path, delegated: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    own = tree(tmp_path, "user.slice", "session-1.scope")
    assert cgroups._place(Mount(tmp_path, "/"), own) == tmp_path
    (own.parent / "memory.max").write_text("8000000\n")
    with pytest.raises(NoCgroups, match="would not limit its servers"):
        cgroups._place(Mount(tmp_path, "/"), own)
    with pytest.raises(NoCgroups, match="was not given to the hub"):
        cgroups._place(Mount(tmp_path, "/docker/abc"), own)


def test_an_ordinary_user_makes_groups_only_in_a_group_of_their_own(
    tmp_path: Path, delegated: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    own = tree(tmp_path, "user.slice", "app.scope")
    assert cgroups._place(Mount(tmp_path, "/"), own) == own
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NoCgroups, match="does not belong to the hub"):
        cgroups._place(Mount(tmp_path, "/"), own)


def test_the_hub_makes_room_for_its_servers_groups(tmp_path: Path) -> None:
    place = tree(tmp_path, "hub.service", controllers="cpu memory pids io")
    # the kernel empties cgroup.procs of one group when a process goes to another: here it stays, and the loop gives up
    (place / "cgroup.procs").write_text(f"{os.getpid()}\n")
    base = place / "marimohub-servers"
    tree(base)
    found = Cgroups._make(place, base)
    assert (place / "hub" / "cgroup.procs").read_text() == str(os.getpid())
    assert (place / "cgroup.subtree_control").read_text() == "+cpu"  # the last one written, of three
    assert found.base == base
