"""The words in which the OpenAPI document's calls are written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

READ, EDIT = "custom:notebooks:read", "custom:notebooks:edit"
ADMIN, SYNC = "custom:notebooks:admin", "custom:notebooks:sync"
BODY = {400: ("bad_json", "bad_field"), 413: ("too_large",)}


def ref(schema: str) -> Json:
    """One of the document's named schemas."""
    return {"$ref": f"#/components/schemas/{schema}"}


def content(schema: Json) -> Json:
    """A JSON body."""
    return {"application/json": {"schema": schema}}


def record(**properties: Json) -> Json:
    """An object with all of these fields."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def call(
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
        success["content"] = content(schema)
    everywhere: dict[int, tuple[str, ...]] = {400: ("http_400",), 401: ("unauthenticated",), 403: ("forbidden",)}
    if workspace:
        everywhere[404] = ("no_workspace",)
    codes = {key: (*everywhere.get(key, ()), *(errors or {}).get(key, ())) for key in {*everywhere, *(errors or {})}}
    responses: Json = {str(status): success}
    for key in sorted(codes):
        named = ", ".join(f"`{code}`" for code in codes[key])
        responses[str(key)] = {"description": f"Refused: {named}.", "content": content(ref("Error"))}
    made: Json = {"summary": summary, "tags": [tag], "responses": responses}
    if description:
        made["description"] = description
    if scope:
        made["description"] = f"{description} Needs the scope `{scope}`.".strip()
    shared: list[Json] = [{"$ref": "#/components/parameters/workspace"}] if workspace else []
    if shared or parameters:
        made["parameters"] = [*shared, *parameters]
    if body is not None:
        made["requestBody"] = {"required": bool(body.get("required")), "content": content(body)}
    return made
