"""The notebook store: files and metadata that never disagree, and saves that never overwrite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import select

from marimohub import locks, notebooks
from marimohub.database import Database
from marimohub.files import NoSpace, text_hash
from marimohub.names import InvalidName, check_name
from marimohub.notebook_errors import (
    DeleteLocked,
    FileMissing,
    InvalidText,
    NameTaken,
    NotAuthor,
    NotebookError,
    NotFound,
    SaveRefused,
    TextTooLarge,
)
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Draft, Notebook, Version

pytestmark = pytest.mark.unit
TTL = 900.0


def create(store: NotebookStore, name: str = "report", text: str = "a = 1\n", now: float = 0.0) -> None:
    store.create(1, name, text, author="ann", email="ann@example.com", now=now)


def lock(store: NotebookStore, user: str = "ann", now: float = 0.0, name: str = "report") -> int:
    with store.database.transaction() as session:
        return locks.acquire(session, 1, name, user, now=now, ttl=TTL).fence


def path_of(store: NotebookStore, name: str = "report") -> Path:
    return store.root / "default" / f"{name}.py"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a-b",
        "../x",
        "a.py",
        "ü",
        "x" * 101,
        "a\n",
        "json",
        "JSON",
        "duckdb",
        "marimo",
        "con",
        "__init__",
        None,
        3,
    ],
)
def test_bad_names_are_refused_with_a_sentence(name: object) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert caught.value.message.endswith(".")


def test_a_new_notebook_is_a_file_and_a_row(store: NotebookStore) -> None:
    create(store)
    assert path_of(store).read_text() == "a = 1\n"
    (info,) = store.list_all(1, now=1.0)
    assert (info.name, info.author, info.author_email, info.file_exists) == ("report", "ann", "ann@example.com", True)
    assert info.lock.holder is None


def test_names_that_differ_only_in_case_are_taken(store: NotebookStore) -> None:
    create(store, "Report")
    with pytest.raises(NameTaken):
        create(store, "REPORT")


def test_file_put_into_the_folder_becomes_a_notebook_without_author(store: NotebookStore) -> None:
    store.folder(1)
    path_of(store, "found").write_text("x = 1\n")
    path_of(store, "not-a-name").write_text("x = 1\n")
    os.symlink("/etc/passwd", path_of(store, "link"))
    assert [(info.name, info.author) for info in store.list_all(1, now=1.0)] == [("found", None)]


def test_holder_saves_over_the_base_version(store: NotebookStore) -> None:
    create(store)
    fence = lock(store)
    base = store.read(1, "report", now=1.0).hash
    saved = store.save(1, "report", "a = 2\n", user="ann", fence=fence, base=base, now=2.0)
    assert saved.hash == text_hash("a = 2\n")
    assert path_of(store).read_text() == "a = 2\n"
    assert store.read(1, "report", now=3.0).hash == saved.hash


def test_stale_holder_cannot_overwrite_and_finds_a_draft(store: NotebookStore) -> None:
    create(store)
    fence = lock(store, "ann", 0.0)
    base = store.read(1, "report", now=1.0).hash
    lock(store, "bob", TTL + 1)
    with pytest.raises(SaveRefused) as caught:
        store.save(1, "report", "mine\n", user="ann", fence=fence, base=base, now=TTL + 2)
    assert caught.value.code == "lock_lost"
    assert path_of(store).read_text() == "a = 1\n"
    with store.database.transaction(write=False) as session:
        draft = session.get_one(Draft, caught.value.draft)
        assert (draft.user_name, session.get_one(Content, draft.hash).text) == ("ann", "mine\n")


def test_refused_autosaves_over_one_base_grow_one_draft(store: NotebookStore) -> None:
    create(store)
    ids = set()
    for text in ("1\n", "2\n", "3\n"):
        with pytest.raises(SaveRefused) as caught:
            store.save(1, "report", text, user="ann", fence=99, base=text_hash("a = 1\n"), now=1.0)
        ids.add(caught.value.draft)
    assert len(ids) == 1


def test_save_over_another_base_is_refused(store: NotebookStore) -> None:
    create(store)
    fence = lock(store)
    with pytest.raises(SaveRefused) as caught:
        store.save(1, "report", "b\n", user="ann", fence=fence, base=text_hash("other"), now=1.0)
    assert caught.value.code == "base_changed"
    assert path_of(store).read_text() == "a = 1\n"


def test_save_over_a_file_changed_on_disk_is_refused(store: NotebookStore) -> None:
    create(store)
    fence = lock(store)
    base = store.read(1, "report", now=1.0).hash
    path_of(store).write_text("from git\n")
    with pytest.raises(SaveRefused) as caught:
        store.save(1, "report", "b\n", user="ann", fence=fence, base=base, now=2.0)
    assert caught.value.code == "base_changed"
    assert path_of(store).read_text() == "from git\n"
    assert store.read(1, "report", now=3.0).text == "from git\n"


def test_missing_file_shows_and_can_be_replaced_by_a_new_notebook(store: NotebookStore) -> None:
    create(store)
    path_of(store).unlink()
    assert [info.file_exists for info in store.list_all(1, now=1.0)] == [False]
    with pytest.raises(FileMissing, match="Notebook file not found"):
        store.read(1, "report", now=1.0)
    store.create(1, "report", "new\n", author="bob", email=None, now=2.0)
    assert store.read(1, "report", now=3.0).text == "new\n"
    assert store.get(1, "report", now=3.0).author == "bob"


def test_pipe_link_or_huge_file_in_the_folder_hangs_nothing(store: NotebookStore) -> None:
    for name in ("pipe", "link", "huge"):
        create(store, name)
        path_of(store, name).unlink()
    os.mkfifo(path_of(store, "pipe"))
    path_of(store, "link").symlink_to("/etc/passwd")
    with open(path_of(store, "huge"), "wb") as file:
        file.truncate(3 * 2**30)
    exists = {info.name: info.file_exists for info in store.list_all(1, now=1.0)}
    assert exists == {"pipe": False, "link": False, "huge": True}
    assert not store.get(1, "link", now=1.0).file_exists
    for name, error in (("pipe", FileMissing), ("link", FileMissing), ("huge", TextTooLarge)):
        with pytest.raises(error):
            store.read(1, name, now=1.0)
        fence = lock(store, name=name)
        with pytest.raises(SaveRefused):
            store.save(1, name, "b", user="ann", fence=fence, base=text_hash("a = 1\n"), now=1.0)


def test_only_author_or_admin_deletes_and_nobody_deletes_a_locked_one(store: NotebookStore) -> None:
    create(store)
    with pytest.raises(NotAuthor):
        store.delete(1, "report", user="bob", admin=False, now=1.0)
    lock(store, "ann", 1.0)
    for user, admin in (("ann", False), ("root", True)):
        with pytest.raises(DeleteLocked):
            store.delete(1, "report", user=user, admin=admin, now=2.0)
    store.delete(1, "report", user="ann", admin=False, now=TTL + 1)
    assert not path_of(store).exists()
    with pytest.raises(NotFound):
        store.get(1, "report", now=TTL + 2)
    with store.database.transaction(write=False) as session:
        assert session.scalars(select(Version.id)).all() == []
        assert session.scalars(select(Content.hash)).all() == []


def test_fence_of_a_deleted_notebook_is_never_given_out_again(store: NotebookStore) -> None:
    create(store)
    old = lock(store, "ann", 0.0)
    store.delete(1, "report", user="ann", admin=False, now=TTL + 1)
    create(store, now=TTL + 2)
    assert lock(store, "bob", TTL + 3) > old


def test_copy_has_the_text_a_new_author_and_no_lock(store: NotebookStore) -> None:
    create(store)
    lock(store)
    info = store.copy(1, "report", "report_copy", author="bob", email=None, now=1.0)
    assert (info.author, info.lock.holder) == ("bob", None)
    assert store.read(1, "report_copy", now=1.0).text == "a = 1\n"


@pytest.mark.parametrize(
    ("text", "error"), [("\0", InvalidText), ("\ud800", InvalidText), ("x" * (10 * 1024 * 1024 + 1), TextTooLarge)]
)
def test_text_that_cannot_be_stored_is_refused_and_leaves_nothing(
    store: NotebookStore, text: str, error: type[NotebookError]
) -> None:
    with pytest.raises(error):
        create(store, "report", text)
    assert store.list_all(1, now=1.0) == []
    assert list((store.root / "default").iterdir()) == []


def test_full_disk_is_told_and_leaves_nothing_half_written(
    store: NotebookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(store)
    fence = lock(store)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("marimohub.files.os.fsync", full)
    with pytest.raises(NoSpace, match="disk is full"):
        store.save(1, "report", "b\n", user="ann", fence=fence, base=text_hash("a = 1\n"), now=1.0)
    with pytest.raises(NoSpace):
        create(store, "second")
    monkeypatch.undo()
    assert path_of(store).read_text() == "a = 1\n"
    assert sorted(p.name for p in (store.root / "default").iterdir()) == ["report.py"]
    assert [info.name for info in store.list_all(1, now=2.0)] == ["report"]


class Died(BaseException):
    """Stands for SIGKILL at this point."""


@pytest.mark.parametrize("point", ["rename", "sync_folder", "stat"])
def test_hub_that_dies_in_a_save_leaves_the_old_or_the_new_text_whole(
    store: NotebookStore, monkeypatch: pytest.MonkeyPatch, point: str, tmp_path: Path
) -> None:
    create(store)
    fence = lock(store)

    def die(*_args: object, **_kwargs: object) -> None:
        raise Died

    if point == "rename":
        monkeypatch.setattr(notebooks.os, "rename", die)
    elif point == "sync_folder":
        monkeypatch.setattr(notebooks, "sync_folder", die)
    else:
        monkeypatch.setattr(NotebookStore, "_place", die)
    with pytest.raises(Died):
        store.save(1, "report", "new\n", user="ann", fence=fence, base=text_hash("a = 1\n"), now=1.0)
    monkeypatch.undo()
    assert path_of(store).read_text() in ("a = 1\n", "new\n")
    restarted = NotebookStore(Database(store.database.url), store.root)
    assert restarted.reconcile() == ['finished writing the accepted text of "report"']
    assert restarted.reconcile() == []
    assert path_of(store).read_text() == "new\n"
    assert restarted.read(1, "report", now=2.0).hash == text_hash("new\n")
    with restarted.database.transaction(write=False) as session:
        assert session.scalars(select(Notebook.pending)).all() == [False]
