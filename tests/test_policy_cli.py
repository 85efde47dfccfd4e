"""`marimohub policy …`, beside a hub that runs and without one."""

from __future__ import annotations

import getpass
import json
import os
import pty
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from marimohub import policy_commands
from marimohub.database import Database
from marimohub.governance import store
from tests.policy_hub import POLICY, Office

AUTHOR = f"command line ({getpass.getuser()})"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    office = Office(tmp_path_factory.mktemp("cli")).open()
    (office.hub.folder / "policy.yaml").write_text(POLICY)
    yield office
    if office.hub.process is not None and office.hub.process.poll() is None:
        office.hub.stop()


def sentence(office: Office, *arguments: str, status: int = 1, given: str = "") -> str:
    """The last line on stderr of a command that must be refused."""
    done = office.command(*arguments, text=given)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_without_a_policy_commands_say_so(office: Office) -> None:
    assert office.json("history") == {"revisions": []}
    assert "no policy yet" in office.command("history").stdout
    assert sentence(office, "export") == (
        "marimohub: There is no policy yet. Make a first one with: marimohub policy draft"
    )
    explained = office.command("explain", "--user", "ed")
    assert "none: nobody sees anything" in explained.stdout and "sales.customers" in explained.stdout


def test_the_draft_is_a_policy(office: Office) -> None:
    drafted = office.command("draft")
    assert drafted.returncode == 0 and "sales.customers:" in drafted.stdout
    checked = office.command("check", "-", text=drafted.stdout)
    assert (checked.returncode, checked.stdout) == (0, "Nothing is wrong with this policy.\n")


def test_check_tells_each_problem_with_its_place_and_ends_with_1(office: Office) -> None:
    assert office.command("check", "policy.yaml").returncode == 0
    done = office.command("check", "-", text=POLICY.replace("mask: {partial", "mask: {martial"))
    assert done.returncode == 1
    assert "masks[0].mask.martial (line 27)" in done.stdout and done.stdout.endswith("2 errors\n")
    # a column that the warehouse does not have is no fault of the text alone
    wrong = POLICY.replace("column: country", "column: kountry")
    assert office.command("check", "-", "--offline", text=wrong).returncode == 0
    found = office.command("check", "-", "--json", text=wrong)
    assert found.returncode == 1
    assert [p["severity"] for p in json.loads(found.stdout)["problems"]] == ["error"]


def test_apply_export_and_history(office: Office) -> None:
    before = len(office.json("history")["revisions"])
    done = office.command("apply", "policy.yaml", "--comment", "from a file", "--expect", str(before))
    assert (done.returncode, done.stdout) == (0, f"Applied as revision {before + 1}.\n")
    assert office.command("export").stdout == POLICY
    later = POLICY + "# ünï\n"
    assert office.json("apply", "policy.yaml")["revision"] == before + 2
    done = office.command("apply", "-", text=later)
    assert done.returncode == 0 and office.command("export").stdout == later
    assert office.command("export", "--revision", str(before + 1)).stdout == POLICY
    revisions = office.json("history")["revisions"]
    assert [r["revision"] for r in revisions[:2]] == [before + 3, before + 2]
    assert {r["author"] for r in revisions} == {AUTHOR}
    listed = office.command("history").stdout.splitlines()
    assert listed[0].split() == ["revision", "applied", "by", "comment"] and listed[3].endswith("from a file")


def test_apply_refuses_what_was_changed_or_does_not_fit(office: Office) -> None:
    now = office.apply()["revision"]
    assert f"revision {now} now" in sentence(office, "apply", "policy.yaml", "--expect", str(now - 1))
    done = office.command("apply", "-", text=POLICY.replace("tables: [notes]", "tables: [nodes]"))
    assert done.returncode == 1 and done.stdout == ""
    assert "grants[1]" in done.stderr and done.stderr.splitlines()[-1].startswith("marimohub: The policy was not")
    assert "UTF-8" in _bytes(office, b"\xff\xfe")
    assert sentence(office, "apply", "nothing.yaml") == (
        "marimohub: nothing.yaml cannot be read: No such file or directory."
    )
    assert office.call("ann", "GET", "/policy").json()["revision"] == now


