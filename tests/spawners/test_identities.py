"""Who people's servers run as: an id of their own that stays, folders that are theirs alone, no link that leads out."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners import claims, handover, identities, reach
from marimohub.spawners.identities import Identities, IdentityError
from marimohub.spawners.job import Identity
from tests.other_users import NOBODY, as_person, open_folder, root_only

pytestmark = pytest.mark.unit
BASE = 2_000_000 + os.getpid() % 100_000 * 100  # several runs of these tests at one time
RANGE = (BASE, BASE + 40)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that other users can get to, unlike pytest's own."""
    with open_folder() as folder:
        monkeypatch.setattr(claims, "FOLDER", folder / "run" / "uids")
        yield folder


@pytest.fixture
def users(place: Path) -> Path:
    return place / "users"


def look(path: Path) -> tuple[int, int, str]:
    """Owner, group and mode."""
    status = path.lstat()
    return status.st_uid, status.st_gid, oct(stat.S_IMODE(status.st_mode))


def given(users: Path, name: str, among: tuple[int, int] = RANGE) -> Identity:
    identity = Identities(users, among).of(users / name)
    assert identity is not None
    return identity


# who has which id


@root_only
def test_everybody_has_an_id_of_their_own_that_outlives_the_hub(users: Path) -> None:
    hub = Identities(users, RANGE)
    first = {name: hub.of(users / name) for name in ("ann", "bob", "eve")}
    assert hub.snapshot_group == BASE
    assert all(identity and identity.groups == (BASE,) and identity.gid == identity.uid for identity in first.values())
    assert [identity.uid for identity in first.values() if identity] == [BASE + 1, BASE + 2, BASE + 3]
    for name in ("eve", "ann", "bob"):
        assert hub.of(users / name) == first[name]
        assert given(users, name) == first[name], "a hub that was started anew"
    assert given(users, "dan", (BASE, BASE + 100)).uid == BASE + 4


@root_only
def test_ids_come_back_with_a_backup_that_keeps_owners(users: Path, place: Path) -> None:
    bob = [given(users, name) for name in ("ann", "bob")][1]
    subprocess.run(["cp", "-a", users, place / "restored"], check=True)
    shutil.rmtree(users)
    assert given(place / "restored", "bob") == bob
    for part in ("home", "notebooks", "tmp"):
        shutil.rmtree(place / "restored" / "bob" / part)
    assert given(place / "restored", "bob") == bob, "the folder alone says it"


@root_only
def test_the_id_of_a_deleted_person_is_not_given_again_while_their_files_are_there(users: Path) -> None:
    hub = Identities(users, RANGE)
    former = hub.of(users / "ann")
    (users / "ann").rename(users / ".deleted-ann-1")
    again = hub.of(users / "ann")
    assert again and former and again.uid != former.uid
    assert given(users, "bob").uid not in (again.uid, former.uid)
    assert look(users / ".deleted-ann-1" / "home") == (former.uid, former.uid, "0o700")


@root_only
def test_when_all_ids_are_given_the_next_person_is_told_what_helps(users: Path) -> None:
    hub = Identities(users, (BASE, BASE + 2))
    hub.of(users / "ann")
    gone = hub.of(users / "bob")
    (users / "bob").rename(users / ".deleted-bob-1")
    with pytest.raises(IdentityError, match=r"All 2 numbers of uid_range are in use.*\.deleted-"):
        hub.of(users / "eve")
    assert hub.of(users / "ann"), "who has one keeps it"
    shutil.rmtree(users / ".deleted-bob-1")
    assert hub.of(users / "eve") == gone


