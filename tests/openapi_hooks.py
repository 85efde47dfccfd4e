"""Hooks of schemathesis: half of the generated calls name things that exist, so that they get past 404."""

from __future__ import annotations

from typing import Any

import schemathesis

NOTEBOOKS = ("one", "two", "three", "other")


@schemathesis.hook
def map_path_parameters(_context: object, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    for field, value in (path_parameters or {}).items():
        if field == "name" and isinstance(value, str) and len(value) % 2:
            path_parameters[field] = NOTEBOOKS[len(value) // 2 % len(NOTEBOOKS)]  # type: ignore[index]
        elif field in ("version", "draft") and type(value) is int and value > 0 and value % 2:
            path_parameters[field] = 1 + value // 2 % 40  # type: ignore[index]
    return path_parameters


@schemathesis.hook
def map_body(_context: object, body: Any) -> Any:
    if isinstance(body, dict):
        name, fence = body.get("name"), body.get("fence")
        if isinstance(name, str) and name.isidentifier() and len(name) % 2:
            body["name"] = NOTEBOOKS[len(name) // 2 % len(NOTEBOOKS)]
        if type(fence) is int and fence % 2:
            body["fence"] = 1 + fence // 2 % 20
    return body