def _bytes(office: Office, raw: bytes) -> str:
    (office.hub.folder / "raw").write_bytes(raw)
    return sentence(office, "apply", "raw")


def test_of_two_that_apply_at_once_one_is_told(office: Office) -> None:
    now = str(office.apply()["revision"])
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: office.command("apply", "policy.yaml", "--expect", now), range(3)))
    assert sorted(each.returncode for each in done) == [0, 1, 1]


def test_attributes_are_set_shown_and_removed(office: Office) -> None:
    office.apply()
    changed = office.json("attributes", "ed", "countries=DE, FR", "desk=3", "since=2026-01-31", "cleared=true")
    assert changed["attributes"] == {"countries": ["DE", "FR"], "desk": 3, "since": "2026-01-31", "cleared": True}
    assert office.json("attributes", "ed", "desk=", "cleared=false")["attributes"] == {
        "countries": ["DE", "FR"], "since": "2026-01-31", "cleared": False,
    }  # fmt: skip
    shown = office.command("attributes", "ed").stdout.splitlines()
    assert shown[1].split() == ["cleared", "boolean", "false"]
    assert shown[2].split() == ["countries", "text", "list", "DE,", "FR"]
    assert shown[3].split() == ["desk", "number", "-"]
    assert "problem" not in sentence(office, "attributes", "ed", "desk=three")
    assert sentence(office, "attributes", "ed", "height=3").startswith("marimohub: height: ")
    assert sentence(office, "attributes", "zoe") == (
        'marimohub: There is nobody called "zoe". People appear at their first sign-in.'
    )
    with Database(f"sqlite:///{office.hub.data / 'marimohub.sqlite'}").transaction(write=False) as session:
        last = session.execute(text("SELECT actor, action, target FROM marimohub_audit ORDER BY id DESC LIMIT 1")).one()
    assert tuple(last) == (AUTHOR, "set_attributes", "ed")


def test_explain_says_what_a_person_sees_with_role_groups_and_rows(office: Office) -> None:
    office.apply()
    office.set_attributes("ed", countries=["DE"])
    done = office.command("explain", "--user", "ed")
    assert done.returncode == 0
    assert "sales.customers: 2 of 3 rows, filtered by: Own countries" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["role", "editor"] in lines and ["clearance", "internal"] in lines
    email = next(line for line in lines if line[:1] == ["email"])
    assert email[1:6] == ["VARCHAR", "public", "partial", "(first", "1,"]
    assert next(line for line in lines if line[:1] == ["balance"])[3] == "absent"
    one = office.json("explain", "--user", "ed", "--table", "Sales.customers", "--column", "balance")
    assert [c["name"] for t in one["tables"] for c in t["columns"]] == ["balance"]
    assert office.json("explain", "--user", "ann")["groups"] == ["bosses"]
    assert office.json("explain", "--user", "nell")["role"] is None
    assert "no table 'x'" in sentence(office, "explain", "--user", "ed", "--table", "x")
    assert "nobody called" in sentence(office, "explain", "--user", "zoe")


