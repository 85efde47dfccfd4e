"""Texts are stored once, whoever names them, and go with the last who does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from marimohub import locks, versions
from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Notebook
from tests.databases import KINDS, new_url

TTL = 900.0


@pytest.mark.parametrize("kind", KINDS)
def test_notebooks_that_share_texts_at_once_never_lose_one(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every save drops a version, whose text another notebook may be taking up in the same moment
    monkeypatch.setattr(versions, "KEEP_LAST", 1)
    database = Database(new_url(kind, tmp_path, request))
    database.prepare()
    store = NotebookStore(database, tmp_path / "notebooks")
    texts = [f"{n}\n" for n in range(3)]
    names = [f"n{n}" for n in range(6)]

    def work(number: int) -> None:
        name = names[number]
        store.create(1, name, texts[0], author="ann", email=None, now=0.0)
        with database.transaction() as session:
            fence = locks.acquire(session, 1, name, "ann", now=0.0, ttl=TTL).fence
        base = text_hash(texts[0])
        for turn in range(1, 25):
            text = texts[(turn * (number + 1)) % 3]
            base = store.save(1, name, text, user="ann", fence=fence, base=base, now=float(turn)).hash

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(work, range(len(names))))
    with database.transaction(write=False) as session:
        for notebook in session.scalars(select(Notebook)):
            text = session.get_one(Content, notebook.hash).text
            assert (store.root / "default" / f"{notebook.name}.py").read_text() == text
    assert [found for found in store.reconcile() if "is not in the database" in found] == []
    database.close()
