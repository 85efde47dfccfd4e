"""Versions: what is recorded, kept, compared and restored, on a controlled clock."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from marimohub import drafts, locks, versions
from marimohub.compare import MAX_LINE, MAX_ROWS, Row, compare
from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.notebook_errors import BaseChanged, NotFound, NoVersion
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Notebook, Version

pytestmark = pytest.mark.unit
TTL = 900.0
HOUR, DAY = 3600.0, 86_400.0


def create(store: NotebookStore, text: str = "a = 1\n", now: float = 0.0, name: str = "report") -> None:
    store.create(1, name, text, author="ann", email="ann@example.com", now=now)


def lock(store: NotebookStore, user: str = "ann", now: float = 0.0, ttl: float = TTL) -> int:
    with store.database.transaction() as session:
        return locks.acquire(session, 1, "report", user, now=now, ttl=ttl).fence


def save(store: NotebookStore, text: str, fence: int, now: float, user: str = "ann") -> None:
    base = store.read(1, "report", now=now).hash
    store.save(1, "report", text, user=user, fence=fence, base=base, now=now)


def history(store: NotebookStore, now: float = 0.0) -> list[versions.VersionInfo]:
    return versions.history(store, 1, "report", now=now)


def text_of(store: NotebookStore, version: int) -> str:
    with store.database.transaction(write=False) as session:
        return versions.get(session, 1, "report", version)[1]


def stored_texts(store: NotebookStore) -> int:
    with store.database.transaction(write=False) as session:
        return session.scalar(select(func.count()).select_from(Content)) or 0


def path_of(store: NotebookStore) -> Path:
    return store.root / "default" / "report.py"


def test_every_accepted_save_is_a_version_with_author_time_and_hash(store: NotebookStore) -> None:
    create(store, now=10.0)
    save(store, "b\n", lock(store, "bob", 20.0), 30.0, user="bob")
    found = [(v.author, v.created, v.hash, v.kind, v.current) for v in history(store)]
    assert found == [
        ("bob", 30.0, text_hash("b\n"), "save", True),
        ("ann", 10.0, text_hash("a = 1\n"), "create", False),
    ]


def test_save_of_the_current_text_makes_no_version(store: NotebookStore) -> None:
    create(store)
    save(store, "a = 1\n", lock(store), 1.0)
    assert len(history(store)) == 1


def test_save_back_to_an_older_text_is_a_new_version_of_a_text_that_is_stored_once(store: NotebookStore) -> None:
    create(store)
    fence = lock(store)
    for now, text in enumerate(("b\n", "a = 1\n", "b\n"), 1):
        save(store, text, fence, float(now))
    assert [v.kind for v in history(store)] == ["save", "save", "save", "create"]
    assert stored_texts(store) == 2


def test_refused_save_makes_no_version(store: NotebookStore) -> None:
    create(store)
    with pytest.raises(Exception, match="kept as your draft"):
        save(store, "b\n", 99, 1.0)
    assert len(history(store)) == 1


def test_file_changed_on_disk_is_a_version_without_author(store: NotebookStore) -> None:
    create(store)
    path_of(store).write_text("from git\n")
    newest = history(store, now=5.0)[0]
    assert (newest.kind, newest.author, newest.current) == ("disk", None, True)


def test_restore_makes_a_new_version_and_writes_the_file(store: NotebookStore) -> None:
    create(store)
    save(store, "b\n", lock(store), 1.0)
    first = history(store)[-1]
    restored = versions.restore(store, 1, "report", first.id, user="ann", now=2.0)
    assert (restored.kind, restored.author, restored.hash, restored.current) == ("restore", "ann", first.hash, True)
    assert restored.id > first.id
    assert path_of(store).read_text() == "a = 1\n"
    assert len(history(store)) == 3


def test_restore_of_the_current_text_makes_no_version(store: NotebookStore) -> None:
    create(store)
    lock(store)
    (only,) = history(store)
    assert versions.restore(store, 1, "report", only.id, user="ann", now=1.0) == only
    assert len(history(store)) == 1


@pytest.mark.parametrize(("user", "now"), [("bob", 1.0), ("ann", TTL)])
def test_restore_needs_ones_own_live_lock(store: NotebookStore, user: str, now: float) -> None:
    create(store)
    save(store, "b\n", lock(store), 0.0)
    with pytest.raises(locks.LockLost):
        versions.restore(store, 1, "report", history(store)[-1].id, user=user, now=now)
    assert path_of(store).read_text() == "b\n"


def test_restore_never_overwrites_a_file_that_changed_on_disk_meanwhile(store: NotebookStore) -> None:
    create(store)
    save(store, "b\n", lock(store), 1.0)
    first = history(store)[-1]
    path_of(store).write_text("from git\n")
    with pytest.raises(BaseChanged):
        versions.restore(store, 1, "report", first.id, user="ann", now=2.0)
    assert path_of(store).read_text() == "from git\n"
    # once the page has shown the change as a version, nothing is lost by going back
    assert history(store, now=3.0)[0].kind == "disk"
    versions.restore(store, 1, "report", first.id, user="ann", now=4.0)
    assert [v.kind for v in history(store)] == ["restore", "disk", "save", "create"]


def test_restore_brings_back_a_file_that_is_missing(store: NotebookStore) -> None:
    create(store)
    lock(store)
    path_of(store).unlink()
    versions.restore(store, 1, "report", history(store)[0].id, user="ann", now=1.0)
    assert path_of(store).read_text() == "a = 1\n"
    assert len(history(store)) == 1


def test_version_of_another_notebook_is_not_found(store: NotebookStore) -> None:
    create(store)
    create(store, name="other")
    (other,) = versions.history(store, 1, "other", now=1.0)
    with pytest.raises(NoVersion):
        text_of(store, other.id)
    with pytest.raises(NotFound):
        versions.history(store, 1, "REPORT", now=1.0)


def test_the_last_hundred_and_the_newest_of_each_day_are_kept(store: NotebookStore) -> None:
    create(store, "text 0\n", now=0.0)
    fence = lock(store, now=0.0, ttl=1000 * DAY)
    made = [(0.0, "text 0\n")]
    # four days with 30 versions each, then 100 minutes of work on the fifth
    for day in range(4):
        for turn in range(30):
            now = day * DAY + (turn + 1) * 60.0
            made.append((now, f"text {day} {turn}\n"))
            save(store, made[-1][1], fence, now)
    for turn in range(100):
        made.append((4 * DAY + turn * 60.0, f"last {turn}\n"))
        save(store, made[-1][1], fence, made[-1][0])
    kept = history(store)
    assert [text_of(store, v.id) for v in kept[:100]] == [text for _, text in reversed(made[-100:])]
    assert [text_of(store, v.id) for v in kept[100:]] == [f"text {day} 29\n" for day in (3, 2, 1, 0)]
    assert kept[0].current and kept[0].hash == text_hash("last 99\n")
    # texts that no version names any more are gone
    assert stored_texts(store) == 104


def test_a_day_ends_at_midnight_utc(store: NotebookStore) -> None:
    midnight = datetime(2026, 3, 29, tzinfo=UTC).timestamp()
    create(store, "before\n", now=midnight - 1)
    fence = lock(store, now=midnight, ttl=DAY)
    for turn in range(102):
        save(store, f"{turn}\n", fence, midnight + turn)
    assert [text_of(store, v.id) for v in history(store)[100:]] == ["before\n"]


def test_pruning_keeps_a_text_that_a_draft_or_another_notebook_names(store: NotebookStore) -> None:
    create(store, "shared\n")
    create(store, "shared\n", name="other")
    fence = lock(store, ttl=DAY)
    with store.database.transaction() as session:
        drafts.keep(session, 1, "report", "0\n", user="bob", base=text_hash("shared\n"), reason="lock_lost", now=1.0)
    for turn in range(105):
        save(store, f"{turn}\n", fence, float(turn))
    assert len(history(store)) == 100
    assert store.read(1, "other", now=200.0).text == "shared\n"
    with store.database.transaction(write=False) as session:
        for text in ("shared\n", "0\n"):
            assert session.get(Content, text_hash(text)) is not None
        assert session.get(Content, text_hash("1\n")) is None


def test_ids_are_never_given_out_again(store: NotebookStore) -> None:
    create(store)
    old = history(store)[0].id
    store.delete(1, "report", user="ann", admin=False, now=1.0)
    create(store, "other\n", now=2.0)
    assert history(store)[0].id > old


# comparing


def test_comparison_shows_lines_side_by_side_with_their_numbers() -> None:
    result = compare("same\nold\ngone\nend\n", "same\nnew\nend\nmore\n")
    assert not result.truncated
    assert result.rows == [
        Row("equal", (1, "same"), (1, "same")),
        Row("change", (2, "old"), (2, "new")),
        Row("delete", (3, "gone"), None),
        Row("equal", (4, "end"), (3, "end")),
        Row("insert", None, (4, "more")),
        Row("equal", (5, ""), (5, "")),
    ]


@pytest.mark.parametrize(("left", "right"), [("", ""), ("a", "a\n"), ("a\n", "b\n"), ("", "x"), ("a\nb", "b\na")])
def test_comparison_holds_every_line_of_both_sides_in_order(left: str, right: str) -> None:
    rows = compare(left, right).rows
    assert [row.left for row in rows if row.left] == list(enumerate(left.split("\n"), 1))
    assert [row.right for row in rows if row.right] == list(enumerate(right.split("\n"), 1))
    assert all((row.op == "equal") == (bool(row.left and row.right) and row.left[1] == row.right[1]) for row in rows)


def test_long_comparisons_are_cut_and_say_so() -> None:
    result = compare("x\n" * (MAX_ROWS + 10), "")
    assert (len(result.rows), result.truncated) == (MAX_ROWS, True)
    wide = compare("y" * 10_000_000, "z")
    assert wide.truncated and wide.rows[0].left is not None
    assert len(wide.rows[0].left[1]) == MAX_LINE + 1


def test_worst_comparison_ends_in_time() -> None:
    left = "\n".join(str(n % 97) for n in range(9_000))
    right = "\n".join(str(n * 31 % 89) for n in range(9_000))
    began = time.monotonic()
    assert compare(left, right).rows
    assert time.monotonic() - began < 4


# start-up


def restarted(store: NotebookStore) -> NotebookStore:
    return NotebookStore(Database(store.database.url), store.root)


def test_reconcile_finds_nothing_in_order(store: NotebookStore) -> None:
    create(store)
    save(store, "b\n", lock(store), 1.0)
    assert restarted(store).reconcile() == []


def test_reconcile_removes_temporaries_and_texts_that_nothing_names(store: NotebookStore) -> None:
    create(store)
    (store.root / "default" / ".tmp-0123").write_text("half")
    with store.database.transaction() as session:
        session.add(Content(hash=text_hash("lost"), text="lost"))
    assert restarted(store).reconcile() == [
        "removed 1 unfinished temporary file(s)",
        "removed 1 text(s) that no version or draft named",
    ]
    assert restarted(store).reconcile() == []
    assert store.read(1, "report", now=1.0).text == "a = 1\n"


@pytest.mark.parametrize("pending", [True, False])
def test_reconcile_reports_an_accepted_text_that_is_not_there_and_the_file_counts(
    store: NotebookStore, pending: bool
) -> None:
    create(store)
    with store.database.transaction() as session:
        row = session.scalars(select(Notebook)).one()
        row.hash, row.pending = "0" * 64, pending
    (sentence,) = restarted(store).reconcile()
    assert sentence == 'the accepted text of "report" is not in the database; its file is what counts'
    assert store.read(1, "report", now=1.0).text == "a = 1\n"
    assert restarted(store).reconcile() == []


def test_edit_made_while_the_hub_was_down_is_kept_beside_an_unfinished_save(store: NotebookStore) -> None:
    create(store)
    fence = lock(store)

    class Died(BaseException):
        pass

    def die(*_args: object, **_kwargs: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(NotebookStore, "_place", die)
        save(store, "accepted\n", fence, 1.0)
    path_of(store).write_text("by hand\n")
    assert restarted(store).reconcile(now=2.0) == ['finished writing the accepted text of "report"']
    assert path_of(store).read_text() == "accepted\n"
    found = history(store)
    assert [(v.kind, text_of(store, v.id)) for v in found] == [
        ("save", "accepted\n"),
        ("disk", "by hand\n"),
        ("save", "accepted\n"),
        ("create", "a = 1\n"),
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b", b"x" * (10 * 1024 * 1024 + 1)])
def test_file_on_disk_that_cannot_be_a_notebook_is_never_taken_in_nor_overwritten(
    store: NotebookStore, content: bytes
) -> None:
    create(store)
    lock(store)
    path_of(store).write_bytes(content)
    os.utime(path_of(store), (5, 5))
    assert [v.kind for v in history(store)] == ["create"]
    with pytest.raises(BaseChanged):
        versions.restore(store, 1, "report", history(store)[0].id, user="ann", now=1.0)
    assert path_of(store).read_bytes() == content
    with store.database.transaction(write=False) as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 1
