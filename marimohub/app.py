"""The hub: JupyterHub with notebooks, locks and snapshots. Traits and wiring, nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import sys
import time
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlparse

from jupyterhub import app as jupyterhub_app
from jupyterhub import dbutil, orm
from jupyterhub.utils import maybe_future, url_path_join
from tornado.ioloop import PeriodicCallback
from traitlets import CaselessStrEnum, Dict, Float, Integer, Unicode, default, validate

from marimohub import __version__, spawning
from marimohub.auth import first_run, roles
from marimohub.auth.accounts import AccountAuthenticator
from marimohub.commands import Init, NewToken, UpgradeDB
from marimohub.database import Database, DatabaseNewer, DatabaseOutdated, sqlite_pragmas
from marimohub.governance import store as policy_store
from marimohub.governing import Governor
from marimohub.handlers import HubServices, overrides, routes
from marimohub.handlers.events import Broadcaster
from marimohub.notebooks import NotebookStore
from marimohub.permissions import ago
from marimohub.personal import PersonalSnapshots, Place
from marimohub.policy_commands import PolicyCommands
from marimohub.snapshots import source
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import SnapshotError
from marimohub.snapshots.masked import Limits
from marimohub.spawners.local import LocalMarimoSpawner
from marimohub.spawners.marimo import MarimoSpawner
from marimohub.startup import (
    StartupError,
    build_sample_warehouse,
    cancel_at_signals,
    check_port_free,
    masking_key,
    prepare_data_dir,
    raise_file_limit,
    take_hub_lock,
)
from marimohub.subjects import subject_of

_HERE = Path(__file__).parent
COLLECT_INTERVAL = 300.0  # seconds
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class MarimoHub(jupyterhub_app.JupyterHub):
    """A multi-user hub for marimo notebooks."""

    name = "marimohub"
    version = __version__
    description = """Start a hub where people sign in, and edit marimo notebooks under a lock, each in a server of
    their own, against a read-only snapshot of the team's DuckDB warehouse."""
    examples = """
        marimohub init                       write a commented marimohub_config.py
        marimohub                            start the hub on http://127.0.0.1:8000
        marimohub --warehouse=team.duckdb    with a warehouse of your own
        marimohub token ann                  an API token for a user
        marimohub policy draft               a first policy for the warehouse
        marimohub upgrade-db                 migrate the database after an update
    """
    aliases = Dict(
        {
            **jupyterhub_app.aliases,
            "data-dir": "MarimoHub.data_dir",
            "warehouse": "MarimoHub.warehouse",
        }
    )
    subcommands = {
        "init": (Init, "Write a commented configuration file"),
        "token": (NewToken, "Generate an API token for a user"),
        "proxy": ("marimohub.proxy.replica.ProxyCommand", "Start one more proxy for a hub that shares its routes"),
        "policy": (PolicyCommands, "Check, apply, and explain the policy of who sees which data"),
        "upgrade-db": (UpgradeDB, "Migrate the hub's database to this version"),
    }

    data_dir = Unicode(
        "marimohub-data",
        help="Folder for all of the hub's state: database, notebooks, snapshots, users' files. Created with mode 0700.",
    ).tag(config=True)
    warehouse = Unicode(
        "",
        help="Path of the team's DuckDB warehouse. Never opened by the hub, only copied. Empty: a sample is made.",
    ).tag(config=True)
    lock_ttl = Integer(900, min=1, help="How long a lock lives after its last heartbeat, in seconds.").tag(config=True)
    heartbeat_interval = Integer(
        60, min=1, help="How often an open notebook renews its lock, in seconds. Keep it well below lock_ttl."
    ).tag(config=True)
    default_role = CaselessStrEnum(
        ["viewer", "editor", "none"],
        "viewer",
        help="The role of everybody who may sign in and is in none of the groups viewers, editors, admins.",
    ).tag(config=True)
    snapshot_deadline = Float(60.0, help="How long to try for a consistent copy of the warehouse, in seconds.").tag(
        config=True
    )
    snapshot_memory_limit = Unicode(
        "2GB", help='Memory that a process which builds snapshots may use for data, as DuckDB takes it: "2GB".'
    ).tag(config=True)
    snapshot_threads = Integer(
        os.cpu_count() or 2, min=1, help="Threads of a process that builds snapshots. It runs with low priority."
    ).tag(config=True)
    snapshot_timeout = Float(1800.0, help="How long building one snapshot may take, in seconds.").tag(config=True)
    snapshot_max_age = Float(7 * 86400.0, help="Snapshots that nobody used for this long are removed, in seconds.").tag(
        config=True
    )
    snapshot_cache_gb = Integer(
        50, min=1, help="Beyond this size, the longest unused snapshots are removed; never one in use. In GiB."
    ).tag(config=True)
    governance = CaselessStrEnum(
        ["policy", "off"],
        "policy",
        help="""Whether snapshots hold what the policy lets each person see, or everything ("off"). With "policy" and no
        policy applied yet, nobody sees any data.""",
    ).tag(config=True)

    _hub_lock: IO[str] | None = None

    if TYPE_CHECKING:  # JupyterHub's traits carry no types
        custom_scopes: dict[str, Any]
        extra_user_scopes: set[str]
        handlers: list[tuple[Any, ...]]
        load_roles: list[dict[str, Any]]
        template_paths: list[str]
        template_vars: dict[str, Any]
        tornado_settings: dict[str, Any]

    # JupyterHub's settings with other defaults

    config_file = Unicode("marimohub_config.py", help="The config file to load").tag(config=True)
    ip = Unicode("127.0.0.1", help="The address that people reach the hub on; empty for all.").tag(config=True)

    @default("bind_url")
    def _bind_url_default(self) -> str:
        return ("https" if self.ssl_cert else "http") + "://127.0.0.1:8000"

    @default("db_url")
    def _db_url_default(self) -> str:
        return f"sqlite:///{self.data_path / 'marimohub.sqlite'}"

    @default("cookie_secret_file")
    def _cookie_secret_file_default(self) -> str:
        return str(self.data_path / "cookie_secret")

    @default("authenticator_class")
    def _marimohub_authenticator_default(self) -> type:
        return AccountAuthenticator

    @default("spawner_class")
    def _spawner_class_default(self) -> type:
        return LocalMarimoSpawner

    @default("proxy_class")
    def _proxy_class_default(self) -> type:
        from marimohub.proxy import EnvoyProxy  # not loaded by a hub that uses another

        return EnvoyProxy

    @default("default_url")
    def _default_url_default(self) -> str:
        return url_path_join(self.hub_prefix, "notebooks")

    @default("redirect_to_server")
    def _redirect_to_server_default(self) -> bool:
        return False

    @validate("db_url")
    def _check_db_url(self, proposal: Any) -> str:
        if str(proposal.value).endswith(":memory:"):
            raise StartupError("MarimoHub keeps people's work, so its database must be a file or a PostgreSQL URL.")
        return str(proposal.value)

    @validate("snapshot_memory_limit")
    def _check_memory_limit(self, proposal: Any) -> str:
        if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[KMGT]i?B", str(proposal.value)):
            raise StartupError(
                f'MarimoHub.snapshot_memory_limit cannot be "{proposal.value}". Give a number with a unit: "2GB".'
            )
        return str(proposal.value)

    @property
    def data_path(self) -> Path:
        """The data folder, absolute."""
        return Path(self.data_dir).expanduser().absolute()

    @property
    def warehouse_file(self) -> Path:
        """The team's warehouse, or the sample, absolute."""
        own = Path(self.warehouse).expanduser().absolute()
        return own if self.warehouse else self.data_path / "sample_warehouse.duckdb"

    def _secret_files(self) -> list[Path]:
        """What no notebook server may read."""
        configuration = [Path(file) for file in self.loaded_config_files]
        sqlite = [Path(self.db_url.partition("///")[2])] if self.db_url.startswith("sqlite:///") else []
        return [self.data_path, self.warehouse_file, *configuration, *sqlite]

    # start-up

    def load_config_file(self, filename: str, path: Any = None) -> None:
        """As in traitlets, but an unusable configuration is one sentence, not a stack trace."""
        try:
            super().load_config_file(filename, path)
        except SyntaxError as error:
            where = str(error.filename or Path(filename).absolute())
            where += f", line {error.lineno}" if error.lineno else ""
            raise StartupError(f"{where}: {error.msg}. Correct the configuration.") from error
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(
                f"The configuration {Path(filename).absolute()} cannot be used: {type(error).__name__}: {error}"
            ) from error

    def init_logging(self) -> None:
        """As JupyterHub, without the lines that put people's session ids into the log."""
        super().init_logging()
        logging.getLogger("tornado.application").addFilter(lambda record: "new xsrf cookie" not in str(record.msg))

    def init_secrets(self) -> None:
        """The first step that needs the data folder: make it ours before anything is read from it."""
        os.umask(0o077)
        raise_file_limit()
        prepare_data_dir(self.data_path, own_uids=spawning.own_uids(self.spawner_class))
        self._hub_lock = take_hub_lock(self.data_path)
        public = urlparse(self.hub_bind_url) if self.hub_bind_url else None
        if public is None:
            check_port_free(self.hub_ip, self.hub_port, "JupyterHub.hub_port")
        elif public.port:
            check_port_free(public.hostname or "", public.port, "JupyterHub.hub_bind_url")
        super().init_secrets()

    def init_db(self) -> None:
        """JupyterHub's tables and ours, in one database."""
        sqlite = self.db_url.startswith("sqlite")
        if sqlite:
            # WAL is a property of the file, the busy timeout of each connection
            self.db_kwargs.setdefault("pool_events", [(sqlite_pragmas, "connect")])
        own = Database(self.db_url)
        try:
            own.prepare(upgrade=self.upgrade_db)
        except (DatabaseNewer, DatabaseOutdated) as error:
            own.close()
            raise StartupError(str(error)) from error
        self.database = own
        super().init_db()

    async def init_role_creation(self) -> None:
        """Our scopes and roles beside those of the configuration."""
        self.custom_scopes = {**roles.SCOPES, **self.custom_scopes}
        if self.default_role != "none":
            self.extra_user_scopes = {*self.extra_user_scopes, roles.ROLE_SCOPES[self.default_role]}
        configured = {role["name"] for role in self.load_roles}
        self.load_roles = [*self.load_roles, *(r for r in roles.load_roles() if r["name"] not in configured)]
        await super().init_role_creation()
        admin = orm.Role.find(self.db, "admin")
        admin.scopes = roles.admin_scopes(admin.scopes)
        self.db.commit()

    async def init_users(self) -> None:
        """As JupyterHub; attributes of people who went while no hub was there to see it go, too."""
        await spawning.check(self.spawner_class, self.config, self._secret_files())
        await super().init_users()
        known = {name for (name,) in self.db.query(orm.User.name)}
        for name in await self.database.write(policy_store.forget_all_but, known):
            self.log.warning("Removed the attributes of %s, who is not a user of this hub.", name)

    def init_tornado_settings(self) -> None:
        """Templates, and what our handlers work with."""
        # the administrator's templates go before ours, ours before JupyterHub's, which super() appends
        stock = self._template_paths_default()[0]
        self.template_paths = [*(p for p in self.template_paths if p != stock), str(_HERE / "templates")]
        warehouse = self._warehouse_path()
        self.store = NotebookStore(self.database, self.data_path / "notebooks")
        group = spawning.snapshot_group(self.spawner_class, self.config)
        self.snapshots = self.snapshot_cache(warehouse, group=group)
        self.governor = Governor(self.database, time.time, enabled=self.governance == "policy")
        make_folder = spawning.folder_maker(self.spawner_class, self.config)
        self.personal = PersonalSnapshots(self.database, self.snapshots, self.governor, prepare=make_folder)
        self._apply_sample_policy()
        for repair in self.store.reconcile():
            self.log.warning("Repaired after an interrupted save: %s", repair)
        headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
        self.tornado_settings = {
            "headers": headers,
            "marimohub_events": Broadcaster(),
            "marimohub_governor": self.governor,
            "marimohub_before_start": self._before_start,
            "marimohub": HubServices(
                database=self.database,
                store=self.store,
                snapshots=self.snapshots,
                personal=self.personal,
                clock=time.time,
                lock_ttl=float(self.lock_ttl),
                workspace="default",
            ),
            **self.tornado_settings,
        }
        super().init_tornado_settings()
        static = url_path_join(self.hub_prefix, "marimohub-static/")
        version = f"{__version__}-{int(time.time())}"
        functions = {
            "mh_static": lambda name: f"{static}{name}?v={version}",
            "mh_ago": lambda iso: ago(iso, time.time()),
            "marimohub_version": __version__,
        }
        for environment in ("jinja2_env", "jinja2_env_sync"):
            self.tornado_settings[environment].globals.update(functions)

    def init_handlers(self) -> None:
        """Our pages and API before JupyterHub's, whose list ends in catch-alls."""
        super().init_handlers()
        accounts = isinstance(self.authenticator, AccountAuthenticator)
        ours = self.add_url_prefix(self.hub_prefix, [*routes(_HERE / "static", accounts=accounts), *overrides()])
        bare = self.add_url_prefix(self.base_url, routes(None, accounts=False))
        self.handlers = [*ours, *bare, *self.handlers]

    def _apply_sample_policy(self) -> None:
        """The sample warehouse comes with a policy, unless an administrator has applied one."""
        if self.warehouse or self.governance == "off":
            return
        with self.database.transaction() as session:
            workspace_id = self.store.workspaces.find(session, "default")
            if policy_store.current_revision(session, workspace_id) == 0:
                text = resources.files("marimohub.config").joinpath("sample_policy.yaml").read_text("utf-8")
                policy_store.apply(
                    session, workspace_id, text, author=self.name, comment="The sample's", expected=0, now=time.time()
                )

    def snapshot_cache(self, warehouse: Path, *, collects: bool = True, group: int | None = None) -> SnapshotCache:
        """The cache of this configuration, also for the command line, which removes nothing and links nothing."""
        return SnapshotCache(
            self.data_path / "snapshots",
            warehouse,
            masking_key=masking_key(self.data_path),
            deadline=self.snapshot_deadline,
            limits=Limits(self.snapshot_memory_limit, self.snapshot_threads, self.snapshot_timeout),
            max_age=self.snapshot_max_age,
            max_bytes=self.snapshot_cache_gb * 1024**3,
            collects=collects,
            group=group,
        )

    async def _before_start(self, user: Any) -> None:
        """Called by our spawners: whatever starts a server, it finds no snapshot of a policy that no longer applies."""
        workspace_id = await self.database.read(self.store.workspaces.find, "default")
        await self.personal.ensure(Place(workspace_id, subject_of(user, {}), user.spawner.snapshot_folder))

    def _running_folders(self) -> list[Path]:
        """Snapshot folders of people whose server runs, or may be running."""
        return [
            spawner.snapshot_folder
            for user in self.users.values()
            for spawner in user.spawners.values()
            if spawner.active and hasattr(spawner, "snapshot_folder")
        ]

    async def _collect_snapshots(self) -> None:
        try:
            await asyncio.to_thread(self.snapshots.collect, self._running_folders())
        except OSError:
            self.log.exception("Old snapshots could not be removed")

    def _warehouse_path(self) -> Path:
        path = self.warehouse_file
        if not self.warehouse and not path.exists():
            build_sample_warehouse(path, lambda line: print(line, flush=True))
        try:
            source.version(path)
        except SnapshotError as error:
            raise StartupError(f"The warehouse cannot be used: {error.message}") from error
        return path

    def init_hub(self) -> None:
        """Settings that the spawner shares with the hub, before the first spawner is made."""
        spawner_config = self.config.setdefault("MarimoSpawner", type(self.config)())
        spawner_config.setdefault("users_dir", str(self.data_path / "users"))
        spawner_config.setdefault("heartbeat_interval", self.heartbeat_interval)
        super().init_hub()

    async def start(self) -> None:
        """Start, then say on the terminal where the hub is and who may come in."""
        await super().start()
        if self.subapp or self.generate_config or self.generate_certs:
            return
        if issubclass(self.spawner_class, LocalMarimoSpawner):
            await self.spawner_class.warm_up(self)
        await self._collect_snapshots()
        PeriodicCallback(self._collect_snapshots, COLLECT_INTERVAL * 1000).start()
        # what was loaded until here stays for good: full collections, which stop all requests, need not look at it
        gc.freeze()
        self._warn_about_exposure()
        workspace_id = await self.database.read(self.store.workspaces.find, "default")
        revision = await self.database.read(policy_store.current_revision, workspace_id)
        if self.governance == "policy" and not revision:
            self.log.warning("No policy has been applied yet, so nobody sees any data: see the page Data policy.")
        if isinstance(self.authenticator, AccountAuthenticator) and not self.authenticator.has_administrator():
            token = await self.database.write(first_run.issue, now=time.time())
            url = url_path_join(self._public_url(), "hub/setup") + f"?token={token}"
            print(
                "\n  This hub has no administrator yet. Open this link within an hour to become it"
                f"\n  (it works once; the next start of the hub prints a new one):\n\n    {url}\n",
                flush=True,
            )

    def _public_url(self) -> str:
        if self.public_url:
            return str(self.public_url)
        url = urlparse(self.bind_url)
        host = url.hostname or "127.0.0.1"
        host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
        return f"{url.scheme}://{host if ':' not in host else f'[{host}]'}:{url.port or 8000}{self.base_url}"

    def _warn_about_exposure(self) -> None:
        host = urlparse(self.bind_url).hostname or ""
        print(f"\n  MarimoHub {__version__} is running at {self._public_url()}", flush=True)
        # with a public URL, a proxy in front lets others in and sees to TLS
        if host in LOOPBACK and not self.public_url:
            print(
                "  Only this machine can reach it. To let others in, set JupyterHub.bind_url to an address of\n"
                "  it, with JupyterHub.ssl_cert and JupyterHub.ssl_key (or TLS in front); see docs/going-public.md.",
                flush=True,
            )
        elif not self.ssl_cert and not self.public_url.startswith("https:"):
            self.log.warning(
                "People's passwords cross the network in clear text: the hub listens on %s without TLS. "
                "Set JupyterHub.ssl_cert and JupyterHub.ssl_key, or put a TLS proxy in front.",
                host or "all addresses",
            )
        if self.governance == "off":
            self.log.warning("Governance is off: everybody who may edit sees the whole warehouse.")
        spawning.say_what_holds(self.spawner_class, self.config, self.log)
        if not issubclass(self.spawner_class, MarimoSpawner):
            self.log.warning("%s is not a marimo spawner; Open will not work.", self.spawner_class.__name__)

    async def cleanup(self) -> None:
        """As JupyterHub, and end what was kept warm for servers."""
        await super().cleanup()
        if issubclass(self.spawner_class, LocalMarimoSpawner):
            await self.spawner_class.close()

    async def launch_instance_async(self, argv: Any = None) -> None:
        """As JupyterHub, but what stops the start is a sentence on the terminal, and a new proxy does not stay."""
        try:
            await self.initialize(argv)
            if not self.subapp:
                cancel_at_signals()  # until JupyterHub's handlers, which start() sets last
            await self.start()
        except asyncio.CancelledError:
            await self._end_new_proxy()
            print("marimohub: Ended before it had started.", file=sys.stderr, flush=True)
            self.exit(1)
        except SystemExit as ending:
            if ending.code:
                await self._end_new_proxy()
            raise
        except Exception as error:
            if isinstance(error, StartupError):
                message = str(error)
            elif isinstance(error, OSError):
                self.log.debug("Failed to start", exc_info=True)
                message = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
            else:
                self.log.exception("Failed to start")
                message = f"{type(error).__name__}: {error}"
            await self._end_new_proxy()
            print(f"marimohub: {message}", file=sys.stderr, flush=True)
            self.exit(1)

    async def _end_new_proxy(self) -> None:
        """End a proxy that this start brought up; one that served people before goes on."""
        proxy = getattr(self, "proxy", None)
        if proxy is not None and proxy.should_start and getattr(proxy, "adopted", None) is False:
            await maybe_future(proxy.stop())


def upgrade(hub: MarimoHub) -> None:
    """Migrate JupyterHub's tables and ours (for `marimohub upgrade-db`)."""
    prepare_data_dir(hub.data_path)
    dbutil.upgrade_if_needed(hub.db_url, log=hub.log, db_kwargs=hub.db_kwargs)
    database = Database(hub.db_url)
    try:
        database.prepare(upgrade=True)
    except DatabaseNewer as error:
        raise StartupError(str(error)) from error
    finally:
        database.close()
