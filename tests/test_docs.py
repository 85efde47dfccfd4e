"""The pages name what exists, and all of what can be set: settings, links, dependencies, the configuration."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.spawner import Spawner
from traitlets import Undefined
from traitlets.config import Configurable

from marimohub.app import MarimoHub
from marimohub.auth.accounts import AccountAuthenticator
from marimohub.proxy import EnvoyProxy
from marimohub.spawners.local import LocalMarimoSpawner
from marimohub.spawners.marimo import MarimoSpawner

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
OURS: list[type[Configurable]] = [MarimoHub, AccountAuthenticator, MarimoSpawner, LocalMarimoSpawner, EnvoyProxy]
OTHERS: list[type[Configurable]] = [JupyterHub, Authenticator, Spawner, ConfigurableHTTPProxy]
CLASSES = {found.__name__: found for found in [*OURS, *OTHERS]}

# `Class.trait`, also in `c.Class.trait = value` and `--Class.trait=value`
_SETTING = re.compile(rf"\b({'|'.join(CLASSES)})\.([a-z]\w*)")
_CONFIGURED = re.compile(r"^#? ?c\.(\w+)\.(\w+) = ", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


def settings_of(found: type[Configurable]) -> set[str]:
    """The settings that a class defines itself, as `Class.trait`."""
    return {f"{found.__name__}.{name}" for name in found.class_own_traits(config=True)}


def unknown(settings: set[tuple[str, str]]) -> set[str]:
    """Those that no class has, own or inherited."""
    return {
        f"{name}.{trait}"
        for name, trait in settings
        if name not in CLASSES or trait not in CLASSES[name].class_traits(config=True)
    }


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings answer to, as GitHub makes them."""
    titles = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> Iterator[str]:
    """A page's links to something of the repository."""
    for match in _LINK.finditer(_FENCE.sub("", page.read_text())):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def required_packages() -> set[str]:
    """What setup.cfg requires, with the extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines() if line.strip()]
    return {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in lines}


@pytest.mark.parametrize("found", OURS, ids=lambda found: found.__name__)
def test_each_setting_of_ours_is_in_the_configuration_page(found: type[Configurable]) -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert settings_of(found) - set(rows) == set()
    assert len(rows) == len(set(rows)), "a setting has two rows"


def test_the_configuration_page_tells_the_defaults() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    told = dict(re.findall(r"^\| `(\w+\.\w+)` \| `([^`]+)` \|", page, re.MULTILINE))
    assert len(told) > 30
    for found in OURS:
        for name, trait in found.class_own_traits(config=True).items():
            value = told.get(f"{found.__name__}.{name}")
            usual = trait.default() if trait.default_value is Undefined else trait.default_value
            assert value in (None, f'"{usual}"' if isinstance(usual, str) else repr(usual)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_setting_that_a_page_names_exists(page: Path) -> None:
    assert unknown(set(_SETTING.findall(page.read_text()))) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert place.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if fragment:
            assert fragment in anchors(place), f"{page.name}: {target}"


def test_the_index_leads_to_every_page() -> None:
    named = set(links(ROOT / "docs/index.md"))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - named == {"index.md"}


def test_the_configuration_of_the_repository_is_what_init_writes() -> None:
    assert (ROOT / "marimohub_config.py").read_text() == (ROOT / "config/marimohub_config.py.in").read_text()


def test_each_setting_in_the_written_configuration_exists() -> None:
    named = set(_CONFIGURED.findall((ROOT / "config/marimohub_config.py.in").read_text()))
    assert len(named) > 10
    assert unknown(named) == set()


def test_the_readme_gives_a_reason_for_each_dependency() -> None:
    rows: dict[str, str] = {}
    for table in re.findall(r"^\| package \|.*\n(?:\|.*\n?)+", (ROOT / "README.md").read_text(), re.MULTILINE):
        for line in table.splitlines()[2:]:
            package, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            for name in re.split(r"[,\s]+", package.replace("`", "")):
                rows[name.partition("[")[0].lower()] = " ".join(rest)
    assert required_packages() - rows.keys() == set()
    assert all(rows[package] for package in required_packages())
