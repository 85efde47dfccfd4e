"""The real launcher with a real marimo: pull on open, publish on save, presence, and what kernels can see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from tests.singleuser.conftest import NAVIGATION, Browser
from tests.singleuser.server import NOTEBOOK, Server
from tests.singleuser.standin import StandInHub, sha


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.05)


async def test_the_hubs_text_is_there_before_marimo_reads_it(server: Server, alice: Browser, name: str) -> None:
    page = await alice.open(name, NOTEBOOK.replace("6 * 7", "'from the hub'"))
    await page.connect()
    assert "from the hub" in page.messages[-1]["codes"][0]
    assert (server.folder / f"{name}.py").read_text() == server.hub.notebooks[name].text


async def test_a_save_is_in_the_hub_before_its_answer(server: Server, alice: Browser, name: str) -> None:
    page = await alice.open(name)
    await page.connect()
    status, text = await page.save("answer = 'saved'")
    assert status == 200 and "answer = 'saved'" in text
    assert server.hub.notebooks[name].text == (server.folder / f"{name}.py").read_text()
    assert "answer = 'saved'" in server.hub.notebooks[name].text


async def test_two_saves_at_once_keep_their_order(server: Server, alice: Browser, name: str) -> None:
    page = await alice.open(name)
    await page.connect()
    answers = await asyncio.gather(*(page.save(f"answer = {n}") for n in range(5)))
    assert [status for status, _ in answers] == [200] * 5
    assert server.hub.notebooks[name].text == (server.folder / f"{name}.py").read_text()
    assert name not in {draft for draft, _ in server.hub.drafts.values()}


async def test_a_refused_save_is_an_error_with_the_reason_and_the_text_is_kept(
    server: Server, alice: Browser, name: str
) -> None:
    page = await alice.open(name)
    await page.connect()
    entry = server.hub.notebooks[name]
    entry.holder, entry.fence = "bob", 2
    before = entry.text
    status, text = await page.save("answer = 'too late'")
    assert status == 409
    detail = json.loads(text)["detail"]
    assert "revoked by an administrator" in detail and "draft" in detail
    assert entry.text == before
    assert [draft for key, draft in server.hub.drafts.values() if key == name and "too late" in draft]
    assert "too late" in (server.folder / f"{name}.py").read_text()
    count = len(server.hub.drafts)
    assert (await page.save("answer = 'too late'"))[0] == 409  # asked again, told again
    assert len(server.hub.drafts) == count  # but not kept twice


async def test_a_lost_lock_shows_a_banner_and_ends_the_heartbeat(server: Server, alice: Browser, name: str) -> None:
    page = await alice.open(name)
    await page.connect()
    await eventually(lambda: (name, 1) in server.hub.heartbeats)
    server.hub.notebooks[name].holder = None
    banner = await page.until("banner")
    assert "revoked" in banner["description"] and banner["variant"] == "danger"
    count = len(server.hub.heartbeats)
    await asyncio.sleep(0.5)
    assert len([beat for beat in server.hub.heartbeats[count:] if beat[0] == name]) == 0
    # Opening it again from the Notebooks page goes on.
    server.hub.notebooks[name].holder, server.hub.notebooks[name].fence = "alice", 7
    await alice.open(name)
    await eventually(lambda: (name, 7) in server.hub.heartbeats)


async def test_heartbeats_start_at_once_and_stop_when_the_last_page_closes(
    server: Server, alice: Browser, name: str
) -> None:
    page = await alice.open(name)
    await asyncio.sleep(0.3)
    assert name not in dict(server.hub.heartbeats)  # a page without a socket is nobody
    await page.connect()
    await eventually(lambda: len([b for b in server.hub.heartbeats if b[0] == name]) >= 3)
    await page.socket.close()
    await asyncio.sleep(0.3)
    count = len([b for b in server.hub.heartbeats if b[0] == name])
    await asyncio.sleep(0.5)
    assert len([b for b in server.hub.heartbeats if b[0] == name]) == count
    assert server.hub.activities[0]["servers"][""]["last_activity"].endswith("Z")


async def test_the_event_stream_counts_as_presence_too(server: Server, alice: Browser, name: str) -> None:
    page = await alice.open(name)
    headers = {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors", "Marimo-Server-Token": page.token}
    url = page.socket_url("sse", mh_token="")
    async with alice.http.get(url, headers=headers, timeout=aiohttp.ClientTimeout(10)) as stream:
        assert stream.status == 200
        await eventually(lambda: name in dict(server.hub.heartbeats))


async def test_without_the_lock_the_page_says_where_to_open_it(server: Server, alice: Browser, name: str) -> None:
    server.hub.add(name, NOTEBOOK, holder="bob")
    status, text = await alice.get(f"?file={name}.py")
    assert status == 409 and "Open “" in text and "/hub/notebooks" in text
    assert not (server.folder / f"{name}.py").exists()


async def test_a_notebook_that_the_hub_does_not_know_is_a_404_with_the_way_back(
    server: Server, alice: Browser, name: str
) -> None:
    status, text = await alice.get(f"?file={name}.py")
    assert status == 404 and "no notebook" in text and "/hub/notebooks" in text


async def test_a_changed_text_ends_the_stale_session_so_that_the_page_shows_it(
    server: Server, alice: Browser, name: str
) -> None:
    page = await alice.open(name)
    await page.connect()
    await page.socket.close()
    entry = server.hub.notebooks[name]
    entry.text = entry.text.replace("6 * 7", "'by bob'")  # while alice was away
    entry.fence = 5
    again = await alice.open(name)
    await again.connect()
    assert "by bob" in again.messages[-1]["codes"][0]
    assert "resumed" in again.messages[-1] and not again.messages[-1]["resumed"]


async def test_marimos_own_file_operations_cannot_go_behind_the_hubs_back(
    server: Server, alice: Browser, name: str
) -> None:
    page = await alice.open(name)
    await page.connect()
    path = str(server.folder / f"{name}.py")
    refused = [
        ("api/kernel/rename", {"filename": "other.py"}),
        ("api/kernel/copy", {"source": path, "destination": "other.py"}),
        ("api/files/delete", {"path": path}),
        ("api/files/move", {"path": path, "newPath": str(server.folder / "other.py")}),
        ("api/files/copy", {"path": path, "newPath": str(server.folder / "other.py")}),
    ]
    for operation, body in refused:
        status, text = await page.post(operation, body)
        assert status == 405 and "Notebooks page" in text, operation
    headers = {"Marimo-Server-Token": page.token, "Origin": alice.origin}
    for kind, file in (("notebook", "other"), ("file", "other.py")):
        form = aiohttp.FormData({"path": str(server.folder), "type": kind, "name": file}, default_to_multipart=True)
        async with alice.http.post(server.url + "api/files/create", data=form, headers=headers) as answer:
            assert answer.status == 405, (kind, await answer.text())
    assert not (server.folder / "other.py").exists() and Path(path).exists()
    # Everything else is the user's own business.
    form = aiohttp.FormData({"path": str(server.folder), "type": "file", "name": "data.csv"}, default_to_multipart=True)
    form.add_field("file", b"x" * 200_000, filename="data.csv")
    async with alice.http.post(server.url + "api/files/create", data=form, headers=headers) as answer:
        assert answer.status == 200 and (await answer.json())["success"]
    assert (server.folder / "data.csv").stat().st_size == 200_000
    status, text = await page.post("api/files/delete", {"path": str(server.folder / "data.csv")})
    assert status == 200 and not (server.folder / "data.csv").exists()


async def test_a_change_by_the_file_editor_or_a_terminal_is_published_too(
    server: Server, alice: Browser, name: str
) -> None:
    page = await alice.open(name)
    await page.connect()
    path = server.folder / f"{name}.py"
    text = NOTEBOOK.replace("6 * 7", "'by the file editor'")
    assert (await page.post("api/files/update", {"path": str(path), "contents": text}))[0] == 200
    assert server.hub.notebooks[name].text == text
    path.write_text(NOTEBOOK.replace("6 * 7", "'by vim'"))
    await eventually(lambda: "by vim" in server.hub.notebooks[name].text)


async def test_the_kernel_sees_the_snapshot_but_no_token(server: Server, alice: Browser, name: str) -> None:
    out = server.root / f"{name}.json"
    parent = (
        "    def peek(path):\n        try:\n            return open(path, 'rb').read().decode()\n"
        "        except OSError as error:\n            return type(error).__name__\n"
    )
    code = (
        f"    import os, json\n{parent}"
        f"    json.dump([dict(os.environ), peek('/proc/self/environ'), peek(f'/proc/{{os.getppid()}}/environ')],"
        f" open({str(out)!r}, 'w'))\n"
    )
    page = await alice.open(name, NOTEBOOK.replace("    answer = 6 * 7\n    answer\n", code))
    await page.connect()
    status, _ = await page.post("api/kernel/instantiate", {"objectIds": [], "values": [], "autoRun": True})
    assert status == 200
    await eventually(lambda: out.exists() and out.read_text().endswith("]"))
    environment, own, parents = json.loads(out.read_text())
    assert environment["MARIMOHUB_SNAPSHOT"] == str(server.root / "warehouse.duckdb")
    assert server.hub.server_token not in json.dumps(environment) + own
    if os.geteuid() != 0:  # root reads everything; the sandbox deals with that
        assert parents == "PermissionError"


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server and a hub of this module's own, for tests that end them; they run when a test begins."""
    hub = StandInHub()
    server = Server(hub, tmp_path_factory.mktemp("mortal"))
    yield server
    server.stop()
    hub.stop()


