"""The static configuration: what changes it, and what it must hold."""

from __future__ import annotations

import dataclasses
import json

import pytest

from marimohub.proxy import bootstrap, pages
from marimohub.proxy.bootstrap import Settings

pytestmark = pytest.mark.unit


def test_any_changed_setting_or_argument_needs_a_new_envoy() -> None:
    settings = Settings("127.0.0.1", 8000)
    same = bootstrap.fingerprint(settings, "envoy", "2")
    assert bootstrap.fingerprint(Settings("127.0.0.1", 8000), "envoy", "2") == same
    others = [dataclasses.replace(settings, **change) for change in ({"port": 1}, {"tls": True}, {"ip": "::"})]
    prints = {same, bootstrap.fingerprint(settings, "envoy", "3"), *(bootstrap.fingerprint(s) for s in others)}
    assert len(prints) == 5


def test_admin_is_a_private_socket_and_never_a_port() -> None:
    admin = bootstrap.render(Settings("::", 1))["admin"]
    assert admin["address"] == {"pipe": {"path": "admin.sock", "mode": 0o600}}
    assert [list(match) for match in admin["allow_paths"]] == [["exact"], ["exact"], ["exact"]]
    assert [match["exact"].partition("?")[0] for match in admin["allow_paths"]] == [
        "/ready",
        "/stats",
        "/stats/prometheus",
    ]


def test_no_path_is_rewritten() -> None:
    (listener,) = json.loads(bootstrap.render_listeners(Settings("::", 1)))["resources"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["normalize_path"] is False
    assert manager["merge_slashes"] is False
    assert manager["path_with_escaped_slashes_action"] == "KEEP_UNCHANGED"


def test_addresses_are_shown_as_people_write_them() -> None:
    assert Settings("::", 8000).listens_on == "[::]:8000"
    assert Settings("", 0, unix_socket="/run/x.sock").listens_on == "/run/x.sock"


def test_pages_escape_what_they_show_and_load_nothing() -> None:
    html = pages.SERVER_NOT_RUNNING.html('/b"><script>/hub/notebooks')
    assert "<script" not in html
    assert "src=" not in html
    assert "://" not in html
    assert json.loads(pages.HUB_RESTARTING.json())["error"]["code"] == "hub_restarting"
