"""The wheel, built and installed as a stranger would, in an environment that has nothing of this checkout."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from marimohub import __version__
from marimohub.notebook_templates import TEMPLATES
from marimohub.spawners.spawn_server import COMMAND
from tests.hub import Hub, Person

ROOT = Path(__file__).parent.parent
CONFIG = "c.MarimoHub.default_role = 'viewer'\n"


def run(command: list[str | Path], cwd: Path, **kwargs: Any) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTERHUB", "MARIMOHUB", "PYTHONPATH"))}
    # pip asks no index: everything that the wheel needs is there
    kept |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=120, **kwargs)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without anything that git ignores: what a release is made from."""
    tree = tmp_path_factory.mktemp("tree")
    for name in run(["git", "ls-files", "-coz", "--exclude-standard"], ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution and wheel; `build` makes the wheel from the unpacked source distribution."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree], tree)
    return out / f"marimohub-{__version__}.tar.gz", next(out.glob("marimohub-*.whl"))


@dataclass
class Installed:
    """A fresh virtual environment with the wheel in it."""

    bin: Path
    site: Path
    elsewhere: Path

    def __call__(self, *arguments: str) -> str:
        return run([self.bin / "marimohub", *arguments], self.elsewhere)


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("fresh")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv/bin/python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", built[1]], folder)
    # The other packages come from this environment. A .pth adds them behind the fresh ones, and does not follow the
    # .pth files there, so that the editable marimohub stays out.
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return Installed(folder / "venv/bin", site, tmp_path_factory.mktemp("elsewhere"))


class InstalledHub(Hub):
    """The hub of the wheel instead of the one of the checkout."""

    program: Path

    def command(self, *arguments: str) -> list[str]:
        return [str(self.program), *arguments]


@pytest.fixture(scope="module")
def hub(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledHub]:
    hub = InstalledHub(tmp_path_factory.mktemp("hub"), CONFIG)
    hub.program = installed.bin / "marimohub"
    hub.environment.pop("PYTHONPATH", None)
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()


@pytest.fixture(scope="module")
def ann(hub: InstalledHub) -> Person:
    return Person(hub, "ann").set_up()


def in_packages(tree: Path) -> set[str]:
    """Every file of the packages, by the name it has when it is installed."""
    moved = {"auth": "marimohub/auth", "config": "marimohub/config", "spawners": "marimohub/spawners"}
    return {
        f"{moved.get(top, top)}/{path.relative_to(tree / top)}"
        for top in ("marimohub", *moved)
        for path in (tree / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(tree: Path, built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    about = f"marimohub-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == in_packages(tree)
    assert {name.partition("/")[0] for name in names} == {"marimohub", about[:-1]}
    assert f"{about}licenses/LICENSE" in names
    # said once more by name, should the sources move
    for folder, ending, least in (
        ("templates", ".html", 10),
        ("static", ".css", 2),
        ("static", ".js", 5),
        ("migrations/versions", ".py", 1),
        ("notebook_templates", ".py", 1 + len(TEMPLATES)),
        ("config", ".py.in", 1),
        ("", "py.typed", 1),
    ):
        found = [n for n in names if n.startswith(f"marimohub/{folder}") and n.endswith(ending)]
        assert len(found) >= least, (folder, ending, found)


def test_source_distribution_is_enough_to_build_from(tree: Path, built: tuple[Path, Path]) -> None:
    # that the wheel was built from it is said by the fixture; here that nothing of the build or of a test run is in it
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|\.sqlite|marimohub-data|\.venv", name)]


def test_the_program_is_the_wheels(installed: Installed) -> None:
    code = (
        "import marimohub, marimohub.auth, marimohub.config, marimohub.spawners, importlib.metadata as m\n"
        "print(*(p.__file__ for p in (marimohub, marimohub.auth, marimohub.config, marimohub.spawners)), sep='\\n')\n"
        "print(m.distribution('marimohub').locate_file('marimohub'))"
    )
    for file in run([installed.bin / "python", "-c", code], installed.elsewhere).splitlines():
        assert Path(file).is_relative_to(installed.site), file
    code = "import importlib.util as u; print([n for n in ('auth', 'config', 'spawners', 'tests') if u.find_spec(n)])"
    assert run([installed.bin / "python", "-c", code], installed.elsewhere).strip() == "[]"


def test_commands(installed: Installed) -> None:
    assert installed("--version").strip() == __version__
    assert "MarimoHub.warehouse" in installed("--help-all")
    installed("init")
    written = (installed.elsewhere / "marimohub_config.py").read_text()
    assert written == (ROOT / "config/marimohub_config.py.in").read_text()


def test_pages_styles_and_templates(hub: InstalledHub, ann: Person) -> None:
    page = requests.get(f"{hub.url}/hub/login", timeout=30)
    assert page.status_code == 200 and "MarimoHub" in page.text
    styles = re.findall(r'href="(/hub/marimohub-static/[^"]+\.css[^"]*)"', page.text)
    assert styles
    for path in styles:
        answer = requests.get(f"{hub.url}{path}", timeout=30)
        assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/css"), path

    for key in TEMPLATES:
        made = ann.api("POST", "/notebooks", {"name": f"from_{key}", "template": key})
        assert made.status_code == 201, made.text
        text = (hub.data / f"notebooks/default/from_{key}.py").read_text()
        assert text.startswith("import marimo\n") and "NOTEBOOK_TITLE" not in text
    listed = ann.api("GET", "/notebooks").json()["notebooks"]
    assert {row["name"] for row in listed} >= {f"from_{key}" for key in TEMPLATES}
    assert "Traceback" not in hub.log


def command_lines() -> Iterator[list[str]]:
    """Of all processes; some end while we look."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace").split("\0")


def test_notebook_server_starts_from_the_wheel(installed: Installed, ann: Person) -> None:
    assert ann.api("POST", "/notebooks", {"name": "opened", "template": "data_quality"}).status_code == 201
    # opening starts the server
    assert ann.api("POST", "/notebooks/opened/lock", {}).status_code == 200
    browser = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
    page = ann.page("/user/ann/?file=opened.py", headers=browser)
    deadline = time.monotonic() + 30
    while "<marimo-" not in page.text:
        assert time.monotonic() < deadline, (page.url, page.status_code, page.text[:2000], ann.hub.log[-3000:])
        time.sleep(0.1)
        page = ann.page("/user/ann/?file=opened.py", headers=browser)
    assert page.status_code == 200
    expected = [str(installed.bin / "python"), "-P", "-c", COMMAND]
    assert any(line[:4] == expected for line in command_lines())
