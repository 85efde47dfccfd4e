"""The OpenAPI 3.1 document of our calls, kept by hand; tests/test_openapi.py holds it against the hub."""

from __future__ import annotations

from marimohub import __version__
from marimohub.names import MAX_NAME_LENGTH
from marimohub.notebook_templates import TEMPLATES
from marimohub.openapi_calls import ADMIN, BODY, EDIT, READ, SYNC, Json, call, content, record, ref
from marimohub.openapi_policy import PARAMETERS as _POLICY_PARAMETERS
from marimohub.openapi_policy import PATHS as _POLICY_PATHS
from marimohub.openapi_policy_schemas import SCHEMAS as _POLICY_SCHEMAS
from marimohub.openapi_schemas import SCHEMAS
from marimohub.openapi_servers import CHOICE, CHOICE_ERRORS
from marimohub.openapi_servers import PATHS as _SERVER_PATHS
from marimohub.openapi_servers import SCHEMAS as _SERVER_SCHEMAS

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

_FENCE: Json = {"type": "integer", "format": "int64", "minimum": -(2**63 - 1), "maximum": 2**63 - 1}
_NEW_NAME: Json = {"type": "string", "pattern": "^[a-zA-Z0-9_]+$", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
_HASH = ref("Hash")
_GONE = {404: ("not_found",)}
_MAKES = {**BODY, 400: ("bad_json", "bad_field", "invalid_name"), 409: ("name_taken", "lock_held"), 507: ("no_space",)}
_DRAFT = {404: ("no_draft",)}

_PATHS: dict[str, dict[str, Json]] = {
    "/notebooks": {
        "get": call("List notebooks, with one's own notices and drafts", scope=READ, ok=(200, ref("Listing"))),
        "post": call(
            "Create a notebook from a template",
            description="A notebook whose file is missing is replaced.",
            scope=EDIT,
            ok=(201, ref("Notebook")),
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
        "get": call("One notebook", scope=READ, ok=(200, ref("Notebook")), errors=_GONE),
        "delete": call(
            "Delete a notebook with its versions",
            description="Only its author or an administrator may; not while somebody edits it.",
            scope=EDIT,
            ok=(204, None),
            errors={**_GONE, 403: ("not_author",), 409: ("locked",)},
        ),
    },
    "/notebooks/{name}/lock": {
        "post": call(
            "Open: take the lock, snapshot the warehouse, start the notebook server",
            description="With `Accept: text/event-stream` progress is streamed; the last event's phase is `ready`, "
            "with the same fields as the JSON answer, or `failed` with an `error`.",
            scope=EDIT,
            ok=(200, ref("Opened")),
            errors={
                **CHOICE_ERRORS,
                404: ("not_found", "file_missing"),
                409: ("lock_held", "policy_unusable", *CHOICE_ERRORS[409]),
                503: ("server_failed", "source_missing", "source_busy"),
                507: ("no_space",),
            },
            body=CHOICE,
        ),
        "delete": call(
            "Force unlock, and tell the holder",
            scope=ADMIN,
            ok=(200, record(notebook=ref("Notebook"))),
            errors={**_GONE, 409: ("not_locked",)},
        ),
    },
    "/notebooks/{name}/heartbeat": {
        "post": call(
            "Keep one's lock alive",
            scope=SYNC,
            ok=(200, record(fence=_FENCE, expires=ref("Time"))),
            errors={**_GONE, **BODY, 409: ("lock_lost",)},
            body=record(fence=_FENCE),
        )
    },
    "/notebooks/{name}/release": {
        "post": call(
            "Release one's lock",
            scope=EDIT,
            ok=(200, record(notebook=ref("Notebook"))),
            errors={**_GONE, 409: ("not_holder",)},
        )
    },
    "/notebooks/{name}/copy": {
        "post": call(
            "Copy a notebook under a new name",
            scope=EDIT,
            ok=(201, ref("Notebook")),
            errors={**_MAKES, 404: ("not_found", "file_missing"), 409: (*_MAKES[409], "not_text")},
            body=record(name=_NEW_NAME),
        )
    },
    "/notebooks/{name}/text": {
        "get": call(
            "The current text, with one's fence if one holds the lock",
            scope=SYNC,
            ok=(200, ref("Text")),
            errors={404: ("not_found", "file_missing"), 409: ("not_text",), 413: ("too_large",)},
        ),
        "put": call(
            "Save, as the live holder of the fence",
            description="A text that is refused with `draft` is kept for the caller under that id.",
            scope=SYNC,
            ok=(200, record(hash=_HASH, modified=ref("Time"))),
            errors={
                **_GONE,
                **BODY,
                400: (*BODY[400], "invalid_text"),
                409: ("lock_lost", "base_changed"),
                507: ("no_space",),
            },
            body=record(text={"type": "string", "pattern": "^[^\\u0000]*$"}, base=_HASH, fence=_FENCE),
        ),
    },
    "/notebooks/{name}/versions": {
        "get": call(
            "Versions, newest first",
            description="The last 100 are kept, and beyond them the newest of each day (UTC).",
            scope=EDIT,
            ok=(200, record(versions={"type": "array", "items": ref("Version")})),
            errors=_GONE,
        )
    },
    "/notebooks/{name}/versions/{version}": {
        "get": call(
            "One version with its text",
            scope=EDIT,
            ok=(200, ref("VersionText")),
            errors={404: ("not_found", "no_version")},
        )
    },
    "/notebooks/{name}/versions/{version}/restore": {
        "post": call(
            "Make a version the current text again, under one's own lock",
            scope=EDIT,
            ok=(200, record(notebook=ref("Notebook"), version=ref("Version"))),
            errors={404: ("not_found", "no_version"), 409: ("lock_lost", "base_changed"), 507: ("no_space",)},
        )
    },
    "/notebooks/{name}/compare": {
        "get": call(
            "Two texts side by side",
            scope=EDIT,
            ok=(200, ref("Comparison")),
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
        "get": call(
            "One's own drafts, newest first",
            scope=EDIT,
            ok=(200, record(drafts={"type": "array", "items": ref("Draft")})),
            tag="drafts",
        )
    },
    "/drafts/{draft}": {
        "get": call("One draft with its text", scope=EDIT, ok=(200, ref("DraftText")), errors=_DRAFT, tag="drafts"),
        "delete": call("Discard a draft", scope=EDIT, ok=(204, None), errors=_DRAFT, tag="drafts"),
    },
    "/drafts/{draft}/copy": {
        "post": call(
            "Make a new notebook of a draft, which is gone then",
            scope=EDIT,
            ok=(201, ref("Notebook")),
            errors={**_MAKES, **_DRAFT, 409: (*_MAKES[409], "draft_changed")},
            body=record(name=_NEW_NAME),
            tag="drafts",
        )
    },
    "/drafts/{draft}/replace": {
        "post": call(
            "Publish a draft over its notebook, under one's own lock; the draft is gone then",
            scope=EDIT,
            ok=(200, record(notebook=ref("Notebook"))),
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
            "responses": {"200": {"description": "OpenAPI 3.1", "content": content({"type": "object"})}},
        }
    },
}

# The hub's own pages use these, with the cookie; they are not on the bare /api/.
_PAGE_PATHS: dict[str, dict[str, Json]] = {
    "/notices/{notice}": {
        "delete": call(
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
            "description": "Messages: `notebooks_changed`, `notebook_lock_revoked` with its `notice`, and "
            "`server_ended` when one's server ended by itself.",
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
    for path, calls in {**_PATHS, **_POLICY_PATHS, **_SERVER_PATHS, **(_PAGE_PATHS if pages else {})}.items():
        named = [p for p in ("name", "version", "draft", "notice", "revision", "person") if f"{{{p}}}" in path]
        paths[path] = {**calls}
        if named:
            paths[path]["parameters"] = [{"$ref": f"#/components/parameters/{p}"} for p in named]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MarimoHub",
            "version": __version__,
            "description": "Notebooks, drafts, servers, and the policy. Send `Authorization: token …`; a "
            "page sends its cookie and the header `X-XSRFToken`. Every refusal is `{error: {code, message}}`.",
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": server}],
        "security": [{"token": []}, *([{"cookie": [], "xsrf": []}] if pages else [])],
        "paths": paths,
        "components": {
            "parameters": {**_PARAMETERS, **_POLICY_PARAMETERS},
            "schemas": {**SCHEMAS, **_POLICY_SCHEMAS, **_SERVER_SCHEMAS},
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
