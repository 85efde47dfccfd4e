"""Starting notebook servers: our confined warm ones against plain `marimo edit`, by JupyterHub's own local spawner.

Both run under a real hub behind the same proxy in the same run, in turns. A start is timed inside the hub, from the
call of `Spawner.start` until the server answers HTTP. Memory is the proportional set size of everything that servers
need: for ours the spawn server, the guards, the launchers and what kernels are forked from. What the system's kernel
itself holds for a confined process (Landlock's rules) is in no process's memory, so it is not in these figures.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import start as opening
from benchmarks.common import emit, note, quick
from benchmarks.spawn_hubs import OurHub, SpawnHub, alive, make_hubs
from tests.hub import Person
from tests.spawners.escape.notebook import NotebookPage

ROUNDS = 1 if quick() else 10
IDLE = (1, 3) if quick() else (1, 10, 50)
OPEN = IDLE[1]
CROWD = 50
OPENINGS = 1 if quick() else 6


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of these processes together, in MiB."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it ended
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def first_cell(page: NotebookPage) -> float:
    """Seconds from opening the page's WebSocket to the output of the first cell."""
    began = time.monotonic()
    page.connect()
    page.first_output()
    return time.monotonic() - began


def measure_starts(hubs: tuple[SpawnHub, ...]) -> dict[SpawnHub, tuple[list[float], list[float]]]:
    """(start, first cell) of each hub, in turns. The browser's sign-in lies between the two and counts in neither."""
    found: dict[SpawnHub, tuple[list[float], list[float]]] = {hub: ([], []) for hub in hubs}
    for number in range(ROUNDS + 1):
        for hub in hubs:
            name = f"turn{number}"
            hub.add(name)
            seconds = hub.spawn(name)
            page = hub.page(name)
            cell = first_cell(page)
            page.close()
            hub.end(name)
            if number:  # the first turn fills caches
                found[hub][0].append(seconds)
                found[hub][1].append(cell)
        note(
            f"start {number} of {ROUNDS}: "
            + ", ".join(
                f"{hub.folder.name} {s[-1]:.3f} s and {c[-1]:.3f} s to a cell" for hub, (s, c) in found.items() if s
            )
        )
    return found


def measure_memory(hub: SpawnHub) -> tuple[dict[int, float], float]:
    """MiB per server: {idle servers: MiB each}, and with a notebook open in each of OPEN servers."""
    idle: dict[int, float] = {}
    names: list[str] = []
    opened = 0.0
    for count in IDLE:
        new = [f"idle{number}" for number in range(len(names), count)]
        for name in new:
            hub.add(name)
        hub.spawn_all(new)
        names += new
        time.sleep(1.0)
        idle[count] = pss_mb(hub.server_processes()) / count
        if count == OPEN:
            pages = [hub.page(name) for name in names]
            for page in pages:
                first_cell(page)
            opened = pss_mb(hub.server_processes()) / count
            for page in pages:
                page.close()
    hub.end_all(names)
    return idle, opened


def measure_crowd(hub: SpawnHub) -> tuple[float, float]:
    """(start, stop) of CROWD servers at once. Raises AssertionError if a process of them is left."""
    names = [f"crowd{number}" for number in range(CROWD)]
    for name in names:
        hub.add(name)
    before = set(hub.server_processes())
    started = hub.spawn_all(names)
    running = [pid for pid in hub.server_processes() if pid not in before]
    assert len(running) >= CROWD, f"only {len(running)} processes run"
    stopped = hub.end_all(names)
    left = [pid for pid in running if alive(pid)]
    assert not left, f"{len(left)} of {len(running)} processes are left after all servers were stopped: {left[:10]}"
    note(f"{CROWD} servers were {len(running)} processes; none is left")
    return started, stopped


def measure_clicks(hub: OurHub) -> tuple[list[float], float]:
    """Seconds from the click on Open, no server running, to the first cell's output in Chromium.

    Returns (with the snapshot in the cache, with a warehouse that has changed since).
    """
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        raise SystemExit("Chromium is not installed (Debian: apt install chromium)")
    ann = Person(hub, "ann")
    assert ann.sign_in().ok
    assert ann.api("POST", "/notebooks", {"name": opening.NOTEBOOK, "template": "blank"}).status_code == 201
    found = []
    with sync_playwright() as playwright:
        browser, context, page = opening.signed_in(playwright, executable, ann)
        for number in range(OPENINGS + 2):
            last = number == OPENINGS + 1
            if last:
                change_warehouse(hub)
            html, output, tab = opening.open_once(context, page)
            found.append(output)
            kind = "snapshot to be built" if last else "snapshot there" if number else "nothing there, not counted"
            note(f"click {number} ({kind}): page after {html:.2f} s, first output after {output:.2f} s")
            tab.close()
            opening.stop_server(ann, page)
        browser.close()
    return found[1:-1], found[-1]


def change_warehouse(hub: OurHub) -> None:
    """Commit something, in a process that ends and so leaves the warehouse unlocked."""
    code = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE TABLE benchmark AS SELECT 1 AS one')"
    subprocess.run([sys.executable, "-c", code, str(hub.data / "sample_warehouse.duckdb")], check=True)


def main() -> None:
    """Run the benchmark; prints the figures."""
    with tempfile.TemporaryDirectory(prefix="marimohub-bench-") as name:
        ours, plain = make_hubs(Path(name))
        try:
            for hub in (ours, plain):
                hub.start()
            starts = measure_starts((ours, plain))
            clicks, built = measure_clicks(ours)
            idle, opened = measure_memory(ours)
            crowd_start, crowd_stop = measure_crowd(ours)
            plain_idle, plain_opened = measure_memory(plain)
        finally:
            for hub in (ours, plain):
                hub.stop()
    for count in IDLE:
        emit(f"pss_mb_idle_{count}", idle[count])
        emit(f"plain_pss_mb_idle_{count}", plain_idle[count])
    emit(f"pss_mb_notebook_{OPEN}", opened)
    emit(f"plain_pss_mb_notebook_{OPEN}", plain_opened)
    emit("notebook_pss_vs_plain", opened / plain_opened)
    start, cell = (statistics.median(times) for times in starts[ours])
    plain_start, plain_cell = (statistics.median(times) for times in starts[plain])
    emit("start_worst_s", max(starts[ours][0]))
    emit("plain_start_s", plain_start)
    emit("first_cell_s", start + cell)
    emit("plain_first_cell_s", plain_start + plain_cell)
    emit("click_to_cell_built_s", built)
    emit("stop_50_s", crowd_stop)
    emit("start_speedup", plain_start / start)
    emit("start_s", start)
    emit("click_to_cell_s", statistics.median(clicks))
    emit("pss_vs_plain", idle[OPEN] / plain_idle[OPEN])
    emit("start_50_s", crowd_start)


if __name__ == "__main__":
    main()
