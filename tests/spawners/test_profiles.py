"""Profiles: what a configuration may say, who may use which, and whether their interpreters can run servers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from traitlets import TraitError
from traitlets.config import Config

from marimohub._version import __version__
from marimohub.spawners import system_paths
from marimohub.spawners.interpreters import check_interpreters, check_profiles, problem_of
from marimohub.spawners.job import Limits
from marimohub.spawners.local import LocalMarimoSpawner
from marimohub.spawners.profiles import BadProfile, Profile, default, offered, parse

pytestmark = pytest.mark.unit

GB = 1 << 30
DEFAULTS = Limits(memory=4 * GB, cpu=2.0, processes=100, disk=20 * GB)


def test_without_profiles_everybody_gets_one_of_the_default_limits() -> None:
    (only,) = parse([], DEFAULTS)
    assert (only.name, only.limits, only.groups) == ("standard", DEFAULTS, ())
    assert default([only], []) == only


def test_what_a_profile_leaves_out_is_the_default_and_none_is_no_limit() -> None:
    small, open_, exact = parse(
        [
            {"name": "small", "memory": "512M", "cpu": 0.5},
            {"name": "open_end", "title": "Open end", "memory": None, "cpu": None, "processes": None, "disk": None},
            {"name": "exact", "memory": 3 * GB, "processes": 64, "disk": "1.5G"},
        ],
        DEFAULTS,
    )
    assert small.limits == Limits(memory=GB // 2, cpu=0.5, processes=100, disk=20 * GB)
    assert open_.limits == Limits()
    assert exact.limits == Limits(memory=3 * GB, cpu=2.0, processes=64, disk=GB * 3 // 2)
    assert [one.title for one in (small, open_, exact)] == ["Small", "Open end", "Exact"]
    assert [one.size for one in (small, open_, exact)] == ["512 MB · 0.5 CPUs", "", "3 GB · 2 CPUs"]


GROUPED = [
    {"name": "basic"},
    {"name": "big", "groups": ["data", "ml"], "default_for": ["data"]},
    {"name": "gpu", "groups": ["ml"], "default_for": ["ml"]},
]


@pytest.mark.parametrize(
    ("groups", "names", "first"),
    [
        ([], ["basic"], "basic"),
        (["others"], ["basic"], "basic"),
        (["data"], ["basic", "big"], "big"),
        (["ml"], ["basic", "big", "gpu"], "gpu"),
        (["ml", "data"], ["basic", "big", "gpu"], "big"),
    ],
)
def test_groups_say_what_is_offered_and_what_is_the_default(groups: list[str], names: list[str], first: str) -> None:
    profiles = parse(GROUPED, DEFAULTS)
    assert [one.name for one in offered(profiles, groups)] == names
    chosen = default(profiles, groups)
    assert chosen is not None and chosen.name == first


def test_whoever_no_profile_is_offered_to_has_no_default() -> None:
    profiles = parse([{"name": "gpu", "groups": ["ml"]}], DEFAULTS)
    assert offered(profiles, ["others"]) == ()
    assert default(profiles, ["others"]) is None


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("small", "must be a list"),
        (["small"], "Profile 1 must be a dictionary"),
        ([{}], 'Profile 1 needs a "name"'),
        ([{"name": "Big One"}], 'Profile 1 needs a "name"'),
        ([{"name": "../x"}], 'Profile 1 needs a "name"'),
        ([{"name": "a", "ram": "2G"}], 'there is no key "ram"'),
        ([{"name": "a"}, {"name": "a"}], 'Two profiles are called "a"'),
        ([{"name": "a", "memory": "2 lots"}], '"memory": '),
        ([{"name": "a", "memory": 2}], "too little for a notebook server"),
        ([{"name": "a", "memory": True}], '"memory" must be a size'),
        ([{"name": "a", "disk": [1]}], '"disk" must be a size'),
        ([{"name": "a", "cpu": 0}], '"cpu" must be a number of cores'),
        ([{"name": "a", "cpu": "2"}], '"cpu" must be a number of cores'),
        ([{"name": "a", "cpu": float("nan")}], '"cpu" must be a number of cores'),
        ([{"name": "a", "processes": 3}], '"processes" must be a whole number'),
        ([{"name": "a", "python": "python3"}], '"python" must be the absolute path'),
        ([{"name": "a", "title": "two\nlines"}], '"title" must be a line'),
        ([{"name": "a", "groups": "data"}], '"groups" must be a list'),
        ([{"name": "a", "groups": []}], "nobody could use it"),
        ([{"name": "a", "groups": ["x"], "default_for": ["y"]}], 'the group "y", which may not use it'),
        ([{"name": "a", "default_for": ["x"]}, {"name": "b", "default_for": ["x"]}], "both the default for the group"),
        ([{"name": "a", "environment": {"1A": "x"}}], "cannot be the name of a variable"),
        ([{"name": "a", "environment": {"A": 1}}], "must be a text"),
        ([{"name": "a", "environment": {"HOME": "/"}}], "HOME is set by the hub"),
        ([{"name": "a", "environment": {"JUPYTERHUB_API_TOKEN": "x"}}], "is set by the hub"),
        ([{"name": "a", "environment": {"MARIMOHUB_SNAPSHOT": "x"}}], "is set by the hub"),
        ([{"name": f"p{number}"} for number in range(101)], "at most 100"),
    ],
)
def test_profile_that_cannot_be_used_is_refused_with_the_reason(found: Any, says: str) -> None:
    with pytest.raises(BadProfile) as refused:
        parse(found, DEFAULTS)
    assert says in str(refused.value)
    assert str(refused.value).endswith(".")


def test_what_a_hub_remembers_of_a_server_brings_its_profile_back_and_nothing_of_its_environment() -> None:
    (profile,) = parse([{"name": "ml", "python": "/srv/ml/bin/python", "environment": {"KEY": "s3cret"}}], DEFAULTS)
    state = json.loads(json.dumps(profile.to_state()))
    assert "s3cret" not in json.dumps(state)
    back = Profile.from_state(state)
    assert back is not None
    assert (back.name, back.title, back.limits, back.python) == ("ml", "Ml", DEFAULTS, "/srv/ml/bin/python")
    for damaged in (None, {}, [], {"name": "a"}, {**state, "limits": {"memory": 1, "more": 2}}):
        assert Profile.from_state(damaged) is None


# the spawner


def spawner(*groups: str, asked: Any = None, **settings: Any) -> LocalMarimoSpawner:
    found = LocalMarimoSpawner(config=Config(MarimoSpawner={"profiles": GROUPED, **settings}))
    found.user = SimpleNamespace(groups=[SimpleNamespace(name=name) for name in groups])
    found.orm_spawner = orm.Spawner()
    found.user_options = asked if asked is not None else {}
    return found


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"profile": "nothing"}, 400),
        ({"profile": "gpu"}, 403),
        ({"profile": ["gpu"]}, 403),
        ({"profile": ["basic", "gpu"]}, 400),
        ({"profile": {"name": "gpu"}}, 400),
        ({"profile": 0}, 400),
        ({"profile": "gpu\0"}, 400),
        ({"profile": "\ud800"}, 400),
        ({"profile": "x" * 100_000}, 400),
    ],
)
def test_profile_that_is_not_offered_is_refused_however_it_is_asked_for(asked: Any, status: int) -> None:
    person = spawner("data", asked=asked)
    person.orm_spawner.user_options = asked  # as JupyterHub stores it before anybody looks
    with pytest.raises(SpawnException) as refused:
        person._chosen_profile()
    assert (refused.value.status_code, refused.value.reason) == (status, "profile")
    assert refused.value.message.endswith("Choose one of these: basic, big.")
    assert len(refused.value.message) < 300
    assert person.orm_spawner.user_options == {}, "it would be asked for again at each start"
    assert person.remembered_profile is None


@pytest.mark.parametrize("asked", [{}, {"other": 1}, {"profile": None}])
def test_whoever_asks_for_none_gets_the_default_of_their_group(asked: dict[str, Any]) -> None:
    assert spawner("data", asked=asked)._chosen_profile().name == "big"
    assert spawner(asked=asked)._chosen_profile().name == "basic"


def test_the_choice_is_remembered_as_long_as_it_is_offered() -> None:
    person = spawner("ml")
    for stored in ({"profile": "big"}, {"profile": ["big"]}):
        person.orm_spawner.user_options = stored
        assert person.remembered_profile == "big"
    person.user = SimpleNamespace(groups=[])
    assert person.remembered_profile is None


def test_limits_and_environment_are_those_of_the_profile() -> None:
    profiles = [{"name": "ml", "memory": "8G", "cpu": 2, "python": "/srv/ml/bin/python", "environment": {"A": "b"}}]
    person = spawner(profiles=profiles, process_limit=None)
    assert person.limits == Limits(memory=8 * GB, cpu=2.0, processes=None, disk=20 * GB)
    assert person.interpreter == "/srv/ml/bin/python"
    assert spawner().interpreter == sys.executable


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory_limit": "much"}, "LocalMarimoSpawner.memory_limit"),
        ({"cpu_limit": "2"}, "LocalMarimoSpawner.cpu_limit"),
        ({"process_limit": 1}, "LocalMarimoSpawner.process_limit"),
        ({"disk_limit": 5}, "LocalMarimoSpawner.disk_limit"),
        ({"profiles": [{"name": "a", "ram": 1}]}, 'Profile "a": there is no key "ram"'),
    ],
)
def test_setting_that_cannot_be_used_is_one_sentence_at_the_start(settings: dict[str, Any], says: str) -> None:
    config = Config(MarimoSpawner=settings)
    with pytest.raises(BadProfile, match=says):
        asyncio.run(check_profiles(LocalMarimoSpawner, config))
    with pytest.raises(TraitError):
        _ = LocalMarimoSpawner(config=config).profiles


# interpreters


def answering(folder: Path, answer: str) -> str:
    """A program that answers as an interpreter with these packages would."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    return str(program)


