"""The whole sandbox: what works inside, what does not, and what administrators are told."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import platform
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners import landlock, sandbox, view
from marimohub.spawners.job import Sandbox
from marimohub.spawners.sandbox import SandboxError, exposing, missing, ports, standard_paths
from tests.spawners import at_work
from tests.spawners.confining import NOBODY, World, denied, in_child, make_world, needs_abi, needs_landlock

pytestmark = [pytest.mark.unit, needs_landlock]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How servers run: as users of their own or as the hub's, with the view where the system allows it or without."""

    own_user: bool
    private: bool

    @property
    def options(self) -> dict[str, bool]:
        return dataclasses.asdict(self)


SETTINGS = {
    "own user": Setting(own_user=True, private=True),
    "own user without a view": Setting(own_user=True, private=False),
    "hub's user": Setting(own_user=False, private=True),
    "hub's user without a view": Setting(own_user=False, private=False),
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS.keys())
def setting(request: pytest.FixtureRequest) -> Setting:
    found: Setting = request.param
    if found.private and not sandbox.can_view():
        pytest.skip("this system does not let ordinary users make user namespaces")
    return found


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="mh-") as folder:  # Unix sockets need a short path
        yield make_world(Path(folder))


def _run_program(program: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@needs_abi(6)
def test_what_people_do_in_notebooks_works(world: World, setting: Setting) -> None:
    if setting.own_user and not setting.private:
        pytest.skip("each of the two is tried in another case")
    program = world.home / "at_work.py"
    shutil.copy(at_work.__file__, program)
    program.chmod(0o644)
    failed = in_child(_run_program, str(program), **world.confined(**setting.options))
    if setting.own_user or setting.private:
        assert failed == {}
    else:
        assert set(failed) == {"a terminal", "a pool by forkserver", "a manager", "a Unix socket"}


def _reach(world: World, secret: str, sockets: list[str], pid: int) -> dict[str, str]:
    stream = socket.AF_UNIX, socket.SOCK_STREAM
    return {
        "own file": denied(open, world.home / "file", "r+"),
        "own snapshot": denied(open, world.snapshot / "file"),
        "snapshot, writing": denied(open, world.snapshot / "file", "r+"),
        "snapshot, mode": denied(os.chmod, world.snapshot / "file", 0o600),
        "another's file": denied(open, world.other / "file"),
        "another's folder": denied(os.listdir, world.other),
        "another's file, attributes": denied(os.setxattr, world.other / "file", "user.x", b"x"),
        "another's file, mode": denied(os.chmod, world.other / "file", 0),
        "another's file, times": denied(os.utime, world.other / "file"),
        "another's file, owner": denied(os.chown, world.other / "file", -1, os.getgid()),
        "secret in /etc": denied(open, secret),
        "Unix socket": denied(lambda: socket.socket(*stream).connect(sockets[0])),
        "abstract socket": denied(lambda: socket.socket(*stream).connect(sockets[1])),
        "another's environment": denied(open, f"/proc/{pid}/environ"),
        "another's memory": denied(open, f"/proc/{pid}/mem"),
        "signal": denied(os.kill, pid, signal.SIGTERM),
        "write to /proc": denied(open, "/proc/self/oom_score_adj", "w"),
        "write to /sys": denied(open, "/sys/kernel/mm/ksm/run", "w"),
        "block device": denied(os.mknod, world.home / "disk", 0o060600, os.makedev(8, 0)),
    }


@pytest.fixture
def outside(world: World) -> Iterator[tuple[list[str], int]]:
    """Sockets and a process of the same user id that belong to nobody inside."""
    from tests.spawners.confining import become_ordinary

    path, abstract = str(world.other / "socket"), f"\0marimohub-test-{os.getpid()}"
    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, preexec_fn=become_ordinary)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for server, name in ((one, path), (two, abstract)):
            server.bind(name)
            server.listen()
        os.chmod(path, 0o777)
        yield [path, abstract], process.pid
    process.kill()
    process.wait()


@needs_abi(6)
def test_nothing_of_others_can_be_reached(world: World, setting: Setting, outside: tuple[list[str], int]) -> None:
    """All of it belongs to the same user id here, so file permissions help in no case."""
    found = in_child(_reach, world, "/etc/shadow-", *outside, **world.confined(**setting.options))
    reached = {name for name, error in found.items() if not error}
    expected = {"own file", "own snapshot"}
    if not setting.private:
        # what missing() tells, or what users of their own do not share
        expected |= {"snapshot, mode", "another's file, mode", "another's file, times"}
        if setting.own_user:
            expected |= {"another's file, owner", "Unix socket"}
            attributes = in_child(lambda: denied(os.setxattr, world.home / "file", "user.x", b"x"))
            expected |= set() if attributes else {"another's file, attributes"}  # not every file system has them
    assert reached == expected


