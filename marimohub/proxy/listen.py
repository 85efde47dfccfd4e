"""From the hub's public URL and certificate to what Envoy needs: addresses, names resolved, PEM text."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from marimohub.proxy.errors import BadCertificate, BadRoute, CannotListen
from marimohub.proxy.routes import literal_address, parse_target


async def _resolve(host: str, port: int) -> str:
    """IP address of a host name, IPv4 first: a server told to listen on "localhost" often has no IPv6."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


async def target_address(target: str) -> str:
    """`ip:port` for an upstream URL. Raises BadRoute if its host name is unknown."""
    host, port = parse_target(target)
    literal = literal_address(host, port)
    if literal is None:
        try:
            literal = literal_address(await _resolve(host, port), port)
        except OSError as error:
            raise BadRoute(f"The host name in {target!r} is unknown: {error}.") from error
    assert literal is not None
    return literal


async def public_address(url: str) -> tuple[str, int, str]:
    """(ip, port, unix socket path) to listen on for JupyterHub's bind_url. Raises CannotListen."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix":
        return "", 0, _absolute(unquote(parts.netloc))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    if host in ("", "*"):
        return ("::" if _has_ipv6() else "0.0.0.0"), port, ""  # noqa: S104
    if literal_address(host, port) is not None:
        return host, port, ""
    try:
        return await _resolve(host, port), port, ""
    except OSError as error:
        raise CannotListen(f"{host}:{port}", f"the host name is unknown ({error})") from error


def _absolute(path: str) -> str:
    # Envoy works in another folder than the hub
    return os.path.abspath(path)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def system_authorities() -> str:
    """The machine's file of certificate authorities; "" if there is none, so that https targets are not verified."""
    for path in (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"):
        if path and Path(path).is_file():
            return path
    return ""


@dataclass(frozen=True)
class Certificate:
    """The public certificate and key, as text that was read together and fits together."""

    certificate: str
    key: str

    @classmethod
    def read(cls, certificate_path: str, key_path: str) -> Certificate:
        """Raises BadCertificate if a file is missing, or the two are no pair. Blocks on disk for a moment."""
        try:
            # Also catches a renewal that has replaced only one of the two files yet.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_path, key_path)
            return cls(Path(certificate_path).read_text(), Path(key_path).read_text())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BadCertificate(certificate_path, key_path, reason) from error
