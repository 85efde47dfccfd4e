"""Who a person's servers run as when the hub is root: a user id of their own, out of a configured range.

There is no list of them. Who has which id is what the folders say, so a backup that keeps owners restores it:

    users/               root, 0711
    users/<u>/           root:U, 0750         the group is the id that was given
      home, notebooks, tmp    U:U, 0700       so is the owner
      snapshot/          root:U, 0750         the hub writes, the person reads
      server.log         root, 0600
    users/.deleted-…     keeps its id, so that it is not given again

U is above the first number of the range, which is the group of all of them: snapshot files are hard links that people
share, readable by that group, in folders that only one person can enter.

The person's code may be busy in these folders, so everything goes through descriptors and follows no link.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from traitlets.log import get_logger

from marimohub.spawners import claims, reach
from marimohub.spawners.claims import Claims
from marimohub.spawners.handover import hand_over, opened
from marimohub.spawners.job import Identity

OWN = ("home", "notebooks", "tmp")
SNAPSHOT = "snapshot"
LOWEST, HIGHEST = 1000, 2**31 - 1
# User ids are given by one hub at a time (hub.lock), in threads.
_GIVING = threading.Lock()


class IdentityError(Exception):
    """A person's folders cannot be prepared; `message` says what an administrator has to do."""

    code = "identity"

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class Identities:
    """The user ids of the people of one users folder. Methods block; call them in a thread."""

    def __init__(self, users_dir: Path, uid_range: tuple[int, int] | None) -> None:
        """`uid_range` (first and last number) is used by root alone: nobody else can give ids to others.

        Raises:
            IdentityError: the range cannot be used.
        """
        self.users_dir = Path(users_dir).absolute()
        self._range: range | None = None
        if uid_range is not None and os.geteuid() == 0:
            low, high = uid_range
            if not LOWEST <= low < high <= HIGHEST:
                raise IdentityError(
                    f"uid_range cannot be {low} to {high}. Give two numbers from {LOWEST} to {HIGHEST}, the first one "
                    "less than the second."
                )
            self._range = range(low + 1, high + 1)
        # folders of which it is known that nobody else has their id
        self._sure: dict[str, int] = {}
        # the ids of each folder, as they were when it was seen first
        self._seen: dict[str, set[int]] = {}
        self._warned = False
        # one thread at a time prepares a folder
        self._busy: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def snapshot_group(self) -> int | None:
        """The group that may read snapshot files; None: people have no ids of their own."""
        return None if self._range is None else self._range.start - 1

    def problem(
        self, interpreters: Iterable[str | Path] = (), *, mounted: Iterable[str | Path] | None = None
    ) -> str | None:
        """Why servers cannot run as users of their own here, as a sentence that says what to do; None if they can.

        Args:
            interpreters: Python programs beside the hub's that servers may run with.
            mounted: where servers see the file system through mounts made by root, what is mounted. Folders above it
                may be closed then, and the person's own folders are mounted, too. None: they see it as it is.
        """
        if self._range is None:
            return None
        group = self._range.start - 1
        if (name := _group_name(group)) is not None:
            return (
                f"The first number of uid_range, {group}, is the group of all notebook servers, but here it is the "
                f"group {name}. Choose a range that nothing else uses."
            )
        try:
            with self._opened() as users:
                return reach.cannot_give(users, self._range[-1]) or reach.out_of_reach(
                    self.users_dir, interpreters, mounted
                )
        except OSError as error:
            return f"{self.users_dir} cannot be used for people's folders: {error.strerror or error}."

    def of(self, folder: Path) -> Identity | None:
        """Make a person's folders, or see that they are as they should be; returns whom their servers run as.

        Without ids of their own the folders are the hub's, mode 0700, and there is none. Quick, but for folders that a
        hub without ids filled: these are given to the person, which takes as long as they are large.

        Raises:
            IdentityError: the folders belong to somebody else, or no id is left.
        """
        folder = Path(folder).absolute()
        if folder.parent != self.users_dir:
            raise IdentityError(f"{folder} is not in {self.users_dir}.")
        try:
            with self._busy[folder.name], self._opened() as users:
                if self._range is None:
                    self._prepare_ordinary(users, folder)
                    return None
                uid = self._uid(users, folder)
                self._prepare(users, folder, uid)
                return Identity(uid, uid, (self._range.start - 1,))
        except OSError as error:
            raise IdentityError(
                f"The folder {folder} could not be prepared: {error.strerror or error}. If something in it is a link, "
                "put what it leads to in its place."
            ) from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        self.users_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opened(str(self.users_dir)) as users:
            # people pass through it, each to a folder of their own, and see nothing of the others
            _set(users, -1, -1, 0o700 if self._range is None else 0o711)
            yield users

    # who has which id

    def _uid(self, users: int, folder: Path) -> int:
        assert self._range is not None
        name = folder.name
        with _GIVING:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=users)
            status = os.stat(name, dir_fd=users, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise IdentityError(f"{folder} is not a folder. Remove it.")
            if status.st_uid != 0:
                raise self._foreign(folder, status.st_uid)
            found = self._recorded(users, name, status)
            if len(found) > 1:
                raise IdentityError(
                    f"Parts of {folder} belong to different users ({_listed(found)}). Give all of it to one of them, "
                    f"or to root: chown -hR root:root {folder}"
                )
            if not found:
                for part, owner in self._owners(users, name).items():
                    if owner != 0:
                        raise self._foreign(folder / part, owner)
                with self._claims() as others:
                    uid = self._free(users, others)
                    os.chown(name, 0, uid, dir_fd=users, follow_symlinks=False)  # from here on it is given
                self._sure[name], self._seen[name] = uid, {uid}
                return uid
            uid = found.pop()
            if self._sure.get(name) != uid:
                self._check_alone(users, folder, uid)
                self._sure[name] = uid
            return uid

    @contextlib.contextmanager
    def _claims(self) -> Iterator[Claims | None]:
        with contextlib.ExitStack() as stack:
            held = None
            try:
                held = stack.enter_context(claims.held(self.users_dir))
            except OSError as error:
                if not self._warned:
                    self._warned = True
                    get_logger().warning(
                        "Hubs that root runs on one machine need a uid_range each: this one cannot tell others which "
                        "ids it uses (%s)",
                        error,
                    )
            yield held

    def _recorded(self, users: int, name: str, status: os.stat_result) -> set[int]:
        """The ids of the range that a person's folder says are theirs: one, or none yet."""
        assert self._range is not None
        return {uid for uid in (status.st_gid, *self._owners(users, name).values()) if uid in self._range}

    def _owners(self, users: int, name: str) -> dict[str, int]:
        found = {}
        for part in OWN:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[part] = os.stat(f"{name}/{part}", dir_fd=users, follow_symlinks=False).st_uid
        return found

    def _given(self, users: int) -> defaultdict[int, list[str]]:
        """All ids that were given, with the folders that have them, also those of deleted people."""
        names = set(os.listdir(users))
        self._seen = {name: uids for name, uids in self._seen.items() if name in names}
        for name in names - self._seen.keys():
            self._see(users, name)
        given: defaultdict[int, list[str]] = defaultdict(list)
        for name, uids in self._seen.items():
            for uid in uids:
                given[uid].append(name)
        return given

    def _see(self, users: int, name: str) -> set[int]:
        self._seen[name] = set()
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=users, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._seen[name] = self._recorded(users, name, status)
        return self._seen[name]

    def _free(self, users: int, others: Claims | None) -> int:
        """An id that nobody had: the one after the highest, as long as there are any."""
        assert self._range is not None
        given = self._given(users)
        top = max(given, default=self._range.start - 1)
        busy = set(_owners_of_processes()) | set(_owners_in_shared_memory())
        for uid in (*range(top + 1, self._range.stop), *range(self._range.start, top)):
            if uid in given or uid in busy or _user_name(uid) is not None or _group_name(uid) is not None:
                continue
            if others is None or others.claim(uid) is None:
                return uid
        raise IdentityError(
            f"All {len(self._range)} numbers of uid_range are in use, so nobody new can have a notebook server. Make "
            f"the range larger, or remove folders of deleted people ({self.users_dir}/.deleted-…) that nobody needs."
        )

    def _check_alone(self, users: int, folder: Path, uid: int) -> None:
        others = [name for name in self._given(users)[uid] if name != folder.name and uid in self._see(users, name)]
        if others:
            raise IdentityError(
                f"{folder} belongs to the same user id ({uid}) as {', '.join(sorted(others))} beside it, perhaps by a "
                f"copy. Remove the copy, or give it to root, so that it gets a new id: chown -hR root:root FOLDER"
            )
        if (account := _user_name(uid)) is not None:
            raise IdentityError(
                f"{folder} belongs to user id {uid}, which is now that of the account {account} of this machine. "
                "Choose a uid_range that nothing else uses, and give the folder to root: chown -hR root:root "
                f"{folder}"
            )
        with self._claims() as claimed:
            other = claimed.claim(uid) if claimed is not None else None
        if other is not None:
            raise IdentityError(
                f"{folder} belongs to user id {uid}, which another hub of this machine uses for {other}. Give each hub "
                "a uid_range of its own. Folders that were copied get new ids once they are root's: "
                f"chown -hR root:root {self.users_dir}"
            )

    def _foreign(self, path: Path, uid: int) -> IdentityError:
        assert self._range is not None
        return IdentityError(
            f"{path} belongs to user id {uid}, which is not of uid_range ({self._range.start} to {self._range[-1]}). "
            f"Give all of it to root: chown -hR root:root {path}"
        )

    # the folders

    def _prepare(self, users: int, folder: Path, uid: int) -> None:
        with opened(folder.name, users) as own:
            _set(own, 0, uid, 0o750)
            with contextlib.ExitStack() as stack:
                parts = {part: stack.enter_context(_made(part, own)) for part in OWN}
                owners = {part: os.fstat(inner).st_uid for part, inner in parts.items()}
                for part, owner in owners.items():
                    if owner not in (0, uid):
                        raise self._foreign(folder / part, owner)
                self._hand_over(folder, {part: inner for part, inner in parts.items() if owners[part] == 0}, 0, uid)
                for inner in parts.values():
                    # last: a folder that is theirs has been given away whole
                    _set(inner, uid, uid, 0o700)
            with _made(SNAPSHOT, own) as inner:
                _set(inner, 0, uid, 0o750)
            _keep_logs_private(own)

    def _hand_over(self, folder: Path, parts: dict[str, int], former: int, uid: int) -> None:
        if not any(os.listdir(inner) for inner in parts.values()):
            return
        person = uid or former
        if person in _owners_of_processes():
            raise IdentityError(
                f"The files in {folder} cannot be given to user id {uid} while processes of user id {person} run. End "
                f"them and try again: pkill -KILL -U {person}"
            )
        result = hand_over(parts, former, uid)
        if result.given:
            get_logger().info("Gave %i files in %s to user id %i", result.given, folder, uid)
        if result.left:
            shown = ", ".join(repr(name) for name in result.left[:10])
            get_logger().warning(
                "%i files in %s still belong to user id %i, because they are devices, on other file systems, or have "
                "names outside of it: %s",
                len(result.left), folder, former, shown,
            )  # fmt: skip

    def _prepare_ordinary(self, users: int, folder: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.name, 0o700, dir_fd=users)
        with _ours(folder.name, users, folder) as own:
            for part in (*OWN, SNAPSHOT):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=own)
            if os.geteuid() == 0:
                self._take_back(own, folder)
            for part in (*OWN, SNAPSHOT):
                with _ours(part, own, folder / part):
                    pass

    def _take_back(self, own: int, folder: Path) -> None:
        """What belongs to the user id that the folder is for, from a time when people had ids, becomes root's.

        The folder's group stays, so that the person gets the same id when there are ids again.
        """
        uid = os.fstat(own).st_gid
        with contextlib.ExitStack() as stack:
            parts = {part: stack.enter_context(opened(part, own)) for part in OWN}
            theirs = {part: inner for part, inner in parts.items() if 0 != os.fstat(inner).st_uid == uid}
            self._hand_over(folder, theirs, uid, 0)
            for inner in theirs.values():
                _set(inner, 0, 0, 0o700)


