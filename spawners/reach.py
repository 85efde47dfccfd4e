"""Whether users of their own can work here: what they need to read must be open to them, and the hub must be able."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

# Source: capability(7), linux/capability.h.
_NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7}
# What a notebook server imports, each perhaps in another place.
_PACKAGES = ("marimohub", "marimo", "duckdb", "uvicorn", "jupyterhub")


def cannot_give(folder: int, uid: int) -> str | None:
    """Why the hub cannot give files in an open folder, and processes, to a user id; None if it can."""
    missing = _missing_capabilities()
    if missing:
        return (
            f"The hub runs as root without the capabilities {', '.join(missing)}, so notebook servers cannot run as "
            "users of their own. Grant them, or run the hub as an ordinary user."
        )
    name = f".{secrets.token_hex(8)}.probe"
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
        try:
            os.chown(name, uid, uid, dir_fd=folder, follow_symlinks=False)
        finally:
            os.rmdir(name, dir_fd=folder)
    except OSError as error:
        return (
            f"The hub runs as root, but cannot give folders in its data folder to other users ({error.strerror}), so "
            "notebook servers cannot run as users of their own. Use another file system for MarimoHub.data_dir, map "
            "more user ids into this container, or run the hub as an ordinary user."
        )
    return None


def _missing_capabilities() -> list[str]:
    """Source: proc(5), /proc/PID/status, CapEff."""
    text = Path("/proc/self/status").read_text()
    held = int(text.partition("\nCapEff:")[2].split()[0], 16)
    return [f"CAP_{name}" for name, bit in _NEEDED.items() if not held >> bit & 1]


def out_of_reach(
    users_dir: Path, interpreters: Iterable[str | Path] = (), mounted: Iterable[str | Path] | None = None
) -> str | None:
    """What a user id that nothing belongs to cannot reach though it must, as a sentence; None if there is nothing.

    With `mounted`, people's folders and these paths can be reached whatever is above them.
    """
    trees = None if mounted is None else [Path(os.path.realpath(path)) for path in mounted]
    programs = [Path(sys.executable), *map(Path, interpreters)]
    files = [Path(os.__file__), *_package_files()]
    for path in (*programs, *files):
        closed = _closed_folder(path, trees)
        if closed is None and not path.exists():
            return f"{path} does not exist, but notebook servers are to run with it."
        if closed is None and not _open_to_all(path, 0o5 if path in programs else 0o4):
            return (
                f"The hub runs as root and its notebook servers as users of their own, who may not read {path}. "
                "Install it so that everybody can, or run the hub as an ordinary user."
            )
        if closed is not None:
            return (
                f"The hub runs as root and its notebook servers as users of their own, who cannot reach {path}: "
                f"{closed} is closed to them. Open it (chmod o+x {closed}), install Python and the hub where everybody "
                "can use them, such as /opt, or run the hub as an ordinary user."
            )
    closed = _closed_folder(users_dir, None)
    if closed is not None and trees is None:
        return (
            "The hub runs as root and its notebook servers as users of their own, who cannot reach their folders in "
            f"{users_dir}: {closed} is closed to them. Set MarimoHub.data_dir to a folder such as /var/lib/marimohub, "
            f"or open that one (chmod o+x {closed})."
        )
    return None


def _package_files() -> list[Path]:
    found = []
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            found.append(Path(spec.origin))
    return found


def _open_to_all(path: Path, bits: int) -> bool:
    return stat.S_IMODE(path.stat().st_mode) & bits == bits


def _closed_folder(path: Path, trees: Sequence[Path] | None) -> Path | None:
    """The first folder on the way to a path that not everybody may search, also on the ways that its links go.

    With `trees`, only folders in one of them count.
    """
    current = path.absolute()
    for _ in range(40):  # as many links as the kernel follows
        for parent in reversed((*current.parents, *Path(os.path.realpath(current.parent), "x").parents)):
            counts = trees is None or any(parent.is_relative_to(tree) for tree in trees)
            if counts and parent.exists() and not _open_to_all(parent, 0o1):
                return parent
        if not current.is_symlink():
            return None
        current = current.parent / os.readlink(current)
    return current
