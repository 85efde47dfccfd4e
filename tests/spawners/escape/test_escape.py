"""What code in a notebook tries, and does not get, as a server of an ordinary user's hub and of root's.

The table in docs/security.md names what is tried and how it ends; the last test holds it in place.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.spawners.escape.probing import PROBES
from tests.spawners.escape.world import ATTACKER, OFFLINE, VICTIM, World, parent

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
# a closed network is somebody else's setting, and what a kernel inherits is seen in the kernel alone
OFFLINE_PROBES = ["reach_a_closed_network", "send_datagrams_from_a_closed_network"]
KERNEL_PROBES = ["inherited_descriptors", "reopen_inherited_files"]
PROGRAM_PROBES = [name for name in PROBES if name not in (*OFFLINE_PROBES, *KERNEL_PROBES)]
# what a machine's own settings may deny to all: then nothing shows here that the probe can succeed
HARDENED = {
    "call_by_other_numbers", "change_control_groups", "load_bpf_programs", "make_namespaces", "open_other_devices",
    "read_disk_device", "trust_another_personality", "type_into_a_terminal", "use_io_uring", "use_keys_of_others",
    "use_other_kinds_of_sockets", "use_performance_counters", "use_userfaultfd",
}  # fmt: skip
# what is not denied: docs/security.md says so, and what it means
OPEN: dict[str, set[str]] = {
    "ordinary": {"listen_without_binding"},
    "contained": {
        "listen_without_binding",
        "change_mode_of_hubs_file",
        "change_mode_of_shared_snapshot",
        "change_times_of_hubs_file",
        "open_shared_memory_of_others",
    },
    "root": {"listen_without_binding"},
}


@pytest.fixture(scope="module", params=list(OPEN))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("only root can run a hub as root")
    with World(request.param) as world:
        yield world


@pytest.fixture(scope="module")
def inside(world: World) -> dict[str, str]:
    found = world.try_inside(ATTACKER, PROGRAM_PROBES)
    found |= world.try_inside(OFFLINE, OFFLINE_PROBES)
    return found | world.try_in_kernel(ATTACKER, KERNEL_PROBES)


@pytest.fixture(scope="module")
def outside(world: World, inside: dict[str, str]) -> dict[str, str]:
    """After `inside`: what is not denied changes things."""
    by_hub = [name for name, (_, control) in PROBES.items() if control == "hub"]
    found = world.try_outside(by_hub, root=world.mode == "root")
    if os.geteuid() == 0:
        found |= world.try_outside([name for name in PROBES if name not in by_hub], root=True)
    return found


@pytest.mark.parametrize("name", PROBES)
def test_denied(name: str, world: World, inside: dict[str, str]) -> None:
    expected = "open: " if name in OPEN[world.mode] else "denied: "
    assert inside[name].startswith(expected), inside[name]


@pytest.mark.parametrize("name", PROBES)
def test_the_probe_succeeds_outside_of_the_sandbox(name: str, outside: dict[str, str]) -> None:
    if name not in outside:
        missing("root", "only root can show it")
    if name in HARDENED and outside[name].startswith("denied: "):
        missing("open machine", f"this machine denies it to everybody: {outside[name]}")
    assert outside[name].startswith("open: "), outside[name]


def test_token_of_a_server_is_in_its_launcher_alone(world: World) -> None:
    """Not in a command line, an environment or a log, nor in the memory of what is forked before and beside it."""
    token = world.tokens[ATTACKER].encode()
    own = world.opened[ATTACKER]
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                content = (process / name).read_bytes()
            except OSError:
                continue
            assert token not in content, f"{process / name}"
    for log in (world.hub.log_path, own.folder / "server.log"):
        assert token not in log.read_bytes()
    assert "TOKEN" not in own.page.run("import os\nprint(list(os.environ))")
    if os.geteuid() != 0:
        pytest.skip("only root can look into the memory of the launcher")
    assert holds(own.processes["launcher"], token), "the search finds nothing where the token is"
    spawn_server = parent(own.processes["guard"])
    for pid in (spawn_server, own.processes["guard"], own.processes["zygote"], own.processes["kernel"]):
        assert not holds(pid, token), Path(f"/proc/{pid}/comm").read_text()


def holds(pid: int, wanted: bytes) -> bool:
    """Whether a process has this in its memory."""
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            low, high = (int(end, 16) for end in span.split("-"))
            if not rights.startswith("rw"):
                continue
            try:
                memory.seek(low)
                if wanted in memory.read(high - low):
                    return True
            except (OSError, ValueError):  # of the kernel's own
                continue
    return False


def test_environment_of_the_hub_reaches_no_server(world: World) -> None:
    names = set(json.loads(world.opened[ATTACKER].page.run("import json, os\nprint(json.dumps(list(os.environ)))")))
    assert "MARIMOHUB_TEST_SECRET" not in names
    allowed = r"JUPYTERHUB_\w+|MARIMO(HUB)?_\w+|(MEM|CPU)_LIMIT|LC_\w+|_MARIMO\w*|PYTEST_\w+"
    usual = {
        "HOME",
        "PATH",
        "LANG",
        "TMPDIR",
        "USER",
        "LOGNAME",
        "SHELL",
        "VIRTUAL_ENV",
        "TZ",
        "LD_LIBRARY_PATH",
        "PWD",
    }
    assert {name for name in names - usual if not re.fullmatch(allowed, name)} == set()


def test_what_is_swept_is_the_own_temp_folder_alone(world: World) -> None:
    """The guard, which is not confined, empties it: links in it, and deep folders, lead it nowhere else."""
    attacker, victim = world.opened[ATTACKER], world.opened[VICTIM]
    kept = victim.write("home/kept.txt", "kept")
    temp = attacker.folder / "tmp"
    attacker.page.run(
        f"import os\nos.chdir({str(temp)!r})\n"
        f"os.symlink({str(kept.parent)!r}, 'home')\nos.symlink({str(world.hub.data)!r}, 'data')\n"
        f"os.symlink({str(kept)!r}, 'kept')\nos.makedirs('a/b/c')\nos.symlink({str(kept.parent)!r}, 'a/b/c/home')\n"
        "os.chmod('a/b', 0)\nopen('file', 'w').close()"
    )
    assert attacker.person.api("DELETE", f"/users/{ATTACKER}/server").status_code in (202, 204)
    deadline = time.monotonic() + 20
    while list(temp.iterdir()):
        assert time.monotonic() < deadline, list(temp.rglob("*"))
        time.sleep(0.1)
    assert kept.read_text() == "kept"
    assert world.database.exists()


def test_launcher_that_crashes_leaves_no_image_of_its_memory(world: World) -> None:
    """A notebook may end its own server, but not so that the token is in a file afterwards."""
    own = world.opened[OFFLINE]
    launcher, guard = own.processes["launcher"], own.processes["guard"]
    own.page.post(
        "api/kernel/run",
        {"cellIds": own.page.cells[:1], "codes": [f"import os, signal\nos.kill({launcher}, signal.SIGABRT)"]},
    )
    deadline = time.monotonic() + 20
    while Path(f"/proc/{guard}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cores = [path for path in own.folder.rglob("*core*") if path.is_file() and path.stat().st_size > 65536]
    assert cores == []


@pytest.mark.unit
def test_page_tells_what_is_tried_and_how_it_ends() -> None:
    rows = re.findall(r"^\|[^|]+\| `(\w+)` \|([^|]+)\|([^|]+)\|([^|]+)\|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(PROBES)
    for name, *cells in rows:
        assert ["open" in cell for cell in cells] == [name in OPEN[mode] for mode in OPEN], name
