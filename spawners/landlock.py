"""Landlock: rules that a process puts on itself and on everything it starts, without root and for good.

Three system calls, called through ctypes: no kept library on PyPI wraps them. They have the same numbers on every
architecture, and the flags grew with the kernel's ABI version.
Source: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from enum import IntFlag
from types import TracebackType

# The newest ABI whose rights are written down here. A newer kernel is asked for no more than these.
NEWEST_ABI = 9

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH, _RULE_NET_PORT = 1, 2
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class LandlockError(Exception):
    """The kernel refused a rule, or has no Landlock. The text is a sentence."""


class PathMissing(LandlockError):
    """A rule's path does not exist."""


class Fs(IntFlag):
    """Rights on files and folders."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # to link or rename into another folder; below ABI 2 this is always denied
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15
    RESOLVE_UNIX = 1 << 16  # to connect to a socket file that was made outside

    READ = EXECUTE | READ_FILE | READ_DIR
    # device files are left out: nobody here may make them, whatever the file system says
    CHANGE = (
        WRITE_FILE
        | TRUNCATE
        | REMOVE_DIR
        | REMOVE_FILE
        | MAKE_DIR
        | MAKE_REG
        | MAKE_SOCK
        | MAKE_FIFO
        | MAKE_SYM
        | REFER
    )
    ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX


class Net(IntFlag):
    """Rights on TCP ports."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(IntFlag):
    """What may not reach beyond the processes that share the rules."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


_SINCE = {Fs.REFER: 2, Fs.TRUNCATE: 3, Fs.IOCTL_DEV: 5, Fs.RESOLVE_UNIX: 9}
_NET_SINCE = 4
_SCOPE_SINCE = 6


class _RulesetAttr(ctypes.Structure):
    _fields_ = [
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _NetPortAttr(ctypes.Structure):
    _fields_ = [("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64)]


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def abi() -> int:
    """The kernel's Landlock ABI version; 0 if it has none, or if it is switched off."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except OSError:
        return 0


def why_not() -> str | None:
    """Why Landlock cannot be used here, as a sentence; None if it can."""
    try:
        _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return (
                "Landlock is built into this kernel but switched off: add landlock to the kernel's lsm= boot option "
                "(for example lsm=landlock,lockdown,yama,integrity,apparmor)."
            )
        if error.errno == errno.ENOSYS:
            return f"This kernel ({os.uname().release}) has no Landlock: Linux 5.13 or newer, built with it, is needed."
        return f"Landlock cannot be used: {error.strerror}. A container's own seccomp profile may forbid it."
    return None


def fs_rights(version: int) -> Fs:
    """Every right on files that an ABI version knows: what a ruleset has to handle so that nothing is forgotten."""
    every = Fs.READ | Fs.CHANGE | Fs.MAKE_CHAR | Fs.MAKE_BLOCK | Fs.IOCTL_DEV | Fs.RESOLVE_UNIX
    for right, since in _SINCE.items():
        if version < since:
            every &= ~right
    return every


def has_net(version: int) -> bool:
    return version >= _NET_SINCE


def has_scopes(version: int) -> bool:
    return version >= _SCOPE_SINCE


def has_truncate(version: int) -> bool:
    return version >= _SINCE[Fs.TRUNCATE]


def has_unix(version: int) -> bool:
    """Whether it keeps processes from socket files that were made outside."""
    return version >= _SINCE[Fs.RESOLVE_UNIX]


class Ruleset:
    """Rules in the making: everything that is not allowed will be denied once `restrict_self` was called."""

    def __init__(self, *, net: Net | None = None, version: int | None = None) -> None:
        """All rights on files that the kernel knows are handled, all its scopes, and what `net` says.

        Args:
            net: what is denied but for `allow_ports`.
            version: for tests: as if the kernel had this older ABI.
        Raises:
            LandlockError: the kernel has no Landlock, or cannot handle `net`.
        """
        known = abi() if version is None else min(version, abi())
        if known < 1:
            raise LandlockError(why_not() or "This kernel has no Landlock.")
        net = net or Net(0)
        if net and not has_net(known):
            raise LandlockError(
                f"TCP ports can be confined from Landlock ABI 4 on (Linux 6.7); this kernel has {known}."
            )
        self.abi = min(known, NEWEST_ABI)
        self.fs = fs_rights(self.abi)
        self.net = net
        scoped = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if has_scopes(self.abi) else Scope(0)
        attr = _RulesetAttr(int(self.fs), int(net), int(scoped))
        # an older kernel refuses a longer struct than it knows if the rest is not zero: hand over only what is used
        size = 8 if not has_net(self.abi) else 16 if not has_scopes(self.abi) else 24
        try:
            self._fd = _call(_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), ctypes.c_uint32(0))
        except OSError as error:
            raise LandlockError(f"The kernel refused a Landlock ruleset: {error.strerror}.") from error

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def allow_path(self, path: str, rights: Fs, *, follow: bool = True) -> None:
        """Allow rights on a file, or on a folder and everything below.

        Args:
            follow: False: a path that is itself a symbolic link is refused.
        Raises:
            PathMissing: there is no such path.
            LandlockError: it cannot be opened, or the kernel refused.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PathMissing(f"{path} does not exist.") from error
        except OSError as error:
            raise LandlockError(f"{path} cannot be opened: {error.strerror}.") from error
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode):
                raise LandlockError(f"{path} is a symbolic link.")
            rights &= self.fs if stat.S_ISDIR(mode) else self.fs & Fs.ON_FILES
            if not rights:
                return
            rule = _PathBeneathAttr(int(rights), fd)
            _call(
                _ADD_RULE,
                ctypes.c_int(self._fd),
                ctypes.c_int(_RULE_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint32(0),
            )
        except OSError as error:
            raise LandlockError(f"The kernel refused a Landlock rule for {path}: {error.strerror}.") from error
        finally:
            os.close(fd)

    def allow_ports(self, low: int, high: int, rights: Net) -> None:
        """Allow TCP ports, from `low` to `high` inclusive. One rule per port: 10,000 take some milliseconds.

        Raises:
            LandlockError: not ports, or the kernel refused.
        """
        if not 0 <= low <= high <= 65535:
            raise LandlockError(f"{low}-{high} is no range of TCP ports.")
        rule = _NetPortAttr(int(rights & self.net), 0)
        if not rule.allowed_access:
            return
        add, fd, kind, pointer = _libc.syscall, ctypes.c_int(self._fd), ctypes.c_int(_RULE_NET_PORT), ctypes.byref(rule)
        number, flags = ctypes.c_long(_ADD_RULE), ctypes.c_uint32(0)
        for port in range(low, high + 1):
            rule.port = port
            if add(number, fd, kind, pointer, flags) < 0:
                reason = os.strerror(ctypes.get_errno())
                raise LandlockError(f"The kernel refused a Landlock rule for TCP port {port}: {reason}.")

    def restrict_self(self) -> None:
        """Put the rules on the calling thread, and on all that it starts from now on. Sets no_new_privs.

        Raises:
            LandlockError: the kernel refused (for example a 17th layer of rulesets).
        """
        no_new_privs()
        try:
            _call(_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint32(0))
        except OSError as error:
            raise LandlockError(f"The kernel did not put the Landlock rules in force: {error.strerror}.") from error


def no_new_privs() -> None:
    """From now on exec gives no privileges: setuid programs run as whoever calls them. Raises LandlockError."""
    arguments = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, *arguments) != 0:
        raise LandlockError(f"no_new_privs cannot be set: {os.strerror(ctypes.get_errno())}.")
