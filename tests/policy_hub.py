"""A hub with a small warehouse and people of every kind, for the tests of the policy's API and command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import requests

from marimohub.auth import roles
from tests.hub import Hub, Person

ROOT = Path(__file__).parent.parent
ADMIN_SERVICE, EDITOR_SERVICE = "token-of-the-admin-service", "token-of-the-editor-service"
CONFIG = f"""
c.MarimoHub.warehouse = 'team.duckdb'
c.MarimoHub.default_role = 'none'
c.JupyterHub.services = [
    {{'name': 'robot', 'api_token': {ADMIN_SERVICE!r}}}, {{'name': 'ed', 'api_token': {EDITOR_SERVICE!r}}},
]
c.JupyterHub.load_roles = [
    {{'name': 'robots', 'scopes': ['{roles.ADMIN}'], 'services': ['robot']}},
    {{'name': 'helpers', 'scopes': ['{roles.EDIT}'], 'services': ['ed']}},
]
"""
POLICY = """\
version: 1
levels: [public, internal, secret]
tags: {pii: Data about a person}
attributes: {countries: {type: text, list: true}, desk: {type: number}, since: {type: date}, cleared: {type: boolean}}
clearance:
  - {level: internal, roles: [editor, admin]}
  - {level: secret, groups: [bosses]}
tables:
  sales.customers:
    level: public
    columns:
      id:
      email: {tags: [pii]}
      country:
      balance: {level: secret}
  notes: {level: internal, columns: {"*": {}}}
grants:
  - name: Everybody sees customers
    to: {everyone: true}
    tables: [sales.customers]
  - name: Editors see notes
    to: {roles: [editor]}
    tables: [notes]
masks:
  - name: Hide addresses
    tags: [pii]
    mask: {partial: {first: 1, last: 0}}
    except: {groups: [bosses]}
filters:
  - name: Own countries
    tables: [sales.customers]
    except: {groups: [bosses]}
    where: {column: country, in: {user: countries}}
"""


def make_warehouse(path: Path) -> None:
    """Three customers, two notes, and a view."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA sales")
        connection.execute("CREATE TABLE sales.customers (id INTEGER, email VARCHAR, country VARCHAR, balance DOUBLE)")
        rows = [(1, "a@x.de", "DE", 1.5), (2, "b@x.fr", "FR", 2.5), (3, "c@x.de", "DE", None)]
        connection.executemany("INSERT INTO sales.customers VALUES (?, ?, ?, ?)", rows)
        connection.execute("CREATE TABLE notes AS SELECT 'hello' AS text UNION ALL SELECT 'bye'")
        connection.execute("CREATE TABLE secrets AS SELECT 1 AS x")
        connection.execute("CREATE VIEW sales.germans AS SELECT * FROM sales.customers WHERE country = 'DE'")


class Office:
    """ann the administrator, ed an editor, vic a viewer, nell with no role; and tokens of all kinds."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self.hub = Hub(folder, CONFIG + config)
        make_warehouse(folder / "team.duckdb")

    def open(self) -> Office:
        self.hub.start()
        self.ann = Person(self.hub, "ann").set_up()
        self.people = {"ann": self.ann}
        for name, role in (("ed", "editor"), ("vic", "viewer"), ("nell", "viewer")):
            self.add(name, role)
        assert self.ann.api("DELETE", "/groups/viewers/users", {"users": ["nell"]}).status_code == 200
        assert self.ann.api("POST", "/groups/bosses", {"users": ["ann"]}).status_code == 201
        self.tokens = {name: self.token(name) for name in self.people}
        self.tokens["server"] = self.token("ed", [s.replace("!user", "!user=ed") for s in roles.SERVER_TOKEN_SCOPES])
        self.tokens["reader"] = self.token("ann", [roles.READ])
        self.tokens |= {"robot": ADMIN_SERVICE, "helper": EDITOR_SERVICE}
        return self

    def add(self, name: str, role: str) -> None:
        """Somebody new signs up, is approved, and signs in."""
        person = self.people[name] = Person(self.hub, name)
        assert person.sign_up().status_code == 200
        self.ann.approve(name, role)
        assert person.sign_in().status_code == 200

    def token(self, name: str, scopes: list[str] | None = None) -> str:
        body = {"note": "tests", **({"scopes": scopes} if scopes else {})}
        made = self.people[name].api("POST", f"/users/{name}/tokens", body)
        assert made.status_code == 201, made.text
        return str(made.json()["token"])

    def call(self, caller: str | None, method: str, path: str, body: Any = None, **kwargs: Any) -> requests.Response:
        """Call the API with somebody's token."""
        headers = {"Authorization": f"token {self.tokens[caller]}"} if caller else {}
        url = f"http://127.0.0.1:{self.hub.hub_port}/hub/api{path}"
        return requests.request(method, url, json=body, headers=headers, timeout=60, **kwargs)

    def apply(self, text: str = POLICY, **fields: Any) -> dict[str, Any]:
        answer = self.call("ann", "PUT", "/policy", {"text": text, **fields})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def set_attributes(self, name: str, **values: Any) -> None:
        answer = self.call("ann", "PUT", f"/people/{name}/attributes", {"attributes": values})
        assert answer.status_code == 200, answer.text

    def command(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run `marimohub policy …` in the hub's folder."""
        done = subprocess.run(
            self.hub.command("policy", *arguments),
            cwd=self.hub.folder,
            env=self.hub.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
