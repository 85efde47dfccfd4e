"""Starts marimo for one user behind the hub's sign-in: `python -m marimohub.singleuser`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable

from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.services.auth import HubOAuth
from jupyterhub.utils import make_ssl_context, url_path_join
from starlette.applications import Starlette

from marimohub.singleuser import breaches, kernels, marimo_seam, warm
from marimohub.singleuser.auth import Authenticator
from marimohub.singleuser.deaths import Deaths
from marimohub.singleuser.files import NotebookFolder
from marimohub.singleuser.frames import with_room
from marimohub.singleuser.gate import Gate
from marimohub.singleuser.hubapi import HubApi
from marimohub.singleuser.presence import Activity, Presence
from marimohub.singleuser.settings import BadEnvironment, Handed, Settings, move_secrets
from marimohub.singleuser.snapshots import SnapshotStatus
from marimohub.singleuser.sync import NotebookSync
from marimohub.singleuser.zygote import set_dumpable

log = logging.getLogger("marimohub.singleuser")

_LAST_WORDS = 3.0  # seconds to publish what is unpublished when the server is told to end


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    move_secrets()
    set_dumpable(False)  # kernels run as the same user: keeps them out of this process's memory and descriptors
    try:
        handed = Handed.take()
        warm.load()
        # As early as possible: no secret and no thread yet, and memory that changes afterwards is not copied.
        kernels.start_zygote()
        _log_to_stderr()
        handed.read_secrets()
        settings = Settings.take()
    except BadEnvironment as error:
        _log_to_stderr()
        log.error("%s", error)
        return 1
    os.environ.update(marimo_seam.ENVIRONMENT)
    tempfile.tempdir = None  # what the process before the fork found
    marimo_seam.read_environment()
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
    with_room(
        marimo_seam.serve,
        settings.folder,
        settings.host,
        settings.port,
        settings.base_url,
        lambda app: add_gate(app, settings, handed.guard),
        handed.listener,
    )
    log.info("ended")
    return 0


def add_gate(app: Starlette, settings: Settings, guard: int | None = None) -> None:
    """Put the gate around marimo's application, outside of everything marimo put there.

    `guard` is where the guard tells what it has killed.
    """
    # The token is given by hand: it is gone from the environment, where HubOAuth would look.
    oauth = HubOAuth(api_token=settings.api_token, api_url=settings.api_url, base_url=settings.prefix)
    tls = make_ssl_context(oauth.keyfile, oauth.certfile, cafile=oauth.client_ca) if oauth.keyfile else True
    hub = HubApi(settings, ssl=tls)
    marimo = marimo_seam.MarimoApp(app)
    folder = NotebookFolder(settings.folder)
    sync = NotebookSync(hub, folder, marimo)
    presence = Presence(hub, sync, settings.heartbeat_interval)
    deaths = Deaths(marimo, guarded=guard is not None)
    marimo_seam.explain_deaths(deaths)
    stop_listening: list[Callable[[], None]] = []

    def on_startup() -> None:
        if guard is not None:
            stop_listening.append(breaches.listen(guard, deaths.heard))

    async def on_shutdown() -> None:
        for stop in stop_listening:
            stop()
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
        on_startup=on_startup,
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
