"""What processes and folders take, also those of somebody who would rather not be counted."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marimohub.spawners import disk, usage

pytestmark = pytest.mark.unit

MIB = 1 << 20


@contextmanager
def running(code: str) -> Iterator[int]:
    """A process that runs `code`, prints a line when it is done with that, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", f"import os, sys, time, mmap\n{code}\nprint(flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


def test_names_of_processes_cannot_forge_their_numbers() -> None:
    with running("open('/proc/self/comm', 'w').write(') R 1 (x')") as pid:
        found = usage.stat(pid)
        assert found is not None
        assert (found.pid, found.name, found.parent) == (pid, ") R 1 (x", os.getpid())
        assert found.state in "SR" and found.threads == 1


def test_a_tree_is_measured_with_all_that_it_started() -> None:
    # the child and the thread of a child, and 30 MB in each process
    code = """
import threading
held = os.urandom(30 << 20)
if os.fork() == 0:
    held = os.urandom(30 << 20)
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    until = time.process_time() + 0.3
    while time.process_time() < until: pass
    print(flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(60) if False else sys.stdin.read()
"""
    with running(code) as pid:
        found = usage.measure([pid, 2**22 + 1])
    assert list(found) == [pid]
    assert found[pid].processes == 3
    assert 60 * MIB < found[pid].memory_bytes < 110 * MIB
    assert found[pid].cpu_seconds >= 0.3


def test_what_processes_share_counts_by_part() -> None:
    piece = mmap.mmap(-1, 40 * MIB)
    piece.write(os.urandom(40 * MIB))
    reading, writing = os.pipe()
    ready, tell = os.pipe()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            sum(memoryview(piece)[:: mmap.PAGESIZE])
            os.write(tell, b"+")
            os.read(reading, 1)
            os._exit(0)
        children.append(pid)
    for _ in children:
        os.read(ready, 1)
    exact = [usage.memory_of(pid, exact=True) for pid in children]
    in_full = [usage.memory_of(pid, exact=False) for pid in children]
    os.close(writing)
    for pid in children:
        os.waitpid(pid, 0)
    for fd in (reading, ready, tell):
        os.close(fd)
    assert all(one.exact and one.shared < 12 * MIB for one in exact)
    assert all(not one.exact and one.shared >= 40 * MIB for one in in_full)
    assert usage.memory_of(children[0], exact=True).total == 0


def test_children_of_all_threads_are_found() -> None:
    started: list[subprocess.Popen[bytes]] = []
    done = threading.Event()

    def start() -> None:
        started.append(subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE))
        done.wait()

    thread = threading.Thread(target=start)
    thread.start()
    while not started:
        pass
    try:
        assert started[0].pid in usage.below(os.getpid())
    finally:
        done.set()
        thread.join()
        started[0].communicate(b"\n")


def fill(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return path


def test_folders_are_counted_with_what_is_hidden_in_them(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", 8 * MIB)
    counted = tmp_path / "counted"
    counted.mkdir()
    (counted / "link").symlink_to(outside)
    (counted / "folder link").symlink_to(tmp_path)
    one = fill(counted / "one", MIB)
    os.link(one, counted / "the same")
    (counted / "holes").touch()
    os.truncate(counted / "holes", 1 << 40)
    closed = counted / "closed"
    closed.mkdir()
    fill(closed / "inside", MIB)
    closed.chmod(0)
    here = os.getcwd()
    os.chdir(counted)
    try:
        for _ in range(60):  # 6 KB of path: more than a system call takes
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        Path("deep").write_bytes(os.urandom(MIB))
        os.sync()
    finally:
        os.chdir(here)
    found = disk.disk_bytes([counted, tmp_path / "missing"])
    assert 3 * MIB <= found < 4 * MIB
    closed.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="tries it as another user")
def test_a_folder_that_its_owner_closed_is_counted_without_root(tmp_path: Path) -> None:
    folder = Path(f"/tmp/marimohub-usage-{os.getpid()}")
    (folder / "closed").mkdir(parents=True)
    fill(folder / "closed" / "inside", MIB)
    for path in (folder, folder / "closed"):
        os.chown(path, 64212, 64212)
    (folder / "closed").chmod(0)
    code = f"from marimohub.spawners import disk; print(disk.disk_bytes([{str(folder)!r}]))"
    try:
        done = subprocess.run(
            ["setpriv", "--reuid=64212", "--regid=64212", "--clear-groups", sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
        )
        assert int(done.stdout) > MIB, done.stderr
    finally:
        (folder / "closed" / "inside").unlink()
        (folder / "closed").rmdir()
        folder.rmdir()


def test_many_empty_files_count_too(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).touch()
    assert disk.disk_bytes([tmp_path]) >= 300 * 1024


def test_counting_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        fill(tmp_path / str(number) / "file", 10_000)
    count = disk.DiskCount([tmp_path])
    steps = 1
    while not count.step(0.0):
        steps += 1
    assert steps > 10
    assert count.total == disk.disk_bytes([tmp_path])


def test_notebooks_end_once_when_the_disk_is_full_and_again_only_if_it_gets_fuller() -> None:
    watch = disk.DiskWatch(["/"], 100 * MIB)
    assert not watch.too_much(100 * MIB, True)
    assert watch.too_much(101 * MIB, True)
    assert not watch.too_much(101 * MIB, True)  # room to delete files with a notebook
    assert watch.too_much(104 * MIB, True)
    assert not watch.too_much(105 * MIB - 1, True)
    assert not watch.too_much(120 * MIB, False)  # nobody to end
    assert watch.too_much(120 * MIB, True) and watch.too_much(120 * MIB, True)  # far above, no notebook may run
    assert not watch.too_much(90 * MIB, True)
    assert watch.too_much(101 * MIB, False)  # told, though nothing runs


def test_memory_by_part_is_read_in_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with running("held = os.urandom(20 << 20)") as pid:
        found = usage.exact_memory([pid, 2**22 + 1], 30)
        assert found is not None
        assert found[pid].exact and 20 * MIB < found[pid].own < 60 * MIB
        assert found[2**22 + 1].total == 0
        # as where the process keeps the lock
        monkeypatch.setattr(usage, "memory_of", lambda *_, **__: time.sleep(60))
        assert usage.exact_memory([pid], 0.1) is None
