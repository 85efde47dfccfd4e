"""A stand-in for the hub's REST calls and OAuth, with the semantics of the real one and knobs for faults.

It runs in a thread of its own so that tests with and without an event loop can use it, and can be killed and
started again on the same port.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import secrets
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from aiohttp import web


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Entry:
    text: str
    holder: str | None = None
    fence: int = 0


@dataclass
class StandInHub:
    """Public state may be changed by a test at any time."""

    port: int = field(default_factory=free_port)
    server_token: str = field(default_factory=lambda: secrets.token_hex(16))
    owner: str = "alice"
    signed_in: str = "alice"  # who the browser is on the hub's login page
    notebooks: dict[str, Entry] = field(default_factory=dict)
    drafts: dict[int, tuple[str, str]] = field(default_factory=dict)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    heartbeats: list[tuple[str, int]] = field(default_factory=list)
    activities: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    server_origin: str = ""  # there is no proxy, so the way back from the login page needs the server's port
    keep_drafts: bool = True
    lose_answers: int = 0  # so many accepted PUTs are answered by closing the connection

    refreshed: int = 0
    refresh_answer: dict[str, Any] = field(default_factory=lambda: {"snapshot": {}, "changed": True})
    refresh_status: int = 200

    def __post_init__(self) -> None:
        self.tokens[self.server_token] = self.person(self.owner)
        self._codes: dict[str, tuple[str, str]] = {}
        self._ids = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hub/"

    def person(self, name: str, scopes: tuple[str, ...] | None = None) -> dict[str, Any]:
        default = (f"access:servers!server={self.owner}/", "read:users:name")
        return {"kind": "user", "name": name, "scopes": list(scopes or default), "admin": False}

    def token_of(self, name: str, scopes: tuple[str, ...] | None = None) -> str:
        token = secrets.token_hex(16)
        self.tokens[token] = self.person(name, scopes)
        return token

    def code(self, name: str, challenge: str) -> str:
        """What the browser brings back from the hub's login page."""
        code = secrets.token_hex(8)
        self._codes[code] = (name, challenge)
        return code

    def add(self, name: str, text: str, holder: str | None = "alice") -> Entry:
        entry = self.notebooks[name] = Entry(text, holder, 1 if holder else 0)
        return entry

    def start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        ready = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._end = asyncio.Event()
            runner = web.AppRunner(self._app())
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True, shutdown_timeout=0.1).start()
            ready.set()
            await self._end.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/hub/notebooks", self._page),
                web.get("/hub/api/user", self._user),
                web.get("/hub/api/oauth2/authorize", self._authorize),
                web.post("/hub/api/oauth2/token", self._token),
                web.post("/hub/api/users/{user}/activity", self._activity),
                web.get("/hub/api/notebooks/{name}/text", self._get_text),
                web.put("/hub/api/notebooks/{name}/text", self._put_text),
                web.post("/hub/api/notebooks/{name}/heartbeat", self._heartbeat),
                web.post("/hub/api/snapshot/refresh", self._refresh),
            ]
        )
        return app

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text="<h1>Notebooks page</h1>", content_type="text/html")

    def _who(self, request: web.Request) -> dict[str, Any]:
        token = request.headers.get("Authorization", "").removeprefix("token ")
        if token not in self.tokens:
            raise web.HTTPForbidden
        return self.tokens[token]

    async def _user(self, request: web.Request) -> web.Response:
        return web.json_response(self._who(request))

    async def _authorize(self, request: web.Request) -> web.Response:
        code = self.code(self.signed_in, request.query["code_challenge"])
        query = urlencode({"code": code, "state": request.query["state"]})
        raise web.HTTPFound(f"{self.server_origin}{request.query['redirect_uri']}?{query}")

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        name, challenge = self._codes.pop(str(form["code"]), ("", ""))
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != challenge:
            return web.json_response({"error": "invalid_grant"}, status=400)
        assert form["client_secret"] == self.server_token
        return web.json_response({"access_token": self.token_of(name)})

    async def _activity(self, request: web.Request) -> web.Response:
        self._who(request)
        self.activities.append(await request.json())
        return web.Response()

    def _entry(self, request: web.Request) -> tuple[Entry, str]:
        who = self._who(request)["name"]
        assert request.query["workspace"] == "default"
        entry = self.notebooks.get(request.match_info["name"])
        if entry is None:
            raise _Refusal(404, "not_found", "There is no such notebook.")
        return entry, who

    async def _get_text(self, request: web.Request) -> web.Response:
        try:
            entry, who = self._entry(request)
        except _Refusal as error:
            return error.response()
        fence = entry.fence if entry.holder == who else None
        return web.json_response({"text": entry.text, "hash": sha(entry.text), "fence": fence})

    async def _put_text(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            entry, who = self._entry(request)
            if entry.holder != who or entry.fence != body["fence"]:
                raise _Refusal(409, "lock_lost", "Your lock was revoked by an administrator.")
            if sha(entry.text) != body["base"]:
                raise _Refusal(409, "base_changed", "The notebook changed in the meantime.")
        except _Refusal as error:
            if error.status == 409 and self.keep_drafts:
                error.draft = next(self._ids)
                self.drafts[error.draft] = (request.match_info["name"], body["text"])
            return error.response()
        entry.text = body["text"]
        self.accepted.append((request.match_info["name"], body["text"]))
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"hash": sha(entry.text), "modified": "2026-01-01T00:00:00Z"})

    async def _refresh(self, request: web.Request) -> web.Response:
        assert self._who(request)["name"] == self.owner
        self.refreshed += 1
        return web.json_response(self.refresh_answer, status=self.refresh_status)

    async def _heartbeat(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            entry, who = self._entry(request)
            if entry.holder != who or entry.fence != body["fence"]:
                raise _Refusal(409, "lock_lost", "Your lock was revoked by an administrator.")
        except _Refusal as error:
            return error.response()
        self.heartbeats.append((request.match_info["name"], body["fence"]))
        return web.json_response({"fence": entry.fence, "expires": "2026-01-01T00:00:00Z"})


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message, self.draft = status, code, message, None

    def response(self) -> web.Response:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.draft is not None:
            error["draft"] = self.draft
        return web.json_response({"error": error}, status=self.status)
