"""Which hub of this machine uses which user id: two people with one id could end each other's programs.

Who has an id is what the folders of a hub say (see identities.py). This is about hubs that run on one machine without
knowing of each other. It is only true until the next boot, when nothing runs as anybody, so it is kept in /run:

    /run/marimohub/uids/80001    the users folder of the hub whose folder has that id

What a hub left that is gone with its folders holds for nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/run/marimohub/uids")
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Claims:
    """What the hubs of this machine said, for as long as nobody else may say anything."""

    def __init__(self, folder: int, users_dir: Path) -> None:
        self._folder = folder
        self._users_dir = users_dir
        self._used: dict[Path, set[int]] = {}

    def claim(self, uid: int) -> Path | None:
        """Say that a user id is used here. Returns the users folder of another hub that uses it; None: it is ours.

        Raises:
            OSError
        """
        descriptor = os.open(str(uid), os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._folder)
        with os.fdopen(descriptor, "r+b") as file:
            holder = Path(os.fsdecode(file.read()))
            if holder == self._users_dir:
                return None
            if holder.is_absolute() and uid in self._used_in(holder):
                return holder
            file.seek(0)
            file.truncate()
            file.write(os.fsencode(self._users_dir))
        return None

    def _used_in(self, users_dir: Path) -> set[int]:
        """The groups of the folders there, which are the ids."""
        if users_dir not in self._used:
            found = self._used[users_dir] = set()
            with contextlib.suppress(OSError), os.scandir(users_dir) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        found.add(entry.stat(follow_symlinks=False).st_gid)
        return self._used[users_dir]


@contextlib.contextmanager
def held(users_dir: Path) -> Iterator[Claims]:
    """The claims, while no other hub changes them.

    Raises:
        OSError: there is no place for them on this machine.
    """
    for made in (FOLDER.parent, FOLDER):
        with contextlib.suppress(FileExistsError):
            made.mkdir(mode=0o700)
        status = made.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise NotADirectoryError(0, "is no folder of the hub's user", str(made))
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield Claims(folder, users_dir)
    finally:
        os.close(folder)
