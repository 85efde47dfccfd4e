"""Which origins count as this server's own."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from marimohub.singleuser import browser

pytestmark = pytest.mark.unit


def request(kind: str = "http", method: str = "POST", **headers: str) -> HTTPConnection:
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return HTTPConnection(
        {"type": kind, "method": method, "path": "/", "query_string": b"mh_token=given", "headers": raw}
    )


@pytest.mark.parametrize(
    ("headers", "public_url"),
    [
        ({"host": "hub.example", "origin": "http://hub.example"}, ""),
        ({"host": "hub.example:8000", "origin": "http://hub.example:8000"}, ""),
        ({"host": "hub.example", "origin": "http://hub.example:80"}, ""),
        ({"host": "hub.example", "origin": "https://hub.example", "x_forwarded_proto": "https"}, ""),
        ({"host": "hub.example", "origin": "https://hub.example"}, ""),  # TLS ended before our proxy
        ({"host": "HUB.example", "origin": "http://hub.EXAMPLE"}, ""),
        ({"host": "10.0.0.1:9", "x_forwarded_host": "hub.example", "origin": "http://hub.example"}, ""),
        ({"host": "10.0.0.1:9", "origin": "https://hub.example"}, "https://hub.example/"),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, ""),
        ({"host": "hub.example"}, ""),
    ],
)
def test_the_own_origin_is_let_through(headers: dict[str, str], public_url: str) -> None:
    browser.check_site(request(**headers), public_url)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "hub.example", "origin": "http://evil.example"},
        {"host": "hub.example", "origin": "http://hub.example.evil.example"},
        {"host": "hub.example", "origin": "http://hub.example:8001"},
        {"host": "hub.example", "origin": "null"},
        {"host": "hub.example", "origin": ""},
        {"host": "hub.example", "origin": "http://hub.example:x"},
        {"host": "hub.example", "origin": "http://hub.example", "x_forwarded_proto": "https"},
        {"host": "hub.example", "origin": "file://"},
        {"host": "hub.example", "sec_fetch_site": "cross-site"},
        {"host": "hub.example", "sec_fetch_site": "same-site"},
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_origins_are_refused(headers: dict[str, str], kind: str) -> None:
    with pytest.raises(browser.Refused):
        browser.check_site(request(kind, **headers))


def test_a_link_on_another_site_may_navigate_here_but_not_frame_or_post() -> None:
    link = {"host": "h", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    browser.check_site(request(method="GET", **link, sec_fetch_dest="document"))
    for method, destination in (("GET", "iframe"), ("POST", "document"), ("GET", "object")):
        with pytest.raises(browser.Refused):
            browser.check_site(request(method=method, **link, sec_fetch_dest=destination))


def test_marimos_token_comes_as_header_or_as_parameter_of_a_socket() -> None:
    browser.check_server_token(request(marimo_server_token="t"), "t")
    browser.check_server_token(request("websocket"), "given")
    for connection in (request(), request(marimo_server_token="given"), request("websocket", marimo_server_token="t")):
        with pytest.raises(browser.Refused):
            browser.check_server_token(connection, "t")
