"""Landlock rules, each tried in a process that put them on itself, beside what it may do without them."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners import landlock
from marimohub.spawners.landlock import Fs, LandlockError, Net, PathMissing, Ruleset
from tests.spawners.confining import World, denied, in_child, make_world, needs_abi, needs_landlock

pytestmark = [pytest.mark.unit, needs_landlock]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def rules(world: World, *, version: int | None = None, ports: tuple[int, ...] | None = None) -> Callable[[], None]:
    """Read the system and the snapshot, change the home; with `ports`, connect to those only and bind none."""

    def confine() -> None:
        net = Net(0) if ports is None else Net.CONNECT_TCP | Net.BIND_TCP
        with Ruleset(net=net, version=version) as ruleset:
            for path in ("/usr", "/lib", "/lib64", "/proc", str(world.snapshot)):
                if os.path.exists(path):
                    ruleset.allow_path(path, Fs.READ)
            ruleset.allow_path(str(world.home), Fs.READ | Fs.CHANGE)
            for port in ports or ():
                ruleset.allow_ports(port, port, Net.CONNECT_TCP)
            ruleset.restrict_self()

    return confine


def _touch_everything(world: World) -> dict[str, str]:
    home, snapshot, other = map(str, (world.home, world.snapshot, world.other))
    os.symlink(f"{other}/file", f"{home}/link")
    return {
        "read own": denied(open, f"{home}/file"),
        "write own": denied(Path(f"{home}/new").write_text, "x"),
        "remove own": denied(os.unlink, f"{home}/new"),
        "rename own": denied(os.rename, f"{home}/file", f"{home}/renamed"),
        "list own": denied(os.listdir, home),
        "make a FIFO": denied(os.mkfifo, f"{home}/fifo"),
        "read the snapshot": denied(open, f"{snapshot}/file"),
        "list the snapshot": denied(os.listdir, snapshot),
        "write the snapshot": denied(open, f"{snapshot}/file", "r+"),
        "truncate the snapshot": denied(os.truncate, f"{snapshot}/file", 0),
        "add to the snapshot": denied(Path(f"{snapshot}/new").write_text, "x"),
        "remove from the snapshot": denied(os.unlink, f"{snapshot}/file"),
        "rename out of the snapshot": denied(os.rename, f"{snapshot}/file", f"{home}/stolen"),
        "hard link out of the snapshot": denied(os.link, f"{snapshot}/file", f"{home}/linked"),
        "list another's": denied(os.listdir, other),
        "read another's": denied(open, f"{other}/file"),
        "read another's through a link": denied(open, f"{home}/link"),
        "read another's through ..": denied(open, f"{home}/../other/file"),
        "write another's": denied(open, f"{other}/file", "r+"),
        "truncate another's": denied(os.truncate, f"{other}/file", 0),
        "make in another's": denied(os.mkdir, f"{other}/folder"),
        "remove another's": denied(os.unlink, f"{other}/file"),
        "hard link another's": denied(os.link, f"{other}/file", f"{home}/linked"),
        "rename another's": denied(os.rename, f"{other}/file", f"{home}/stolen"),
        "make a socket in another's": denied(socket.socket(socket.AF_UNIX).bind, f"{other}/socket"),
    }


ALLOWED = {"read own", "write own", "remove own", "rename own", "list own", "make a FIFO", "list the snapshot"}
ALLOWED |= {"read the snapshot"}


@needs_abi(3)
def test_only_named_paths_can_be_read_and_changed(world: World) -> None:
    found = in_child(_touch_everything, world, confine=rules(world))
    assert {name for name, error in found.items() if not error} == ALLOWED
    assert {error for error in found.values() if error} <= {"EACCES", "EXDEV"}
    assert (world.other / "file").read_text() == "of other"
    assert (world.snapshot / "file").read_text() == "of snapshot"


def test_without_rules_the_same_user_could_do_all_of_it(world: World) -> None:
    """So the test before shows the rules, and not file permissions."""
    found = in_child(_touch_everything, world)
    gone = {"rename out of the snapshot", "hard link out of the snapshot", "remove another's", "rename another's"}
    assert not {name for name, error in found.items() if error} - gone - {"hard link another's"}


def _what_a_program_reads(path: str) -> list[int]:
    codes = [subprocess.run(["/usr/bin/env", "cat", path], capture_output=True).returncode]
    codes.append(subprocess.run(["/bin/sh", "-c", f"exec </dev/null; cat {path}"], capture_output=True).returncode)
    return codes


def test_rules_hold_in_every_program_that_is_started(world: World) -> None:
    assert all(in_child(_what_a_program_reads, str(world.other / "file"), confine=rules(world)))
    assert in_child(_what_a_program_reads, str(world.other / "file")) == [0, 0]


@pytest.fixture
def servers() -> Iterator[list[socket.socket]]:
    """Two on IPv4 and one on IPv6, listening."""
    found = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))]
    found.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
    yield found
    for one in found:
        one.close()


def _connect(addresses: list[tuple[str, int]]) -> list[str]:
    return [denied(socket.create_connection, address, 5) for address in addresses]


@needs_abi(4)
def test_only_named_ports_can_be_connected_to(world: World, servers: list[socket.socket]) -> None:
    allowed, *others = [server.getsockname()[:2] for server in servers]
    tries = [allowed, *others, ("::ffff:127.0.0.1", others[0][1])]
    assert in_child(_connect, tries) == ["", "", "", ""]
    assert in_child(_connect, tries, confine=rules(world, ports=(allowed[1],))) == ["", "EACCES", "EACCES", "EACCES"]


def _bind() -> list[str]:
    found = [denied(socket.create_server, ("127.0.0.1", 0)), denied(socket.create_server, ("127.0.0.1", 34567))]
    return [*found, denied(socket.socket(socket.AF_INET6).bind, ("::1", 0))]


@needs_abi(4)
def test_no_port_can_be_bound(world: World) -> None:
    assert in_child(_bind, confine=rules(world, ports=())) == ["EACCES"] * 3


def _look_at(pid: int) -> dict[str, str]:
    files = {name: denied(open, f"/proc/{pid}/{name}") for name in ("environ", "mem", "maps", "auxv", "fd/1")}
    links = {name: denied(os.readlink, f"/proc/{pid}/{name}") for name in ("cwd", "root", "exe", "fd/1")}
    own = denied(open, "/proc/self/environ")
    found = {**{f"open {name}": error for name, error in files.items()}, **links, "own environ": own}
    return {**found, "signal": denied(os.kill, pid, 0), "end": denied(os.kill, pid, signal.SIGURG)}


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of the same user id, as the hub is without user ids of people's own."""
    from tests.spawners.confining import become_ordinary

    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, preexec_fn=become_ordinary)
    yield process.pid
    process.kill()
    process.wait()


