"""Two people work on one hub of root's, or of an ordinary user: who their code runs as, what it reaches, what stays."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners import sandbox
from tests.hub import Hub, Person
from tests.other_users import open_folder
from tests.spawners.escape.notebook import NotebookPage

NOBODY = 65534
MODES = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]
CONFIG = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.MarimoHub.default_role = "editor"
c.MarimoHub.governance = "off"
c.MarimoHub.warehouse = "{}"
"""
COUNT = """
import duckdb, os
with duckdb.connect(os.environ["MARIMOHUB_SNAPSHOT"], read_only=True) as snapshot:
    print(snapshot.execute("SELECT count(*) FROM t").fetchone()[0])
"""
KEEP = """
import os, pathlib, tempfile
pathlib.Path.home().joinpath("kept.txt").write_text("mine")
pathlib.Path("beside.txt").write_text("mine")
pathlib.Path(tempfile.gettempdir(), "gone.txt").write_text("mine")
print(tempfile.gettempdir())
"""
TRY = """
found = {{}}
for path in {}:
    try:
        found[path] = open(path).read()[:9] if not path.endswith("/") else os.listdir(path)
    except OSError as error:
        found[path] = error.strerror
print(json.dumps(found))
"""


def commit(warehouse: Path, statement: str) -> None:
    """In a process of its own, which DuckDB's lock belongs to."""
    code = f"import duckdb; duckdb.connect({str(warehouse)!r}).execute({statement!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


class HubOf(Hub):
    """A hub that an ordinary user runs, or whoever runs the tests."""

    uid: int | None = None

    def command(self, *arguments: str) -> list[str]:
        as_user = (
            [] if self.uid is None else ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        )
        return [*as_user, *super().command(*arguments)]


class Someone:
    """A person at work in a notebook of their name."""

    def __init__(self, hub: HubOf, name: str) -> None:
        self.person = Person(hub, name)
        assert self.person.sign_in().ok
        if self.person.api("GET", f"/notebooks/{name}").status_code == 404:
            assert self.person.api("POST", "/notebooks", {"name": name}).status_code == 201
        answer = self.person.api("POST", f"/notebooks/{name}/lock", {})
        assert answer.ok, f"{answer.text}\n{hub.log[-3000:]}"
        self.page = NotebookPage(self.person.session, f"{hub.url}/user/{name}/", name)
        self.page.load()
        self.page.connect()
        self.page.first_output()

    def runs_as(self) -> tuple[int, int, list[int]]:
        """The user, the group and the other groups of the notebook's kernel; all ids of it are the same."""
        kernel = int(self.page.run("import os; print(os.getpid())"))
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{kernel}/status").read_text().splitlines())
        (uid,), (gid,) = ({*map(int, lines[name].split())} for name in ("Uid", "Gid"))
        return uid, gid, [*map(int, lines["Groups"].split())]

    def save(self, code: str) -> None:
        config = {"hideCode": False, "disabled": False, "column": None}
        body = {"cellIds": self.page.cells[:1], "codes": [code], "names": ["_"], "configs": [config]}
        body |= {"filename": f"{self.page.name}.py", "layout": None, "persist": True}
        answer = self.page.post("api/kernel/save", body)
        assert answer.ok, answer.text

    def saved(self) -> str:
        """What the hub has of the notebook."""
        (file,) = (self.person.hub.data / "notebooks").rglob(f"{self.page.name}.py")
        return file.read_text()

    def stop(self) -> None:
        self.page.close()
        assert self.person.api("DELETE", f"/users/{self.page.name}/server").status_code in (202, 204)


@pytest.fixture(params=MODES)
def hub(request: pytest.FixtureRequest) -> Iterator[HubOf]:
    uid = NOBODY if request.param == "ordinary" and os.geteuid() == 0 else None
    with open_folder() as folder:
        warehouse = folder / "live" / "team.duckdb"
        warehouse.parent.mkdir(mode=0o755)
        commit(warehouse, "CREATE TABLE t AS SELECT range AS i FROM range(1000)")
        hub = HubOf(folder, CONFIG.format(warehouse), HOME=str(folder))
        hub.uid = uid
        if sandbox.can_view():
            folder.chmod(0o700)  # as the home folder of who runs the hub
        former = hub.data / "users" / "ann" / "home" / "former.txt"
        former.parent.mkdir(parents=True, mode=0o700)
        former.write_text("of before")
        if uid is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid)
        try:
            yield hub
        finally:
            hub.stop()


def test_two_people_work_apart_and_are_the_same_after_a_restart(hub: HubOf) -> None:
    root = hub.uid is None and os.geteuid() == 0
    hub.start()
    ann, bob = Someone(hub, "ann"), Someone(hub, "bob")
    who = {one.page.name: one.runs_as() for one in (ann, bob)}
    if root:
        assert len({uid for uid, _, _ in who.values()}) == 2
        assert all(80000 < uid == gid and groups == [80000] for uid, gid, groups in who.values())
    else:
        assert {uid for uid, _, _ in who.values()} == {hub.uid or os.geteuid()}
    users = hub.data / "users"
    for one in (ann, bob):
        folder = users / one.page.name
        assert one.page.run(COUNT).strip() == "1000"
        assert one.page.run(KEEP).strip() == str(folder / "tmp")
        for path in (folder / "home" / "kept.txt", folder / "notebooks" / "beside.txt", folder / "tmp" / "gone.txt"):
            assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (who[one.page.name][0], 0o600)
        one.save(f"x = '{one.page.name}'\nx")
        assert f"x = '{one.page.name}'" in one.saved()
    assert (
        ann.page.run("import pathlib; print(pathlib.Path.home().joinpath('former.txt').read_text())") == "of before\n"
    )
    secrets = [users / "bob" / part for part in ("home/kept.txt", "notebooks/bob.py", "snapshot/warehouse.duckdb")]
    secrets += [hub.data / name for name in ("marimohub.sqlite", "cookie_secret", "masking_key", "hub.lock")]
    secrets += [users / "ann" / "server.log", hub.folder / "live" / "team.duckdb", "/etc/shadow"]
    folders = [f"{path}/" for path in (users, users / "bob", hub.data, hub.data / "snapshots" / "raw", hub.folder)]
    asked = [*map(str, secrets), *folders]
    found: dict[str, Any] = json.loads(ann.page.run(f"import json, os\n{TRY.format(asked)}"))
    assert set(found.values()) <= {"Permission denied", "No such file or directory"}, found

    commit(hub.folder / "live" / "team.duckdb", "INSERT INTO t SELECT range FROM range(500)")
    answer = bob.person.api("POST", "/snapshot/refresh", {})
    assert (answer.status_code, answer.json()["changed"]) == (200, True), answer.text
    assert (bob.page.run(COUNT).strip(), ann.page.run(COUNT).strip()) == ("1500", "1000")

    hub.kill()
    hub.start()
    assert ann.page.run("print('still here')") == "still here\n"
    bob.stop()
    again = Someone(hub, "bob")
    assert again.runs_as() == who["bob"]
    assert again.page.run(COUNT).strip() == "1500"
    kept = (
        "import pathlib\nprint(pathlib.Path.home().joinpath('kept.txt').read_text(), pathlib.Path('bob.py').exists())"
    )
    assert again.page.run(kept) == "mine True\n"
    assert not (users / "bob" / "tmp" / "gone.txt").exists()
    for one in (ann, again):
        one.stop()
    assert hub.process is not None
    hub.process.send_signal(signal.SIGTERM)
    hub.process.wait(30)
