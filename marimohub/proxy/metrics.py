"""Envoy's statistics for Prometheus. They count and name nobody: no path, no user, no server's address."""

from __future__ import annotations

# Statistics whose names begin so: clients' connections and requests, those to servers, refusals, memory.
_WANTED = (
    "http.public.downstream_(cx|rq)_",
    "http.public.no_route",
    "hub.http_local_rate_limit.",
    "cluster.upstream(_tls|_unix)?.upstream_(cx|rq)_",
    "listener_manager.total_listeners_",
    "overload.",
    "server.(concurrency|days_until|live|memory_|uptime)",
)
PATH = f"/stats/prometheus?filter=^({'|'.join(_WANTED)})"


def render(envoy: str | None, *, routes: int, restarts: int, draining: int) -> str:
    """Prometheus text.

    Args:
        envoy: what Envoy answered on PATH; None if it did not.
        restarts: how often this hub started Envoy again after it had ended.
        draining: Envoys with an earlier configuration that still have connections.
    """
    own = (
        ("marimohub_proxy_up", "gauge", "Whether Envoy answers.", int(envoy is not None)),
        ("marimohub_proxy_routes", "gauge", "Routes in the table.", routes),
        ("marimohub_proxy_restarts_total", "counter", "Unexpected ends of Envoy since the hub was started.", restarts),
        ("marimohub_proxy_draining", "gauge", "Replaced Envoys that still have connections.", draining),
    )
    lines = []
    for name, kind, about, value in own:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", f"{name} {value}"]
    return "\n".join(lines) + "\n" + (envoy or "")
