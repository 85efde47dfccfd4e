"""The outermost ASGI layer around marimo: every request and every socket comes through here.

In this order: readiness for the hub, sign-in callback, other sites (browser.py), the owner (auth.py), marimo's
server token, then what belongs to notebooks: pull before the page, publish after a save, presence of a socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import parse_qsl, quote, urlencode

from jupyterhub import __version__ as jupyterhub_version
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marimohub.singleuser import browser, fileops, snapshots
from marimohub.singleuser.auth import (
    LOGIN_TIME,
    Authenticator,
    HubDown,
    Identity,
    LoginFailed,
    NotAllowed,
    NotSignedIn,
)
from marimohub.singleuser.files import NotebookFolder
from marimohub.singleuser.marimo_seam import MarimoApp
from marimohub.singleuser.page import message_page, with_scripts
from marimohub.singleuser.presence import Activity, Presence
from marimohub.singleuser.settings import Settings
from marimohub.singleuser.snapshots import SnapshotStatus
from marimohub.singleuser.streams import Held, Revocable, with_headers
from marimohub.singleuser.sync import CannotOpen, NotebookSync

log = logging.getLogger("marimohub.singleuser")

# Requests after which the notebook's file may have changed. Their answer waits for the hub's.
SAVES = frozenset({"api/kernel/save", "api/kernel/save_app_config", "api/files/update"})


class Gate:
    """See the module. `urls` are where people are sent: the hub's Notebooks page and home."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        authenticator: Authenticator,
        marimo: MarimoApp,
        folder: NotebookFolder,
        sync: NotebookSync,
        presence: Presence,
        activity: Activity,
        snapshots: SnapshotStatus,
        notebooks_url: str,
        on_startup: Callable[[], None],
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self.app = app
        self.settings, self.auth, self.marimo = settings, authenticator, marimo
        self.folder, self.sync, self.presence, self.activity = folder, sync, presence, activity
        self.snapshots = snapshots
        self.notebooks_url = notebooks_url
        self.on_startup, self.on_shutdown = on_startup, on_shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.on_startup()
        reporting = asyncio.create_task(self.activity.run())

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                reporting.cancel()
                await self.on_shutdown()
            return message

        await self.app(scope, watched, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        path = self._relative(scope)
        send = with_headers(send, path or "", jupyterhub_version)
        if path is None:
            response: Response | None = JSONResponse({"detail": "Not Found"}, status_code=404)
        elif path in ("api", "api/") and scope["method"] in ("GET", "HEAD"):
            # The hub asks this to see whether the server is up; it tells nothing that is anyone's.
            response = JSONResponse({"version": jupyterhub_version})
        else:
            response = await self._enter(connection, path)
        if response is not None:
            await response(scope, receive, send)
        elif path is not None:
            await self._serve(connection, path, receive, send)

    async def _enter(self, connection: HTTPConnection, path: str) -> Response | None:
        """The answer for someone who is not let in, None for the owner."""
        try:
            browser.check_site(connection, self.settings.public_url)
            if path == "oauth_callback":
                return await self._finish_login(connection)
            identity = await self.auth.identify(connection)
            if browser.needs_server_token(connection, path):
                browser.check_server_token(connection, self.marimo.server_token)
            if path == "":
                browser.check_page(connection)
            connection.scope["marimohub.identity"] = identity
            return None
        except browser.Refused as error:
            return self._problem(connection, 403, "Refused", str(error))
        except NotAllowed:
            return self._not_allowed(connection)
        except HubDown:
            message = "It cannot check who you are right now. This page tries again by itself."
            return self._problem(connection, 503, "The hub is restarting", message, reload_after=3)
        except NotSignedIn:
            if not _is_navigation(connection):
                return self._problem(connection, 401, "Signed out", "You are signed out. Reload the page.")
            return self._start_login(connection)

    async def _serve(self, connection: HTTPConnection, path: str, receive: Receive, send: Send) -> None:
        scope = connection.scope
        identity: Identity = scope["marimohub.identity"]
        self.activity.touch()
        inner = _scrubbed(scope)
        if path == "" and scope["method"] in ("GET", "HEAD"):
            problem = await self._open_page(connection)
            if problem is not None:
                await problem(scope, receive, send)
                return
            held = Held(send)
            await self.app(inner, receive, held.send)
            await held.release(lambda page: with_scripts(page, self.marimo.server_token, self.settings.prefix))
        elif path.startswith(snapshots.PREFIX):
            response = await self.snapshots.answer(path, scope["method"])
            await response(scope, receive, send)
        elif path in fileops.GUARDED:
            fields, receive = await fileops.read_fields(receive, connection.headers.get("content-type", ""))
            reason = fileops.refusal(path, fields, self.folder)
            if reason is not None:
                # Not 403: marimo's front end shows nothing to the user for that one. For a rename it also shows the
                # status's own phrase in a dialog, and this one reads well there.
                await JSONResponse({"detail": reason}, status_code=405)(scope, receive, send)
                return
            await self.app(inner, receive, send)
        elif path in SAVES and scope["method"] == "POST":
            await self._save(connection, path, inner, receive, send)
        elif path == "sse":
            async with Revocable(scope, receive, send, lambda: self.auth.still_allowed(identity)) as stream:
                with self._presence_of(connection):
                    await self.app(inner, stream.receive, stream.send)
        else:
            await self.app(inner, receive, send)

    async def _open_page(self, connection: HTTPConnection) -> Response | None:
        key = connection.query_params.get("file")
        if not key:
            return RedirectResponse(self.notebooks_url, status_code=302)
        name = self.folder.name_of(key)
        if name is None:
            return self._problem(connection, 404, "No such notebook", "Notebooks are opened from the Notebooks page.")
        try:
            await self.sync.open(name)
        except CannotOpen as error:
            reload_after = 3 if error.status == 503 else None
            return self._problem(connection, error.status, error.title, error.message, reload_after=reload_after)
        except OSError as error:
            log.error("open %s: %s", name, error)
            message = f"Your private folder cannot be used: {error.strerror}. Ask an administrator."
            return self._problem(connection, 507, "The notebook cannot be opened", message)
        return None

    async def _save(self, connection: HTTPConnection, path: str, inner: Scope, receive: Receive, send: Send) -> None:
        if path == "api/files/update":
            fields, receive = await fileops.read_fields(receive, "application/json")
            file = str(fields.get("path") or "")
        else:
            file = self.marimo.file_of_session(connection.headers.get("marimo-session-id", "")) or ""
        held = Held(send)
        await self.app(inner, receive, held.send)
        name = self.folder.name_of(file) if file else None
        if name is not None and held.ok:
            saved = await self.sync.publish(name)
            if saved.state == "refused":
                await JSONResponse({"detail": saved.message}, status_code=409)(connection.scope, receive, send)
                return
        await held.release()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        path = self._relative(scope)
        try:
            if path is None:
                raise browser.Refused("No such path.")
            browser.check_site(connection, self.settings.public_url)
            identity = await self.auth.identify(connection)
            browser.check_server_token(connection, self.marimo.server_token)
            if path in ("ws", "ws_sync"):
                await self._require_open(connection)
        except (browser.Refused, NotSignedIn, NotAllowed, HubDown, CannotOpen, OSError) as error:
            log.warning("refused websocket %s: %s %s", path, type(error).__name__, error)
            # Closing before accepting makes the server answer the handshake with 403.
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        self.activity.touch()
        inner = _scrubbed(scope)
        present = self._presence_of(connection) if path == "ws" else nullcontext()
        async with Revocable(scope, receive, send, lambda: self.auth.still_allowed(identity)) as stream:
            with present:
                await self.app(inner, stream.receive, stream.send)

    async def _require_open(self, connection: HTTPConnection) -> None:
        """A page's socket opens the notebook if its page was loaded before this process started."""
        name = self.folder.name_of(connection.query_params.get("file") or "")
        if name is None:
            raise browser.Refused("No such notebook.")
        if self.sync.opened(name) is None:
            await self.sync.open(name)

    def _presence_of(self, connection: HTTPConnection) -> AbstractContextManager[None]:
        name = self.folder.name_of(connection.query_params.get("file") or "")
        return self.presence.connected(name) if name is not None else nullcontext()

    def _relative(self, scope: Scope) -> str | None:
        base = self.settings.base_url + "/"
        path: str = scope["path"]
        if path + "/" == base:
            return ""
        return path[len(base) :] if path.startswith(base) else None

    def _start_login(self, connection: HTTPConnection) -> Response:
        scope = connection.scope
        path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii", "replace")
        query = scope["query_string"].decode("ascii", "replace")
        started = self.auth.start_login(connection, path + ("?" + query if query else ""))
        response = RedirectResponse(started.url, status_code=302, headers={"Cache-Control": "no-store"})
        self._set_cookie(connection, response, started.cookie, started.value, max_age=int(LOGIN_TIME))
        for name in started.stale:
            response.delete_cookie(name, path=self.settings.prefix)
        return response

    async def _finish_login(self, connection: HTTPConnection) -> Response:
        try:
            session, next_url, used = await self.auth.finish_login(connection)
        except LoginFailed as error:
            again = [("Try again", self.settings.prefix), ("Notebooks page", self.notebooks_url)]
            return message_page(403, "You are not signed in", str(error), again)
        response = RedirectResponse(next_url, status_code=302, headers={"Cache-Control": "no-store"})
        self._set_cookie(connection, response, self.auth.cookie, session)
        response.delete_cookie(used, path=self.settings.prefix)
        return response

    def _set_cookie(
        self, connection: HTTPConnection, response: Response, name: str, value: str, max_age: int | None = None
    ) -> None:
        response.set_cookie(
            name,
            value,
            max_age=max_age,
            path=self.settings.prefix,
            secure=browser.public_scheme(connection, self.settings.public_url) == "https",
            httponly=True,
            samesite="lax",
        )

    def _not_allowed(self, connection: HTTPConnection) -> Response:
        message = (
            f"This server belongs to {self.settings.user}. Notebooks run with their owner's view of the data, so "
            "nobody else can open them here, administrators included."
        )
        return self._problem(connection, 403, "This is somebody else's server", message)

    def _problem(
        self,
        connection: HTTPConnection,
        status: int,
        title: str,
        message: str,
        reload_after: int | None = None,
    ) -> Response:
        if _is_navigation(connection):
            links = [("Notebooks page", self.notebooks_url)]
            return message_page(status, title, message, links, reload_after=reload_after)
        return JSONResponse({"detail": message}, status_code=status, headers={"Cache-Control": "no-store"})


def _is_navigation(connection: HTTPConnection) -> bool:
    """Whether a person sees the answer as a page."""
    if connection.scope["method"] not in ("GET", "HEAD"):
        return False
    mode = connection.headers.get("sec-fetch-mode")
    if mode is not None:
        return mode == "navigate" and connection.headers.get("sec-fetch-dest", "document") == "document"
    return "text/html" in connection.headers.get("accept", "")


def _scrubbed(scope: Scope) -> Scope:
    """The scope without what signs the user in: marimo hands request headers and parameters to notebook code and
    to language servers."""
    inner = dict(scope)
    inner["headers"] = [(k, v) for k, v in scope["headers"] if k not in (b"cookie", b"authorization")]
    inner.pop("marimohub.identity", None)
    query = scope["query_string"]
    if browser.TOKEN_PARAMETER.encode() in query:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        kept = [(key, value) for key, value in pairs if key != browser.TOKEN_PARAMETER]
        inner["query_string"] = urlencode(kept).encode()
    return inner
