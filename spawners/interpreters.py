"""Whether the interpreters of the profiles can run notebook servers: asked of each one, in a process of its own.

Nothing of them is imported into the hub.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from traitlets import TraitError

from marimohub._version import __version__
from marimohub.spawners.profiles import BadProfile, Profile
from marimohub.spawners.system_paths import PROBE_TIMEOUT, run_probe

LEAST_PYTHON = (3, 11)
# -I: neither the caller's PYTHONPATH nor the working directory answers in place of the environment
_PROBE = """
import importlib, importlib.metadata, json, sys
found = {"python": list(sys.version_info[:2])}
for name in ("marimo", "duckdb"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
try:
    found["marimohub"] = importlib.import_module("marimohub").__version__
    importlib.import_module("marimohub.singleuser")
    importlib.import_module("duckdb")
except ModuleNotFoundError as error:
    if error.name and error.name.partition(".")[0] in ("marimohub", "duckdb"):
        found[error.name.partition(".")[0]] = None
    else:
        raise
print(json.dumps(found))
"""


async def check_profiles(spawner_class: type, config: Any) -> None:
    """Check the profiles of a configuration, and that the interpreters they name can run servers.

    Args:
        spawner_class: the hub's; one without profiles (none of ours) has nothing to check.

    Raises:
        BadProfile: a sentence for the terminal.
    """
    if not hasattr(spawner_class, "configured_profiles"):
        return
    try:
        profiles = spawner_class(config=config).configured_profiles()
    except TraitError as error:
        raise BadProfile(str(error)) from error
    await asyncio.to_thread(check_interpreters, profiles)


def check_interpreters(profiles: Iterable[Profile]) -> None:
    """See that each profile's interpreter has this version of marimohub, and a marimo and a duckdb that it works with.

    Raises:
        BadProfile: of the first that does not.
    """
    answers: dict[str, str | None] = {}
    for profile in profiles:
        if profile.python is None:
            continue
        if profile.python not in answers:
            answers[profile.python] = problem_of(profile.python)
        if (problem := answers[profile.python]) is not None:
            raise BadProfile(f'Profile "{profile.name}": {problem}')


def problem_of(python: str) -> str | None:
    """Why an interpreter cannot run notebook servers, None if it can. Blocks for about a second."""
    if not Path(python).is_file() or not os.access(python, os.X_OK):
        return f'there is no interpreter {python}. Make the environment, or correct "python".'
    try:
        done = run_probe(python, _PROBE)
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        return f"{python} did not answer within {PROBE_TIMEOUT:.0f} seconds."
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}."
    except ValueError:
        return f"{python} does not answer as a Python interpreter does."
    if not isinstance(found, dict):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"{python} failed when it was asked for its packages: {said[:300]}"
    return _versions_problem(python, found)


def _versions_problem(python: str, found: dict[str, Any]) -> str | None:
    if tuple(found["python"]) < LEAST_PYTHON:
        version = ".".join(map(str, found["python"]))
        return f"{python} is Python {version}. Make the environment with Python 3.11 or newer."
    if found["marimohub"] != __version__:
        has = f"marimohub {found['marimohub']}" if found["marimohub"] else "no marimohub"
        return (
            f"{python} has {has}, and this hub is {__version__}. Install it there: "
            f"{python} -m pip install marimohub=={__version__}"
        )
    for name, wanted in supported().items():
        version = found[name]
        if version is None or not wanted.contains(version, prereleases=True):
            has, needs = f"{name} {version}" if version else f"no {name}", f"{name}{wanted}"
            return f'{python} has {has}, and this hub needs {needs}. Install it there: pip install "{needs}"'
    return None


def supported() -> dict[str, SpecifierSet]:
    """The versions of marimo and duckdb that this marimohub declares."""
    declared = [Requirement(text) for text in importlib.metadata.requires("marimohub") or ()]
    found = {one.name: one.specifier for one in declared if one.name in ("marimo", "duckdb") and one.marker is None}
    return {name: found[name] for name in ("marimo", "duckdb")}
