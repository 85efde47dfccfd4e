"""A pytest plugin (`-p tests.proxy.jupyterhub_plugin`) with which JupyterHub's own tests run against EnvoyProxy.

The tests come from the installed package and are not changed. `JUPYTERHUB_TEST_SUBDOMAIN_HOST` (a variable of theirs)
makes the hub give every user a host name; names below `test` (RFC 6761) are resolved here: no name service has them.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from jupyterhub.tests.mocking import MockHub

from marimohub.proxy import EnvoyProxy

FOR_CONFIGURABLE_HTTP_PROXY = {
    "test_external_proxy": "runs the program configurable-http-proxy and its REST API; an Envoy that outlives the hub, "
    "and one that lost its routes, are in test_envoy.py",
    "test_proxy_bind_ip": "reads the command line of configurable-http-proxy; the address is in test_envoy.py",
}
EMPTY_SEGMENT = "routes example.com//path: EnvoyProxy refuses an empty segment, which servers may read as another path"


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("browser", "db", "group", "role", "selenium", "services", "slow", "ssl", "subdomain", "user"):
        config.addinivalue_line("markers", f"{mark}: JupyterHub's")
    MockHub.proxy_class.default_value = EnvoyProxy
    socket.getaddrinfo = _resolve_test_names


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        reason = FOR_CONFIGURABLE_HTTP_PROXY.get(item.originalname)
        if item.originalname == "test_extra_routes" and _has_empty_segment(item):
            reason = EMPTY_SEGMENT
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_empty_segment(item: pytest.Function) -> bool:
    """With host names that test puts `example.com/` before a path that begins with a slash."""
    return bool(os.environ.get("JUPYTERHUB_TEST_SUBDOMAIN_HOST")) and item.callspec.params["routespec"].startswith("/")


_resolve = socket.getaddrinfo


def _resolve_test_names(host: Any, *arguments: Any, **options: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    return _resolve("127.0.0.1" if name and name.endswith(".test") else host, *arguments, **options)
