"""The calls about notebook servers and their profiles, for the OpenAPI document."""

from __future__ import annotations

from marimohub.openapi_calls import BODY, EDIT, Json, call, record, ref
from marimohub.openapi_schemas import array_of, object_of

_STRING: Json = {"type": "string"}
_MAYBE_STRING: Json = {"type": ["string", "null"]}
_MAYBE_TIME: Json = {"anyOf": [ref("Time"), {"type": "null"}]}


def _maybe_number(kind: str, description: str) -> Json:
    return {"type": [kind, "null"], "minimum": 0, "description": description}


def _maybe(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_NAMED = object_of(name=_STRING, title=_STRING)
_LIMITS: Json = {
    "memory": _maybe_number("integer", "Bytes; null: no limit."),
    "cpu": _maybe_number("number", "Cores; null: no limit."),
    "processes": _maybe_number("integer", "Processes and threads; null: no limit."),
    "disk": _maybe_number("integer", "Bytes in the person's folders; null: no limit."),
}
_HELD: Json = {
    "enum": ["cgroup", "rlimit", "affinity", "watch", "none"],
    "description": "What holds servers to the limit: the kernel for the whole server, the kernel for each process, the "
    "cores they may run on, or a guard that measures twice a second.",
}

SCHEMAS: dict[str, Json] = {
    "Profile": object_of(
        name=_STRING,
        title=_STRING,
        description=_STRING,
        size={**_STRING, "description": 'For people: "8 GB · 2 CPUs"; empty without such limits.'},
        **_LIMITS,
    ),
    "OwnServer": object_of(
        profiles={**array_of(ref("Profile")), "description": "What one may choose from."},
        default={**_MAYBE_STRING, "description": "What one gets without a choice."},
        chosen={**_MAYBE_STRING, "description": "One's last choice, if it is still offered: the next start takes it."},
        state={"enum": ["stopped", "starting", "running", "stopping"]},
        running={**_maybe(_NAMED), "description": "The profile of the running server."},
        ended={
            **_maybe(object_of(because=_STRING, at=ref("Time"))),
            "description": "Why the last server ended by itself.",
        },
    ),
    "Confinement": object_of(
        sandbox={"enum": ["on", "off", "unknown"]},
        text={**_STRING, "description": "What keeps servers apart, for people."},
        problems={**array_of(_STRING), "description": "What this machine lacks for it, for people."},
        limits=object_of(memory=_HELD, cpu=_HELD, processes=_HELD, disk=_HELD),
    ),
    "Server": object_of(
        user=_STRING,
        server={**_STRING, "description": "Empty for a person's default server."},
        state={
            "enum": ["starting", "running", "stopping", "stopped", "failed", "ended"],
            "description": "`failed`: its last start. `ended`: by itself, within the last day.",
        },
        message={**_MAYBE_STRING, "description": "`failed` and `ended`: why."},
        profile=_maybe(_NAMED),
        since={**_MAYBE_TIME, "description": "When it was started; of an ended one, when it ended."},
        cpu=_maybe_number("number", "Cores in use since the last measurement; null: not known yet."),
        memory=_maybe_number("integer", "Bytes."),
        processes=_maybe_number("integer", "Processes and threads."),
        disk=_maybe_number("integer", "Bytes in the person's folders; counted at most twice a minute."),
        memory_limit=_LIMITS["memory"],
        cpu_limit=_LIMITS["cpu"],
        process_limit=_LIMITS["processes"],
        disk_limit=_LIMITS["disk"],
    ),
    "Servers": object_of(
        confinement={**_maybe(ref("Confinement")), "description": "null: the spawner does not tell."},
        cores={"type": "integer", "minimum": 1, "description": "Of the hub's machine."},
        servers=array_of(ref("Server")),
    ),
}

_PROFILE: Json = {**_STRING, "description": "A profile's name."}
_RESTART: Json = {"type": "boolean", "default": False, "description": "End a server that runs with another profile."}

# also the body of `POST /notebooks/{name}/lock`
CHOICE: Json = {"type": "object", "properties": {"profile": _PROFILE, "restart": _RESTART}}
CHOICE_ERRORS: dict[int, tuple[str, ...]] = {
    **BODY,
    400: (*BODY[400], "no_profile"),
    403: ("profile_not_offered",),
    409: ("other_profile",),
}

PATHS: dict[str, dict[str, Json]] = {
    "/profiles": {
        "get": call(
            "The profiles that one may choose from, and what one's server runs with",
            scope=EDIT,
            ok=(200, ref("OwnServer")),
            tag="servers",
            workspace=False,
        )
    },
    "/server": {
        "put": call(
            "Choose the profile of one's next start; nothing is started or ended",
            scope=EDIT,
            ok=(200, ref("OwnServer")),
            errors={key: codes for key, codes in CHOICE_ERRORS.items() if key != 409},
            body=record(profile=_PROFILE),
            tag="servers",
            workspace=False,
        ),
        "post": call(
            "Start one's own server, or restart it with another profile",
            scope=EDIT,
            ok=(200, ref("OwnServer")),
            errors={**CHOICE_ERRORS, 503: ("server_failed",)},
            body=CHOICE,
            tag="servers",
            workspace=False,
        ),
    },
    "/servers": {
        "get": call(
            "Everybody's servers: what they use and may use, what confines them, and which ended by themselves",
            scope="read:servers",
            ok=(200, ref("Servers")),
            tag="servers",
            workspace=False,
        )
    },
    "/servers/{person}/log": {
        "get": call(
            "The last lines that somebody's server logged",
            scope="admin:servers",
            ok=(200, record(user=_STRING, lines=array_of(_STRING))),
            errors={404: ("no_person", "no_log")},
            tag="servers",
            workspace=False,
        )
    },
}
