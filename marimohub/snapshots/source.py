"""A consistent copy of a DuckDB file, taken as bytes while another process may be writing to it.

The live file is never opened with DuckDB: a reader's lock would block the next writer, and closing a second
handle would drop the locks of a process that has it open (POSIX). What is relied on instead, each fact seen in
files of DuckDB 2.0.0 (tests/snapshots/test_layout.py) and in its source (src/storage/: single_file_block_manager,
storage_manager, write_ahead_log and wal_replay, all .cpp):

1. Three headers of 4096 bytes begin the file, each with a u64 checksum of the other 4088 bytes in front. Main
   header: "DUCK" at 8, u64 version at 12 (999 from 2.0 on, before that 64 to 68), four u64 of flags at 20 (bit 0
   of the first: encrypted), 16 bytes of database identifier at 124. Database headers at 4096 and 8192: iteration,
   meta block, free list, block count, block size, vector size, storage version (69 for 2.0), each u64.
2. A checkpoint writes only to blocks that neither the newest header nor a committed WAL entry refers to; then it
   replaces the older of the two database headers. So while the headers stay as they are and no checkpoint began,
   every block that they or the WAL refer to keeps its content, also after DROP, ALTER and TRUNCATE.
3. Row groups of a bulk load are in the file, and synced, before the WAL entry that refers to them.
4. `<file>.wal` (beside the real file, symbolic links resolved) only grows between checkpoints. It begins with an
   entry of type 98 (version 2 plain, 3 encrypted; identifier; iteration of the header that it belongs to), then
   frames: u64 size, u64 checksum, payload, whose type stands after field id 100. FLUSH (100) ends a transaction.
5. A checkpoint first writes a CHECKPOINT frame (99) to the WAL, sends later commits to `<file>.wal.checkpoint`,
   and in the end deletes the WAL or renames `.wal.checkpoint` over it.
6. A writer holds an exclusive fcntl lock on the whole file for as long as it is open.

The live copy (storage 2.0): read the headers; read the WAL, wait if a checkpoint is under way, keep it up to its
last FLUSH; copy the file; then headers, inodes and the kept WAL must be as they were, with no checkpoint begun;
else again. Fact 5's order makes the copy hold every commit that had returned before it started.

The quiet copy is for files that only DuckDB's own recovery can read (a writer that died in a checkpoint) and for
storage older than 2.0: no writer may hold the lock, everything is copied, and sizes, times and the lock must be the
same afterwards. It is also the way out when checkpoints overtake every live copy.

Not covered: encrypted files (refused); FORCE CHECKPOINT on an empty WAL with commits meanwhile; network file systems
without coherent reads; a writer that opened the file by another hard link, whose WAL is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from marimohub.snapshots.errors import (
    CopyTooSlow,
    NoSpace,
    NotADuckDBFile,
    SnapshotError,
    SourceBusy,
    SourceChangedTooFast,
    SourceDamaged,
    SourceMissing,
    UnsupportedFormat,
    is_no_space,
)
from marimohub.snapshots.layout import HEADERS_SIZE
from marimohub.snapshots.reader import SIDECARS, SourceFile, State, Unsettled, opened, unreadable
from marimohub.snapshots.transfer import fsync_file, fsync_folder, transfer, write_all

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "CopyResult", "CopyTooSlow", "NoSpace", "NotADuckDBFile", "SnapshotError", "SourceBusy",
    "SourceChangedTooFast", "SourceDamaged", "SourceMissing", "UnsupportedFormat", "copy", "glance", "version",
]  # fmt: skip

# Live copies that a checkpoint may overtake before the next ones first wait for the lock to clear.
OVERTAKEN_LIMIT = 3
# Looks at a file whose bytes make no sense, before that is taken for its state and not for a passing moment.
MALFORMED_LIMIT = 6
POLL = 0.01  # seconds

T = TypeVar("T")
_Config: TypeAlias = dict[str, str | bool | int | float | list[str]]


@dataclass(frozen=True)
class CopyResult:
    """What `copy` made: `version` names the content (see `version`), `size` is in bytes, `seconds` wall time.

    `method` is how the bytes moved (reflink, copy_file_range, sendfile, read), `attempts` how many copies were
    started, `wal_bytes` how much of the write-ahead log was folded in, `quiet` whether no writer had the file. Of
    `seconds`, `startup` went by while the bytes were there and DuckDB was still being loaded and started.
    """

    path: Path
    version: str
    size: int
    method: str
    attempts: int
    wal_bytes: int
    quiet: bool
    seconds: float
    startup: float


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def version(source: Path | str, *, deadline: float = 10.0) -> str:
    """A short name (32 hexadecimal digits) for the content of a warehouse: equal names mean equal content.

    Reads the headers and the write-ahead log, not the data. A checkpoint under way is waited for, up to `deadline`
    seconds. Raises the errors of `copy` except NoSpace.
    """
    try:
        with opened(Path(source)) as file:
            return _settle(file, _Deadline(deadline), lambda state: state.key())
    except OSError as error:
        raise unreadable(f"The warehouse {source}", error) from error


def glance(source: Path | str) -> tuple[object, ...]:
    """What can be seen of a warehouse without reading its log: while it stays equal, so does `version`.

    Only for a `version` that was computed after the glance. Takes well under a millisecond. Raises SourceMissing.
    """
    try:
        with opened(Path(source)) as file:
            return file.glance()
    except OSError as error:
        raise unreadable(f"The warehouse {source}", error) from error


def copy(source: Path | str, destination: Path | str, *, deadline: float = 60.0, sync: bool = True) -> CopyResult:
    """Copy a warehouse consistently to `destination`, checkpointed, without a .wal, mode 0440.

    The copy holds every commit that had returned before the call. An existing destination is replaced by a rename;
    after an error nothing is left. With `sync`, the file and its name are on disk when this returns. Without, they
    are whole for every process on this machine and outlive this process, but not a power failure, after which the
    name may be missing or the file be torn: a caller must drop such a copy once the machine has started anew.
    `deadline` is in seconds. Opens the copy with DuckDB, so the calling process must never have opened the source
    with DuckDB. Raises a SnapshotError with a sentence for the user.
    """
    target = Path(destination)
    begin = time.monotonic()
    limit = _Deadline(deadline)
    temporary = str(target.with_name(f".{target.name}.{os.urandom(6).hex()}.part"))
    session = _Session(temporary)
    session.start()
    try:
        with opened(Path(source)) as file:
            attempts = 0

            def attempt(state: State) -> tuple[State, str]:
                nonlocal attempts
                attempts += 1
                return state, _copy_bytes(file, state, temporary, limit)

            state, method = _settle(file, limit, attempt)
            name = file.name
        moved = time.monotonic()
        session.join()
        startup = time.monotonic() - moved
        _seal(session, temporary, name, state)
        os.chmod(temporary, 0o440)
        size = os.path.getsize(temporary)
        if sync:
            fsync_file(temporary)
        os.replace(temporary, target)
        if sync:
            fsync_folder(str(target.parent))
    except OSError as error:
        raise _os_error(error, target) from error
    finally:
        _remove(temporary)
        session.close()
    return CopyResult(
        target, state.key(), size, method, attempts, len(state.wal), state.sidecars is not None,
        time.monotonic() - begin, startup,
    )  # fmt: skip


def _settle(file: SourceFile, limit: _Deadline, use: Callable[[State], T]) -> T:
    """Give `use` a consistent state of the file, again and again until it does not raise Unsettled."""
    overtaken = malformed = 0
    while True:
        begin = time.monotonic()
        try:
            return use(file.live_state())
        except Unsettled as reason:
            last = first = reason
        overtaken += last.overtaken
        malformed = malformed + 1 if last.malformed else 0
        if overtaken >= OVERTAKEN_LIMIT:
            _wait_for_lock(file, min(limit.left(), max(1.0, 2 * (time.monotonic() - begin))))
        if (overtaken >= OVERTAKEN_LIMIT or not last.overtaken) and not file.locked():
            try:
                return use(file.quiet_state())
            except Unsettled as reason:
                last = reason
                overtaken += reason.overtaken
        if malformed >= MALFORMED_LIMIT:
            raise _malformed(file, first)
        if limit.left() <= 0:
            raise _gave_up(file, first, overtaken, limit.seconds)
        if not last.overtaken:
            time.sleep(POLL)


def _wait_for_lock(file: SourceFile, seconds: float) -> None:
    end = time.monotonic() + seconds
    while file.locked() and time.monotonic() < end:
        time.sleep(POLL)


def _malformed(file: SourceFile, reason: Unsettled) -> SnapshotError:
    if "log" in str(reason):
        return UnsupportedFormat(
            f"{file.name} has a write-ahead log that cannot be understood. Update DuckDB and MarimoHub."
        )
    return SourceDamaged(f"{file.name} is damaged ({reason}). Restore it from a backup.")


def _gave_up(file: SourceFile, reason: Unsettled, overtaken: int, seconds: float) -> SnapshotError:
    if overtaken:
        return SourceChangedTooFast(
            f"{file.name} was checkpointed during each of {overtaken} copies within {seconds:g} s. "
            "Try again when its writer is less busy, or raise the snapshot deadline."
        )
    if str(reason) == "older storage":
        return SourceBusy(
            f"{file.name} has DuckDB's storage format from before 2.0, which cannot be copied while a program "
            "writes to it. Try again when that program has closed it, or convert the file to DuckDB 2.0."
        )
    return SourceBusy(
        f"{file.name} was busy for {seconds:g} s ({reason}). Try again in a moment, or raise the snapshot deadline."
    )


def _copy_bytes(file: SourceFile, state: State, temporary: str, limit: _Deadline) -> str:
    """The bytes of one attempt, verified. Returns the way they moved; raises Unsettled if the writer was faster."""

    def check() -> None:
        if limit.left() <= 0:
            raise CopyTooSlow(
                f"{file.name} could not be copied within {limit.seconds:g} s. Raise the snapshot deadline, or put "
                "the hub's data folder on a faster disk or on the same file system."
            )

    _remove(temporary)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file.descriptor).st_size
        method = transfer(file.descriptor, descriptor, size, check)
        write_all(descriptor, state.headers.raw, 0)
    finally:
        os.close(descriptor)
    if state.sidecars is not None:
        for suffix, present in zip(SIDECARS, state.sidecars, strict=True):
            if present is not None and suffix != ".wal":
                with contextlib.suppress(FileNotFoundError):  # verify() sees that a writer came
                    shutil.copyfile(f"{file.path}{suffix}", f"{temporary}{suffix}")
    if state.wal:
        descriptor = os.open(f"{temporary}.wal", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, state.wal, 0)
        finally:
            os.close(descriptor)
    file.verify(state, size)
    return method


def _duckdb() -> ModuleType:
    """DuckDB's compiled module. The package around it takes 60 ms more to import, as long as copying 300 MB."""
    try:
        import _duckdb
    except ImportError:
        import duckdb

        return duckdb
    return _duckdb


