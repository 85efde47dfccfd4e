"""Another proxy by configuration: configurable-http-proxy, from npm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.hub import Hub, Person, free_port


@pytest.fixture(scope="module")
def configurable_http_proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        missing("npm", "npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    command = [str(npm), "install", "--no-audit", "--no-fund", "--silent", "configurable-http-proxy@5"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder / "node_modules/.bin/configurable-http-proxy"


def test_hub_works_with_configurable_http_proxy(configurable_http_proxy: Path, tmp_path: Path) -> None:
    hub = Hub(
        tmp_path,
        "c.JupyterHub.proxy_class = 'configurable-http-proxy'\n"
        f"c.ConfigurableHTTPProxy.command = [{str(configurable_http_proxy)!r}]\n"
        f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{free_port()}'\n"
        "c.ConfigurableHTTPProxy.pid_file = 'marimohub-data/proxy.pid'\n",
    )
    hub.start()
    try:
        ann = Person(hub, "ann").set_up()
        ann.api("POST", "/notebooks", {"name": "hello"})
        opened = ann.api("POST", "/notebooks/hello/lock", {})
        assert opened.status_code == 200, hub.log
        navigation = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        page = ann.page(opened.json()["marimo_url"], headers=navigation)
        assert page.status_code == 200
        assert "<marimo-filename" in page.text
    finally:
        hub.stop()
