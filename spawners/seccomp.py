"""A seccomp filter: system calls that a notebook never needs, and those by which it would get around Landlock.

Modelled on Docker's default profile (moby, profiles/seccomp/default.json), but as a list of what is denied: what a
data science library will call next year is not known. System calls newer than this file do not exist inside.

Written by hand as classic BPF: it is one table and two dozen lines of assembler. The one binding on PyPI, pyseccomp, is
no longer maintained and needs the C library libseccomp beside it.

Besides attack surface, Landlock has gaps which this filter closes (each was tried on Linux 6.18):
- Multipath TCP, SCTP and SMC sockets are no TCP to Landlock, and connect to any port;
- `sendto(MSG_FASTOPEN)` connects a TCP socket without asking Landlock;
- sockets of other families (netlink's sock_diag tells the path of every Unix socket);
- resource limits, priorities and schedulers of other processes of the same user;
- System V memory and queues outlive the server and count for nobody.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass, field


class SeccompError(Exception):
    """The filter cannot be made or was not accepted. The text is a sentence."""


@dataclass(frozen=True)
class Arch:
    """What differs between machines: the audit number, and the numbers of the system calls."""

    audit: int
    column: int


# Source: include/uapi/linux/audit.h
ARCHES = {"x86_64": Arch(0xC000003E, 0), "aarch64": Arch(0xC00000B7, 1)}

# Higher numbers are answered with ENOSYS, as an older kernel would: what they do is not known here.
NEWEST_CALL = 469

# name: (x86_64, aarch64), None where it does not exist.
# Source: arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl; the numbers from 424 on are the same everywhere.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "file_setattr": (469, 469),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "inotify_add_watch": (254, 27),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lchown": (94, None),
    "lookup_dcookie": (212, 18),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "lsm_set_self_attr": (460, 460),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vserver": (236, None),
    "_sysctl": (156, None),
}

_DENIED = """
    acct add_key bpf chroot clock_settime create_module delete_module fanotify_init file_setattr finit_module fsconfig
    fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
    kexec_file_load kexec_load keyctl lookup_dcookie lsm_set_self_attr mbind migrate_pages modify_ldt mount
    mount_setattr move_mount move_pages mq_open msgctl msgget msgrcv msgsnd name_to_handle_at nfsservctl
    open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv
    process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key semctl semget semop semtimedop
    set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday shmat shmctl shmget swapoff
    swapon _sysctl sysfs syslog umount2 uselib userfaultfd ustat vhangup vserver
"""
# Landlock does not ask about these, and the hub's own files belong to the same user; nor are there many inotify
# instances for one user, and the proxy needs one.
_FOREIGN_FILES = """
    chown fchown fchownat inotify_add_watch inotify_init inotify_init1 lchown lremovexattr lsetxattr removexattr
    removexattrat setxattr setxattrat
"""

_CLONE_NEW = 0x7E020000
_CLONE_NEWTIME = 0x80  # only unshare and clone3 take it
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # those that Docker allows
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_TYPE_MASK = 1, 2, 0xF
_IPPROTO_TCP, _IPPROTO_UDP, _TCP_ULP = 6, 17, 31
_MSG_FASTOPEN = 0x20000000
_F_SETLEASE = 1024

# Source: include/uapi/linux/seccomp.h, bpf_common.h
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT = 0x15, 0x25, 0x45
_NUMBER, _ARCH = 0, 4
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand: `struct sock_filter`."""


def _argument(index: int) -> int:
    """Where the lower half of an argument is: those looked at are 32 bits wide, and these machines little-endian."""
    return 16 + 8 * index


def _fail(code: int) -> int:
    return _ERRNO | code


