"""The OpenAPI 3.1 document of our calls, kept by hand; tests/test_openapi.py holds it against the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marimohub import __version__
from marimohub.names import MAX_NAME_LENGTH
from marimohub.notebook_templates import TEMPLATES
from marimohub.openapi_schemas import SCHEMAS

Json = dict[str, Any]

_PARAMETERS: dict[str, Json] = {
    "name": {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "A notebook's name, in its own upper and lower case.",
        "schema": {"type": "string", "minLength": 1},
    },
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    },
    "draft": {
        "name": "draft",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    },
    "notice": {
        "name": "notice",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "format": "int64", "minimum": 1, "maximum": 10**18 - 1},
    },
    "workspace": {
        "name": "workspace",
        "in": "query",
        "description": "The workspace; there is one so far.",
        "schema": {"type": "string", "default": "default"},
    },
}

_SIDE = {
    "schema": {"type": "string", "pattern": "^(current|version:[0-9]+|draft:[0-9]+)$", "default": "current"},
    "description": "`current`, `version:ID`, or `draft:ID` of one's own.",
}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _call(
    summary: str,
    *,
    scope: str | None,
    ok: tuple[int, Json | None],
    errors: Mapping[int, tuple[str, ...]] | None = None,
    body: Json | None = None,
    description: str = "",
    parameters: tuple[Json, ...] = (),
    tag: str = "notebooks",
    workspace: bool = True,
) -> Json:
    """One operation.

    Args:
        scope: what the caller's token or cookie must hold.
        ok: status and schema of success; no schema for no body.
        errors: status → codes that this call may answer with, beside what every call may.
        body: schema of the JSON body; a body is required if one of its fields is.
    """
    status, schema = ok
    success: Json = {"description": summary}
    if schema is not None:
        success["content"] = _content(schema)
    everywhere: dict[int, tuple[str, ...]] = {400: ("http_400",), 401: ("unauthenticated",), 403: ("forbidden",)}
    if workspace:
        everywhere[404] = ("no_workspace",)
    codes = {key: (*everywhere.get(key, ()), *(errors or {}).get(key, ())) for key in {*everywhere, *(errors or {})}}
    responses: Json = {str(status): success}
    for key in sorted(codes):
        named = ", ".join(f"`{code}`" for code in codes[key])
        responses[str(key)] = {"description": f"Refused: {named}.", "content": _content(_ref("Error"))}
    call: Json = {"summary": summary, "tags": [tag], "responses": responses}
    if description:
        call["description"] = description
    if scope:
        call["description"] = f"{description} Needs the scope `{scope}`.".strip()
    shared: list[Json] = [{"$ref": "#/components/parameters/workspace"}] if workspace else []
    if shared or parameters:
        call["parameters"] = [*shared, *parameters]
    if body is not None:
        call["requestBody"] = {"required": bool(body.get("required")), "content": _content(body)}
    return call


_READ, _EDIT = "custom:notebooks:read", "custom:notebooks:edit"
_ADMIN, _SYNC = "custom:notebooks:admin", "custom:notebooks:sync"
_FENCE: Json = {"type": "integer", "format": "int64", "minimum": -(2**63 - 1), "maximum": 2**63 - 1}
_NEW_NAME: Json = {"type": "string", "pattern": "^[a-zA-Z0-9_]+$", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
_HASH = _ref("Hash")
_GONE = {404: ("not_found",)}
_BODY = {400: ("bad_json", "bad_field"), 413: ("too_large",)}
_MAKES = {**_BODY, 400: ("bad_json", "bad_field", "invalid_name"), 409: ("name_taken", "lock_held"), 507: ("no_space",)}
_DRAFT = {404: ("no_draft",)}

_PATHS: dict[str, dict[str, Json]] = {
    "/notebooks": {
        "get": _call("List notebooks, with one's own notices and drafts", scope=_READ, ok=(200, _ref("Listing"))),
        "post": _call(
            "Create a notebook from a template",
            description="A notebook whose file is missing is replaced.",
            scope=_EDIT,
            ok=(201, _ref("Notebook")),
            errors={**_MAKES, 400: (*_MAKES[400], "unknown_template")},
            body={
                "type": "object",
                "properties": {
                    "name": _NEW_NAME,
                    "template": {"type": "string", "enum": sorted(TEMPLATES), "default": "blank"},
                },
                "required": ["name"],
            },
        ),
    },
    "/notebooks/{name}": {
        "get": _call("One notebook", scope=_READ, ok=(200, _ref("Notebook")), errors=_GONE),
        "delete": _call(
            "Delete a notebook with its versions",
            description="Only its author or an administrator may; not while somebody edits it.",
            scope=_EDIT,
            ok=(204, None),
            errors={**_GONE, 403: ("not_author",), 409: ("locked",)},
        ),
    },
    "/notebooks/{name}/lock": {
        "post": _call(
            "Open: take the lock, snapshot the warehouse, start the notebook server",
            description="With `Accept: text/event-stream` progress is streamed; the last event's phase is `ready`, "
            "with the same fields as the JSON answer, or `failed` with an `error`.",
            scope=_EDIT,
            ok=(200, _ref("Opened")),
            errors={
                404: ("not_found", "file_missing"),
                409: ("lock_held",),
                503: ("server_failed", "source_missing", "source_busy"),
                507: ("no_space",),
            },
        ),
        "delete": _call(
            "Force unlock, and tell the holder",
            scope=_ADMIN,
            ok=(200, _object(notebook=_ref("Notebook"))),
            errors={**_GONE, 409: ("not_locked",)},
        ),
    },
    "/notebooks/{name}/heartbeat": {
        "post": _call(
            "Keep one's lock alive",
            scope=_SYNC,
            ok=(200, _object(fence=_FENCE, expires=_ref("Time"))),
            errors={**_GONE, **_BODY, 409: ("lock_lost",)},
            body=_object(fence=_FENCE),
        )
    },
    "/notebooks/{name}/release": {
        "post": _call(
            "Release one's lock",
            scope=_EDIT,
            ok=(200, _object(notebook=_ref("Notebook"))),
            errors={**_GONE, 409: ("not_holder",)},
        )
    },
    "/notebooks/{name}/copy": {
        "post": _call(
            "Copy a notebook under a new name",
            scope=_EDIT,
            ok=(201, _ref("Notebook")),
            errors={**_MAKES, 404: ("not_found", "file_missing"), 409: (*_MAKES[409], "not_text")},
            body=_object(name=_NEW_NAME),
        )
    },
    "/notebooks/{name}/text": {
        "get": _call(
            "The current text, with one's fence if one holds the lock",
            scope=_SYNC,
            ok=(200, _ref("Text")),
            errors={404: ("not_found", "file_missing"), 409: ("not_text",), 413: ("too_large",)},
        ),
        "put": _call(
            "Save, as the live holder of the fence",
            description="A text that is refused with `draft` is kept for the caller under that id.",
            scope=_SYNC,
            ok=(200, _object(hash=_HASH, modified=_ref("Time"))),
            errors={
                **_GONE,
                **_BODY,
                400: (*_BODY[400], "invalid_text"),
                409: ("lock_lost", "base_changed"),
                507: ("no_space",),
            },
            body=_object(text={"type": "string", "pattern": "^[^\\u0000]*$"}, base=_HASH, fence=_FENCE),
        ),
    },
    "/notebooks/{name}/versions": {
        "get": _call(
            "Versions, newest first",
            description="The last 100 are kept, and beyond them the newest of each day (UTC).",
            scope=_EDIT,
            ok=(200, _object(versions={"type": "array", "items": _ref("Version")})),
            errors=_GONE,
        )
    },
    "/notebooks/{name}/versions/{version}": {
        "get": _call(
            "One version with its text",
            scope=_EDIT,
            ok=(200, _ref("VersionText")),
            errors={404: ("not_found", "no_version")},
        )
    },
    "/notebooks/{name}/versions/{version}/restore": {
        "post": _call(
            "Make a version the current text again, under one's own lock",
            scope=_EDIT,
            ok=(200, _object(notebook=_ref("Notebook"), version=_ref("Version"))),
            errors={404: ("not_found", "no_version"), 409: ("lock_lost", "base_changed"), 507: ("no_space",)},
        )
    },
    "/notebooks/{name}/compare": {
        "get": _call(
            "Two texts side by side",
            scope=_EDIT,
            ok=(200, _ref("Comparison")),
            errors={
                400: ("bad_side",),
                404: ("not_found", "file_missing", "no_version", "no_draft"),
                409: ("not_text",),
                413: ("too_large",),
            },
            parameters=({"name": "left", "in": "query", **_SIDE}, {"name": "right", "in": "query", **_SIDE}),
        )
    },
    "/drafts": {
        "get": _call(
            "One's own drafts, newest first",
            scope=_EDIT,
            ok=(200, _object(drafts={"type": "array", "items": _ref("Draft")})),
            tag="drafts",
        )
    },
    "/drafts/{draft}": {
        "get": _call("One draft with its text", scope=_EDIT, ok=(200, _ref("DraftText")), errors=_DRAFT, tag="drafts"),
        "delete": _call("Discard a draft", scope=_EDIT, ok=(204, None), errors=_DRAFT, tag="drafts"),
    },
    "/drafts/{draft}/copy": {
        "post": _call(
            "Make a new notebook of a draft, which is gone then",
            scope=_EDIT,
            ok=(201, _ref("Notebook")),
            errors={**_MAKES, **_DRAFT, 409: (*_MAKES[409], "draft_changed")},
            body=_object(name=_NEW_NAME),
            tag="drafts",
        )
    },
    "/drafts/{draft}/replace": {
        "post": _call(
            "Publish a draft over its notebook, under one's own lock; the draft is gone then",
            scope=_EDIT,
            ok=(200, _object(notebook=_ref("Notebook"))),
            errors={
                404: ("no_draft", "not_found"),
                409: ("lock_lost", "base_changed", "draft_changed"),
                507: ("no_space",),
            },
            tag="drafts",
        )
    },
    "/notebooks-openapi.json": {
        "get": {
            "summary": "This document",
            "tags": ["about"],
            "security": [],
            "responses": {"200": {"description": "OpenAPI 3.1", "content": _content({"type": "object"})}},
        }
    },
}

# The hub's own pages use these, with the cookie; they are not on the bare /api/.
_PAGE_PATHS: dict[str, dict[str, Json]] = {
    "/notices/{notice}": {
        "delete": _call(
            "Dismiss one of one's own notices",
            scope=None,
            ok=(204, None),
            errors={404: ("not_found",)},
            tag="page",
            workspace=False,
        )
    },
    "/events": {
        "get": {
            "summary": "WebSocket of the Notebooks page",
            "description": "Messages: `notebooks_changed`, and `notebook_lock_revoked` with its `notice`.",
            "tags": ["page"],
            "responses": {
                "101": {"description": "The socket is open."},
                "400": {"description": "Not a WebSocket."},
                "403": {"description": "Nobody is signed in, no role, or a foreign Origin."},
            },
        }
    },
}


def document(server: str, *, pages: bool) -> Json:
    """The document for the API below `server` (a path such as `/hub/api`).

    Args:
        pages: whether the calls of the hub's own pages are served there, too.
    """
    paths: dict[str, Json] = {}
    for path, calls in {**_PATHS, **(_PAGE_PATHS if pages else {})}.items():
        named = [p for p in ("name", "version", "draft", "notice") if f"{{{p}}}" in path]
        paths[path] = {**calls}
        if named:
            paths[path]["parameters"] = [{"$ref": f"#/components/parameters/{p}"} for p in named]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MarimoHub",
            "version": __version__,
            "description": "Notebooks, locks, versions and drafts. Send `Authorization: token …`; a page sends its "
            "cookie and the header `X-XSRFToken`. Every refusal is `{error: {code, message}}`.",
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": server}],
        "security": [{"token": []}, *([{"cookie": [], "xsrf": []}] if pages else [])],
        "paths": paths,
        "components": {
            "parameters": _PARAMETERS,
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`token <API token>`, from the Token page of the hub.",
                },
                "cookie": {"type": "apiKey", "in": "cookie", "name": "jupyterhub-hub-login"},
                "xsrf": {"type": "apiKey", "in": "header", "name": "X-XSRFToken"},
            },
        },
    }