_CONFIG: _Config = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
# Who needs the copy on disk has it synced once, when it is whole; DuckDB would do so for each step of its checkpoint.
_FOLDING: _Config = {"enable_external_access": "false", "fsync_mode": "NONE"}


class _Session(threading.Thread):
    """DuckDB, imported and started while the bytes are copied, allowed to read nothing but the copy."""

    def __init__(self, temporary: str) -> None:
        super().__init__(daemon=True)
        self._temporary = temporary
        self._connection: DuckDBPyConnection | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._connection = _duckdb().connect(config={**_CONFIG, "threads": 1})
            allowed = ", ".join(_literal(f"{self._temporary}{suffix}") for suffix in ("", *SIDECARS))
            self._connection.execute(f"SET allowed_paths = [{allowed}]")
            self._connection.execute("SET enable_external_access = false")
        except Exception as error:
            self._error = error

    def get(self) -> DuckDBPyConnection:
        self.join()
        if self._error is not None:
            raise self._error
        assert self._connection is not None
        return self._connection

    def close(self) -> None:
        """Wait for the start, too: a process that ends in the middle of it may crash."""
        self.join()
        if self._connection is not None:
            self._connection.close()


def _seal(session: _Session, temporary: str, name: str, state: State) -> None:
    """Let DuckDB open the copy: fold the log in if there is one, and find out that it can be read."""
    duckdb = _duckdb()
    try:
        connection = session.get()
        if state.wal or state.sidecars is not None:
            # Opened by itself, not attached: defaults and indexes in the log are bound as they were by the writer.
            with duckdb.connect(temporary, config={**_CONFIG, **_FOLDING}) as folding:
                _refuse_if_cut_off(folding, temporary, name, state)
                folding.execute("CHECKPOINT")
            if os.path.exists(f"{temporary}.wal"):
                raise SourceDamaged(f"{name} was copied, but its write-ahead log could not be folded in.")
            return
        connection.execute(f"ATTACH {_literal(temporary)} AS snapshot (READ_ONLY)")
        _refuse_if_cut_off(connection, temporary, name, state)
        connection.execute("DETACH snapshot")
    except duckdb.Error as error:
        text = str(error).splitlines()[0].replace(temporary, "the copy")
        if "No space left" in text or "File too large" in text or "quota exceeded" in text:
            raise NoSpace(_no_space(temporary)) from error
        raise SourceDamaged(f"{name} was copied, but DuckDB cannot read the copy: {text}") from error


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _refuse_if_cut_off(connection: DuckDBPyConnection, temporary: str, name: str, state: State) -> None:
    """Raise SourceDamaged if the file is shorter than the blocks of its tables need. Usually a look at its size."""
    size = os.path.getsize(temporary)
    if size >= state.headers.end:
        return
    last = -1
    for table in connection.execute("SELECT database_name, schema_name, table_name FROM duckdb_tables()").fetchall():
        quoted = ".".join('"' + part.replace('"', '""') + '"' for part in table)
        found = connection.execute(
            "SELECT max(greatest(block_id, list_max(additional_block_ids))) FROM pragma_storage_info(?)", [quoted]
        ).fetchone()
        if found is not None and found[0] is not None:
            last = max(last, found[0])
    if HEADERS_SIZE + (last + 1) * state.headers.block_size > size:
        raise SourceDamaged(f"{name} is damaged (it was cut off). Restore it from a backup.")


def _remove(temporary: str) -> None:
    for suffix in ("", *SIDECARS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{temporary}{suffix}")
    shutil.rmtree(f"{temporary}.tmp", ignore_errors=True)  # DuckDB's spill folder


def _no_space(path: str) -> str:
    return f"There is no room for a snapshot in {os.path.dirname(path) or '.'}. Make room on that disk and try again."


def _os_error(error: OSError, target: Path) -> SnapshotError:
    if is_no_space(error):
        return NoSpace(_no_space(str(target)))
    return SnapshotError(f"The snapshot could not be made in {target.parent}: {error.strerror or error}.")
