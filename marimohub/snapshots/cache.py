"""Snapshots that many users share: one copy per content of the warehouse, built once, linked into each folder.

The cache's folder holds `<key>.duckdb` (mode 0440) and `<key>.json` beside it, where the key is `source.version` of
what was really copied. A build happens in `.build-<random>/` and arrives by a rename, so a half-built file never has
a name that could be linked. Old snapshots are removed beyond the newest `keep`; a user's folder holds a hard link,
so removing the cache's name takes nothing away from those who have it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from marimohub.snapshots import source, transfer
from marimohub.snapshots.errors import HelperFailed, NoSpace, SnapshotError, by_name, is_no_space

SNAPSHOT_NAME = "warehouse.duckdb"
METADATA_NAME = "warehouse.json"
BUILD_PREFIX = ".build-"
# A checkpoint under way makes the version unknown; longer than this, copying is the faster way to find out.
VERSION_DEADLINE = 2.0  # seconds
# How long a snapshot that was handed out is safe from removal, so that its caller can link it.
HANDED_OUT_GRACE = 300.0  # seconds
# The helper watches its own deadline; this is only for one that hangs.
HELPER_GRACE = 30.0  # seconds


@dataclass(frozen=True)
class Snapshot:
    """A finished snapshot: file, content key, when it was taken (UTC), bytes, and whether it was there already."""

    path: Path
    key: str
    created: datetime
    size: int
    reused: bool


class SnapshotCache:
    """Snapshots of one warehouse in one folder, which nobody else may use.

    `deadline` is what one copy may take, `keep` how many snapshots stay for reuse, `max_age` (both times in seconds,
    None: no limit) after which an unused one goes even so.
    """

    def __init__(
        self, root: Path, warehouse: Path, *, deadline: float = 60.0, keep: int = 3, max_age: float | None = None
    ) -> None:
        self.root = Path(root)
        self.warehouse = Path(warehouse)
        self.deadline = deadline
        self.keep = max(1, keep)
        self.max_age = max_age
        self._flight: asyncio.Task[Snapshot] | None = None
        self._waiting = 0
        self._known: tuple[tuple[object, ...], str] | None = None
        self._handed_out: dict[str, float] = {}
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what a hub that was killed in the middle of a build left behind."""
        for entry in self.root.iterdir():
            if entry.name.startswith(BUILD_PREFIX):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            elif entry.suffix == ".duckdb" and not entry.with_suffix(".json").exists():
                entry.unlink(missing_ok=True)

    async def ensure(self) -> Snapshot:
        """A snapshot of the warehouse as it is now; the one that exists if nothing was committed since.

        Callers that come while one is being made get that one too, so it may be older than their call by what a copy
        takes. The helper ends when every caller was cancelled. Raises SnapshotError.
        """
        if self._flight is None:
            self._flight = asyncio.create_task(self._find_or_build(), name="warehouse-snapshot")
            self._flight.add_done_callback(self._landed)
        flight = self._flight
        self._waiting += 1
        try:
            snapshot = await asyncio.shield(flight)
        except asyncio.CancelledError:
            if self._waiting == 1 and not flight.done():
                # Nobody may join what is about to be cancelled.
                self._flight = None
                flight.cancel()
                with contextlib.suppress(asyncio.CancelledError, SnapshotError):
                    await flight
            raise
        finally:
            self._waiting -= 1
        self._handed_out[snapshot.key] = time.monotonic()
        return snapshot

    def _landed(self, flight: asyncio.Task[Snapshot]) -> None:
        if self._flight is flight:
            self._flight = None
        if not flight.cancelled():
            flight.exception()  # every waiter got it; nobody waiting is no reason for a warning

    async def _find_or_build(self) -> Snapshot:
        found = await asyncio.to_thread(self._find_current)
        if found is not None:
            return found
        folder = self.root / f"{BUILD_PREFIX}{secrets.token_hex(6)}"
        try:
            folder.mkdir(mode=0o700)
            report = await self._run_helper(folder / SNAPSHOT_NAME)
            snapshot = await asyncio.to_thread(self._adopt, folder / SNAPSHOT_NAME, report)
        except OSError as error:
            raise _os_error(error, self.root) from error
        finally:
            # In a thread: to unlink a large half-made file takes long. Shielded: it has to happen.
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        await asyncio.to_thread(self.collect)
        return snapshot

    def _find_current(self) -> Snapshot | None:
        """The snapshot of the warehouse as it is now, if there is one. Reads its log, so it belongs in a thread."""
        seen = source.glance(self.warehouse)
        if self._known is not None and self._known[0] == seen:
            return self.find(self._known[1])
        try:
            key = source.version(self.warehouse, deadline=VERSION_DEADLINE)
        except (source.SourceBusy, source.SourceChangedTooFast):
            return None
        # The glance came first, so whatever changed since then makes the next one differ.
        self._known = seen, key
        return self.find(key)

    async def _run_helper(self, destination: Path) -> dict[str, object]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "marimohub.snapshots", "copy", str(self.warehouse), str(destination),
            "--deadline", str(self.deadline), "--json", "--until-stdin-closes",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            # Not communicate(), which would close stdin and so end the helper.
            assert process.stdout and process.stderr and process.stdin
            async with asyncio.timeout(self.deadline + HELPER_GRACE):
                output, complaint, status = await asyncio.gather(
                    process.stdout.read(), process.stderr.read(), process.wait()
                )
        except TimeoutError:
            raise HelperFailed(
                "Copying the warehouse hangs. Ask your administrator to look at the disks of the hub."
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            report: dict[str, object] = json.loads(output)
        except ValueError:
            raise HelperFailed(_ended(status, complaint)) from None
        failure = report.get("error")
        if isinstance(failure, dict):
            raise by_name(failure["type"], failure["message"])
        return report

    def _adopt(self, built: Path, report: dict[str, object]) -> Snapshot:
        """Give a finished build its place under the key of what was copied. The file was synced by the helper."""
        key = str(report["version"])
        path = self.root / f"{key}.duckdb"
        created = datetime.now(UTC).replace(microsecond=0)
        size = os.path.getsize(built)
        # The metadata goes first: remove_leftovers takes a database without it for half-made.
        _write_json(
            path.with_suffix(".json"),
            {"created": _iso(created), "version": key, "source": str(self.warehouse), "size": size},
        )
        os.replace(built, path)
        transfer.fsync_folder(str(self.root))
        return Snapshot(path, key, created, size, reused=False)

    def find(self, key: str) -> Snapshot | None:
        """The finished snapshot with that key, or None. One that lost its metadata or has another size is none."""
        path = self.root / f"{key}.duckdb"
        try:
            metadata = json.loads(path.with_suffix(".json").read_bytes())
            if path.stat().st_size != metadata["size"]:
                return None
            return Snapshot(path, key, datetime.fromisoformat(metadata["created"]), metadata["size"], reused=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def collect(self) -> list[str]:
        """Remove snapshots beyond the newest `keep` or older than `max_age`; returns their keys.

        Those that were handed out in the last minutes stay, so that their callers can link them.
        """
        now = time.time()
        recent = time.monotonic() - HANDED_OUT_GRACE
        self._handed_out = {key: at for key, at in self._handed_out.items() if at > recent}
        found: list[tuple[float, Path]] = []
        for path in self.root.glob("*.duckdb"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.with_suffix(".json").stat().st_mtime, path))
        removed: list[str] = []
        for rank, (taken, path) in enumerate(sorted(found, reverse=True)):
            old = self.max_age is not None and now - taken > self.max_age
            # The newest one stays however old it is: an unchanged warehouse needs no new copy.
            if path.stem in self._handed_out or rank == 0 or (rank < self.keep and not old):
                continue
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            removed.append(path.stem)
        return removed

    def link(self, snapshot: Snapshot, folder: Path) -> Path:
        """Put the snapshot into a user's folder (made with mode 0700) as warehouse.duckdb, by an atomic rename.

        A hard link, so it is quick and takes no room; a copy if the folder is on another file system, which takes
        as long as the file is large: call it in a thread. Who has the former one open keeps it. Beside it,
        warehouse.json says when the snapshot was taken; it is replaced right after. Returns the path of the file.
        Raises SnapshotError.

        DuckDB opens a path three times while it connects, so a connect in the very moment of the rename can mix two
        snapshots, which ends in a deserialization error. Link before the notebook starts, or tell its code to retry.
        """
        folder = Path(folder)
        target = folder / SNAPSHOT_NAME
        temporary = folder / f".{SNAPSHOT_NAME}.{secrets.token_hex(6)}.part"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in folder.glob(f".{SNAPSHOT_NAME}.*.part"):
                leftover.unlink(missing_ok=True)
            try:
                os.link(snapshot.path, temporary)
            except FileNotFoundError:
                raise SnapshotError("The snapshot is no longer there. Open the notebook again.") from None
            except OSError:
                # Another file system, no hard links there, or too many of this file.
                _copy(snapshot.path, temporary)
            os.replace(temporary, target)
            # rename() does nothing when both names are the same file already.
            temporary.unlink(missing_ok=True)
            _write_json(
                folder / METADATA_NAME,
                {"created": _iso(snapshot.created), "version": snapshot.key, "warehouse": self.warehouse.name},
            )
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _os_error(error, folder) from error
        return target


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _write_json(path: Path, value: dict[str, object]) -> None:
    temporary = path.with_name(f"{BUILD_PREFIX}{path.name}.{secrets.token_hex(6)}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _copy(origin: Path, destination: Path) -> None:
    with open(origin, "rb") as reading, open(destination, "xb") as writing:
        transfer.transfer(reading.fileno(), writing.fileno(), os.fstat(reading.fileno()).st_size, lambda: None)
        os.fsync(writing.fileno())
    os.chmod(destination, 0o440)


def _ended(status: int, complaint: bytes) -> str:
    last = complaint.decode(errors="replace").strip().rsplit("\n", 1)[-1]
    why = f"signal {-status}" if status < 0 else f"status {status}"
    return f"Copying the warehouse was interrupted ({why}{': ' + last if last else ''}). Try again."


def _os_error(error: OSError, folder: Path) -> SnapshotError:
    if is_no_space(error):
        return NoSpace(f"There is no room for a snapshot in {folder}. Make room on that disk and try again.")
    return SnapshotError(f"The snapshot could not be stored in {folder}: {error.strerror or error}.")
