"""Checks before the hub starts. Each failure is one sentence that says what to do."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

# what the hub writes below its data folder
_ENTRIES = ("cookie_secret", "hub.lock", "marimohub.sqlite", "notebooks", "proxy", "snapshots", "users")


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
