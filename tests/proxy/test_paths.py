"""No request crosses from one user's space to another's, or between the hub and a user's, whatever it looks like."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from marimohub.proxy import EnvoyProxy
from tests.proxy.conftest import Hubs, Upstream, raw

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
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EnvoyProxy]:
    hubs = Hubs(tmp_path_factory.mktemp("paths"))
    proxy = hubs.proxy()
    servers = []
    try:
        await proxy.start()
        for name, spec in {
            "hub": "/",
            "alice": "/user/alice/",
            "alice2": "/user/alice2/",
            "work": "/user/alice/work/",
            "mail": "/user/a@b/",
            "unicode": "/user/%C3%BC%20x/",
            "slash": "/user/p%2Fq/",
        }.items():
            servers.append(Upstream(name))
            await proxy.add_route(spec, servers[-1].url, {"hub": True} if name == "hub" else {"user": name})
        yield proxy
    finally:
        await hubs.end()
        for server in servers:
            await server.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("target", "owner"), CASES)
async def test_path_reaches_only_its_owner_unchanged(
    served: EnvoyProxy, target: str | bytes, owner: str | None
) -> None:
    answer = await raw(served, target)
    if owner is None:
        assert answer.status == 400
    else:
        assert answer.server == owner
        assert answer.json["uri"] == str(target).removeprefix("http://other")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("path", "owner"), [("/user/alice/", "alice"), ("/hub/", "hub"), ("/user/nobody/", "hub")])
@pytest.mark.parametrize("header", ["x-envoy-original-dst-host", "X-Envoy-Original-Dst-Host"])
async def test_client_cannot_choose_the_upstream(served: EnvoyProxy, path: str, owner: str, header: str) -> None:
    evil = Upstream("evil")
    try:
        one = f"{header}: 127.0.0.1:{evil.port}"
        for headers in ([one], [one, one], [one, f"Connection: {header}"]):
            assert (await raw(served, path, *headers)).server == owner
    finally:
        await evil.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_client_cannot_forge_where_it_comes_from(served: EnvoyProxy) -> None:
    forged = ["X-Forwarded-For: 9.9.9.9", "X-Real-Ip: 9.9.9.9", "X-Forwarded-Proto: https", "X-Scheme: https"]
    forged += ["Forwarded: for=9.9.9.9;proto=https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 1"]
    answer = (await raw(served, "/user/alice/", *forged, host="hub:8000")).json
    assert (answer["remote_ip"], answer["protocol"]) == ("127.0.0.1", "http")
    assert answer["headers"]["x-forwarded-for"] == ["127.0.0.1"]
    assert answer["headers"]["x-forwarded-proto"] == ["http"]
    assert answer["headers"]["x-forwarded-host"] == answer["headers"]["host"] == ["hub:8000"]
    assert not {"x-real-ip", "x-scheme", "forwarded", "x-forwarded-port"} & set(answer["headers"])


@pytest.mark.asyncio(loop_scope="module")
async def test_client_cannot_steer_envoy_with_its_own_headers(served: EnvoyProxy) -> None:
    headers = ["x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-max-retries: 9", "x-envoy-retry-on: 5xx"]
    answer = await raw(served, "/user/alice/slow", *headers)
    assert (answer.status, answer.body) == (200, b"first\nsecond\n")
    sent = (await raw(served, "/user/alice/", *headers)).json["headers"]
    assert {name for name in sent if name.startswith("x-envoy")} == {"x-envoy-original-dst-host"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["X-A\x00: b"],
        ["Bad Header: x"],
        ["Content-Length: -1"],
    ],
)
async def test_smuggling_attempts_are_refused(served: EnvoyProxy, headers: list[str]) -> None:
    answer = await raw(served, "/user/alice/", *headers, method="POST")
    assert answer.status in (400, 501)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_folded_header_arrives_as_one_line(served: EnvoyProxy) -> None:
    answer = await raw(served, "/user/alice/", "X-A: b\r\n X-Real-Ip: 9.9.9.9")
    assert answer.json["headers"]["x-a"] == ["b X-Real-Ip: 9.9.9.9"]
    assert "x-real-ip" not in answer.json["headers"]
