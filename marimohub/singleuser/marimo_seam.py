"""Every place where marimo's internals are touched. tests/singleuser/test_marimo_contract.py holds them in place."""

from __future__ import annotations

import html
import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette

from marimohub.singleuser import kernels, links
from marimohub.singleuser.deaths import Deaths

log = logging.getLogger("marimohub.singleuser")

# Hides marimo's buttons that upload a notebook or its results to public services (molab, WebAssembly links).
ENVIRONMENT = {"MARIMO_RESTRICT_SHARING": "1", "MARIMO_SKIP_UPDATE_CHECK": "1"}

_read: dict[str, str] = {}  # marimo's variables, as they were when it was loaded

# For people who have no configuration of their own. Written once, theirs to change from then on.
USER_CONFIG = """\
# Written once by MarimoHub. Change it here or in marimo's settings.
[save]
autosave = "after_delay"
autosave_delay = 1000

[runtime]
auto_instantiate = true

[ai]
enabled = false

[completion]
copilot = false
"""


def rehearse() -> None:
    """Make a server and throw it away: what is loaded and computed on the way is there for all that are forked."""
    import uvicorn
    from marimo._server.main import create_starlette_app
    from marimo._server.utils import initialize_mimetypes

    app = create_starlette_app(base_url="", enable_auth=False)
    app.build_middleware_stack()
    uvicorn.Config(app, log_config=None).load()
    initialize_mimetypes()


def use_own_kernels() -> None:
    """Have marimo fork its kernels (kernels.py) and talk to them without ports and names (links.py).

    In the server before it forks the zygote, so that kernels have their half of it, too.
    """
    from marimo._output.formatters.formatters import THIRD_PARTY_FACTORIES
    from marimo._runtime import runtime
    from marimo._session.managers import kernel, queue

    _read.update(_variables())
    _replace(kernel, get_context=kernels.get_context, connection=SimpleNamespace(Listener=links.Listener))
    _replace(queue, get_context=kernels.get_context, MPQueue=links.Outbox)
    _replace(runtime, connection=SimpleNamespace(Client=links.connect, Connection=links.KernelLink))
    kernels.KernelProcess.hidden = tuple(THIRD_PARTY_FACTORIES)


def explain_deaths(deaths: Deaths) -> None:
    """Have marimo's banner about a kernel that ended say why."""
    from marimo._session.session import SessionImpl
    from marimo._session.types import KernelExitInfo, KernelState

    state_of, exit_of = SessionImpl.kernel_state, SessionImpl.kernel_exit_info

    def kernel_state(self: SessionImpl) -> KernelState:
        found = state_of(self)
        if found is not KernelState.STOPPED:
            return found
        ended = exit_of(self)
        wait = ended is not None and deaths.reason_may_come(self.kernel_pid(), ended.exitcode)
        return KernelState.RUNNING if wait else found

    def kernel_exit_info(self: SessionImpl) -> KernelExitInfo | None:
        found = exit_of(self)
        if found is None:
            return None
        path = self.app_file_manager.path
        why = deaths.reason(self.kernel_pid(), found.exitcode, Path(path).stem if path else "")
        return KernelExitInfo(found.exitcode, found.cause, why)

    _replace(SessionImpl, kernel_state=kernel_state, kernel_exit_info=kernel_exit_info)


def _replace(owner: Any, **names: Any) -> dict[str, Any]:
    """Put these in the place of what has their names. Returns what that was."""
    before = {name: getattr(owner, name) for name in names}
    for name, value in names.items():
        setattr(owner, name, value)
    return before


def read_environment() -> None:
    """Have marimo read its variables again if they have changed: it may have been loaded in another process."""
    from marimo._config import settings

    if _variables() == _read:
        return
    spec = importlib.util.find_spec(settings.__name__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    vars(settings.GLOBAL_SETTINGS).update(vars(fresh.GLOBAL_SETTINGS))


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("MARIMO_", "_MARIMO_"))}


def forget_configuration() -> None:
    """Have marimo look for configuration files again, in another environment."""
    from marimo._config import manager, utils

    utils.get_user_config_path.cache_clear()
    manager.PyprojectConfigReader._read_config.cache_clear()
    manager.ScriptConfigReader._read_config.cache_clear()


