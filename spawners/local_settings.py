"""What the administrator decides for all servers on the hub's machine, and whether this machine can do it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from traitlets import CaselessStrEnum, Integer, List, TraitError, Tuple, Unicode, validate

from marimohub.spawners import confinement
from marimohub.spawners.confinement import CannotConfine, Rules
from marimohub.spawners.identities import Identities, IdentityError
from marimohub.spawners.marimo import MarimoSpawner
from marimohub.spawners.pool import Pool
from marimohub.spawners.sandbox import ports as parse_ports


class LocalSettings(MarimoSpawner):
    """The half of LocalMarimoSpawner that knows no single server."""

    sandbox = CaselessStrEnum(
        ["on", "off"],
        "on",
        help="""Whether notebooks are confined. "on": the hub does not start on a machine that cannot do it. "off":
        notebooks can reach whatever the user can who runs them.""",
    ).tag(config=True)
    preload = List(
        Unicode(),
        help="""Modules that all servers and notebooks share in memory and need not load themselves, beside marimo,
        DuckDB and what those need. A module that starts threads, as numpy and polars do, cannot be among them.""",
    ).tag(config=True)
    port_range = Tuple(
        Integer(),
        Integer(),
        default_value=(20000, 29999),
        help="First and last TCP port that servers listen on. Unless `outbound_ports` has them, no notebook can "
        "connect to other people's servers.",
    ).tag(config=True)
    outbound_ports = Unicode(
        "1-9999",
        help='TCP ports that notebooks may connect to on any machine, such as "443, 5432". Empty: the hub alone, and '
        "no UDP, so no names can be looked up either.",
    ).tag(config=True)
    extra_read = List(Unicode(), help="Files and folders that every notebook may read, beside the usual ones.").tag(
        config=True
    )
    extra_write = List(
        Unicode(), help="Files, folders and devices that every notebook may read and change, such as /dev/nvidia0."
    ).tag(config=True)
    uid_range = Tuple(
        Integer(),
        Integer(),
        default_value=(80000, 99999),
        help="User ids that people's servers get where the hub runs as root, one for each person. The first number is "
        "the group of all of them.",
    ).tag(config=True)
    pool: ClassVar[Pool | None] = None

    @validate("port_range")
    def _check_port_range(self, proposal: Any) -> Any:
        low, high = proposal.value
        if not 1024 <= low <= high <= 65535:
            raise TraitError("LocalMarimoSpawner.port_range must be two TCP ports from 1024 to 65535, in order.")
        return proposal.value

    @validate("outbound_ports")
    def _check_outbound_ports(self, proposal: Any) -> Any:
        try:
            parse_ports(proposal.value)
        except ValueError as error:
            raise TraitError(f"LocalMarimoSpawner.outbound_ports: {error}") from error
        return proposal.value

    @classmethod
    def check(cls, config: Any, secrets: Collection[Path]) -> None:
        """See whether servers can be run as the configuration asks. Blocks: it asks other interpreters.

        Args:
            secrets: files and folders of the hub's, which no server may read.
        Raises:
            CannotConfine: a sentence for the terminal.
        """
        spawner = cls(config=config)
        confined = spawner.sandbox == "on"
        found = spawner.configured_profiles()
        interpreters = sorted({sys.executable, *(profile.python for profile in found if profile.python)})
        if confined:
            spawner.rules.check(interpreters, secrets)
        try:
            mounted = spawner.rules.mounted(interpreters) if confined else None
            problem = spawner.identities.problem(interpreters, mounted=mounted)
        except IdentityError as error:
            problem = error.message
        if problem is not None:
            raise CannotConfine(problem)

    @classmethod
    def _pool(cls, log: Any) -> Pool:
        if LocalSettings.pool is None:
            LocalSettings.pool = Pool(log)
        return LocalSettings.pool

    @property
    def identities(self) -> Identities:
        """Raises IdentityError: the range cannot be used."""
        return self._pool(self.log).identities(Path(self.users_dir).absolute(), tuple(self.uid_range))

    @property
    def rules(self) -> Rules:
        return Rules(self.extra_read, self.extra_write, self.outbound_ports, tuple(self.port_range))

    def describe_confinement(self) -> dict[str, Any]:
        """See the base."""
        own_users = os.geteuid() == 0
        controllers = self._pool(self.log).controllers
        return confinement.describe(self.sandbox, self.rules, controllers, own_users)
