"""The route table: which spellings, which headers, which paths are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from marimohub.proxy import routes, wire
from marimohub.proxy.errors import BadRoute
from marimohub.proxy.routes import Route
from marimohub.proxy.table import RouteTable, TableUnreadable

pytestmark = pytest.mark.unit


def rendered(*entries: Route, **options: int) -> dict[str, Any]:
    table = RouteTable()
    for entry in entries:
        table.set(entry)
    content = routes.render_table("v1", table.snapshot()._rendered, **options)
    response = decode("envoy.service.discovery.v3.DiscoveryResponse", content)
    assert response["version_info"] == ["v1"]
    return response["resources"][0]


def decode(message: str, content: bytes) -> dict[str, Any]:
    """What wire.encode wrote: field → list of values."""
    names = {number: (name, kind) for name, (number, kind) in wire.SCHEMA[message].items()}
    found: dict[str, Any] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(content):
        tag = varint()
        name, kind = names[tag >> 3]
        value: Any = varint()
        if kind != "number":
            value, position = content[position : position + value], position + value
            if kind == "text":
                value = value.decode()
            elif kind != "bytes":
                value = decode(kind, value)
        found.setdefault(name, []).append(value)
    if message == "Any" and found:  # an empty one stands for "as configured elsewhere"
        return decode(found["type_url"][0].removeprefix(wire.TYPE_PREFIX), found["value"][0])
    return found


def prefix_map(host: dict[str, Any]) -> dict[str, Any]:
    (tree,) = host["matcher"][0]["on_no_match"][0]["matcher"][0]["matcher_tree"]
    entries = {entry["key"][0]: entry["value"][0] for entry in tree["prefix_match_map"][0]["map"]}
    assert len(entries) == len(tree["prefix_match_map"][0]["map"]), "Envoy refuses a key that is there twice"
    return entries


def user(name: str, **kwargs: str) -> Route:
    return Route(f"/user/{name}/", "http://127.0.0.1:1", kwargs.get("address", "127.0.0.1:1"), {"user": name})


@pytest.mark.parametrize("name", ["alice", "a@b.org", "x+y", "ü", "名前", "o'neil", "a b", "~t", "a%2Fb", "100%"])
def test_every_common_spelling_of_a_name_is_a_key(name: str) -> None:
    decoded = unquote(name) if name == "a%2Fb" else name
    keys = routes.spellings(f"/user/{quote(decoded, safe='@~')}/")
    for safe in ("", "@", "@~", "!'()*~", "~"):
        assert f"/user/{quote(decoded, safe=safe)}/" in keys
    assert "/user/" + re.sub("%..", lambda m: m[0].lower(), quote(decoded, safe="")) + "/" in keys
    assert all(unquote(key) == f"/user/{decoded}/" for key in keys)
    assert len(keys) == len(set(keys))


def test_a_name_with_many_special_characters_stays_small() -> None:
    assert len(routes.spellings("/user/!$&'()*+,;=:@~|^/")) <= 12


def test_an_escaped_slash_never_becomes_a_separator() -> None:
    assert all(key.count("/") == 3 for key in routes.spellings("/user/a%2Fb/"))


def test_every_route_overwrites_the_target_header() -> None:
    hub = Route("/", "http://127.0.0.1:2", "127.0.0.1:2", {"hub": True})
    table = rendered(user("alice"), hub)
    actions = [entry["action"][0]["typed_config"][0] for entry in prefix_map(table["virtual_hosts"][0]).values()]
    for action in [route for chosen in actions for route in chosen.get("routes", [chosen])]:
        headers = action["request_headers_to_add"]
        target = [h for h in headers if h["header"][0]["key"] == [routes.HEADER_TARGET]]
        assert [h["append_action"] for h in target] == [[2]], "OVERWRITE_IF_EXISTS_OR_ADD"
    assert routes.HEADER_TARGET in table["request_headers_to_remove"]
    assert table["most_specific_header_mutations_wins"] == [1]


def test_two_spellings_of_one_routespec_are_one_route() -> None:
    table = RouteTable()
    table.set(Route("/user/a@b/", "http://127.0.0.1:1", "127.0.0.1:1"))
    table.set(Route("/user/a%40b/", "http://127.0.0.1:2", "127.0.0.1:2"))
    assert [route.routespec for route in table.values()] == ["/user/a%40b/"]
    assert b"127.0.0.1:1" not in routes.render_table("v", table.snapshot()._rendered)
    assert set(prefix_map(rendered(*table.values())["virtual_hosts"][0])) == {"/user/a@b/", "/user/a%40b/"}


def test_host_routes_fall_back_to_the_default_route() -> None:
    hub = Route("/", "http://127.0.0.1:2", "127.0.0.1:2", {"hub": True})
    alice = Route("alice.hub.tld/user/alice/", "http://127.0.0.1:1", "127.0.0.1:1")
    hosts = {host["name"][0]: host for host in rendered(hub, alice)["virtual_hosts"]}
    assert set(prefix_map(hosts["alice.hub.tld"])) == {"/", "/user/alice/"}
    assert set(prefix_map(hosts["*"])) == {"/"}


def test_an_empty_table_is_valid_for_envoy() -> None:
    assert rendered()["virtual_hosts"] == [{"name": ["*"], "domains": ["*"]}]


def test_forwarded_headers_of_clients_are_kept_only_behind_a_trusted_proxy() -> None:
    assert "x-real-ip" in rendered(user("a"))["request_headers_to_remove"]
    behind = rendered(user("a"), trusted_hops=1)
    assert "forwarded" not in behind["request_headers_to_remove"]
    assert "request_headers_to_add" not in behind


@pytest.mark.parametrize(
    "spec", ["/user/../", "/user//", "//", "/user/%2e%2e/", "/user/alice", "ho st/x/", "/user/./x/", "/%2E/"]
)
def test_a_routespec_that_no_request_can_safely_match_is_refused(spec: str) -> None:
    with pytest.raises(BadRoute):
        routes.split_routespec(spec)


@pytest.mark.parametrize("target", ["ftp://x:1", "127.0.0.1:1", "http://", "http://h:notaport", "http+unix://%2Fx"])
def test_a_target_that_cannot_be_reached_is_refused(target: str) -> None:
    with pytest.raises(BadRoute):
        routes.parse_target(target)


def test_addresses_are_written_as_envoy_reads_them() -> None:
    assert routes.literal_address("127.0.0.1", 80) == "127.0.0.1:80"
    assert routes.literal_address("::1", 80) == "[::1]:80"
    assert routes.literal_address("localhost", 80) is None
    assert routes.parse_target("http://[::1]:99/base/") == ("::1", 99)
    assert routes.parse_target("https://example.org") == ("example.org", 443)


def test_the_stored_table_comes_back_with_its_data(tmp_path: Path) -> None:
    table = RouteTable()
    table.set(user("ü b"))
    table.snapshot().save(tmp_path / "t.json")
    assert RouteTable.load(tmp_path / "t.json").values() == table.values()
    assert (tmp_path / "t.json").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format":9,"routes":{}}', '{"format":1,"routes":{"/a/":{}}}'])
def test_a_damaged_table_is_reported_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TableUnreadable):
        RouteTable.load(tmp_path / "t.json")


@pytest.mark.parametrize("path", ["/a/../b", "/a/..", "/..;/x", "/a/..;p=1/b", "/%2e%2e/", "/a/.%2E?x", "/./", "/a\\b"])
def test_dot_segments_are_recognised(path: str) -> None:
    assert re.fullmatch(routes.REFUSED_PATHS, path)


@pytest.mark.parametrize("path", ["/a/...", "/a/..b/", "/a/b..", "/?x=/../", "/.well-known/x", "/a/..%2fb", "/a?\\"])
def test_ordinary_paths_are_not_refused(path: str) -> None:
    assert not re.fullmatch(routes.REFUSED_PATHS, path)
