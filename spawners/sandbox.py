"""What a notebook server may reach, put into force on the process that becomes it.

Three layers: a view of the file system (view.py) where the system lets ordinary users have one, Landlock rules, and a
filter of system calls.

Everything is denied that is not named in the `Sandbox`; it holds for every process that the server starts, for good.
What a kernel or a configuration leaves open all the same, `missing` (gaps.py) says in sentences for administrators.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct

from marimohub.spawners import landlock, seccomp, view
from marimohub.spawners.gaps import missing
from marimohub.spawners.job import Sandbox
from marimohub.spawners.landlock import Fs, LandlockError, Net, PathMissing, Ruleset
from marimohub.spawners.seccomp import SeccompError
from marimohub.spawners.system_paths import NoInterpreter, Paths, exposing, standard_paths
from marimohub.spawners.view import ViewError

__all__ = [
    "NoInterpreter",
    "Paths",
    "SandboxError",
    "abi",
    "can_view",
    "confine",
    "enter_view",
    "exposing",
    "missing",
    "ports",
    "prepare",
    "standard_paths",
    "unsupported",
]

_SYSCALL_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE = 4
_TERMINALS = "/dev/pts"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_DEVICE = Fs.READ_FILE | Fs.WRITE_FILE | Fs.TRUNCATE | Fs.IOCTL_DEV
# to list the folder would tell the names of what others share
_SHARED_MEMORY = Fs.READ_FILE | Fs.WRITE_FILE | Fs.TRUNCATE | Fs.MAKE_REG | Fs.REMOVE_FILE
# the kernel's own file systems hold nothing to execute
_KERNEL_FILES = ("/proc", "/sys")


Ranges = tuple[tuple[int, int], ...]


class SandboxError(Exception):
    """The process could not be confined, and must not go on. The text is a sentence."""


def abi() -> int:
    """The kernel's Landlock version, 0 if it has none."""
    return landlock.abi()


def unsupported() -> str | None:
    """Why this machine cannot confine servers, as a sentence; None if it can."""
    return landlock.why_not() or seccomp.why_not()


