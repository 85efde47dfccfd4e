"""What the launcher is told by its spawner, read once from the environment."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Code in a notebook inherits the environment of this process, so what would let it act as the server on the hub
# is taken out before marimo starts anything.
SECRETS = ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "CONFIGPROXY_AUTH_TOKEN", "JUPYTERHUB_CRYPT_KEY")

LISTEN, SECRET, GUARD = "MARIMOHUB_LISTEN_FD", "MARIMOHUB_SECRETS_FD", "MARIMOHUB_GUARD_FD"


class BadEnvironment(Exception):
    """The environment is not that of a JupyterHub single-user server. The text says what is missing."""


def move_secrets(environ: MutableMapping[str, str] = os.environ) -> None:
    """If there are secrets in the environment, run this program anew in its place, with them in a memory file.

    What a process got as its environment when it was executed stays readable in /proc/<pid>/environ, also in what it
    forks, and kernels are forked from this program.
    """
    secrets = {name: environ.pop(name) for name in SECRETS if name in environ}
    if not secrets or SECRET in environ:
        return
    file = os.memfd_create("secrets", 0)
    with open(file, "w", closefd=False) as writer:
        json.dump(secrets, writer)
    os.lseek(file, 0, os.SEEK_SET)
    environ[SECRET] = str(file)
    # -P: what lies in the folder with the notebooks is not this program's to import
    os.execve(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]], dict(environ))  # noqa: S606 - itself


@dataclass
class Handed:
    """The descriptors that the spawner has handed over. None: there is none."""

    listener: socket.socket | None
    guard: int | None
    _secrets: int | None

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Handed:
        """Read their numbers, remove them from `environ`, and keep them out of child processes.

        Raises:
            BadEnvironment: a number is not that of an open descriptor.
        """
        listener = _descriptor(environ, LISTEN)
        return cls(
            None if listener is None else _listening(listener),
            guard=_descriptor(environ, GUARD),
            _secrets=_descriptor(environ, SECRET),
        )

    def read_secrets(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Put the secrets where `Settings.take` looks: into `environ`, from where it removes them.

        Changes of `os.environ` do not show in /proc/<pid>/environ. Raises BadEnvironment.
        """
        if self._secrets is None:
            return
        try:
            with open(self._secrets, "rb") as file:
                found = json.loads(file.read())
            environ.update({str(name): str(value) for name, value in found.items()})
        except (OSError, ValueError, AttributeError) as error:
            raise BadEnvironment(f"The secrets that ${SECRET} leads to cannot be read: {error}.") from error
        finally:
            self._secrets = None


def _descriptor(environ: MutableMapping[str, str], name: str) -> int | None:
    text = environ.pop(name, "")
    if not text:
        return None
    try:
        number = int(text)
        os.set_inheritable(number, False)
    except (ValueError, OSError):
        raise BadEnvironment(f"${name} is not the number of an open descriptor: {text!r}.") from None
    return number


def _listening(number: int) -> socket.socket:
    try:
        found = socket.socket(fileno=number)
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise BadEnvironment(f"${LISTEN} is not a socket to serve on: {error}.") from error
    return found


@dataclass(frozen=True)
class Settings:
    """One server's settings. Times are seconds, `prefix` ends in a slash and is percent-encoded as in URLs."""

    user: str
    server_name: str
    prefix: str
    host: str
    port: int
    api_url: str
    activity_url: str
    public_url: str
    folder: Path
    workspace: str
    heartbeat_interval: float
    activity_interval: float
    api_token: str = field(repr=False)
    snapshot: Path | None = None

    @property
    def base_url(self) -> str:
        """The prefix as a server sees it in a request's path: decoded, no slash at the end."""
        return unquote(self.prefix).rstrip("/")

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Settings:
        """Read the settings and remove the secrets from `environ`. Raises BadEnvironment."""

        def need(name: str) -> str:
            value = environ.get(name, "")
            if not value:
                raise BadEnvironment(
                    f"${name} is not set. This program is started by the hub; "
                    "check the spawner's command and environment."
                )
            return value

        def seconds(name: str, default: float) -> float:
            try:
                value = float(environ.get(name) or default)
            except ValueError:
                raise BadEnvironment(f"${name} must be a number of seconds, not {environ[name]!r}.") from None
            if value <= 0:
                raise BadEnvironment(f"${name} must be more than 0 seconds.")
            return value

        service = urlsplit(need("JUPYTERHUB_SERVICE_URL"))
        if service.scheme != "http":
            raise BadEnvironment(
                f"marimo serves http only, $JUPYTERHUB_SERVICE_URL says {service.scheme!r}: "
                "turn off c.JupyterHub.internal_ssl."
            )
        folder = Path(need("MARIMOHUB_NOTEBOOK_DIR"))
        if not folder.is_absolute() or not folder.is_dir():
            raise BadEnvironment(f"$MARIMOHUB_NOTEBOOK_DIR must be an existing folder, {folder} is not.")
        settings = cls(
            user=need("JUPYTERHUB_USER"),
            server_name=environ.get("JUPYTERHUB_SERVER_NAME", ""),
            prefix=need("JUPYTERHUB_SERVICE_PREFIX").rstrip("/") + "/",
            host=service.hostname or "0.0.0.0",  # noqa: S104 - a spawner that gives no host means all of them
            port=service.port or 80,
            api_url=need("JUPYTERHUB_API_URL").rstrip("/"),
            activity_url=environ.get("JUPYTERHUB_ACTIVITY_URL", ""),
            public_url=environ.get("JUPYTERHUB_PUBLIC_URL", ""),
            folder=folder.resolve(),
            workspace=environ.get("MARIMOHUB_WORKSPACE") or "default",
            heartbeat_interval=seconds("MARIMOHUB_HEARTBEAT_INTERVAL", 60.0),
            snapshot=Path(environ["MARIMOHUB_SNAPSHOT"]) if environ.get("MARIMOHUB_SNAPSHOT") else None,
            activity_interval=seconds("JUPYTERHUB_ACTIVITY_INTERVAL", 60.0),
            api_token=need("JUPYTERHUB_API_TOKEN"),
        )
        for name in SECRETS:
            environ.pop(name, None)
        return settings
