"""What people do in notebooks, in short: run inside a sandbox by test_sandbox.py. Prints what failed, as JSON.

The working directory, HOME and TMPDIR are the person's own folder.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import mmap
import multiprocessing
import os
import pty
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

HERE = Path.cwd()


def sh(script: str) -> str:
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def sort_that_spills() -> None:
    import duckdb

    connection = duckdb.connect(str(HERE / "work.duckdb"))
    connection.execute(f"SET memory_limit = '48MB'; SET threads = 2; SET temp_directory = '{HERE}/spill'")
    connection.execute("CREATE TABLE t AS SELECT hash(range) AS h, repeat('x', 40) AS s FROM range(600000)")
    spilled = connection.execute("SELECT count(*) FROM (SELECT * FROM t ORDER BY h, s LIMIT 500000)").fetchone()
    assert spilled == (500000,)


def frames() -> None:
    import polars

    polars.DataFrame({"a": [3, 1, 2]}).lazy().sort("a").sink_parquet(HERE / "f.parquet")
    assert polars.scan_parquet(HERE / "f.parquet").select("a").collect()["a"].to_list() == [1, 2, 3]


def shared_state() -> None:
    context = multiprocessing.get_context("fork")
    lock, queue, memory = context.Lock(), context.Queue(), SharedMemory(create=True, size=64)
    try:

        def work() -> None:
            with lock:
                memory.buf[0] = 42
                queue.put(os.getpid())

        process = context.Process(target=work)
        process.start()
        assert queue.get(timeout=20) == process.pid
        process.join()
        assert memory.buf[0] == 42
    finally:
        memory.close()
        memory.unlink()


def pool(method: str) -> Callable[[], None]:
    def run() -> None:
        with multiprocessing.get_context(method).Pool(2) as workers:
            assert workers.map(abs, [-1, -2]) == [1, 2]

    return run


def manager() -> None:
    with multiprocessing.get_context("spawn").Manager() as found:
        assert list(found.list([1])) == [1]


def threads_and_loops() -> None:
    async def hello() -> bytes:
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    assert asyncio.run(hello()) == b"hello\n"
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        assert len(set(executor.map(lambda _: threading.get_ident(), range(8)))) >= 1


def terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execlp("bash", "bash", "--norc", "-c", "tty && stty size && echo done")
    said = b""
    while b"done" not in said:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
    assert os.waitpid(pid, 0)[1] == 0, said
    assert b"/dev/pts/" in said, said


def shell() -> None:
    assert sh("cat <(echo a; echo b) | sort -r | tee x > /dev/null; wc -l < x; rm x") == "2"
    assert sh("sleep 30 & kill %1; wait %1; echo $?") == "143"


def git() -> None:
    us = "git -c user.name=a -c user.email=a@example.com"
    sh(f"git init -q one && cd one && echo x > f && git add f && {us} commit -qm x && cd .. && git clone -q one two")
    assert (HERE / "two/f").read_text() == "x\n"


def package() -> None:
    with zipfile.ZipFile("tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "answer = 42\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    sh(f"{sys.executable} -m pip install -q --no-index --no-deps --target lib tiny-1.0-py3-none-any.whl")
    assert sh(f"PYTHONPATH=lib {sys.executable} -c 'import tiny; print(tiny.answer)'") == "42"


def files() -> None:
    with tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).is_relative_to(HERE)
        file.write(b"x" * 4096)
        file.flush()
        mmap.mmap(file.fileno(), 0).close()
    (HERE / "a").mkdir()
    (HERE / "b").mkdir()
    (HERE / "a/f").write_text("x")
    os.rename("a/f", "b/f")
    os.chmod("b/f", 0o755)
    os.link("b/f", "a/g")
    os.symlink("g", "a/h")
    with sqlite3.connect(HERE / "s.sqlite") as database:
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE t (x)")


def machine() -> None:
    import psutil

    assert psutil.Process().memory_info().rss > 0
    assert psutil.cpu_count() and psutil.virtual_memory().total
    assert os.cpu_count() and os.sched_getaffinity(0)
    assert psutil.Process().environ()["HOME"] == str(HERE)
    assert Path("/dev/null").write_text("x") and sh("head -c 4 /dev/urandom | wc -c") == "4"


def names() -> None:
    assert socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)


def unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("own.socket")
        server.listen()
        client.connect("own.socket")


WORK: dict[str, Callable[[], None]] = {
    "a sort that spills": sort_that_spills,
    "data frames": frames,
    "locks, queues and shared memory": shared_state,
    "a pool by fork": pool("fork"),
    "a pool by spawn": pool("spawn"),
    "a pool by forkserver": pool("forkserver"),
    "a manager": manager,
    "threads and loops": threads_and_loops,
    "a terminal": terminal,
    "a shell": shell,
    "git": git,
    "a package": package,
    "files": files,
    "the machine": machine,
    "names": names,
    "a Unix socket": unix_socket,
}


def main() -> None:
    failed = {}
    for name, work in WORK.items():
        try:
            work()
        except BaseException as error:
            failed[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(failed))


if __name__ == "__main__":
    main()
