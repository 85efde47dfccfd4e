"""Starts marimo for one user behind the hub's sign-in: `python -m marimohub.singleuser`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth
from jupyterhub.utils import make_ssl_context, url_path_join
from starlette.applications import Starlette

from marimohub.singleuser import marimo_seam
from marimohub.singleuser.auth import Authenticator
from marimohub.singleuser.files import NotebookFolder
from marimohub.singleuser.gate import Gate
from marimohub.singleuser.hubapi import HubApi
from marimohub.singleuser.presence import Activity, Presence
from marimohub.singleuser.settings import BadEnvironment, Settings
from marimohub.singleuser.snapshots import SnapshotStatus
from marimohub.singleuser.sync import NotebookSync

log = logging.getLogger("marimohub.singleuser")

_PR_SET_DUMPABLE = 4
_LAST_WORDS = 3.0  # seconds to publish what is unpublished when the server is told to end


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    _log_to_stderr()
    try:
        settings = Settings.take()
    except BadEnvironment as error:
        log.error("%s", error)
        return 1
    _hide_from_own_notebooks()
    os.environ.update(marimo_seam.ENVIRONMENT)
    os.chdir(settings.folder)
    try:
        marimo_seam.write_user_config()
    except OSError as error:
        log.warning("cannot write a marimo configuration: %s", error)
    # uvicorn ends orderly on SIGTERM and then raises it again for the handler that was there before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    log.info(
        "serving %s for %s on %s:%s%s",
        settings.folder,
        settings.user,
        settings.host,
        settings.port,
        settings.prefix,
    )
    marimo_seam.serve(
        settings.folder,
        settings.host,
        settings.port,
        settings.base_url,
        lambda app: add_gate(app, settings),
    )
    log.info("ended")
    return 0


def add_gate(app: Starlette, settings: Settings) -> None:
    """Put the gate around marimo's application, outside of everything marimo put there."""
    # The token is given by hand: it is gone from the environment, where HubOAuth would look.
    oauth = HubOAuth(api_token=settings.api_token, api_url=settings.api_url, base_url=settings.prefix)
    tls = make_ssl_context(oauth.keyfile, oauth.certfile, cafile=oauth.client_ca) if oauth.keyfile else True
    hub = HubApi(settings, ssl=tls)
    marimo = marimo_seam.MarimoApp(app)
    folder = NotebookFolder(settings.folder)
    sync = NotebookSync(hub, folder, marimo)
    presence = Presence(hub, sync, settings.heartbeat_interval)

    async def on_shutdown() -> None:
        presence.close()
        await sync.close(_LAST_WORDS)
        await hub.close()
        await JupyterHubHTTPClient.loop_instance().close()

    app.add_middleware(
        Gate,
        settings=settings,
        authenticator=Authenticator(oauth, settings.user),
        marimo=marimo,
        folder=folder,
        sync=sync,
        presence=presence,
        activity=Activity(
            hub,
            settings.activity_url,
            settings.server_name,
            settings.activity_interval,
            lambda: presence.anyone or marimo.running(),
        ),
        snapshots=SnapshotStatus(settings.snapshot, hub),
        notebooks_url=oauth.hub_host + url_path_join(oauth.hub_prefix, "notebooks"),
        on_shutdown=on_shutdown,
    )


class _OneLine(logging.Formatter):
    """The hub shows the last log lines of a server that failed: each record is one of them."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("[%(levelname).1s %(asctime)s %(name)s] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _hide_from_own_notebooks() -> None:
    """Keep the kernels, which run as the same user, from reading this process's memory and environment."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