def test_diff_compares_people_and_revisions(office: Office) -> None:
    office.apply()
    office.set_attributes("ed", countries=["DE"])
    before = office.apply()["revision"]
    office.apply(POLICY.replace("  - name: Editors see notes", "  - name: Notes"))
    office.apply(POLICY.replace("mask: {partial: {first: 1, last: 0}}", "mask: hash"))
    people = office.command("diff", "--user", "ann", "--other", "ed").stdout.splitlines()
    rows = [line.split() for line in people]
    assert ["+", "table", "main.notes"] in rows
    assert ["-", "column", "sales.customers.balance"] in rows
    assert ["~", "rows", "sales.customers", "all", "->", "Own", "countries"] in rows
    office.set_attributes("vic", countries=["FR"])
    values = office.command("diff", "--user", "vic", "--other", "ed").stdout.splitlines()
    assert values[-1].split(maxsplit=3)[1:] == ["rows", "sales.customers", "Own countries, with other values"]
    same = office.command("diff", "--user", "ed", "--from", str(before), "--to", str(before + 1))
    assert same.stdout == "Both see the same.\n"
    mask = office.json("diff", "--user", "ed", "--from", str(before), "--to", str(before + 2))
    assert mask["changed"][0]["masks"][0]["after"] == "hash"
    assert "no revision 999" in sentence(office, "diff", "--user", "ed", "--from", "1", "--to", "999")


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nothing"], ["check"], ["apply", "policy.yaml", "--expect", "x"], ["export", "--revision", "-1"],
        ["explain"], ["diff", "--user", "ed"], ["diff", "--user", "ed", "--other", "ann", "--from", "1"],
        ["diff", "--user", "ed", "--from", "1"], ["explain", "--user", "ed", "--column", "x"],
        ["attributes", "ed", "desk"], ["attributes", "ed", "=1"], ["history", "extra"],
    ],
)  # fmt: skip
def test_wrong_arguments_end_with_2_and_a_usage_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        policy_commands.arguments(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: marimohub policy")


def test_the_command_itself_ends_with_2_as_well(office: Office) -> None:
    assert sentence(office, "diff", "--user", "ed", status=2).endswith("give --other, or --from and --to")


def test_settings_of_the_hub_work_on_the_command_line(office: Office, tmp_path: Path) -> None:
    assert "no data folder" in sentence(office, "history", f"--data-dir={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()
    assert "configuration" in sentence(office, "history", f"--config={_broken(tmp_path)}")
    off = office.json("explain", "--user", "ed", "--MarimoHub.governance=off")
    assert off["governance"] == "off"
    missing = sentence(office, "draft", f"--MarimoHub.warehouse={tmp_path / 'none.duckdb'}")
    assert "none.duckdb" in missing
    unreachable = sentence(office, "history", "--db=postgresql+psycopg://hub:secret@127.0.0.1:1/hub")
    assert unreachable.startswith("marimohub: The database cannot be used") and "secret" not in unreachable


def _broken(folder: Path) -> Path:
    (folder / "broken.py").write_text("c.MarimoHub.lock_ttl = 'long'\nraise RuntimeError('x')\n")
    return folder / "broken.py"


def test_output_that_nobody_reads_to_its_end_is_no_error(office: Office) -> None:
    office.apply()
    command = " ".join(office.hub.command("policy", "explain", "--user", "ed", "--json"))
    done = subprocess.run(
        f"{command} | head -c 5", shell=True, cwd=office.hub.folder, env=office.hub.environment, capture_output=True
    )
    assert done.stdout == b'{\n  "' and b"Traceback" not in done.stderr


def test_names_cannot_move_the_cursor_of_a_terminal(office: Office) -> None:
    office.apply()
    office.set_attributes("vic", countries=["\x1b[2JDE"])
    controller, terminal = pty.openpty()
    done = subprocess.run(
        office.hub.command("policy", "attributes", "vic"),
        cwd=office.hub.folder,
        env=office.hub.environment,
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    shown = os.read(controller, 10_000)
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 0 and b"\x1b" not in shown and b"\\x1b[2JDE" in shown


def test_all_of_it_works_beside_no_hub_and_the_next_one_goes_on_from_there(office: Office) -> None:
    office.hub.stop()
    done = office.command("apply", "policy.yaml", "--comment", "while it was down")
    assert done.returncode == 0, done.stderr
    assert office.json("attributes", "ed", "countries=FR")["attributes"]["countries"] == ["FR"]
    assert "sales.customers: 1 of 3 rows" in office.command("explain", "--user", "ed").stdout
    database = Database(f"sqlite:///{office.hub.data / 'marimohub.sqlite'}")
    with database.transaction() as session:
        store.set_attributes(session, "gone", {"desk": 1}, "ann", 0.0)
    office.hub.start()
    # nobody of the name is left to have them, and whoever comes next must not
    with database.transaction(write=False) as session:
        assert store.attributes_of(session, "gone") == {}
        assert store.attributes_of(session, "ed") == {"countries": ["FR"]}
    database.close()
    assert office.call("ann", "GET", "/policy").json()["comment"] == "while it was down"
    assert office.command("apply", "policy.yaml", "--comment", "while it ran").returncode == 0
    # the hub sees at once what another process applied
    assert office.call("ann", "GET", "/policy").json()["comment"] == "while it ran"
    explained = office.call("ed", "GET", "/policy/explain").json()
    assert explained["revision"] == office.call("ann", "GET", "/policy").json()["revision"]
