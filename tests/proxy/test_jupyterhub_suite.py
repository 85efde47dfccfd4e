"""JupyterHub's own tests of its proxy and of named servers, as installed, with EnvoyProxy.

Nearly every one starts a server: of those for named servers only some run here, unless MARIMOHUB_JUPYTERHUB=all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.hub import free_port
from tests.proxy.jupyterhub_plugin import FOR_CONFIGURABLE_HTTP_PROXY

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("MARIMOHUB_JUPYTERHUB") == "all"


def run(module: str, folder: Path, *, choice: str = "", **environment: str) -> dict[str, str]:
    """Test → "passed", or why it was skipped; fails if one did not pass."""
    (folder / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\n"
        "asyncio_default_fixture_loop_scope = module\nasyncio_default_test_loop_scope = module\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTERHUB", "PYTEST", "SSL_ENABLED"))}
    done = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-c", "pytest.ini", "--rootdir", str(folder), "-p", "no:cacheprovider"],
            *["-p", "tests.proxy.jupyterhub_plugin", "--basetemp", str(folder / "t"), "--junit-xml", "result.xml"],
            *["-q", "--tb=short", "--show-capture=no", "--pyargs", f"jupyterhub.tests.{module}"],
            *["-k", choice],
        ],
        cwd=folder,
        env=variables | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    results = {}
    for case in ElementTree.parse(folder / "result.xml").getroot().iter("testcase"):
        skipped = case.find("skipped")
        results[case.get("name", "")] = "passed" if skipped is None else skipped.get("message", "")
    return results


def skipped(results: dict[str, str]) -> dict[str, str]:
    return {re.sub(r"\[.*", "", name): why for name, why in results.items() if why != "passed"}


def test_jupyterhubs_tests_of_the_proxy_pass(tmp_path: Path) -> None:
    results = run("test_proxy", tmp_path)
    assert skipped(results) == {**FOR_CONFIGURABLE_HTTP_PROXY, "test_extra_routes": "requires subdomains"}
    assert list(results.values()).count("passed") == 30


def test_jupyterhubs_tests_of_the_proxy_pass_with_a_host_name_for_each_user(tmp_path: Path) -> None:
    results = run("test_proxy", tmp_path, JUPYTERHUB_TEST_SUBDOMAIN_HOST=f"http://hub.test:{free_port()}")
    assert skipped(results).keys() == {*FOR_CONFIGURABLE_HTTP_PROXY, "test_extra_routes"}
    assert list(results.values()).count("passed") == 28


def test_jupyterhubs_tests_of_named_servers_pass(tmp_path: Path) -> None:
    results = run("test_named_servers", tmp_path, choice="" if ALL else "create_or_start or delete_named")
    assert skipped(results) == {}
    assert len(results) == (34 if ALL else 8)
