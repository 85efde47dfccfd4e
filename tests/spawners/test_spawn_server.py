"""The warm process, the guards that it forks, and what becomes of servers when any of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from marimohub.spawners import processes
from marimohub.spawners.job import BadJob, Identity, Job, Limits, Sandbox
from marimohub.spawners.servers import Server, StartFailed
from marimohub.spawners.spawn_client import SpawnServer, SpawnServerFailed
from marimohub.spawners.spawn_server import COMMAND

LOG = logging.getLogger(__name__)
ROOT = os.geteuid() == 0
on_one_loop = pytest.mark.asyncio(loop_scope="module")
# does not end by itself, and leaves a process of another session, which a parent that ends gives away
DETACHED = (
    "(setsid sh -c 'echo $$ > pid; mv pid detached; exec sleep 300' &) ; while [ ! -e detached ]; do sleep 0.01; done"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where every user id can come: pytest's own folders are closed."""
    path = Path(tempfile.mkdtemp(prefix="marimohub-"))
    path.chmod(0o777)
    (path / "tmp").mkdir()
    (path / "tmp").chmod(0o777)
    yield path
    shutil.rmtree(path)


class Bench:
    """A spawn server, and servers on it that run shell commands in `folder`."""

    def __init__(self, warm: SpawnServer, folder: Path) -> None:
        self.warm, self.folder, self.servers = warm, folder, list[Server]()

    def job(self, script: str, **more: Any) -> Job:
        env = {"PATH": os.environ["PATH"], "FOLDER": str(self.folder)}
        settings = {"argv": ("sh", "-c", script), "folder": str(self.folder), "grace": 5.0, **more}
        return Job(name="ann", env=env, temp=str(self.folder / "tmp"), **settings)

    async def start(self, script: str, *, keep: bool = True, secret: str = "", **more: Any) -> Server:
        with open(self.folder / "log", "ab") as log:
            server = await self.warm.spawn(self.job(script, **more), log.fileno(), {"TOKEN": secret}, log.fileno())
        self.servers.append(server)
        if keep:
            server.keep()
        return server

    async def run(self, script: str, **more: Any) -> int:
        """Run a server to its end; its status."""
        server = await self.start(script, **more)
        return await ended(server)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def detached(self) -> int:
        return int((self.folder / "detached").read_text())


@asynccontextmanager
async def warmed(*preload: str) -> AsyncIterator[SpawnServer]:
    warm = SpawnServer(sys.executable, preload, LOG)
    try:
        await warm.warm_up()
        yield warm
    finally:
        await warm.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def warm() -> AsyncIterator[SpawnServer]:
    """One for all tests: to load everything takes a second."""
    async with warmed() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def bench(warm: SpawnServer, folder: Path) -> AsyncIterator[Bench]:
    made = Bench(warm, folder)
    yield made
    for server in made.servers:
        server.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.shield(server.gone)


async def ended(server: Server) -> int:
    async with asyncio.timeout(20):
        status = await asyncio.shield(server.ended)
        await asyncio.shield(server.gone)
    return status


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def loading() -> set[int]:
    """Spawn servers of this process."""
    command = COMMAND.encode()
    return {pid for pid in processes.descendants(os.getpid()) if command in Path(f"/proc/{pid}/cmdline").read_bytes()}


def lives(pid: int) -> bool:
    return processes.process_start_time(pid) != ""


@on_one_loop
async def test_exit_codes_signals_and_output_are_the_servers_own(bench: Bench, folder: Path) -> None:
    assert await bench.run("echo out; echo error >&2") == 0
    assert await bench.run("exit 7") == 7
    assert await bench.run("kill -TERM $$") == -signal.SIGTERM
    assert await bench.run("kill -KILL $$") == -signal.SIGKILL
    assert bench.log.splitlines() == ["out", "error"]
    server = await bench.start("trap 'exit 3' TERM; touch ready; while :; do sleep 0.02; done")
    await until((folder / "ready").exists)
    server.terminate()
    assert await ended(server) == 3
    stubborn = await bench.start("trap '' TERM; touch stubborn; while :; do sleep 0.02; done", grace=0.2)
    await until((folder / "stubborn").exists)
    stubborn.terminate()
    assert await ended(stubborn) == -signal.SIGKILL


