"""A client of the hammer: does random work on shared notebooks, and writes down all that it was told.

Its log is the only witness of what the hub promised. A request that died with the hub is written down as `unknown`.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import time
from pathlib import Path
from typing import Any, Protocol

import requests

RECONNECT_SECONDS = 60.0
PADDING = "x = 0  # " + "-" * 70 + "\n"


class Caller(Protocol):
    """How a client reaches the hub."""

    def __call__(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None if the connection broke before there was one."""


class SocketCaller:
    """Calls the stand-in hub (tests/hammer_server.py)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.stream: Any = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if self.stream is None:
            self._connect()
        try:
            self.stream.write(json.dumps(request).encode() + b"\n")
            self.stream.flush()
            line = self.stream.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self.stream = None
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _connect(self) -> None:
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.path)
            except OSError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                self.stream = connection.makefile("rwb")
                return


class HttpCaller:
    """Calls a real hub's API with a user's token, straight at the hub's own port."""

    def __init__(self, api: str, token: str) -> None:
        self.api = api
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"token {token}"

    def __call__(self, request: dict[str, Any]) -> dict[str, Any] | None:
        operation, name = request["op"], request.get("name", "")
        method, path = {
            "list": ("GET", ""),
            "acquire": ("POST", f"/{name}/lock"),
            "heartbeat": ("POST", f"/{name}/heartbeat"),
            "release": ("POST", f"/{name}/release"),
            "revoke": ("DELETE", f"/{name}/lock"),
            "read": ("GET", f"/{name}/text"),
            "save": ("PUT", f"/{name}/text"),
        }[operation]
        body: Any = {key: request[key] for key in ("fence", "text", "base") if key in request}
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                answer = self.session.request(method, f"{self.api}/notebooks{path}", json=body, timeout=60)
                break
            except requests.ConnectionError as error:
                # refused: nothing was sent, so it is no answer lost
                if "Connection refused" not in str(error) or time.monotonic() > deadline:
                    return None
                time.sleep(0.05)
            except requests.RequestException:
                return None
        data: dict[str, Any] = answer.json() if answer.content else {}
        if answer.status_code < 400:
            return data
        return {"error": data["error"]["code"], "draft": data["error"].get("draft")}


class Client:
    """One person. `fixed` notebooks are never deleted; `volatile` ones come and go."""

    def __init__(
        self, user: str, call: Caller, log: Path, fixed: list[str], volatile: list[str], *, may_revoke: bool
    ) -> None:
        self.user, self.call, self.log = user, call, log
        self.fixed, self.volatile = fixed, volatile
        self.fences: dict[str, int] = {}
        self.bases: dict[str, str] = {}
        self.opened: list[str] = []
        self.unanswered: dict[str, dict[str, Any]] = {}
        self.random = random.Random(user)
        self.count = 0
        common = {"acquire": 22, "heartbeat": 22, "save": 32, "read": 12, "release": 7, "list": 1}
        self.choices = common | ({"revoke": 2} if may_revoke else {})

    def work(self, operations: int, told: Any = None) -> None:
        """Do so many operations; `told` is called after each."""
        with open(self.log, "a", buffering=1) as log:
            for _ in range(operations):
                request = self.next_request()
                answer = self.call({**request, "user": self.user})
                self.learn(request, answer)
                text = request.pop("text", None)
                if text is not None:
                    request["hash"] = digest(text)
                log.write(json.dumps({**request, "user": self.user, "answer": answer}) + "\n")
                if told:
                    told()

    def next_request(self) -> dict[str, Any]:
        self.count += 1
        if self.volatile and self.random.random() < 0.04:
            name = self.random.choice(self.volatile)
            if self.random.random() < 0.5:
                return {"op": "delete", "name": name}
            return {"op": "create", "name": name, "text": self.text()}
        if self.opened and self.random.random() < 0.8:
            # as an editor does: whoever has the lock fetches the text
            return {"op": "read", "name": self.opened.pop()}
        operation = self.random.choices(list(self.choices), list(self.choices.values()))[0]
        name = self.random.choice(self.fixed + self.volatile)
        if operation == "list":
            return {"op": "list"}
        if operation in ("heartbeat", "save", "release") and self.fences and self.random.random() < 0.9:
            # mostly what one has, or had: some of these locks are lost meanwhile
            name = self.random.choice(list(self.fences))
        request: dict[str, Any] = {"op": operation, "name": name}
        if operation == "heartbeat":
            request["fence"] = self.fences.get(name, 1)
        if operation == "save":
            if name in self.unanswered and self.random.random() < 0.5:
                # as an editor does that got no answer: the very same again
                return self.unanswered.pop(name)
            request |= {"fence": self.fences.get(name, 1), "base": self.bases.get(name, "0" * 64), "text": self.text()}
        return request

    def learn(self, request: dict[str, Any], answer: dict[str, Any] | None) -> None:
        operation, name = request["op"], request.get("name", "")
        if answer is None:
            if operation == "save":
                self.unanswered[name] = dict(request)
        elif "error" not in answer:
            if operation in ("acquire", "heartbeat"):
                self.fences[name] = answer["fence"]
            if operation in ("read", "save", "create"):
                self.bases[name] = answer["hash"]
            if operation == "acquire":
                self.opened.append(name)
        elif operation in ("heartbeat", "save") and self.random.random() < 0.7:
            # some of those who are refused do not believe it
            self.fences.pop(name, None)

    def text(self) -> str:
        return f"# {self.user} {self.count}\n{PADDING * self.random.randint(1, 60)}# end of {self.user} {self.count}\n"


def is_whole(text: str) -> bool:
    """Whether a text is one that a client sent, from its first line to its last."""
    lines = text.splitlines()
    return lines[-1] == lines[0].replace("# ", "# end of ", 1) and set(lines[1:-1]) == {PADDING.strip()}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
