"""Every place where marimo's internals are touched. tests/singleuser/test_marimo_contract.py holds them in place."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

log = logging.getLogger("marimohub.singleuser")

# Hides marimo's buttons that upload a notebook or its results to public services (molab, WebAssembly links).
ENVIRONMENT = {"MARIMO_RESTRICT_SHARING": "1", "MARIMO_SKIP_UPDATE_CHECK": "1"}

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


def serve(folder: Path, host: str, port: int, base_url: str, wrap: Callable[[Starlette], None]) -> None:
    """Run `marimo edit` on a folder until it is told to end. `wrap` gets the application before it serves."""
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

    module.create_starlette_app = create_and_wrap
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
        module.create_starlette_app = create


def write_user_config() -> None:
    """Give a person who has no marimo configuration a friendly one."""
    from marimo._config.utils import get_user_config_path
    from marimo._utils.xdg import marimo_config_path

    if get_user_config_path() is not None:
        return
    path = marimo_config_path()
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

    def tell(self, path: Path, title: str, text: str, *, lasting: bool, danger: bool) -> None:
        """Show a toast, or a lasting banner, in the pages that have this file open."""
        from marimo._messaging.notification import AlertNotification, BannerNotification

        kind = BannerNotification if lasting else AlertNotification
        # marimo shows the description as HTML.
        notification = kind(title=title, description=html.escape(text), variant="danger" if danger or lasting else None)
        for session in self._manager.sessions.values():
            if _has_open(session, path):
                session.notify(notification, from_consumer_id=None)

    def running(self) -> bool:
        """Whether any cell of any notebook is running or waiting to."""
        return any(
            cell.status in ("queued", "running")
            for session in self._manager.sessions.values()
            for cell in session.session_view.cell_notifications.values()
        )


def _has_open(session: Any, path: Path) -> bool:
    return session.app_file_manager.path == str(path)
