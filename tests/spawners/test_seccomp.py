"""The system call filter: its program worked through step by step for both machines, and tried on this one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from marimohub.spawners import seccomp
from marimohub.spawners.seccomp import ARCHES, CALLS, Instruction, SeccompError
from tests.spawners.confining import denied, in_child

pytestmark = pytest.mark.unit

ALLOW, KILL = 0x7FFF0000, 0x80000000
OPEN = {"datagrams": True, "unix_sockets": True, "shared_user": False, "truncate": True, "affinity": True}
STRICT = {"datagrams": False, "unix_sockets": False, "shared_user": True, "truncate": False, "affinity": False}
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}

machines = pytest.mark.parametrize("machine", sorted(ARCHES))
here = pytest.mark.skipif(platform.machine() not in ARCHES, reason="there is no filter for this machine")


def answer(program: list[Instruction], arch: int, number: int, arguments: tuple[int, ...] = ()) -> str:
    """What the kernel would do: "allowed", "killed", or the error's name. Classic BPF, as far as it is used."""
    words = {0: number, 4: arch}
    for index, value in enumerate(arguments):
        words[16 + 8 * index], words[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    at, held = 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x06:
            break
        if code == 0x20:
            held = words.get(operand, 0)
        elif code == 0x54:
            held &= operand
        else:
            met = {0x15: held == operand, 0x25: held > operand, 0x45: bool(held & operand)}[code]
            at += yes if met else no
    if operand == ALLOW:
        return "allowed"
    return "killed" if operand == KILL else errno.errorcode[operand & 0xFFFF]


def asking(machine: str, **options: bool) -> Callable[..., str]:
    program = seccomp.program(machine, **{**OPEN, **options})
    arch = ARCHES[machine]

    def ask(name: str, *arguments: int) -> str:
        number = CALLS[name][arch.column]
        return "no such call" if number is None else answer(program, arch.audit, number, arguments)

    return ask


@machines
def test_other_architectures_and_unknown_calls_get_nowhere(machine: str) -> None:
    program, audit = seccomp.program(machine, **OPEN), ARCHES[machine].audit
    i386, arm = 0x40000003, 0x40000028
    assert {answer(program, other, 1) for other in (i386, arm, audit ^ 1)} == {"killed"}
    assert answer(program, audit, seccomp.NEWEST_CALL + 1) == "ENOSYS"
    assert answer(program, audit, 0x40000000 | 101) == "ENOSYS"  # x32's ptrace
    assert answer(program, audit, 0xFFFFFFFF) == "ENOSYS"
    assert answer(program, audit, 0) == "allowed"


@machines
@pytest.mark.parametrize("options", [OPEN, STRICT])
def test_no_namespace_can_be_made_but_processes_and_threads_can(machine: str, options: dict[str, bool]) -> None:
    ask = asking(machine, **options)
    fork, thread = 0x1200011, 0x3D0F00
    assert ask("clone", fork) == ask("clone", thread) == "allowed"
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert ask("clone", fork | flag) == ask("unshare", flag) == "EPERM"
    assert ask("unshare", 0x80) == "EPERM"
    assert ask("unshare", 0x400) == "allowed"  # its own file descriptors
    assert ask("clone3", 0) == "ENOSYS"  # glibc then calls clone
    assert {ask(name) for name in ("setns", "mount", "pivot_root", "chroot", "fsopen", "move_mount")} == {"EPERM"}


@machines
def test_sockets_are_only_those_whose_connections_are_confined(machine: str) -> None:
    """TCP to Landlock is what is made as TCP: not Multipath TCP (262), SMC (256), SCTP (132)."""
    ask = asking(machine)
    unix, inet, inet6, netlink, smc, vsock, alg, packet = 1, 2, 10, 16, 43, 40, 38, 17
    stream, datagram, raw, flags = 1, 2, 3, 0o2004000
    for family in (inet, inet6):
        assert ask("socket", family, stream | flags, 0) == ask("socket", family, stream, 6) == "allowed"
        assert ask("socket", family, datagram | flags, 0) == ask("socket", family, datagram, 17) == "allowed"
        assert {ask("socket", family, stream, protocol) for protocol in (262, 256, 132, 33)} == {"EPROTONOSUPPORT"}
        assert {ask("socket", family, datagram, protocol) for protocol in (1, 58, 136)} == {"EPROTONOSUPPORT"}
        assert {ask("socket", family, kind, 0) for kind in (raw, 4, 5, 6, 10)} == {"EPERM"}
    assert {ask("socket", family, stream, 0) for family in (smc, vsock, alg, packet, 44, 0)} == {"EAFNOSUPPORT"}
    assert ask("socket", unix, stream, 0) == ask("socket", unix, datagram, 0) == "allowed"
    assert ask("socket", netlink, raw, 0) == "allowed"  # what addresses there are: getaddrinfo asks
    assert {ask("socket", netlink, raw, protocol) for protocol in (4, 9, 15, 16)} == {"EPROTONOSUPPORT"}
    assert ask("socketpair", inet, stream, 0) == "EAFNOSUPPORT"


@machines
def test_a_connection_that_landlock_is_not_asked_about_cannot_be_made(machine: str) -> None:
    ask, fastopen = asking(machine), 0x20000000
    assert ask("sendto", 3, 0, 1, fastopen) == ask("sendmsg", 3, 0, fastopen) == "ENOTSUP"
    assert ask("sendmmsg", 3, 0, 1, fastopen | 0x40) == "ENOTSUP"
    assert ask("sendto", 3, 0, 1, 0x4000) == ask("sendmsg", 3, 0, 0x40) == ask("sendmmsg", 3, 0, 1, 0) == "allowed"
    assert ask("setsockopt", 3, 6, 31) == "ENOPROTOOPT"  # TCP_ULP
    assert ask("setsockopt", 3, 6, 1) == ask("setsockopt", 3, 1, 31) == "allowed"


@machines
def test_a_closed_network_has_no_datagrams(machine: str) -> None:
    ask = asking(machine, datagrams=False)
    assert ask("socket", 2, 2, 0) == ask("socket", 10, 2, 17) == "EPERM"
    assert ask("socket", 2, 1, 0) == "allowed"


@machines
def test_what_one_user_shares_is_closed_where_the_user_is_the_hubs(machine: str) -> None:
    strict, own = asking(machine, **STRICT), asking(machine)
    assert strict("socket", 1, 1, 0) == "EPERM"
    assert strict("socketpair", 1, 1, 0) == "allowed"
    for name in ("inotify_add_watch", "setxattr", "fchownat", "truncate"):
        assert (strict(name), own(name)) == ("EPERM", "allowed")
    for name in ("prlimit64", "sched_setparam", "sched_setattr", "sched_setscheduler"):
        assert (strict(name, 0), strict(name, 4711), own(name, 4711)) == ("allowed", "EPERM", "allowed")
    assert (strict("setpriority", 0, 0), own("setpriority", 0, 4711)) == ("allowed", "allowed")
    assert (strict("ioprio_set", 1, 0), own("ioprio_set", 1, 4711)) == ("allowed", "allowed")
    assert {strict("setpriority", kind, who) for kind, who in ((0, 1), (1, 0), (2, 0))} == {"EPERM"}
    assert {strict("ioprio_set", kind, who) for kind, who in ((1, 1), (2, 0), (3, 0))} == {"EPERM"}
    assert (strict("fcntl", 3, 1024), own("fcntl", 3, 1024), strict("fcntl", 3, 1030)) == (
        "EPERM",
        "allowed",
        "allowed",
    )
    assert strict("sched_setaffinity", 0) == "EPERM"
    cores = asking(machine, **{**STRICT, "affinity": True})
    assert (cores("sched_setaffinity", 0), cores("sched_setaffinity", 4711)) == ("allowed", "EPERM")


@machines
def test_terminals_cannot_be_typed_into(machine: str) -> None:
    ask = asking(machine)
    assert {ask("ioctl", 0, request) for request in (0x5412, 0x541C, 0x5423, 0xFFFFFFFF00005412)} == {"EPERM"}
    assert ask("ioctl", 0, 0x5413) == "allowed"


@machines
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip("the C library's headers are not installed")
    listed = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    column, last = ARCHES[machine].column, max(map(int, listed.values()))
    ours = {name: numbers[column] for name, numbers in CALLS.items()}
    assert {name: n for name, n in ours.items() if n is not None and n < 424 and str(n) != listed.get(name)} == {}
    assert {name for name, n in ours.items() if n is None and name in listed} == set()
    assert {name for name, n in ours.items() if n is not None and n < last and name not in listed} == set()


def test_an_unknown_machine_is_told() -> None:
    with pytest.raises(SeccompError, match="riscv64 machines: only for x86_64, aarch64"):
        seccomp.program("riscv64", **OPEN)


def strictly() -> None:
    seccomp.install(seccomp.program(platform.machine(), **STRICT))


@here
def test_every_denied_call_is_denied_by_this_kernel() -> None:
    def call() -> dict[str, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        found = {}
        for name in (seccomp._DENIED + seccomp._FOREIGN_FILES).split():
            number = CALLS[name][ARCHES[platform.machine()].column]
            if number is not None:
                result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
                found[name] = ctypes.get_errno() if result == -1 else 0
        return found

    found = in_child(call, confine=strictly)
    assert len(found) > 80
    assert {name for name, code in found.items() if code != errno.EPERM} == set()


@here
def test_sockets_and_limits_as_programs_meet_them() -> None:
    def look() -> dict[str, str]:
        found = {
            "tcp": denied(socket.socket),
            "multipath tcp": denied(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262),
            "udp": denied(socket.socket, socket.AF_INET, socket.SOCK_DGRAM),
            "unix": denied(socket.socket, socket.AF_UNIX),
            "pair": denied(socket.socketpair),
            "fast open": denied(socket.socket().sendto, b"x", 0x20000000, ("127.0.0.1", 9)),
            "hub's limits": denied(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (9, 9)),
            "own limits": denied(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64)),
            "hub's priority": denied(os.setpriority, os.PRIO_PROCESS, os.getppid(), 19),
            "own priority": denied(os.nice, 1),
            "hub's cores": denied(os.sched_setaffinity, os.getppid(), {0}),
            "own cores": denied(os.sched_setaffinity, 0, {0}),
            "count cores": denied(os.sched_getaffinity, 0),
            "type": denied(fcntl.ioctl, 0, 0x5412, b"x"),
            "addresses": denied(socket.getaddrinfo, "localhost", 80),
        }
        return {name: error for name, error in found.items() if error}

    assert in_child(look, confine=strictly) == {
        "multipath tcp": "EPROTONOSUPPORT",
        "udp": "EPERM",
        "unix": "EPERM",
        "fast open": "ENOTSUP",
        "hub's limits": "EPERM",
        "hub's priority": "EPERM",
        "hub's cores": "EPERM",
        "own cores": "EPERM",
        "type": "EPERM",
    }


@here
def test_processes_threads_and_programs_start_and_inherit_the_filter() -> None:
    def start() -> list[object]:
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(1))
        thread.start()
        thread.join()
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        program = "import socket\ntry: socket.socket(socket.AF_UNIX)\nexcept PermissionError: print('denied')"
        said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
        status = Path("/proc/self/status").read_text()
        return [done, code, said.stdout.strip(), "NoNewPrivs:\t1" in status, "Seccomp:\t2" in status]

    assert in_child(start, confine=strictly) == [[1], 7, "denied", True, True]
