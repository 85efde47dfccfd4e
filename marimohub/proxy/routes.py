"""Envoy's route table: which path prefix goes to which server.

Everything here is a pure function of its arguments. The rules, and why:

- Envoy changes no byte of a path. What is matched is what the browser compared its cookie paths with, and what the
  server receives, so no rewriting can carry one user's cookies to another user's server. (With `normalize_path` Envoy
  turns `/user/bob/..;/alice/`, which browsers leave as it is, into `/user/alice/`.)
- Browsers resolve `.` and `..` themselves and turn `\\` into `/`. A request that still holds one is refused (400).
- `%2F` is no separator: `/user/bob/..%2Falice/` is a strangely named page of bob's. Slashes are not merged.
- A route matches whole segments, and the longest wins. What matches nothing goes to the hub, which asks who it is.
- One character can be written raw or percent-encoded, so one route is entered under each way to write its name.
- The hub is one process for everybody, so a request comes to it when its body is complete and not before: a client
  that sends slowly holds a connection of Envoy's and none of the hub's. Users' servers and services get bodies as
  they come, of any size.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from marimohub.proxy.errors import BadRoute
from marimohub.proxy.limits import FILTER_RATE
from marimohub.proxy.wire import encode

CLUSTER = "upstream"
CLUSTER_TLS = "upstream_tls"
CLUSTER_UNIX = "upstream_unix"  # its endpoints are the sockets of all routes; a route names its own in its metadata
SOCKET_KEY = "socket"
SOCKET_PATH_BYTES = 107  # sun_path of Linux, less the closing NUL
ROUTE_CONFIG = "routes"
HEADER_TARGET = "x-envoy-original-dst-host"
HEADER_SERVER_NAME = "x-marimohub-upstream-name"
HEADER_KIND = "x-marimohub-route"
# Filters of bootstrap.py that hold a request until its body is complete; off unless a route names them.
FILTER_BODY = "hub-body"
FILTER_API_BODY = "hub-api-body"
HUB_IDLE_SECONDS = 120  # an opening server's event stream says something far more often

# Set by proxies in front of us, or by an attacker. Tornado believes the first two over X-Forwarded-*.
UNTRUSTED_HEADERS = (
    *("x-real-ip", "x-scheme", "forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix"),
)

# A dot segment (with or without `;parameters`, encoded or not), a backslash, an encoded NUL or a byte that is no ASCII
# (HTTP/2 lets those pass), before any query.
REFUSED_PATHS = r"[^?]*(?:/(?:\.|%2[eE]){1,2}(?:;[^/?]*)?(?:[/?].*)?|\\.*|%00.*|[\x80-\xff].*)"

# What is no name and no address, such as two Host headers, which Envoy joins by a comma.
REFUSED_HOSTS = r"(?:.*[^A-Za-z0-9._:\[\]-].*)?"

_ALWAYS_RAW = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_RAW_OR_ENCODED = frozenset(b"~!$&'()*+,;=:@[]|^")
# What common encoders leave raw: quote(safe=""), JupyterHub, encodeURIComponent, encodeURI and browsers.
_ENCODERS = (b"", b"~", b"@~", b"!'()*~", b"!'()*~;,:@&=+$", bytes(_RAW_OR_ENCODED))
_MAX_FREE = 4
_TYPE_ROUTE = "envoy.config.route.v3.Route"
_TYPE_ROUTES = "envoy.config.route.v3.RouteList"
_TYPE_FILTER = "envoy.config.route.v3.FilterConfig"
_CHUNKED = "transfer-encoding"
_TYPE_RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"
_TYPE_TABLE = "envoy.config.route.v3.RouteConfiguration"
_ON = {"@type": _TYPE_FILTER, "config": b""}  # of a filter that is off elsewhere
_OVERWRITE = 2  # OVERWRITE_IF_EXISTS_OR_ADD


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the route table.

    Attributes:
        routespec: `/path/` or `host/path/`, as JupyterHub gave it.
        target: the URL of the server, as JupyterHub gave it.
        data: JSON-able; handed back by get_all_routes.
        address: IP literal and port that `target` resolved to, e.g. `127.0.0.1:8888` or `[::1]:8888`; for a Unix
            socket its path.
    """

    routespec: str
    target: str
    address: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def tls(self) -> bool:
        return self.target.lower().startswith("https:")

    @property
    def unix(self) -> bool:
        return is_unix(self.target)

    @property
    def is_hub(self) -> bool:
        return bool(self.data.get("hub"))