@pytest.fixture
def fresh(mortal: Server) -> Server:
    mortal.hub.start()
    mortal.start()
    return mortal


async def test_an_open_notebook_survives_a_dead_hub_and_the_save_arrives_when_it_is_back(
    fresh: Server, name: str
) -> None:
    alice = Browser(fresh)
    try:
        page = await alice.open(name)
        await page.connect()
        fresh.hub.stop()
        status, _ = await page.save("answer = 'while the hub was dead'")
        assert status == 200
        assert "while the hub was dead" in (fresh.folder / f"{name}.py").read_text()
        toast = await page.until("alert")
        assert "by itself" in toast["description"]
        assert (await alice.get(f"?file={name}.py"))[0] == 200  # a reload works too
        stranger = Browser(fresh)
        async with stranger.http.get(fresh.url, headers=NAVIGATION, allow_redirects=False) as answer:
            state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
        status, text = await stranger.get(f"oauth_callback?code=x&state={state}")
        assert status == 503 and "cannot check" in text
        await stranger.http.close()
        fresh.hub.start()
        await eventually(lambda: "while the hub was dead" in fresh.hub.notebooks[name].text)
        assert "latest text" in (await page.until("alert"))["description"]
        assert (await page.save("answer = 'after'"))[0] == 200
        assert "answer = 'after'" in fresh.hub.notebooks[name].text
        assert not fresh.hub.drafts
    finally:
        await alice.http.close()


