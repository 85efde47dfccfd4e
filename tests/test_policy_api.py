"""The API of the policy, against a running hub: who may, what it answers, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.databases import KINDS, new_url
from tests.hub import Person
from tests.policy_hub import POLICY, ROOT, Office

VALUES = {"countries": ["DE"], "desk": 3, "since": "2026-01-31", "cleared": True}


@pytest.fixture(scope="module", params=KINDS)
def office(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("policy")
    office = Office(folder, f"c.JupyterHub.db_url = {new_url(request.param, folder, request)!r}")
    yield office.open()
    office.hub.stop()


def error(answer: requests.Response) -> tuple[int, str]:
    found = answer.json()["error"]
    assert found["message"].endswith("."), found
    return answer.status_code, found["code"]


def test_without_a_policy_there_is_revision_0_and_nobody_sees_anything(office: Office) -> None:
    found = office.call("ann", "GET", "/policy").json()
    created = found.pop("created")
    assert created is None
    assert found == {
        "revision": 0, "text": "", "author": None, "comment": "", "problems": [], "governance": "policy",
    }  # fmt: skip
    assert office.call("ann", "GET", "/policy/history").json() == {"revisions": []}
    for name in ("ann", "ed", "vic"):
        answer = office.call(name, "GET", "/policy/explain")
        assert answer.status_code == 200, answer.text
        assert seen(answer.json()) == {}
    assert error(office.call("ann", "PUT", "/people/ed/attributes", {"attributes": {"desk": 1}})) == (
        400,
        "invalid_attributes",
    )


def test_the_draft_names_the_warehouse_and_can_be_applied_as_it_is(office: Office) -> None:
    text = office.call("ann", "POST", "/policy/draft", {}).json()["text"]
    assert "sales.customers:" in text and "email: {tags: [pii]}" in text
    assert office.call("ann", "POST", "/policy/check", {"text": text}).json() == {"problems": []}
    office.apply(text)
    assert seen(office.call("ann", "GET", "/policy/explain").json()) == {}


def test_a_policy_is_applied_and_shown_with_author_comment_and_history(office: Office) -> None:
    before = office.call("ann", "GET", "/policy").json()["revision"]
    made = office.apply(comment="first rules", expected_revision=before)
    assert (made["revision"], made["author"], made["comment"]) == (before + 1, "ann", "first rules")
    assert made["problems"] == [] and made["text"] == POLICY
    assert office.call("ann", "GET", "/policy").json() == made
    newest = office.call("ann", "GET", "/policy/history").json()["revisions"][0]
    assert newest == {key: made[key] for key in ("revision", "author", "comment", "created")}
    one = office.call("ann", "GET", f"/policy/history/{made['revision']}").json()
    assert one == {**newest, "text": POLICY}


def test_a_service_applies_in_its_own_name(office: Office) -> None:
    made = office.call("robot", "PUT", "/policy", {"text": POLICY}).json()
    assert made["author"] == "service:robot"


@pytest.mark.parametrize("caller", ["ed", "vic", "nell", "server", "reader", "helper"])
def test_only_administrators_get_at_the_policy(office: Office, caller: str) -> None:
    for method, path, body in (
        ("GET", "/policy", None),
        ("PUT", "/policy", {"text": POLICY}),
        ("POST", "/policy/check", {"text": POLICY}),
        ("POST", "/policy/draft", {}),
        ("GET", "/policy/schema", None),
        ("GET", "/policy/history", None),
        ("GET", "/policy/history/1", None),
        ("GET", "/policy/diff?user=ed&other=vic", None),
        ("GET", "/people/ed/attributes", None),
        ("PUT", "/people/ed/attributes", {"attributes": {}}),
        ("GET", "/policy/explain?user=nobody", None),
    ):
        assert error(office.call(caller, method, path, body)) == (403, "forbidden"), (method, path)
        assert error(office.call(None, method, path, body)) == (401, "unauthenticated")


def test_people_are_explained_to_themselves_and_to_administrators_only(office: Office) -> None:
    office.apply()
    for caller, query, status in (
        ("ed", "", 200), ("ed", "?user=ed", 200), ("ed", "?user=vic", 403), ("vic", "?user=ann", 403),
        ("ann", "?user=vic", 200), ("ann", "", 200), ("robot", "?user=vic", 200), ("robot", "", 400),
        ("reader", "", 200), ("reader", "?user=ed", 403), ("server", "", 403), ("nell", "", 403),
        ("helper", "?user=ed", 403), ("helper", "", 400),
    ):  # fmt: skip
        answer = office.call(caller, "GET", f"/policy/explain{query}")
        assert answer.status_code == status, (caller, query, answer.text)
    # all of a person's scopes count, not those of the token that asks
    own = office.call("reader", "GET", "/policy/explain").json()
    assert own["role"] == "admin"
    assert own["digest"] == office.call("ann", "GET", "/policy/explain?user=ann").json()["digest"]


def test_explanation_follows_role_group_and_attributes_with_the_rows_that_are_kept(office: Office) -> None:
    office.apply()
    assert office.call("ann", "PUT", "/people/ed/attributes", {"attributes": {"countries": ["DE"]}}).status_code == 200
    ed = office.call("ed", "GET", "/policy/explain").json()
    assert seen(ed) == {"sales.customers": ["id", "email", "country"], "main.notes": ["text"]}
    assert rows(ed, "main.notes") == (2, 2)
    # how many rows are withheld is for administrators to know
    assert rows(ed, "sales.customers") == (2, None)
    full = office.call("ann", "GET", "/policy/explain?user=ed").json()
    assert rows(full, "sales.customers") == (2, 3)
    ann = office.call("ann", "GET", "/policy/explain").json()
    assert seen(ann) == {"sales.customers": ["id", "email", "country", "balance"]}
    assert rows(ann, "sales.customers") == (3, 3)
    vic = office.call("ann", "GET", "/policy/explain?user=vic").json()
    assert seen(vic) == {"sales.customers": ["id", "email", "country"]}
    assert rows(vic, "sales.customers") == (0, 3)
    one = office.call("ed", "GET", "/policy/explain?table=Sales.CUSTOMERS&column=EMAIL").json()
    assert seen(one) == {"sales.customers": ["email"]}


def test_a_change_of_attributes_is_seen_at_once(office: Office) -> None:
    office.apply()
    for countries, kept in ((["FR"], 1), (["FR", "DE"], 3), ([], 0), (["de"], 0)):
        answer = office.call("ann", "PUT", "/people/vic/attributes", {"attributes": {"countries": countries}})
        assert answer.json()["attributes"] == {"countries": countries}
        assert rows(office.call("vic", "GET", "/policy/explain").json(), "sales.customers") == (kept, None)


@pytest.mark.parametrize("query", ["table=nothing", "table=sales.customers&column=nothing", "table=a.b.c", "table=%22"])
def test_an_object_that_is_not_there_is_a_404(office: Office, query: str) -> None:
    office.apply()
    assert error(office.call("ed", "GET", f"/policy/explain?{query}")) == (404, "no_object")


@pytest.mark.parametrize("name", ["zoe", "a%00b", "%ED%A0%80", "x" * 3000, "ann%20", "ANN"])
def test_a_person_who_is_not_there_is_a_404(office: Office, name: str) -> None:
    for method, path, body in (
        ("GET", f"/people/{name}/attributes", None),
        ("PUT", f"/people/{name}/attributes", {"attributes": {}}),
        ("GET", f"/policy/explain?user={name}", None),
        ("GET", f"/policy/diff?user=ann&other={name}", None),
    ):
        answer = office.call("ann", method, path, body)
        assert answer.status_code in (400, 404), answer.text
        # what is no text at all, the web server refuses
        assert answer.json()["error"]["code"] in ("no_person", "http_400")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ""),
        ("{", ""),
        ("version: 1", ""),
        ("[" * 100_000, ""),
        ("a: &a [x]\nb: *a", ""),
        (POLICY.replace("mask: {partial: {first: 1, last: 0}}", "mask: rot13"), "masks[0]"),
        (POLICY.replace("column: country", "column: kountry"), "filters[0]"),
        (POLICY.replace("sales.customers:\n", "sales.custmers:\n"), "tables"),
        ("x" * 1_100_000, ""),
        ("\x00", ""),
        ("\ud800", ""),
    ],
)
def test_a_text_that_is_no_policy_is_refused_and_leaves_the_other(office: Office, text: str, where: str) -> None:
    before = office.call("ann", "GET", "/policy").json()["revision"]
    refused = office.call("ann", "PUT", "/policy", {"text": text})
    assert refused.status_code == 400, refused.text
    if "\0" not in text and "\ud800" not in text:
        assert error(refused) == (400, "invalid_policy")
        problems = refused.json()["error"]["problems"]
        assert any(p["severity"] == "error" and p["where"].startswith(where) for p in problems), problems
        checked = office.call("ann", "POST", "/policy/check", {"text": text}).json()["problems"]
        assert [p for p in checked if p["severity"] == "error"] == problems
    assert office.call("ann", "GET", "/policy").json()["revision"] == before


@pytest.mark.parametrize(
    "body",
    [
        {}, [], {"text": 1}, {"text": None}, {"text": POLICY, "comment": 3}, {"text": POLICY, "comment": "x" * 2001},
        {"text": POLICY, "comment": "\x00"}, {"text": POLICY, "expected_revision": "1"},
        {"text": POLICY, "expected_revision": -1}, {"text": POLICY, "expected_revision": 2**63},
        {"text": POLICY, "expected_revision": None}, {"text": POLICY, "expected_revision": True},
    ],
)  # fmt: skip
def test_a_body_of_another_shape_is_a_400(office: Office, body: Any) -> None:
    assert error(office.call("ann", "PUT", "/policy", body)) in ((400, "bad_field"), (400, "bad_json"))


@pytest.mark.parametrize(
    "query",
    ["", "user=ed", "other=ed", "user=ed&other=vic&from=1", "user=ed&from=1", "user=ed&to=1", "user=ed&from=x&to=1",
     "user=ed&from=-1&to=1", "user=ed&from=1&to=1.5"],
)  # fmt: skip
def test_a_comparison_of_nothing_is_a_400(office: Office, query: str) -> None:
    assert error(office.call("ann", "GET", f"/policy/diff?{query}")) == (400, "bad_query")


def test_unknown_revisions_are_404s(office: Office) -> None:
    for number in ("0", "99999", "-1", "x", "9" * 30):
        assert error(office.call("ann", "GET", f"/policy/history/{number}")) == (404, "no_revision")
    assert error(office.call("ann", "GET", "/policy/diff?user=ed&from=1&to=99999")) == (404, "no_revision")


def test_two_people_and_two_revisions_are_compared(office: Office) -> None:
    first = office.apply()["revision"]
    people = office.call("ann", "GET", "/policy/diff?user=ann&other=ed")
    assert people.status_code == 200 and "balance" in people.text and "notes" in people.text
    second = office.apply(POLICY.replace("level: secret}\n  notes", "level: public}\n  notes"))["revision"]
    changed = office.call("ann", "GET", f"/policy/diff?user=ed&from={first}&to={second}")
    assert changed.status_code == 200 and "balance" in changed.text and "notes" not in changed.text
    from_nothing = office.call("ann", "GET", f"/policy/diff?user=ed&from=0&to={second}")
    assert from_nothing.status_code == 200 and "notes" in from_nothing.text


def test_of_two_who_apply_at_once_one_is_told(office: Office) -> None:
    revision = office.apply()["revision"]
    body = {"text": POLICY, "expected_revision": revision}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: office.call("ann", "PUT", "/policy", body), range(6)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 5}
    assert {error(answer) for answer in answers if answer.status_code == 409} == {(409, "policy_changed")}
    assert office.call("ann", "GET", "/policy").json()["revision"] == revision + 1


def test_attributes_are_kept_and_shown_with_what_the_policy_declares(office: Office) -> None:
    office.apply()
    changed = office.call("ann", "PUT", "/people/ed/attributes", {"attributes": VALUES}).json()
    assert changed["attributes"] == VALUES and changed["unusable"] == []
    assert changed["declared"]["countries"] == {"type": "text", "list": True}
    assert office.call("ann", "GET", "/people/ed/attributes").json() == changed
    # the policy changes its mind: what was stored does not count, and that is shown
    office.apply(POLICY.replace("desk: {type: number}", "desk: {type: text}"))
    later = office.call("ann", "GET", "/people/ed/attributes").json()
    assert later["attributes"] == VALUES and later["unusable"] == ["desk"]
    office.apply()


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1}, {"countries": "DE"}, {"countries": [1]}, {"countries": [["DE"]]}, {"countries": {"a": 1}},
        {"desk": "3"}, {"desk": True}, {"desk": [3]}, {"desk": None}, {"since": "31.1.2026"}, {"since": "2026-02-30"},
        {"since": 20260131}, {"cleared": 1}, {"cleared": "true"}, {"countries": ["\x00"]}, {"countries": ["\ud800"]},
        {"countries": ["x" * 2000]}, {"countries": ["x"] * 2000}, {"name": "ann"}, {"groups": ["admins"]},
    ],
)  # fmt: skip
def test_attributes_that_the_policy_does_not_declare_are_refused(office: Office, values: Any) -> None:
    office.apply()
    office.call("ann", "PUT", "/people/vic/attributes", {"attributes": {"desk": 7}})
    answer = office.call("ann", "PUT", "/people/vic/attributes", {"attributes": values})
    assert error(answer) == (400, "invalid_attributes")
    assert answer.json()["error"]["problems"][0]["where"] == next(iter(values))
    assert office.call("ann", "GET", "/people/vic/attributes").json()["attributes"] == {"desk": 7}


@pytest.mark.parametrize("raw", [b'{"attributes": {"desk": 1e999}}', b'{"attributes": {"desk": NaN}}'])
def test_a_number_that_is_none_is_refused(office: Office, raw: bytes) -> None:
    office.apply()
    answer = office.call("ann", "PUT", "/people/vic/attributes", data=raw)
    assert error(answer) == (400, "invalid_attributes")


@pytest.mark.parametrize("body", [{}, [], {"attributes": []}, {"attributes": None}, {"attributes": "x"}])
def test_attributes_of_another_shape_are_a_400(office: Office, body: Any) -> None:
    assert error(office.call("ann", "PUT", "/people/vic/attributes", body))[0] == 400


def test_a_new_person_does_not_inherit_the_attributes_of_a_deleted_one_of_the_name(office: Office) -> None:
    office.apply()
    office.add("zed", "editor")
    assert office.call("ann", "PUT", "/people/zed/attributes", {"attributes": VALUES}).status_code == 200
    assert office.ann.api("DELETE", "/users/zed").status_code == 204
    assert error(office.call("ann", "GET", "/people/zed/attributes")) == (404, "no_person")
    assert error(office.call("ann", "PUT", "/people/zed/attributes", {"attributes": VALUES})) == (404, "no_person")
    assert office.ann.api("POST", "/users/zed").status_code == 201
    assert office.call("ann", "GET", "/people/zed/attributes").json()["attributes"] == {}
    assert rows(office.call("ann", "GET", "/policy/explain?user=zed").json(), "sales.customers") == (0, 3)


def test_the_schema_is_what_is_in_the_warehouse(office: Office) -> None:
    found = office.call("ann", "GET", "/policy/schema").json()
    tables = {f"{t['schema']}.{t['name']}": t for t in found["tables"]}
    assert set(tables) == {"sales.customers", "main.notes", "main.secrets"}
    assert tables["sales.customers"]["rows"] == 3
    assert tables["sales.customers"]["columns"][3] == {"name": "balance", "type": "DOUBLE", "generated": False}
    assert [(v["schema"], v["name"]) for v in found["views"]] == [("sales", "germans")]


def test_a_page_with_a_cookie_needs_its_token_against_forgery(office: Office) -> None:
    person: Person = office.ann
    assert person.api("GET", "/policy").status_code == 200
    forged = person.session.put(f"{office.hub.url}/hub/api/policy", json={"text": POLICY}, timeout=30)
    assert forged.status_code == 403


def test_an_unknown_workspace_is_told(office: Office) -> None:
    assert error(office.call("ann", "GET", "/policy?workspace=nope")) == (404, "no_workspace")


def test_schemathesis_finds_no_500_for_an_administrator(office: Office, tmp_path: Path) -> None:
    office.apply()
    url = f"http://127.0.0.1:{office.hub.hub_port}/hub/api/notebooks-openapi.json"
    began = len(office.hub.log)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", url),
        *("--header", f"Authorization: token {office.tokens['ann']}", "--include-path-regex", "/(policy|people)"),
        # that a text is a policy, and that a person exists, no schema says
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", "20261121", "--no-shrink"),
        *("--continue-on-failure", "--request-timeout", "30", "--warnings", "off"),
    ]
    environment = {**office.hub.environment, "SCHEMATHESIS_HOOKS": "tests.openapi_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    statuses = Counter(re.findall(r"log:\d+\] (\d{3}) ", office.hub.log[began:]))
    assert not [status for status in statuses if status == "500"]
    assert statuses["400"] > 20 and statuses["404"] > 5


def seen(explained: dict[str, Any]) -> dict[str, list[str]]:
    """Visible columns by table."""
    found = {t["display"]: [c["name"] for c in t["columns"] if c["visible"]] for t in explained["tables"]}
    return {name: columns for name, columns in found.items() if columns}


def rows(explained: dict[str, Any], table: str) -> tuple[int, int]:
    """Rows kept, and rows there are."""
    return next((t["visible_rows"], t["rows"]) for t in explained["tables"] if t["display"] == table)