def parse_target(target: str) -> tuple[str, int]:
    """Host and port of an upstream URL (`http://host:port`); raises BadRoute for anything else.

    Not for Unix sockets: see `is_unix` and `socket_path`.
    """
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadRoute(f"The proxy cannot use the target {target!r}: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise BadRoute(
            f"The proxy cannot use the target {target!r}: give http://host:port, https://host:port, or "
            "http+unix://%2Fpath%2Fto%2Fsocket."
        )
    return host, port or (443 if parts.scheme == "https" else 80)


def is_unix(target: str) -> bool:
    """Whether an upstream URL names a Unix socket, as JupyterHub writes it (`http+unix://%2Fpath%2Fto%2Fsocket`)."""
    return target.lower().startswith("http+unix:")


def socket_path(target: str) -> str:
    """The socket's path in such a URL; raises BadRoute for one that cannot be connected to."""
    try:
        path = unquote(urlsplit(target).netloc, errors="strict")
    except ValueError as error:
        raise BadRoute(f"The proxy cannot use the target {target!r}: {error}.") from error
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise BadRoute(f"The proxy cannot use the target {target!r}: give the whole path of a socket, with %2F for /.")
    if len(path.encode()) > SOCKET_PATH_BYTES:
        raise BadRoute(f"The proxy cannot use the target {target!r}: a path of a socket has at most 107 bytes.")
    return path


def literal_address(host: str, port: int) -> str | None:
    """`ip:port` as Envoy reads it if `host` is an IP literal, else None."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def split_routespec(routespec: str) -> tuple[str, str]:
    """(host or "*", path) of a routespec; raises BadRoute if no request could ever match it safely."""
    host, slash, rest = routespec.partition("/")
    path = slash + rest
    if not path.endswith("/"):
        raise BadRoute(f"The route {routespec!r} must end with a slash.")
    segments = path[1:-1].split("/") if path != "/" else []
    if any(unquote_to_bytes(segment) in (b"", b".", b"..") for segment in segments):
        raise BadRoute(f"The route {routespec!r} has an empty or dot segment.")
    if host and not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host):
        raise BadRoute(f"The route {routespec!r} has a host name that cannot be used.")
    return host.lower() or "*", path


def spellings(path: str) -> list[str]:
    """Every way a client may write `path` (percent-encoded or not): the keys of one route in the prefix map.

    Exhaustive for up to four characters that may stand raw or encoded (`user@example.org` has one); for more,
    the spellings of the common encoders. Hexadecimal digits are all upper or all lower case.
    """
    decoded = [unquote_to_bytes(segment) for segment in path.split("/")]
    free = sorted({byte for segment in decoded for byte in segment} & _RAW_OR_ENCODED)
    if len(free) <= _MAX_FREE:
        raw_sets = [bytes(chosen) for n in range(len(free) + 1) for chosen in itertools.combinations(free, n)]
    else:
        raw_sets = list(_ENCODERS)
    keys = []
    for raw in raw_sets:
        for template in ("%%%02X", "%%%02x"):
            keys.append(
                "/".join(
                    "".join(chr(b) if b in _ALWAYS_RAW or b in raw else template % b for b in segment)
                    for segment in decoded
                )
            )
    return list(dict.fromkeys(keys))


def canonical(path: str) -> str:
    """The one spelling by which two routespecs are compared for being the same route."""
    return "/".join(quote(unquote_to_bytes(segment), safe="") for segment in path.split("/"))


def _header(key: str, value: str) -> dict[str, Any]:
    # `%` starts a command in Envoy's header values.
    return {"header": {"key": key, "value": value.replace("%", "%%")}, "append_action": _OVERWRITE}


def render_route(route: Route) -> bytes:
    """One route's entries of the prefix map, one for each spelling of its path (encoded `MatchMap`)."""
    action: dict[str, Any] = {"timeout": {}}  # 0: none
    headers = []
    if route.unix:
        own = {"fields": {"key": SOCKET_KEY, "value": {"string_value": route.address}}}
        action["metadata_match"] = {"filter_metadata": {"key": "envoy.lb", "value": own}}
        action["cluster"] = CLUSTER_UNIX
    else:
        host, _ = parse_target(route.target)
        action["cluster"] = CLUSTER_TLS if route.tls else CLUSTER
        headers.append(_header(HEADER_TARGET, route.address))
    if route.tls:
        headers.append(_header(HEADER_SERVER_NAME, host))
    if route.is_hub:
        headers.append(_header(HEADER_KIND, "hub"))
        # A restarting hub refuses connections for a few seconds: wait for it, nothing was sent yet.
        action["retry_policy"] = {
            "retry_on": "connect-failure",
            "num_retries": {"value": 20},
            "retry_back_off": {"base_interval": {"nanos": 100_000_000}, "max_interval": {"nanos": 500_000_000}},
        }
    config = {
        "@type": _TYPE_ROUTE,
        "match": {"prefix": "/"},
        "route": action,
        "request_headers_to_add": headers,
    }
    _, path = split_routespec(route.routespec)
    return prefix_map(path, lambda key: _hub_routes(config, key) if route.is_hub else config)


