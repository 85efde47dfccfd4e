"""The few calls a single-user server makes to the hub, with its own token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from marimohub.singleuser.settings import Settings

# A hub that does not answer in this time is treated as one that is down: saving must not hang on it.
TIMEOUT = aiohttp.ClientTimeout(total=15, connect=3)
# Building a snapshot of a large warehouse takes as long as it takes; the hub watches that.
SNAPSHOT_TIMEOUT = aiohttp.ClientTimeout(total=3600, connect=3)


class HubUnreachable(Exception):
    """The hub gave no answer, or an answer that is no decision (a crash, a proxy's error). Try again later."""


class HubRefused(Exception):
    """The hub decided against the request.

    `code` and `message` are the hub's, `draft` is the id under which it keeps the text that was refused.
    """

    def __init__(self, status: int, code: str, message: str, draft: int | str | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.draft = status, code, message, draft


@dataclass(frozen=True)
class NotebookText:
    """A notebook as the hub has it. `fence` is set if and only if this user holds the live lock."""

    text: str
    hash: str
    fence: int | None


class HubApi:
    """An HTTP client for one server. Methods raise HubUnreachable or HubRefused."""

    def __init__(self, settings: Settings, *, ssl: Any = True) -> None:
        self._settings = settings
        self._ssl = ssl
        self._session: aiohttp.ClientSession | None = None

    async def text(self, name: str) -> NotebookText:
        """The notebook's present text."""
        body = await self._notebook("GET", name, "text")
        return NotebookText(body["text"], body["hash"], body.get("fence"))

    async def publish(self, name: str, text: str, *, base: str, fence: int) -> str:
        """Offer a new text made from the version with hash `base`. Returns the accepted text's hash."""
        body = await self._notebook("PUT", name, "text", {"text": text, "base": base, "fence": fence})
        return str(body["hash"])

    async def heartbeat(self, name: str, fence: int) -> None:
        """Say that the lock holder is still there."""
        await self._notebook("POST", name, "heartbeat", {"fence": fence})

    async def refresh_snapshot(self) -> dict[str, Any]:
        """Have a new snapshot put into the user's folder. Returns `snapshot` and whether it is another one."""
        answer = await self._request("POST", f"{self._settings.api_url}/snapshot/refresh", {}, timeout=SNAPSHOT_TIMEOUT)
        if not isinstance(answer, dict):
            raise HubUnreachable("snapshot: not the answer of a hub")
        return answer

    async def activity(self, body: dict[str, Any]) -> None:
        """Report activity, so that the server is not culled."""
        await self._request("POST", self._settings.activity_url, body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _notebook(self, method: str, name: str, what: str, body: Any = None) -> dict[str, Any]:
        url = f"{self._settings.api_url}/notebooks/{name}/{what}"
        answer = await self._request(method, url, body, params={"workspace": self._settings.workspace})
        if not isinstance(answer, dict):
            raise HubUnreachable(f"{method} {what}: not the answer of a hub")
        return answer

    async def _request(
        self,
        method: str,
        url: str,
        body: Any,
        params: dict[str, str] | None = None,
        timeout: aiohttp.ClientTimeout = TIMEOUT,
    ) -> Any:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        headers = {"Authorization": f"token {self._settings.api_token}"}
        try:
            async with self._session.request(
                method,
                url,
                json=body,
                params=params,
                headers=headers,
                ssl=self._ssl,
                allow_redirects=False,
                timeout=timeout,
            ) as answer:
                raw = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise HubUnreachable(f"{type(error).__name__}: {error}") from error
        try:
            content = json.loads(raw) if raw else None
        except ValueError:
            content = None
        if 200 <= status < 300:
            return content
        raise _failure(status, content)


def _failure(status: int, content: Any) -> Exception:
    """The error for an answer that is not a success: our own error shape, JupyterHub's, or a proxy's page."""
    body = content if isinstance(content, dict) else {}
    error = body.get("error")
    if isinstance(error, dict) and error.get("code") and status not in (500, 502, 503, 504):
        return HubRefused(status, str(error["code"]), str(error.get("message", "")), error.get("draft"))
    if 400 <= status < 500 and status not in (408, 425, 429):
        return HubRefused(status, f"http_{status}", str(body.get("message", "")))
    return HubUnreachable(f"the hub answered with status {status}")
