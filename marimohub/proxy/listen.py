"""From the hub's public URL and certificate to what Envoy needs: addresses, names resolved, PEM text."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from marimohub.proxy.errors import BadCertificate, BadRoute, CannotListen
from marimohub.proxy.routes import Route, is_unix, literal_address, parse_target, socket_path


async def _resolve(host: str, port: int) -> str:
    """IP address of a host name, IPv4 first: a server told to listen on "localhost" often has no IPv6."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


async def target_address(target: str) -> str:
    """`ip:port` for an upstream URL, or the path of its socket. Raises BadRoute if its host name is unknown."""
    if is_unix(target):
        return socket_path(target)
    host, port = parse_target(target)
    literal = literal_address(host, port)
    if literal is None:
        try:
            literal = literal_address(await _resolve(host, port), port)
        except OSError as error:
            raise BadRoute(f"The host name in {target!r} is unknown: {error}.") from error
    assert literal is not None
    return literal


def has_fixed_address(target: str) -> bool:
    """Whether an upstream URL needs no look-up: its host is an IP literal, or it names a Unix socket."""
    return is_unix(target) or literal_address(*parse_target(target)) is not None


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


def upstream_tls(app: Any, *, verify: bool) -> dict[str, str]:
    """What `Settings` wants to know about servers reached by https: JupyterHub's internal_ssl, or who to believe."""
    if getattr(app, "internal_ssl", False):
        certificates = app.internal_proxy_certs["proxy-client"]
        return {
            "upstream_cert": certificates["certfile"],
            "upstream_key": certificates["keyfile"],
            "upstream_ca": app.internal_trust_bundles["proxy-client-ca"],
        }
    return {"upstream_cert": "", "upstream_key": "", "upstream_ca": system_authorities() if verify else ""}


async def moved(routes: Iterable[Route]) -> list[tuple[Route, Route]]:
    """Routes whose host name has another address now, each with what it should be."""
    found = []
    for route in routes:
        if has_fixed_address(route.target):
            continue
        try:
            address = await target_address(route.target)
        except BadRoute:
            continue  # The name service is away: the known address is the best there is.
        if address != route.address:
            found.append((route, Route(route.routespec, route.target, address, route.data)))
    return found


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
