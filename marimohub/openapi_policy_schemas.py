"""The shapes of what the calls about the policy answer, as JSON Schema for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from marimohub.openapi_schemas import array_of, object_of

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_MAYBE_STRING: Json = {"type": ["string", "null"]}
_BOOLEAN: Json = {"type": "boolean"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_TIME: Json = {"$ref": "#/components/schemas/Time"}
_ATTRIBUTE_TYPE: Json = {"enum": ["text", "number", "date", "boolean"]}


def _map(values: Json) -> Json:
    return {"type": "object", "additionalProperties": values}


_PROBLEMS = array_of({"$ref": "#/components/schemas/Problem"})
_GOVERNANCE: Json = {"enum": ["policy", "off"], "description": "Whether people's snapshots follow the policy."}
_REVISION: Json = {
    "revision": {**_COUNT, "description": "0 as long as there is no policy."},
    "author": _MAYBE_STRING,
    "comment": _STRING,
    "created": {"anyOf": [_TIME, {"type": "null"}]},
}
_COLUMNS = array_of(object_of(name=_STRING, type=_STRING, generated=_BOOLEAN))
_NAMES = array_of(_STRING)

SCHEMAS: dict[str, Json] = {
    "Problem": object_of(
        severity={"enum": ["error", "warning"], "description": "A policy with errors is not applied."},
        where={**_STRING, "description": "A path such as `filters[0].where.column`; empty for all of it."},
        message=_STRING,
        line={**_COUNT, "description": "From 1; 0 if it is unknown."},
    ),
    "Policy": object_of(**_REVISION, text=_STRING, problems=_PROBLEMS, governance=_GOVERNANCE),
    "PolicyRevision": object_of(**_REVISION),
    "PolicyText": object_of(**_REVISION, text=_STRING),
    "Warehouse": object_of(
        tables=array_of(object_of(schema=_STRING, name=_STRING, rows=_COUNT, columns=_COLUMNS)),
        views=array_of(object_of(schema=_STRING, name=_STRING, columns=_COLUMNS)),
        others=array_of(object_of(kind=_STRING, name=_STRING)),
    ),
    "Explanation": object_of(
        revision=_REVISION["revision"],
        governance=_GOVERNANCE,
        user=_STRING,
        role={"enum": ["viewer", "editor", "admin", None]},
        groups=_NAMES,
        clearance={**_STRING, "description": "The highest level that the person sees."},
        attributes=_map(
            object_of(
                type=_ATTRIBUTE_TYPE,
                list=_BOOLEAN,
                held={**_BOOLEAN, "description": "Whether the person has a value that fits."},
                value={},
            )
        ),
        digest={**_STRING, "description": "The same for two people who see the same."},
        tables=array_of(
            object_of(
                schema=_STRING,
                name=_STRING,
                display={**_STRING, "description": "`schema.table`, quoted where it must be."},
                visible=_BOOLEAN,
                filters={**_NAMES, "description": "The rules that choose rows."},
                no_rows={**_MAYBE_STRING, "description": "Why there are none."},
                columns=array_of(
                    object_of(
                        name=_STRING,
                        type=_STRING,
                        level=_MAYBE_STRING,
                        tags=_NAMES,
                        visible=_BOOLEAN,
                        mask=_MAYBE_STRING,
                        rule={**_MAYBE_STRING, "description": "The mask rule that won."},
                        reason=_STRING,
                        granted_by=_MAYBE_STRING,
                    )
                ),
                rows={"type": ["integer", "null"], "description": "null for people themselves, if rows are withheld."},
                visible_rows={"type": ["integer", "null"], "description": "null for a table that is not visible."},
            )
        ),
        views=_NAMES,
        omitted=array_of(object_of(kind=_STRING, name=_STRING, reason=_STRING)),
        warnings=_PROBLEMS,
    ),
    "Difference": object_of(
        same={**_BOOLEAN, "description": "Whether both see exactly the same."},
        tables_added=_NAMES,
        tables_removed=_NAMES,
        changed=array_of(
            object_of(
                table=_STRING,
                columns_added=_NAMES,
                columns_removed=_NAMES,
                masks=array_of(object_of(column=_STRING, before=_MAYBE_STRING, after=_MAYBE_STRING)),
                rows={**_BOOLEAN, "description": "Whether rows are chosen otherwise."},
                filters_before=_NAMES,
                filters_after=_NAMES,
                no_rows_before=_MAYBE_STRING,
                no_rows_after=_MAYBE_STRING,
            )
        ),
        views_added=_NAMES,
        views_removed=_NAMES,
        views_changed=_NAMES,
    ),
    "Snapshot": object_of(
        created={**_STRING, "description": "When the warehouse was copied."},
        checked={**_STRING, "description": "When it was last seen to be unchanged since."},
        version={**_STRING, "description": "Names the state of the warehouse."},
        governed={**_BOOLEAN, "description": "Whether it follows the policy."},
        current={**_BOOLEAN, "description": "Whether it was made for what one may see now."},
    ),
    "Revocation": object_of(
        user=_STRING, outcome={"enum": ["restarted", "stopped", "failed"]}, message={**_STRING, "description": "Why."}
    ),
    "Attributes": object_of(
        user=_STRING,
        attributes={"type": "object", "description": "Name to value."},
        declared=_map(object_of(type=_ATTRIBUTE_TYPE, list=_BOOLEAN)),
        unusable={**_NAMES, "description": "Stored, but not as the policy declares it now: they do not count."},
    ),
}
