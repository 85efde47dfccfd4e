"""Fixtures: the stand-in hub, the real launcher, and a client that behaves like a browser."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.singleuser.server import NOTEBOOK, Server
from tests.singleuser.standin import StandInHub

NAVIGATION = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One launcher for all tests that do not end it: each uses notebooks of its own."""
    hub = StandInHub()
    hub.start()
    server = Server(hub, tmp_path_factory.mktemp("alice"))
    server.start()
    yield server
    server.stop()
    hub.stop()


class Page:
    """A page of marimo: its HTML's server token, its session and its socket."""

    def __init__(self, browser: Browser, name: str, token: str) -> None:
        self.browser, self.name, self.token = browser, name, token
        self.session = f"s_{secrets.token_hex(3)}"
        self.cells: list[str] = []
        self.messages: list[dict[str, Any]] = []

    def socket_url(self, path: str = "ws", **query: str) -> str:
        query = {"session_id": self.session, "file": f"{self.name}.py", "mh_token": self.token, **query}
        pairs = "&".join(f"{key}={value}" for key, value in query.items() if value)
        return f"{self.browser.server.url}{path}?{pairs}"

    async def connect(self) -> None:
        self.socket = await self.browser.http.ws_connect(
            self.socket_url(), origin=self.browser.origin, timeout=aiohttp.ClientWSTimeout(ws_close=1)
        )
        await self.until("kernel-ready")
        self.cells = self.messages[-1]["cell_ids"]

    async def until(self, operation: str, timeout: float = 15) -> dict[str, Any]:
        """The next message of this kind."""
        while True:
            message = await self.socket.receive(timeout=timeout)
            assert message.type == aiohttp.WSMsgType.TEXT, message
            body = json.loads(message.data)
            if "op" in body:
                self.messages.append(body["data"])
                if body["op"] == operation:
                    return body["data"]

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, str]:
        headers = {
            "Marimo-Server-Token": self.token,
            "Marimo-Session-Id": self.session,
            "Origin": self.browser.origin,
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Dest": "empty",
            "Sec-Fetch-Mode": "cors",
            **headers,
        }
        async with self.browser.http.post(
            self.browser.server.url + path, json=body, headers={k: v for k, v in headers.items() if v}
        ) as answer:
            return answer.status, await answer.text()

    async def save(self, code: str) -> tuple[int, str]:
        return await self.post(
            "api/kernel/save",
            {
                "cellIds": self.cells[:1],
                "codes": [code],
                "names": ["_"],
                "configs": [{"hideCode": False, "disabled": False, "column": None}],
                "filename": f"{self.name}.py",
                "layout": None,
                "persist": True,
            },
        )


class Browser:
    """A cookie jar and the headers that a browser sends."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.origin = f"http://127.0.0.1:{server.port}"
        self.http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def get(self, path: str, *, follow: bool = True, **headers: str) -> tuple[int, str]:
        async with self.http.get(
            self.server.url + path, headers=headers or NAVIGATION, allow_redirects=follow
        ) as answer:
            return answer.status, await answer.text()

    async def open(self, name: str, text: str = NOTEBOOK) -> Page:
        """Sign in if needed and open a notebook's page."""
        if name not in self.server.hub.notebooks:
            self.server.hub.add(name, text)
        status, page = await self.get(f"?file={name}.py")
        assert status == 200, page
        return Page(self, name, self.server.server_token(page))


@pytest.fixture
async def alice(server: Server) -> AsyncIterator[Browser]:
    server.hub.signed_in = "alice"
    browser = Browser(server)
    yield browser
    await browser.http.close()


@pytest.fixture
def name() -> str:
    """A notebook name that no other test uses."""
    return f"n_{secrets.token_hex(4)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "notebooks"
