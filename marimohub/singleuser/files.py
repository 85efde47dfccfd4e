"""The user's private folder: notebook texts on disk and what is known about each.

Everything is written to a temporary name, flushed to the disk and renamed, so a crash leaves the old or the new
content and never a part of it. The methods block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
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


class NotUtf8(Exception):
    """The private copy is not UTF-8 text, so it cannot be a notebook's source."""


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
        """The private copy's text, None if there is none. Raises NotUtf8, OSError."""
        try:
            return self.path(name).read_bytes().decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise NotUtf8(name) from error

    def write(self, name: str, text: str) -> None:
        _write_durably(self.path(name), text.encode("utf-8"))

    def backup(self, name: str) -> Path | None:
        """Keep the private copy, byte for byte, under `.marimohub/unpublished/`. Returns where."""
        try:
            content = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        digest = hashlib.sha256(content).hexdigest()[:8]
        # The digest keeps two backups of one second apart, and one text from being kept twice under one name.
        target = self._own / "unpublished" / f"{name}-{stamp}-{digest}.py"
        self._own.mkdir(mode=0o700, exist_ok=True)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _write_durably(target, content)
        return target

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        """A cheap sign of a change: (inode, size, mtime in ns)."""
        try:
            status = self.path(name).stat()
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
            body = json.loads(path.read_bytes())
            return {name: Known(**entry) for name, entry in body["notebooks"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            # Without it every private copy counts as unpublished work, so nothing gets lost by starting afresh.
            log.warning("cannot read %s (%s): private copies will be kept as drafts", path, error)
            return {}


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
