"""A person's snapshot folder: the file under a name of its own, the name that stays, and what the file holds.

    <key>/warehouse.duckdb     mode 0440, a hard link into the cache
    warehouse.duckdb           a symbolic link to it
    warehouse.json             what is in it; `file` names the first

DuckDB opens a path three times while it connects, and gives every connection of a process to the same path the same
database: so a new snapshot comes under a new path, and `marimohub.snapshot` resolves the name that stays before it
connects. The last part stays the same, because DuckDB names the database by it. The last but one stays for whoever is
just connecting.

Everything goes through a descriptor of the folder itself: code of the person may be busy in it, and a link planted
there must lead nowhere.

Where people have user ids of their own, the folder is the hub's and its group the person's (mode 0750; see
`marimohub.spawners.identities`). The snapshot file is one for many people: its group is that of all notebook servers,
and the folders keep each of them out of the others'.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from marimohub.snapshots import transfer
from marimohub.snapshots.errors import NoSpace, SnapshotError, is_no_space

SNAPSHOT_NAME = "warehouse.duckdb"
METADATA_NAME = "warehouse.json"
_TARGET = re.compile(rf"([0-9a-f]{{16}})/{re.escape(SNAPSHOT_NAME)}")
_READ_AND_ENTER = stat.S_IRGRP | stat.S_IXGRP


def link(
    origin: Path, key: str, folder: Path, about: dict[str, Any], *, keep: str | None, group: int | None = None
) -> Path:
    """Put a snapshot into a person's folder (made with mode 0700) by an atomic rename; returns its path.

    A hard link, so it is quick and takes no room; a copy if the folder is on another file system, which takes as
    long as the file is large: call it in a thread.

    Args:
        about: goes into warehouse.json.
        keep: key of the one that was there, if it is to stay under its own name; all others are removed.
        group: may read the file; the folder's group may read the rest. None: only the hub's own user may.

    Raises:
        SnapshotError, NoSpace: the name that stays leads where it did.
    """
    name = f"{key[:16]}/{SNAPSHOT_NAME}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(folder) as directory:
            with contextlib.suppress(FileExistsError):
                os.mkdir(key[:16], 0o700, dir_fd=directory)
            person = os.fstat(directory).st_gid if group is not None else None
            with _opened(key[:16], directory) as own:
                _permit(own, person, 0o750)
                _put(origin, own, group)
            with _temporary(directory) as temporary:
                _write(temporary, json.dumps({**about, "file": name}).encode(), directory, person)
                os.replace(temporary, METADATA_NAME, src_dir_fd=directory, dst_dir_fd=directory)
            with _temporary(directory) as temporary:
                os.symlink(name, temporary, dir_fd=directory)
                os.replace(temporary, SNAPSHOT_NAME, src_dir_fd=directory, dst_dir_fd=directory)
            _clear(directory, {key[:16], SNAPSHOT_NAME, METADATA_NAME, keep[:16] if keep else ""})
    except OSError as error:
        if is_no_space(error):
            raise NoSpace(
                f"There is no room for a snapshot in {folder}. Make room on that disk and try again."
            ) from error
        raise SnapshotError(f"The snapshot could not be stored in {folder}: {error.strerror or error}.") from error
    return folder / name


def in_reach(folder: Path, group: int) -> bool:
    """Whether the folder's group, as a member of `group`, can read the snapshot that the name that stays leads to.

    Not so, for example, if it was put there by a hub whose servers ran with its own user id.
    """
    try:
        with _opened(folder) as directory:
            target = _TARGET.fullmatch(os.readlink(SNAPSHOT_NAME, dir_fd=directory))
            if target is None:
                return False
            person = os.fstat(directory).st_gid
            with _opened(target[1], directory) as own:
                file = os.stat(SNAPSHOT_NAME, dir_fd=own, follow_symlinks=False)
                return (
                    all(_permits(os.fstat(place), person, _READ_AND_ENTER) for place in (directory, own))
                    and _permits(file, group, stat.S_IRGRP)
                    and _permits(os.stat(METADATA_NAME, dir_fd=directory), person, stat.S_IRGRP)
                )
    except OSError:
        return False


def _permits(status: os.stat_result, group: int, bits: int) -> bool:
    return status.st_gid == group and status.st_mode & bits == bits


def unlink(folder: Path) -> None:
    """Take every snapshot out of a person's folder. Who has one open keeps that until they end.

    Raises:
        SnapshotError: something may still be there.
    """
    try:
        with _opened(folder) as directory:
            _clear(directory, ())
    except FileNotFoundError:
        return
    except OSError as error:
        raise SnapshotError(f"The snapshot in {folder} could not be removed: {error.strerror or error}.") from error


@contextlib.contextmanager
def _opened(folder: Path | str, within: int | None = None) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _put(origin: Path, directory: int, group: int | None) -> None:
    if group is not None:
        with contextlib.suppress(FileNotFoundError), open(origin, "rb") as file:
            _permit(file.fileno(), group, 0o440)
    if _is_there(origin, SNAPSHOT_NAME, directory):
        return
    with _temporary(directory) as temporary:
        _link_or_copy(origin, temporary, directory, group)
        os.replace(temporary, SNAPSHOT_NAME, src_dir_fd=directory, dst_dir_fd=directory)


def _permit(descriptor: int, group: int | None, mode: int) -> None:
    """Give an open file or folder of the hub's this group and mode; nothing if there is no group."""
    status = os.fstat(descriptor)
    if group is not None and (status.st_gid != group or stat.S_IMODE(status.st_mode) != mode):
        os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, mode)


def _is_there(origin: Path, name: str, directory: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), origin.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _temporary(directory: int) -> Iterator[str]:
    name = f".{secrets.token_hex(8)}.part"
    try:
        yield name
    finally:
        # also after the rename, which does nothing when both names are the same file already
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _link_or_copy(origin: Path, name: str, directory: int, group: int | None) -> None:
    try:
        os.link(origin, name, dst_dir_fd=directory)
    except FileNotFoundError:
        raise SnapshotError("The snapshot is no longer there. Open the notebook again.") from None
    except OSError:
        # another file system, no hard links there, or too many of this file
        with open(origin, "rb") as reading:
            descriptor = _create(name, directory)
            try:
                transfer.transfer(reading.fileno(), descriptor, os.fstat(reading.fileno()).st_size, lambda: None)
                os.fchmod(descriptor, 0o440)
                _permit(descriptor, group, 0o440)
            finally:
                os.close(descriptor)


def _write(name: str, data: bytes, directory: int, group: int | None) -> None:
    descriptor = _create(name, directory)
    try:
        transfer.write_all(descriptor, data, 0)
        _permit(descriptor, group, 0o640)
    finally:
        os.close(descriptor)


def _create(name: str, directory: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=directory)


def _clear(directory: int, keep: Collection[str], *, within: bool = False) -> None:
    for name in os.listdir(directory):
        if name in keep:
            continue
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            # deeper than this lies nothing that the hub put there
            if not within:
                with contextlib.suppress(FileNotFoundError):
                    with _opened(name, directory) as own:
                        _clear(own, (), within=True)
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=directory)
