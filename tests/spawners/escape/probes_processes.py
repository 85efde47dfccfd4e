"""Probes of processes: the hub, the proxy, the spawn server, guards, other people's servers and kernels, and one's own
launcher, which holds a token."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket

from tests.spawners.escape.probing import Denied, Targets, any_of, call, each_process, libc, probe, syscall

_PTRACE_ATTACH, _PTRACE_DETACH, _PTRACE_SEIZE = 16, 17, 0x4206
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class _Piece(ctypes.Structure):
    """struct iovec"""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _read_proc(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return f"{len(file.read(4096))} bytes"


def _open_memory(pid: int, mode: int = os.O_RDONLY) -> str:
    os.close(os.open(f"/proc/{pid}/mem", mode))
    return "opened its memory"


def _descriptors(pid: int) -> str:
    numbers = os.listdir(f"/proc/{pid}/fd")
    return ", ".join(os.readlink(f"/proc/{pid}/fd/{number}") for number in numbers[:3])


def _seize(pid: int) -> str:
    """Does not stop it."""
    call(libc.ptrace(_PTRACE_SEIZE, pid, None, None))
    os.kill(pid, signal.SIGURG)  # a tracee can be let go of only while it is stopped
    os.waitpid(pid, 0x40000000)  # __WALL
    call(libc.ptrace(_PTRACE_DETACH, pid, None, None))
    return "traced it"


def _code_address(pid: int) -> int:
    """Of a fork of the same process it is the same, otherwise a guess, and the answer is EFAULT."""
    with open("/proc/self/maps") as file:
        return int(file.readline().partition("-")[0], 16)


def _vm(function: str, pid: int) -> str:
    """EFAULT comes after the permission was granted."""
    buffer = ctypes.create_string_buffer(8)
    here = _Piece(ctypes.addressof(buffer), 8)
    there = _Piece(_code_address(pid), 8)
    one = ctypes.c_ulong(1)
    move = getattr(libc, function)
    move.restype = ctypes.c_ssize_t
    try:
        call(move(pid, ctypes.byref(here), one, ctypes.byref(there), one, ctypes.c_ulong(0)))
    except OSError as error:
        if error.errno == 14:
            return "was let in, but at no page of it"
        raise
    return "8 bytes"


def _take_descriptor(pid: int) -> str:
    pidfd = syscall("pidfd_open", pid, 0)
    os.close(syscall("pidfd_getfd", pidfd, 0, 0))
    return "took its standard input"


@probe()
def read_environment_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: _read_proc(pid, "environ"))


@probe()
def read_memory_of_others(targets: Targets) -> object:
    return each_process(targets, _open_memory)


@probe()
def write_memory_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: _open_memory(pid, os.O_RDWR))


@probe()
def list_descriptors_of_others(targets: Targets) -> object:
    return each_process(targets, _descriptors)


@probe()
def read_memory_maps_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: any_of(
        {name: lambda name=name: _read_proc(pid, name) for name in ("maps", "smaps", "auxv", "stack", "syscall")}
    ))  # fmt: skip


@probe()
def enter_working_folder_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.readlink(f"/proc/{pid}/cwd"))


@probe()
def see_root_and_program_of_others(targets: Targets) -> object:
    return each_process(
        targets,
        lambda pid: any_of({name: lambda name=name: os.readlink(f"/proc/{pid}/{name}") for name in ("root", "exe")}),
    )


@probe()
def trace_others(targets: Targets) -> object:
    return each_process(targets, _seize)


@probe()
def read_memory_of_others_by_system_call(targets: Targets) -> object:
    return each_process(targets, lambda pid: _vm("process_vm_readv", pid))


@probe()
def write_memory_of_others_by_system_call(targets: Targets) -> object:
    return each_process(targets, lambda pid: _vm("process_vm_writev", pid))


@probe()
def take_descriptor_of_others(targets: Targets) -> object:
    return each_process(targets, _take_descriptor)


@probe()
def compare_with_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: syscall("kcmp", os.getpid(), pid, 1, 0, 0))


@probe()
def move_memory_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: syscall("move_pages", pid, ctypes.c_ulong(0), None, None, None, 0))


@probe()
def signal_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.kill(pid, signal.SIGURG))


@probe()
def signal_threads_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: call(libc.tgkill(pid, pid, 0)))


@probe()
def signal_others_by_descriptor(targets: Targets) -> object:
    return each_process(targets, lambda pid: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGURG))


@probe()
def signal_process_groups_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.killpg(os.getpgid(pid), 0))


@probe()
def signal_others_through_a_socket(targets: Targets) -> object:
    """The kernel sends SIGURG to the owner of a socket when data comes; owners of files can be set to anybody."""
    # a process that counts the signal is needed to see whether it came: the test's own helper does
    counter, pid = targets["signal_counter"], targets["foreign_pids"]["helper"]
    with open(counter) as file:
        before = file.read()
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, pid)
    fcntl.fcntl(ours, 10, signal.SIGUSR2)  # F_SETSIG
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    for _ in range(20):
        theirs.send(b"x")
        ours.recv(1)
        signal.sigtimedwait([signal.SIGUSR1], 0.02)
        with open(counter) as file:
            if file.read() != before:
                return "the signal arrived"
    raise Denied("the signal did not arrive")


@probe()
def change_limits_of_others(targets: Targets) -> object:
    def change(pid: int) -> str:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, resource.prlimit(pid, resource.RLIMIT_NOFILE))
        return "set its limit of open files"

    return each_process(targets, change)


@probe()
def change_priority_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)))


@probe()
def change_scheduler_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)))


@probe()
def change_processors_of_others(targets: Targets) -> object:
    return each_process(targets, lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)))


@probe()
def spare_oneself_from_running_out_of_memory(targets: Targets) -> object:
    """Lower than what the server got."""
    with open("/proc/self/oom_score_adj") as file:
        value = int(file.read())
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))
    return "opened for writing"


@probe("root")
def read_environment_of_own_launcher(targets: Targets) -> object:
    return _read_proc(targets["own_launcher"], "environ")


@probe("root")
def read_memory_of_own_launcher(targets: Targets) -> object:
    """It holds the token of the person's server at the hub."""
    pid = targets["own_launcher"]
    return any_of(
        {
            "mem": lambda: _open_memory(pid),
            "task": lambda: os.close(os.open(f"/proc/{pid}/task/{pid}/mem", os.O_RDONLY)),
            "maps": lambda: _read_proc(pid, "maps"),
            "process_vm_readv": lambda: _vm("process_vm_readv", pid),
            "process_vm_writev": lambda: _vm("process_vm_writev", pid),
        }
    )


