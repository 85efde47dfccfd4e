"""The real launcher: only its owner gets in, over HTTP and every WebSocket."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import ClientSession, WSServerHandshakeError

from tests.singleuser.conftest import NAVIGATION, Browser
from tests.singleuser.server import Server

PATHS = [
    "",
    "?file=report.py",
    "health",
    "api/version",
    "api/status",
    "api/status/connections",
    "api/sessions",
    "api/files/roots",
    "api/files/download?path=/etc/passwd",
    "assets/nothing.js",
    "favicon.ico",
    "sse?session_id=s_1&file=report.py",
    "lsp/pylsp",
    "lsp/copilot",
    "public/x",
    "@file/1-x.txt",
    "auth/login",
    "og/thumbnail?file=report.py",
    "openapi.json",
    "mcp/server",
    "nonsense",
    "marimohub/snapshot",
    "marimohub/snapshot/refresh",
]
SOCKETS = ["ws?session_id=s_1&file=report.py", "ws_sync?file=report.py", "terminal/ws", "lsp/pylsp", "lsp/copilot"]


async def status_of(server: Server, path: str, method: str = "GET", **headers: str) -> int:
    async with (
        ClientSession() as http,
        http.request(method, server.url + path, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status


async def socket_status(server: Server, path: str, http: ClientSession | None = None, **headers: str) -> int:
    """101 if the handshake was accepted, else the HTTP status it was refused with."""
    own = http or ClientSession()
    try:
        socket = await own.ws_connect(server.url + path, headers=headers, timeout=aiohttp.ClientWSTimeout(ws_close=1))
        await socket.close()
        return 101
    except WSServerHandshakeError as error:
        return error.status
    finally:
        if http is None:
            await own.close()


async def test_readiness_is_answered_without_sign_in_and_names_the_version(server: Server) -> None:
    async with ClientSession() as http, http.get(server.url + "api") as answer:
        assert answer.status == 200
        assert answer.headers["X-JupyterHub-Version"].startswith("6.")


async def test_a_stranger_gets_nothing_over_http(server: Server) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            assert await status_of(server, path, method) == 401, (method, path)


async def test_a_stranger_gets_no_websocket(server: Server) -> None:
    for path in SOCKETS:
        assert await socket_status(server, path) == 403, path


async def test_a_stranger_who_navigates_is_sent_to_the_hub_and_comes_back(server: Server, alice: Browser) -> None:
    server.hub.add("back", "import marimo\n\napp = marimo.App()\n")
    async with alice.http.get(
        server.url + "?file=back.py&x=a%20b", headers=NAVIGATION, allow_redirects=False
    ) as answer:
        assert answer.status == 302
        target = urlsplit(answer.headers["Location"])
        query = parse_qs(target.query)
        assert target.path == "/hub/api/oauth2/authorize"
        assert query["code_challenge_method"] == ["S256"] and query["state"]
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Path=/user/alice/" in cookie
    async with alice.http.get(server.url + "?file=back.py&x=a%20b", headers=NAVIGATION) as answer:
        assert answer.status == 200
        assert str(answer.url).endswith("/user/alice/?file=back.py&x=a%20b")
        assert "marimo-server-token" in await answer.text()


async def test_the_cookie_is_no_hub_token_and_only_for_this_server(server: Server, alice: Browser) -> None:
    await alice.open("cookies")
    cookies = {cookie.key: cookie for cookie in alice.http.cookie_jar}
    session = cookies["jupyterhub-user-alice"]
    assert session.value not in server.hub.tokens
    assert session["path"] == "/user/alice/" and session["httponly"]
    assert list(cookies) == ["jupyterhub-user-alice"]  # the login's own cookie is gone


async def test_the_cookie_is_secure_behind_https(server: Server) -> None:
    async with (
        ClientSession() as http,
        http.get(server.url, headers={**NAVIGATION, "X-Forwarded-Proto": "https"}, allow_redirects=False) as answer,
    ):
        assert "secure" in answer.headers["Set-Cookie"].lower()


async def test_a_token_in_a_header_opens_nothing_whoever_it_was_made_for(server: Server) -> None:
    every_scope = ("access:servers", "admin:servers", "admin:users", "inherit")
    for name, scopes in (("alice", None), ("alice", every_scope), ("admin", every_scope)):
        token = server.hub.token_of(name, scopes)
        for path in PATHS:
            assert await status_of(server, path, Authorization=f"token {token}") == 401, path
        for path in SOCKETS:
            assert await socket_status(server, path, Authorization=f"Bearer {token}") == 403, path


async def test_another_user_who_signs_in_sees_whose_server_it_is_and_no_content(server: Server) -> None:
    server.hub.signed_in = "bob"
    server.hub.add("private", "import marimo\n")
    browser = Browser(server)
    try:
        status, text = await browser.get("?file=private.py")
        assert status == 403
        assert "belongs to alice" in text and "marimo-server-token" not in text
        assert "jupyterhub-user-alice" not in {cookie.key for cookie in browser.http.cookie_jar}
    finally:
        await browser.http.close()


async def test_a_callback_with_a_foreign_state_signs_nobody_in(server: Server, alice: Browser) -> None:
    status, text = await alice.get("oauth_callback?code=x&state=y")
    assert status == 403 and "Try again" in text
    async with alice.http.get(server.url, headers=NAVIGATION, allow_redirects=False) as answer:
        state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
    async with ClientSession() as other, other.get(server.url + f"oauth_callback?code=x&state={state}") as answer:
        assert answer.status == 403


async def test_a_wrong_code_is_told_with_a_way_to_start_again(server: Server, alice: Browser) -> None:
    async with alice.http.get(server.url, headers=NAVIGATION, allow_redirects=False) as answer:
        state = parse_qs(urlsplit(answer.headers["Location"]).query)["state"][0]
    status, text = await alice.get(f"oauth_callback?code=wrong&state={state}")
    assert status == 403 and "did not accept this sign-in" in text
    assert 'href="/user/alice/">Try again' in text


async def test_a_thousand_strangers_do_not_disturb_a_sign_in(server: Server, alice: Browser) -> None:
    server.hub.add("meanwhile", "import marimo\n\napp = marimo.App()\n")
    async with alice.http.get(server.url + "?file=meanwhile.py", headers=NAVIGATION, allow_redirects=False) as answer:
        to_hub = answer.headers["Location"]
    async with ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as strangers:

        async def come() -> None:
            for _ in range(101):
                async with strangers.get(server.url, headers=NAVIGATION, allow_redirects=False) as answer:
                    assert answer.status == 302

        await asyncio.gather(*(come() for _ in range(10)))
    async with alice.http.get(to_hub, headers=NAVIGATION) as answer:
        assert answer.status == 200 and str(answer.url).endswith("?file=meanwhile.py")


async def test_cross_origin_requests_are_refused(server: Server, alice: Browser) -> None:
    page = await alice.open("origins")
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.hub.port}"):
        status, _ = await page.post("api/kernel/interrupt", {}, Origin=origin)
        assert status == 403, origin
        refused = await socket_status(server, page.socket_url().removeprefix(server.url), alice.http, Origin=origin)
        assert refused == 403, origin
    for kind in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": kind, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        status, _ = await alice.get("favicon.ico", **headers)
        assert status == 403
    status, _ = await alice.get("?file=origins.py", **{**NAVIGATION, "Sec-Fetch-Site": "cross-site"})
    assert status == 200  # a link on another site


async def test_a_page_of_the_same_origin_cannot_act_or_read_without_marimos_token(
    server: Server, alice: Browser
) -> None:
    page = await alice.open("same_origin")
    script = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    assert (await alice.get("?file=same_origin.py", **script))[0] == 403
    assert (await alice.get("?file=same_origin.py", **{**NAVIGATION, "Sec-Fetch-Dest": "iframe"}))[0] == 403
    assert (await alice.get("api/files/roots", **script))[0] == 403
    assert (await alice.get("sse?session_id=s_1&file=same_origin.py", **script))[0] == 403
    assert (await alice.get("api/files/roots", **script, **{"Marimo-Server-Token": page.token}))[0] == 200
    for token in ("", "wrong"):
        status, _ = await page.post("api/kernel/execute", {"code": "1"}, **{"Marimo-Server-Token": token})
        assert status == 403
        for path in ("ws", "terminal/ws", "lsp/pylsp"):
            url = page.socket_url(path, mh_token=token).removeprefix(server.url)
            assert await socket_status(server, url, alice.http, Origin=alice.origin) == 403, path
    url = page.socket_url("terminal/ws").removeprefix(server.url)
    assert await socket_status(server, url, alice.http, Origin=alice.origin) == 101


async def test_responses_forbid_framing_and_sniffing_and_cut_off_openers(server: Server, alice: Browser) -> None:
    await alice.open("headers")
    async with alice.http.get(server.url + "?file=headers.py", headers=NAVIGATION) as answer:
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "noopener-allow-popups"
        assert "strict-origin" in answer.headers["Referrer-Policy"]
        asset = re.search(r'src="\./(assets/[^"]+\.js)"', await answer.text())
    assert asset
    async with alice.http.get(server.url + asset.group(1)) as answer:
        assert answer.status == 200 and answer.headers["Cache-Control"].startswith("private")


async def test_paths_outside_of_the_prefix_do_not_exist(server: Server) -> None:
    origin = f"http://127.0.0.1:{server.port}"
    async with ClientSession() as http:
        for path in ("/", "/user/bob/", "/user/alicex/api", "/api", "/user/alice/../bob/"):
            async with http.get(origin + path) as answer:
                assert answer.status in (401, 404), path


@pytest.mark.parametrize("query", ["", "?file=__new__", "?file=sub/x.py", "?file=/etc/passwd", "?file=../x.py"])
async def test_only_the_hubs_notebooks_can_be_opened_as_pages(server: Server, alice: Browser, query: str) -> None:
    await alice.open("signed_in")
    status, text = await alice.get(query)
    assert "Notebooks page" in text and "marimo-server-token" not in text
    assert status == (404 if query else 200)
