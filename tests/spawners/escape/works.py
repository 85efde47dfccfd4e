"""What a notebook must be able to do inside, however it is confined: standard library and what every notebook has.

Each function runs in a process that a notebook started, raises if it does not work, and returns something to show.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib
import importlib.util
import mmap
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
WORKS: dict[str, tuple[Callable[[Targets], object], str]] = {}


def works(function: Callable[[Targets], object]) -> Callable[[Targets], object]:
    WORKS[function.__name__] = (function, "")
    return function


@works
def files_of_ones_own(targets: Targets) -> object:
    """Made, changed, renamed, linked, listed, emptied, removed, in home, notebooks and temp folder."""
    for folder in ("home", "notebooks", "tmp"):
        place = Path(targets["own_folder"], folder, "works")
        (place / "deeper").mkdir(parents=True)
        file = place / "file.txt"
        file.write_text("text")
        file.chmod(0o640)
        os.utime(file)
        (place / "symbolic").symlink_to(file)
        os.link(file, place / "deeper" / "hard")
        os.rename(place / "deeper" / "hard", place / "renamed")
        assert (place / "symbolic").read_text() == "text" == (place / "renamed").read_text()
        os.truncate(file, 0)
        os.mkfifo(place / "pipe")
        for path in (place / "symbolic", place / "renamed", place / "pipe", file):
            path.unlink()
        (place / "deeper").rmdir()
        place.rmdir()
    moved = Path(targets["own_folder"], "tmp", "moved")
    moved.write_text("text")
    shutil.move(moved, Path(targets["own_folder"], "home", "moved"))  # perhaps to another mount
    return "done"


@works
def temporary_files(targets: Targets) -> object:
    """They are in the person's own temp folder, whatever it is called inside."""
    with tempfile.NamedTemporaryFile() as file:
        assert Path(targets["own_folder"], "tmp", os.path.basename(file.name)).exists(), file.name
        return file.name


@works
def reading_the_snapshot(targets: Targets) -> object:
    import duckdb

    with duckdb.connect(targets["own_snapshot"], read_only=True) as snapshot:
        return snapshot.execute("SELECT count(*) FROM sales.customers").fetchone()


@works
def databases_of_ones_own(targets: Targets) -> object:
    import duckdb

    home = targets["own_home"]
    with duckdb.connect(os.path.join(home, "works.duckdb")) as own:
        own.execute("CREATE OR REPLACE TABLE one AS SELECT range AS n FROM range(1000)")
    with sqlite3.connect(os.path.join(home, "works.sqlite")) as own_too:
        own_too.execute("PRAGMA journal_mode=wal")
        own_too.execute("CREATE TABLE IF NOT EXISTS one (n)")
    return "made"


@works
def importing_packages(targets: Targets) -> object:
    """Those with threads and C libraries."""
    names = ["polars", "altair", "duckdb"]
    names += [name for name in ("numpy", "pandas", "pyarrow") if importlib.util.find_spec(name)]
    return [f"{name} {importlib.import_module(name).__version__}" for name in names]


@works
def installing_a_package(targets: Targets) -> object:
    """By pip, into the person's home."""
    home = Path(targets["own_home"])
    wheel = home / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "answer = 42\n")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--target",
        str(home / "own"),
        str(wheel),
    ]
    subprocess.run([*command, "--upgrade", "--disable-pip-version-check"], check=True, capture_output=True)
    sys.path.insert(0, str(home / "own"))
    return importlib.import_module("tiny").answer


@works
def programs(targets: Targets) -> object:
    """A shell with a pipe, and the system's programs."""
    done = subprocess.run("ls -l / | wc -l; id -u; ps -p $$ -o comm=", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@works
def threads(targets: Targets) -> object:
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda n: n + threading.active_count() * 0, range(100)))


@works
def processes_of_ones_own(targets: Targets) -> object:
    """Pools by fork and by a new interpreter, with locks and memory that they share."""
    block = shared_memory.SharedMemory(create=True, size=mmap.PAGESIZE)
    block.buf[0] = 7
    again = shared_memory.SharedMemory(block.name)
    assert again.buf[0] == 7
    again.close()
    block.close()
    block.unlink()
    found = []
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        with context.Lock():
            pass
        with ProcessPoolExecutor(2, context) as pool:
            found.append(sum(pool.map(abs, range(-10, 0))))
    return found


@works
def signals_to_ones_own(targets: Targets) -> object:
    child = subprocess.Popen(["sleep", "60"])
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGCONT)
    child.terminate()
    return child.wait()


@works
def asynchronous_programs(targets: Targets) -> object:
    async def run() -> bytes:
        process = await asyncio.create_subprocess_exec("echo", "works", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output

    return asyncio.run(run())


@works
def looking_around(targets: Targets) -> object:
    """Names, cores, certificates, the time zone, the terminal's size: small things that libraries ask at import."""
    assert getpass.getuser() == targets["own_name"]
    assert os.path.expanduser("~") == targets["own_home"]
    assert os.getcwd() == targets["own_home"]
    ssl.create_default_context()
    return [os.cpu_count(), len(os.sched_getaffinity(0)), os.getloadavg(), os.path.getsize(sys.executable)]


@works
def the_network(targets: Targets) -> object:
    """Where the administrator left it open: names, UDP, and TCP to any machine's usual ports."""
    socket.getaddrinfo("localhost", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", targets["outside_port"]))
    with socket.create_connection(("127.0.0.1", targets["outside_port"]), 2) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(15)


@works
def the_hub(targets: Targets) -> object:
    """It can be asked, also where the rest of the network is closed; it knows whom it answers."""
    with socket.create_connection(("127.0.0.1", targets["hub_port"]), 2) as connection:
        connection.sendall(b"GET /hub/api/users HTTP/1.0\r\n\r\n")
        answer = connection.recv(12)
    assert answer == b"HTTP/1.1 403", answer
    return answer
