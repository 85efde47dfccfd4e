"""Local edits that were never published are not lost, whatever the hub answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from marimohub.singleuser import sync as sync_module
from marimohub.singleuser.files import NotebookFolder
from marimohub.singleuser.hubapi import HubApi
from marimohub.singleuser.settings import Settings
from marimohub.singleuser.sync import CannotOpen, NotebookSync
from tests.singleuser.standin import StandInHub, sha
from tests.singleuser.test_files import KINDS, put

pytestmark = pytest.mark.unit


class Editor:
    """Takes down what marimo is told."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.told: list[str] = []

    def close_sessions(self, path: Path) -> int:
        self.closed.append(path.name)
        return 1

    def tell(self, path: Path, title: str, text: str, *, lasting: bool, danger: bool) -> None:
        self.told.append(f"{title}: {text}")


class Desk:
    """A hub, a private folder and the sync between them; `restart` is a new process on the same folder."""

    def __init__(self, hub: StandInHub, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.hub, self.folder = hub, folder
        self.restart()

    def restart(self) -> None:
        settings = Settings(
            user="alice",
            server_name="",
            prefix="/user/alice/",
            host="",
            port=0,
            api_url=self.hub.url + "api",
            activity_url="",
            public_url="",
            folder=self.folder,
            workspace="default",
            heartbeat_interval=60,
            activity_interval=60,
            api_token=self.hub.server_token,
        )
        self.api = HubApi(settings)
        self.editor = Editor()
        self.files = NotebookFolder(self.folder)
        self.sync = NotebookSync(self.api, self.files, self.editor)

    def local(self) -> str:
        return (self.folder / "n.py").read_text()

    def edit(self, text: str) -> None:
        (self.folder / "n.py").write_text(text)

    def backups(self) -> list[str]:
        return [path.read_text() for path in (self.folder / ".marimohub" / "unpublished").glob("*.py")]

    def drafts(self) -> list[str]:
        return [text for _, text in self.hub.drafts.values()]


@pytest.fixture
async def desk(hub: StandInHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(sync_module, "RETRY_FIRST", 0.05)
    desk = Desk(hub, folder)
    yield desk
    await desk.sync.close(0.1)
    await desk.api.close()


async def test_open_pulls_and_an_unchanged_text_is_left_alone(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    assert desk.local() == "one"
    assert desk.editor.closed == ["n.py"]
    await desk.sync.open("n")
    assert desk.editor.closed == ["n.py"]


async def test_unpublished_edits_are_published_first_if_nobody_changed_the_notebook(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("two")
    desk.restart()
    await desk.sync.open("n")
    assert desk.hub.notebooks["n"].text == "two" == desk.local()
    assert not desk.drafts() and not desk.editor.closed


async def test_unpublished_edits_become_a_draft_if_somebody_changed_the_notebook(desk: Desk) -> None:
    entry = desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("mine")
    entry.text, entry.fence = "theirs", 3
    desk.restart()
    await desk.sync.open("n")
    assert desk.drafts() == ["mine"]
    assert desk.local() == "theirs" == entry.text
    assert desk.editor.closed == ["n.py"]


async def test_what_the_hub_cannot_take_is_kept_in_the_private_folder(desk: Desk) -> None:
    entry = desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("mine")
    entry.text = "theirs"
    desk.hub.keep_drafts = False
    desk.restart()
    await desk.sync.open("n")
    assert desk.backups() == ["mine"]
    assert desk.local() == "theirs"


async def test_a_private_file_of_unknown_origin_is_never_overwritten_unseen(desk: Desk) -> None:
    desk.edit("found here")
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    assert desk.drafts() == ["found here"] and desk.local() == "one"


async def test_a_broken_state_file_loses_nothing(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("mine")
    (desk.folder / ".marimohub" / "notebooks.json").write_text('{"notebooks": [}')
    desk.restart()
    await desk.sync.open("n")
    assert desk.drafts() == ["mine"] and desk.local() == "one"


async def test_a_file_that_is_no_text_is_kept_as_it_is(desk: Desk) -> None:
    desk.hub.add("n", "one")
    (desk.folder / "n.py").write_bytes(b"\xff\xfe")
    await desk.sync.open("n")
    kept = list((desk.folder / ".marimohub" / "unpublished").glob("*.py"))
    assert [path.read_bytes() for path in kept] == [b"\xff\xfe"]
    assert desk.local() == "one"


async def test_without_the_lock_edits_are_offered_as_a_draft_once_and_stay_on_disk(desk: Desk) -> None:
    entry = desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("mine")
    entry.holder = "bob"
    desk.restart()
    for _ in range(2):
        with pytest.raises(CannotOpen) as caught:
            await desk.sync.open("n")
        assert caught.value.status == 409
    assert desk.drafts() == ["mine"] and desk.local() == "mine"


async def test_open_with_a_dead_hub_needs_an_earlier_open(desk: Desk) -> None:
    desk.hub.add("n", "one")
    desk.hub.stop()
    with pytest.raises(CannotOpen) as caught:
        await desk.sync.open("n")
    assert caught.value.status == 503
    desk.hub.start()
    await desk.sync.open("n")
    desk.hub.stop()
    desk.restart()
    await desk.sync.open("n")
    assert desk.local() == "one"


async def test_a_save_while_the_hub_is_dead_arrives_later_and_is_told(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.hub.stop()
    desk.edit("two")
    assert (await desk.sync.publish("n")).state == "deferred"
    desk.edit("three")
    assert (await desk.sync.publish("n")).state == "deferred"
    assert len([text for text in desk.editor.told if text.startswith("Saved, not yet")]) == 1
    desk.hub.start()
    for _ in range(100):
        if desk.hub.notebooks["n"].text == "three":
            break
        await asyncio.sleep(0.05)
    assert desk.hub.notebooks["n"].text == "three"


async def test_an_answer_that_got_lost_is_no_conflict(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.hub.lose_answers = 1
    desk.edit("two")
    states = [(await desk.sync.publish("n")).state]
    states.append((await desk.sync.publish("n")).state)
    assert "refused" not in states and desk.hub.notebooks["n"].text == "two"
    desk.edit("three")
    assert (await desk.sync.publish("n")).state == "published"


async def test_a_save_after_the_lock_was_lost_is_refused_with_the_hubs_reason(desk: Desk) -> None:
    entry = desk.hub.add("n", "one")
    await desk.sync.open("n")
    entry.holder, entry.fence = "bob", 2
    desk.edit("mine")
    saved = await desk.sync.publish("n")
    assert saved.state == "refused" and "revoked by an administrator" in saved.message
    assert "draft" in saved.message and desk.drafts() == ["mine"] and desk.local() == "mine"


async def test_a_changed_base_is_refused_and_nothing_is_overwritten(desk: Desk) -> None:
    entry = desk.hub.add("n", "one")
    await desk.sync.open("n")
    entry.text = "theirs"
    desk.edit("mine")
    assert (await desk.sync.publish("n")).state == "refused"
    assert entry.text == "theirs" and desk.drafts() == ["mine"]


async def test_closing_publishes_what_is_left(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.edit("last words")
    await desk.sync.close(2)
    assert desk.hub.notebooks["n"].text == "last words"


async def test_the_remembered_base_survives_a_restart(desk: Desk) -> None:
    desk.hub.add("n", "one")
    await desk.sync.open("n")
    desk.restart()
    known = desk.files.known("n")
    assert known is not None and known.base == sha("one") and known.fence == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_notebook_is_never_published_and_is_replaced_at_the_next_open(desk: Desk, kind: str) -> None:
    desk.hub.add("n", "theirs")
    await desk.sync.open("n")
    put(desk.folder / "n.py", kind)
    async with asyncio.timeout(2):
        for _ in range(2):
            saved = await desk.sync.publish("n")
            assert saved.state == "refused" and "cannot be published: it is" in saved.message
        await desk.sync.open("n")
    assert desk.local() == "theirs" == desk.hub.notebooks["n"].text
    assert not (desk.folder / "n.py").is_symlink() and not desk.hub.accepted and not desk.hub.drafts


async def test_a_file_that_is_no_notebook_is_told_once_not_at_every_look(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "WATCH_EVERY", 0.02)
    desk.hub.add("n", "theirs")
    await desk.sync.open("n")
    watching = asyncio.create_task(desk.sync.watch("n"))
    put(desk.folder / "n.py", "pipe")
    await asyncio.sleep(0.3)
    watching.cancel()
    assert len(desk.editor.told) == 1


async def test_a_pipe_is_not_gone_on_with_while_the_hub_is_dead(desk: Desk) -> None:
    desk.hub.add("n", "theirs")
    await desk.sync.open("n")
    put(desk.folder / "n.py", "pipe")
    desk.hub.stop()
    async with asyncio.timeout(5):
        with pytest.raises(CannotOpen, match="tries again"):
            await desk.sync.open("n")
