"""Snapshots that many people share: one per state of the warehouse and view of it, built once, linked into folders.

    <root>/raw/<version>.duckdb        consistent copies, with catalogue and fingerprints in <version>.json
    <root>/parts/<key>.parquet         masked tables, which governed snapshots are built from
    <root>/governed/<key>.duckdb       what people get, with its manifest in <key>.json
    <root>/linked/<folder>.json        what each person's folder holds, out of that person's reach
    <root>/.build-<random>/            builds under way; the rename out of it is what makes an entry

A person's folder holds a hard link, so an entry with a second name is in use, whatever process dies. `collect` takes
the links out of the folders of people without a running server, then what was not used for long or is too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marimohub.snapshots import helper, links, masked, source
from marimohub.snapshots.errors import NoSpace, SnapshotError, is_no_space
from marimohub.snapshots.flights import Flights, Report, ignore
from marimohub.snapshots.masked import Limits, Raw
from marimohub.snapshots.plan import Plan, TablePlan
from marimohub.snapshots.schema import WarehouseSchema
from marimohub.snapshots.shelf import Entry, Shelf, write_json

BUILD_PREFIX = ".build-"
# A checkpoint under way makes the version unknown; longer than this, copying is the faster way to find out.
VERSION_DEADLINE = 2.0  # seconds
# Results of counting rows that are remembered.
KEPT_COUNTS = 200
# A link may be this old without a running server: opening a notebook links first and starts then.
LINKED_GRACE = 900.0  # seconds


@dataclass(frozen=True)
class Snapshot:
    """A finished snapshot.

    `key` names the file's content, `version` that of the warehouse, `plan` the digest of the plan ("" for a plain
    copy), `created` (UTC) is when the warehouse was copied, `checked` when it was last seen to be unchanged since,
    `size` in bytes, `reused` whether it was there already, `manifest` what is in it.
    """

    path: Path
    key: str
    version: str
    plan: str
    created: datetime
    checked: datetime
    size: int
    reused: bool
    manifest: dict[str, Any]


class SnapshotCache:
    """Snapshots of one warehouse in one folder, which nobody else may use.

    `deadline` is what one copy may take in seconds, `max_age` (seconds) and `max_bytes` what of the unused is kept,
    `masking_key` the secret of hash masks. `collects` is whether this process removes old entries: only one may, since
    it does not know what another is working with. `group` is who may read what is linked into people's folders, where
    people have user ids of their own (`Identities.snapshot_group`).
    """

    def __init__(
        self,
        root: Path,
        warehouse: Path,
        *,
        masking_key: str = "",
        deadline: float = 60.0,
        limits: Limits | None = None,
        max_age: float = 7 * 86400.0,
        max_bytes: int = 50 * 1024**3,
        collects: bool = True,
        group: int | None = None,
    ) -> None:
        self.root = Path(root)
        self.warehouse = Path(warehouse)
        self.masking_key = masking_key
        self.deadline = deadline
        self.limits = limits or Limits()
        self.max_age = max_age
        self.max_bytes = max_bytes
        self.collects = collects
        self.group = group
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._raw = Shelf(self.root / "raw", ".duckdb")
        self._parts = Shelf(self.root / "parts", ".parquet")
        self._governed = Shelf(self.root / "governed", ".duckdb")
        self._links = self.root / "linked"
        self._links.mkdir(mode=0o700, exist_ok=True)
        self._copies: Flights[tuple[Raw, bool]] = Flights()
        self._builds: Flights[tuple[Entry, bool]] = Flights()
        # one build at a time has all the memory and threads of `limits`, and finds the parts that the last one made
        self._turn = asyncio.Semaphore(1)
        self._known: tuple[tuple[object, ...], Raw, datetime] | None = None
        self._look = asyncio.Semaphore(1)
        self._last: tuple[float, str] | None = None
        self._counts: Flights[list[tuple[int, int]]] = Flights()
        self._counted: OrderedDict[str, list[tuple[int, int]]] = OrderedDict()
        self._background: set[asyncio.Task[None]] = set()
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what killed processes left behind; builds that still run, also those of a command line, stay."""
        for entry in self.root.glob(f"{BUILD_PREFIX}*"):
            with contextlib.suppress(OSError):
                descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry, ignore_errors=True)
                finally:
                    os.close(descriptor)
        for shelf in (self._raw, self._parts, self._governed):
            shelf.remove_leftovers()
        for former in (*self.root.glob("*.duckdb"), *self.root.glob("*.json")):  # as they lay before there was a policy
            former.unlink(missing_ok=True)

    # copies of the warehouse

    async def raw(self, report: Report = ignore) -> Raw:
        """A raw copy of the warehouse as it is now; the one that exists if nothing was committed since.

        Callers that come while one is being made get that one too, so it may be older than their call by what a copy
        takes. Raises SnapshotError.
        """
        return (await self._raw_now(report))[0]

    def known(self, version: str) -> Raw | None:
        """The raw copy of a version, if it is still there."""
        entry = self._raw.find(version)
        return Raw(entry) if entry is not None else None

    async def schema(self, *, max_age: float = 0.0) -> WarehouseSchema:
        """The catalogue of the warehouse as it is now, or was within the last `max_age` seconds.

        Raises:
            SnapshotError
        """
        return (await self._recent(max_age)).schema

    async def _recent(self, max_age: float) -> Raw:
        """A raw copy for looking things up: people may ask often, and each copy of a busy warehouse costs a lot."""
        if self._last is not None and time.monotonic() - self._last[0] < max_age:
            raw = await asyncio.to_thread(self.known, self._last[1])
            if raw is not None:
                return raw
        return await self.raw()

    async def _raw_now(self, report: Report) -> tuple[Raw, bool]:
        asked = time.monotonic()
        found = await self._copies.join("", self._find_or_copy, report)
        self._last = asked, found[0].version
        return found

    async def _find_or_copy(self, report: Report) -> tuple[Raw, bool]:
        found = await asyncio.to_thread(self._find_current)
        if found is not None:
            return found, True
        report(0.0, "Copying the warehouse")
        async with self._build_folder() as folder:
            file = folder / "raw.duckdb"
            copied = await helper.run(
                "copy",
                {
                    "source": str(self.warehouse),
                    "raw": str(file),
                    "deadline": self.deadline,
                    **self.limits.of(folder),
                },
                timeout=self.deadline + self.limits.timeout,
                progress=lambda _done: report(0.7, "Looking at what is in it"),
            )
            about = {
                "schema": copied["schema"],
                "fingerprints": copied["fingerprints"],
                "created": copied["started"],
                "source": str(self.warehouse),
            }
            entry = await asyncio.to_thread(self._raw.put, str(copied["version"]), file, about)
        self._later(self._raw, entry.key)
        return Raw(entry), False

    def _find_current(self) -> Raw | None:
        """The raw copy of the warehouse as it is now, if there is one. Reads its log, so it belongs in a thread."""
        seen = source.glance(self.warehouse)
        if self._known is not None and self._known[0] == seen and self._raw.find(self._known[1].version) is not None:
            return self._known[1]
        try:
            version = source.version(self.warehouse, deadline=VERSION_DEADLINE)
        except (source.SourceBusy, source.SourceChangedTooFast):
            return None
        entry = self._raw.find(version)
        if entry is None:
            return None
        # the glance came first, so whatever changed since then makes the next one differ
        self._known = seen, Raw(entry), datetime.now(UTC)
        return self._known[1]

    # what people get

    async def plain(self, report: Report = ignore) -> Snapshot:
        """The whole warehouse as it is now, for a hub without governance. Raises SnapshotError."""
        raw, reused = await self._raw_now(report)
        return self._snapshot(raw, raw.entry, "", reused, {"tables": None, "views": None, "omitted": []})

    async def governed(self, raw: Raw, plan: Plan, report: Report = ignore) -> Snapshot:
        """What `plan` makes of a raw copy: found, or built once for all who ask. Raises SnapshotError."""
        key = masked.snapshot_key(raw, plan, self.masking_key)

        async def work(say: Report) -> tuple[Entry, bool]:
            found = await asyncio.to_thread(self._governed.find, key)
            if found is not None:
                return found, True
            with self._raw.held([raw.version]):
                return await self._build(key, raw, plan, say), False

        entry, reused = await self._builds.join(key, work, report)
        return self._snapshot(raw, entry, plan.digest(), reused, masked.manifest(plan, entry.about))

    async def _build(self, key: str, raw: Raw, plan: Plan, report: Report) -> Entry:
        report(0.0, "Waiting for another snapshot to be built")
        async with self._turn, self._build_folder() as folder:
            base = await asyncio.to_thread(self._former, plan)
            with self._governed.held([base.key] if base is not None else []):
                file, about = await masked.build(
                    raw,
                    plan,
                    self._parts,
                    folder,
                    base=base,
                    masking_key=self.masking_key,
                    limits=self.limits,
                    report=report,
                )
            entry = await asyncio.to_thread(self._governed.put, key, file, about)
        self._later(self._governed, key)
        return entry

    def _former(self, plan: Plan) -> Entry | None:
        """The newest snapshot of the same plan.

        One of another plan would do as well, but this way a byte that stayed by mistake is one that these people saw.
        """
        for key in self._governed.newest_first():
            entry = self._governed.peek(key)
            if entry and entry.about["plan"] == plan.digest() and entry.about["builder"] == masked.BUILDER:
                return self._governed.find(key)
        return None

    async def count(self, plans: Collection[TablePlan], *, max_age: float = 0.0) -> list[tuple[int, int]]:
        """How many rows of each planned table are kept, and how many there are.

        Args:
            max_age: seconds that the copy may be old in which they are counted.

        Raises:
            SnapshotError
        """
        raw = await self._recent(max_age)
        key = json.dumps([raw.version, *(plan.digest() for plan in plans)])

        async def work(_report: Report) -> list[tuple[int, int]]:
            tables = [{"plan": asdict(plan)} for plan in plans]
            with self._raw.held([raw.version]):
                async with self._look, self._build_folder() as folder:
                    spec = {"raw": str(raw.entry.path), "tables": tables, **self.limits.of(folder)}
                    found = await helper.run("count", spec, timeout=self.limits.timeout)
            return [(kept, total) for kept, total in found["counts"]]

        found = self._counted.get(key)
        if found is None:
            found = self._counted[key] = await self._counts.join(key, work)
            while len(self._counted) > KEPT_COUNTS:
                self._counted.popitem(last=False)
        return found

    def _snapshot(self, raw: Raw, entry: Entry, plan: str, reused: bool, manifest: dict[str, Any]) -> Snapshot:
        created = datetime.fromisoformat(raw.entry.about["created"])
        return Snapshot(
            entry.path, entry.key, raw.version, plan, created, datetime.now(UTC) if reused else created, entry.size,
            reused, manifest,
        )  # fmt: skip

    # people's folders

    def link(self, snapshot: Snapshot, folder: Path, **about: Any) -> Path:
        """Put a snapshot into a person's folder; see `links.link`. May copy: call it in a thread.

        The one that was there stays under its own name, for who is about to open it: `unlink` first what may not stay.

        Args:
            about: what else is to be remembered of it; `linked` gives it back. It is not shown to the person.
        """
        former = self.linked(folder).get("key")
        public = {
            "created": _iso(snapshot.created),
            "checked": _iso(snapshot.checked),
            "version": snapshot.version,
            "key": snapshot.key,
            "governed": bool(snapshot.plan),
            "warehouse": self.warehouse.name,
            **snapshot.manifest,
        }
        path = links.link(snapshot.path, snapshot.key, folder, public, keep=former, group=self.group)
        record = {name: public[name] for name in ("created", "checked", "version", "key")}
        write_json(self._record(folder), {**record, "plan": snapshot.plan, "folder": str(folder), **about})
        return path

    def unlink(self, folder: Path) -> None:
        """Take the snapshots out of a person's folder. Raises SnapshotError if something may still be there."""
        links.unlink(folder)
        self._record(folder).unlink(missing_ok=True)

    def in_reach(self, folder: Path) -> bool:
        """Whether the person whose folder it is may read what was linked into it. Looks at the disk."""
        return self.group is None or links.in_reach(folder, self.group)

    def linked(self, folder: Path) -> dict[str, Any]:
        """What is known of the snapshot in a person's folder; empty if there is none.

        Keys: `created`, `checked`, `version`, `key`, `plan`, and what `link` was told.
        """
        try:
            found = json.loads(self._record(folder).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def links(self) -> list[dict[str, Any]]:
        """What `linked` gives for everybody who has a snapshot."""
        found = []
        for record in self._links.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(record.read_bytes()))
        return found

    def _record(self, folder: Path) -> Path:
        return self._links / f"{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]}.json"

    def collect(self, in_use: Collection[Path] | None = None) -> list[str]:
        """Remove what nobody uses; returns the keys of what went. Belongs in a thread.

        Args:
            in_use: the folders of people whose server runs; the others' links are taken away. None: leave all links.
        """
        if in_use is not None:
            running = {str(folder.absolute()) for folder in in_use}
            for record in self._links.glob("*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError, SnapshotError):
                    folder = Path(json.loads(record.read_bytes())["folder"])
                    # a server may be about to start on what was linked just now
                    if str(folder) not in running and time.time() - record.stat().st_mtime > LINKED_GRACE:
                        self.unlink(folder)
        removed = []
        newest = self._newest_raw()
        now = datetime.now(UTC).timestamp()
        shelves = (self._raw, self._governed, self._parts)
        excess = sum(shelf.size() for shelf in shelves) - self.max_bytes
        unused = [(*entry, shelf) for shelf in shelves for entry in shelf.unused()]
        for used, size, key, shelf in sorted(unused, key=lambda entry: entry[0]):
            if (shelf is self._raw and key == newest) or (excess <= 0 and now - used <= self.max_age):
                continue
            shelf.remove(key)
            removed.append(key)
            excess -= size
        return removed

    def _newest_raw(self) -> str:
        """The copy that stays however old it is: an unchanged warehouse needs no new one."""
        found = [(entry.stat().st_mtime, entry.name) for entry in os.scandir(self._raw.folder) if entry.is_file()]
        newest = max((name for name in found if name[1].endswith(".json")), default=(0.0, ""))[1]
        return newest.removesuffix(".json")

    # housekeeping

    @asynccontextmanager
    async def _build_folder(self) -> AsyncIterator[Path]:
        """A private folder for one build, gone afterwards, and taken for a leftover when this process died."""
        folder = self.root / f"{BUILD_PREFIX}{secrets.token_hex(6)}"
        try:
            folder.mkdir(mode=0o700)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield folder
            finally:
                os.close(descriptor)
        except OSError as error:
            if is_no_space(error):
                raise NoSpace(
                    f"There is no room for a snapshot in {self.root}. Make room on that disk and try again."
                ) from error
            raise SnapshotError(f"The snapshot could not be stored: {error.strerror or error}.") from error
        finally:
            # in a thread: to unlink a large half-made file takes long; shielded: it has to happen
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    def _later(self, shelf: Shelf, key: str) -> None:
        """Sync an entry and remove old ones, while nobody waits."""

        async def work() -> None:
            await asyncio.to_thread(shelf.settle, key)
            if self.collects:
                await asyncio.to_thread(self.collect)

        task = asyncio.create_task(work())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
