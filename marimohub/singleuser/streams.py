"""Small wrappers around ASGI's `receive` and `send`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

RECHECK = 60.0  # seconds between looks whether the session of an open connection is still good


def with_headers(send: Send, path: str, jupyterhub_version: str) -> Send:
    """Adds the security headers to every response of the server. `path` is relative to its prefix."""
    # marimo shows large HTML outputs in frames whose source is a virtual file of its own.
    ancestors = "'self'" if path.startswith("@file/") else "'none'"

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.append("Content-Security-Policy", f"frame-ancestors {ancestors}")
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Referrer-Policy", "strict-origin-when-cross-origin")
            headers.setdefault("Cross-Origin-Opener-Policy", "noopener-allow-popups")
            headers["X-JupyterHub-Version"] = jupyterhub_version
            if path.startswith("assets/") and message["status"] == 200:
                # Their names carry a hash of their content. Private: not for caches that others share.
                headers.setdefault("Cache-Control", "private, max-age=31536000, immutable")
            else:
                headers.setdefault("Cache-Control", "private, no-cache")
        await send(message)

    return send_with_headers


class Held:
    """Keeps a response back until it is clear whether it is the answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self._messages.append(message)

    @property
    def ok(self) -> bool:
        return bool(self._messages) and self._messages[0].get("status", 500) < 400

    async def release(self, change: Callable[[bytes], bytes] | None = None) -> None:
        """Send it, its body through `change` if it is a successful HTML page."""
        if change is not None and self._messages and self._messages[0].get("status") == 200:
            start = self._messages[0]
            headers = MutableHeaders(scope=start)
            if headers.get("content-type", "").startswith("text/html"):
                body = change(b"".join(message.get("body", b"") for message in self._messages[1:]))
                headers["Content-Length"] = str(len(body))
                # It holds marimo's server token, and going back to it must pull the text again.
                headers["Cache-Control"] = "no-store"
                del headers["ETag"]
                self._messages = [start, {"type": "http.response.body", "body": body}]
        for message in self._messages:
            await self._send(message)


class Revocable:
    """A connection that is ended when `allowed` says no, asked every RECHECK seconds."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, allowed: Callable[[], Awaitable[bool]]) -> None:
        self._socket = scope["type"] == "websocket"
        self._receive, self._send, self._allowed = receive, send, allowed
        self._revoked = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Revocable:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def receive(self) -> Message:
        incoming = asyncio.ensure_future(self._receive())
        revoked = asyncio.create_task(self._revoked.wait())
        try:
            await asyncio.wait({incoming, revoked}, return_when=asyncio.FIRST_COMPLETED)
            if not incoming.done():
                kind = "websocket.disconnect" if self._socket else "http.disconnect"
                return {"type": kind, "code": 1008}
            return incoming.result()
        finally:
            revoked.cancel()
            if not incoming.done():
                incoming.cancel()

    async def send(self, message: Message) -> None:
        if self._revoked.is_set():
            raise OSError("the session was revoked")
        await self._send(message)

    async def _watch(self) -> None:
        while await self._still_allowed():
            pass
        self._revoked.set()
        if self._socket:
            with contextlib.suppress(Exception):  # it may be closing by itself
                await self._send({"type": "websocket.close", "code": 1008, "reason": "signed out"})

    async def _still_allowed(self) -> bool:
        await asyncio.sleep(RECHECK)
        return await self._allowed()
