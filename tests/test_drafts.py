"""Drafts: refused texts that wait for the person who typed them, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from marimohub import drafts, locks, versions
from marimohub.files import text_hash
from marimohub.names import InvalidName
from marimohub.notebook_errors import (
    BaseChanged,
    DraftChanged,
    NameTaken,
    NoDraft,
    NotFound,
    SaveRefused,
)
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Draft

pytestmark = pytest.mark.unit
TTL = 900.0
BASE = text_hash("a = 1\n")


@pytest.fixture
def made(store: NotebookStore) -> NotebookStore:
    store.create(1, "report", "a = 1\n", author="ann", email=None, now=0.0)
    return store


def lock(store: NotebookStore, user: str = "ann", now: float = 0.0) -> int:
    with store.database.transaction() as session:
        return locks.acquire(session, 1, "report", user, now=now, ttl=TTL).fence


def refuse(store: NotebookStore, text: str = "mine\n", user: str = "ann", base: str = BASE, now: float = 1.0) -> int:
    """A save that ends as a draft; returns its id."""
    with pytest.raises(SaveRefused) as caught:
        store.save(1, "report", text, user=user, fence=99, base=base, now=now)
    return caught.value.draft


def listed(store: NotebookStore, user: str = "ann", now: float = 2.0) -> list[drafts.DraftInfo]:
    with store.database.transaction(write=False) as session:
        return drafts.of_user(session, 1, user, now=now)


def text_of(store: NotebookStore, draft: int, user: str = "ann") -> str:
    with store.database.transaction(write=False) as session:
        return drafts.get(session, 1, draft, user, now=2.0)[1]


def discard(store: NotebookStore, draft: int, user: str = "ann") -> None:
    with store.database.transaction() as session:
        drafts.discard(session, 1, draft, user)


def stored(store: NotebookStore, text: str) -> bool:
    with store.database.transaction(write=False) as session:
        return session.get(Content, text_hash(text)) is not None


def path_of(store: NotebookStore, name: str = "report") -> Path:
    return store.root / "default" / f"{name}.py"


def test_refused_save_is_listed_with_its_reason_and_text(made: NotebookStore) -> None:
    draft = refuse(made)
    (info,) = listed(made)
    assert (info.id, info.notebook, info.reason, info.created) == (draft, "report", "lock_lost", 1.0)
    assert (info.base_hash, info.hash, info.notebook_exists) == (BASE, text_hash("mine\n"), True)
    assert info.message.endswith("was not published.")
    assert text_of(made, draft) == "mine\n"


def test_file_changed_on_disk_is_the_reason_base_changed(made: NotebookStore) -> None:
    fence = lock(made)
    path_of(made).write_text("from git\n")
    with pytest.raises(SaveRefused):
        made.save(1, "report", "mine\n", user="ann", fence=fence, base=BASE, now=1.0)
    (info,) = listed(made)
    assert info.reason == "base_changed"
    assert info.can_replace


def test_one_draft_for_each_user_and_base_and_older_texts_go(made: NotebookStore) -> None:
    other_base = text_hash("another\n")
    ids = {refuse(made, "1\n"), refuse(made, "2\n"), refuse(made, "2\n")}
    assert len(ids) == 1
    assert not stored(made, "1\n")
    refuse(made, "3\n", base=other_base)
    refuse(made, "4\n", user="bob")
    assert sorted(text_of(made, info.id) for info in listed(made)) == ["2\n", "3\n"]
    assert [text_of(made, info.id, "bob") for info in listed(made, "bob")] == ["4\n"]


def test_nobody_else_gets_to_a_draft_by_any_call(made: NotebookStore) -> None:
    draft = refuse(made)
    lock(made, "root")
    assert listed(made, "root") == []
    with pytest.raises(NoDraft):
        text_of(made, draft, "root")
    with pytest.raises(NoDraft):
        discard(made, draft, "root")
    with pytest.raises(NoDraft):
        drafts.copy(made, 1, draft, "stolen", user="root", email=None, now=1.0)
    with pytest.raises(NoDraft):
        drafts.replace(made, 1, draft, user="root", now=1.0)
    assert text_of(made, draft) == "mine\n"
    assert path_of(made).read_text() == "a = 1\n"


def test_discard_removes_the_text_unless_something_else_names_it(made: NotebookStore) -> None:
    draft, same = refuse(made), refuse(made, "a = 1\n", user="bob")
    discard(made, draft)
    discard(made, same, "bob")
    assert not stored(made, "mine\n")
    assert stored(made, "a = 1\n")
    with pytest.raises(NoDraft):
        discard(made, draft)


def test_draft_survives_the_deletion_of_its_notebook(made: NotebookStore) -> None:
    draft = refuse(made)
    made.delete(1, "report", user="ann", admin=False, now=2.0)
    (info,) = listed(made)
    assert (info.notebook_exists, info.can_replace) == (False, False)
    assert text_of(made, draft) == "mine\n"
    with pytest.raises(NotFound):
        drafts.replace(made, 1, draft, user="ann", now=3.0)
    drafts.copy(made, 1, draft, "rescued", user="ann", email=None, now=3.0)
    assert path_of(made, "rescued").read_text() == "mine\n"


def test_save_by_an_old_holder_of_a_deleted_notebook_is_a_draft(made: NotebookStore) -> None:
    fence = lock(made)
    made.delete(1, "report", user="ann", admin=False, now=TTL + 1)
    with pytest.raises(SaveRefused) as caught:
        made.save(1, "report", "typed\n", user="ann", fence=fence, base=BASE, now=TTL + 2)
    assert caught.value.code == "lock_lost"
    assert text_of(made, caught.value.draft) == "typed\n"
    assert not path_of(made).exists()
    # a fence that was never given out keeps nothing
    for name, number in (("report", fence + 1), ("never", 1), ("../x", 1)):
        with pytest.raises(NotFound):
            made.save(1, name, "x\n", user="ann", fence=number, base=BASE, now=TTL + 2)


def test_copy_makes_a_notebook_of_the_draft_and_the_draft_is_gone(made: NotebookStore) -> None:
    draft = refuse(made, user="bob")
    info = drafts.copy(made, 1, draft, "rescued", user="bob", email="bob@example.com", now=2.0)
    assert (info.name, info.author, info.author_email, info.lock.holder) == ("rescued", "bob", "bob@example.com", None)
    assert path_of(made, "rescued").read_text() == "mine\n"
    assert listed(made, "bob") == []
    assert [v.kind for v in versions.history(made, 1, "rescued", now=3.0)] == ["copy"]


@pytest.mark.parametrize(("name", "error"), [("report", NameTaken), ("REPORT", NameTaken), ("a b", InvalidName)])
def test_copy_that_is_refused_keeps_the_draft(made: NotebookStore, name: str, error: type[Exception]) -> None:
    draft = refuse(made)
    with pytest.raises(error):
        drafts.copy(made, 1, draft, name, user="ann", email=None, now=2.0)
    assert text_of(made, draft) == "mine\n"


def test_replace_publishes_under_ones_live_lock_and_the_draft_is_gone(made: NotebookStore) -> None:
    draft = refuse(made)
    with pytest.raises(locks.LockLost):
        drafts.replace(made, 1, draft, user="ann", now=1.0)
    lock(made, "bob", 1.0)
    assert not listed(made, now=2.0)[0].can_replace
    with pytest.raises(locks.LockLost):
        drafts.replace(made, 1, draft, user="ann", now=2.0)
    lock(made, "ann", 1.0 + TTL)
    assert listed(made, now=2.0 + TTL)[0].can_replace
    assert drafts.replace(made, 1, draft, user="ann", now=2.0 + TTL) == "report"
    assert path_of(made).read_text() == "mine\n"
    assert listed(made) == []
    newest = versions.history(made, 1, "report", now=3.0 + TTL)[0]
    assert (newest.kind, newest.author, newest.current) == ("draft", "ann", True)


def test_replace_never_overwrites_a_file_that_changed_on_disk_meanwhile(made: NotebookStore) -> None:
    draft = refuse(made)
    lock(made)
    path_of(made).write_text("from git\n")
    with pytest.raises(BaseChanged):
        drafts.replace(made, 1, draft, user="ann", now=2.0)
    assert path_of(made).read_text() == "from git\n"
    assert text_of(made, draft) == "mine\n"


def test_replace_by_the_current_text_only_ends_the_draft(made: NotebookStore) -> None:
    draft = refuse(made, "a = 1\n")
    lock(made)
    drafts.replace(made, 1, draft, user="ann", now=2.0)
    assert listed(made) == []
    assert len(versions.history(made, 1, "report", now=3.0)) == 1


def test_draft_that_grew_meanwhile_is_not_thrown_away(made: NotebookStore, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = refuse(made)
    lock(made)
    real = made.publish

    def publish(*args: object, **kwargs: object) -> object:
        monkeypatch.undo()
        refuse(made, "mine and more\n")  # between the look at the draft and its publishing
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(made, "publish", publish)
    with pytest.raises(DraftChanged):
        drafts.replace(made, 1, draft, user="ann", now=2.0)
    assert text_of(made, draft) == "mine and more\n"
    assert path_of(made).read_text() == "a = 1\n"


def test_id_of_a_discarded_draft_is_never_given_out_again(made: NotebookStore) -> None:
    old = refuse(made)
    discard(made, old)
    assert refuse(made) > old
    with made.database.transaction(write=False) as session:
        assert session.scalar(select(func.count()).select_from(Draft)) == 1