@on_one_loop
async def test_server_has_its_secrets_and_descriptors_and_nobody_else_has(bench: Bench, folder: Path) -> None:
    # a descriptor of the hub's that anything it starts would inherit
    leak = os.open(folder / "tmp", os.O_RDONLY)
    os.set_inheritable(leak, True)
    script = "echo token=$TOKEN; ls /proc/self/fd | tr '\\n' ' '; cat /proc/self/status | grep -E 'SigBlk|SigIgn'"
    assert await bench.run(script, secret="s3cret") == 0
    token, descriptors, *signals = bench.log.splitlines()[0], *bench.log.splitlines()[1:]
    assert token == "token=s3cret"
    assert descriptors.split()[:4] == ["0", "1", "2", "3"], "3 is what lists them"
    assert "4" not in descriptors.split()[:5]
    libc = 1 << 31 | 1 << 32  # signals 32 and 33 are the C library's own: nobody can set them back
    assert all(int(line.split()[-1], 16) & ~libc == 0 for line in signals if "Sig" in line), signals
    waiting = await bench.start("sleep 300", secret="s3cret")
    await waiting.started
    for pid in (bench.warm.pid, waiting.pid):
        for name in ("environ", "cmdline"):
            assert b"s3cret" not in Path(f"/proc/{pid}/{name}").read_bytes()
    os.close(leak)


@on_one_loop
async def test_all_that_a_server_started_ends_with_it_and_its_temp_folder_is_emptied(
    bench: Bench, folder: Path
) -> None:
    outside = folder / "outside"
    outside.write_text("kept")

    fill = "mkdir -p tmp/a/b; touch tmp/a/b/c; chmod 0 tmp/a/b tmp/a; ln -s $FOLDER/outside tmp/link; ln -s .. tmp/up"
    server = await bench.start(f"{DETACHED}; {fill}; exit 4")
    assert await ended(server) == 4
    assert not lives(bench.detached)
    assert list((folder / "tmp").iterdir()) == []
    assert outside.read_text() == "kept"


@on_one_loop
async def test_server_that_the_hub_has_not_written_down_ends_with_the_hub(bench: Bench, folder: Path) -> None:
    unknown = await bench.start(f"{DETACHED}; sleep 300", keep=False)
    known = await bench.start("sleep 300")
    await asyncio.gather(unknown.started, known.started)
    await until((folder / "detached").exists)
    state, guard = known.state(), unknown.pid
    for server in (unknown, known):
        server.forget()  # as the end of the hub does it
    bench.servers.clear()
    await until(lambda: not lives(guard))
    assert not lives(bench.detached)
    assert lives(known.pid)
    # pids come round: the same number with another start time is somebody else
    assert Server.adopt(LOG, {**state, "started_at": "1"}) is None
    found = Server.adopt(LOG, state)
    assert found is not None
    found.terminate()
    await ended(found)
    assert found.lost, "nobody told this hub how it ended"
    assert not lives(state["launcher"])


@on_one_loop
async def test_running_servers_outlive_a_killed_spawn_server_and_spawns_in_flight_are_repeated(
    bench: Bench, folder: Path
) -> None:
    before = await bench.start("sleep 300")
    await before.started
    first = bench.warm.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # so that what follows is in flight
    spawning = asyncio.create_task(bench.start("exit 5"))
    await asyncio.sleep(0.1)
    assert not spawning.done()
    os.kill(first, signal.SIGKILL)
    assert await ended(await spawning) == 5
    assert bench.warm.pid != first
    assert lives(before.launcher)
    before.terminate()
    assert await ended(before) == -signal.SIGTERM, "its guard is still its guard"


@on_one_loop
async def test_killed_guard_takes_its_server_with_it_and_no_other(bench: Bench, folder: Path) -> None:
    other = await bench.start("sleep 300")
    victim = await bench.start(f"{DETACHED}; sleep 300")
    await asyncio.gather(victim.started, other.started)
    await until((folder / "detached").exists)
    victim.kill_guard()
    assert await ended(victim) == -signal.SIGKILL
    assert victim.lost
    await until(lambda: not lives(victim.launcher) and not lives(bench.detached))
    assert lives(other.launcher)


@on_one_loop
async def test_what_cannot_be_started_says_why(bench: Bench) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"argv": ("/nonexistent/program",)}, "/nonexistent/program cannot be run: No such file or directory."),
        ({"folder": "/nonexistent"}, "The folder /nonexistent cannot be entered: No such file or directory."),
    ]
    if ROOT:
        cases.append(({"sandbox": Sandbox()}, "A confined server cannot run as root: no user id was given for it."))
    for job, sentence in cases:
        server = await bench.start("true", **job)
        with pytest.raises(StartFailed) as caught:
            await server.started
        assert sentence in str(caught.value)
        assert await ended(server) != 0


