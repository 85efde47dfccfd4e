"""What the hammer's clients were told, held against the database and the files at the end."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.orm import Content, Draft, Lock, Notebook, Version
from marimohub.versions import KEEP_LAST

Record = dict[str, Any]


@dataclass
class Counts:
    """What a run was like. Each count is of things that were checked."""

    operations: int = 0
    unknown: int = 0
    fences: int = 0
    accepted: int = 0
    refused: int = 0
    drafts: int = 0
    superseded: int = 0
    deleted: int = 0

    def lines(self, title: str, kills: int) -> str:
        return (
            f"\n{title}: {self.operations} operations, {kills} kills with SIGKILL, {self.unknown} answers lost by them"
            f"\n  fences given out: {self.fences}, with two holders: 0, fallen: 0"
            f"\n  accepted saves: {self.accepted}, lost: 0 (deleted notebooks: {self.deleted})"
            f"\n  refused saves: {self.refused}, found as a draft: {self.refused} "
            f"({self.drafts} drafts; {self.superseded} texts were replaced by a later one of the same person and base)"
        )


def check(logs: Iterable[Path], database: Database, folder: Path, workspace_id: int = 1) -> Counts:
    """Raise AssertionError for any promise that was not kept."""
    clients = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    records = [record for client in clients for record in client]
    counts = Counts(len(records), sum(record["answer"] is None for record in records))
    codes = Counter(r["answer"]["error"] for r in records if r["answer"] and "error" in r["answer"])
    unexpected = set(codes) - {
        *("lock_held", "lock_lost", "not_holder", "not_locked", "base_changed"),
        *("not_found", "file_missing", "name_taken", "locked"),
    }
    assert not unexpected, f"answers that nobody asked for: {codes}"
    with database.transaction(write=False) as session:
        check_fences(clients, session, workspace_id, counts)
        check_saves(records, session, workspace_id, folder, counts)
        check_drafts(clients, session, counts)
    return counts


def accepted(record: Record, *operations: str) -> bool:
    return record["op"] in operations and record["answer"] is not None and "error" not in record["answer"]


def check_fences(clients: list[list[Record]], session: Session, workspace_id: int, counts: Counts) -> None:
    holders: dict[tuple[str, int], set[str]] = defaultdict(set)
    highest: dict[str, int] = defaultdict(int)
    for client in clients:
        seen: dict[str, int] = defaultdict(int)
        for record in client:
            if accepted(record, "acquire", "heartbeat", "save"):
                name, fence = record["name"], record["answer"].get("fence") or record["fence"]
                holders[(name, fence)].add(record["user"])
                assert fence >= seen[name], f"a fence of {name} has fallen from {seen[name]} to {fence}"
                seen[name] = fence
                highest[name] = max(highest[name], fence)
    for (name, fence), users in holders.items():
        assert len(users) == 1, f"fence {fence} of {name} was held by {users}"
    for name, fence in highest.items():
        assert session.get_one(Lock, (workspace_id, name.lower())).fence >= fence
    counts.fences = len(holders)


class History:
    """The texts of one notebook name: each accepted one names the text it was made from."""

    def __init__(self) -> None:
        self.base: dict[str, str | None] = {}
        self.fence: dict[str, int] = {}
        self.certain: set[str] = set()
        self.deletions = 0

    def add(self, record: Record) -> None:
        if record["op"] == "delete":
            self.deletions += record["answer"] is None or "error" not in record["answer"]
        elif record["op"] in ("create", "save") and (record["answer"] is None or "error" not in record["answer"]):
            self.base[record["hash"]] = record.get("base")
            if record["answer"] is not None:
                self.certain.add(record["hash"])
                self.fence[record["hash"]] = record.get("fence", 0)

    def back(self, digest: str) -> Iterator[str]:
        """A text and all that it was made from, newest first. The oldest may be known by its hash alone."""
        step: str | None = digest
        while step is not None:
            yield step
            step = self.base.get(step)


def check_saves(records: list[Record], session: Session, workspace_id: int, folder: Path, counts: Counts) -> None:
    histories: dict[str, History] = defaultdict(History)
    for record in records:
        if record["op"] in ("create", "save", "delete"):
            histories[record["name"]].add(record)
    final = {row.name: row for row in session.scalars(select(Notebook).where(Notebook.workspace_id == workspace_id))}
    on_disk = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(on_disk) == {f"{name}.py" for name in final}
    for name, history in histories.items():
        counts.accepted += sum(history.base[digest] is not None for digest in history.certain)
        counts.deleted += history.deletions
        current: list[str] = []
        if name in final:
            row = final[name]
            assert not row.pending
            assert text_hash(on_disk[f"{name}.py"]) == row.hash, f"file and metadata of {name} disagree"
            current = list(history.back(row.hash))
            found = session.scalars(
                select(Version.hash).where(Version.notebook_id == row.id).order_by(Version.id.desc()).limit(KEEP_LAST)
            ).all()
            assert current[: len(found)] == list(found), f"the versions of {name} are not what was accepted"
            assert len(found) == min(len(current), KEEP_LAST)
        check_one_line(name, history)
        lost = history.certain - set(current)
        if history.deletions == 0:
            assert not lost, f"accepted texts of {name} are lost"
        # each deletion ends one line of texts, and only the last line lives
        lines = {list(history.back(digest))[-1] for digest in history.certain}
        assert len(lines) <= history.deletions + 1
        fences = [history.fence[digest] for digest in reversed(current) if digest in history.fence]
        assert fences == sorted(fences), f"a text of {name} was accepted under an older fence"


def check_one_line(name: str, history: History) -> None:
    """No text was replaced twice: else one of two accepted saves has overwritten the other."""
    followers: dict[str, set[str]] = defaultdict(set)
    for digest in history.certain:
        line = list(history.back(digest))
        for newer, older in itertools.pairwise(line):
            followers[older].add(newer)
    for digest, found in followers.items():
        assert len(found) == 1, f"two accepted saves of {name} replaced one text, {digest}: {found}"


def check_drafts(clients: list[list[Record]], session: Session, counts: Counts) -> None:
    last: dict[int, set[str]] = {}
    owners: dict[int, str] = {}
    places: dict[tuple[str, str, str], int] = {}
    for client in clients:
        for record in client:
            if record["op"] != "save":
                continue
            place = (record["user"], record["name"], record["base"])
            if record["answer"] is None:
                # it may have been refused, and its text kept in place of the former
                if place in places:
                    last[places[place]].add(record["hash"])
            elif record["answer"].get("draft"):
                draft = record["answer"]["draft"]
                counts.refused += 1
                counts.superseded += draft in last and record["hash"] not in last[draft]
                places[place], owners[draft], last[draft] = draft, record["user"], {record["hash"]}
            elif "error" in record["answer"]:
                assert record["answer"]["error"] == "not_found", "a save was refused without a draft"
    counts.drafts = len(last)
    rows = session.execute(
        select(Draft.id, Draft.user_name, Content.text).join(Content, Content.hash == Draft.hash)
    ).all()
    kept = {draft: (user, text_hash(text)) for draft, user, text in rows}
    for draft, hashes in last.items():
        assert draft in kept, f"draft {draft} is gone"
        assert kept[draft][0] == owners[draft]
        assert kept[draft][1] in hashes, f"draft {draft} does not hold what was refused last"