def test_folders_above_may_be_closed_to_the_user_if_root_makes_the_view(world: World) -> None:
    """So a hub that root installed below /root works."""
    if os.geteuid() != 0 or not sandbox.can_view():
        pytest.skip("only root can make it, where it may make mounts")

    def look() -> list[str]:
        (world.home / "new").write_text("x")
        return [*sorted(os.listdir(world.home)), (world.snapshot / "file").read_text(), denied(open, world.other)]

    mode = stat.S_IMODE(world.home.parent.stat().st_mode)
    world.home.parent.chmod(0o700)
    try:
        assert in_child(lambda: denied(open, world.home / "file")) == "EACCES"
        found = in_child(look, **world.confined(own_user=True, private=True))
        assert found == ["file", "new", "of snapshot", "ENOENT"]
    finally:
        world.home.parent.chmod(mode)


def test_the_temp_folder_is_also_where_programs_look_for_it() -> None:
    if not sandbox.can_view():
        pytest.skip("there is no view here")
    if any(os.path.realpath(path).startswith("/tmp/") for path in sys.path):
        pytest.skip("Python's own modules lie in /tmp")
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/var/tmp") as folder:
        world = make_world(Path(folder))
        confined = world.confined(own_user=True, private=True)

        def look() -> list[str]:
            Path("/tmp/new").write_text("x")
            return [*sorted(os.listdir("/tmp")), denied(open, "/tmp/../etc/shadow")]

        found = in_child(look, **{**confined, "view": lambda: sandbox.enter_view(world.sandbox(), str(world.home))})
        assert found == ["file", "new", "EACCES"]
        assert (world.home / "new").read_text() == "x"
    # not where other paths need to be there
    assert view.plan([], ["/var/tmp"], [], "/var/tmp").temp == "/var/tmp"
    assert view.plan(["/tmp"], ["/var/tmp"], [], "/var/tmp").temp is None


def test_processes_of_others_do_not_show_where_root_makes_the_view(world: World) -> None:
    if not view.hides_processes(as_root=True):
        pytest.skip("only root can hide them, where it may mount /proc")

    def look() -> list[str]:
        child = os.fork()
        if child == 0:
            os.execlp("sleep", "sleep", "60")
        shown = {name for name in os.listdir("/proc") if name.isdigit()}
        os.kill(child, signal.SIGKILL)
        return sorted(shown - {str(os.getpid()), str(child)})

    assert in_child(look, **world.confined(own_user=True, private=True)) == []
    assert not any("processes run" in line for line in missing(world.sandbox(), own_user=True))


def test_privileges_core_dumps_and_the_tie_to_the_parent(world: World, setting: Setting) -> None:
    def look() -> dict[str, Any]:
        status = dict(
            line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
        )
        tie = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(tie), 0, 0, 0)
        return {
            "capabilities": {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16},
            "no_new_privs": status["NoNewPrivs"],
            "seccomp": status["Seccomp"],
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "uid": os.getuid(),
            "own environment": denied(open, "/proc/self/environ"),
            "dies with parent": tie.value == signal.SIGKILL,
            "folder": os.getcwd(),
            "root again": bool(denied(os.setuid, 0)),
        }

    confined = world.confined(**setting.options)

    def tied() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        confined["confine"]()

    assert in_child(look, **{**confined, "confine": tied}) == {
        "capabilities": True,
        "no_new_privs": "1",
        "seccomp": "2",
        "core": [1, 1],
        "uid": NOBODY if os.geteuid() == 0 else os.getuid(),
        "own environment": "",
        "dies with parent": True,
        "folder": str(world.home),
        "root again": True,
    }


def test_a_setuid_program_gives_nothing(world: World, setting: Setting) -> None:
    program = next((path for path in map(shutil.which, ("mount", "su", "passwd")) if path), None)
    if program is None or not os.stat(program).st_mode & 0o4000:
        pytest.skip("there is no setuid program here")

    def run() -> str:
        script = (
            f"import os; os.posix_spawn('{program}', ['x', '--help'], {{}}); print(open('/proc/self/status').read())"
        )
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout

    assert "CapEff:\t0000000000000000" in in_child(run, **world.confined(**setting.options))


@needs_abi(6)
def test_shared_memory_and_terminals_of_others(world: World, setting: Setting) -> None:
    name = Path("/dev/shm") / f"marimohub-test-{os.getpid()}"
    name.write_text("of the hub")
    name.chmod(0o666)

    def look() -> dict[str, str]:
        return {"memory": denied(open, name), "list": denied(os.listdir, "/dev/shm"), "ptys": denied(os.openpty)}

    try:
        found = in_child(look, **world.confined(**setting.options))
    finally:
        name.unlink()
    if setting.private:
        assert found == {"memory": "ENOENT", "list": "", "ptys": ""}
    else:
        assert found == {"memory": "", "list": "EACCES", "ptys": "" if setting.own_user else "EACCES"}