@on_one_loop
@pytest.mark.skipif(not ROOT, reason="only root gives user ids")
async def test_server_runs_as_its_user_alone_with_limits_and_sandbox(bench: Bench, folder: Path) -> None:
    for name, gid in (("secret", 0), ("shared", 81236)):
        (folder / name).write_text(name)
        os.chown(folder / name, 0, gid)
        (folder / name).chmod(0o644 if name == "secret" else 0o640)
    sandbox = Sandbox(
        read=("/usr", "/bin", "/lib", "/lib64", "/proc", "/sys", "/etc/ld.so.cache", str(folder / "shared")),
        write=(str(folder / "tmp"),),
        devices=("/dev/null",),
    )
    shown = "grep -E 'NoNewPrivs|^Seccomp:|CapEff' /proc/self/status"
    script = f"id -u; id -g; cat shared; echo; ulimit -Hn; umask; {shown}; cat secret"
    identity = Identity(81234, 81235, (81236,))
    assert await bench.run(script, identity=identity, sandbox=sandbox, folder=str(folder)) != 0
    uid, gid, shared, files, umask, *rest = bench.log.splitlines()
    assert (uid, gid, shared) == ("81234", "81235", "shared")
    assert int(files) <= 65536
    assert umask == "0077"
    status = dict(line.split(":\t") for line in rest if ":\t" in line)
    assert status == {"CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
    assert "secret: " in rest[-1], "it can be read by all, but not from here"


@on_one_loop
async def test_modules_that_a_fork_would_break_and_unfit_interpreters_are_refused(folder: Path) -> None:
    async def refused(python: str, preload: tuple[str, ...] = ()) -> str:
        warm = SpawnServer(python, preload, LOG)
        try:
            with pytest.raises(SpawnServerFailed) as caught:
                await warm.warm_up()
            return str(caught.value)
        finally:
            await warm.close()

    async def does_without() -> None:
        async with warmed("no_such_module") as made:
            assert await Bench(made, folder).run("true") == 0

    async def killed_while_loading() -> int:
        warm = SpawnServer(sys.executable, (), LOG)
        try:
            waiting = asyncio.create_task(Bench(warm, folder).run("exit 6"))
            before = loading()
            await until(lambda: loading() - before)
            for pid in loading() - before:
                os.kill(pid, signal.SIGKILL)
            return await waiting
        finally:
            await warm.close()

    assert await killed_while_loading() == 6, "a spawn that waits is repeated, too"
    bare = folder / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    nothing, other, threads, _ = await asyncio.gather(
        refused("/nonexistent/python"),
        refused(str(bare / "bin/python")),
        refused(sys.executable, ("concurrent.futures", "polars")),
        does_without(),
    )
    assert nothing == "The interpreter /nonexistent/python cannot be run: No such file or directory."
    assert other.endswith("No module named 'marimohub'. Install marimohub into it.")
    assert "polars has started threads" in threads and "LocalMarimoSpawner.preload" in threads


def test_spawn_server_obeys_the_hub_alone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno()), str(os.getppid()), ""],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr == "The control socket is not the hub's.\n"


@pytest.mark.unit
def test_job_survives_the_way_to_the_guard_and_nothing_else_is_one() -> None:
    job = Job(
        name="ann",
        env={"A": "ä\n"},
        folder="/f",
        temp="/t",
        argv=("a", "b"),
        disk_folders=("/f",),
        identity=Identity(1, 2, (3,)),
        sandbox=Sandbox(read=("/r",), connect=((1, 9),), bind=None, datagrams=False),
        limits=Limits(memory=1, cpu=1.5),
        cgroup="/c",
        grace=1.5,
    )
    assert Job.from_json(job.to_json()) == job
    for text in (b"", b"[]", b"{}", b'{"name": 1}', b"\xff"):
        with pytest.raises(BadJob):
            Job.from_json(text)


@pytest.mark.unit
def test_end_all_ends_what_forks_faster_than_it_is_killed() -> None:
    """In a process of its own, which adopts what loses its parent, as a guard does."""
    script = """
import os, subprocess, sys, time
from marimohub.spawners import processes
processes.adopt_orphans()
subprocess.Popen(["sh", "-c", "n=0; while [ $n -lt 2000 ]; do n=$((n+1)); (sleep 0.01; sleep 300) & done"])
time.sleep(0.3)
assert len(processes.descendants(os.getpid())) > 5
assert processes.end_all(lambda: processes.descendants(os.getpid())) == []
assert not processes.descendants(os.getpid())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr, time.monotonic() - began)


@pytest.mark.unit
def test_ending_others_processes_takes_no_child_from_whoever_waits_for_it() -> None:
    with subprocess.Popen(["sh", "-c", "exit 3"]) as child, subprocess.Popen(["sleep", "300"]) as victim:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        names = {victim.pid: "S"}
        assert processes.end_all(lambda: names if lives(victim.pid) else {}, reaps=False) == []
        assert child.wait() == 3
        assert victim.wait() == -signal.SIGKILL