@probe("root")
def trace_own_launcher(targets: Targets) -> object:
    return _seize(targets["own_launcher"])


@probe("root")
def take_listening_socket_of_own_launcher(targets: Targets) -> object:
    """With it one could accept the browser's requests, cookies included."""
    pid = targets["own_launcher"]
    return any_of({"fd": lambda: _descriptors(pid), "pidfd_getfd": lambda: _take_descriptor(pid)})


@probe("root")
def dump_core(targets: Targets) -> object:
    """A memory image of whatever crashes, also of processes that hold secrets, in a folder that one can read."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.chdir(targets["own_home"])
    pid = os.fork()
    if pid == 0:
        os.abort()
    _, status = os.waitpid(pid, 0)
    if not os.WCOREDUMP(status):
        raise Denied(f"no core, the limit is {hard}")
    return "a core file"


@probe("root")
def raise_own_limits(targets: Targets) -> object:
    """Of which each process has a hard limit of its own."""

    def lift(number: int) -> str:
        _, hard = resource.getrlimit(number)
        try:
            resource.setrlimit(number, (hard, hard + 1 if hard != resource.RLIM_INFINITY else hard))
        except ValueError as error:
            raise Denied(str(error)) from None
        return "lifted"

    return any_of({name: lambda name=name: lift(getattr(resource, name)) for name in ("RLIMIT_CORE", "RLIMIT_NOFILE")})