@contextlib.contextmanager
def _made(name: str, within: int) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=within)
    with opened(name, within) as descriptor:
        yield descriptor


@contextlib.contextmanager
def _ours(name: str, within: int, path: Path) -> Iterator[int]:
    """A folder of the hub's own user, made private."""
    owner = os.stat(name, dir_fd=within, follow_symlinks=False).st_uid
    if owner != os.geteuid():
        raise IdentityError(
            f"{path} belongs to user id {owner}: perhaps the hub was run by another user before. Run it as that user "
            f"again, or give its whole data folder to the user who runs it now: chown -hR USER: FOLDER"
        )
    with opened(name, within) as descriptor:
        _set(descriptor, -1, -1, 0o700)
        yield descriptor


def _set(folder: int, uid: int, gid: int, mode: int) -> None:
    """Owner, group and mode of an open folder, touched only if they differ."""
    status = os.fstat(folder)
    if uid >= 0 and (status.st_uid, status.st_gid) != (uid, gid):
        os.fchown(folder, uid, gid)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(folder, mode)


def _keep_logs_private(folder: int) -> None:
    """The servers' output: plain files of the hub's."""
    for name in os.listdir(folder):
        if not (name.startswith("server") and name.endswith(".log")):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != 0:
                os.unlink(name, dir_fd=folder)
            elif stat.S_IMODE(status.st_mode) != 0o600:
                os.chmod(name, 0o600, dir_fd=folder)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def _owners_of_processes() -> Iterator[int]:
    """User ids that something runs as."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{entry}/status").read_text()
                yield from map(int, status.partition("\nUid:")[2].partition("\n")[0].split())


def _owners_in_shared_memory() -> Iterator[int]:
    """User ids that left something in /dev/shm, where every server may make files."""
    with contextlib.suppress(OSError), os.scandir("/dev/shm") as entries:  # noqa: S108 - looked at only
        for entry in entries:
            with contextlib.suppress(OSError):
                yield entry.stat(follow_symlinks=False).st_uid


def _listed(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