@needs_abi(6)
def test_processes_of_the_same_user_cannot_be_looked_into_or_signalled(world: World, stranger: int) -> None:
    def looked(pid: int) -> dict[str, str]:
        import ctypes

        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # a process that gave up root is otherwise closed to itself, too
        return _look_at(pid)

    assert set(in_child(looked, stranger).values()) == {""}
    found = in_child(looked, stranger, confine=rules(world))
    assert found.pop("own environ") == ""
    assert found.pop("signal") == found.pop("end") == "EPERM"
    assert {name for name, error in found.items() if error not in ("EACCES", "EPERM")} == set()


@needs_abi(6)
def test_abstract_sockets_from_outside_cannot_be_connected_to(world: World) -> None:
    def connect(name: str) -> list[str]:
        own = socket.socket(socket.AF_UNIX)
        own.bind("\0" + name + "-own")
        own.listen()
        return [
            denied(socket.socket(socket.AF_UNIX).connect, "\0" + name),
            denied(socket.socket(socket.AF_UNIX).connect, "\0" + name + "-own"),
        ]

    with socket.socket(socket.AF_UNIX) as outside:
        name = f"marimohub-test-{os.getpid()}"
        outside.bind("\0" + name)
        outside.listen()
        assert in_child(connect, name) == ["", ""]
        assert in_child(connect, name, confine=rules(world)) == ["EPERM", ""]


@pytest.mark.parametrize("version", range(1, landlock.NEWEST_ABI + 1))
def test_every_older_kernel_confines_files(world: World, version: int) -> None:
    """An older kernel refuses what it does not know, so nothing newer may be asked of it."""
    if version > landlock.abi():
        pytest.skip("this kernel is older")

    def read() -> list[str]:
        return [denied(open, world.other / "file"), denied(open, world.snapshot / "file")]

    assert in_child(read, confine=rules(world, version=version)) == ["EACCES", ""]


def test_rights_grow_with_the_kernel() -> None:
    counts = [int(landlock.fs_rights(version)).bit_count() for version in range(1, 10)]
    assert counts == [13, 14, 15, 15, 16, 16, 16, 16, 17]


def test_ports_on_a_kernel_without_rules_for_them_are_an_error() -> None:
    with pytest.raises(LandlockError, match=r"Linux 6\.7"):
        Ruleset(net=Net.CONNECT_TCP, version=3)


def test_a_rule_for_a_path_that_is_not_there_says_so(tmp_path: Path) -> None:
    with Ruleset() as ruleset:
        with pytest.raises(PathMissing, match=r"nothing does not exist\.$"):
            ruleset.allow_path(str(tmp_path / "nothing"), Fs.READ)
        (tmp_path / "link").symlink_to("/etc")
        with pytest.raises(LandlockError, match="is a symbolic link"):
            ruleset.allow_path(str(tmp_path / "link"), Fs.READ, follow=False)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.ENOSYS, "has no Landlock: Linux 5.13"), (errno.EOPNOTSUPP, "lsm="), (errno.EPERM, "seccomp profile")],
)
def test_a_kernel_without_landlock_is_told_with_the_reason(code: int, sentence: str) -> None:
    def forbid() -> None:
        from marimohub.spawners import seccomp

        seccomp.install([(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | code), (0x06, 0, 0, 0x7FFF0000)])

    def look() -> list[Any]:
        from marimohub.spawners import sandbox

        return [landlock.abi(), landlock.why_not(), sandbox.unsupported()]

    version, why, unsupported = in_child(look, confine=forbid)
    assert version == 0
    assert why == unsupported
    assert sentence in why
    assert why.endswith(".") or why.endswith(").")


def test_here_nothing_is_unsupported() -> None:
    from marimohub.spawners import sandbox

    assert sandbox.unsupported() is None
    assert sys.platform == "linux"
