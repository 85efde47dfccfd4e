"""The whole path under other addresses: TLS (with HTTP/2), and a prefix."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")]
PASSWORD = "correct horse battery"


def certificate(folder: Path) -> str:
    """Make a self-signed certificate; returns the configuration that uses it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return f"c.JupyterHub.ssl_key = {str(folder / 'key.pem')!r}\nc.JupyterHub.ssl_cert = {str(folder / 'cert.pem')!r}\n"


@pytest.fixture(params=["tls", "prefix"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    if request.param == "tls":
        hub = Hub(tmp_path, certificate(tmp_path), scheme="https")
    else:
        hub = Hub(tmp_path, "c.JupyterHub.base_url = '/data/'", prefix="/data")
    hub.start()
    yield hub
    hub.stop()


def test_notebook_runs_and_saves_under_another_address(hub: Hub, browser: Any) -> None:
    context = browser.new_context(ignore_https_errors=True)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(hub.setup_link())
    # a name that has to be encoded in addresses
    for name, value in {"username": "ann@example.com", "email": "ann@example.com"}.items():
        page.locator(f"[name={name}]").fill(value)
    for name in ("password", "password_confirmation"):
        page.locator(f"[name={name}]").fill(PASSWORD)
    page.locator("form button[type=submit]").first.click()
    page.wait_for_url("**/hub/notebooks")
    assert page.url == f"{hub.url}/hub/notebooks"
    page.get_by_role("button", name="New Notebook").click()
    page.locator(".dropdown-item[data-new=blank]").click()
    page.locator("#notebook-name").fill("elsewhere")
    page.keyboard.press("Enter")
    page.locator("tr[data-name=elsewhere]").wait_for()
    with context.expect_page() as opened:
        page.locator("tr[data-name=elsewhere] button.btn[data-action=open]").click()
    tab = opened.value
    tab.wait_for_url(re.compile(re.escape(hub.url) + r"/user/.*file=elsewhere\.py"))
    # output came over marimo's WebSocket
    tab.get_by_text(re.compile(r"Warehouse snapshot of \d\d \w+ \d{4}")).first.wait_for()
    tab.locator(".cm-content").last.click()
    tab.keyboard.type("41 + 1")
    tab.keyboard.press("Control+s")
    published = hub.data / "notebooks/default/elsewhere.py"
    for _ in range(100):
        if "41 + 1" in published.read_text():
            break
        tab.wait_for_timeout(100)
    assert "41 + 1" in published.read_text()
    page.goto(f"{hub.url}/notebooks")
    assert page.url == f"{hub.url}/hub/notebooks"
    page.locator("tr[data-name=elsewhere] .status-mine").wait_for()
    cookies = {cookie["name"]: cookie for cookie in context.cookies()}
    for name, cookie in cookies.items():
        assert cookie["path"].startswith("/data/" if hub.url.endswith("/data") else "/")
        if hub.url.startswith("https") and name != "_xsrf":
            assert cookie["secure"], name
            assert cookie["httpOnly"], name
    assert errors == []
