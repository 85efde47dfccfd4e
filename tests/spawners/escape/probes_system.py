"""Probes of the system: privileges, namespaces, mounts, rare parts of the kernel, and what users share by name."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import pty
import signal
import subprocess

from tests.spawners.escape.probing import Denied, Targets, any_of, call, libc, probe, syscall

_CLONE_NEW = {"mount": 0x20000, "user": 0x10000000, "network": 0x40000000, "pid": 0x20000000, "ipc": 0x8000000}


@probe("root")
def become_root(targets: Targets) -> object:
    return any_of({"uid": lambda: os.setuid(0), "gid": lambda: os.setgid(0), "groups": lambda: os.setgroups([0])})


@probe()
def run_setuid_program(targets: Targets) -> object:
    """Prints its effective user id."""
    done = subprocess.run([targets["setuid_program"], "-u"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Denied(done.stderr.strip()[:80])
    uid = int(done.stdout)
    if uid != targets["setuid_owner"]:
        raise Denied("it ran as whoever called it")
    return f"it ran as user {uid}"


@probe("root")
def use_capabilities(targets: Targets) -> object:
    """What root's processes have, and a program with file capabilities would get."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    held = {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(status[name], 16)}
    if not held and status["NoNewPrivs"] == "1":
        raise Denied("none, and none to be got")
    return f"{held}, no_new_privs {status['NoNewPrivs'].strip()}"


@probe("root")
def mount_file_systems(targets: Targets) -> object:
    place = targets["own_home"].encode()
    return any_of(
        {
            "tmpfs": lambda: (call(libc.mount(b"none", place, b"tmpfs", 0, None)), libc.umount2(place, 2)),
            "bind": lambda: (call(libc.mount(b"/", place, None, 4096, None)), libc.umount2(place, 2)),
            "fsopen": lambda: syscall("fsopen", b"tmpfs", 0),
            "open_tree": lambda: syscall("open_tree", -100, b"/", 1),
            "unmount": lambda: call(libc.umount2(b"/proc", 0)),
        }
    )


@probe("root")
def change_root_folder(targets: Targets) -> object:
    return any_of({"chroot": lambda: os.chroot(targets["own_home"])})


@probe()
def make_namespaces(targets: Targets) -> object:
    """In a user namespace of one's own one is root, and may mount."""
    ways = {name: lambda flag=flag: call(libc.unshare(flag)) for name, flag in _CLONE_NEW.items()}
    ways["clone"] = lambda: syscall_clone(_CLONE_NEW["user"])
    return any_of(ways)


def syscall_clone(flag: int) -> int:
    """clone() with flags; 56 and 220 are its numbers."""
    number = 56 if platform.machine() == "x86_64" else 220
    pid = call(libc.syscall(ctypes.c_long(number), ctypes.c_ulong(flag | signal.SIGCHLD), None, None, None, None))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@probe("root")
def enter_namespaces_of_others(targets: Targets) -> object:
    pid = targets["foreign_pids"]["hub"]
    return any_of(
        {
            "setns": lambda: call(libc.setns(os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY), 0)),
            "pidfd": lambda: call(libc.setns(os.pidfd_open(pid), 0x4000000)),
        }
    )


@probe()
def use_io_uring(targets: Targets) -> object:
    """Its work is done by kernel threads."""
    return syscall("io_uring_setup", 4, ctypes.create_string_buffer(120))


@probe("root")
def load_bpf_programs(targets: Targets) -> object:
    attributes = ctypes.create_string_buffer(b"\x02\0\0\0\x04\0\0\0\x08\0\0\0\x01\0\0\0", 72)  # an array map
    return syscall("bpf", 0, attributes, 72)


@probe("root")
def use_performance_counters(targets: Targets) -> object:
    attributes = ctypes.create_string_buffer(b"\x01\0\0\0\x70\0\0\0", 112)  # a software counter: processor clock
    return syscall("perf_event_open", attributes, -1, 0, -1, 0)


@probe("root")
def use_userfaultfd(targets: Targets) -> object:
    return syscall("userfaultfd", 0)


@probe("root")
def read_kernel_log(targets: Targets) -> object:
    return call(libc.klogctl(10, None, 0))


@probe("root")
def change_clock_and_host_name(targets: Targets) -> object:
    name = os.uname().nodename.encode()
    return any_of({"name": lambda: call(libc.sethostname(name, len(name)))})


@probe()
def call_by_other_numbers(targets: Targets) -> object:
    """32-bit system calls have other numbers: a filter that forgets them is no filter."""
    if platform.machine() != "x86_64":
        raise Denied("there are none on this machine")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return f"{function()} is the process id"


@probe()
def trust_another_personality(targets: Targets) -> object:
    """With READ_IMPLIES_EXEC and fixed addresses, what one starts is easier to attack."""
    return call(libc.personality(ctypes.c_ulong(0x0440000)))


@probe()
def use_system_v_memory_of_others(targets: Targets) -> object:
    identifier = call(libc.shmget(targets["system_v_key"], 0, 0))
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(identifier, None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    return ctypes.string_at(address, 6)


@probe()
def use_system_v_queues_of_others(targets: Targets) -> object:
    key = targets["system_v_key"]
    return any_of({"messages": lambda: call(libc.msgget(key, 0)), "semaphores": lambda: call(libc.semget(key, 0, 0))})


@probe()
def use_posix_queues_of_others(targets: Targets) -> object:
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    return call(rt.mq_open(targets["posix_queue"].encode(), os.O_RDWR))


@probe()
def use_keys_of_others(targets: Targets) -> object:
    """The keyring of a user id is shared by all its processes."""
    return syscall("keyctl", 0, -4, 1)  # KEYCTL_GET_KEYRING_ID of the user's keyring, made if there is none


@probe()
def open_terminals_of_others(targets: Targets) -> object:
    """Whoever runs the hub may have terminals open, as the same user."""
    return os.close(os.open(targets["terminal"], os.O_RDWR | os.O_NOCTTY)) or "opened"


@probe()
def type_into_a_terminal(targets: Targets) -> object:
    """TIOCSTI, on a terminal of one's own: what it does there, it would do to an inherited one."""
    import fcntl

    pid, master = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, 0x5412, b"x")
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    _, status = os.waitpid(pid, 0)
    os.close(master)
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        raise OSError(code, "TIOCSTI")
    return "typed"
