"""What we rely on inside marimo. A failure here means: marimo moved, look at marimo_seam.py before anything else."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
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
        path.write_text("")  # as marimo leaves it when it is loaded first
        get_user_config_path.cache_clear()
        write_user_config()
        assert path.read_text() == USER_CONFIG
        path.write_text("# mine")
        get_user_config_path.cache_clear()
        write_user_config()
        assert path.read_text() == "# mine"
    finally:
        get_user_config_path.cache_clear()


def names_in(function: Any) -> set[str]:
    """The global names and attributes that a function's code uses, with those of functions inside it."""
    code = function.__code__
    inner = {name for const in code.co_consts if inspect.iscode(const) for name in const.co_names}
    return set(code.co_names) | inner


def test_kernels_and_queues_are_made_by_the_names_that_are_replaced() -> None:
    """marimo_seam.use_own_kernels. Were one of them not used any more, kernels would open TCP ports again."""
    from marimo._runtime import runtime
    from marimo._session.managers.kernel import KernelManagerImpl
    from marimo._session.managers.queue import QueueManagerImpl

    assert {"get_context", "connection", "Listener"} <= names_in(KernelManagerImpl.start_kernel)
    assert "get_context" in names_in(QueueManagerImpl.__init__)
    assert "MPQueue" in names_in(QueueManagerImpl.close_queues)
    assert {"connection", "Client"} <= names_in(runtime._create_streams)
    assert {"connection", "Connection"} <= names_in(runtime._LaunchStreams.close)
    assert "setsid" in names_in(runtime._bootstrap_subprocess), "a kernel leads no process group: interrupts"


def test_a_kernel_gets_its_queues_and_its_link_and_nothing_else_that_is_shared() -> None:
    """What zygote.Pickler hands over by itself are queues and the link; anything else must be plain data."""
    from marimo._runtime.runtime import launch_kernel

    assert list(inspect.signature(launch_kernel).parameters) == [
        "control_queue", "set_ui_element_queue", "completion_queue", "input_queue", "stream_queue", "socket_addr",
        "is_edit_mode", "configs", "app_metadata", "user_config", "virtual_file_storage",
        "redirect_console_to_browser", "interrupt_queue", "profile_path", "log_level", "is_ipc", "parent_pid",
    ]  # fmt: skip


def test_a_session_says_how_its_kernel_ended_by_the_methods_that_are_replaced() -> None:
    from marimo._session.extensions.extensions import HeartbeatExtension
    from marimo._session.session import SessionImpl
    from marimo._session.types import KernelExitInfo, KernelState

    assert {"kernel_state", "kernel_exit_info", "BannerNotification"} <= {
        name
        for const in HeartbeatExtension._start.__code__.co_consts
        if inspect.iscode(const)
        for name in const.co_names
    }
    assert {"kernel_state", "kernel_exit_info", "kernel_pid", "app_file_manager"} <= set(dir(SessionImpl)) | names_in(
        SessionImpl.__init__
    )
    assert list(inspect.signature(KernelExitInfo).parameters) == ["exitcode", "cause", "message"]
    assert {"RUNNING", "STOPPED"} <= set(KernelState.__members__)


def test_the_server_is_made_by_the_names_that_are_replaced() -> None:
    from marimo._server import start as module

    assert {"create_starlette_app", "CompositeLspServer", "uvicorn", "Server", "Config"} <= names_in(module.start)
    used = set(re.findall(r"\buvicorn\.(\w+)", inspect.getsource(module.start)))
    assert used == {"Config", "Server", "__version__"}, "marimo uses more of uvicorn than serve() gives it"


LIGHT = """
import sys
from marimohub.singleuser import hub_client
hub_client.load()
from jupyterhub.services.auth import HubOAuth
assert not {"sqlalchemy", "alembic", "jupyterhub.orm"} & set(sys.modules)
oauth = HubOAuth(api_token="x", api_url="http://127.0.0.1:1/", base_url="/user/a/", oauth_client_id="jupyterhub-user-a",
                 access_scopes={"access:servers!server=a/", "access:servers!user=a"})
model = {"kind": "user", "name": "a"}
assert oauth.check_scopes(oauth.access_scopes, model | {"scopes": ["access:servers!server=a/"]})
assert oauth.check_scopes(oauth.access_scopes, model | {"scopes": ["access:servers"]})
assert not oauth.check_scopes(oauth.access_scopes, model | {"scopes": ["access:servers!server=b/", "users"]})
assert oauth.login_url and len(oauth.generate_pkce_code_challenge()) == 3
import sqlalchemy
assert sqlalchemy.create_engine("sqlite://").connect()
print("fine")
"""


def test_jupyterhubs_client_side_works_without_its_database() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


LOADED = """
import functools, gc, os, sys
from marimohub.singleuser import warm
warm.load()
missing = [name for name in warm.MODULES if name not in sys.modules]
assert not missing, f"no such modules any more: {missing}"
threads = len(os.listdir("/proc/self/task"))
assert threads == 1, f"{threads} threads: a fork would lose them"
remembered = [
    f"{found.__module__}.{found.__qualname__}"
    for found in gc.get_objects()
    if isinstance(found, functools._lru_cache_wrapper)
    and str(found.__module__).startswith("marimo.") and found.cache_info().currsize
]
assert not remembered, f"remembered from before the fork, perhaps of the wrong environment: {remembered}"
handles = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
           and os.path.lexists(f"/proc/self/fd/{fd}")]
assert all("marimo.log" in handle or "/proc/" in handle for handle in handles), f"open files: {handles}"
from marimo._config.settings import GLOBAL_SETTINGS
from marimohub.singleuser import marimo_seam
assert GLOBAL_SETTINGS.RESTRICT_SHARING
os.environ["MARIMO_SESSION_COOKIE_SECURE"] = "true"
marimo_seam.read_environment()
assert GLOBAL_SETTINGS.SESSION_COOKIE_SECURE and GLOBAL_SETTINGS.RESTRICT_SHARING
import marimo._output.formatters.formatters as formatters
assert "duckdb" in formatters.THIRD_PARTY_FACTORIES
print("fine")
os._exit(0)
"""


def test_what_is_loaded_before_the_fork_exists_and_keeps_nothing_of_its_surroundings(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-u", "-c", LOADED], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.stdout == "fine\n", done.stderr