@root_only
def test_ids_that_accounts_processes_or_shared_memory_use_are_not_given(users: Path) -> None:
    assert pwd.getpwuid(65534).pw_name
    hub = Identities(users, (65530, 65537))
    left = Path(f"/dev/shm/marimohub-test-{os.getpid()}")
    left.touch()
    os.chown(left, 65533, 65533)
    sleeper = subprocess.Popen(["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "sleep", "600"])
    try:
        while Path(f"/proc/{sleeper.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.005)
        uids = [identity.uid for name in "abcd" if (identity := hub.of(users / name))]
    finally:
        sleeper.kill()
        sleeper.wait()
        left.unlink()
    assert uids == [65531, 65535, 65536, 65537]


@root_only
def test_a_copy_of_a_folder_does_not_make_two_people_one(users: Path) -> None:
    given(users, "ann")
    subprocess.run(["cp", "-a", users / "ann", users / "bob"], check=True)
    for name, other in (("ann", "bob"), ("bob", "ann")):
        with pytest.raises(IdentityError, match=rf"belongs to the same user id \({BASE + 1}\) as {other}"):
            given(users, name)
    hub = Identities(users, RANGE)
    with pytest.raises(IdentityError, match="belongs to the same user id"):
        hub.of(users / "ann")
    subprocess.run(["chown", "-hR", "root:root", users / "bob"], check=True)
    assert hub.of(users / "ann") == Identity(BASE + 1, BASE + 1, (BASE,)), "without another start of the hub"
    assert (given(users, "ann").uid, given(users, "bob").uid) == (BASE + 1, BASE + 2)


@root_only
@pytest.mark.parametrize("part", ["", "home", "notebooks", "tmp"])
def test_folders_of_somebody_else_are_refused(users: Path, part: str) -> None:
    given(users, "ann")
    os.chown(users / "ann" / part, 12345, 12345)
    with pytest.raises(
        IdentityError, match=rf"belongs to user id 12345, which is not of uid_range \({BASE + 1} to {BASE + 40}\)"
    ):
        given(users, "ann")
    os.chown(users / "ann" / part, BASE + 2, BASE + 2)
    with pytest.raises(IdentityError, match=r"belongs? to"):
        given(users, "ann")


@root_only
def test_another_range_is_told_and_root_gets_it_going(users: Path) -> None:
    given(users, "ann")
    with pytest.raises(IdentityError, match=rf"not of uid_range \({BASE + 51} to {BASE + 60}\).*chown -hR root:root"):
        given(users, "ann", (BASE + 50, BASE + 60))
    subprocess.run(["chown", "-hR", "root:root", users / "ann"], check=True)
    assert given(users, "ann", (BASE + 50, BASE + 60)).uid == BASE + 51


@root_only
@pytest.mark.parametrize("numbers", [(0, 100), (999, 2000), (5000, 5000), (6000, 5000), (80000, 2**31)])
def test_ranges_that_cannot_be_are_refused(users: Path, numbers: tuple[int, int]) -> None:
    with pytest.raises(IdentityError, match="uid_range cannot be"):
        Identities(users, numbers)


@root_only
def test_people_who_come_at_the_same_time_do_not_share(users: Path) -> None:
    hub = Identities(users, RANGE)
    got: list[tuple[str, Identity | None]] = []

    def come(name: str) -> None:
        got.append((name, hub.of(users / name)))

    threads = [threading.Thread(target=come, args=(f"u{number % 15}",)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 60
    assert len(set(got)) == len({identity for _, identity in got}) == 15


@root_only
def test_hubs_on_one_machine_do_not_give_the_same_ids(users: Path, place: Path) -> None:
    one, other = Identities(users, RANGE), Identities(place / "others", RANGE)
    uids = [
        identity.uid for hub in (one, other, one, other) for name in "ab" if (identity := hub.of(hub.users_dir / name))
    ]
    assert uids == [BASE + 1, BASE + 2, BASE + 3, BASE + 4] * 2
    other.of(other.users_dir / "c")
    assert given(users, "c").uid == BASE + 6
    shutil.rmtree(other.users_dir)
    assert given(users, "d", (BASE, BASE + 6)).uid == BASE + 3, "that hub is gone with its folders"


@root_only
def test_a_copy_of_a_hub_beside_the_first_is_told(users: Path, place: Path) -> None:
    given(users, "ann")
    subprocess.run(["cp", "-a", users, place / "copy"], check=True)
    with pytest.raises(IdentityError, match=rf"user id {BASE + 1}, which another hub of this machine uses for {users}"):
        given(place / "copy", "ann")
    assert given(users, "ann").uid == BASE + 1
    subprocess.run(["chown", "-hR", "root:root", place / "copy"], check=True)
    assert given(place / "copy", "ann").uid == BASE + 2
    users.rename(place / "moved")
    assert given(place / "moved", "ann").uid == BASE + 1, "the same hub, elsewhere"


@root_only
def test_a_machine_without_a_place_to_tell_others_is_told_of_once(
    users: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "get_logger", lambda: logging.getLogger("identities-test"))
    monkeypatch.setattr(claims, "FOLDER", Path("/proc/nowhere/uids"))
    hub = Identities(users, RANGE)
    assert [identity.uid for name in "ab" if (identity := hub.of(users / name))] == [BASE + 1, BASE + 2]
    assert len([text for text in caplog.messages if "need a uid_range each" in text]) == 1


# the folders


@root_only
def test_folders_are_the_persons_and_nobody_elses(users: Path) -> None:
    ann, bob = given(users, "ann"), given(users, "bob")
    assert look(users) == (0, 0, "0o711")
    assert look(users / "ann") == look(users / "ann" / "snapshot") == (0, ann.uid, "0o750")
    for part in ("home", "notebooks", "tmp"):
        assert look(users / "ann" / part) == (ann.uid, ann.uid, "0o700")
        as_person(ann, (users / "ann" / part / "mine").touch)
    assert set(as_person(ann, lambda: os.listdir(users / "ann"))) >= {"home", "notebooks", "snapshot", "tmp"}
    denied: list[tuple[Identity, Callable[[], Any]]] = [
        (ann, lambda: os.listdir(users)),
        (ann, (users / "ann" / "new").touch),
        (ann, lambda: (users / "ann" / "home").rename(users / "ann" / "other")),
        (ann, lambda: (users / "ann" / "snapshot").rename(users / "ann" / "home" / "snapshot")),
        (ann, (users / "ann" / "tmp").rmdir),
        (ann, (users / "ann" / "snapshot" / "new").touch),
        (ann, lambda: (users / "ann" / "snapshot" / "new").symlink_to("/")),
        (ann, lambda: (users / "ann").chmod(0o777)),
        (ann, lambda: (users / "ann" / "snapshot").chmod(0o777)),
        (bob, lambda: os.listdir(users / "ann")),
        (bob, (users / "ann" / "home" / "mine").read_text),
        (bob, lambda: os.listdir(users / "ann" / "snapshot")),
    ]
    for who, act in denied:
        with pytest.raises(PermissionError):
            as_person(who, act)


@root_only
@pytest.mark.parametrize("named", ["", "-second"])
def test_what_was_opened_up_is_closed_again(users: Path, named: str) -> None:
    ann = given(users, "ann")
    for path in (users, users / "ann", *(users / "ann" / part for part in ("home", "tmp", "snapshot"))):
        path.chmod(0o777)
    os.chown(users / "ann" / "snapshot", 0, 0)
    log = users / "ann" / f"server{named}.log"
    log.write_text("secret")
    log.chmod(0o644)
    assert given(users, "ann") == ann
    test_folders_are_the_persons_and_nobody_elses(users)
    assert look(log) == (0, 0, "0o600")
    outside = users.parent / "outside"
    outside.write_text("precious")
    for plant in (log.symlink_to, log.hardlink_to):
        log.unlink()
        plant(outside)
        given(users, "ann")
        assert not log.exists()
        log.touch()
    assert outside.read_text() == "precious"


@root_only
@pytest.mark.parametrize("part", ["", "home", "notebooks", "tmp", "snapshot"])
def test_a_link_in_the_place_of_a_folder_is_refused_and_leads_nowhere(users: Path, place: Path, part: str) -> None:
    given(users, "ann")
    target = place / "outside"
    target.mkdir(mode=0o755)
    (target / "file").touch()
    before = (look(target), look(target / "file"))
    planted = users / "ann" / part
    shutil.rmtree(planted)
    planted.symlink_to(target)
    with pytest.raises(IdentityError, match=r"link|not a folder"):
        given(users, "ann")
    planted.unlink()
    planted.write_text("a file")
    with pytest.raises(IdentityError):
        given(users, "ann")
    assert (look(target), look(target / "file")) == before


def test_only_folders_of_people_get_an_id(users: Path) -> None:
    hub = Identities(users, RANGE)
    for path in (users, users / "a" / "b", users.parent / "ann", users / ".." / "ann"):
        with pytest.raises(IdentityError, match="is not in"):
            hub.of(path)


# taking over what was there before


def fill(users: Path, place: Path) -> dict[str, Path]:
    """A folder as a hub whose servers ran as root leaves it, with what somebody hostile could have put there."""
    home, notebooks = users / "ann" / "home", users / "ann" / "notebooks"
    for folder in (home / "closed" / "deep", notebooks / "__marimo__", users / "ann" / "snapshot"):
        folder.mkdir(parents=True)
    found = {name: place / name for name in ("outside", "linked", "shared")}
    for path in found.values():
        path.write_text(path.name)
        path.chmod(0o640)
    (home / "closed" / "deep" / "data.csv").write_text("1,2\n")
    (home / "closed").chmod(0o000)
    (notebooks / "work.py").write_text("x = 1\n")
    (home / "again.py").hardlink_to(notebooks / "work.py")  # two names, both in the person's folders
    (home / "setuid").write_text("")
    (home / "setuid").chmod(0o6755)
    (home / "link").symlink_to(found["outside"])
    (home / "folder").symlink_to(place)
    (home / "hard").hardlink_to(found["linked"])
    os.mkfifo(home / "pipe")
    os.mknod(home / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return found


@root_only
def test_a_folder_of_root_becomes_the_persons_without_loss(
    users: Path, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("identities-test")
    monkeypatch.setattr(identities, "get_logger", lambda: logger)
    outside = fill(users, place)
    home, notebooks = users / "ann" / "home", users / "ann" / "notebooks"
    before = {name: look(path) for name, path in outside.items()}
    with caplog.at_level(logging.INFO, "identities-test"):
        ann = given(users, "ann")
    own = [path for part in (home, notebooks) for path in part.rglob("*") if path.name not in ("hard", "null")]
    assert {look(path)[:2] for path in own} == {(ann.uid, ann.uid)}
    assert {path.name for path in own} >= {"data.csv", "work.py", "again.py", "setuid", "link", "folder", "pipe"}
    assert {name: look(path) for name, path in outside.items()} == before
    assert look(home / "hard")[0] == 0, "it has a name that is not the person's"
    assert look(home / "null") == (0, 0, "0o0"), "a device is of no use"
    assert look(home / "setuid")[2] == "0o755"
    assert any("2 files" in text and "'home/hard'" in text and "'home/null'" in text for text in caplog.messages)

    def work() -> list[str]:
        os.chmod(home / "closed", 0o700)
        with open(home / "again.py", "a") as file:
            file.write("y = 2\n")
        return [(home / "closed" / "deep" / "data.csv").read_text(), (notebooks / "work.py").read_text()]

    assert as_person(ann, work) == ["1,2\n", "x = 1\ny = 2\n"]
    with pytest.raises(PermissionError):
        as_person(ann, (home / "hard").read_text)
    with pytest.raises(PermissionError):
        as_person(ann, (home / "link").read_text)


@root_only
def test_a_hub_that_dies_while_it_gives_a_folder_goes_on_at_the_next_start(
    users: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(users, place)
    left, chown = 4, os.chown

    def dying(path: str, uid: int, gid: int, **how: Any) -> None:
        nonlocal left
        left -= path.startswith("/proc/self/fd/")
        if left < 0:
            raise RuntimeError("killed")
        chown(path, uid, gid, **how)

    with monkeypatch.context() as fault:
        fault.setattr(os, "chown", dying)
        with pytest.raises(RuntimeError):
            given(users, "ann")
    home = users / "ann" / "home"
    assert look(home)[0] == 0
    assert BASE + 1 in {look(path)[0] for path in home.rglob("*")}
    ann = given(users, "ann")
    assert look(home) == (ann.uid, ann.uid, "0o700")
    assert (look(home / "again.py")[0], look(home / "closed" / "deep" / "data.csv")[0]) == (ann.uid, ann.uid)
    assert given(users, "ann").uid == BASE + 1


@root_only
def test_a_folder_is_not_given_away_while_its_person_runs_something(users: Path) -> None:
    ann = given(users, "ann")
    (users / "ann" / "home" / "file").touch()
    os.chown(users / "ann" / "home", 0, 0)
    child = os.fork()
    if child == 0:
        os.setresuid(ann.uid, ann.uid, ann.uid)
        signal.pause()
        os._exit(0)
    try:
        while f"\nUid:\t{ann.uid}" not in Path(f"/proc/{child}/status").read_text():
            time.sleep(0.005)
        with pytest.raises(IdentityError, match=f"while processes of user id {ann.uid} run"):
            given(users, "ann")
        assert look(users / "ann" / "home" / "file")[0] == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert given(users, "ann") == ann
    assert look(users / "ann" / "home" / "file")[0] == ann.uid


@root_only
def test_folders_that_are_nested_too_deep_are_told_and_nothing_is_lost(users: Path) -> None:
    folder = os.open(_made(users / "ann" / "home"), os.O_RDONLY)
    for _ in range(handover.MAX_DEPTH + 5):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.raises(IdentityError, match="nested deeper than 256"):
        given(users, "ann")
    assert look(users / "ann" / "home")[0] == 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@root_only
def test_ids_can_be_turned_off_and_on_again(users: Path) -> None:
    """Off: `uid_range` is None, so that a hub of root runs everything as root."""
    ann = given(users, "ann")
    notebook = users / "ann" / "notebooks" / "mine.py"
    as_person(ann, lambda: notebook.write_text("mine"))
    for _ in range(2):
        off = Identities(users, None)
        assert (off.of(users / "ann"), off.snapshot_group, off.problem()) == (None, None, None)
        assert look(users) == (0, 0, "0o700")
        for part in ("", "home", "notebooks", "tmp", "snapshot"):
            assert look(users / "ann" / part)[::2] == (0, "0o700")
        assert look(notebook)[0] == 0
        (users / "ann" / "home" / "of root").write_text("later")
        assert given(users, "ann") == ann
        assert as_person(ann, lambda: notebook.read_text() + (users / "ann" / "home" / "of root").read_text()) == (
            "minelater"
        )
        test_folders_are_the_persons_and_nobody_elses(users)
        shutil.rmtree(users / "bob")


@root_only
def test_a_hub_moves_from_an_ordinary_user_to_root_and_back(place: Path) -> None:
    os.chown(place, NOBODY.uid, NOBODY.gid)
    users, notebook = place / "users", place / "users" / "ann" / "notebooks" / "mine.py"

    def ordinary() -> str | None:
        Identities(users, RANGE).of(users / "ann")
        with open(notebook, "a") as file:
            file.write("1")
        return notebook.read_text()

    for number in (1, 2):
        # what the sentences of `prepare_data_dir` and of IdentityError tell to do
        subprocess.run(["chown", "-hR", f"{NOBODY.uid}:{NOBODY.gid}", place], check=True)
        assert as_person(NOBODY, ordinary) == "12" * (number - 1) + "1"
        with pytest.raises(IdentityError, match=f"belongs to user id {NOBODY.uid}.*chown -hR root:root"):
            given(users, "ann")
        subprocess.run(["chown", "-hR", "root:root", place], check=True)
        place.chmod(0o711)
        ann = given(users, "ann")
        assert as_person(ann, lambda: notebook.write_text(notebook.read_text() + "2")) == 2 * number
        with pytest.raises(PermissionError):
            as_person(NOBODY, notebook.read_text)


# without root


@pytest.fixture
def ordinary(place: Path) -> Path:
    """A users folder to be made by an ordinary user."""
    if os.geteuid() == 0:
        os.chown(place, NOBODY.uid, NOBODY.gid)
    return place / "users"


def test_without_root_folders_are_the_hubs_alone_and_there_are_no_ids(ordinary: Path) -> None:
    def prepare() -> list[Any]:
        hub = Identities(ordinary, RANGE)
        first = [hub.of(ordinary / "ann"), hub.snapshot_group, hub.problem()]
        (ordinary / "ann" / "home").chmod(0o755)
        return [*first, hub.of(ordinary / "ann"), os.geteuid()]

    *nothing, uid = as_person(NOBODY, prepare)
    assert nothing == [None] * 4
    for path in (ordinary, ordinary / "ann", *(ordinary / "ann").iterdir()):
        assert look(path)[::2] == (uid, "0o700")
    assert sorted(path.name for path in (ordinary / "ann").iterdir()) == ["home", "notebooks", "snapshot", "tmp"]


@root_only
@pytest.mark.parametrize("part", ["", "home", "snapshot"])
def test_without_root_folders_of_another_user_are_refused(ordinary: Path, part: str) -> None:
    def prepare() -> None:
        Identities(ordinary, None).of(ordinary / "ann")

    as_person(NOBODY, prepare)
    os.chown(ordinary / "ann" / part, 0, 0)
    with pytest.raises(IdentityError, match=r"belongs to user id 0.*chown -hR USER:"):
        as_person(NOBODY, prepare)


def test_without_root_a_planted_link_leads_nowhere(ordinary: Path, place: Path) -> None:
    def prepare() -> None:
        Identities(ordinary, None).of(ordinary / "ann")

    def plant(target: Path) -> None:
        target.mkdir(0o755)
        (ordinary / "ann" / "tmp").rmdir()
        (ordinary / "ann" / "tmp").symlink_to(target)

    as_person(NOBODY, prepare)
    as_person(NOBODY, lambda: plant(place / "target"))
    with pytest.raises(IdentityError):
        as_person(NOBODY, prepare)
    assert look(place / "target")[2] == oct(0o755 & ~_umask())


def _umask() -> int:
    return int(Path("/proc/self/status").read_text().partition("\nUmask:")[2].split()[0], 8)


# what keeps ids from working


@root_only
def test_a_data_folder_that_people_cannot_reach_is_told(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    problem = Identities(closed / "data" / "users", RANGE).problem()
    assert problem and f"{closed} is closed to them" in problem
    assert "Set MarimoHub.data_dir to a folder such as /var/lib/marimohub" in problem
    closed.chmod(0o711)
    (closed / "data").chmod(0o711)
    assert Identities(closed / "data" / "users", RANGE).problem() is None


@root_only
def test_an_interpreter_that_people_cannot_reach_is_told(users: Path, place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    hub = Identities(users, RANGE)
    (closed / "python").symlink_to(sys.executable)
    problem = hub.problem([closed / "python"])
    assert problem and f"cannot reach {closed / 'python'}: {closed} is closed to them" in problem
    assert f"chmod o+x {closed}" in problem
    (place / "venv").mkdir(mode=0o755)
    (place / "venv" / "python").symlink_to(closed / "python")
    problem = hub.problem([place / "venv" / "python"])
    assert problem and f"{closed} is closed to them" in problem, "a virtual environment's link goes on"
    closed.chmod(0o755)
    assert hub.problem([closed / "python", place / "venv" / "python"]) is None
    own = place / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o700)
    assert f"may not read {own}" in (hub.problem([own]) or "")
    assert "does not exist" in (hub.problem([place / "nowhere"]) or "")


@root_only
def test_what_is_above_mounts_may_be_closed_but_not_what_is_in_them(place: Path) -> None:
    closed, venv = place / "closed", place / "closed" / "venv"
    (venv / "bin").mkdir(parents=True)
    closed.chmod(0o700)
    venv.chmod(0o755)
    (venv / "bin").chmod(0o755)
    (venv / "bin" / "python").symlink_to(sys.executable)
    hub = Identities(closed / "data" / "users", RANGE)
    mounted = [venv, *sys.path, sys.prefix, sys.base_prefix, "/usr", Path(reach.__file__).parents[1]]
    assert hub.problem([venv / "bin" / "python"], mounted=mounted) is None
    assert f"{closed} is closed to them" in (hub.problem() or "")
    (venv / "bin").chmod(0o700)
    assert f"{venv / 'bin'} is closed to them" in (hub.problem([venv / "bin" / "python"], mounted=mounted) or "")


@root_only
def test_a_range_whose_group_is_in_use_is_told(users: Path) -> None:
    problem = Identities(users, (65534, 65600)).problem()
    assert problem and "first number of uid_range, 65534, is the group of all notebook servers" in problem


@root_only
def test_root_without_its_capabilities_is_told(users: Path) -> None:
    code = f"from marimohub.spawners.identities import *; print(Identities(Path({str(users)!r}), {RANGE}).problem())"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-chown,-setuid", "--inh-caps=-chown,-setuid", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "without the capabilities CAP_CHOWN, CAP_SETUID" in done.stdout


@root_only
def test_the_program_that_is_said_to_be_reachable_can_be_run_by_people(users: Path) -> None:
    ann = given(users, "ann")
    assert Identities(users, RANGE).problem() is None
    code = "import marimo, duckdb, jupyterhub, marimohub.singleuser; print('runs')"
    done = subprocess.run(
        ["setpriv", f"--reuid={ann.uid}", f"--regid={ann.gid}", "--clear-groups", sys.executable, "-c", code],
        cwd="/",
        env={"HOME": str(users / "ann" / "home"), "PYTHONPYCACHEPREFIX": str(users / "ann" / "tmp")},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("runs\n", "")
