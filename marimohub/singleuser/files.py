"""The user's private folder: notebook texts on disk and what is known about each.

Everything is written to a temporary name, flushed to the disk and renamed, so a crash leaves the old or the new
content and never a part of it. The methods block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger("marimohub.singleuser")

NAME = re.compile(r"[a-zA-Z0-9_]{1,100}")
OWN_FOLDER = ".marimohub"
# The base of a text about which nothing is known: the hash of no text, so that the hub never takes it as an edit
# of its present version.
UNKNOWN_BASE = "0" * 64


def text_hash(text: str) -> str:
    """The hub's hash of a text: sha256 of its UTF-8 form, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass
class Known:
    """What is remembered of a notebook: the hub's version the private copy comes from, the fence of the lock
    under which it was opened, and the last text that the hub keeps as a draft."""

    base: str = UNKNOWN_BASE
    fence: int | None = None
    drafted: str | None = None


MAX_BYTES = 10 * 1024 * 1024  # of a notebook's file; one that is larger is not read into memory


class NotANotebook(Exception):
    """What is there cannot be a notebook's source. The text says why and ends without a full stop."""


class NotebookFolder:
    """The private folder at `root`. Survives a restart of the server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._own = root / OWN_FOLDER
        self._state_lock = threading.Lock()
        self._known = self._load()

    def name_of(self, key: str) -> str | None:
        """The notebook that marimo means by a file key or path; None if it is not one the hub manages."""
        path = Path(os.path.normpath(self.root / key))
        if path.parent != self.root or path.suffix != ".py" or not NAME.fullmatch(path.stem):
            return None
        return path.stem

    def at_top(self, path: str) -> bool:
        """Whether a path is a Python file directly in the folder, where only the hub's notebooks belong."""
        full = Path(os.path.normpath(self.root / path))
        return full.parent == self.root and full.suffix == ".py"

    def path(self, name: str) -> Path:
        return self.root / f"{name}.py"

    def read(self, name: str) -> str | None:
        """The private copy's text, None if there is none. Raises NotANotebook, OSError."""
        try:
            return _read_regular(self.path(name)).decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise NotANotebook("it is not UTF-8 text") from error

    def write(self, name: str, text: str) -> None:
        _write_durably(self.path(name), text.encode("utf-8"))

    def backup(self, name: str) -> Path | None:
        """Keep the private copy, byte for byte, under `.marimohub/unpublished/`. Returns where.

        What is no file of bearable size (a link, a pipe, a folder) is moved there as it is.
        """
        try:
            content = _read_regular(self.path(name))
        except FileNotFoundError:
            return None
        except NotANotebook:
            target = self._unpublished(name, secrets.token_hex(4))
            os.rename(self.path(name), target)
            return target
        # The digest keeps two backups of one second apart, and one text from being kept twice under one name.
        target = self._unpublished(name, hashlib.sha256(content).hexdigest()[:8])
        _write_durably(target, content)
        return target

    def _unpublished(self, name: str, distinction: str) -> Path:
        self._own.mkdir(mode=0o700, exist_ok=True)
        folder = self._own / "unpublished"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{distinction}.py"

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        """A cheap sign of a change: (inode, size, mtime in ns)."""
        try:
            status = self.path(name).lstat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def known(self, name: str) -> Known | None:
        return self._known.get(name)

    def remember(self, name: str, known: Known) -> None:
        with self._state_lock:
            self._known[name] = known
            body = {"version": 1, "notebooks": {key: asdict(value) for key, value in self._known.items()}}
            self._own.mkdir(mode=0o700, exist_ok=True)
            _write_durably(self._own / "notebooks.json", json.dumps(body, indent=1).encode())

    def _load(self) -> dict[str, Known]:
        path = self._own / "notebooks.json"
        try:
            body = json.loads(_read_regular(path))
            return {name: Known(**entry) for name, entry in body["notebooks"].items()}
        except FileNotFoundError:
            return {}
        except (NotANotebook, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # Without it every private copy counts as unpublished work, so nothing gets lost by starting afresh.
            log.warning("cannot read %s (%s): private copies will be kept as drafts", path, error)
            return {}


def _read_regular(path: Path) -> bytes:
    """A file's content. Code in a notebook can put anything there: no link is followed, no pipe waited for.

    Raises NotANotebook, FileNotFoundError, OSError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise NotANotebook("it is a link or something else that is no file") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotANotebook("it is a folder, a pipe or something else that is no file")
    with open(handle, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise NotANotebook(f"it is larger than {MAX_BYTES // 1024 // 1024} MB")
    return content


def _write_durably(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
