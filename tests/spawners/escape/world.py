"""A real hub with a victim, an attacker and somebody without a network, each with a notebook open."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marimohub.spawners.marimo import folder_name
from tests.hub import Hub, Person
from tests.spawners.escape import (
    helper,
    no_namespaces,
    probes_files,
    probes_network,
    probes_processes,
    probes_system,
    probing,
    works,
)
from tests.spawners.escape.notebook import NotebookPage

VICTIM, ATTACKER, OFFLINE = "vera", "mallory", "carol"
CONFIG = """
import json, os
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.log_level = "INFO"
c.MarimoHub.default_role = "editor"
c.LocalMarimoSpawner.extra_read = [{programs!r}]
c.LocalMarimoSpawner.uid_range = ({uid}, {uid} + 99)
def before(spawner):
    with open(os.open({tokens!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(json.dumps([spawner.user.name, spawner.api_token]) + "\\n")
    if spawner.user.name == {offline!r}:
        spawner.outbound_ports = ""
c.Spawner.pre_spawn_hook = before
"""
SENT = (probing, probes_files, probes_network, probes_processes, probes_system, works)
SACRIFICES = ("delete", "truncate", "rename", "overwrite", "exchange")


class UserHub(Hub):
    """A hub that runs as a user id, None: as whoever runs the tests. `contained`: it cannot make user namespaces."""

    def __init__(self, folder: Path, config: str, uid: int | None, contained: bool, **environment: str) -> None:
        super().__init__(folder, config, **environment)
        self.uid, self.contained = uid, contained

    def command(self, *arguments: str) -> list[str]:
        inside = [sys.executable, str(Path(no_namespaces.__file__))] if self.contained else []
        return [*as_user(self.uid), *inside, *super().command(*arguments)]


def as_user(uid: int | None) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"] if uid is not None else []


@dataclass
class Open:
    """Somebody's open notebook, and the processes of their server."""

    person: Person
    page: NotebookPage
    folder: Path
    port: int
    processes: dict[str, int] = field(default_factory=dict)

    def write(self, place: str, text: str) -> Path:
        """A file of this person's own, made from within."""
        path = self.folder / place
        self.page.run(f"open({str(path)!r}, 'w').write({text!r}); print('done')")
        return path


class World:
    """`with World(mode)`.

    "root": the hub runs as root. "ordinary": as a user like any other. "contained": as such a user, and nobody can make
    user namespaces, so that servers have no view of the file system of their own.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        # one that nothing else has, as in many containers
        own = 3_000_000 + secrets.randbelow(1_000_000)
        self.uid = own if mode != "root" and os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="marimohub-escape-"))
        self.tokens_path = self.folder / "tokens.jsonl"
        self.left_behind = self.folder.with_suffix(".txt")
        self.programs = self.folder / "programs"
        self.sockets = self.folder / "sockets"
        for made in (self.programs, self.sockets):
            made.mkdir()
        self._make_setuid_program()
        # other tests run hubs of root at the same time
        uid = 200_000 + 100 * secrets.randbelow(10_000)
        config = CONFIG.format(uid=uid, programs=str(self.programs), tokens=str(self.tokens_path), offline=OFFLINE)
        self.hub = UserHub(
            self.folder, config, self.uid, mode == "contained", HOME=str(self.folder), MARIMOHUB_TEST_SECRET="hidden"
        )
        self.folder.chmod(0o711)
        if self.uid is not None:
            for path in (self.folder, self.sockets, self.hub.config_path):
                os.chown(path, self.uid, self.uid)
        self.opened: dict[str, Open] = {}
        self._helper: subprocess.Popen[str] | None = None

    def __enter__(self) -> World:
        try:
            self.hub.start()
            for name in (VICTIM, ATTACKER, OFFLINE):
                self.opened[name] = self._open(name)
            self.targets = self._targets()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for one in self.opened.values():
            one.page.close()
        if self._helper is not None:
            assert self._helper.stdin is not None
            self._helper.stdin.close()
            self._helper.wait(10)
        self.hub.stop()
        shutil.rmtree(self.folder)
        self.left_behind.unlink(missing_ok=True)

    def _make_setuid_program(self) -> None:
        """`id` of another user: root where root runs the tests."""
        program = self.programs / "id"
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        self.programs.chmod(0o755)

    def _open(self, name: str) -> Open:
        person = Person(self.hub, name)
        assert person.sign_in().ok
        assert person.api("POST", "/notebooks", {"name": name}).status_code == 201
        answer = person.api("POST", f"/notebooks/{name}/lock", {})
        assert answer.ok, f"{answer.text}\n{self.hub.log[-3000:]}"
        page = NotebookPage(person.session, f"{self.hub.url}/user/{name}/", name)
        page.load()
        page.connect()
        folder = self.hub.data / "users" / folder_name(name)
        state = self._state(name)
        processes = {"guard": state["pid"], "launcher": state["launcher"]}
        for parent, role in (("launcher", "zygote"), ("zygote", "kernel")):
            processes[role] = children(processes[parent])[0]
        return Open(person, page, folder, state["port"], processes)

    def _state(self, name: str) -> dict[str, Any]:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            query = "SELECT s.state FROM spawners s JOIN users u ON s.user_id = u.id WHERE u.name = ?"
            (text,) = database.execute(query, (name,)).fetchone()
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def database(self) -> Path:
        return next(self.hub.data.glob("*.sqlite"))

    @property
    def tokens(self) -> dict[str, str]:
        """The secret token of each person's server."""
        return dict(json.loads(line) for line in self.tokens_path.read_text().splitlines())

    def _targets(self) -> dict[str, Any]:
        """All that an attacker could ever learn."""
        victim, attacker = self.opened[VICTIM], self.opened[ATTACKER]
        data = self.hub.data
        assert self.hub.process is not None
        hub = self.hub.process.pid
        envoy_state = next(data.rglob("envoy.json"))
        made = self._start_helper(attacker.write("home/signals.txt", "0"))
        foreign = {"hub": hub, "helper": made["helper"], "proxy": json.loads(envoy_state.read_text())["pid"]}
        foreign |= {f"victim's {role}": pid for role, pid in victim.processes.items()}
        foreign |= {"own guard": attacker.processes["guard"], "spawn server": parent(attacker.processes["guard"])}
        secret = victim.write("home/secret.txt", "private")
        notebook = victim.folder / "notebooks" / f"{VICTIM}.py"
        sacrifices = {name: str(victim.write(f"home/{name}.txt", name)) for name in SACRIFICES}
        # careless with their own files: that must not open a way to them
        opened = (str(secret.parent), str(secret), str(notebook.parent), str(notebook), *sacrifices.values())
        victim.page.run(f"import os\nfor path in {opened!r}: os.chmod(path, 0o777)")
        shared = self._as_hub(data / "snapshots" / "probe.duckdb", 0o644)
        return made | {
            "data_dir": str(data),
            "hub_folders": [str(data), str(data / "users"), str(self.folder)],
            "folders": {str(path): path.stat().st_ino for path in (data, secret.parent)},
            "warehouse": str(data / "sample_warehouse.duckdb"),
            "hub_database": str(self.database),
            "cookie_secret": str(data / "cookie_secret"),
            "masking_key": str(data / "masking_key"),
            "configuration": str(self.hub.config_path),
            "server_logs": [str(victim.folder / "server.log"), str(attacker.folder / "server.log")],
            "file_in_temp": str(self._as_hub(self.left_behind, 0o644)),
            "snapshot_cache": str(data / "snapshots"),
            "victim_home": str(secret.parent),
            "victim_home_file": str(secret),
            "victim_notebook": str(notebook),
            "victim_snapshot": str(victim.folder / "snapshot" / "warehouse.duckdb"),
            "sacrifices": sacrifices,
            "own_folder": str(attacker.folder),
            "own_name": ATTACKER,
            "hub_port": self.hub.hub_port,
            "own_home": str(attacker.folder / "home"),
            "own_snapshot": str(attacker.folder / "snapshot" / "warehouse.duckdb"),
            "own_files": [str(attacker.folder)],
            "own_launcher": attacker.processes["launcher"],
            "own_port": attacker.port,
            "victim_port": victim.port,
            "free_server_port": free_port_of((20000, 29999)),
            "hub_file": str(self._as_hub(data / "users" / "hub-file", 0o644)),
            "shared_file": str(shared),
            "envoy_admin": self._envoy_admin(envoy_state.parent),
            "foreign_pids": foreign,
            "signal_counter": str(attacker.folder / "home" / "signals.txt"),
            "setuid_program": str(self.programs / "id"),
            "setuid_owner": os.geteuid(),
            "disks": [path.name for path in Path("/dev").iterdir() if path.is_block_device()],
            "devices": [path for path in ("/dev/fuse", "/dev/net/tun", "/dev/kvm", "/dev/userfaultfd") if device(path)],
            "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob("**/") if len(path.parts) < 6],
            "system_folders": ["/usr/local/bin", *sys.path[1:], str(Path(sys.prefix) / "bin")],
        }

    def _as_hub(self, path: Path, mode: int) -> Path:
        path.write_text("of the hub")
        path.chmod(mode)
        if self.uid is not None:
            os.chown(path, self.uid, self.uid)
        return path

    def _envoy_admin(self, folder: Path) -> str:
        return next(str(path) for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode))

    def _start_helper(self, counter: Path) -> dict[str, Any]:
        self._helper = self._run_as_hub([str(Path(helper.__file__)), str(self.sockets), str(counter)])
        assert self._helper.stdout is not None
        found: dict[str, Any] = json.loads(self._helper.stdout.readline())
        return found

    def _run_as_hub(self, arguments: list[str], uid: int | None = -1, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*as_user(self.uid if uid == -1 else uid), sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            **options,
        )

    # trying

    def try_inside(self, name: str, names: list[str], kind: str = "probes") -> dict[str, str]:
        """The verdicts of probes ("probes") or features ("works") in a program which somebody's notebook starts."""
        one = self.opened[name]
        script = one.folder / "tmp" / "probes.py"
        script_text = f"{bundle()}if __name__ == '__main__':\n    probing.main()\n"
        asked = json.dumps({"names": names, "targets": self.targets, "kind": kind})
        code = (
            f"import subprocess, sys\n"
            f"open({str(script)!r}, 'w').write({script_text!r})\n"
            f"done = subprocess.run([sys.executable, '-I', {str(script)!r}], input={asked!r}, text=True, "
            f"stdout=subprocess.PIPE, cwd={str(one.folder / 'home')!r})\nprint(done.stdout)"
        )
        found: dict[str, str] = json.loads(one.page.run(code))
        return found

    def try_in_kernel(self, name: str, names: list[str]) -> dict[str, str]:
        """The same in the kernel itself."""
        code = f"targets = {self.targets!r}\nfound = {{name: probing.verdict(probing.PROBES[name][0], targets) "
        code += f"for name in {names!r}}}\nimport json\nprint(json.dumps(found))"
        found: dict[str, str] = json.loads(self.opened[name].page.run(bundle() + code))
        return found

    def try_outside(self, names: list[str], *, root: bool) -> dict[str, str]:
        """The same outside of every sandbox: as the hub's own user, or as root, which a hub may run as."""
        source = f"{bundle()}probing.main()"
        # what a careless launcher would have passed on
        with socket.socket() as listener, open(self.database) as careless:
            listener.listen()
            passed = (listener.fileno(), careless.fileno())
            process = self._run_as_hub(["-c", source], None if root else self.uid, pass_fds=passed)
            output, _ = process.communicate(json.dumps({"names": names, "targets": self.targets}))
        found: dict[str, str] = json.loads(output)
        return found


def bundle() -> str:
    """The probes as one text that defines their modules, for a process that cannot read this folder."""
    sources = {module.__name__: Path(str(module.__file__)).read_text() for module in SENT}
    return f"""import sys, types
def _define(sources):
    for name, source in sources.items():
        for count in range(1, len(name.split("."))):
            sys.modules.setdefault(".".join(name.split(".")[:count]), types.ModuleType("package"))
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(source, name, "exec"), module.__dict__)
_define({sources!r})
probing = sys.modules[{probing.__name__!r}]
"""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Waits until there is one."""
    deadline = time.monotonic() + 10
    while True:
        found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_child(path, pid)]
        if found:
            return sorted(found)
        assert time.monotonic() < deadline, f"process {pid} has no children"
        time.sleep(0.05)


def _is_child(process: Path, pid: int) -> bool:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1]) == pid
    except OSError:
        return False


def free_port_of(ports: tuple[int, int]) -> int:
    for port in range(ports[1], ports[0], -1):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def device(path: str) -> bool:
    """Whether it is there for everybody."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode) & 0o006 == 0o006
    except OSError:
        return False
