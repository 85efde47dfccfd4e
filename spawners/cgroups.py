"""Control groups (cgroup v2): the kernel's own limits for a server with everything it starts.

The hub may make groups where it was given a part of the tree: by systemd's `Delegate=yes`, as the owner of its group's
folder, or as root. A group may hold processes or give its controllers to groups below it, never both (the root of all
excepted), so the hub first moves itself and its helpers into a leaf named `hub` beside the servers' groups.

On machines that still use v1 groups the v2 tree exists with some controllers or none. Then only what is there is
used: `controllers` says it, and limits.py takes other means for the rest. Even without any controller a group is worth
having: it names all processes of a server, and kills them in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from marimohub.spawners.job import Limits
from marimohub.spawners.usage import Usage

log = logging.getLogger("marimohub.spawners")

CONTROLLERS = ("memory", "pids", "cpu")
PERIOD = 100_000  # microseconds, the kernel's own default for cpu.max
_HUB_LEAF = "hub"
_DELEGATED = (
    "user.delegate",
    "trusted.delegate",
)  # set by systemd on what it gave away, see systemd.resource-control(5)
_KILL_PATIENCE = 2.0  # seconds until a killed group must be empty


class CgroupError(Exception):
    """A group cannot be made, filled, or removed. The text says which and why."""


class NoCgroups(Exception):
    """This hub cannot make groups. The text says why, and what to do."""


@dataclass(frozen=True)
class Mount:
    """Where the v2 tree is mounted: `root` is the part of the tree that is seen at `point`."""

    point: Path
    root: str


def find_mount(mountinfo: str) -> Mount | None:
    """The cgroup2 mount of /proc/self/mountinfo. Source: proc(5); octal escapes stand for blanks in paths."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if right.split(" ")[0] == "cgroup2" and len(fields) > 4:
            root, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), part) for part in fields[3:5])
            return Mount(Path(point), root)
    return None


def own_path(cgroup: str) -> str | None:
    """The v2 path in /proc/self/cgroup: the line of hierarchy 0."""
    for line in cgroup.splitlines():
        if line.startswith("0::/"):
            return line[3:]
    return None


def own_folder(mount: Mount, path: str) -> Path | None:
    """The folder of the group `path`; None if it lies outside of what is mounted."""
    relative = os.path.relpath(path, mount.root)
    return None if relative.startswith("..") else mount.point / relative


