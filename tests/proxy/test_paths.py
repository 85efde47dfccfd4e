"""No request crosses from one user's space to another's, or between the hub and a user's, whatever it looks like.

Each path is asked for over HTTP/1.1, HTTP/2 and as a WebSocket's handshake, of routes that are in Envoy's table and of
those that are newer than it, and in both directions: /user/alice/ to /user/alice2/ and back.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from marimohub.proxy import EnvoyProxy, publisher
from tests.hub import free_port
from tests.proxy import http2
from tests.proxy.conftest import Answer, Hubs, Upstream, raw
from tests.proxy.tap import HANDSHAKE, Tap
from tests.proxy.test_tls import make_certificate

CASES = [
    # target, server that gets it (None: nobody, Envoy answers 400)
    ("/", "hub"),
    ("/hub/home", "hub"),
    ("/user/alice/", "alice"),
    ("/user/alice/x?next=/user/alice2/", "alice"),
    ("/user/alice2/", "alice2"),
    ("/user/alice2/user/alice/", "alice2"),
    ("/user/alice/work/", "work"),
    ("/user/alice/work", "alice"),
    ("/user/alice/workshop/", "alice"),
    ("/user/alice", "hub"),
    ("/user/alice?x", "hub"),
    ("/user/alice3/", "hub"),
    ("/user/alic/", "hub"),
    ("/user/ALICE/", "hub"),
    ("/user/alice2%2f/", "hub"),
    ("/user/alice%2f", "hub"),
    ("/user/alice%2Fwork/", "hub"),
    ("/user%2falice/", "hub"),
    ("%2fuser/alice/", None),
    ("//user/alice/", "hub"),
    ("/user//alice/", "hub"),
    ("/user/alice//../alice2/", None),
    ("/user/alice/../alice2/", None),
    ("/user/alice/..", None),
    ("/user/alice/.", None),
    ("/user/alice/./x", None),
    ("/user/alice/..?x", None),
    ("/user/alice/%2e%2e/alice2/", None),
    ("/user/alice/%2E%2E/alice2/", None),
    ("/user/alice/.%2e/alice2/", None),
    ("/user/alice/..;/alice2/", None),
    ("/user/alice/..;a=b/alice2/", None),
    ("/user/alice/%2e%2e;/alice2/", None),
    ("/user/alice\\..\\alice2/", None),
    ("/user/alice/..\\alice2/", None),
    ("\\user\\alice\\", None),
    ("/user/alice/%00/", None),
    ("/user/alice/\x00", None),
    ("/user/alice/#/../alice2/", None),
    ("/user/alice/..%2falice2/", "alice"),
    ("/user/alice/..%2Falice2/", "alice"),
    ("/user/alice/%2e%2e%2falice2/", "alice"),
    ("/user/alice/..%5calice2/", "alice"),
    ("/user/alice/..%252falice2/", "alice"),
    ("/user/alice/%252e%252e/alice2/", "alice"),
    ("/user/alice/..%c0%afalice2/", "alice"),
    ("/user/alice/%u002e%u002e/alice2/", "alice"),
    ("/user/alice/.../alice2/", "alice"),
    ("/user/alice;/", "hub"),
    ("/user/alice;x=/../alice2/", None),
    ("/user;/alice/", "hub"),
    ("/hub/../user/alice/", None),
    ("/hub/..%2fuser/alice/", "hub"),
    ("/hub/%2e%2e/user/alice/", None),
    ("/hub?/../user/alice/", "hub"),
    ("/user/%61lice/", "hub"),
    ("/user/alice%20/", "hub"),
    ("/user/alice%zz/", "hub"),
    ("http://other/user/alice/", "alice"),
    ("http://other/hub/..%2fuser/alice/", "hub"),
    ("http://other\\@hub/user/alice/", None),
    ("user/alice/", None),
    ("*", None),
    ("/user/alice/%", "alice"),
    ("/user/a@b/", "mail"),
    ("/user/a%40b/", "mail"),
    ("/user/a%2540b/", "hub"),
    ("/user/%C3%BC%20x/", "unicode"),
    ("/user/%c3%bc%20x/", "unicode"),
    ("/user/%C3%BC+x/", "hub"),
    (b"/user/\xc3\xbc%20x/", None),
    ("/user/p%2Fq/", "slash"),
    ("/user/p%2fq/", "slash"),
    ("/user/p/q/", "hub"),
    ("/user/alice/work/..%2f..%2falice2/", "work"),
    ("/user/alice/work%2f", "alice"),
    ("/user/alice/work;/", "alice"),
    ("/user/alice/work/../x", None),
    ("/user/alice/%2e/x", None),
    ("/user/alice/%2e;x/", None),
    ("/user/alice/..%3b/alice2/", "alice"),
    ("/user/alice/..%00/alice2/", None),
    ("/user/alice/..%09/alice2/", "alice"),
    ("/user/alice/..%20/alice2/", "alice"),
    ("/user/alice/%ef%bc%8e%ef%bc%8e/alice2/", "alice"),
    ("/user/alice/%c0%ae%c0%ae/alice2/", "alice"),
    ("/user/alice%e2%80%8b/", "hub"),
    ("/user/alice%ef%bc%8f", "hub"),
    ("/user/alice%0d%0aX-A:b/", "hub"),
    ("/user/alice/%0d%0aX-A:%20b", "alice"),
    ("/USER/alice/", "hub"),
    ("/./user/alice/", None),
    ("/user/./alice/", None),
    ("/..//user/alice/", None),
    ("/../user/alice/", None),
    ("///user/alice/", "hub"),
    ("/;/user/alice/", "hub"),
    ("/user/;/alice/", "hub"),
    ("/user/alice&/", "hub"),
    ("/user/alice:80/", "hub"),
    ("/user/alice@alice2/", "hub"),
    ("/user/@alice/", "hub"),
    ("/?/user/alice/", "hub"),
    ("/hub?next=/user/alice/", "hub"),
    ("/hub/user/alice/", "hub"),
    ("/hub/user/../../user/alice/", None),
    ("/hub;/../user/alice/", None),
    ("/hub%2f..%2fuser/alice/", "hub"),
    ("/user/alice/../../hub/", None),
    ("/user/alice/..%2f..%2fhub/admin", "alice"),
    ("/user/alice/..;/..;/hub/admin", None),
    ("/user/alice/hub/../hub/", None),
    ("/user/alice/%252e%252e%252f%252e%252e%252fhub/", "alice"),
    ("/user/alice/?/../../hub/", "alice"),
    ("/user/alice/x?/../alice2/", "alice"),
    ("/user/alice/x;/alice2/", "alice"),
    ("/user/alice/http://alice2/", "alice"),
    ("/user/alice//alice2/", "alice"),
    ("/user/alice///", "alice"),
    ("/user/alice/*", "alice"),
    ("/user/%E6%97%A5%E6%9C%AC/x", "kanji"),
    ("/user/%e6%97%a5%e6%9c%ac/x", "kanji"),
    ("/user/%E6%97%A5%E6%9C%AC%E6%97%A5/", "hub"),
    ("/user/%E6%97%A5/", "hub"),
    ("/user/a+b/", "plus"),
    ("/user/a%2Bb/", "plus"),
    ("/user/a%2bb/", "plus"),
    ("/user/a%20b/", "hub"),
    ("/user/a%252Bb/", "hub"),
]
NAMED = [("/user/alice/%C3%BC%20x/", "named"), ("/user/alice/%c3%bc%20x/", "named"), ("/user/alice/%C3%BC/", "alice")]


ROUTES = {
    "hub": "/",
    "alice": "/user/alice/",
    "alice2": "/user/alice2/",
    "work": "/user/alice/work/",
    "work2": "/user/alice2/work/",
    "mail": "/user/a@b/",
    "unicode": "/user/%C3%BC%20x/",
    "slash": "/user/p%2Fq/",
    "kanji": "/user/%E6%97%A5%E6%9C%AC/",
    "plus": "/user/a+b/",
    "named": "/user/alice/%C3%BC%20x/",
}


def mirrored(target: str | bytes, owner: str | None) -> tuple[str | bytes, str | None]:
    """The same attempt by the other of the two users."""
    if isinstance(target, bytes):
        return target, owner
    swapped = {"alice": "alice2", "alice2": "alice", "work": "work2"}
    return re.sub("alice2?", lambda found: swapped[found[0]], target), swapped.get(owner or "", owner)


ALL = list(dict.fromkeys([*CASES, *NAMED, *(mirrored(*case) for case in CASES)]))


def port(proxy: EnvoyProxy) -> int:
    return int(proxy.public_url.rsplit(":", 1)[1].strip("/"))


class Served:
    """One Envoy with its routes in the table, one with them in the filter for newer routes, and one that speaks TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hubs: list[Hubs] = []
        self.taps = {name: Tap(name) for name in ROUTES}
        self.table: EnvoyProxy
        self.newer: EnvoyProxy
        self.tls: EnvoyProxy
        self.certificate = ""

    async def start(self) -> None:
        for tap in self.taps.values():
            await tap.start()
        self.certificate, key = make_certificate(self.folder, "paths")
        url = f"https://127.0.0.1:{free_port()}/"
        self.table = await self._proxy("table")
        self.newer = await self._proxy("newer")
        self.tls = await self._proxy("tls", public_url=url, ssl_cert=self.certificate, ssl_key=key)
        await self.table._open()[1].served()

    async def _proxy(self, name: str, **traits: Any) -> EnvoyProxy:
        (self.folder / name).mkdir()
        self.hubs.append(Hubs(self.folder / name))
        proxy = self.hubs[-1].proxy(**traits)
        await proxy.start()
        for server, spec in ROUTES.items():
            await proxy.add_route(spec, self.taps[server].url, {"hub": True} if server == "hub" else {"user": server})
        return proxy

    def forget(self) -> None:
        for tap in self.taps.values():
            tap.forget()

    def reached(self) -> set[str]:
        """Names of the servers that any byte came to."""
        return {name for name, tap in self.taps.items() if tap.received}

    async def end(self) -> None:
        for hubs in self.hubs:
            await hubs.end()
        for tap in self.taps.values():
            await tap.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    served = Served(tmp_path_factory.mktemp("paths"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher, "QUICK_FROM", 1)
        patch.setattr(publisher, "SETTLE_SECONDS", 3600.0)
        try:
            await served.start()
            yield served
        finally:
            await served.end()


class Http1:
    """Each request on a connection of its own."""

    headers: tuple[str, ...] = ()

    def __init__(self, served: Served, proxy: EnvoyProxy) -> None:
        self.proxy = proxy

    async def ask(self, target: str | bytes) -> tuple[int, Any]:
        """Status, and what the server says it was asked."""
        answer = await raw(self.proxy, target, *self.headers)
        return answer.status, answer.json if answer.status == 200 else None


class Socket(Http1):
    """The handshake of a WebSocket."""

    headers = HANDSHAKE

    async def ask(self, target: str | bytes) -> tuple[int, Any]:
        answer = await raw(self.proxy, target, *self.headers)
        return answer.status, json.loads(answer.headers["x-told"]) if answer.status == 101 else None


class Http2:
    def __init__(self, served: Served, proxy: EnvoyProxy) -> None:
        self.served = served
        self.connection: http2.Connection | None = None

    async def ask(self, target: str | bytes) -> tuple[int, Any]:
        if self.connection is None:
            self.connection = await http2.Connection.open(port(self.served.tls), self.served.certificate)
        path = target if isinstance(target, bytes) else target.encode("latin-1")
        answer = await self.connection.ask(*http2.request(path))
        if answer is None:  # a reset is how HTTP/2 refuses what is no request at all
            self.connection = None
            return 400, None
        return answer.status, answer.json if answer.status == 200 else None


WAYS = {
    "http1": (Http1, "table"),
    "http1-newer": (Http1, "newer"),
    "http2-newer": (Http2, "tls"),
    "websocket": (Socket, "table"),
    "websocket-newer": (Socket, "newer"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("way", WAYS)
async def test_every_path_reaches_only_its_owner_unchanged(served: Served, way: str) -> None:
    client, proxy = WAYS[way]
    served.forget()
    owners = {t: None if way.startswith("http2") and str(t).startswith("http:") else owner for t, owner in ALL}
    refused = [target for target, owner in owners.items() if owner is None]
    # at once: Envoy takes its time before it ends a connection that broke HTTP/2's rules
    answers = await asyncio.gather(*(client(served, getattr(served, proxy)).ask(target) for target in refused))
    assert [case for case in zip(refused, answers, strict=True) if case[1] != (400, None)] == []
    assert served.reached() == set()

    asking = client(served, getattr(served, proxy))
    wrong = []
    for target, owner in owners.items():
        if owner is not None:
            served.forget()
            _, told = await asking.ask(target)
            uri = str(target).removeprefix("http://other")
            if not told or (told["server"], told["uri"]) != (owner, uri) or served.reached() != {owner}:
                wrong.append((target, owner, told, served.reached()))
    assert wrong == []
    assert len(owners) >= 200


# -- headers ---------------------------------------------------------------------------------------------------

EVERY_ROUTE = [("/user/alice/", "alice"), ("/hub/", "hub"), ("/hub/api/x", "hub"), ("/user/nobody/", "hub")]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "owner"), EVERY_ROUTE)
async def test_client_cannot_choose_the_upstream(served: Served, path: str, owner: str) -> None:
    evil = await Tap("evil").start()
    try:
        address = evil.url.removeprefix("http://")
        one, other = f"x-envoy-original-dst-host: {address}", f"X-Envoy-Original-Dst-Host: {address}"
        for proxy in (served.table, served.newer):
            for headers in ([one], [other], [one, one], [one, f"Connection: {one.partition(':')[0]}"]):
                answer = await raw(proxy, path, *headers)
                assert answer.status in (200, 400)
                assert answer.status == 400 or answer.server == owner
                assert len(headers) > 1 or answer.status == 200
            assert json.loads((await raw(proxy, path, one, *HANDSHAKE)).headers["x-told"])["server"] == owner
        connection = await http2.Connection.open(port(served.tls), served.certificate)
        header = (b"x-envoy-original-dst-host", address.encode())
        answer2 = await connection.ask(*http2.request(path.encode(), header, header))
        assert answer2 is not None and answer2.server == owner
        connection.close()
        assert evil.asked == []
    finally:
        await evil.close()


FORGED = {
    "X-Forwarded-For": "9.9.9.9",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Host": "evil",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/x",
    "X-Real-Ip": "9.9.9.9",
    "X-Scheme": "gopher",
    "Forwarded": "for=9.9.9.9;proto=gopher",
    "X_Forwarded_For": "9.9.9.9",
    "X-Forwarded_For": "9.9.9.9",
    "X-Marimohub-Route": "hub",
    "X-Marimohub-Upstream-Name": "evil",
    "X-Envoy-External-Address": "9.9.9.9",
    "X-Envoy-Internal": "true",
    "X-Envoy-Force-Trace": "true",
    "X-Envoy-Upstream-Rq-Timeout-Ms": "1",
    "X-Envoy-Max-Retries": "9",
    "X-Envoy-Retry-On": "5xx",
    "X-Envoy-Decorator-Operation": "evil",
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "owner"), EVERY_ROUTE)
async def test_no_header_of_a_proxy_is_believed_on_any_route(served: Served, path: str, owner: str) -> None:
    host = "hub:8000"
    lines = [f"{name}: {value}" for name, value in FORGED.items()]
    plain = [(await raw(proxy, path, *lines, host=host)).json for proxy in (served.table, served.newer)]
    told = await raw(served.table, path, *lines, *HANDSHAKE, host=host)
    plain.append(json.loads(told.headers["x-told"]))
    connection = await http2.Connection.open(port(served.tls), served.certificate)
    pairs = [(name.lower().encode(), value.encode()) for name, value in FORGED.items()]
    over_tls = await connection.ask(*http2.request(path.encode(), *pairs, host=host.encode()))
    connection.close()
    assert over_tls is not None
    for scheme, answer in [*(("http", answer) for answer in plain), ("https", over_tls.json)]:
        headers = answer["headers"]
        assert answer["server"] == owner
        assert headers.pop("x-forwarded-for") == ["127.0.0.1"]
        assert headers.pop("x-forwarded-proto") == [scheme]
        assert headers.pop("x-forwarded-host") == headers["host"] == [host]
        assert headers.pop("x-marimohub-route", None) == (["hub"] if owner == "hub" else None)
        assert headers.pop("x-envoy-original-dst-host") == [served.taps[owner].url.removeprefix("http://")]
        assert not {name.lower() for name in FORGED} & set(headers)


@pytest.mark.asyncio(loop_scope="module")
async def test_client_cannot_set_envoys_timeouts(served: Served) -> None:
    slow = Upstream("slow")
    await served.table.add_route("/user/slow/", slow.url, {})
    headers = ["x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-upstream-rq-per-try-timeout-ms: 1"]
    answer: Answer = await raw(served.table, "/user/slow/slow", *headers)
    assert (answer.status, answer.body) == (200, b"first\nsecond\n")
    await served.table.delete_route("/user/slow/")
    await slow.close()
