"""How long people wait, and what it costs: start of the hub, opening a notebook, memory.

Each start is a second one (data folder and sample warehouse exist), timed from the creation of the process until the
sign-in page is served through the proxy. Plain JupyterHub with its default proxy starts in turns with ours, so that
both meet the same machine. `open_to_page_s` is the time from the click on Open, no server running, until the first
output of the notebook is visible in Chromium.

The peer needs npm (it installs configurable-http-proxy below .venv/); without it there is no comparison and the exit
status is 1.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import descendants, emit, note, pss_mb, quick
from tests.conftest import CHROMIUM_FLAGS
from tests.hub import Hub, Person, free_port

ROOT = Path(__file__).parent.parent
NODE_FOLDER = ROOT / ".venv" / "benchmark-node"
STARTS = 3 if quick() else 9
OPENINGS = 2 if quick() else 5
NOTEBOOK = "first_look"


class PlainJupyterHub(Hub):
    """JupyterHub as it comes, with its own proxy and a process spawner."""

    def __init__(self, folder: Path, proxy_command: Path) -> None:
        super().__init__(
            folder,
            f"""
c.JupyterHub.ip = "127.0.0.1"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.proxy_class = "configurable-http-proxy"
c.ConfigurableHTTPProxy.command = [{str(proxy_command)!r}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{free_port()}"
c.Authenticator.allow_all = True
""",
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jupyterhub", "-f", str(self.config_path), *arguments]


@dataclass
class Opened:
    """What opening a notebook took, in seconds, and what ran then, in MiB."""

    html: list[float] = field(default_factory=list)
    output: list[float] = field(default_factory=list)
    hub_mb: float = 0.0
    proxy_mb: float = 0.0
    server_mb: float = 0.0
    server_alone_mb: float = 0.0


def proxy_command() -> Path | None:
    """configurable-http-proxy, installed once; None if there is no npm."""
    command = NODE_FOLDER / "node_modules" / ".bin" / "configurable-http-proxy"
    if not command.exists():
        if shutil.which("npm") is None or shutil.which("node") is None:
            return None
        NODE_FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent", "configurable-http-proxy@5"],
            cwd=NODE_FOLDER,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return command


def first_start(hub: Hub) -> float:
    """Start once, so that all later starts are second ones."""
    seconds = hub.start()
    if not isinstance(hub, PlainJupyterHub):
        Person(hub, "ann").set_up()
    hub.stop()
    return seconds


def server_pid(hub: Hub) -> int:
    """The process of the only running single-user server."""
    assert hub.process is not None
    for pid in descendants(hub.process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"marimohub.singleuser" in command:
            return pid
    raise AssertionError("no notebook server runs")


def proxy_pid(hub: Hub) -> int:
    """The Envoy of this hub."""
    return int(json.loads((hub.data / "proxy" / "envoy.json").read_text())["pid"])


def measure_opening(hub: Hub) -> Opened:
    """Open a notebook in Chromium several times, each time with no server running."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        raise SystemExit("Chromium is not installed (Debian: apt install chromium)")
    found = Opened()
    ann = Person(hub, "ann")
    assert ann.sign_in().ok
    assert ann.api("POST", "/notebooks", {"name": NOTEBOOK, "template": "data_exploration"}).status_code == 201
    with sync_playwright() as playwright:
        browser, context, page = signed_in(playwright, executable, ann)
        for number in range(OPENINGS):
            html, output, tab = open_once(context, page)
            found.html.append(html)
            found.output.append(output)
            note(f"opening {number + 1} of {OPENINGS}: page after {html:.2f} s, first output after {output:.2f} s")
            if number == OPENINGS - 1:
                read_memory(hub, found)
            tab.close()
            stop_server(ann, page)
        browser.close()
    return found


def signed_in(playwright: Any, executable: str, person: Person) -> tuple[Any, Any, Any]:
    """A browser, its context, and the Notebooks page of somebody who has just signed in."""
    browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{person.hub.url}/hub/login")
    page.locator("[name=username]").fill(person.name)
    page.locator("[name=password]").fill(person.password)
    page.locator("form [type=submit]").first.click()
    page.wait_for_url("**/hub/notebooks")
    return browser, context, page


def open_once(context: Any, page: Any) -> tuple[float, float, Any]:
    """Click Open; returns seconds to marimo's HTML and to the first output, and the new tab."""
    served: list[float] = []

    def on_response(response: Any) -> None:
        page_of_notebook = "/user/" in response.url and f"file={NOTEBOOK}.py" in response.url
        if page_of_notebook and response.status == 200 and response.request.is_navigation_request():
            served.append(time.monotonic())

    context.on("response", on_response)
    button = page.locator(f"tr[data-name={NOTEBOOK}] button.btn[data-action=open]")
    button.wait_for()
    began = time.monotonic()
    with context.expect_page() as opened:
        button.click()
    tab = opened.value
    tab.locator(".output-area .markdown").first.wait_for(timeout=60_000)
    done = time.monotonic()
    context.remove_listener("response", on_response)
    return served[0] - began, done - began, tab


def stop_server(person: Person, page: Any) -> None:
    """Release the lock and end the server, so that the next opening starts from nothing."""
    assert person.api("POST", f"/notebooks/{NOTEBOOK}/release").ok
    person.api("DELETE", f"/users/{person.name}/server")
    deadline = time.monotonic() + 30
    while person.api("GET", f"/users/{person.name}").json()["servers"]:
        assert time.monotonic() < deadline, "the server does not stop"
        time.sleep(0.1)
    page.reload()


def read_memory(hub: Hub, found: Opened) -> None:
    assert hub.process is not None
    server = server_pid(hub)
    found.hub_mb = pss_mb(hub.process.pid, children=False)
    found.proxy_mb = pss_mb(proxy_pid(hub), children=True)
    found.server_mb = pss_mb(server, children=True)
    found.server_alone_mb = pss_mb(server, children=False)


def main() -> int:
    """Run the benchmark; returns the exit status."""
    command = proxy_command()
    with tempfile.TemporaryDirectory(prefix="marimohub-bench-") as name:
        folders = {kind: Path(name) / kind for kind in ("ours", "theirs")}
        for folder in folders.values():
            folder.mkdir()
        hub = Hub(folders["ours"])
        peer = PlainJupyterHub(folders["theirs"], command) if command is not None else None
        hubs: list[Hub] = [hub, *([peer] if peer is not None else [])]
        ours: list[float] = []
        theirs: list[float] = []
        try:
            note(f"first start, with the sample warehouse built: {first_start(hub):.2f} s")
            if peer is not None:
                first_start(peer)
            for number in range(STARTS):
                for one, times in zip(hubs, (ours, theirs), strict=False):
                    times.append(one.start())
                    one.stop()
                rival = f", JupyterHub {theirs[-1]:.2f} s" if theirs else ""
                note(f"start {number + 1} of {STARTS}: {ours[-1]:.2f} s{rival}")
            hub.start()
            opened = measure_opening(hub)
        finally:
            for one in hubs:
                one.stop()
    emit("hub_start_worst_s", max(ours))
    emit("open_to_html_s", statistics.median(opened.html))
    emit("server_alone_pss_mb", opened.server_alone_mb)
    emit("hub_start_s", statistics.median(ours))
    if theirs:
        emit("hub_start_vs_jupyterhub", statistics.median(ours) / statistics.median(theirs))
    emit("open_to_page_s", statistics.median(opened.output))
    emit("hub_pss_mb", opened.hub_mb)
    emit("proxy_pss_mb", opened.proxy_mb)
    emit("server_pss_mb", opened.server_mb)
    if not theirs:
        note("No comparison with JupyterHub: its proxy needs npm and node, which are not installed.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
