"""Envoy's static configuration: listener, clusters, limits and error pages. Pure functions of `Settings`.

A change of anything here needs a new Envoy process; routes and TLS certificates are files that it watches.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from marimohub.proxy import pages
from marimohub.proxy.routes import (
    CLUSTER,
    CLUSTER_TLS,
    FILTER_API_BODY,
    FILTER_BODY,
    HEADER_KIND,
    HEADER_SERVER_NAME,
    ROUTE_CONFIG,
)

# Envoy works in a folder with a name that nobody can guess, below the proxy's folder, and names everything from there:
# /proc shows its command line, and the paths of Unix sockets as they were bound, to people's notebooks.
RUN_PREFIX = "run-"
UP = "../"
ADMIN_SOCKET = "admin.sock"
# Below the proxy's folder.
ROUTES_FOLDER = "rds"
ROUTES_FILE = "rds/routes.pb"
TLS_FOLDER = "sds"
TLS_FILE = "sds/tls.json"
ACCESS_LOG = "access.log"
STAT_PREFIX = "public"
ROUTE_STATS = f"http.{STAT_PREFIX}.rds.{ROUTE_CONFIG}."
ROUTE_STATS_FILTER = f"^{ROUTE_STATS}(version_text|update_rejected)$"
# All that the admin interface answers, byte for byte: whoever finds its socket can neither end Envoy nor read anything.
ADMIN_PATHS = ("/ready", f"/stats?filter={ROUTE_STATS_FILTER}")

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_BUFFER = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"
_HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS_DOWN = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_TLS_UP = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105
_FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_MAX_DOWNSTREAM = (
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)
_HEAP = "envoy.resource_monitors.fixed_heap"
_SCALE_TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
_FIXED_HEAP = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
_UNLIMITED = 4_294_967_295


@dataclass(frozen=True)
class Settings:
    """What the static configuration depends on.

    Attributes:
        ip, port: where to listen; `unix_socket` instead, if set.
        tls: whether the listener speaks TLS, with the certificate in TLS_FILE.
        notebooks_url: where the button on the error pages leads.
        connect_timeout: seconds to wait for a server to accept a connection.
        upstream_idle_timeout: seconds after which an unused connection to a server is closed.
        request_headers_timeout: seconds a client may take to send its request headers.
        max_header_kb: largest request header block, KiB.
        hub_body_limit_mb, hub_api_body_limit_mb: largest request body for the hub's pages and for its API, MiB.
        max_memory_mb: size of Envoy's heap, MiB, near which slow request bodies for the hub are ended sooner.
        max_connections: client connections at one time.
        trusted_hops: proxies in front of Envoy whose X-Forwarded-For entries are believed.
        upstream_ca: file of certificate authorities for https targets; "" does not verify them.
        upstream_cert, upstream_key: certificate that Envoy shows to https targets (internal_ssl).
        access_log: write one JSON line per request.
    """

    ip: str
    port: int
    unix_socket: str = ""
    tls: bool = False
    notebooks_url: str = "/hub/notebooks"
    connect_timeout: float = 5.0
    upstream_idle_timeout: float = 3.0
    request_headers_timeout: float = 30.0
    max_header_kb: int = 64
    hub_body_limit_mb: int = 1
    hub_api_body_limit_mb: int = 40
    max_memory_mb: int = 1024
    max_connections: int = 20_000
    trusted_hops: int = 0
    upstream_ca: str = ""
    upstream_cert: str = ""
    upstream_key: str = ""
    access_log: bool = False

    @property
    def listens_on(self) -> str:
        """The address, as people write it."""
        if self.unix_socket:
            return self.unix_socket
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def _seconds(value: float) -> str:
    return f"{value:.3f}s"


def _file_source(path: str, folder: str) -> dict[str, Any]:
    source = {"path": UP + path, "watched_directory": {"path": UP + folder}}
    return {"path_config_source": source, "resource_api_version": "V3", "initial_fetch_timeout": "2s"}


def _status_at_least(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"marimohub.status_{status}"}
    return {"status_code_filter": {"comparison": {"op": "GE", "value": value}}}


def _status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"marimohub.status_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _flag(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _request_header(name: str, match: dict[str, Any]) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": name, "string_match": match}}}


def _mappers(when: dict[str, Any], page: pages.Page, notebooks_url: str) -> list[dict[str, Any]]:
    """A page in two forms: JSON for a script that asks for it, HTML for everybody else."""
    wants_json = _request_header("accept", {"contains": "application/json"})
    headers = [{"header": {"key": "cache-control", "value": "no-store"}}]
    if page.reload:
        headers.append({"header": {"key": "retry-after", "value": str(page.reload)}})
    forms = (
        ({"and_filter": {"filters": [when, wants_json]}}, page.json(), "application/json"),
        (when, page.html(notebooks_url), "text/html; charset=utf-8"),
    )
    mappers = []
    for condition, body, content_type in forms:
        mapper: dict[str, Any] = {
            "filter": condition,
            "body": {"inline_string": body},
            "headers_to_add": headers,
            "body_format_override": {
                "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
                "content_type": content_type,
            },
        }
        if page.status:
            mapper["status_code"] = page.status
        mappers.append(mapper)
    return mappers


def _error_pages(notebooks_url: str) -> dict[str, Any]:
    to_hub = {"and_filter": {"filters": [_status_at_least(502), _request_header(HEADER_KIND, {"exact": "hub"})]}}
    cases = (
        (_flag("NR"), pages.HUB_RESTARTING),  # Nothing routed: the hub has not told its own route yet.
        (_flag("UO", "OM"), pages.OVERLOADED),
        (to_hub, pages.HUB_RESTARTING),
        (_status_at_least(502), pages.SERVER_NOT_RUNNING),
        (_status(400), pages.BAD_ADDRESS),
        (_status(408), pages.TOO_SLOW),
        (_status(413), pages.TOO_LARGE),
    )
    return {"mappers": [mapper for when, page in cases for mapper in _mappers(when, page, notebooks_url)]}


def _access_log() -> list[dict[str, Any]]:
    # Without the query: it can hold a sign-in code or a token.
    members = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "sent": "%BYTES_SENT%",
        "received": "%BYTES_RECEIVED%",
        "ms": "%DURATION%",
        "server": "%UPSTREAM_HOST%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    config = {"@type": _FILE_LOG, "path": UP + ACCESS_LOG, "log_format": {"json_format": members}}
    return [{"name": "access", "typed_config": config}]


def _hold_body(name: str, limit_mb: int) -> dict[str, Any]:
    """A filter that lets a request pass once its body is complete, and answers 413 to one that is too large."""
    limit = {"@type": _BUFFER, "max_request_bytes": limit_mb * 1024 * 1024}
    return {"name": name, "typed_config": limit, "disabled": True}


def _connection_manager(settings: Settings) -> dict[str, Any]:
    router = {"name": "router", "typed_config": {"@type": _ROUTER, "suppress_envoy_headers": True}}
    return {
        "@type": _HCM,
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        "rds": {
            "route_config_name": ROUTE_CONFIG,
            "config_source": _file_source(ROUTES_FILE, ROUTES_FOLDER),
        },
        "http_filters": [
            _hold_body(FILTER_BODY, settings.hub_body_limit_mb),
            _hold_body(FILTER_API_BODY, settings.hub_api_body_limit_mb),
            router,
        ],
        # No client is "internal", so its x-envoy-* headers (retries, timeouts) are dropped. An empty list would
        # mean the private networks, so name an address that no connection can come from.
        "use_remote_address": True,
        "internal_address_config": {
            "unix_sockets": False,
            "cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}],
        },
        "xff_num_trusted_hops": settings.trusted_hops,
        "skip_xff_append": settings.trusted_hops == 0,  # The route table sets it from scratch.
        # No byte of a path is changed: routes.py says why.
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "server_header_transformation": "PASS_THROUGH",
        "upgrade_configs": [{"upgrade_type": "websocket", "filters": [router]}],
        "http2_protocol_options": {
            # No WebSockets over HTTP/2 (RFC 8441): they carry no Sec-WebSocket-Key, which tornado and uvicorn demand of
            # the HTTP/1.1 request that Envoy makes of them. Browsers open an HTTP/1.1 connection for them instead.
            "allow_connect": False,
            "max_concurrent_streams": 256,
            "initial_stream_window_size": 1_048_576,
            "initial_connection_window_size": 4_194_304,
        },
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "request_headers_timeout": _seconds(settings.request_headers_timeout),
        "max_request_headers_kb": settings.max_header_kb,
        "local_reply_config": _error_pages(settings.notebooks_url),
        "access_log": _access_log() if settings.access_log else [],
    }


def _listener(settings: Settings) -> dict[str, Any]:
    if settings.unix_socket:
        address: dict[str, Any] = {"pipe": {"path": settings.unix_socket, "mode": 0o600}}
    else:
        address = {"socket_address": {"address": settings.ip, "port_value": settings.port}}
        if settings.ip == "::":
            address["socket_address"]["ipv4_compat"] = True
    chain: dict[str, Any] = {
        "filters": [{"name": "http", "typed_config": _connection_manager(settings)}],
    }
    if settings.tls:
        chain["transport_socket_connect_timeout"] = "15s"
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": _TLS_DOWN,
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificate_sds_secret_configs": [
                        {"name": "public", "sds_config": _file_source(TLS_FILE, TLS_FOLDER)}
                    ],
                },
            },
        }
    return {"name": "public", "address": address, "filter_chains": [chain]}


def _cluster(name: str, settings: Settings) -> dict[str, Any]:
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    options: dict[str, Any] = {
        "@type": _HTTP_OPTIONS,
        "explicit_http_config": {"http_protocol_options": {}},
        # Shorter than uvicorn's keep-alive of 5 s: a connection is never reused while the server closes it.
        "common_http_protocol_options": {"idle_timeout": _seconds(settings.upstream_idle_timeout)},
    }
    cluster: dict[str, Any] = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": _seconds(settings.connect_timeout),
        "original_dst_lb_config": {"use_http_header": True},
        # Every WebSocket holds a request and a connection; the default is 1,024 of each.
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _UNLIMITED)]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
    if name == CLUSTER_TLS:
        context: dict[str, Any] = {}
        if settings.upstream_ca:
            context["validation_context"] = {"trusted_ca": {"filename": settings.upstream_ca}}
        if settings.upstream_cert:
            context["tls_certificates"] = [
                {
                    "certificate_chain": {"filename": settings.upstream_cert},
                    "private_key": {"filename": settings.upstream_key},
                }
            ]
        options["upstream_http_protocol_options"] = {
            "auto_sni": True,
            "auto_san_validation": bool(settings.upstream_ca),
            "override_auto_sni_header": HEADER_SERVER_NAME,
        }
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": _TLS_UP, "common_tls_context": context},
        }
    return cluster


def _overload_manager(settings: Settings) -> dict[str, Any]:
    connections = {"@type": _MAX_DOWNSTREAM, "max_active_downstream_connections": settings.max_connections}
    heap = {"@type": _FIXED_HEAP, "max_heap_size_bytes": settings.max_memory_mb * 1024 * 1024}
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
                "triggers": [{"name": _HEAP, "scaled": {"scaling_threshold": 0.5, "saturation_threshold": 1.0}}],
                "typed_config": sooner,
            },
            # Memory that is free but was not given back counts as used.
            {
                "name": "envoy.overload_actions.shrink_heap",
                "triggers": [{"name": _HEAP, "threshold": {"value": 0.5}}],
            },
        ],
    }


def render(settings: Settings) -> dict[str, Any]:
    """Envoy's bootstrap document."""
    return {
        "node": {"id": "marimohub", "cluster": "marimohub"},
        "admin": {
            "address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}},
            "allow_paths": [{"exact": path} for path in ADMIN_PATHS],
        },
        "overload_manager": _overload_manager(settings),
        "static_resources": {
            "listeners": [_listener(settings)],
            "clusters": [_cluster(CLUSTER, settings), _cluster(CLUSTER_TLS, settings)],
        },
    }


def render_tls(version: str, certificate: str, key: str) -> str:
    """The listener's certificate as Envoy watches it (JSON text); takes PEM text, not file names."""
    pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
    secret = {"@type": _SECRET, "name": "public", "tls_certificate": pair}
    return json.dumps({"version_info": version, "resources": [secret]})


def fingerprint(settings: Settings, *command: str) -> str:
    """Names a running Envoy's static configuration and command line: equal means it may be kept."""
    document = [render(settings), asdict(settings), command]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
