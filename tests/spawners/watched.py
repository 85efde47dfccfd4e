"""Run by test_watch.py: a guard with a server below it as the real ones are, whose notebooks do what the tests say.

`python -P watched.py JSON` with "limits", "kernels" (names of functions below; one kernel each), and what else a test
needs. Prints a line of JSON for each breach, and at the end one that tells which of its processes are alive.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from marimohub.spawners import disk, processes, sandbox, usage, watch
from marimohub.spawners.job import Identity, Job, Limits, Sandbox

MIB = 1 << 20
ask = json.loads(sys.argv[1])
folder = ask.get("folder", "/nonexistent")
held: list[object] = []  # what must not be freed


def sleep() -> None:
    while True:
        time.sleep(60)


def eat() -> None:
    """Memory, in small steps, half of it in a worker."""
    if os.fork() == 0:
        processes.set_name("worker")
    while True:
        held.append(os.urandom(MIB))
        time.sleep(0.002)


def work() -> None:
    """Go on after having been stopped."""
    time.sleep(0.8)
    Path(ask["until_file"]).touch()
    sleep()


def eat_alone() -> None:
    while True:
        held.append(os.urandom(MIB))
        time.sleep(0.002)


def eat_behind_a_dead_thread() -> None:
    """The first thread has ended, so the process looks as if it had; another one goes on."""
    threading.Thread(target=eat_alone).start()
    ctypes.CDLL(None).pthread_exit(None)


def zombies() -> None:
    """Children that nobody waits for, who count where the system limits processes."""
    while True:
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                os._exit(0)


def spread() -> None:
    """A little in each of many processes that nobody is the parent of."""
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                held.append(os.urandom(50 * MIB))
                sleep()
            os._exit(0)
    sleep()


def eat_nameless() -> None:
    """Files that exist in memory only; no process has their pages mapped."""
    file = os.memfd_create("nameless")
    while os.fstat(file).st_size < 1024 * MIB:
        os.write(file, bytes(MIB))
        time.sleep(0.002)
    sleep()


def share() -> None:
    """One piece of shared memory, mapped and read by many, and memory that they have from before a fork."""
    reading, writing = os.pipe()
    piece = mmap.mmap(-1, 40 * MIB)
    piece.write(os.urandom(40 * MIB))
    for _ in range(4):
        if os.fork() == 0:
            sum(memoryview(piece)[::4096])
            os.write(writing, b"+")
            sleep()
    for _ in range(4):
        os.read(reading, 1)
    Path(ask["until_file"]).touch()
    sleep()


def bomb() -> None:
    """Every fork forks on; some leave their session and parents. They end by themselves if nobody ends them."""
    until = time.monotonic() + 8
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if os.fork() == 0 and os.getpid() % 3 == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
    os._exit(0)


def fill() -> None:
    while True:
        with open(f"{folder}/big-{os.getpid()}", "ab") as file:
            file.write(os.urandom(MIB))
        time.sleep(0.002)


def fill_nameless() -> None:
    """A file that no folder holds any more."""
    file = os.open(f"{folder}/gone", os.O_RDWR | os.O_CREAT)
    os.unlink(f"{folder}/gone")
    for _ in range(200):
        os.write(file, os.urandom(MIB))
        time.sleep(0.002)
    sleep()


def _launcher(job: Job) -> None:
    processes.set_name("launcher")
    guard = os.getppid()
    server = os.getpid()
    os.setsid()
    if job.cgroup is not None:
        Path(job.cgroup, "cgroup.procs").write_text("0")
    most = ask.get("most_tasks", 150)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))  # holds a bomb that nobody stops
    if job.identity is not None:
        os.setgroups(())
        os.setresgid(job.identity.gid, job.identity.gid, job.identity.gid)
        os.setresuid(job.identity.uid, job.identity.uid, job.identity.uid)
    if job.sandbox is not None:
        sandbox.confine(job.sandbox)
    if ask.get("zygote", True) and os.fork() == 0:
        processes.set_name("kernel-zygote")
        signal.signal(signal.SIGUSR2, lambda *_: os.kill(-1, signal.SIGSTOP))  # as the real one does
        held.append(os.urandom(ask.get("preloaded", 0) * MIB))
        for name in ask["kernels"]:
            _start(name)
        sleep()
    for name in ask.get("beside", ()):  # as a terminal, which the server itself starts; it calls itself the zygote
        if os.fork() == 0:
            processes.set_name("kernel-zygote")
            globals()[name]()
    processes.die_with_parent()
    if os.getppid() != guard or os.getpid() != server:
        os._exit(1)
    globals()[ask.get("server", "sleep")]()


def _start(name: str) -> None:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if name == "zombies" else signal.SIG_IGN)
        processes.set_name(name)
        run: Callable[[], None] = globals()[name]
        run()


def _alive() -> list[str]:
    found = (usage.stat(pid) for pid in usage.below(os.getpid()))
    return sorted(one.name for one in found if one is not None and not one.ended)


def _stopped() -> list[str]:
    """The names of those that were stopped and not let go again."""
    found = (usage.stat(pid) for pid in usage.below(os.getpid()))
    return sorted(one.name for one in found if one is not None and one.state == "T")


def main() -> None:
    processes.adopt_orphans()
    disk.COUNT_FIRST = 0.0
    disk.COUNT_EVERY_BUSY = 0.3
    uid, readable = ask.get("uid"), ask.get("readable")
    job = Job(
        name="test",
        env={},
        folder="/",
        temp="/",
        limits=Limits(**ask["limits"]),
        disk_folders=(folder,),
        cgroup=ask.get("cgroup"),
        identity=None if uid is None else Identity(uid, uid),
        sandbox=None if readable is None else Sandbox(read=tuple(readable), write=tuple(ask.get("writable", ()))),
    )
    launcher = os.fork()
    if launcher == 0:
        try:
            _launcher(job)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    guard = watch.Watch(os.getpid(), launcher, job)
    until = time.monotonic() + ask.get("seconds", 20)
    breaches, quiet = 0, False
    ended: dict[int, int] = {}
    while time.monotonic() < until and launcher not in ended:
        if ask.get("alarm") and guard._looked_at > 0:
            guard._calm = (-1000, *guard._calm[1:])  # as if the machine had a thousand processes more by now
        breach = guard.check()
        ended |= processes.reap()
        if breach is not None:
            print(breach.to_json(), end="", flush=True)
            breaches += 1
            if breaches == ask.get("breaches", 1):
                break
        if quiet:
            break
        quiet = "until_file" in ask and Path(ask["until_file"]).exists()  # one more check, with all there is
        if quiet and not ask.get("alarm"):
            time.sleep(watch.LOOK_EVERY)
        time.sleep(guard.pause)
    settled = time.monotonic() + ask.get(
        "settle", 5
    )  # what was killed needs a moment to be gone, more on a busy machine
    while time.monotonic() < settled and len(_alive()) > ask.get("alive", 0):
        ended |= processes.reap()
        time.sleep(0.02)
    ended |= processes.reap()
    print(json.dumps({"stopped": _stopped(), "alive": _alive(), "server": ended.get(launcher)}), flush=True)
    processes.end_all(lambda: processes.descendants(os.getpid()))


main()
