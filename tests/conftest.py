"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marimohub.database import Database
from marimohub.notebooks import NotebookStore
from tests.hub import free_port

ARTIFACTS = Path(__file__).parent.parent / "test-artifacts"
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(part: str, reason: str) -> None:
    """Skip a test whose part is not here, or fail it where MARIMOHUB_REQUIRE names the part."""
    if part in os.environ.get("MARIMOHUB_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and MARIMOHUB_REQUIRE demands {part}")
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Folders of tests in a place of this run's own: every other run closes pytest's usual one to other users."""
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="marimohub-pytest-")
        config.option.basetemp = f"{folder}/t"
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium under Playwright. Its event loop would be in the way of the asynchronous tests of later modules."""
    executable = shutil.which("chromium")
    if executable is None:
        missing("browser", "Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own; the database `postgres` is empty at first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        missing("postgres", "PostgreSQL's server programs are not installed")
    programs = found[-1].parent
    # not in pytest's own folder: every session that starts closes that one to other users again
    folder = Path(tempfile.mkdtemp(prefix="marimohub-postgres-"))
    port = free_port()
    # PostgreSQL refuses to run as root
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    if as_user:
        os.chown(folder, 65534, 65534)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*as_user, str(programs / program), "-D", str(folder / "data"), *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    try:
        run("initdb", "-U", "hub", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
        yield f"postgresql+psycopg://hub@127.0.0.1:{port}/postgres"
        run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    database.prepare()
    yield database
    database.close()


@pytest.fixture
def store(database: Database, tmp_path: Path) -> NotebookStore:
    return NotebookStore(database, tmp_path / "notebooks")


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a place, for tests of logic that would mostly wait for fsync."""
    place = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="marimohub-", dir=place if place.is_dir() else tmp_path))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def artifacts() -> Path:
    """Where tests leave screenshots for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS
