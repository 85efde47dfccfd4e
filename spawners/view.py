"""A view of the file system that holds only what a server may reach: nothing else has a path there.

Landlock decides about files that have a path, and does not ask about all that can be done with one: changing the mode
and times of a file of the same user, or connecting to a Unix socket (such as that of the user's service manager, which
starts any program outside). In this view there is no such path. The server also gets a /dev/pts and a /dev/shm of its
own. Root makes it before it becomes the person's user, who then need not be able to pass the folders above, and gives
it a /proc that shows nothing of other people's processes. An ordinary user needs a user namespace for it, which some
systems do not allow: then there is no view.

The mounts are made as by bubblewrap, with the newer system calls: trees are opened before anything is covered.
Source: user_namespaces(7), mount_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

PROBE_TIMEOUT = 20.0  # seconds
SHARED_MEMORY_BYTES = 1 << 30

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x4000, 0x80000
_MNT_DETACH = 2
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_RECURSIVE, _AT_EMPTY_PATH = 1, 0o2000000, 0x8000, 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD = -100
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_NOBODY = 65534

_STAGE = "/tmp"  # noqa: S108 - any folder that is there: the new root is put on it until it is the root
_PROC, _HIDDEN = "/proc", "processes are hidden"
_WHOLE = ("/etc",)
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class ViewError(Exception):
    """The view was made in part, and the process must not go on. The text is a sentence."""


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


@dataclass
class Plan:
    """What to put where: symbolic links, and trees by their real path, outer ones first; `temp` also at /tmp."""

    links: dict[str, str] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    temp: str | None = None


def plan(read: Iterable[str], write: Iterable[str], devices: Iterable[str], temp: str | None = None) -> Plan:
    """Work out a view. Paths that do not exist are left out; what lies in a tree that is there is not repeated."""
    made = Plan()
    for path in write:
        _add(made.write, _resolve(path, made.links))
    for path in read:
        real = _resolve(path, made.links)
        # one mount in place of dozens: which files in there may be read is Landlock's to say
        real = next((tree for tree in _WHOLE if _inside(real, [tree])), real)
        if not _inside(real, made.write):
            _add(made.read, real)
    for path in devices:
        real = _resolve(path, made.links)
        if real is not None and stat.S_ISCHR(os.stat(real).st_mode):
            made.devices.append(real)
    # a folder that can be written may lie in one that can only be read, but a tree in itself need not be there twice
    for trees in (made.read, made.write):
        trees[:] = [path for path in sorted(trees) if not _inside(os.path.dirname(path), trees)]
    used = any(_inside(path, ["/tmp"]) for path in (*made.read, *made.write, *made.links))  # noqa: S108
    made.temp = None if used else _resolve(temp, {}) if temp else None
    return made


def _add(trees: list[str], real: str | None) -> None:
    if real is not None and real not in trees:
        trees.append(real)


def _inside(path: str | None, trees: Iterable[str]) -> bool:
    return path is not None and any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)


def _resolve(path: str, links: dict[str, str]) -> str | None:
    """Follow a path link by link, and write the links down; None if it leads nowhere."""
    if not os.path.exists(path):
        return None
    rest, current = [part for part in path.split("/") if part][::-1], ""
    while rest:
        part = rest.pop()
        if part == "..":
            current = os.path.dirname(current).rstrip("/")
            continue
        step = f"{current}/{part}"
        if part == "." or not os.path.islink(step):
            current = current if part == "." else step
            continue
        target = os.readlink(step)
        links[step] = target
        rest += [one for one in target.split("/") if one][::-1]
        if target.startswith("/"):
            current = ""
    return current or "/"


def possible(as_root: bool) -> bool:
    """Whether root, or an ordinary user, can have a view here: tried once, in a process that is started for it."""
    return _probe(as_root) is not None


def hides_processes(as_root: bool) -> bool:
    """Whether a view's /proc leaves out processes of others."""
    return _probe(as_root) == _HIDDEN