def _language_servers(**settings: Any) -> Any:
    """marimo's, or None: each takes a TCP port, which confined servers may not."""
    from marimo._server.lsp import CompositeLspServer

    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError:
        return None
    return CompositeLspServer(**settings)


def serve(
    folder: Path,
    host: str,
    port: int,
    base_url: str,
    wrap: Callable[[Starlette], None],
    listener: socket.socket | None = None,
) -> None:
    """Run `marimo edit` on a folder until it is told to end.

    `wrap` gets the application before it serves. Without a `listener`, it binds `host` and `port` itself.
    """
    import uvicorn
    from marimo._config.settings import GLOBAL_SETTINGS
    from marimo._server import start as module
    from marimo._server.tokens import AuthToken
    from marimo._server.workspace import infer_workspace
    from marimo._session.model import SessionMode

    GLOBAL_SETTINGS.QUIET = True
    GLOBAL_SETTINGS.YES = True
    create = module.create_starlette_app

    def create_and_wrap(*args: Any, **kwargs: Any) -> Starlette:
        app = create(*args, **kwargs)
        wrap(app)
        return app

    class Server(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            super().run(sockets if listener is None else [listener])

    marimos = _replace(
        module,
        create_starlette_app=create_and_wrap,
        CompositeLspServer=_language_servers,
        uvicorn=SimpleNamespace(Config=uvicorn.Config, Server=Server, __version__=uvicorn.__version__),
    )
    try:
        module.start(
            workspace=infer_workspace(str(folder)),
            mode=SessionMode.EDIT,
            development_mode=False,
            quiet=True,
            include_code=True,
            ttl_seconds=None,
            headless=True,
            host=host,
            port=port,
            proxy=None,
            watch=False,
            cli_args={},
            argv=[],
            base_url=base_url,
            allow_origins=(),
            auth_token=AuthToken(""),
            redirect_console_to_browser=True,
            skew_protection=True,
        )
    finally:
        _replace(module, **marimos)


def write_user_config() -> None:
    """Give a person who has no marimo configuration a friendly one."""
    from marimo._config.utils import get_user_config_path
    from marimo._utils.xdg import marimo_config_path

    found = get_user_config_path()
    if found is not None and Path(found).stat().st_size:
        return
    path = marimo_config_path() if found is None else Path(found)  # an empty one is what marimo makes when it is loaded
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(USER_CONFIG, encoding="utf-8")
    get_user_config_path.cache_clear()


class MarimoApp:
    """A running marimo server, seen from outside."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    @property
    def _manager(self) -> Any:
        return self._app.state.session_manager

    @property
    def server_token(self) -> str:
        """The random value that marimo writes into its HTML and demands of every POST."""
        return str(self._manager.skew_protection_token)

    def file_of_session(self, session_id: str) -> str | None:
        """The path of the file that a page's session has open."""
        session = self._manager.get_session(session_id)
        return session.app_file_manager.path if session is not None else None

    def close_sessions(self, path: Path) -> int:
        """End the sessions, and so the kernels, that have this file open."""
        stale = [key for key, session in self._manager.sessions.items() if _has_open(session, path)]
        for session_id in stale:
            self._manager.close_session(session_id)
        return len(stale)

    def tell(self, path: Path | None, title: str, text: str, *, lasting: bool, danger: bool) -> None:
        """Show a toast, or a lasting banner, in the pages that have this file open; None: in all pages."""
        from marimo._messaging.notification import AlertNotification, BannerNotification

        kind = BannerNotification if lasting else AlertNotification
        # marimo shows the description as HTML.
        notification = kind(title=title, description=html.escape(text), variant="danger" if danger or lasting else None)
        for session in self._manager.sessions.values():
            if path is None or _has_open(session, path):
                session.notify(notification, from_consumer_id=None)

    def tell_all(self, title: str, text: str) -> None:
        """Show a lasting banner in all pages."""
        self.tell(None, title, text, lasting=True, danger=True)

    def has_kernel(self, pid: int) -> bool:
        """Whether this process is a kernel that a page has open."""
        return any(session.kernel_pid() == pid for session in self._manager.sessions.values())

    def running(self) -> bool:
        """Whether any cell of any notebook is running or waiting to."""
        return any(
            cell.status in ("queued", "running")
            for session in self._manager.sessions.values()
            for cell in session.session_view.cell_notifications.values()
        )


def _has_open(session: Any, path: Path) -> bool:
    return session.app_file_manager.path == str(path)
