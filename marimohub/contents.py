"""Texts of notebooks in the database: each is stored once, under the SHA-256 of its UTF-8 bytes.

Versions and drafts name texts by hash. A text goes when the last of them goes.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import delete, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from marimohub.files import read_text, text_hash, write_temporary
from marimohub.notebook_errors import MAX_TEXT_BYTES, FileMissing, InvalidText, NotText, TextTooLarge
from marimohub.orm import Content, Draft, Version


def checked_hash(text: str) -> str:
    """The hash of a text that may become a notebook's.

    Raises:
        InvalidText: UTF-8 cannot encode it, or it has NUL characters (which PostgreSQL cannot store).
        TextTooLarge
    """
    if "\0" in text:
        raise InvalidText
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidText from error
    if size > MAX_TEXT_BYTES:
        raise TextTooLarge
    return text_hash(text)


def read_file(path: Path, name: str) -> tuple[str, str]:
    """Text and hash of the file of the notebook `name`.

    Raises:
        FileMissing, NotText, TextTooLarge.
    """
    try:
        text = read_text(path, limit=MAX_TEXT_BYTES)
    except OSError as error:
        raise (TextTooLarge if error.errno == errno.EFBIG else FileMissing) from error
    except UnicodeDecodeError as error:
        raise NotText(name) from error
    try:
        return text, checked_hash(text)
    except InvalidText as error:
        raise NotText(name) from error


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a link is none."""
    try:
        return stat.S_ISREG(path.stat(follow_symlinks=False).st_mode)
    except OSError:
        return False


def disk_hash(path: Path) -> str | None:
    """The hash of what a file holds, None if it is no readable text."""
    try:
        return text_hash(read_text(path, limit=MAX_TEXT_BYTES))
    except (OSError, UnicodeDecodeError):
        return None


def keep(session: Session, text: str, digest: str) -> None:
    """Store a text unless it is there, and keep others from dropping it until this transaction ends."""
    values = {"hash": digest, "text": text}
    if session.get_bind().dialect.name == "sqlite":
        session.execute(sqlite.insert(Content).values(values).on_conflict_do_nothing())
    else:
        # an update to the same value locks the row: `drop_unused` of another transaction waits for it, or skips it
        upsert = postgresql.insert(Content).values(values)
        session.execute(upsert.on_conflict_do_update(index_elements=["hash"], set_={"hash": upsert.excluded.hash}))


def drop_unused(session: Session, hashes: Collection[str]) -> None:
    """Remove those texts that no version or draft names any more."""
    if not hashes:
        return
    # the lock comes before the look: a version that another transaction is just adding holds the row, which is skipped
    locked = select(Content.hash).where(Content.hash.in_(hashes)).with_for_update(skip_locked=True)
    ours = set(session.scalars(locked))
    used = set(session.scalars(select(Version.hash).where(Version.hash.in_(ours))))
    used |= set(session.scalars(select(Draft.hash).where(Draft.hash.in_(ours))))
    session.execute(delete(Content).where(Content.hash.in_(ours - used)))


def drop_orphans(session: Session) -> int:
    """Remove all texts that nothing names, while nobody else writes; returns how many there were."""
    orphans = delete(Content).where(
        ~exists().where(Version.hash == Content.hash), ~exists().where(Draft.hash == Content.hash)
    )
    return len(session.scalars(orphans.returning(Content.hash)).all())


@contextmanager
def temporary(folder: Path, text: str) -> Iterator[Path]:
    """A hidden file with `text`, fsynced; removed at the end unless it was renamed."""
    path = write_temporary(folder, text)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
