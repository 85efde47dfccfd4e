"""What the launcher is told by its spawner, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Code in a notebook inherits the environment of this process, so what would let it act as the server on the hub
# is taken out before marimo starts anything.
SECRETS = ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "CONFIGPROXY_AUTH_TOKEN", "JUPYTERHUB_CRYPT_KEY")


class BadEnvironment(Exception):
    """The environment is not that of a JupyterHub single-user server. The text says what is missing."""


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