def prefix_map(path: str, action: Callable[[str], dict[str, Any]]) -> bytes:
    """An entry of a prefix map for each spelling of `path` (encoded `MatchMap`); `action` gives what it leads to."""
    entries = []
    for key in spellings(path):
        value = encode("OnMatch", {"action": {"name": "route", "typed_config": action(key)}})
        entries.append(encode("MatchMap", {"map": {"key": key, "value": value}}))
    return b"".join(entries)


def _hub_routes(config: dict[str, Any], path: str) -> dict[str, Any]:
    """The hub's route in the forms that the kinds of its requests need; the first that matches is taken."""
    # A WebSocket cannot be held back, so only a handshake proper counts as one: it has no body.
    handshake = [
        {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}},
        {"name": ":method", "string_match": {"exact": "GET"}},
        *({"name": name, "present_match": True, "invert_match": True} for name in ("content-length", _CHUNKED)),
    ]
    counted = {"key": FILTER_RATE, "value": _ON}
    socket = {**config, "match": {"prefix": "/", "headers": handshake}, "typed_per_filter_config": [counted]}
    held = {
        **config["route"],
        "idle_timeout": {"seconds": HUB_IDLE_SECONDS},
        "upgrade_configs": {"upgrade_type": "websocket", "enabled": {}},  # false
    }
    limits = ((f"{path}hub/api/", FILTER_API_BODY), (f"{path}api/", FILTER_API_BODY), ("/", FILTER_BODY))
    by_limit = [
        {
            **config,
            "match": {"prefix": prefix},
            "route": held,
            "typed_per_filter_config": [counted, {"key": name, "value": _ON}],
        }
        for prefix, name in limits
    ]
    routes = [{k: v for k, v in entry.items() if k != "@type"} for entry in (socket, *by_limit)]
    return {"@type": _TYPE_ROUTES, "routes": routes}


PATH_INPUT: dict[str, Any] = {
    "name": "path",
    "typed_config": {
        "@type": "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
        "header_name": ":path",
    },
}
_HOST_INPUT = {
    **PATH_INPUT,
    "name": "host",
    "typed_config": {**PATH_INPUT["typed_config"], "header_name": ":authority"},
}


def _refuse(what: dict[str, Any], regex: str) -> dict[str, Any]:
    action = {
        "@type": _TYPE_ROUTE,
        "match": {"prefix": "/"},
        "direct_response": {"status": 400, "body": {"inline_string": "This address is not valid."}},
    }
    match = {"input": what, "value_match": {"safe_regex": {"google_re2": {}, "regex": regex}}}
    return {
        "predicate": {"single_predicate": match},
        "on_match": {"action": {"name": "refuse", "typed_config": action}},
    }


