"""The shapes of what our API answers, as JSON Schema for the OpenAPI document."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_MAYBE_STRING: Json = {"type": ["string", "null"]}
_BOOLEAN: Json = {"type": "boolean"}
_ID: Json = {"type": "integer", "format": "int64", "minimum": 1}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _maybe(schema: str) -> Json:
    return {"anyOf": [_ref(schema), {"type": "null"}]}


def array_of(items: Json) -> Json:
    """The schema of a list."""
    return {"type": "array", "items": items}


def object_of(**properties: Json) -> Json:
    """The schema of an object that has all of these and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_VERSION: Json = {
    "id": _ID,
    "author": {**_MAYBE_STRING, "description": "null: found changed on disk."},
    "author_email": _MAYBE_STRING,
    "created": _ref("Time"),
    "hash": _ref("Hash"),
    "kind": {"enum": ["create", "copy", "save", "restore", "draft", "disk"]},
    "current": _BOOLEAN,
}
_DRAFT: Json = {
    "id": _ID,
    "notebook": _STRING,
    "created": _ref("Time"),
    "reason": {"enum": ["lock_lost", "base_changed"]},
    "message": {**_STRING, "description": "Why it was not published, for people."},
    "base_hash": {**_maybe("Hash"), "description": "The text it was made from."},
    "hash": _ref("Hash"),
    "notebook_exists": {**_BOOLEAN, "description": "If not: save as copy, or discard."},
    "can_replace": {**_BOOLEAN, "description": "Whether its owner holds the notebook's lock now."},
}
_LINE: Json = {
    "oneOf": [
        {
            "type": "array",
            "prefixItems": [{"type": "integer", "minimum": 1}, _STRING],
            "minItems": 2,
            "maxItems": 2,
        },
        {"type": "null"},
    ],
    "description": "Line number from 1, and text.",
}
_SIDE = object_of(label=_STRING, created=_ref("Time"))

SCHEMAS: dict[str, Json] = {
    "Time": {"type": "string", "format": "date-time", "description": "ISO 8601 in UTC."},
    "Hash": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of a UTF-8 text, in hex."},
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": _STRING,
                    "message": {**_STRING, "description": "A sentence for people."},
                    "holder": {**_STRING, "description": "`lock_held`: who."},
                    "since": {**_ref("Time"), "description": "`lock_held`: since when."},
                    "draft": {**_ID, "description": "A refused save: the id it is kept under."},
                    "problems": {**array_of(_ref("Problem")), "description": "`invalid_policy`, `invalid_attributes`."},
                    "log": {**array_of(_STRING), "description": "`server_failed`, administrators only."},
                },
                "required": ["code", "message"],
                "additionalProperties": False,
            }
        },
        "required": ["error"],
        "additionalProperties": False,
    },
    "Lock": object_of(
        state={"enum": ["available", "mine", "locked"]},
        holder=_MAYBE_STRING,
        holder_email=_MAYBE_STRING,
        since=_maybe("Time"),
        expires=_maybe("Time"),
    ),
    "Notebook": object_of(
        name=_STRING,
        author=_MAYBE_STRING,
        author_email=_MAYBE_STRING,
        modified=_ref("Time"),
        file_exists={**_BOOLEAN, "description": "false: its .py file was deleted from disk."},
        lock=_ref("Lock"),
        actions=array_of({"enum": ["open", "release", "copy", "force_unlock", "delete"]}),
        delete_blocked={**_MAYBE_STRING, "description": "Why Delete would be refused now."},
    ),
    "Notice": object_of(id=_ID, text=_STRING),
    "Listing": object_of(
        workspace=_STRING,
        role={"enum": ["viewer", "editor", "admin"]},
        user=_STRING,
        can_create=_BOOLEAN,
        notices=array_of(_ref("Notice")),
        drafts=array_of(_ref("Draft")),
        notebooks=array_of(_ref("Notebook")),
    ),
    "Opened": object_of(
        marimo_url={**_STRING, "description": "Where to go, relative to the hub's host."},
        fence=_ID,
        expires=_ref("Time"),
        notebook=_ref("Notebook"),
    ),
    "Text": object_of(
        name=_STRING,
        workspace=_STRING,
        text=_STRING,
        hash=_ref("Hash"),
        modified=_ref("Time"),
        fence={"type": ["integer", "null"], "description": "Set if and only if the caller holds the live lock."},
        lock=_ref("Lock"),
    ),
    "Version": object_of(**_VERSION),
    "VersionText": object_of(**_VERSION, text=_STRING),
    "Draft": object_of(**_DRAFT),
    "DraftText": object_of(**_DRAFT, text=_STRING),
    "Comparison": object_of(
        left=_SIDE,
        right=_SIDE,
        rows=array_of(object_of(op={"enum": ["equal", "delete", "insert", "change"]}, left=_LINE, right=_LINE)),
        truncated={**_BOOLEAN, "description": "Rows were left off at the end, or very long lines cut."},
    ),
}