class Cgroups:
    """The folder in which each server gets a group, and the controllers that work there."""

    def __init__(self, base: Path, controllers: Iterable[str]) -> None:
        self.base = base
        self.controllers = frozenset(controllers)

    @classmethod
    def find(cls, tag: str = "servers") -> Cgroups | None:
        """What `prepare` makes, or None, with the reason in the log."""
        try:
            return cls.prepare(tag)
        except NoCgroups as error:
            log.info("No control groups: %s", error)
            return None

    @classmethod
    def prepare(cls, tag: str = "servers") -> Cgroups:
        """Make the folder for the servers' groups, with all controllers that can be had.

        Args:
            tag: names the folder; another for each hub of a machine.
        Raises:
            NoCgroups
        """
        mount = find_mount(Path("/proc/self/mountinfo").read_text())
        path = own_path(Path("/proc/self/cgroup").read_text())
        if mount is None or path is None:
            raise NoCgroups("The cgroup v2 tree is not mounted.")
        own = own_folder(mount, path)
        if own is None or not own.is_dir():
            raise NoCgroups(f"The hub's own group {path} is outside of {mount.point}.")
        place = _place(mount, own)
        try:
            return cls._make(place, place / f"marimohub-{_name(tag)}")
        except OSError as error:
            raise NoCgroups(f"{error.filename or place} cannot be changed: {error.strerror}.") from error

    @classmethod
    def _make(cls, place: Path, base: Path) -> Cgroups:
        base.mkdir(mode=0o755, exist_ok=True)
        if not _is_top(place):
            _move_processes(place, place / _HUB_LEAF)
        for folder in (place, base):
            available = _words(folder / "cgroup.controllers")
            for controller in CONTROLLERS:
                if controller in available:
                    # one at a time: a controller that cannot be had must not take the others with it
                    with contextlib.suppress(OSError):
                        (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        return cls(base, _words(base / "cgroup.subtree_control") & set(CONTROLLERS))

    def path_of(self, name: str) -> Path:
        """The folder of a server's group, whatever its name holds."""
        return self.base / _name(name)

    def create(self, name: str, limits: Limits) -> Path:
        """Make an empty group with its limits; what an earlier one of that name holds is killed. Raises CgroupError."""
        path = self.path_of(name)
        if path.is_dir():
            self.destroy(path)
        try:
            path.mkdir(mode=0o755)
            self._limit(path, limits)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.rmdir()
            raise CgroupError(f"The control group {path} cannot be made: {error.strerror}.") from error
        return path

    def _limit(self, path: Path, limits: Limits) -> None:
        if limits.memory is not None and "memory" in self.controllers:
            (path / "memory.max").write_text(str(limits.memory))
            if (path / "memory.swap.max").exists():
                (path / "memory.swap.max").write_text("0")  # else the limit would be that plus all swap space
            (path / "memory.oom.group").write_text("0")  # the notebook dies, not the server with it
        if limits.processes is not None and "pids" in self.controllers:
            (path / "pids.max").write_text(str(most_tasks(limits.processes)))
        if limits.cpu is not None and "cpu" in self.controllers:
            (path / "cpu.max").write_text(f"{int(limits.cpu * PERIOD)} {PERIOD}")

    def add(self, path: Path, pid: int) -> None:
        """Put a process into a group; what it starts from then on is in it, too. Raises CgroupError."""
        try:
            (path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise CgroupError(f"Process {pid} cannot be put into {path}: {error.strerror}.") from error

    def kill(self, path: Path) -> None:
        """Kill every process of a group and wait until they are gone. Raises CgroupError."""
        self._check(path)
        kill(path)

    def destroy(self, path: Path) -> None:
        """Kill what is in a group and remove it. One that is gone already is no error. Raises CgroupError."""
        self._check(path)
        if not path.is_dir():
            return
        kill(path)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise CgroupError(f"The control group {path} cannot be removed: {error.strerror}.") from error

    @staticmethod
    def remove(path: Path) -> None:
        """`destroy` for a server's guard, which knows the group only: what goes wrong is logged."""
        try:
            Cgroups(path.parent, ()).destroy(path)
        except CgroupError as error:
            log.warning("%s", error)

    def sweep(self, keep: Iterable[Path] = ()) -> list[Path]:
        """Remove the groups of servers that nobody knows any more, with their processes; returns what was removed."""
        kept, removed = set(keep), []
        for path in self.base.iterdir():
            if path.is_dir() and path not in kept:
                try:
                    self.destroy(path)
                    removed.append(path)
                except CgroupError as error:
                    log.warning("%s", error)
        return removed

    def close(self) -> None:
        """Remove the folder of the groups, if no server runs any more."""
        with contextlib.suppress(OSError):
            self.base.rmdir()

    def usage(self, path: Path) -> Usage:
        """What a group uses now. Processor time includes ended processes. Raises CgroupError."""
        try:
            cpu = numbers(path / "cpu.stat").get("usage_usec", 0) / 1e6
            memory = 0
            if (path / "memory.stat").exists():
                found = numbers(path / "memory.stat")
                # as usage.py counts; what files have in the page cache goes when somebody needs the memory
                memory = found.get("anon", 0) + found.get("shmem", 0)
            return Usage(cpu, memory, count(path))
        except OSError as error:
            raise CgroupError(f"The control group {path} cannot be read: {error.strerror}.") from error

    def oom_kills(self, path: Path) -> int:
        """How many processes of a group the kernel killed for memory. 0 without the memory controller."""
        return events(path, "memory.events").get("oom_kill", 0)

    def _check(self, path: Path) -> None:
        if path.parent != self.base:
            raise CgroupError(f"{path} is no group of this hub.")


def most_tasks(limit: int) -> int:
    """Where the kernel stops a server whose limit of processes and threads is `limit`.

    A bit above: at the limit itself the watch ends the notebooks and says so. A fork bomb that the kernel alone keeps
    at the limit would go on for ever, and be seen a little below it most of the time.
    """
    return limit + limit // 8 + 16


def kill(path: Path) -> None:
    """Kill every process of a group and wait until they are gone. Raises CgroupError."""
    end = time.monotonic() + _KILL_PATIENCE
    try:
        while True:
            try:
                (path / "cgroup.kill").write_text("1")
            except FileNotFoundError:  # Linux before 5.14; or the group is gone
                for pid in pids(path):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if not events(path, "cgroup.events").get("populated", 0):
                return
            if time.monotonic() > end:
                raise CgroupError(f"Processes {pids(path)} of {path} do not end, though they were killed.")
            time.sleep(0.005)
    except OSError as error:
        if path.is_dir():
            raise CgroupError(f"The processes of {path} cannot be killed: {error.strerror}.") from error


def active(path: str | Path | None) -> frozenset[str]:
    """Which controllers limit a server's group. Empty for None and for what is no group."""
    return frozenset() if path is None else frozenset(_words(Path(path) / "cgroup.controllers") & set(CONTROLLERS))


def pids(path: Path) -> list[int]:
    """The processes of a group."""
    try:
        return [int(word) for word in (path / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def count(path: Path) -> int:
    """Processes and threads of a group. Raises OSError."""
    current = path / "pids.current"
    return int(current.read_text()) if current.exists() else len((path / "cgroup.threads").read_text().split())


def events(path: Path, name: str) -> dict[str, int]:
    """The counters of memory.events, pids.events or cgroup.events; {} without that controller."""
    try:
        return numbers(path / name)
    except OSError:
        return {}


def numbers(path: Path) -> dict[str, int]:
    """A file with lines of a name and a number. Raises OSError."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _place(mount: Mount, own: Path) -> Path:
    """The group below which this hub may make others. Raises NoCgroups."""
    if own.name == _HUB_LEAF and own != mount.point:
        own = own.parent  # where a hub before this one moved what runs here
    for folder in (own, own.parent):
        if folder.is_relative_to(mount.point) and _delegated(folder):
            return folder
    if own == mount.point:  # a container's own tree, or a machine without systemd
        return own
    if os.geteuid() == 0:
        # As programs that keep groups beside systemd's do: directly below the root, where nothing of systemd's is
        # touched. But then limits that were set for the hub would not hold for its servers.
        if mount.root != "/" or not _is_top(mount.point):
            raise NoCgroups(f"{own} was not given to the hub. Set Delegate=yes in its systemd unit.")
        limited = next((name for folder in (own, *own.parents) for name in _limits_of(folder, mount)), None)
        if limited is not None:
            raise NoCgroups(f"{limited} limits the hub, and would not limit its servers. Set Delegate=yes in its unit.")
        return mount.point
    if all(os.access(own / name, os.W_OK) for name in (".", "cgroup.procs", "cgroup.subtree_control")):
        return own
    raise NoCgroups(f"{own} does not belong to the hub. Set Delegate=yes in its systemd unit.")


def _delegated(folder: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return os.access(folder / "cgroup.procs", os.W_OK)
    return False


def _is_top(folder: Path) -> bool:
    """Whether this is the root of the whole tree, which has no type and may hold processes beside groups."""
    return not (folder / "cgroup.type").exists()


def _limits_of(folder: Path, mount: Mount) -> list[Path]:
    # not pids.max: systemd sets one for every session and service by itself, so it is nobody's decision
    files = [folder / "memory.max", folder / "cpu.max"] if folder.is_relative_to(mount.point) else []
    return [path for path in files if path.is_file() and not path.read_text().startswith("max")]


def _move_processes(place: Path, leaf: Path) -> None:
    """Move the hub and its helpers out of a group that is to give its controllers to others. Raises OSError."""
    for _ in range(20):  # what is started meanwhile is moved in the next round
        found = pids(place)
        if not found:
            return
        leaf.mkdir(mode=0o755, exist_ok=True)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(str(pid))


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _name(text: str) -> str:
    """A file name that is readable, and never the same for two texts or one of the kernel's own."""
    if re.fullmatch("[a-z0-9_]{1,40}", text):
        return text
    readable = re.sub(r"[^a-z0-9_]+", "_", text.lower())[:40].strip("_")
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