@dataclass
class _Program:
    """A small assembler. Jumps only lead forward, by a number of instructions."""

    arch: Arch
    lines: list[Instruction] = field(default_factory=list)

    def load(self, offset: int) -> None:
        self.lines.append((_LOAD, 0, 0, offset))

    def give(self, action: int) -> None:
        self.lines.append((_RETURN, 0, 0, action))

    def when(self, test: int, value: int, action: int) -> None:
        """If the test holds, this is the answer."""
        self.lines.append((test, 0, 1, value))
        self.give(action)

    def unless(self, values: tuple[int, ...], action: int) -> None:
        """If what was loaded is none of the values, this is the answer."""
        for place, value in enumerate(values):
            self.lines.append((_JUMP_EQUAL, len(values) - place, 0, value))
        self.give(action)

    def call(self, name: str, block: _Program) -> None:
        """For one system call: a block that always gives an answer."""
        number = CALLS[name][self.arch.column]
        if number is None:
            return
        if len(block.lines) > 255 or block.lines[-1][0] != _RETURN:
            raise AssertionError(f"the block for {name} is too long or has no end")
        self.lines.append((_JUMP_EQUAL, 0, len(block.lines), number))
        self.lines += block.lines

    def answer(self, name: str, action: int) -> None:
        block = _Program(self.arch)
        block.give(action)
        self.call(name, block)

    def only(self, name: str, index: int, values: tuple[int, ...], action: int) -> None:
        """The system call is allowed if the argument is one of the values."""
        block = _Program(self.arch)
        block.load(_argument(index))
        block.unless(values, action)
        block.give(_ALLOW)
        self.call(name, block)

    def but(self, name: str, index: int, test: int, values: tuple[int, ...], action: int) -> None:
        """The system call is allowed unless the test holds for the argument and one of the values."""
        block = _Program(self.arch)
        block.load(_argument(index))
        for value in values:
            block.when(test, value, action)
        block.give(_ALLOW)
        self.call(name, block)


def program(
    machine: str, *, datagrams: bool, unix_sockets: bool, shared_user: bool, truncate: bool, affinity: bool
) -> list[Instruction]:
    """The filter for a machine ("x86_64", "aarch64").

    Args:
        datagrams: UDP sockets may be made.
        unix_sockets: Unix sockets may be made, and so connected by path. Pairs always may.
        shared_user: other processes of the same user id are to be protected: their limits, priorities and schedulers,
            and the owners and extended attributes of their files.
        truncate: files may be truncated by path.
        affinity: threads may choose their cores.
    Raises:
        SeccompError: no filter is known for this machine.
    """
    arch = ARCHES.get(machine)
    if arch is None:
        raise SeccompError(f"There is no system call filter for {machine} machines: only for {', '.join(ARCHES)}.")
    filter_ = _Program(arch)
    filter_.load(_ARCH)
    filter_.unless((arch.audit,), _KILL_PROCESS)  # 32-bit system calls have other numbers
    filter_.load(_NUMBER)
    filter_.when(_JUMP_GREATER, NEWEST_CALL, _fail(errno.ENOSYS))  # x32 has bit 30 set, so it is among them
    for name in (
        *_DENIED.split(),
        *(_FOREIGN_FILES.split() if shared_user else ()),
        *(() if truncate else ("truncate",)),
    ):
        filter_.answer(name, _fail(errno.EPERM))
    filter_.answer("clone3", _fail(errno.ENOSYS))  # its flags are in memory; the C library then calls clone
    filter_.but("clone", 0, _JUMP_ANY_BIT, (_CLONE_NEW,), _fail(errno.EPERM))
    filter_.but("unshare", 0, _JUMP_ANY_BIT, (_CLONE_NEW | _CLONE_NEWTIME,), _fail(errno.EPERM))
    filter_.only("personality", 0, _PERSONALITIES, _fail(errno.EPERM))
    filter_.but("ioctl", 1, _JUMP_EQUAL, (_TIOCSTI, _TIOCLINUX, _TIOCSETD), _fail(errno.EPERM))
    for name, index in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        filter_.but(name, index, _JUMP_ANY_BIT, (_MSG_FASTOPEN,), _fail(errno.EOPNOTSUPP))
    filter_.only("socketpair", 0, (_AF_UNIX,), _fail(errno.EAFNOSUPPORT))
    filter_.call("socket", _sockets(arch, datagrams, unix_sockets))
    filter_.call("setsockopt", _socket_options(arch))
    if shared_user:
        _only_oneself(filter_)
    if not affinity:
        filter_.answer("sched_setaffinity", _fail(errno.EPERM))
    elif shared_user:
        filter_.only("sched_setaffinity", 0, (0,), _fail(errno.EPERM))
    filter_.give(_ALLOW)
    return filter_.lines