async def test_sigterm_ends_the_kernels_and_leaves_with_0(fresh: Server, name: str) -> None:
    alice = Browser(fresh)
    try:
        page = await alice.open(name)
        await page.connect()
        children = Path(f"/proc/{fresh.process.pid}/task/{fresh.process.pid}/children").read_text().split()
        assert children
        assert fresh.stop() == 0
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    finally:
        await alice.http.close()
    assert "Traceback" not in fresh.log


async def test_edits_of_a_killed_server_are_published_at_the_next_open(fresh: Server, name: str) -> None:
    alice = Browser(fresh)
    try:
        page = await alice.open(name)
        await page.connect()
        fresh.hub.stop()
        assert (await page.save("answer = 'before the power cut'"))[0] == 200
        os.kill(fresh.process.pid, signal.SIGKILL)
        fresh.process.wait()
        fresh.hub.start()
        fresh.start()
        await alice.open(name)
        assert "before the power cut" in fresh.hub.notebooks[name].text
        assert sha(fresh.hub.notebooks[name].text) == sha((fresh.folder / f"{name}.py").read_text())
    finally:
        await alice.http.close()


def test_it_says_in_one_line_what_is_missing(hub: StandInHub, tmp_path: Path) -> None:
    server = Server(hub, tmp_path, extra={"MARIMOHUB_NOTEBOOK_DIR": ""})
    with pytest.raises(AssertionError, match="MARIMOHUB_NOTEBOOK_DIR is not set"):
        server.start()
    assert server.process.wait() == 1
    assert len(server.log.strip().splitlines()) == 1
