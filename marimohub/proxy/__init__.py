"""The proxy in front of the hub and everybody's servers: Envoy behind JupyterHub's proxy contract."""

from marimohub.proxy.envoy import EnvoyProxy
from marimohub.proxy.errors import (
    BadCertificate,
    BadRoute,
    CannotListen,
    PortInUse,
    ProxyError,
    ProxyStartFailed,
    RouteNotServed,
)

__all__ = [
    "BadCertificate",
    "BadRoute",
    "CannotListen",
    "EnvoyProxy",
    "PortInUse",
    "ProxyError",
    "ProxyStartFailed",
    "RouteNotServed",
]
