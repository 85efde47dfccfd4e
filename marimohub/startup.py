"""Checks before the hub starts. Each failure is one sentence that says what to do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

# what the hub writes below its data folder
_ENTRIES = ("cookie_secret", "hub.lock", "marimohub.sqlite", "masking_key", "notebooks", "proxy", "snapshots", "users")


class StartupError(Exception):
    """The hub cannot start; the text is for the terminal."""


def prepare_data_dir(path: Path) -> None:
    """Create the data folder with mode 0700, or check that it is ours alone.

    Raises:
        StartupError: it cannot be created, written, or made private.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_uid != os.geteuid():
            raise StartupError(
                f"The data folder {path} belongs to another user. Run the hub as that user, or give the folder to the "
                "user who runs it."
            )
        for entry in _ENTRIES:
            if (path / entry).is_symlink():
                raise StartupError(f"{path / entry} is a link. Replace it by what it leads to; the hub follows none.")
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
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
