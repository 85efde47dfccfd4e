"""Checks before the hub starts. Each failure is one sentence that says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import resource
import secrets
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

# what the hub writes below its data folder
_ENTRIES = ("cookie_secret", "hub.lock", "marimohub.sqlite", "masking_key", "notebooks", "proxy", "snapshots", "users")


class StartupError(Exception):
    """The hub cannot start; the text is for the terminal."""


def prepare_data_dir(path: Path, own_uids: bool | None = None) -> None:
    """Create the data folder, or check that it is ours alone, and close what is in it to other users.

    Args:
        own_uids: whether notebook servers run as users of their own, who must get to their folders in `users`: then
            that folder and the data folder can be passed through (mode 0711), but not listed. If not, they are 0700,
            as all else is. None: as it is now, for a command that runs beside the hub.

    Raises:
        StartupError: it cannot be created, written, or made private.
    """
    passage = None if own_uids is None else 0o711 if own_uids else 0o700
    try:
        _make_data_dir(path, bool(own_uids))
        if path.stat().st_uid != os.geteuid():
            raise StartupError(
                f"The data folder {path} belongs to another user. Run the hub as that user, or give the folder to the "
                "user who runs it."
            )
        for name in _ENTRIES:
            if (path / name).is_symlink():
                raise StartupError(f"{path / name} is a link. Replace it by what it leads to; the hub follows none.")
        for entry in _inside(path):
            # a database's log comes and goes while a command runs beside the hub
            with contextlib.suppress(FileNotFoundError):
                _close(entry, passage if entry.name == "users" else 0o700)
        if own_uids and (path / "users").exists():
            # of people who were not here yet since servers run as users of their own
            for entry in _inside(path / "users"):
                _close(entry, 0o770)
        _close(path, passage)
    except (FileExistsError, NotADirectoryError) as error:
        raise StartupError(
            f"{path} is not a folder. Set MarimoHub.data_dir to a folder for the hub's state."
        ) from error
    except PermissionError as error:
        raise StartupError(
            f"The data folder {path} cannot be created or made private by this user. "
            "Set MarimoHub.data_dir to a folder that belongs to the user who runs the hub."
        ) from error
    except OSError as error:
        raise StartupError(f"The data folder {path} cannot be created: {error.strerror}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StartupError(f"The data folder {path} is not writable by the user who runs the hub.")


def _make_data_dir(path: Path, own_uids: bool) -> None:
    for parent in reversed(path.parents):
        # what is missing on the way to it must let people's servers pass
        if not parent.exists():
            parent.mkdir(mode=0o700, exist_ok=True)
            parent.chmod(0o711 if own_uids else 0o700)
    path.mkdir(mode=0o700, exist_ok=True)


def _inside(folder: Path) -> Iterator[Path]:
    """What is in a folder, but no links, which may lead anywhere."""
    for entry in folder.iterdir():
        if not entry.is_symlink():
            yield entry


def _close(path: Path, mode: int | None) -> None:
    """Take away what is more than a mode allows, and let people pass through a folder if it says so."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        if path.name in _ENTRIES:
            raise StartupError(
                f"{path} belongs to another user than the folder that it is in. Give all of it to the user who runs "
                f"the hub: chown -hR USER: {path.parent}"
            )
        if os.geteuid() != 0:
            return
    now = stat.S_IMODE(status.st_mode)
    wanted = now & (0o711 if mode is None else mode) | (0o011 if mode == 0o711 else 0)
    if wanted != now:
        path.chmod(wanted)


def take_hub_lock(path: Path) -> IO[str]:
    """Make this process the only hub of a data folder, for as long as the returned file stays open.

    Raises:
        StartupError: another hub runs on it.
    """
    descriptor = os.open(path / "hub.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = file.read().strip() or "unknown"
        file.close()
        raise StartupError(
            f"Another hub (pid {pid}) runs on the data folder {path}. Stop it first, or use another MarimoHub.data_dir."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def masking_key(path: Path) -> str:
    """The secret of hash masks, made at the first call: 128 random bits as 22 characters of base64.

    That short, so that a key and an e-mail address fit into one block of SHA-256.

    Raises:
        StartupError: the file is damaged. Values hashed with another key are others, so it is not replaced.
    """
    file = path / "masking_key"
    temporary = path / f".masking_key.{secrets.token_hex(6)}"
    try:
        if not file.exists():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as writing:
                writing.write(secrets.token_urlsafe(16))
                writing.flush()
                os.fsync(writing.fileno())
            # whoever comes first wins: the command line may do the same at the same time
            with contextlib.suppress(FileExistsError):
                os.link(temporary, file)
            temporary.unlink()
        key = file.read_text().strip()
    except OSError as error:
        raise StartupError(f"{file} cannot be read or made: {error.strerror}.") from error
    if not re.fullmatch(r"[A-Za-z0-9_-]{22}", key):
        raise StartupError(f"{file} is damaged. Restore it from a backup; without it, hashed values will be others.")
    return key


def cancel_at_signals() -> None:
    """Have SIGTERM and SIGINT cancel the task that calls this: what it has started does not stay behind."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_port_free(host: str, port: int, setting: str) -> None:
    """Raise StartupError if something listens on host:port; `setting` is the trait to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"Port {port} on {host or 'all addresses'} cannot be used: {error.strerror}. "
                f"Stop what uses it, or choose another port with {setting}."
            ) from error


def build_sample_warehouse(path: Path, say: Callable[[str], None]) -> None:
    """Build the sample warehouse in a helper process, with its progress lines passed on.

    Raises:
        StartupError: it could not be built.
    """
    command = [sys.executable, "-m", "marimohub.snapshots", "sample", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as helper:
        assert helper.stdout is not None
        last = ""
        for line in helper.stdout:
            last = line.rstrip()
            say(last)
    if helper.returncode != 0:
        raise StartupError(f"The sample warehouse could not be built: {last or 'no message'}")
