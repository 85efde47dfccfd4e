"""What the servers of this machine may reach, what limits them, and what an administrator has to know of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marimohub.spawners import limits as limits_module
from marimohub.spawners import sandbox as kernel
from marimohub.spawners.job import Limits, Sandbox
from marimohub.spawners.ports import overlap

OFF = (
    "The sandbox is off: notebooks can read and change what the user who runs them can. Give accounts only to people "
    "whom you would give a shell."
)


_ALL = Limits(memory=1, cpu=1, processes=1, disk=1)  # how each would be held if it were set


class CannotConfine(Exception):
    """Servers cannot be confined as the configuration asks; the text says what to do."""


@dataclass(frozen=True)
class Places:
    """One person's folders: `own` may be read and changed, `snapshot` read."""

    own: tuple[Path, ...]
    snapshot: Path


_NOBODYS = Places((), Path("/nonexistent"))


@dataclass(frozen=True)
class Rules:
    """The part of the configuration that decides what servers may reach.

    Attributes:
        outbound: TCP ports that may be connected to, beside the hub's; "": none, and no UDP.
        servers: the ports on which people's servers listen.
    """

    extra_read: Sequence[str]
    extra_write: Sequence[str]
    outbound: str
    servers: tuple[int, int]

    def sandbox(self, interpreter: str, places: Places, api_url: str, port: int | None) -> Sandbox:
        """One server's. Blocks when an interpreter is used for the first time.

        Args:
            api_url: the hub's, as the server is told it.
            port: where a custom command listens; None: a socket is handed to it.
        Raises:
            CannotConfine
        """
        try:
            paths = kernel.standard_paths(interpreter, self.extra_read, self.extra_write)
            connect = self.connect(api_url)
        except (kernel.NoInterpreter, ValueError) as error:
            raise CannotConfine(str(error)) from error
        return Sandbox(
            read=(*paths.read, str(places.snapshot)),
            write=(*paths.write, *map(str, places.own)),
            devices=paths.devices,
            shared_memory=paths.shared_memory,
            connect=connect,
            bind=() if port is None else ((port, port),),
            datagrams=bool(self.outbound.strip(", ")),
        )

    def connect(self, api_url: str) -> kernel.Ranges:
        """The TCP ports that servers may connect to: the configured ones, and the hub's."""
        url = urlsplit(api_url)
        hub = url.port or (443 if url.scheme == "https" else 80)
        return (*kernel.ports(self.outbound), (hub, hub))

    def check(self, interpreters: Iterable[str], secrets: Iterable[Path]) -> None:
        """See before the first start whether all of it makes sense on this machine. Blocks.

        Args:
            secrets: files and folders of the hub's, which no server may read.
        Raises:
            CannotConfine
        """
        reason = kernel.unsupported()
        if reason is not None:
            raise CannotConfine(
                f"Notebook servers cannot be confined here. {reason} To run them unconfined, for people whom you would "
                'give a shell, set c.LocalMarimoSpawner.sandbox = "off".'
            )
        for interpreter in interpreters:
            sandbox = self.sandbox(interpreter, _NOBODYS, "http://127.0.0.1", None)
            for secret in secrets:
                exposing = kernel.exposing((*sandbox.read, *sandbox.write), secret)
                if exposing is not None:
                    raise CannotConfine(
                        f"Notebook servers may read {exposing}, and what is the hub's alone is in it: {secret}. Put "
                        "that somewhere else, or remove the path from LocalMarimoSpawner.extra_read or extra_write."
                    )

    def mounted(self, interpreters: Iterable[str]) -> list[str] | None:
        """What servers see of the file system beside their own folders, if they see it through mounts. Blocks.

        Raises:
            CannotConfine
        """
        if not kernel.can_view():
            return None
        made = [self.sandbox(interpreter, _NOBODYS, "http://127.0.0.1", None) for interpreter in interpreters]
        return [path for one in made for path in (*one.read, *one.write)]

    def problems(self, own_users: bool) -> list[str]:
        """What stays open though servers are confined: sentences."""
        outbound = kernel.ports(self.outbound)
        found = kernel.missing(Sandbox(connect=outbound, datagrams=bool(outbound)), own_user=own_users)
        if overlap(self.servers, outbound):
            found.append(
                "Notebooks can connect to other people's servers, which ask them to sign in: leave the ports of "
                "LocalMarimoSpawner.port_range out of outbound_ports to close them."
            )
        return found


def describe(sandbox: str, rules: Rules, controllers: Collection[str], own_users: bool) -> dict[str, Any]:
    """For the Admin page; see MarimoSpawner.describe_confinement."""
    text, problems = "", [OFF]
    if sandbox == "on":
        whom = "a user id of their own each" if own_users else "the hub's user id"
        network = f"TCP ports {rules.outbound}" if rules.outbound else "the hub alone"
        text = (
            f"Servers run with {whom}. Each reads and changes its own person's folders, reads its own snapshot, Python "
            f"and the system's libraries, and connects to {network}."
        )
        problems = rules.problems(own_users)
    return {
        "sandbox": sandbox,
        "text": text,
        "problems": problems,
        "own_users": own_users,
        "landlock_abi": kernel.abi() or None,
        "limits": limits_module.in_force(_ALL, controllers, own_uid=own_users),
    }
