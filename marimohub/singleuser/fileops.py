"""marimo's own file operations: which of them would go behind the hub's back.

Notebooks are created, copied, renamed and deleted on the Notebooks page, under its rules and locks. Through marimo
the user may do what they like with everything else in their private folder. This is a guide rail, no wall: a
terminal can do all of it, and what comes out is a private file that the hub does not know.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.types import Message, Receive

from marimohub.singleuser.files import NotebookFolder

RENAME = "Notebooks are renamed on the Notebooks page: copy it there under the new name, then delete the old one."
COPY = "Notebooks are copied on the Notebooks page: choose Copy there."
CREATE = (
    "Notebooks are created on the Notebooks page: choose New Notebook there. "
    "Python files of your own can go into a sub-folder."
)
DELETE = "Notebooks are deleted on the Notebooks page: choose Delete there."

GUARDED = frozenset(
    {
        "api/kernel/rename",
        "api/kernel/copy",
        "api/files/create",
        "api/files/copy",
        "api/files/delete",
        "api/files/move",
    }
)

_PREFIX = 64 * 1024  # bytes of a form that are looked at: the front end sends the upload itself last
_FIELD = re.compile(rb'name="(path|type|name)"\r\n(?:[^\r\n]+\r\n)*\r\n(.*?)\r\n--', re.DOTALL)


def refusal(operation: str, fields: dict[str, Any], folder: NotebookFolder) -> str | None:
    """Why marimo must not do this, as a sentence for the user; None if it may."""

    def text(key: str) -> str:
        return str(fields.get(key) or "")

    def managed(key: str) -> bool:
        name = folder.name_of(text(key))
        return name is not None and folder.known(name) is not None

    if operation == "api/kernel/rename":
        return RENAME
    if operation == "api/kernel/copy":
        return COPY if folder.at_top(text("destination")) else None
    if operation == "api/files/create":
        target = f"{text('path')}/{text('name')}" if text("path") else text("name")
        return CREATE if text("type") == "notebook" or folder.at_top(target) else None
    if operation == "api/files/copy":
        return COPY if folder.at_top(text("newPath")) else None
    if operation == "api/files/move":
        return RENAME if managed("path") or folder.at_top(text("newPath")) else None
    if operation == "api/files/delete":
        return DELETE if managed("path") else None
    return None


async def read_fields(receive: Receive, content_type: str) -> tuple[dict[str, Any], Receive]:
    """The named fields of a JSON or form body, and a `receive` that gives the whole body again."""
    form = content_type.startswith("multipart/form-data")
    kept: list[Message] = []
    body = b""
    more = True
    while more and not (form and len(body) >= _PREFIX):
        message = await receive()
        kept.append(message)
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)

    async def again() -> Message:
        return kept.pop(0) if kept else await receive()

    return (_form_fields(body) if form else _json_fields(body)), again


def _form_fields(body: bytes) -> dict[str, Any]:
    found = _FIELD.findall(body[:_PREFIX])
    return {key.decode(): value.decode("utf-8", "replace") for key, value in found}


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError:
        return {}  # marimo answers malformed requests itself
    return fields if isinstance(fields, dict) else {}
