"""Kernels are forked from a warm process that knows no secret, and are marimo's kernels in everything else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.singleuser.conftest import Browser
from tests.singleuser.handed import Cells, Handed
from tests.singleuser.server import Server
from tests.singleuser.standin import StandInHub
from tests.singleuser.test_server_notebooks import eventually

MEMORY = 1 << 30


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handed]:
    hub = StandInHub()
    hub.start()
    hub.signed_in = "alice"
    root = tmp_path_factory.mktemp("handed")
    (root / "library").mkdir()
    (root / "library" / "of_the_profile.py").write_text("answer = 42")
    extra = {
        "TMPDIR": str(root / "tmp"),
        "MARIMOHUB_MEMORY_LIMIT": str(MEMORY),
        "PYTHONPATH": str(root / "library"),
    }
    server = Handed(hub, root, extra=extra)
    server.start()
    yield server
    server.stop()
    hub.stop()


@pytest.fixture
async def browser(handed: Handed) -> AsyncIterator[Browser]:
    browser = Browser(handed)
    yield browser
    await browser.http.close()


@pytest.fixture
async def cells(browser: Browser, name: str) -> Cells:
    return await Cells.open(browser, name)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_kernel_holds_nothing_of_the_servers(handed: Handed, cells: Cells) -> None:
    [zygote] = children(handed.process.pid)
    pid = await cells.pid()
    assert children(zygote).count(pid) == 1
    backwards = handed.hub.server_token[::-1]
    found = json.loads(
        await cells.run(f"""
import json, os, re, sys
token = {backwards!r}[::-1].encode()
hits = []
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if " r" in line and "[v" not in line:
            try:
                memory.seek(low)
                content = memory.read(high - low)
            except (OSError, ValueError, OverflowError):
                continue
            # the literal above and its copies are not the server's
            hits += [line for found in re.finditer(re.escape(token[:20]), content)][:1]
held = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{{fd}}")]
listening = [line.split()[9] for table in ("tcp", "tcp6") for line in open(f"/proc/self/net/{{table}}")
             if line.split()[3] == "0A"]
del token
print(json.dumps({{
    "environment": [name for name in os.environ if "TOKEN" in name or name.endswith("_FD")],
    "listening": [name for name in held if name.removeprefix("socket:[").rstrip("]") in listening],
    "modules": [name for name in ("duckdb", "pandas") if name in sys.modules],
}}))
""")
    )
    assert found == {"environment": [], "listening": [], "modules": []}
    if os.geteuid() != 0:  # root reads everything; that is why a confined notebook never runs as root
        peek = "open('/proc/{}/{}', 'rb').read()"
        for what in ("environ", "mem"):
            assert "PermissionError" in await cells.run(peek.format(zygote, what))
            assert "PermissionError" in await cells.run(peek.format(handed.process.pid, what))


def test_started_alone_it_leaves_no_secret_in_its_environment(server: Server) -> None:
    """As a container starts it: with the secrets in its environment, which kernels that are forked would show."""
    for pid in (server.process.pid, *children(server.process.pid)):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            continue
        assert b"JUPYTERHUB_USER=alice" in environment
        assert server.hub.server_token.encode() not in environment


async def test_an_interrupt_stops_the_cell_and_what_it_started_and_nothing_else(cells: Cells) -> None:
    pid = await cells.pid()
    await cells.start(
        "import subprocess, time; print('asleep', subprocess.Popen(['sleep', '60']).pid, 'too'); time.sleep(60)"
    )
    await cells.until_printed("too")
    assert (await cells.page.post("api/kernel/interrupt", {}))[0] == 200
    said = await cells.finished()
    assert "interruption" in said
    await eventually(lambda: ended(int(said.split()[1])))
    assert await cells.pid() == pid


async def test_a_restart_gives_a_new_kernel(handed: Handed, browser: Browser, cells: Cells) -> None:
    before = await cells.pid()
    assert (await cells.page.post("api/kernel/restart_session", {}))[0] == 200
    await eventually(lambda: not Path(f"/proc/{before}").exists())
    again = await Cells.open(browser, cells.page.name)
    assert await again.pid() != before


async def test_threads_processes_and_pools_work_in_cells(cells: Cells) -> None:
    found = await cells.run("""
import concurrent.futures, multiprocessing, subprocess, sys, threading
import marimo as mo
said = []
thread = mo.Thread(target=lambda: said.append("thread"))
thread.start(); thread.join()
said.append(subprocess.run([sys.executable, "-c", "print('program')"], capture_output=True, text=True).stdout.strip())
with concurrent.futures.ProcessPoolExecutor(2) as pool:
    said.append(str(sum(pool.map(abs, [-1, -2]))))
with multiprocessing.get_context("fork").Pool(2) as pool:
    said.append(str(sum(pool.map(abs, [-3, -4]))))
print(*said, multiprocessing.get_start_method())
""")
    assert found == "thread program 3 7 spawn"


async def test_everything_that_is_printed_reaches_the_page(cells: Cells) -> None:
    found = await cells.run("""
