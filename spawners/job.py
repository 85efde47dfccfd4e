"""What the hub tells the process that starts and guards one server: plain data, sent as JSON over a socket.

Standard library only: the spawn server and the guards hold this module and little else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MAX_JOB_BYTES = 1 << 20
KEEP = b"keep"  # what the hub says to a guard once it has written the server down


class BadJob(Exception):
    """What came over the socket is no job."""


@dataclass(frozen=True)
class Identity:
    """Whom a server runs as. `groups` are supplementary; everything the hub has besides is dropped."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one server with everything it starts may use; None is no limit.

    Attributes:
        memory: bytes.
        cpu: cores, for example 1.5.
        processes: processes and threads at one time.
        disk: bytes in the person's folders (home, notebooks, temp).
    """

    memory: int | None = None
    cpu: float | None = None
    processes: int | None = None
    disk: int | None = None


@dataclass(frozen=True)
class Sandbox:
    """What a server may reach. Paths are absolute; what does not exist is left out. Ports are inclusive ranges.

    Attributes:
        read: files and folders that may be read and executed, with everything below.
        write: folders (or files) that may be read and changed, with everything below.
        devices: device files that may be read, written and controlled (ioctl).
        shared_memory: folders where files may be made, opened by name and removed, but not listed (/dev/shm).
        connect: TCP ports that may be connected to; None: all.
        bind: TCP ports that may be listened on; None: all. The server's own socket is handed to it and needs none.
        datagrams: whether UDP and other sockets but TCP and Unix ones may be made.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    shared_memory: tuple[str, ...] = ()
    connect: tuple[tuple[int, int], ...] | None = None
    bind: tuple[tuple[int, int], ...] | None = ()
    datagrams: bool = True


@dataclass(frozen=True)
class Job:
    """One server.

    Attributes:
        name: for messages and logs: the user's name, with the server's if it has one.
        argv: the program, or None: run `marimohub.singleuser` in the forked process.
        env: the environment, whole, without secrets: those come over a pipe of their own.
        folder: the working directory.
        temp: the person's temp folder, made empty before and after.
        disk_folders: what counts for `limits.disk`.
        identity: None: the hub's own user.
        sandbox: None: not confined.
        cgroup: a cgroup v2 folder that the hub made for this server, or None.
        grace: seconds between SIGTERM and SIGKILL when the server is stopped.
    """

    name: str
    env: dict[str, str]
    folder: str
    temp: str
    argv: tuple[str, ...] | None = None
    disk_folders: tuple[str, ...] = ()
    identity: Identity | None = None
    sandbox: Sandbox | None = None
    limits: Limits = field(default_factory=Limits)
    cgroup: str | None = None
    grace: float = 5.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        """Raises BadJob."""
        try:
            found = json.loads(text)
            identity, sandbox = found.pop("identity"), found.pop("sandbox")
            limits = Limits(**found.pop("limits"))
            found["argv"] = None if found["argv"] is None else tuple(found["argv"])
            found["disk_folders"] = tuple(found["disk_folders"])
            return cls(
                **found,
                limits=limits,
                identity=identity and Identity(identity["uid"], identity["gid"], tuple(identity["groups"])),
                sandbox=sandbox and _sandbox(sandbox),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadJob(f"not a job: {error}") from error


def _sandbox(found: dict[str, Any]) -> Sandbox:
    ports = {
        name: None if found[name] is None else tuple((int(low), int(high)) for low, high in found[name])
        for name in ("connect", "bind")
    }
    paths = {f.name: tuple(found[f.name]) for f in fields(Sandbox) if f.name not in (*ports, "datagrams")}
    parts: dict[str, Any] = {**paths, **ports}
    return Sandbox(datagrams=bool(found["datagrams"]), **parts)