@functools.cache
def _probe(as_root: bool) -> str | None:
    """What such a process says of its view; None if it has none."""
    root = os.geteuid() == 0
    if as_root and not root:
        return None
    other = _NOBODY if root and not as_root else None
    try:
        done = subprocess.run(
            [os.path.realpath(sys.executable), "-I", "-S", __file__],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT,
            user=other,
            group=other,
            extra_groups=None if other is None else (),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def enter(made: Plan) -> bool:
    """Give this process, which must have one thread, the view. Its working directory is "/" then.

    Returns:
        False: the system does not let it have one; nothing has changed but for a namespace without effect.
    Raises:
        ViewError: it is half done.
    """
    os.chdir("/")
    if not _new_namespaces():
        return False
    mask = os.umask(0o022)
    try:
        _build(made)
    except OSError:
        os.chdir("/")
        _libc.umount2(_STAGE.encode(), _MNT_DETACH)
        return False
    finally:
        os.umask(mask)
    try:
        _check(_libc.umount2(b".", _MNT_DETACH))
        os.chdir("/")
    except OSError as error:
        raise ViewError(f"The server's view of the file system could not be completed: {error.strerror}.") from error
    return True


def _new_namespaces() -> bool:
    """Raises ViewError if the user has no id in the new namespace."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        return bool(_libc.unshare(_CLONE_NEWNS) == 0)
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise ViewError(f"The user has no id in a user namespace of its own: {error.strerror}.") from error
    return True


def _build(made: Plan) -> None:
    """Everything up to the change of the root. Raises OSError."""
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None))
    trees = [(path, _open_tree(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)) for path in made.read]
    trees += [(path, _open_tree(path, _ATTR_NOSUID | _ATTR_NODEV)) for path in made.write]
    if made.temp is not None:
        trees.append(("/tmp", _open_tree(made.temp, _ATTR_NOSUID | _ATTR_NODEV)))  # noqa: S108
    trees += [(path, _open_tree(path, _ATTR_NOSUID)) for path in made.devices if not path.startswith("/dev/pt")]
    _mount("tmpfs", _STAGE, _MS_NOSUID | _MS_NODEV, "mode=0755,size=4m")
    for path, fd in sorted(trees):
        _put(path, fd)
    if _PROC in made.read and os.geteuid() == 0:
        # over the system's own; an ordinary user may not, nor root in some containers
        with contextlib.suppress(OSError):
            _mount("proc", _STAGE + _PROC, _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "hidepid=2")
    if made.devices:
        _terminals_and_memory()
    for path, target in made.links.items():
        if not os.path.lexists(_STAGE + path):
            os.makedirs(os.path.dirname(_STAGE + path), exist_ok=True)
            os.symlink(target, _STAGE + path)
    root = os.open(_STAGE, os.O_PATH | os.O_CLOEXEC)
    try:
        _set_attributes(root, _ATTR_RDONLY, 0)
    finally:
        os.close(root)
    os.chdir(_STAGE)
    _check(_libc.syscall(ctypes.c_long(_PIVOT_ROOT[platform.machine()]), b".", b"."))


def _terminals_and_memory() -> None:
    dev = f"{_STAGE}/dev"
    for name in ("pts", "shm"):
        os.makedirs(f"{dev}/{name}", exist_ok=True)
    _mount("devpts", f"{dev}/pts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600")
    _mount("tmpfs", f"{dev}/shm", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={SHARED_MEMORY_BYTES}")
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{dev}/{name}")


def _open_tree(path: str, attributes: int) -> int:
    """A copy of a tree with all that is mounted in it, with these attributes, not yet mounted anywhere."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    number = ctypes.c_long(_OPEN_TREE)
    fd = int(_check(_libc.syscall(number, ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags))))
    _set_attributes(fd, attributes, _AT_RECURSIVE)
    return fd


def _set_attributes(fd: int, attributes: int, flags: int) -> None:
    wanted = _MountAttr(attributes, 0, 0, 0)
    number, size = ctypes.c_long(_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(wanted))
    flags_ = ctypes.c_uint(_AT_EMPTY_PATH | flags)
    _check(_libc.syscall(number, ctypes.c_int(fd), b"", flags_, ctypes.byref(wanted), size))


def _put(path: str, fd: int) -> None:
    """Mount an opened tree in the new root, at its own path."""
    target = _STAGE + path
    try:
        if not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o444))
        number, empty = ctypes.c_long(_MOVE_MOUNT), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        here = ctypes.c_int(_AT_FDCWD)
        _check(_libc.syscall(number, ctypes.c_int(fd), b"", here, os.fsencode(target), empty))
    finally:
        os.close(fd)


def _mount(kind: str, target: str, flags: int, options: str) -> None:
    _check(_libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _try() -> str | None:
    """As for a server, with next to nothing in it: what `_probe` answers. Raises ViewError."""
    if platform.machine() not in _PIVOT_ROOT or not enter(Plan(read=[_PROC], devices=["/dev/null"])):
        return None
    with open("/proc/self/mounts") as file:
        shown = [line.split() for line in file]
    options = [line[3].split(",") for line in shown if line[1] == _PROC]
    return _HIDDEN if options and {"hidepid=invisible", "hidepid=2"} & set(options[-1]) else ""


if __name__ == "__main__":
    said = None
    with contextlib.suppress(ViewError, OSError):
        said = _try()
    if said is None:
        sys.exit(1)
    print(said)
