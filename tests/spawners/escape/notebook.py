"""A notebook's page as a browser has it, over plain HTTP and a WebSocket: for tests and benchmarks of real servers."""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from websockets.sync.client import ClientConnection, connect

NAVIGATION = {
    "Accept": "text/html",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Site": "none",
}
FETCH = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Site": "same-origin"}
_TOKEN = re.compile(r'<marimo-server-token data-token="([^"]+)"')


class NotebookFailed(AssertionError):
    """The page or a cell did not do what it should."""


class NotebookPage:
    """One open notebook: `open` it, then `run` code in its kernel. `server` is the URL of the person's server."""

    def __init__(self, session: requests.Session, server: str, name: str) -> None:
        self.http, self.server, self.name = session, server.rstrip("/") + "/", name
        self.session_id = f"s_{secrets.token_hex(3)}"
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(server))
        self.cells: list[str] = []
        self.socket: ClientConnection | None = None
        self.token = ""

    def load(self) -> None:
        """Get the page's HTML, through the hub's sign-in where there is one."""
        answer = self.http.get(f"{self.server}?file={self.name}.py", headers=NAVIGATION, timeout=60)
        found = _TOKEN.search(answer.text)
        if answer.status_code != 200 or found is None:
            raise NotebookFailed(f"{answer.url} answered {answer.status_code}: {answer.text[:2000]}")
        self.token = found[1]

    def connect(self) -> None:
        """Open the WebSocket, which makes marimo start a kernel."""
        query = f"session_id={self.session_id}&file={self.name}.py&mh_token={self.token}"
        url = f"{self.server}ws?{query}".replace("http", "ws", 1)
        request = requests.Request("GET", self.server)
        cookies = requests.cookies.get_cookie_header(self.http.cookies, request.prepare()) or ""
        self.socket = connect(
            url, additional_headers={"Cookie": cookies}, origin=self.origin, max_size=None, proxy=None, close_timeout=1
        )
        self.cells = self.until("kernel-ready")["cell_ids"]

    def until(self, operation: str, timeout: float = 60) -> dict[str, Any]:
        """The next message of this kind."""
        assert self.socket is not None
        deadline = time.monotonic() + timeout
        while True:
            body = json.loads(self.socket.recv(timeout=max(deadline - time.monotonic(), 0)))
            if body.get("op") == operation:
                found: dict[str, Any] = body["data"]
                return found

    def post(self, path: str, body: Any = None, form: dict[str, str] | None = None) -> requests.Response:
        """Call marimo's API as its page does, with JSON or with a form."""
        headers = {
            "Marimo-Server-Token": self.token,
            "Marimo-Session-Id": self.session_id,
            "Origin": self.origin,
            **FETCH,
        }
        files = None if form is None else {name: (None, value) for name, value in form.items()}
        return self.http.post(self.server + path, json=body, files=files, headers=headers, timeout=60)

    def first_output(self) -> str:
        """Run all cells, as the page does when it opens; returns the first cell's output."""
        answer = self.post("api/kernel/instantiate", {"objectIds": [], "values": [], "autoRun": True})
        if not answer.ok:
            raise NotebookFailed(f"instantiate answered {answer.status_code}: {answer.text[:1000]}")
        while True:
            cell = self.until("cell-op")
            if cell.get("output") and cell["output"].get("data"):
                return str(cell["output"]["data"])

    def run(self, code: str, timeout: float = 60) -> str:
        """Run code in the notebook's first cell; returns what it printed.

        Raises:
            NotebookFailed: the cell ended with an error.
        """
        answer = self.post("api/kernel/run", {"cellIds": self.cells[:1], "codes": [code]})
        if not answer.ok:
            raise NotebookFailed(f"run answered {answer.status_code}: {answer.text[:1000]}")
        return self.printed_by(self.cells[0], timeout)

    def printed_by(self, wanted: str, timeout: float = 60) -> str:
        """What a cell's next run prints, waited for. Raises NotebookFailed."""
        printed, failed, started = "", "", False
        deadline = time.monotonic() + timeout
        while True:
            cell = self.until("cell-op", deadline - time.monotonic())
            if cell["cell_id"] != wanted:
                continue
            started = started or cell.get("status") == "running"
            for line in _lines(cell.get("console")):
                printed += line["data"] if line["channel"] == "stdout" else ""
                failed += line["data"] if line["channel"] == "stderr" else ""
            output = cell.get("output") or {}
            if output.get("channel") == "marimo-error":
                raise NotebookFailed(f"{output['data']}\n{failed}")
            if started and cell.get("status") == "idle":
                return printed

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _lines(console: Any) -> list[dict[str, Any]]:
    """marimo sends one line, several, or an empty list that clears them."""
    if not console:
        return []
    return console if isinstance(console, list) else [console]
