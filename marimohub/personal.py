"""Each person's own snapshot: found or built for what they may see now, put into their folder, and taken out again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marimohub.database import Database
from marimohub.governance import store
from marimohub.governance.errors import PolicyInvalid
from marimohub.governance.subject import Subject
from marimohub.governing import Governor
from marimohub.snapshots.cache import Snapshot, SnapshotCache
from marimohub.snapshots.errors import SnapshotError
from marimohub.snapshots.flights import Report, ignore

Stop = Callable[[], Awaitable[None]]
Prepare = Callable[[Path], object]
# How often a snapshot is prepared anew because the policy changed while it was, before giving up.
ATTEMPTS = 5


class AccessChanging(SnapshotError):
    """The policy changed again and again while a snapshot was made."""


class AccessChanged(Exception):
    """What a person may see is not what their running server has, so that server must end first."""

    code = "access_changed"

    def __init__(self) -> None:
        self.message = (
            "What you may see has changed since your notebook server started. Save your work, then open the notebook "
            "again from the Notebooks page: that starts your server anew."
        )
        super().__init__(self.message)


@dataclass(frozen=True)
class Place:
    """A person as the policy knows them (without attributes), their workspace, and their snapshot folder."""

    workspace_id: int
    subject: Subject
    folder: Path


class PersonalSnapshots:
    """Puts snapshots into people's folders. One thing at a time is done to a folder.

    `prepare` is called in a thread with a person's snapshot folder before anything is put there: it makes the folder
    theirs, and raises SnapshotError if it cannot.
    """

    def __init__(
        self, database: Database, cache: SnapshotCache, governor: Governor, *, prepare: Prepare = lambda folder: None
    ) -> None:
        self.cache = cache
        self._prepare_folder = prepare
        self._database = database
        self._governor = governor
        self._busy: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def give(self, place: Place, *, stop: Stop | None, report: Report = ignore) -> Snapshot:
        """Put a current snapshot into the folder.

        Args:
            stop: ends the person's server, if it runs; called when what it has is not what they may see now, before
                they get anything else. None: it runs and must not be ended.

        Raises:
            PolicyInvalid, SnapshotError: a snapshot that was made for another policy, or for other attributes, groups
                or role of the person, is no longer in the folder, and the server that had it is ended.
            AccessChanged: only if `stop` is None.
        """
        async with self._busy[place.folder]:
            for _attempt in range(ATTEMPTS):
                basis = await self.basis(place)
                try:
                    await asyncio.to_thread(self._prepare_folder, place.folder)
                    snapshot = await self._prepare(place, report)
                    # of the same basis it differs by the warehouse's tables alone: nothing to take away
                    former = self.cache.linked(place.folder)
                    if former and former.get("basis") != basis and former.get("plan") != snapshot.plan:
                        await self._withdraw(place, stop)
                    await asyncio.to_thread(
                        self.cache.link, snapshot, place.folder, basis=basis, user=place.subject.user
                    )
                except (PolicyInvalid, SnapshotError):
                    # of the same basis, what is there is older and not wider
                    if self.cache.linked(place.folder).get("basis", basis) != basis:
                        await self._withdraw(place, stop)
                    raise
                if basis == await self.basis(place):
                    return snapshot
            await self._withdraw(place, stop)
            raise AccessChanging("The policy is being changed. Try again in a moment.")

    async def ensure(self, place: Place) -> None:
        """See that what the folder holds is for what the person may see now, before a server starts on it.

        Raises: as `give`; nothing is in the folder then.
        """

        async def nothing_runs() -> None:
            return

        linked = self.cache.linked(place.folder)
        try:
            same = linked and linked.get("basis") == await self.basis(place)
            # linked before their servers had a user id of their own, it may be the hub's alone
            if same and await asyncio.to_thread(self._in_reach, place.folder):
                return
            await self.give(place, stop=nothing_runs)
        except (PolicyInvalid, SnapshotError):
            await asyncio.to_thread(self.cache.unlink, place.folder)
            raise

    def _in_reach(self, folder: Path) -> bool:
        self._prepare_folder(folder)
        return self.cache.in_reach(folder)

    async def take(self, place: Place, stop: Stop) -> None:
        """End the server and take everything out of the folder.

        Raises:
            SnapshotError: something may still be there.
        """
        async with self._busy[place.folder]:
            await self._withdraw(place, stop)

    async def is_current(self, place: Place) -> bool:
        """Whether the folder holds nothing, or just what the person may see now of the warehouse as it was then."""
        linked = self.cache.linked(place.folder)
        if not linked or linked.get("basis") == await self.basis(place):
            return True
        if not self._governor.enabled:
            return not linked["plan"]
        raw = await asyncio.to_thread(self.cache.known, linked["version"])
        if raw is None:
            return False
        try:
            access = await self._governor.access(place.workspace_id, place.subject, raw.schema)
        except PolicyInvalid:
            return False
        return access.plan().digest() == linked["plan"]

    async def basis(self, place: Place) -> str:
        """Names everything that decides what a person sees, but for the warehouse itself."""
        if not self._governor.enabled:
            return "off"
        subject = place.subject
        revision = await self._database.read(store.current_revision, place.workspace_id)
        attributes = await self._database.read(store.attributes_of, subject.user)
        decided: list[Any] = [
            place.workspace_id,
            revision,
            subject.user,
            subject.role,
            sorted(subject.groups),
            attributes,
        ]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()

    async def _prepare(self, place: Place, report: Report) -> Snapshot:
        if not self._governor.enabled:
            return await self.cache.plain(report)
        raw = await self.cache.raw(lambda part, what: report(part * 0.3, what))
        access = await self._governor.access(place.workspace_id, place.subject, raw.schema)
        return await self.cache.governed(raw, access.plan(), lambda part, what: report(0.3 + part * 0.7, what))

    async def _withdraw(self, place: Place, stop: Stop | None) -> None:
        if stop is None:
            raise AccessChanged
        # first out of reach, then out of memory: a server that starts meanwhile finds nothing
        await asyncio.to_thread(self.cache.unlink, place.folder)
        await stop()
