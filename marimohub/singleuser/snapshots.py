"""What the notebook's page asks about the snapshot: how old it is, and for a new one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse

from marimohub.singleuser.hubapi import HubApi, HubRefused, HubUnreachable

log = logging.getLogger("marimohub.singleuser")

PREFIX = "marimohub/"


class SnapshotStatus:
    """Answers `marimohub/snapshot` (GET) and `marimohub/snapshot/refresh` (POST).

    `file` is where the hub puts the snapshot; None if this server has none.
    """

    def __init__(self, file: Path | None, hub: HubApi) -> None:
        self._file = file
        self._hub = hub

    async def answer(self, path: str, method: str) -> JSONResponse:
        """The answer to a request of the page."""
        if path == "marimohub/snapshot" and method in ("GET", "HEAD"):
            return _answer(200, {"snapshot": self.current()})
        if path == "marimohub/snapshot/refresh" and method == "POST":
            return await self._refresh()
        return _answer(404, {"detail": "Not Found"})

    def current(self) -> dict[str, Any] | None:
        """When the snapshot was taken and last checked, as ISO 8601; None if there is none."""
        if self._file is None:
            return None
        try:
            about = json.loads(self._file.with_suffix(".json").read_bytes())
            return {"created": about["created"], "checked": about["checked"]}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    async def _refresh(self) -> JSONResponse:
        try:
            answer = await self._hub.refresh_snapshot()
        except HubRefused as error:
            return _answer(error.status, {"detail": error.message})
        except HubUnreachable as error:
            log.warning("refresh of the snapshot: %s", error)
            return _answer(503, {"detail": "The hub could not make a new snapshot just now. Try again in a minute."})
        return _answer(200, {"snapshot": self.current(), "changed": bool(answer.get("changed"))})


def _answer(status: int, content: dict[str, Any]) -> JSONResponse:
    return JSONResponse(content, status_code=status, headers={"Cache-Control": "no-store"})
