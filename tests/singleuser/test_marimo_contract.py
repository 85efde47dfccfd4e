"""What we rely on inside marimo. A failure here means: marimo moved, look at marimo_seam.py before anything else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit


def test_the_version_is_one_that_was_looked_at() -> None:
    import marimo

    assert marimo.__version__.startswith("0.25."), "marimo has a new minor version: go through marimo_seam.py"


def test_start_takes_what_serve_gives_and_calls_the_factory_by_its_global_name() -> None:
    from marimo._server import start as module

    given = {
        "workspace", "mode", "development_mode", "quiet", "include_code", "ttl_seconds", "headless", "host",
        "port", "proxy", "watch", "cli_args", "argv", "base_url", "allow_origins", "auth_token",
        "redirect_console_to_browser", "skew_protection",
    }  # fmt: skip
    parameters = inspect.signature(module.start).parameters
    assert given <= set(parameters)
    required = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    assert required <= given, "start() demands something new"
    assert callable(module.create_starlette_app)
    assert "create_starlette_app" in module.start.__code__.co_names


async def test_added_middleware_is_outermost_and_sees_every_kind_of_scope() -> None:
    from marimo._server.main import create_starlette_app

    seen: list[str] = []

    class Outer:
        def __init__(self, app: object) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

    class Lsp:
        id, port, auth_token = "pylsp", 1, "x"

    app = create_starlette_app(base_url="/user/a", lsp_servers=[Lsp()], enable_auth=False)  # type: ignore[list-item]
    app.add_middleware(Outer)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("something outside of our middleware answered")

    for kind in ("http", "websocket", "lifespan"):
        scope = {"type": kind, "method": "GET", "path": "/user/a/lsp/pylsp", "headers": [], "query_string": b""}
        await app(scope, nothing, nothing)
    assert seen == ["http", "websocket", "lifespan"]


def test_the_paths_that_save_and_that_are_guarded_exist() -> None:
    from marimo._server.api.router import build_routes
    from starlette.routing import Mount, Route

    from marimohub.singleuser.fileops import GUARDED
    from marimohub.singleuser.gate import SAVES

    def paths(routes: list, prefix: str = "") -> set[str]:  # type: ignore[type-arg]
        found: set[str] = set()
        for route in routes:
            if isinstance(route, Mount):
                found |= paths(list(route.routes), prefix + route.path)
            elif isinstance(route, Route):
                found.add((prefix + route.path).lstrip("/"))
        return found

    existing = paths(build_routes())
    assert not (GUARDED | SAVES) - existing
    writing = {path for path in existing if path.startswith(("api/files/", "api/kernel/save", "api/kernel/re"))}
    assert writing == {
        "api/files/roots", "api/files/list_files", "api/files/file_details", "api/files/download",
        "api/files/create", "api/files/delete", "api/files/copy", "api/files/move", "api/files/update",
        "api/files/open", "api/files/search", "api/kernel/save", "api/kernel/save_app_config",
        "api/kernel/save_user_config", "api/kernel/read_code", "api/kernel/rename",
        "api/kernel/restart_session",
    }, "marimo has a new way to write files: decide in fileops.py or gate.py what it may do"  # fmt: skip


def test_the_names_in_the_session_manager_are_still_there() -> None:
    from marimo._messaging.notification import AlertNotification, BannerNotification
    from marimo._server.session_manager import SessionManager
    from marimo._session.session import SessionImpl

    for name in ("sessions", "get_session", "close_session", "skew_protection_token"):
        assert hasattr(SessionManager, name), name
    assert "from_consumer_id" in inspect.signature(SessionImpl.notify).parameters
    for kind in (AlertNotification, BannerNotification):
        kind(title="t", description="d", variant="danger")
        kind(title="t", description="d", variant=None)


def test_the_skew_protection_header_is_the_one_that_is_checked() -> None:
    from marimo._server.api.middleware import SkewProtectionMiddleware

    from marimohub.singleuser.browser import TOKEN_HEADER

    assert SkewProtectionMiddleware.HEADER_NAME.lower() == TOKEN_HEADER


def test_the_page_has_a_head_for_the_script_and_the_front_end_reads_what_it_sets() -> None:
    import marimo

    static = Path(marimo.__file__).parent / "_static"
    assert "<head>" in (static / "index.html").read_text()
    scripts = "".join(path.read_text() for path in (static / "assets").glob("*.js"))
    assert "marimo:sidebar" in scripts and "isDeveloperPanelOpen" in scripts
    assert "new WebSocket(" in scripts
    # A refusal with status 403 would not be shown to the user.
    assert ".status===403)throw" in scripts


def test_the_user_configuration_is_valid_and_only_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    from marimo._config.config import DEFAULT_CONFIG
    from marimo._config.utils import get_user_config_path

    from marimohub.singleuser.marimo_seam import USER_CONFIG, write_user_config

    for section, values in tomllib.loads(USER_CONFIG).items():
        assert set(values) <= set(DEFAULT_CONFIG[section]), section  # type: ignore[literal-required]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    get_user_config_path.cache_clear()
    try:
        write_user_config()
        path = tmp_path / ".config" / "marimo" / "marimo.toml"
        assert path.read_text() == USER_CONFIG
        path.write_text("# mine")
        get_user_config_path.cache_clear()
        write_user_config()
        assert path.read_text() == "# mine"
    finally:
        get_user_config_path.cache_clear()