def packages(**changed: Any) -> str:
    good = {"python": [3, 11], "marimo": "0.25.2", "duckdb": "2.0.0", "marimohub": __version__}
    return f"echo '{json.dumps(good | changed)}'"


def test_the_hubs_own_interpreter_can_run_servers() -> None:
    assert problem_of(sys.executable) is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (packages(python=[3, 9]), "is Python 3.9. Make the environment with Python 3.11"),
        (packages(marimohub=None), "has no marimohub, and this hub is"),
        (packages(marimohub="0.0.1"), "has marimohub 0.0.1, and this hub is"),
        (packages(marimo=None), "has no marimo, and this hub needs marimo"),
        (packages(marimo="0.24.0"), "has marimo 0.24.0, and this hub needs marimo"),
        (packages(duckdb="1.3.0"), "has duckdb 1.3.0, and this hub needs duckdb"),
        ("echo hello", "does not answer as a Python interpreter does"),
        ("echo 'ImportError: libduckdb.so' >&2; exit 1", "failed when it was asked for its packages: ImportError"),
    ],
)
def test_interpreter_that_cannot_run_servers_is_named_with_the_reason(tmp_path: Path, answer: str, says: str) -> None:
    python = answering(tmp_path, answer)
    with pytest.raises(BadProfile) as refused:
        check_interpreters(parse([{"name": "ml", "python": python}]))
    assert f'Profile "ml": {python} {says}' in str(refused.value)


def test_good_interpreter_is_asked_once_and_a_missing_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = answering(tmp_path, f"echo asked >> {tmp_path}/asked; {packages()}")
    check_interpreters(parse([{"name": "a", "python": python}, {"name": "b", "python": python}, {"name": "c"}]))
    assert (tmp_path / "asked").read_text() == "asked\n"
    with pytest.raises(BadProfile, match="there is no interpreter /nowhere/python"):
        check_interpreters(parse([{"name": "a", "python": "/nowhere/python"}]))
    monkeypatch.setattr(system_paths, "PROBE_TIMEOUT", 0.2)
    assert "did not answer" in (problem_of(answering(tmp_path, "exec sleep 30")) or "")
