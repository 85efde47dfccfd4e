"""Envoy's static configuration: listener, clusters, limits and error pages. Pure functions of `Settings`.

A change of anything here needs a new Envoy process; routes and TLS certificates are files that it watches.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from marimohub.proxy import activity, limits, metrics, pages, recent
from marimohub.proxy.routes import (
    CLUSTER,
    CLUSTER_TLS,
    CLUSTER_UNIX,
    FILTER_API_BODY,
    FILTER_BODY,
    HEADER_KIND,
    HEADER_SERVER_NAME,
    ROUTE_CONFIG,
    SOCKET_KEY,
)

# Envoy works in a folder with a name that nobody can guess, below the proxy's folder, and names everything from there:
# /proc shows its command line, and the paths of Unix sockets as they were bound, to people's notebooks.
RUN_PREFIX = "run-"
UP = "../"
ADMIN_SOCKET = "admin.sock"
# Below the proxy's folder.
ROUTES_FOLDER = "rds"
ROUTES_FILE = "rds/routes.pb"
# A change of one file makes Envoy read every file that it watches in that folder, so each has its own.
RECENT_FOLDER = "ecds"
RECENT_FILE = "ecds/recent.pb"
SOCKETS_FOLDER = "eds"
SOCKETS_FILE = "eds/sockets.json"
TLS_FOLDER = "sds"
TLS_FILE = "sds/tls.json"
# In Envoy's own folder: the listener, which is taken away from an Envoy that is replaced.
LISTENERS_FOLDER = "lds"
LISTENERS_FILE = "lds/listeners.json"
FOLDERS = (ROUTES_FOLDER, RECENT_FOLDER, SOCKETS_FOLDER, TLS_FOLDER)
ACCESS_LOG = "access.log"
ACTIVITY_LOG = "activity.log"
# Lines about requests that ended; nothing empties the log while no hub runs, and one client can make 10,000 a second.
ACTIVITY_LINES_PER_SECOND = 1000
ACTIVITY_LIMIT_FILE = "lds/activity-limit.json"  # in Envoy's own folder
STAT_PREFIX = "public"
ROUTE_STATS = f"http.{STAT_PREFIX}.rds.{ROUTE_CONFIG}."
RECENT_STATS = f"extension_config_discovery.http_filter.{recent.FILTER}."
LISTENER_STATS = "listener_manager.lds."
SOCKET_STATS = f"cluster.{CLUSTER_UNIX}."
ROUTE_STATS_FILTER = f"^({ROUTE_STATS}|{RECENT_STATS}|{SOCKET_STATS}|{LISTENER_STATS})(version_text|update_rejected)$"
# All that the admin interface answers, byte for byte: whoever finds its socket can neither end Envoy nor read what is
# anybody's business.
ADMIN_PATHS = ("/ready", f"/stats?filter={ROUTE_STATS_FILTER}", metrics.PATH)

_LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_BUFFER = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"
_HTTP_OPTIONS = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS_DOWN = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_TLS_UP = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105
_FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_LOG_LIMIT = "type.googleapis.com/envoy.extensions.access_loggers.filters.process_ratelimit.v3.ProcessRateLimitFilter"
_RESOURCE = "type.googleapis.com/envoy.service.discovery.v3.Resource"
_BUCKET = "type.googleapis.com/envoy.type.v3.TokenBucket"
_BUFFER_BYTES = 256 * 1024  # for what a slow reader has not taken yet; a quarter of Envoy's default
_UNLIMITED = 4_294_967_295
_NOT_HUB = {"header_filter": {"header": {"name": HEADER_KIND, "present_match": True, "invert_match": True}}}


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
        max_memory_mb: size of Envoy's heap, MiB, near which slow request bodies for the hub are ended sooner, and then
            new requests are refused.
        max_connections: client connections at one time.
        trusted_hops: proxies in front of Envoy whose X-Forwarded-For entries are believed.
        upstream_ca: file of certificate authorities for https targets; "" does not verify them.
        upstream_cert, upstream_key: certificate that Envoy shows to https targets (internal_ssl).
        client_idle_timeout: seconds after which a client's connection without a request is closed.
        client_stall_timeout: seconds after which a client's connection that takes no data is closed.
        hub_requests_per_second, sign_ins_per_second: of one client to the hub, and those that check a password; 0: any.
        access_log: write one JSON line per request.
        activity_interval: seconds between two lines about an open stream in the activity log.
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
    client_idle_timeout: float = 120.0
    client_stall_timeout: float = 300.0
    hub_requests_per_second: int = 100
    sign_ins_per_second: int = 5
    access_log: bool = False
    activity_interval: float = 30.0

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
    headers = [{"header": {"key": key, "value": value}} for key, value in pages.HEADERS]
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
    failed = {"and_filter": {"filters": [_status_at_least(502), {"response_flag_filter": {}}]}}  # any flag
    cases = (
        (_flag("NR"), pages.HUB_RESTARTING),  # Nothing routed: the hub has not told its own route yet.
        (_flag("UO", "OM"), pages.OVERLOADED),
        (to_hub, pages.HUB_RESTARTING),
        (_flag("UC", "UR", "UPE"), pages.SERVER_BROKE_OFF),
        (failed, pages.SERVER_NOT_RUNNING),
        (_status_at_least(502), pages.OVERLOADED),  # limits.py: without memory Envoy answers before anything else
        (_status(429), pages.TOO_MANY),
        (_status(400), pages.BAD_ADDRESS),
        (_status(408), pages.TOO_SLOW),
        (_status(413), pages.TOO_LARGE),
        (_status(431), pages.HEADERS_TOO_LARGE),
        (_status_at_least(400), pages.REFUSED),
    )
    return {"mappers": [mapper for when, page in cases for mapper in _mappers(when, page, notebooks_url)]}


def _access_log() -> dict[str, Any]:
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
    return {"name": "access", "filter": _log_type("DownstreamEnd"), "typed_config": config}


def _log_type(name: str) -> dict[str, Any]:
    return {"log_type_filter": {"types": [name]}}


def _activity_logs() -> list[dict[str, Any]]:
    """What activity.py reads: a line for each request that ended, and one now and then for each that has not."""
    logs = []
    for log_type, text in activity.FORMATS.items():
        log: dict[str, Any] = {"@type": _FILE_LOG, "path": UP + ACTIVITY_LOG}
        log["log_format"] = {"text_format_source": {"inline_string": text}}
        filters = [_log_type(log_type), _NOT_HUB, *([_activity_limit()] if log_type == "DownstreamEnd" else [])]
        when = {"and_filter": {"filters": filters}}
        logs.append({"name": log_type, "filter": when, "typed_config": log})
    return logs


def _activity_limit() -> dict[str, Any]:
    source = {"path_config_source": {"path": ACTIVITY_LIMIT_FILE}, "resource_api_version": "V3"}
    config = {"@type": _LOG_LIMIT, "dynamic_config": {"resource_name": "activity", "config_source": source}}
    return {"extension_filter": {"name": "limit", "typed_config": config}}


def render_activity_limit() -> str:
    """What ACTIVITY_LIMIT_FILE holds, a DiscoveryResponse (JSON): Envoy wants it as a file of its own."""
    lines = ACTIVITY_LINES_PER_SECOND
    bucket = {"@type": _BUCKET, "max_tokens": lines, "tokens_per_fill": lines, "fill_interval": "1s"}
    resource = {"@type": _RESOURCE, "name": "activity", "resource": bucket}
    return json.dumps({"version_info": "1", "resources": [resource]})


def _hold_body(name: str, limit_mb: int) -> dict[str, Any]:
    """A filter that lets a request pass once its body is complete, and answers 413 to one that is too large."""
    limit = {"@type": _BUFFER, "max_request_bytes": limit_mb * 1024 * 1024}
    return {"name": name, "typed_config": limit, "disabled": True}


def _recent_filter() -> dict[str, Any]:
    """First of all filters: it decides where the request goes."""
    types = [f"type.googleapis.com/{name}" for name in (recent.TYPE_MATCHER, recent.TYPE_NOTHING)]
    source = {"config_source": _file_source(RECENT_FILE, RECENT_FOLDER), "type_urls": types}
    return {"name": recent.FILTER, "config_discovery": source}


def _rate_filter(settings: Settings) -> dict[str, Any]:
    return limits.rate_filter(settings.hub_requests_per_second, settings.sign_ins_per_second)


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
            _recent_filter(),
            _rate_filter(settings),
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
        "upgrade_configs": [
            {"upgrade_type": "websocket", "filters": [_recent_filter(), _rate_filter(settings), router]}
        ],
        "http2_protocol_options": {
            # No WebSockets over HTTP/2 (RFC 8441): they carry no Sec-WebSocket-Key, which tornado and uvicorn demand of
            # the HTTP/1.1 request that Envoy makes of them. Browsers open an HTTP/1.1 connection for them instead.
            "allow_connect": False,
            "max_concurrent_streams": 256,
            "initial_stream_window_size": 1_048_576,
            "initial_connection_window_size": 4_194_304,
            "connection_keepalive": {"interval": "60s", "timeout": "30s"},
        },
        "common_http_protocol_options": {
            "idle_timeout": _seconds(settings.client_idle_timeout),
            # A WSGI service cannot tell X_Forwarded_For from X-Forwarded-For.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "stream_flush_timeout": _seconds(settings.client_stall_timeout),
        "request_headers_timeout": _seconds(settings.request_headers_timeout),
        "max_request_headers_kb": settings.max_header_kb,
        "local_reply_config": _error_pages(settings.notebooks_url),
        "access_log": [*_activity_logs(), *([_access_log()] if settings.access_log else [])],
        "access_log_options": {"access_log_flush_interval": _seconds(settings.activity_interval)},
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
    listener = {
        "name": "public",
        "address": address,
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
    }
    if not settings.unix_socket:
        listener["socket_options"] = limits.socket_options(settings.client_stall_timeout)
    return listener


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
        "connect_timeout": _seconds(settings.connect_timeout),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        # Every WebSocket holds a request and a connection; the default is 1,024 of each.
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _UNLIMITED)]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
    if name == CLUSTER_UNIX:
        cluster["type"] = "EDS"
        cluster["eds_cluster_config"] = {"eds_config": _file_source(SOCKETS_FILE, SOCKETS_FOLDER)}
        one = {"keys": [SOCKET_KEY], "single_host_per_subset": True, "fallback_policy": "NO_FALLBACK"}
        cluster["lb_subset_config"] = {"subset_selectors": [one], "fallback_policy": "NO_FALLBACK"}
    else:
        cluster["type"] = "ORIGINAL_DST"
        cluster["lb_policy"] = "CLUSTER_PROVIDED"
        cluster["original_dst_lb_config"] = {"use_http_header": True}
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


def render(settings: Settings) -> dict[str, Any]:
    """Envoy's bootstrap document."""
    return {
        "node": {"id": "marimohub", "cluster": "marimohub"},
        "admin": {
            "address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}},
            "allow_paths": [{"exact": path} for path in ADMIN_PATHS],
        },
        "overload_manager": limits.overload_manager(settings.max_connections, settings.max_memory_mb),
        "dynamic_resources": {
            "lds_config": {
                "path_config_source": {"path": LISTENERS_FILE, "watched_directory": {"path": LISTENERS_FOLDER}},
                "resource_api_version": "V3",
                "initial_fetch_timeout": "2s",
            }
        },
        "static_resources": {
            "clusters": [_cluster(name, settings) for name in (CLUSTER, CLUSTER_TLS, CLUSTER_UNIX)],
        },
    }


def render_listeners(settings: Settings | None) -> str:
    """The listener as a DiscoveryResponse (JSON); None for an Envoy that shall accept nothing any more."""
    listeners = [{"@type": _LISTENER, **_listener(settings)}] if settings else []
    return json.dumps({"version_info": str(len(listeners)), "resources": listeners})


def render_tls(version: str, certificate: str, key: str) -> str:
    """The listener's certificate as Envoy watches it (JSON text); takes PEM text, not file names."""
    pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
    secret = {"@type": _SECRET, "name": "public", "tls_certificate": pair}
    return json.dumps({"version_info": version, "resources": [secret]})


def fingerprint(settings: Settings, *command: str) -> str:
    """Names a running Envoy's static configuration and command line: equal means it may be kept."""
    document = [render(settings), render_listeners(settings), render_activity_limit(), asdict(settings), command]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
