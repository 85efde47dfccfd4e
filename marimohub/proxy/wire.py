"""Protocol buffers for the few of Envoy's messages that a route table is made of.

Envoy reads a table of 10,000 routes three times faster as protocol buffers than as JSON, and that time is what every
new route waits for. Field numbers are from Envoy's and xDS's .proto files; they never change within API v3.
"""

from __future__ import annotations

from typing import Any

# message → field → (number, type of its value); "text" and "number" are scalars, "Any" carries its "@type".
SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "envoy.service.discovery.v3.DiscoveryResponse": {"version_info": (1, "text"), "resources": (2, "Any")},
    "envoy.config.route.v3.RouteConfiguration": {
        "name": (1, "text"),
        "virtual_hosts": (2, "VirtualHost"),
        "request_headers_to_add": (6, "HeaderValueOption"),
        "request_headers_to_remove": (8, "text"),
        "most_specific_header_mutations_wins": (10, "number"),
        "ignore_port_in_host_matching": (14, "number"),
    },
    "VirtualHost": {
        "name": (1, "text"),
        "domains": (2, "text"),
        "retry_policy": (16, "RetryPolicy"),
        "matcher": (21, "Matcher"),
    },
    "Matcher": {
        "matcher_list": (1, "MatcherList"),
        "matcher_tree": (2, "MatcherTree"),
        "on_no_match": (3, "OnMatch"),
    },
    "MatcherList": {"matchers": (1, "FieldMatcher")},
    "FieldMatcher": {"predicate": (1, "Predicate"), "on_match": (2, "OnMatch")},
    "Predicate": {"single_predicate": (1, "SinglePredicate")},
    "SinglePredicate": {"input": (1, "Extension"), "value_match": (2, "StringMatcher")},
    "StringMatcher": {"exact": (1, "text"), "safe_regex": (5, "RegexMatcher"), "ignore_case": (6, "number")},
    "RegexMatcher": {"google_re2": (1, "Empty"), "regex": (2, "text")},
    "Empty": {},
    "MatcherTree": {"input": (1, "Extension"), "prefix_match_map": (3, "MatchMap")},
    "MatchMap": {"map": (1, "MapEntry")},
    "MapEntry": {"key": (1, "text"), "value": (2, "OnMatch")},
    "OnMatch": {"matcher": (1, "Matcher"), "action": (2, "Extension")},
    "Extension": {"name": (1, "text"), "typed_config": (2, "Any")},
    "Any": {"type_url": (1, "text"), "value": (2, "bytes")},
    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput": {"header_name": (1, "text")},
    "envoy.config.route.v3.Route": {
        "match": (1, "RouteMatch"),
        "route": (2, "RouteAction"),
        "direct_response": (7, "DirectResponse"),
        "request_headers_to_add": (9, "HeaderValueOption"),
        "typed_per_filter_config": (13, "FilterEntry"),
    },
    "envoy.config.route.v3.RouteList": {"routes": (1, "envoy.config.route.v3.Route")},
    "envoy.config.route.v3.FilterConfig": {"config": (1, "Any")},
    "FilterEntry": {"key": (1, "text"), "value": (2, "Any")},
    "RouteMatch": {"prefix": (1, "text"), "headers": (6, "HeaderMatcher")},
    "HeaderMatcher": {
        "name": (1, "text"),
        "present_match": (7, "number"),
        "invert_match": (8, "number"),
        "string_match": (13, "StringMatcher"),
    },
    "RouteAction": {
        "cluster": (1, "text"),
        "metadata_match": (4, "Metadata"),
        "timeout": (8, "Duration"),
        "retry_policy": (9, "RetryPolicy"),
        "idle_timeout": (24, "Duration"),
        "upgrade_configs": (25, "UpgradeConfig"),
    },
    "Metadata": {"filter_metadata": (1, "MetadataEntry")},
    "MetadataEntry": {"key": (1, "text"), "value": (2, "Struct")},
    "Struct": {"fields": (1, "StructEntry")},
    "StructEntry": {"key": (1, "text"), "value": (2, "Value")},
    "Value": {"string_value": (3, "text")},
    "UpgradeConfig": {"upgrade_type": (1, "text"), "enabled": (2, "BoolValue")},
    "BoolValue": {"value": (1, "number")},
    "RetryPolicy": {
        "retry_on": (1, "text"),
        "num_retries": (2, "UInt32Value"),
        "retry_back_off": (8, "BackOff"),
        "retriable_request_headers": (10, "HeaderMatcher"),
    },
    "BackOff": {"base_interval": (1, "Duration"), "max_interval": (2, "Duration")},
    "UInt32Value": {"value": (1, "number")},
    "Duration": {"seconds": (1, "number"), "nanos": (2, "number")},
    "DirectResponse": {"status": (1, "number"), "body": (2, "DataSource")},
    "DataSource": {"inline_string": (3, "text")},
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, "number")},
    "HeaderValue": {"key": (1, "text"), "value": (2, "text")},
    "envoy.extensions.filters.http.buffer.v3.BufferPerRoute": {"disabled": (1, "number")},
    "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput": {"key": (1, "text")},
    "envoy.config.core.v3.TypedExtensionConfig": {"name": (1, "text"), "typed_config": (2, "Any")},
    "envoy.extensions.common.matching.v3.ExtensionWithMatcher": {
        "extension_config": (2, "Extension"),
        "xds_matcher": (3, "Matcher"),
    },
    "envoy.extensions.filters.http.composite.v3.Composite": {},
    "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction": {"typed_config": (1, "Extension")},
    "envoy.extensions.filters.http.set_filter_state.v3.Config": {
        "on_request_headers": (1, "FilterStateValue"),
        "clear_route_cache": (2, "number"),
    },
    "FilterStateValue": {"object_key": (1, "text"), "format_string": (2, "FormatString"), "factory_key": (6, "text")},
    "FormatString": {"text_format_source": (5, "DataSource")},
}
TYPE_PREFIX = "type.googleapis.com/"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _payload(kind: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if kind == "text":
        return bytes(value.encode())
    if kind == "Any":
        members = dict(value)
        message = members.pop("@type")
        return encode("Any", {"type_url": TYPE_PREFIX + message, "value": encode(message, members)})
    return encode(kind, value)


def encode(message: str, members: dict[str, Any]) -> bytes:
    """The bytes of one message.

    Args:
        message: a key of SCHEMA; KeyError for a name or field that is not there.
        members: field → value, a list of them for a repeated field. `bytes` stand for what is encoded already.
    """
    fields = SCHEMA[message]
    out = []
    for name, value in members.items():
        number, kind = fields[name]
        for item in value if isinstance(value, list) else [value]:
            if kind == "number":
                if item:  # Zero is the default, which is not written.
                    out.append(_varint(number << 3) + _varint(int(item)))
            else:
                out.append(_field(number, _payload(kind, item)))
    return b"".join(out)
