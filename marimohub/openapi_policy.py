"""The calls about the policy, for the OpenAPI document."""

from __future__ import annotations

from marimohub.openapi_calls import ADMIN, BODY, READ, SYNC, Json, call, record, ref

PARAMETERS: dict[str, Json] = {
    "revision": {
        "name": "revision",
        "in": "path",
        "required": True,
        "description": "Revisions of the policy count from 1.",
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    },
    "person": {
        "name": "person",
        "in": "path",
        "required": True,
        "description": "A user name.",
        "schema": {"type": "string", "minLength": 1},
    },
}

_STRING: Json = {"type": "string"}
_TEXT: Json = {"type": "string", "description": "YAML; at most 1 MB."}
_WAREHOUSE = {503: ("source_missing", "source_busy", "snapshot_error"), 507: ("no_space",)}
_MAYBE_SNAPSHOT: Json = {"anyOf": [ref("Snapshot"), {"type": "null"}]}


def _query(name: str, description: str, schema: Json = _STRING, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema, "required": required}


def _number(description: str) -> Json:
    return {"type": "integer", "format": "int64", "minimum": 0, "description": description}


PATHS: dict[str, dict[str, Json]] = {
    "/policy": {
        "get": call(
            "The policy that applies, and what is wrong with it in the warehouse as it is now",
            description="Revision 0 and an empty text as long as there is none: then nobody sees any data.",
            scope=ADMIN,
            ok=(200, ref("Policy")),
            tag="policy",
        ),
        "put": call(
            "Apply a policy as a new revision",
            scope=ADMIN,
            ok=(201, ref("Policy")),
            errors={**BODY, **_WAREHOUSE, 400: (*BODY[400], "invalid_policy"), 409: ("policy_changed",)},
            body={
                "type": "object",
                "properties": {
                    "text": _TEXT,
                    "comment": {"type": "string", "maxLength": 2000, "description": "Why, for the history."},
                    "expected_revision": _number("The revision that the text was made from; 0 for none."),
                },
                "required": ["text"],
            },
            tag="policy",
        ),
    },
    "/policy/check": {
        "post": call(
            "What is wrong with a text, without applying it",
            scope=ADMIN,
            ok=(200, record(problems={"type": "array", "items": ref("Problem")})),
            errors={**BODY, **_WAREHOUSE},
            body=record(text=_TEXT),
            tag="policy",
        )
    },
    "/policy/draft": {
        "post": call(
            "A first policy for the warehouse as it is: everything listed, nothing granted",
            scope=ADMIN,
            ok=(200, record(text=_STRING)),
            errors=_WAREHOUSE,
            tag="policy",
        )
    },
    "/policy/schema": {
        "get": call(
            "What is in the warehouse",
            scope=ADMIN,
            ok=(200, ref("Warehouse")),
            errors=_WAREHOUSE,
            tag="policy",
        )
    },
    "/policy/history": {
        "get": call(
            "All revisions, newest first, without their texts",
            scope=ADMIN,
            ok=(200, record(revisions={"type": "array", "items": ref("PolicyRevision")})),
            tag="policy",
        )
    },
    "/policy/history/{revision}": {
        "get": call(
            "One revision with its text",
            scope=ADMIN,
            ok=(200, ref("PolicyText")),
            errors={404: ("no_revision",)},
            tag="policy",
        )
    },
    "/policy/explain": {
        "get": call(
            "What a person sees, and by which rules",
            description="An administrator may ask about everybody, others only about themselves.",
            scope=READ,
            ok=(200, ref("Explanation")),
            errors={**_WAREHOUSE, 400: ("bad_query",), 404: ("no_person", "no_object"), 409: ("policy_unusable",)},
            parameters=(
                _query("user", "Whom it is about; the caller if left out."),
                _query("table", "Only this table or view."),
                _query("column", "Only this column of the table."),
            ),
            tag="policy",
        )
    },
    "/policy/diff": {
        "get": call(
            "What two people see differently, or one person under two revisions",
            description="Either `user` and `other`, or `user`, `from` and `to` (0: before there was a policy).",
            scope=ADMIN,
            ok=(200, ref("Difference")),
            errors={
                **_WAREHOUSE,
                400: ("bad_query",),
                404: ("no_person", "no_revision"),
                409: ("policy_unusable",),
            },
            parameters=(
                _query("user", "A person.", required=True),
                _query("other", "Another person."),
                _query("from", "A revision.", _number("")),
                _query("to", "Another revision.", _number("")),
            ),
            tag="policy",
        )
    },
    "/policy/revoke": {
        "post": call(
            "Take snapshots away now whose access has changed, and end the servers that have them open",
            description="Whose server ran gets a new one. With `users` only these, whether it has changed or not.",
            scope=ADMIN,
            ok=(200, record(people={"type": "array", "items": ref("Revocation")})),
            errors=BODY,
            body={
                "type": "object",
                "properties": {"users": {"type": ["array", "null"], "items": _STRING, "description": "Names."}},
            },
            tag="policy",
            workspace=False,
        )
    },
    "/snapshot": {
        "get": call(
            "One's own snapshot: how old it is, and whether it was made for what one may see now",
            scope=READ,
            ok=(200, record(snapshot=_MAYBE_SNAPSHOT)),
            tag="snapshot",
        )
    },
    "/snapshot/refresh": {
        "post": call(
            "A new snapshot beside the running server, which goes on",
            scope=SYNC,
            ok=(200, record(snapshot=_MAYBE_SNAPSHOT, changed={"type": "boolean"})),
            errors={**_WAREHOUSE, 409: ("policy_unusable", "access_changed")},
            tag="snapshot",
        )
    },
    "/people/{person}/attributes": {
        "get": call(
            "What is known about a person for the policy's rules",
            scope=ADMIN,
            ok=(200, ref("Attributes")),
            errors={404: ("no_person",)},
            tag="policy",
        ),
        "put": call(
            "Replace all attributes of a person",
            scope=ADMIN,
            ok=(200, ref("Attributes")),
            errors={**BODY, 400: (*BODY[400], "invalid_attributes"), 404: ("no_person",)},
            body=record(
                attributes={
                    "type": "object",
                    "description": "Name to value: text, number, boolean, date as `YYYY-MM-DD`, or a list of them, as "
                    "the policy declares.",
                }
            ),
            tag="policy",
        ),
    },
}