def ports(text: str) -> Ranges:
    """Ranges of ports, inclusive, from what an administrator writes: "443", "1-9999, 30000-30010"; "" is none.

    Raises:
        ValueError: it means no ports; the text is a sentence.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        numbers = [one for one in (low, high if dash else low) if one.isascii() and one.isdigit()]
        if len(numbers) != 2 or not 0 < int(numbers[0]) <= int(numbers[1]) <= 65535:
            raise ValueError(f'"{part}" is no range of ports. Write it like "443" or "8000-8999".')
        found.append((int(numbers[0]), int(numbers[1])))
    return tuple(found)


def can_view(as_root: bool | None = None) -> bool:
    """Whether servers can have a view of the file system of their own. Blocks for some 30 ms at the first call.

    Args:
        as_root: whether root makes it, or an ordinary user; None: whoever runs this.
    """
    return view.possible(os.geteuid() == 0 if as_root is None else as_root)


def prepare() -> None:
    """Find out once, before the first of them, what is the same for all processes that are forked from here."""
    can_view()


def enter_view(sandbox: Sandbox, temp: str | None = None) -> bool:
    """Hide all paths from this process but those of the sandbox, if the system lets it. `confine` must follow.

    To be called in the child with its limits set, and before it changes its user id: folders above the sandbox's paths
    that are closed to that user do not matter then. The working directory is "/" afterwards.

    Args:
        temp: which of the folders in `sandbox.write` is also shown as /tmp, for programs that know no other; not done
            where other paths of the sandbox are below /tmp.

    Returns:
        Whether it is so: for `confine`.
    Raises:
        SandboxError: end the process.
    """
    try:
        return can_view() and view.enter(view.plan(sandbox.read, sandbox.write, sandbox.devices, temp))
    except ViewError as error:
        raise SandboxError(str(error)) from error


def confine(sandbox: Sandbox, *, own_user: bool = False, choose_cores: bool = False, private: bool = False) -> None:
    """Put a sandbox on this process and all that it starts. There is no way back.

    To be called in the child, after its user id and limits were set and while it has one thread.
    Also takes every capability away, ends core dumps, and makes the process's own /proc/self its own again.

    Args:
        own_user: the process runs with a user id that no other program has. If not, it is kept from what the system
            gives to all processes of one user: limits and priorities of others, and, unless it has a view of the file
            system of its own, Unix sockets and terminals.
        choose_cores: its threads may choose their cores: right where the limit of cores does not depend on it.
        private: what `enter_view` returned.

    Raises:
        SandboxError: it is not confined, or not wholly: end it.
    """
    if os.geteuid() == 0 or os.getuid() == 0:
        raise SandboxError("A notebook server does not run as root: confinement does not hold root.")
    if len(os.listdir("/proc/self/task")) != 1:
        raise SandboxError("A process with several threads cannot be confined: only one of them would be.")
    if (reason := unsupported()) is not None:
        raise SandboxError(reason)
    _no_core_dumps()
    try:
        version = landlock.abi()
        _put_rules(sandbox, version, own_user=own_user, private=private)
        _drop_capabilities()
        seccomp.install(
            seccomp.program(
                platform.machine(),
                datagrams=sandbox.datagrams,
                unix_sockets=_unix_sockets(version, own_user, private),
                shared_user=not own_user,
                truncate=own_user or landlock.has_truncate(version),
                affinity=choose_cores,
            )
        )
    except (LandlockError, SeccompError) as error:
        raise SandboxError(str(error)) from error
    # A process that gave up root has a /proc/self of root's; what is in its memory from here on is the person's.
    _libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)


def _unix_sockets(version: int, own_user: bool, private: bool) -> bool:
    """Whether Unix sockets can be had without those of the hub's user, which start programs outside (systemd's)."""
    return own_user or landlock.has_unix(version) or (private and landlock.has_scopes(version))


def _put_rules(sandbox: Sandbox, version: int, *, own_user: bool, private: bool) -> None:
    # All in one layer: one without rules for files, made before the fork to save the ports' time, would deny every move
    # from folder to folder, since Landlock denies that in each layer that does not allow it.
    net = Net(0)
    if landlock.has_net(version):
        net |= Net(0) if sandbox.connect is None else Net.CONNECT_TCP
        net |= Net(0) if sandbox.bind is None else Net.BIND_TCP
    with Ruleset(net=net) as rules:
        for path in sandbox.read:
            _allow(rules, path, Fs.READ & ~Fs.EXECUTE if path in _KERNEL_FILES else Fs.READ)
        for path in sandbox.write:
            _allow(rules, path, Fs.READ | Fs.CHANGE)
        for path in sandbox.devices:
            if path != _TERMINALS or own_user or private:  # else the hub's own terminal would be open to all
                _allow(rules, path, _DEVICE)
        for path in sandbox.shared_memory:
            _allow(rules, path, Fs.READ | Fs.CHANGE if private else _SHARED_MEMORY)
        for low, high in sandbox.connect or ():
            rules.allow_ports(low, high, Net.CONNECT_TCP)
        for low, high in sandbox.bind or ():
            rules.allow_ports(low, high, Net.BIND_TCP)
        rules.restrict_self()


def _allow(rules: Ruleset, path: str, rights: Fs) -> None:
    with contextlib.suppress(PathMissing):  # it stays closed, also when somebody makes it
        rules.allow_path(path, rights)


def _no_core_dumps() -> None:
    """A limit of 1 also holds for dumps that are piped to a program, which 0 does not: see core(5)."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (ValueError, OSError):  # the hard limit is 0 already
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _drop_capabilities() -> None:
    """A hub that may, for example, bind port 443 leaves that to its children (ambient capabilities)."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    number = _SYSCALL_CAPSET.get(platform.machine())
    if number is None:
        raise SeccompError(seccomp.why_not() or "This machine's system calls are not known.")
    if _libc.syscall(ctypes.c_long(number), header, bytes(24)) != 0:
        raise SandboxError(f"Capabilities could not be dropped: {os.strerror(ctypes.get_errno())}.")
