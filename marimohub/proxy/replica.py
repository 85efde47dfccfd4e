"""`marimohub proxy`: one more Envoy with the hub's routes, on another address or another machine."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import signal
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from traitlets import Unicode, default
from traitlets.config import Application

from marimohub import __version__
from marimohub.proxy import bootstrap
from marimohub.proxy import listen as listening
from marimohub.proxy.bootstrap import Settings
from marimohub.proxy.envoy import EnvoyProxy
from marimohub.proxy.errors import ProxyError, ProxyStartFailed
from marimohub.proxy.follower import Follower, ShareUnreadable, check_private
from marimohub.proxy.share import SETTINGS_FILE
from marimohub.proxy.table import RouteTable, write_atomically

_WAIT_SECONDS = 1.0


class Replica(EnvoyProxy):
    """An EnvoyProxy whose routes, limits and certificate are those that a hub wrote into `share_dir`."""

    listen = Unicode(
        "http://:8000/", help="Where this proxy listens. The certificate is the hub's, whatever is written here."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.public_url = self.listen
        self._share_folder = Path(self.share_dir).absolute()
        self._share = None  # the hub's side of it
        self._follower: Follower | None = None

    def _open(self) -> Any:
        if self._loaded is None:
            for folder in ("", *bootstrap.FOLDERS):
                (self._folder / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._follower = Follower(
                self._share_folder,
                self._folder,
                self._admin,
                self._activity,
                self.log,
                deadline=self.route_timeout,
                kill_envoy=self._kill,
            )
            self._loaded = RouteTable(), self._follower  # type: ignore[assignment]
        return self._loaded

    @property
    def follower(self) -> Follower:
        found: Follower = self._open()[1]
        return found

    async def _kill(self) -> None:
        identity = self._process.identity if self._process else None
        while identity is not None and identity.alive():  # The supervisor starts another.
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)
            await asyncio.sleep(0.005)

    async def _settings(self) -> Settings:
        check_private(self._share_folder)
        try:
            settings = await self.follower.settings()
            if settings.tls:
                certificate = await asyncio.to_thread((self._share_folder / bootstrap.TLS_FILE).read_bytes)
                await asyncio.to_thread(write_atomically, self._folder / bootstrap.TLS_FILE, certificate, durable=False)
        except (ShareUnreadable, OSError) as error:
            raise ProxyStartFailed(f"The shared folder {self._share_folder}: {error}.") from error
        ip, port, unix_socket = await listening.public_address(self.public_url)
        authorities = await asyncio.to_thread(_authorities, settings)
        return replace(settings, ip=ip, port=port, unix_socket=unix_socket, upstream_ca=authorities)

    async def _renew_certificate(self, *, first: bool) -> None:
        """The hub does, and the follower brings it."""

    async def _read_activity(self) -> None:
        await self._activity.update(None)

    async def run(self, ended: asyncio.Event) -> None:
        """Serve until `ended`; with new settings when the hub has them. Raises ProxyError."""
        await self.start()
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _WAIT_SECONDS)
            if self.follower.settings_changed.is_set() and not ended.is_set():
                self.log.info("The hub has another configuration: starting Envoy with it")
                await self._stop_watching()
                await self.start()
        await self.stop()
        await self.follower.leave()

    async def _stop_watching(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])
            self._supervision = None


def _authorities(settings: Settings) -> str:
    """The file of certificate authorities for https targets. Raises ProxyStartFailed."""
    if not settings.upstream_ca or Path(settings.upstream_ca).is_file():
        return settings.upstream_ca
    found = listening.system_authorities()  # The hub's machine keeps its own elsewhere.
    if not found or settings.upstream_cert:
        raise ProxyStartFailed(
            f"There is no {settings.upstream_ca} here. Put the hub's certificate authorities in that place."
        )
    return found


class ProxyCommand(Application):
    """Start one more proxy for a hub that shares its routes."""

    name = "marimohub-proxy"
    version = __version__
    description = """Start one more proxy for a hub that shares its routes.

    Usage: marimohub proxy --share DIR [--listen URL]

    The hub needs c.EnvoyProxy.share_dir = "DIR". Ends on SIGTERM, and Envoy with it.
    """
    examples = "    marimohub proxy --share /srv/share --listen http://0.0.0.0:8000"
    aliases = {
        "share": "Replica.share_dir",
        "listen": "Replica.listen",
        "data-dir": "Replica.data_dir",
        "config": "ProxyCommand.config_file",
        "log-level": "Application.log_level",
    }
    flags: dict[str, Any] = {}
    classes = [Replica]

    config_file = Unicode(help="Configuration file for c.EnvoyProxy and c.Replica. Default: none.").tag(config=True)

    _end: Callable[[], Any] = sys.exit  # until the loop runs

    @default("log_level")
    def _log_level_default(self) -> int:
        return logging.INFO

    def start(self) -> None:
        given = copy.deepcopy(self.config)
        if self.config_file:
            self.load_config_file(self.config_file)
            self.update_config(given)
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        try:
            with ThreadPoolExecutor(1) as thread:  # the hub's loop runs in this thread already
                thread.submit(asyncio.run, self._run(ended)).result()
        except ProxyError as error:
            print(f"marimohub: {error}", file=sys.stderr)
            sys.exit(1)

    async def _run(self, ended: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        app = types.SimpleNamespace(subdomain_host="", data_dir="marimohub-proxy")
        proxy = Replica(config=self.config, app=app, log=self.log)
        if not proxy.share_dir:
            raise ProxyStartFailed("Say with --share which folder the hub shares (its c.EnvoyProxy.share_dir).")
        self._end = lambda: loop.call_soon_threadsafe(ended.set)
        if await self._wait_for_hub(Path(proxy.share_dir), ended):
            await proxy.run(ended)

    async def _wait_for_hub(self, share: Path, ended: asyncio.Event) -> bool:
        """Whether the hub has written its settings; False if we are to end before."""
        said = False
        while not await asyncio.to_thread((share / SETTINGS_FILE).is_file):
            if not said:
                said = True
                self.log.warning("There is no %s in %s yet: waiting for the hub", SETTINGS_FILE, share)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _WAIT_SECONDS)
            if ended.is_set():
                return False
        return True