@needs_abi(4)
def test_a_closed_network_reaches_the_hub_and_nothing_else(world: World, setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub, socket.create_server(("127.0.0.1", 0)) as other:

        def look(mine: int, others: int) -> list[str]:
            return [
                denied(socket.create_connection, ("127.0.0.1", mine), 5),
                denied(socket.create_connection, ("127.0.0.1", others), 5),
                denied(socket.socket, socket.AF_INET, socket.SOCK_DGRAM),
                denied(socket.create_server, ("127.0.0.1", 0)),
            ]

        mine, others = hub.getsockname()[1], other.getsockname()[1]
        closed = world.confined(**setting.options, connect=((mine, mine),), datagrams=False)
        assert in_child(look, mine, others, **closed) == ["", "EACCES", "EPERM", "EACCES"]


@needs_abi(2)
def test_files_move_between_folders_of_ones_own(world: World, setting: Setting) -> None:
    def look() -> str:
        for name in ("one", "two"):
            (world.home / name).mkdir()
        (world.home / "one/file").write_text("x")
        return denied(os.rename, world.home / "one/file", world.home / "two/file")

    assert in_child(look, **world.confined(**setting.options, connect=((1, 9999),))) == ""


@pytest.mark.parametrize("version", range(1, 7))
def test_older_kernels_confine_what_they_can(
    world: World, setting: Setting, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version > landlock.abi():
        pytest.skip("this kernel is older")
    monkeypatch.setattr(landlock, "abi", lambda: version)

    def look() -> dict[str, str]:
        return {
            "own file": denied(open, world.home / "file", "r+"),
            "another's file": denied(open, world.other / "file"),
            "truncate": denied(os.truncate, world.other / "file", 0),
            "unix": denied(socket.socket, socket.AF_UNIX),
        }

    found = in_child(look, **world.confined(**setting.options))
    assert (found["own file"], found["another's file"] != "") == ("", True)
    assert (world.other / "file").read_text() or (setting.own_user and version < 3)
    # abstract sockets of the hub's user are open below ABI 6
    assert (found["unix"] == "") == (setting.own_user or (setting.private and version >= 6))


def test_root_is_not_confined_but_refused(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can try")
    with pytest.raises(SandboxError, match="does not run as root"):
        sandbox.confine(world.sandbox(), own_user=True)


def test_a_process_with_threads_is_refused(world: World) -> None:
    """Landlock and seccomp hold for one thread."""

    def confine_late() -> str:
        waiting = threading.Event()
        threading.Thread(target=waiting.wait, daemon=True).start()
        try:
            sandbox.confine(world.sandbox())
        except SandboxError as error:
            return str(error)
        return ""

    assert "several threads" in in_child(confine_late)


def test_a_failure_on_the_way_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a server that is confined in part."""

    def confine() -> str:
        try:
            sandbox.confine(world.sandbox(connect=((0, 70000),)))
        except SandboxError as error:
            return str(error)
        return ""

    if landlock.has_net(landlock.abi()):
        assert in_child(confine) == "0-70000 is no range of TCP ports."
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert "riscv64" in in_child(lambda: _refusal(world.sandbox(connect=None)))
    assert "riscv64" in (sandbox.unsupported() or "")


def _refusal(found: Sandbox) -> str:
    try:
        sandbox.confine(found)
    except SandboxError as error:
        return str(error)
    return ""


GAPS = {
    "signals": "signals to the hub",
    "abstract": "abstract Unix sockets",
    "ports": "every TCP port of this machine",
    "truncate": "make files empty",
    "everybody's sockets": "Unix sockets that are open to every user",
    "modes": "permissions and times",
    "memory": "share /dev/shm",
    "terminal": "no terminal",
    "no unix": "no Unix sockets",
    "udp": "UDP",
    "metadata": "169.254.169.254",
}


def gaps(**options: Any) -> set[str]:
    found = missing(Sandbox(connect=((81, 9999),), datagrams=options.pop("datagrams", False)), **options)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in found)
    return {name for name, words in GAPS.items() if any(words in sentence for sentence in found)}


@pytest.mark.parametrize(
    ("version", "own_user", "private", "expected"),
    [
        (1, True, True, {"abstract", "ports"}),
        (2, False, False, {"signals", "ports", "truncate", "modes", "memory", "terminal", "no unix"}),
        (3, False, True, {"signals", "ports"}),
        (4, True, False, {"abstract", "everybody's sockets"}),
        (5, False, True, {"signals"}),
        (6, True, True, set()),
        (6, True, False, {"everybody's sockets"}),
        (7, False, True, set()),
        (8, False, False, {"modes", "memory", "terminal", "no unix"}),
        (9, False, False, {"modes", "memory", "terminal"}),
        (9, True, False, set()),
    ],
)
def test_administrators_are_told_what_stays_open(
    version: int, own_user: bool, private: bool, expected: set[str]
) -> None:
    assert gaps(version=version, own_user=own_user, private=private) == expected
    assert gaps(version=version, own_user=own_user, private=private, datagrams=True) == expected | {"udp"}


def test_administrators_are_told_what_open_ports_mean() -> None:
    def told(connect: Any) -> str:
        return " ".join(missing(Sandbox(connect=connect), own_user=True, version=7, private=True))

    assert "169.254.169.254" in told(((1, 9999),)) and "169.254.169.254" not in told(((443, 443),))
    assert "every TCP port" in told(None) and "every TCP port" not in told(())


def _forbid(name: str, code: int) -> None:
    from marimohub.spawners.seccomp import ARCHES, CALLS, install

    number = CALLS[name][ARCHES[platform.machine()].column]
    install([(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | code), (0x06, 0, 0, 0x7FFF0000)])


@needs_abi(6)
@pytest.mark.parametrize("call", ["unshare", "open_tree", "move_mount", "pivot_root"])
def test_without_its_view_a_server_is_confined_more_strictly(world: World, call: str) -> None:
    """Wherever the system says no: nothing is left half done, and nothing opened that only the view makes safe."""
    if not sandbox.can_view():
        pytest.skip("there is no view here to be denied")
    confined = world.confined(own_user=False, private=False)

    def no_view() -> None:
        _forbid(call, errno.EPERM)
        assert sandbox.enter_view(world.sandbox()) is False
        assert os.listdir("/tmp") and os.getcwd() == "/"

    found = in_child(_reach, world, "/etc/shadow-", ["/", "\0x"], os.getpid(), **confined, view=no_view)
    assert {name for name, error in found.items() if not error} == {
        "own file",
        "own snapshot",
        "snapshot, mode",
        "another's file, mode",
        "another's file, times",
    }
    assert found["Unix socket"] == "EPERM"


def test_a_view_that_is_half_done_is_an_error(world: World) -> None:
    if not sandbox.can_view():
        pytest.skip("there is no view here")

    def try_it() -> None:
        _forbid("umount2", errno.EPERM)
        with pytest.raises(SandboxError, match="could not be completed"):
            sandbox.enter_view(world.sandbox())

    assert in_child(os.getpid, view=try_it)


def test_ports_are_read_as_administrators_write_them() -> None:
    assert ports("443") == ((443, 443),)
    assert ports(" 1-9999, 30000 - 30010 ,") == ((1, 9999), (30000, 30010))
    assert ports("") == ()
    for wrong in ("0", "x", "10-9", "1-70000", "-5", "5-", "1-2-3", "²"):
        with pytest.raises(ValueError, match=r"is no range of ports\. Write it like"):
            ports(wrong)


def test_every_interpreter_brings_its_own_paths(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    found = standard_paths(tmp_path / "env/bin/python", [tmp_path], ["/dev/null", tmp_path / "nothing", "/dev/shm"])
    assert {str(tmp_path / "env"), str(tmp_path), "/usr", "/proc", "/sys"} <= set(found.read)
    assert found.write == ("/dev/shm",)
    assert "/dev/null" in found.devices
    own = standard_paths(sys.executable)
    assert sys.prefix in own.read
    assert not {"/", "/etc", "/home", "/root", "/var", "/run", os.getcwd()} & set(own.read)
    with pytest.raises(ValueError, match="not an absolute path"):
        standard_paths(sys.executable, ["relative"])
    with pytest.raises(sandbox.NoInterpreter, match="cannot be asked"):
        standard_paths("/bin/false")


def test_a_secret_among_what_servers_read_is_found(tmp_path: Path) -> None:
    data = tmp_path / "env" / "data"
    data.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "env")
    assert exposing(["/usr", str(tmp_path / "env")], data / "hub.sqlite") == str(tmp_path / "env")
    assert exposing([str(tmp_path / "link")], data) == str(tmp_path / "link")
    assert exposing(["/usr", str(data / "users/ann/home"), str(tmp_path / "en")], data) is None


def test_a_view_follows_links_and_puts_outer_folders_first(tmp_path: Path) -> None:
    (tmp_path / "real/inner/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    made = view.plan([str(tmp_path / "link"), str(tmp_path / "real"), "/etc/hosts"], [str(tmp_path / "link/deep")], [])
    assert made.links == {str(tmp_path / "link"): "real/inner"}
    assert made.read == ["/etc", str(tmp_path / "real")]
    assert made.write == [str(tmp_path / "real/inner/deep")]
    assert view.plan([str(tmp_path / "nothing")], [], []) == view.Plan()
