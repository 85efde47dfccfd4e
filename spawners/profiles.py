"""Profiles: the named sizes and environments that administrators offer, and who may use which.

A profile in the configuration is a dictionary with a `name` and any of `title`, `description`, `memory`, `cpu`,
`processes`, `disk` (what a server may use; None is no limit, and what is left out is as the spawner's own settings
say), `python` (an interpreter, say of a venv), `environment`, `groups` (whose members may use it; everybody without)
and `default_for` (groups that get it unless they choose).

Somebody gets by default the first profile of the list that names one of their groups in `default_for` and that they
may use; else the first of those that they may use.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from marimohub.spawners.job import Limits
from marimohub.spawners.limits import byte_text, parse_bytes

KEYS = (
    *("name", "title", "description", "memory", "cpu", "processes", "disk", "python", "environment", "groups"),
    "default_for",
)  # fmt: skip
STANDARD = "standard"
MAX_PROFILES = 100
# less than this, and marimo with one notebook does not start: a forgotten unit, most likely
LEAST_MEMORY = 192 << 20
LEAST_DISK = 16 << 20
LEAST_PROCESSES = 32
LEAST_CPU = 0.05

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# what the hub itself sets: a profile that changed them would break the server, or say what is not so
_RESERVED = ("JUPYTERHUB_", "JPY_", "MARIMOHUB_")
_RESERVED_NAMES = {"HOME", "USER", "SHELL", "TMPDIR", "PATH", "VIRTUAL_ENV", "MEM_LIMIT", "CPU_LIMIT"}


class BadProfile(Exception):
    """The configuration of the profiles cannot be used. The text says which, why, and what to do."""


@dataclass(frozen=True)
class Profile:
    """One size and environment.

    Attributes:
        python: an interpreter, absolute and not resolved (a venv's is a link); None: the hub's own.
        groups: who may use it; empty: everybody.
        default_for: groups whose members get it unless they choose.
    """

    name: str
    title: str
    description: str = ""
    limits: Limits = field(default_factory=Limits)
    python: str | None = None
    groups: tuple[str, ...] = ()
    default_for: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """ "8 GB · 2 CPUs", or "" without limits of memory and CPU."""
        memory, cpu = self.limits.memory, self.limits.cpu
        parts = [byte_text(memory)] if memory is not None else []
        if cpu is not None:
            parts.append(f"{cpu:g} CPU{'' if cpu == 1 else 's'}")
        return " · ".join(parts)

    def to_state(self) -> dict[str, Any]:
        """What is remembered of a running server's profile: not who may use it, and nothing of its environment."""
        return {"name": self.name, "title": self.title, "limits": asdict(self.limits), "python": self.python}

    @classmethod
    def from_state(cls, state: Any) -> Profile | None:
        """The profile that a server was started with, None if that cannot be told."""
        try:
            limits = Limits(**state["limits"])
            return cls(str(state["name"]), str(state["title"]), limits=limits, python=state.get("python"))
        except (TypeError, KeyError, AttributeError):
            return None


def parse_limits(found: Mapping[str, Any], defaults: Limits = Limits()) -> Limits:  # noqa: B008 - frozen
    """Limits of `memory`, `cpu`, `processes` and `disk`, each a number, a size such as "2G", or None for no limit.

    Args:
        defaults: for what is left out.

    Raises:
        BadProfile
    """
    return Limits(
        memory=_bytes("memory", found.get("memory", defaults.memory), LEAST_MEMORY),
        cpu=_cores(found.get("cpu", defaults.cpu)),
        processes=_processes(found.get("processes", defaults.processes)),
        disk=_bytes("disk", found.get("disk", defaults.disk), LEAST_DISK),
    )


def parse(found: Any, defaults: Limits = Limits()) -> tuple[Profile, ...]:  # noqa: B008 - frozen
    """The profiles of a configuration, in its order. Without any there is one, "standard", with the default limits.

    Raises:
        BadProfile
    """
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise BadProfile("profiles must be a list of dictionaries.")
    if not found:
        return (Profile(STANDARD, STANDARD.capitalize(), limits=defaults),)
    if len(found) > MAX_PROFILES:
        raise BadProfile(f"There are {len(found)} profiles; at most {MAX_PROFILES} are possible.")
    profiles = tuple(_profile(number, one, defaults) for number, one in enumerate(found, 1))
    names: set[str] = set()
    defaulted: dict[str, str] = {}
    for profile in profiles:
        if profile.name in names:
            raise BadProfile(f'Two profiles are called "{profile.name}". Give each a name of its own.')
        names.add(profile.name)
        for group in profile.default_for:
            if group in defaulted:
                raise BadProfile(
                    f'The profiles "{defaulted[group]}" and "{profile.name}" are both the default for the group '
                    f'"{group}". Name it in one "default_for" only.'
                )
            defaulted[group] = profile.name
    return profiles


def offered(profiles: Iterable[Profile], groups: Collection[str]) -> tuple[Profile, ...]:
    """Those that a member of these groups may use, in order."""
    return tuple(profile for profile in profiles if not profile.groups or set(profile.groups) & set(groups))


def default(profiles: Iterable[Profile], groups: Collection[str]) -> Profile | None:
    """What a member of these groups gets unless they choose; None if they may use none."""
    own = offered(profiles, groups)
    return next((profile for profile in own if set(profile.default_for) & set(groups)), own[0] if own else None)


def _profile(number: int, found: Any, defaults: Limits) -> Profile:
    if not isinstance(found, Mapping):
        raise BadProfile(f"Profile {number} must be a dictionary with a name.")
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadProfile(
            f'Profile {number} needs a "name" of at most 40 small letters, digits, "-" and "_", that begins with a '
            f"letter or digit; this is {name!r}."
        )
    try:
        return _fields(name, found, defaults)
    except BadProfile as error:
        raise BadProfile(f'Profile "{name}": {error}') from error


def _fields(name: str, found: Mapping[str, Any], defaults: Limits) -> Profile:
    for key in found:
        if key not in KEYS:
            raise BadProfile(f'there is no key "{key}". These exist: {", ".join(KEYS)}.')
    groups, default_for = _names(found, "groups"), _names(found, "default_for")
    for group in default_for:
        if groups and group not in groups:
            raise BadProfile(
                f'it is the default for the group "{group}", which may not use it. Add the group to "groups", or take '
                'it out of "default_for".'
            )
    return Profile(
        name=name,
        title=_text(found, "title", 60) or name.replace("_", " ").replace("-", " ").capitalize(),
        description=_text(found, "description", 300),
        limits=parse_limits(found, defaults),
        python=_python(found.get("python")),
        groups=groups,
        default_for=default_for,
        environment=_environment(found.get("environment", {})),
    )


def _text(found: Mapping[str, Any], key: str, longest: int) -> str:
    value = found.get(key, "")
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise BadProfile(f'"{key}" must be a line of at most {longest} characters.')
    return value.strip()


def _names(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = found.get(key, ())
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise BadProfile(f'"{key}" must be a list of group names.')
    if not all(isinstance(group, str) and group for group in value):
        raise BadProfile(f'"{key}" must be a list of group names, each a text that is not empty.')
    if key == "groups" and key in found and not value:
        raise BadProfile('"groups" is empty, so nobody could use it. Leave it out to offer the profile to everybody.')
    return tuple(dict.fromkeys(value))


def _bytes(key: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadProfile(f'"{key}" must be a size such as "2G", or None for no limit; this is {value!r}.')
    try:
        count = parse_bytes(value)
    except ValueError as error:
        raise BadProfile(f'"{key}": {error}') from error
    if count < least:
        raise BadProfile(
            f'"{key}" is {value!r}, too little for a notebook server: give at least {byte_text(least)}. '
            'Sizes have a unit: "2G".'
        )
    return count


def _cores(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_CPU <= value < 10_000:
        raise BadProfile(
            f'"cpu" must be a number of cores, {LEAST_CPU} or more, or None for no limit; this is {value!r}.'
        )
    return float(value)


def _processes(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not LEAST_PROCESSES <= value < 1 << 22:
        raise BadProfile(
            f'"processes" must be a whole number from {LEAST_PROCESSES} on (marimo itself needs some), or None for no '
            f"limit; this is {value!r}."
        )
    return value


def _python(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise BadProfile(
            f'"python" must be the absolute path of an interpreter, such as "/srv/ml/bin/python"; this is {value!r}.'
        )
    return value


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BadProfile('"environment" must be a dictionary of names and values.')
    for name, text in value.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise BadProfile(f'"environment": {name!r} cannot be the name of a variable.')
        if not isinstance(text, str) or "\0" in text:
            raise BadProfile(f'"environment": the value of {name} must be a text; this is {type(text).__name__}.')
        if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
            raise BadProfile(f'"environment": {name} is set by the hub. Take it out.')
    return dict(value)
