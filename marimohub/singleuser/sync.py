"""Keeps each notebook's private copy and the hub's text together, and never loses a text.

Opening pulls the hub's text before marimo reads the file; saving publishes what marimo wrote. The hub decides: it
takes a text only from the live lock holder (fence) and only if it was made from its present version (base). A text
it refuses is kept there as a draft. Whatever the hub could not take is kept in `.marimohub/unpublished/` before
the private copy is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from marimohub.singleuser.files import UNKNOWN_BASE, Known, NotANotebook, NotebookFolder, text_hash
from marimohub.singleuser.hubapi import HubApi, HubRefused, HubUnreachable, NotebookText

log = logging.getLogger("marimohub.singleuser")

RETRY_FIRST, RETRY_MOST = 1.0, 5.0  # seconds between tries to publish while the hub does not answer
WATCH_EVERY = 1.0  # seconds between looks for changes that came by no request (a terminal, code in a kernel)


class Editor(Protocol):
    """What the sync needs of marimo."""

    def close_sessions(self, path: Path) -> int:
        """End the sessions (kernels) that have this file open. Returns how many there were."""

    def tell(self, path: Path, title: str, text: str, *, lasting: bool, danger: bool) -> None:
        """Show a message in every page that has this file open: a toast, or a lasting banner."""


class CannotOpen(Exception):
    """The notebook cannot be opened; `title` and `message` are for the person who tried."""

    def __init__(self, status: int, title: str, message: str) -> None:
        super().__init__(message)
        self.status, self.title, self.message = status, title, message


@dataclass(frozen=True)
class Saved:
    """What became of a save. `message` is for the user when it was not published."""

    state: Literal["published", "unchanged", "deferred", "refused"]
    message: str = ""


class Notebook:
    """One notebook that was opened in this process. Its lock keeps saves in their order."""

    def __init__(self, name: str, known: Known) -> None:
        self.name = name
        self.known = known
        self.lock = asyncio.Lock()
        self.lost = ""  # why the lock is gone, empty while it is held
        self.reopened = asyncio.Event()  # set when the notebook was opened again after a loss
        self.stamp: tuple[int, int, int] | None = None
        self.refused: Saved | None = None  # the answer to the text that is on disk now, if it was a refusal
        self.retry: asyncio.Task[None] | None = None


class NotebookSync:
    """Pulls and publishes the notebooks of one private folder."""

    def __init__(self, hub: HubApi, folder: NotebookFolder, editor: Editor) -> None:
        self._hub, self._folder, self._editor = hub, folder, editor
        self._open: dict[str, Notebook] = {}

    def opened(self, name: str) -> Notebook | None:
        """The notebook, if it was opened since this process started."""
        return self._open.get(name)

    async def open(self, name: str) -> Notebook:
        """Bring the hub's text into the private folder. Raises CannotOpen."""
        notebook = self._open.get(name) or Notebook(name, self._folder.known(name) or Known())
        async with notebook.lock:
            try:
                await self._pull(notebook)
            except HubUnreachable as error:
                # A reload while the hub restarts goes on with the private copy: it is published afterwards.
                if notebook.known.fence is None or not await self._has_text(name):
                    log.warning("open %s: hub unreachable: %s", name, error)
                    raise CannotOpen(
                        503,
                        "The hub is restarting",
                        "The notebook cannot be loaded right now. This page tries again by itself.",
                    ) from error
                log.warning("open %s: hub unreachable, going on with the private copy: %s", name, error)
            except HubRefused as error:
                raise _cannot_open(name, error) from error
            self._open[name] = notebook
        if self._dirty(notebook):
            self._retry(notebook)
        return notebook

    async def publish(self, name: str) -> Saved:
        """Offer the private copy to the hub if it changed. Never raises for what the hub answers."""
        notebook = self._open.get(name)
        if notebook is None:
            return Saved("unchanged")
        async with notebook.lock:
            try:
                saved = await self._publish(notebook)
            except HubUnreachable as error:
                log.warning("publish %s: hub unreachable, trying again: %s", name, error)
                saved = Saved(
                    "deferred",
                    "Saved in your private folder. The hub does not answer at the moment; the text goes to the "
                    "workspace by itself as soon as it does.",
                )
        if saved.state == "deferred" and self._retry(notebook):
            self._tell(notebook, "Saved, not yet in the workspace", saved.message)
        return saved

    def lock_lost(self, name: str, message: str) -> None:
        """The hub says that this user's lock is gone: from now on saves become drafts."""
        notebook = self._open.get(name)
        if notebook is None or notebook.lost:
            return
        notebook.lost = message or "Your lock on this notebook has ended."
        notebook.reopened.clear()
        log.warning("%s: lock lost: %s", name, notebook.lost)
        self._tell(
            notebook,
            "This notebook is no longer locked for you",
            f"{notebook.lost} What you save from now on is kept as your draft; "
            "open the notebook again from the Notebooks page to go on.",
            lasting=True,
        )

    async def watch(self, name: str) -> None:
        """Publish changes of the file that came by no request, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            notebook = self._open.get(name)
            stamp = self._folder.stamp(name)
            if notebook is None or stamp is None or stamp == notebook.stamp or notebook.retry is not None:
                continue
            saved = await self.publish(name)
            if saved.state == "refused":
                self._tell(notebook, "Not saved to the workspace", saved.message, danger=True)

    async def close(self, patience: float) -> None:
        """Publish what is not published yet, in at most `patience` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for name in list(self._open):
                    await self.publish(name)
        for notebook in self._open.values():
            if notebook.retry is not None:
                notebook.retry.cancel()

    async def _pull(self, notebook: Notebook) -> None:
        name = notebook.name
        theirs = await self._hub.text(name)
        if theirs.fence is None:
            await self._offer_leftover(notebook)
            raise CannotOpen(
                409,
                "This notebook is not locked for you",
                f"Open “{name}” from the Notebooks page. That takes the lock, so that nobody else's work and "
                "none of yours gets lost.",
            )
        theirs = await self._settle_local(notebook, theirs)
        fence = theirs.fence if theirs.fence is not None else notebook.known.fence
        try:
            mine: str | None = await asyncio.to_thread(self._folder.read, name)
        except NotANotebook:
            mine = None
        if mine != theirs.text:
            await asyncio.to_thread(self._folder.write, name, theirs.text)
            ended = self._editor.close_sessions(self._folder.path(name))
            log.info("pulled %s (fence %s)%s", name, fence, f", ended {ended} stale session(s)" if ended else "")
        await self._remember(notebook, Known(theirs.hash, fence, None))
        notebook.stamp = self._folder.stamp(name)
        notebook.refused = None
        notebook.lost = ""
        notebook.reopened.set()

    async def _settle_local(self, notebook: Notebook, theirs: NotebookText) -> NotebookText:
        """See to it that replacing the private copy loses nothing. Returns the hub's text to go on with."""
        name = notebook.name
        try:
            mine = await asyncio.to_thread(self._folder.read, name)
        except NotANotebook as error:
            log.warning("%s: the private copy is no notebook: %s", name, error)
            await self._back_up(name)
            return theirs
        if mine is None:
            return theirs
        mine_hash = text_hash(mine)
        known = notebook.known
        if mine_hash in (theirs.hash, known.base, known.drafted) or theirs.fence is None:
            return theirs
        # The hub takes it if nobody changed the notebook since; otherwise it keeps it as this user's draft.
        try:
            accepted = await self._hub.publish(name, mine, base=known.base, fence=theirs.fence)
        except HubRefused as error:
            if error.draft is None:
                await self._back_up(name)
            log.warning("%s: unpublished text from before was refused (%s): %s", name, error.code, error.message)
            return theirs
        except HubUnreachable:
            await self._back_up(name)
            raise
        log.info("%s: published text from before", name)
        return replace(theirs, text=mine, hash=accepted)

    async def _offer_leftover(self, notebook: Notebook) -> None:
        """Without the lock: give an unpublished private copy to the hub as a draft, and leave it where it is."""
        try:
            mine = await asyncio.to_thread(self._folder.read, notebook.name)
        except NotANotebook:
            return
        known = notebook.known
        if mine is None or text_hash(mine) in (known.base, known.drafted):
            return
        try:
            await self._hub.publish(notebook.name, mine, base=known.base, fence=known.fence or 0)
        except HubRefused as error:
            if error.draft is not None:
                await self._remember(notebook, replace(known, drafted=text_hash(mine)))

    async def _publish(self, notebook: Notebook) -> Saved:
        name, known = notebook.name, notebook.known
        stamp = self._folder.stamp(name)
        try:
            mine = await asyncio.to_thread(self._folder.read, name)
        except NotANotebook as error:
            log.warning("publish %s: the private copy is no notebook: %s", name, error)
            notebook.stamp = stamp
            return Saved("refused", f"The notebook's file cannot be published: {error}.")
        except OSError as error:
            log.error("publish %s: cannot read the private copy: %s", name, error)
            return Saved("refused", f"The notebook's file cannot be read ({error.strerror}), so it was not published.")
        if mine is None:
            return Saved("refused", "The notebook's private copy is gone, so nothing was published.")
        mine_hash = text_hash(mine)
        if mine_hash == known.base:
            notebook.stamp, notebook.refused = stamp, None
            return Saved("unchanged")
        if mine_hash == known.drafted and notebook.refused is not None:
            notebook.stamp = stamp
            return notebook.refused
        try:
            base = await self._hub.publish(name, mine, base=known.base, fence=known.fence or 0)
        except HubRefused as error:
            if error.code == "base_changed" and await self._hub_has(name, mine_hash):
                base = mine_hash  # an earlier try was accepted and its answer got lost
            else:
                saved = await self._refused(notebook, mine_hash, error)
                notebook.stamp = stamp
                return saved
        await self._remember(notebook, replace(known, base=base, drafted=None))
        notebook.stamp, notebook.refused = stamp, None
        log.info("published %s", name)
        return Saved("published")

    async def _hub_has(self, name: str, mine_hash: str) -> bool:
        try:
            return (await self._hub.text(name)).hash == mine_hash
        except HubRefused:
            return False

    async def _refused(self, notebook: Notebook, mine_hash: str, error: HubRefused) -> Saved:
        log.warning("publish %s refused (%s): %s", notebook.name, error.code, error.message)
        reason = error.message or "The hub refused the text."
        reason += "" if reason.endswith((".", "!", "?")) else "."
        if error.code == "lock_lost" and not notebook.lost:
            notebook.lost = reason
            notebook.reopened.clear()
        if error.draft is not None:
            await self._remember(notebook, replace(notebook.known, drafted=mine_hash))
            kept = "" if "draft" in reason else "Your text is kept as a draft. "
            kept += "You find it on the Notebooks page."
        else:
            kept = "Your text is kept in your private folder."
        notebook.refused = Saved("refused", f"Not saved to the workspace. {reason} {kept}")
        return notebook.refused

    async def _back_up(self, name: str) -> None:
        kept = await asyncio.to_thread(self._folder.backup, name)
        log.warning("%s: the hub could not take the private copy, kept as %s", name, kept)

    async def _has_text(self, name: str) -> bool:
        try:
            return await asyncio.to_thread(self._folder.read, name) is not None
        except NotANotebook:
            return False

    async def _remember(self, notebook: Notebook, known: Known) -> None:
        notebook.known = known
        try:
            await asyncio.to_thread(self._folder.remember, notebook.name, known)
        except OSError as error:
            # It is known in this process. After a restart the copy is compared with the hub's text again.
            log.error("cannot write the state of %s: %s", notebook.name, error)

    def _dirty(self, notebook: Notebook) -> bool:
        return notebook.stamp != self._folder.stamp(notebook.name) or notebook.known.base == UNKNOWN_BASE

    def _retry(self, notebook: Notebook) -> bool:
        """Start publishing in the background. False if that runs already."""
        if notebook.retry is not None:
            return False
        notebook.retry = asyncio.create_task(self._publish_until_answered(notebook))
        return True

    async def _publish_until_answered(self, notebook: Notebook) -> None:
        delay = RETRY_FIRST
        try:
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 1.5, RETRY_MOST)
                try:
                    async with notebook.lock:
                        saved = await self._publish(notebook)
                except HubUnreachable:
                    continue
                break
        finally:
            notebook.retry = None
        if saved.state == "published":
            self._tell(notebook, "Saved to the workspace", "The hub is back and has your latest text.")
        elif saved.state == "refused":
            self._tell(notebook, "Not saved to the workspace", saved.message, danger=True)

    def _tell(self, notebook: Notebook, title: str, text: str, *, lasting: bool = False, danger: bool = False) -> None:
        self._editor.tell(self._folder.path(notebook.name), title, text, lasting=lasting, danger=danger)


def _cannot_open(name: str, error: HubRefused) -> CannotOpen:
    if error.code == "file_missing":
        return CannotOpen(404, "Notebook file not found", f"The file of “{name}” was deleted from the workspace.")
    if error.status == 404:
        return CannotOpen(404, "No such notebook", f"The workspace has no notebook “{name}”.")
    return CannotOpen(
        403, "The notebook cannot be opened", error.message or "The hub does not let you open this notebook."
    )
