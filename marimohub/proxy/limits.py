"""What keeps one client from using up what everybody needs: requests per second, memory, connections that do nothing.

Only requests to the hub are counted, since it is one process for everybody; people's servers are their own. Clients are
told apart by address (IPv6: the network of 64 bits that one customer has), so the limits are those of a whole office
behind one address. Requests from this very machine are not counted: they come from a proxy in front that
`trusted_hops` does not tell of, or from somebody who can reach the hub's own port as well.
"""

from __future__ import annotations

import socket
from typing import Any

FILTER_RATE = "hub-rate"
BURST_SECONDS = 30  # what was not used for so long may be used at once
_RATE = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_ADDRESS = "masked_remote_address"
_THIS_MACHINE = ("127.0.0.1/32", "::/64")  # as masked: ::1 is in the latter, and no other machine can be
_REMEMBERED_CLIENTS = 10_000
_MOST = 4_294_967_295
_SIGN_IN = r"[^?]*/hub/(login|signup|change-password|setup|api/authorizations/token)(/[^?]*)?(\?.*)?"

_MAX_DOWNSTREAM = (
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)
_HEAP = "envoy.resource_monitors.fixed_heap"
_SCALE_TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
_FIXED_HEAP = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"


def _bucket(per_second: int) -> dict[str, Any]:
    if not per_second:
        return {"max_tokens": _MOST, "tokens_per_fill": _MOST, "fill_interval": "1s"}
    return {"max_tokens": per_second * BURST_SECONDS, "tokens_per_fill": per_second, "fill_interval": "1s"}


def _by_client(first: list[dict[str, str]], per_second: int) -> list[dict[str, Any]]:
    """A bucket for each client, and an endless one for this machine."""
    ours = [{"entries": [*first, {"key": _ADDRESS, "value": a}], "token_bucket": _bucket(0)} for a in _THIS_MACHINE]
    return [*ours, {"entries": [*first, {"key": _ADDRESS}], "token_bucket": _bucket(per_second)}]


def rate_filter(requests: int, sign_ins: int) -> dict[str, Any]:
    """A filter that answers 429 to a client's requests beyond so many per second; off unless a route names it.

    Args:
        requests: to the hub; 0: no limit.
        sign_ins: those of them that make the hub hash a password; 0: no limit.
    """
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    client = {_ADDRESS: {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}
    signs_in = [
        {"name": ":method", "string_match": {"exact": "POST"}},
        {"name": ":path", "string_match": {"safe_regex": {"regex": _SIGN_IN}}},
    ]
    sign_in = {"header_value_match": {"descriptor_value": "sign-in", "headers": signs_in}}
    config = {
        "@type": _RATE,
        "stat_prefix": "hub",
        "token_bucket": _bucket(0),  # of requests that have no address: those over a Unix socket
        "always_consume_default_token_bucket": False,
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limits": [{"actions": [client]}, {"actions": [sign_in, client]}],
        "descriptors": [
            *_by_client([], requests),
            *_by_client([{"key": "header_match", "value": "sign-in"}], sign_ins),
        ],
        "max_dynamic_descriptors": _REMEMBERED_CLIENTS,
    }
    return {"name": FILTER_RATE, "typed_config": config, "disabled": True}


def socket_options(stall_seconds: float) -> list[dict[str, Any]]:
    """For clients' connections: one whose other end is gone, or has read nothing for so long, is ended by the kernel.

    Nothing is asked of a connection on which nothing is to be said, but for an empty packet a minute.
    """
    wanted = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # By name: macOS has other numbers for some and none for others.
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):
            wanted.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        wanted.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_seconds * 1000)))
    return [
        {"level": level, "name": name, "int_value": value, "state": "STATE_PREBIND"} for level, name, value in wanted
    ]


def overload_manager(max_connections: int, max_memory_mb: int) -> dict[str, Any]:
    """What Envoy gives up when it has too many connections or too little memory."""
    connections = {"@type": _MAX_DOWNSTREAM, "max_active_downstream_connections": max_connections}
    heap = {"@type": _FIXED_HEAP, "max_heap_size_bytes": max_memory_mb * 1024 * 1024}
    # Bodies on their way to the hub are what fills the heap. Only the hub's routes have an idle timeout.
    sooner = {
        "@type": _SCALE_TIMERS,
        "timer_scale_factors": [{"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": "10s"}],
    }
    return {
        "resource_monitors": [
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": connections},
            {"name": _HEAP, "typed_config": heap},
        ],
        "actions": [
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [{"name": _HEAP, "scaled": {"scaling_threshold": 0.5, "saturation_threshold": 0.8}}],
                "typed_config": sooner,
            },
            # Memory that is free but was not given back counts as used.
            {
                "name": "envoy.overload_actions.shrink_heap",
                "triggers": [{"name": _HEAP, "threshold": {"value": 0.5}}],
            },
            # 503 to new requests; what is open stays.
            {
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [{"name": _HEAP, "threshold": {"value": 0.95}}],
            },
        ],
    }
