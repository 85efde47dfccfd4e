"""Live changes for open Notebooks pages, over a WebSocket at `/hub/api/events`."""

from __future__ import annotations

import json
from typing import Any

from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from marimohub.auth import roles
from marimohub.handlers.base import PageHandler

PING_SECONDS = 30


class Broadcaster:
    """The open event sockets, by user name."""

    def __init__(self) -> None:
        self._sockets: dict[str, set[EventsHandler]] = {}

    def add(self, user: str, socket: EventsHandler) -> None:
        self._sockets.setdefault(user, set()).add(socket)

    def remove(self, user: str, socket: EventsHandler) -> None:
        sockets = self._sockets.get(user, set())
        sockets.discard(socket)
        if not sockets:
            self._sockets.pop(user, None)

    def send(self, event: dict[str, Any], *, user: str | None = None) -> None:
        """Send to all pages, or to those of one user."""
        text = json.dumps(event)
        names = list(self._sockets) if user is None else [user]
        for name in names:
            for socket in list(self._sockets.get(name, ())):
                try:
                    socket.write_message(text)
                except WebSocketClosedError:
                    self.remove(name, socket)


class EventsHandler(PageHandler, WebSocketHandler):
    """One page that listens. Browsers send the cookie and their Origin, which must be the hub's own."""

    async def prepare(self) -> None:
        await PageHandler.prepare(self)
        if self.current_user is None or roles.READ not in self.expanded_scopes:
            raise web.HTTPError(403)

    @property
    def ping_interval(self) -> float:
        return PING_SECONDS

    def open(self, *args: str, **kwargs: str) -> None:
        self.broadcaster.add(self.viewer.user, self)

    def on_message(self, message: str | bytes) -> None:
        """Nothing is expected from a page."""

    def on_close(self) -> None:
        if self.current_user is not None:
            self.broadcaster.remove(self.viewer.user, self)


handlers: list[tuple[Any, ...]] = [(r"/api/events", EventsHandler)]