_REFUSED = [_refuse(PATH_INPUT, REFUSED_PATHS), _refuse(_HOST_INPUT, REFUSED_HOSTS)]

# recent.py tells where requests for routes that are newer than this table go. No client can set filter state.
RECENT_STATE = "marimohub.recent"
_RECENT_INPUT = {
    "name": "recent",
    "typed_config": {
        "@type": "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        "key": RECENT_STATE,
    },
}
_RECENT_TARGET = {"key": HEADER_TARGET, "value": f"%FILTER_STATE({RECENT_STATE}:PLAIN)%"}
_NOT_HELD = {"@type": "envoy.extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True}
_RECENT = {
    "predicate": {
        "single_predicate": {
            "input": _RECENT_INPUT,
            "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
        }
    },
    "on_match": {
        "action": {
            "name": "recent",
            "typed_config": {
                "@type": _TYPE_ROUTE,
                "match": {"prefix": "/"},
                # The request's filters and timers were set up for another route, perhaps the hub's: undo that.
                "route": {"cluster": CLUSTER, "timeout": {}, "idle_timeout": {}},
                "request_headers_to_add": [{"header": _RECENT_TARGET, "append_action": _OVERWRITE}],
                "typed_per_filter_config": [{"key": f, "value": _NOT_HELD} for f in (FILTER_BODY, FILTER_API_BODY)],
            },
        }
    },
}


# A server closes a connection that it kept open at the moment when Envoy uses it for the next request (uvicorn does
# after an error). Whether the server has begun with that request cannot be known, so only what changes nothing is sent
# again. For the whole table, since one more message in each route would make Envoy slower to load it.
_READ_AGAIN = {
    "retry_on": "connect-failure,reset",
    "num_retries": {"value": 2},
    "retriable_request_headers": [{"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD|OPTIONS"}}}],
}


def _virtual_host(host: str, rendered: list[bytes]) -> dict[str, Any]:
    if not rendered:  # An empty map is refused by Envoy; without routes it answers 404, shown as our own page.
        return {"name": host, "domains": [host]}
    tree = {"matcher_tree": {"input": PATH_INPUT, "prefix_match_map": b"".join(rendered)}}
    matcher = {"matcher_list": {"matchers": [*_REFUSED, _RECENT]}, "on_no_match": {"matcher": tree}}
    return {"name": host, "domains": [host], "retry_policy": _READ_AGAIN, "matcher": matcher}


def render_table(version: str, rendered: dict[str, dict[str, bytes]], *, trusted_hops: int = 0) -> bytes:
    """The whole table as one encoded DiscoveryResponse.

    Args:
        version: told back by Envoy once it serves this table.
        rendered: host ("*" for any) → path → what render_route gave.
        trusted_hops: how many proxies in front of Envoy to believe about the client's address. 0: none.
    """
    everywhere = rendered.get("*", {})
    default = [everywhere["/"]] if "/" in everywhere else []
    hosts = []
    for host in {"*": None, **rendered}:
        routes = rendered.get(host, {})
        fallback = default if host != "*" and "/" not in routes else []
        hosts.append(_virtual_host(host, [*routes.values(), *fallback]))
    add = []
    remove = [HEADER_TARGET, HEADER_SERVER_NAME, HEADER_KIND, "x-envoy-external-address"]
    if not trusted_hops:
        remove += UNTRUSTED_HEADERS
        for key, value in (
            ("x-forwarded-for", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
            ("x-forwarded-host", "%REQ(:AUTHORITY)%"),
        ):
            add.append({"header": {"key": key, "value": value}, "append_action": _OVERWRITE})
    table = {
        "@type": _TYPE_TABLE,
        "name": ROUTE_CONFIG,
        "virtual_hosts": hosts,
        "ignore_port_in_host_matching": True,
        # The route's own headers are set after the table-wide removals, so no client value survives.
        "most_specific_header_mutations_wins": True,
        "request_headers_to_add": add,
        "request_headers_to_remove": remove,
    }
    return encode(_TYPE_RESPONSE, {"version_info": version, "resources": [table]})
