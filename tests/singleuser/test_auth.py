"""Sign-in over time: what is remembered, for how long, and what happens while the hub is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


async def test_a_revoked_token_is_refused_once_its_answer_is_no_longer_fresh(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    token = hub.token_of("alice")
    signed = request(Authorization=f"token {token}")
    assert (await authenticator.identify(signed)).by == "header"
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
    identity = await authenticator.identify(request(Authorization=f"token {token}"))
    hub.stop()
    clock.now += auth.FRESH + 1
    await authenticator.identify(request(Authorization=f"token {token}"))
    with pytest.raises(HubDown):
        await authenticator.identify(request(Authorization=f"token {stranger}"))
    clock.now += auth.GRACE
    with pytest.raises(HubDown):
        await authenticator.identify(request(Authorization=f"token {token}"))
    assert await authenticator.still_allowed(identity)  # an open page is not cut off by a hub that says nothing


async def test_a_refusal_is_obeyed_at_once_when_the_hub_is_back(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    token = hub.token_of("alice")
    signed = request(Authorization=f"token {token}")
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
    for token in (service, hub.token_of("bob"), hub.token_of("Alice"), hub.token_of("alice ")):
        with pytest.raises(NotAllowed):
            await authenticator.identify(request(Authorization=f"token {token}"))


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


async def test_a_login_can_be_finished_once_and_only_in_time(
    authenticator: Authenticator, hub: StandInHub, clock: Clock
) -> None:
    started = authenticator.start_login("/user/alice/?file=a.py")
    clock.now += auth.LOGIN_TIME + 1
    callback = request(Cookie=f"{started.cookie}={started.state}")
    callback.scope["query_string"] = f"code=x&state={started.state}".encode()
    with pytest.raises(auth.LoginFailed):
        await authenticator.finish_login(callback)
