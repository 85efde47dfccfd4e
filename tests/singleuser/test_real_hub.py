"""Sign-in through a plain JupyterHub and the Envoy proxy: the OAuth flow, scopes, readiness, culling's activity."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.singleuser.conftest import NAVIGATION
from tests.singleuser.standin import free_port

CONFIG = """
import sys
from jupyterhub.spawner import SimpleLocalProcessSpawner

class Spawner(SimpleLocalProcessSpawner):
    home_dir_template = {root!r} + "/home-{{username}}"

    def get_env(self):
        import os
        folder = {root!r} + "/notebooks-" + self.user.name
        os.makedirs(folder, exist_ok=True)
        return {{**super().get_env(), "MARIMOHUB_NOTEBOOK_DIR": folder, "HOME": folder}}

c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.proxy_class = "marimo-envoy"
c.JupyterHub.db_url = "sqlite:///{root}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{root}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.allow_all = True
c.Authenticator.admin_users = {{"admin"}}
c.JupyterHub.load_roles = [
    {{"name": "peek", "scopes": ["admin:servers", "admin:users", "access:servers"], "services": ["robot"]}},
    {{"name": "boss", "scopes": ["access:servers", "admin:servers", "admin:users"], "users": ["admin"]}},
]
c.JupyterHub.services = [{{"name": "robot", "api_token": {robot!r}}}]
c.JupyterHub.spawner_class = Spawner
# A session that the hub ended must be seen within the test's patience.
c.Spawner.cmd = [sys.executable, "-c",
    "from marimohub.singleuser import auth, launcher; auth.FRESH = 0.2; sys = __import__('sys');"
    "sys.exit(launcher.main())"]
c.Spawner.environment = {{"JUPYTERHUB_ACTIVITY_INTERVAL": "1", "MARIMOHUB_SNAPSHOT": "/nowhere"}}
"""


@dataclass
class RealHub:
    url: str
    robot: str
    root: Path


@pytest.fixture(scope="module")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    root = tmp_path_factory.mktemp("hub")
    port, robot = free_port(), "robot-" + "x" * 32
    config = root / "jupyterhub_config.py"
    config.write_text(CONFIG.format(root=str(root), port=port, hub_port=free_port(), robot=robot))
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(config)], cwd=root, stdout=log, stderr=log
        )
    hub = RealHub(f"http://127.0.0.1:{port}", robot, root)
    try:
        asyncio.run(_until_up(hub, process))
        yield hub
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


async def _until_up(hub: RealHub, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    async with aiohttp.ClientSession() as http:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                async with http.get(hub.url + "/hub/health") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        else:
            raise AssertionError((hub.root / "log").read_text()[-4000:])
        headers = {"Authorization": f"token {hub.robot}"}
        async with http.post(hub.url + "/hub/api/users/alice", headers=headers) as answer:
            assert answer.status in (201, 409)
        async with http.post(hub.url + "/hub/api/users/alice/server", headers=headers) as answer:
            assert answer.status in (201, 202), await answer.text()
        while time.monotonic() < deadline:
            async with http.get(hub.url + "/hub/api/users/alice", headers=headers) as answer:
                if (await answer.json())["servers"].get("", {}).get("ready"):
                    return
            await asyncio.sleep(0.1)
    raise AssertionError((hub.root / "log").read_text()[-4000:])


async def sign_in(http: aiohttp.ClientSession, hub: RealHub, name: str) -> None:
    async with http.get(hub.url + "/hub/login", headers=NAVIGATION):
        pass
    xsrf = next(cookie.value for cookie in http.cookie_jar if cookie.key == "_xsrf")
    form = {"username": name, "password": "x", "_xsrf": xsrf}
    async with http.post(hub.url + "/hub/login?next=%2Fhub%2Fhome", data=form, headers=NAVIGATION) as answer:
        assert answer.status == 200, await answer.text()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def test_the_owner_comes_through_the_hubs_login_and_loses_access_with_the_session(
    real_hub: RealHub, http: aiohttp.ClientSession
) -> None:
    page = real_hub.url + "/user/alice/?file=report.py"
    async with http.get(page, headers=NAVIGATION) as answer:
        assert str(answer.url).startswith(real_hub.url + "/hub/login")
    await sign_in(http, real_hub, "alice")
    async with http.get(page, headers=NAVIGATION) as answer:
        # This hub has no notebooks; what matters is who answers, and where the browser ended.
        assert answer.status == 404 and "No such notebook" in await answer.text()
        assert str(answer.url) == page
    async with http.get(real_hub.url + "/user/alice/health") as answer:
        assert answer.status == 200
    async with http.get(real_hub.url + "/hub/logout", headers=NAVIGATION):
        pass
    await asyncio.sleep(0.5)
    async with http.get(real_hub.url + "/user/alice/health") as answer:
        assert answer.status == 401


async def test_an_administrator_with_access_to_all_servers_is_refused(
    real_hub: RealHub, http: aiohttp.ClientSession
) -> None:
    await sign_in(http, real_hub, "admin")
    async with http.get(real_hub.url + "/user/alice/?file=report.py", headers=NAVIGATION) as answer:
        text = await answer.text()
        if "oauth" in str(answer.url) and "authorize" in str(answer.url):  # the hub asks before it gives access
            form = {"scopes": "access:servers!server=alice/"}
            xsrf = next(cookie.value for cookie in http.cookie_jar if cookie.key == "_xsrf")
            async with http.post(str(answer.url), data={**form, "_xsrf": xsrf}, headers=NAVIGATION) as confirmed:
                assert confirmed.status == 403
                text = await confirmed.text()
        assert "belongs to alice" in text, text[:2000]
    headers = {"Authorization": f"token {real_hub.robot}"}
    async with http.get(real_hub.url + "/user/alice/health", headers=headers) as answer:
        assert answer.status == 401


async def test_an_ordinary_other_user_never_reaches_the_server(real_hub: RealHub, http: aiohttp.ClientSession) -> None:
    await sign_in(http, real_hub, "bob")
    async with http.get(real_hub.url + "/user/alice/?file=report.py", headers=NAVIGATION) as answer:
        assert answer.status in (403, 404) and "marimo" not in (await answer.text()).replace("marimohub", "")
    async with http.get(real_hub.url + "/user/alice/health") as answer:
        assert answer.status == 401


async def test_the_hub_hears_of_activity(real_hub: RealHub, http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"token {real_hub.robot}"}

    async def last() -> str:
        async with http.get(real_hub.url + "/hub/api/users/alice", headers=headers) as answer:
            return json.loads(await answer.text())["servers"][""]["last_activity"]

    before = await last()
    await sign_in(http, real_hub, "alice")
    async with http.get(real_hub.url + "/user/alice/health", headers=NAVIGATION) as answer:
        assert answer.status == 200
    deadline = time.monotonic() + 5
    while await last() <= before:
        assert time.monotonic() < deadline, "the hub heard nothing"
        await asyncio.sleep(0.1)
