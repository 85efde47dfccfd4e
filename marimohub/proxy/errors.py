"""What can go wrong with the proxy: one type per thing that an administrator or the hub can act on."""

from __future__ import annotations


class ProxyError(Exception):
    """Base of the proxy's errors; `str(error)` is a sentence for the administrator."""


class PortInUse(ProxyError):
    """Another program listens on the address the proxy was told to listen on."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"The address {address} is already in use by another program. "
            "Stop that program, or choose another port with c.JupyterHub.bind_url."
        )


class CannotListen(ProxyError):
    """The operating system refuses the address: not ours, or a port that needs privileges."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        super().__init__(f"The proxy cannot listen on {address}: {reason}. Set c.JupyterHub.bind_url.")


class ProxyStartFailed(ProxyError):
    """Envoy did not start; the message carries its last words."""


class BadCertificate(ProxyError):
    """The configured TLS certificate and key cannot be used."""

    def __init__(self, certificate: str, key: str, reason: str) -> None:
        super().__init__(
            f"The TLS certificate {certificate} with the key {key} cannot be used: {reason}. "
            "Check c.JupyterHub.ssl_cert and c.JupyterHub.ssl_key."
        )


class BadRoute(ProxyError, ValueError):
    """A route specification or target that the proxy cannot serve."""


class RouteNotServed(ProxyError):
    """Envoy did not take a route change within the deadline, or refused it."""


class ReplicaBehind(RouteNotServed):
    """Our own Envoy serves the change, and a further one does not, or cannot be told."""