import os, subprocess, sys
print("one", flush=True)
print("two", file=sys.stderr, flush=True)
os.write(1, b"three\\n")
subprocess.run(["echo", "four"])
import time; time.sleep(0.3)
""")
    assert sorted(found.split()) == ["four", "one", "three", "two"]


async def test_input_asks_the_page(cells: Cells) -> None:
    await cells.start("print('hello', input('who? '))")
    await cells.until_printed("who?")
    assert (await cells.page.post("api/kernel/stdin", {"text": "world"}))[0] == 200
    assert "hello world" in await cells.finished()


async def test_big_values_and_outputs_come_through_whole(cells: Cells) -> None:
    """More than the sockets hold, in both directions."""
    big = "x" * 3_000_000
    assert await cells.run(f"text = {big!r}; print(len(text))") == "3000000"
    await cells.start("import marimo as mo; mo.plain_text('y' * 2_000_000)")
    while True:
        output = (await cells.page.until("cell-op")).get("output") or {}
        if "y" in str(output.get("data")):
            assert str(output["data"]).count("y") >= 2_000_000
            return


async def test_a_profiles_python_path_counts_though_the_server_was_loaded_before(cells: Cells) -> None:
    assert await cells.run("import of_the_profile; print(of_the_profile.answer)") == "42"


async def test_duckdb_keeps_to_the_servers_memory_and_spills_to_its_temp_folder(handed: Handed, cells: Cells) -> None:
    settings = "SELECT current_setting('memory_limit'), current_setting('temp_directory')"
    found = await cells.run(f"""
import duckdb
for connection in (duckdb, duckdb.connect(), duckdb.connect("own.db")):
    print(*connection.execute({settings!r}).fetchone())
print(duckdb.connect(config={{"memory_limit": "100MiB"}}).execute({settings!r}).fetchone()[0])
""")
    *rows, chosen = found.splitlines()
    assert [row.split(" /")[0] for row in rows] == ["614.3 MiB"] * 3  # 60 % of 1 GiB
    folders = {row.rpartition(" ")[2] for row in rows}
    assert len(folders) == 3 and all(folder.startswith(f"{handed.root}/tmp/duckdb-") for folder in folders)
    assert chosen == "100.0 MiB"
    found = await cells.run("""
import duckdb, os
con = duckdb.connect("own.db")
con.execute("SET memory_limit = '100MB'; SET threads = 2; SET preserve_insertion_order = false")
con.execute("CREATE OR REPLACE TEMP TABLE t AS SELECT hash(range) AS h, range::VARCHAR || repeat('x', 60) AS s "
            "FROM range(1_500_000) ORDER BY h")
print(con.execute("SELECT count(*) FROM t").fetchone()[0], os.path.isdir(con.execute(
    "SELECT current_setting('temp_directory')").fetchone()[0]))
con.close()
""")
    assert found.endswith("1500000 True")


async def banner(cells: Cells) -> str:
    return str((await cells.page.until("banner"))["description"])


async def test_the_page_says_which_limit_ended_its_kernel(handed: Handed, browser: Browser, cells: Cells) -> None:
    other = await Cells.open(browser, f"{cells.page.name}_2")
    await other.pid()
    pid = await cells.pid()
    handed.tell(kind="memory", pid=pid, pids=[pid], size=900 << 20)
    os.kill(pid, signal.SIGKILL)
    text = await banner(cells)
    assert cells.page.name in text and "memory" in text and "900 MB" in text
    assert await other.run("print('goes on')") == "goes on"


async def test_the_guards_word_may_come_after_the_end(handed: Handed, cells: Cells) -> None:
    pid = await cells.pid()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    handed.tell(kind="memory", pid=pid, pids=[pid], size=900 << 20)
    assert "900 MB" in await banner(cells)


async def test_a_limit_that_names_no_kernel_is_told_in_all_pages(
    handed: Handed, browser: Browser, cells: Cells
) -> None:
    other = await Cells.open(browser, f"{cells.page.name}_2")
    handed.tell(kind="memory", pid=None, pids=[])
    assert "memory" in await banner(cells)
    assert "memory" in await banner(other)


@pytest.mark.parametrize(("code", "said"), [("os._exit(3)", "exit status 3"), ("os.kill(os.getpid(), 11)", "SIGSEGV")])
async def test_a_kernel_that_ended_otherwise_is_told_as_well(cells: Cells, code: str, said: str) -> None:
    await cells.start(f"import os; {code}")
    text = await banner(cells)
    assert said in text and "Run the notebook again" in text


async def test_without_the_zygote_kernels_start_as_well(handed: Handed, browser: Browser, cells: Cells) -> None:
    """A notebook may kill it: its kernels end with it, and the next one comes from a new program."""
    [zygote] = children(handed.process.pid)
    pid = await cells.pid()
    os.kill(zygote, signal.SIGKILL)
    await eventually(lambda: ended(pid))
    again = await Cells.open(browser, f"{cells.page.name}_2")
    assert await again.run("import os; print([n for n in os.environ if 'TOKEN' in n])") == "[]"
    [new] = children(handed.process.pid)
    assert await again.pid() in children(new)


async def test_the_end_of_the_launcher_is_the_end_of_its_kernels(handed: Handed, cells: Cells) -> None:
    [zygote] = children(handed.process.pid)
    pid = await cells.pid()
    handed.process.kill()
    handed.process.wait()
    await eventually(lambda: not Path(f"/proc/{zygote}").exists() and not Path(f"/proc/{pid}").exists())
