"""Sign-in over time: what is remembered, for how long, and what happens while the hub is away."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth
from starlette.requests import HTTPConnection

from marimohub.singleuser import auth
from marimohub.singleuser.auth import Authenticator, HubDown, NotAllowed, NotSignedIn
from tests.singleuser.standin import StandInHub

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def authenticator(hub: StandInHub, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JUPYTERHUB_CLIENT_ID", "jupyterhub-user-alice")
    monkeypatch.setenv("JUPYTERHUB_OAUTH_ACCESS_SCOPES", '["access:servers!server=alice/"]')
    oauth = HubOAuth(api_token=hub.server_token, api_url=hub.url + "api", base_url="/user/alice/")
    yield Authenticator(oauth, "alice", clock)
    await JupyterHubHTTPClient.loop_instance().close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(auth, "ASK_TIMEOUT", 2.0)
    yield


def request(**headers: str) -> HTTPConnection:
    raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    return HTTPConnection({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})


def signed_in(authenticator: Authenticator, token: str) -> HTTPConnection:
    """A request of a browser whose session stands for this hub token."""
    session = f"session-{token}"
    authenticator._sessions[session] = token
    return request(Cookie=f"{authenticator.cookie}={session}")


async def test_a_token_in_a_header_is_nobody_not_even_its_owner(authenticator: Authenticator, hub: StandInHub) -> None:
    token = hub.token_of("alice")
    for value in (f"token {token}", f"Bearer {token}"):
        with pytest.raises(NotSignedIn):
            await authenticator.identify(request(Authorization=value))
    await authenticator.identify(signed_in(authenticator, token))


async def test_a_revoked_token_is_refused_once_its_answer_is_no_longer_fresh(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    token = hub.token_of("alice")
    signed = signed_in(authenticator, token)
    await authenticator.identify(signed)
    del hub.tokens[token]
    clock.now += auth.FRESH - 1
    await authenticator.identify(signed)
    clock.now += 2
    with pytest.raises(NotSignedIn):
        await authenticator.identify(signed)


async def test_while_the_hub_is_down_only_recent_sessions_stay_good_and_not_forever(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    token, stranger = hub.token_of("alice"), hub.token_of("alice")
    identity = await authenticator.identify(signed_in(authenticator, token))
    hub.stop()
    clock.now += auth.FRESH + 1
    await authenticator.identify(signed_in(authenticator, token))
    with pytest.raises(HubDown):
        await authenticator.identify(signed_in(authenticator, stranger))
    clock.now += auth.GRACE
    with pytest.raises(HubDown):
        await authenticator.identify(signed_in(authenticator, token))
    assert await authenticator.still_allowed(identity)  # an open page is not cut off by a hub that says nothing


async def test_a_refusal_is_obeyed_at_once_when_the_hub_is_back(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    token = hub.token_of("alice")
    signed = signed_in(authenticator, token)
    identity = await authenticator.identify(signed)
    hub.stop()
    clock.now += auth.FRESH + 1
    await authenticator.identify(signed)
    del hub.tokens[token]
    hub.start()
    clock.now += auth.PAUSE_WHEN_DOWN + 1
    with pytest.raises(NotSignedIn):
        await authenticator.identify(signed)
    assert not await authenticator.still_allowed(identity)
    hub.stop()
    clock.now += auth.FRESH + 1
    with pytest.raises(HubDown):  # the grace is for those whom the hub vouched for last
        await authenticator.identify(signed)


async def test_services_and_other_users_are_not_the_owner(authenticator: Authenticator, hub: StandInHub) -> None:
    service = hub.token_of("alice")
    hub.tokens[service]["kind"] = "service"
    unscoped = hub.token_of("alice", ("read:users:name",))
    for token in (service, unscoped, hub.token_of("bob"), hub.token_of("Alice"), hub.token_of("alice ")):
        with pytest.raises(NotAllowed):
            await authenticator.identify(signed_in(authenticator, token))


async def test_a_planted_cookie_of_the_same_name_does_not_hide_the_real_one(
    authenticator: Authenticator, hub: StandInHub
) -> None:
    token = hub.token_of("alice")
    authenticator._sessions["real"] = token
    name = authenticator.cookie
    for cookie in (f"{name}=junk; {name}=real", f"{name}=real; {name}=junk", f'a=b; {name}="real"'):
        assert (await authenticator.identify(request(Cookie=cookie))).token == token
    with pytest.raises(NotSignedIn):
        await authenticator.identify(request(Cookie=f"{name}={token}"))
    with pytest.raises(NotSignedIn):
        await authenticator.identify(request(Cookie=f"{name}-other=real"))


def callback(started: auth.Started, code: str) -> HTTPConnection:
    """The browser coming back from the hub with the cookie it was given."""
    came_back = request(Cookie=f"{started.cookie}={started.value}")
    state = parse_qs(urlsplit(started.url).query)["state"][0]
    came_back.scope["query_string"] = urlencode({"code": code, "state": state}).encode()
    return came_back


def code_for(hub: StandInHub, started: auth.Started, name: str = "alice") -> str:
    return hub.code(name, parse_qs(urlsplit(started.url).query)["code_challenge"][0])


async def test_a_login_can_be_finished_once_and_only_in_time(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    started = authenticator.start_login(request(), "/user/alice/?file=a.py")
    clock.now += auth.LOGIN_TIME + 1
    with pytest.raises(auth.LoginFailed, match="too long"):
        await authenticator.finish_login(callback(started, code_for(hub, started)))
    started = authenticator.start_login(request(), "/user/alice/?file=a.py")
    session, url, cookie = await authenticator.finish_login(callback(started, code_for(hub, started)))
    assert (url, cookie) == ("/user/alice/?file=a.py", started.cookie)
    await authenticator.identify(request(Cookie=f"{authenticator.cookie}={session}"))
    with pytest.raises(auth.LoginFailed, match="used already"):
        await authenticator.finish_login(callback(started, code_for(hub, started)))


async def test_strangers_cannot_push_out_a_login_under_way(authenticator: Authenticator, hub: StandInHub) -> None:
    started = authenticator.start_login(request(), "/user/alice/")
    for _ in range(auth.MAX_KEPT + 5):
        authenticator.start_login(request(), "/user/alice/")
    await authenticator.finish_login(callback(started, code_for(hub, started)))


async def test_a_login_cookie_that_was_changed_or_belongs_to_another_login_is_refused(
    authenticator: Authenticator, hub: StandInHub
) -> None:
    started = authenticator.start_login(request(), "/user/alice/")
    other = authenticator.start_login(request(), "/user/alice/")
    body, _, signature = started.value.partition(".")
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b"/user/", b"/evil/")).decode()
    for value in (f"{forged}.{signature}", body, f".{signature}", "", "ü.ü", other.value):
        with pytest.raises(auth.LoginFailed):
            await authenticator.finish_login(callback(replace(started, value=value), code_for(hub, started)))
    await authenticator.finish_login(callback(started, code_for(hub, started)))


async def test_login_cookies_stay_small_and_few(authenticator: Authenticator, hub: StandInHub) -> None:
    for address in ("/user/alice/?file=" + "x" * 5000, "/user/alice/?" + "\ufffd" * 1000):
        started = authenticator.start_login(request(), address)
        assert len(started.value) <= auth.MAX_LOGIN_COOKIE
        assert (await authenticator.finish_login(callback(started, code_for(hub, started))))[1] == "/user/alice/"
    address = "/user/alice/?file=" + "x" * 1000
    started = authenticator.start_login(request(), address)
    assert (await authenticator.finish_login(callback(started, code_for(hub, started))))[1] == address
    names = [f"{authenticator.cookie}-oauth-{n}" for n in range(20)]
    crowded = request(Cookie="; ".join(f"{name}=x" for name in ["other", *names]))
    assert authenticator.start_login(crowded, "/").stale == names[: -auth.MAX_LOGINS + 1]
    assert authenticator.start_login(request(Cookie=f"{names[0]}=x"), "/").stale == []


async def test_a_refused_code_is_told_from_a_hub_that_is_away(authenticator: Authenticator, hub: StandInHub) -> None:
    started, other = (authenticator.start_login(request(), "/user/alice/") for _ in range(2))
    for code in ("unknown", code_for(hub, other)):  # the second has the challenge of another login
        with pytest.raises(auth.LoginFailed, match="only good once"):
            await authenticator.finish_login(callback(started, code))
    code = code_for(hub, started)
    hub.stop()
    with pytest.raises(HubDown):
        await authenticator.finish_login(callback(started, code))
    hub.start()
    await authenticator.finish_login(callback(started, code))  # the page has reloaded by itself
