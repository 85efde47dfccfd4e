"""Finished files of one folder in the cache: found by key, never half-made, not trusted after a power failure.

`<key><suffix>` is the file, `<key>.json` what is known of it. The JSON is written first and the file arrives by a
rename, so a file without its JSON is no entry. Files are not synced when they are made, which would take as long as
making them: the JSON names the boot of the kernel that wrote them, and entries of another boot count only if they
were synced since (`settle`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from marimohub.snapshots.transfer import fsync_folder

HANDED_OUT_GRACE = 300.0  # seconds in which an entry that was found is safe from removal


@dataclass(frozen=True)
class Entry:
    """A finished file with what is known of it, and its size in bytes."""

    key: str
    path: Path
    about: dict[str, Any]
    size: int


class Shelf:
    """The entries of one folder, which nobody else may use."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix
        self._found: dict[str, float] = {}
        self._held: Counter[str] = Counter()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def find(self, key: str) -> Entry | None:
        """The entry of that key, which is safe from removal for a while then; None if it is not there or not whole."""
        entry = self.peek(key)
        if entry is not None:
            self._found[key] = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(entry.path)
        return entry

    def peek(self, key: str) -> Entry | None:
        """As `find`, without using it."""
        path = self.path(key)
        try:
            about = json.loads(self._about(key).read_bytes())
            size = path.stat().st_size
            if size != about["size"] or not (about.get("settled") or about["boot"] == boot()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Entry(key, path, about, size)

    def put(self, key: str, built: Path, about: dict[str, Any]) -> Entry:
        """Move a finished file in. Raises OSError."""
        if self._about(key).exists():
            # of an entry that was found damaged: after a power failure it must not vouch for this file
            self._about(key).unlink()
            fsync_folder(str(self.folder))
        about = {**about, "size": os.path.getsize(built), "boot": boot(), "settled": False}
        self._found[key] = time.monotonic()
        write_json(self._about(key), about)
        os.replace(built, self.path(key))
        return Entry(key, self.path(key), about, about["size"])

    def settle(self, key: str) -> None:
        """Sync an entry to the disk, so that it outlives a power failure. Slow, and nobody needs to wait for it."""
        entry = self.find(key)
        if entry is None or entry.about["settled"]:
            return
        with contextlib.suppress(OSError):
            for path in (entry.path, self.folder):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            write_json(self._about(key), {**entry.about, "settled": True})

    def remove(self, key: str) -> None:
        """Remove an entry. Who has the file open, or a link to it, keeps it."""
        self.path(key).unlink(missing_ok=True)
        self._about(key).unlink(missing_ok=True)
        self._found.pop(key, None)

    @contextlib.contextmanager
    def held(self, keys: Collection[str]) -> Iterator[None]:
        """Keep entries from being `unused` for as long as something works with them."""
        self._held.update(keys)
        try:
            yield
        finally:
            # not subtract(): names of what is held no more would stay
            self._held -= Counter(keys)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left: files without their JSON, JSON without its file, temporary names."""
        for entry in self.folder.iterdir():
            with contextlib.suppress(OSError):
                partner = entry.with_suffix(".json" if entry.suffix == self.suffix else self.suffix)
                if not partner.exists() and time.time() - entry.stat().st_mtime > HANDED_OUT_GRACE:
                    entry.unlink()

    def unused(self) -> list[tuple[float, int, str]]:
        """Entries that nothing refers to, the longest unused first: POSIX time of the last use, bytes, key."""
        recent = time.monotonic() - HANDED_OUT_GRACE
        self._found = {key: at for key, at in self._found.items() if at > recent}
        found = []
        for path in self.folder.glob(f"*{self.suffix}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                # a second name is the link in somebody's folder
                key = path.name.removesuffix(self.suffix)
                if status.st_nlink == 1 and key not in self._found and key not in self._held:
                    found.append((status.st_mtime, status.st_size, key))
        return sorted(found)

    def newest_first(self) -> list[str]:
        """The keys of all entries, the last used first."""
        found = [(path.stat().st_mtime, path.stem) for path in self.folder.glob(f"*{self.suffix}")]
        return [key for _, key in sorted(found, reverse=True)]

    def size(self) -> int:
        """Bytes of all entries."""
        total = 0
        for path in self.folder.glob(f"*{self.suffix}"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _about(self, key: str) -> Path:
        return self.folder / f"{key}.json"


@cache
def boot() -> str:
    """Names the running kernel's boot. Source: random(4), /proc/sys/kernel/random/boot_id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)  # not Linux: nothing of an earlier process counts as written


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file by a rename. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        temporary.write_text(json.dumps(value), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