def _sockets(arch: Arch, datagrams: bool, unix_sockets: bool) -> _Program:
    """TCP, and Unix and UDP if wanted; netlink only to ask for interfaces and routes, as getaddrinfo does."""
    block = _Program(arch)
    block.load(_argument(0))
    block.when(_JUMP_EQUAL, _AF_UNIX, _ALLOW if unix_sockets else _fail(errno.EPERM))
    netlink = _Program(arch)
    netlink.load(_argument(2))
    netlink.unless((0,), _fail(errno.EPROTONOSUPPORT))
    netlink.give(_ALLOW)
    block.lines.append((_JUMP_EQUAL, 0, len(netlink.lines), _AF_NETLINK))
    block.lines += netlink.lines
    block.unless((_AF_INET, _AF_INET6), _fail(errno.EAFNOSUPPORT))
    block.load(_argument(1))
    block.lines.append((_AND, 0, 0, _SOCK_TYPE_MASK))
    for kind, protocol, allowed in ((_SOCK_STREAM, _IPPROTO_TCP, True), (_SOCK_DGRAM, _IPPROTO_UDP, datagrams)):
        one = _Program(arch)
        one.load(_argument(2))
        one.unless((0, protocol), _fail(errno.EPROTONOSUPPORT))
        one.give(_ALLOW if allowed else _fail(errno.EPERM))
        block.lines.append((_JUMP_EQUAL, 0, len(one.lines), kind))
        block.lines += one.lines
    block.give(_fail(errno.EPERM))  # raw sockets and the like
    return block


def _socket_options(arch: Arch) -> _Program:
    """No upper layer protocols: "smc" makes a TCP socket something that Landlock does not know."""
    block = _Program(arch)
    block.load(_argument(1))
    block.unless((_IPPROTO_TCP,), _ALLOW)
    block.load(_argument(2))
    block.when(_JUMP_EQUAL, _TCP_ULP, _fail(errno.ENOPROTOOPT))
    block.give(_ALLOW)
    return block


def _only_oneself(filter_: _Program) -> None:
    """Limits, priority and scheduler: of the caller (0), not of another process of the same user, such as the hub.

    And no leases: whoever opens a file that it owns, such as a shared snapshot, would make others wait for it.
    """
    filter_.but("fcntl", 1, _JUMP_EQUAL, (_F_SETLEASE,), _fail(errno.EPERM))
    for name in ("prlimit64", "sched_setattr", "sched_setparam", "sched_setscheduler"):
        filter_.only(name, 0, (0,), _fail(errno.EPERM))
    for name, kind in (("setpriority", 0), ("ioprio_set", 1)):  # PRIO_PROCESS, IOPRIO_WHO_PROCESS
        block = _Program(filter_.arch)
        block.load(_argument(0))
        block.unless((kind,), _fail(errno.EPERM))
        block.load(_argument(1))
        block.unless((0,), _fail(errno.EPERM))
        block.give(_ALLOW)
        filter_.call(name, block)


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(lines: list[Instruction]) -> None:
    """Put a filter on the calling thread and all that it starts from now on, for good. Sets no_new_privs.

    Raises:
        SeccompError: the kernel has no seccomp filters, or refused this one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    # named, so that what the pointer leads to lives until the call has returned
    fprog = _SockFprog(len(lines), ctypes.addressof(code))
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0 or (
        libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(fprog), zero, zero) != 0
    ):
        raise SeccompError(f"The kernel did not accept the system call filter: {os.strerror(ctypes.get_errno())}.")


def why_not() -> str | None:
    """Why no filter can be installed here, as a sentence; None if one can."""
    if platform.machine() not in ARCHES:
        return f"There is no system call filter for {platform.machine()} machines: only for {', '.join(ARCHES)}."
    if not os.path.exists("/proc/sys/kernel/seccomp"):
        return f"This kernel ({os.uname().release}) has no seccomp filters (CONFIG_SECCOMP_FILTER)."
    return None
