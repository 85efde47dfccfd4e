"""Routes that Envoy has not got in its table yet: a small filter in front of it, so that one more costs little.

Envoy builds its whole table anew for every change, about 8 µs for each route: 0.1 s of one core for 10,000. So a new
route among many goes into this filter first, which holds LIMIT routes at the most, and into the table right afterwards.
The filter knows targets only: it says where a request goes, and the table's first rule (`routes.RECENT_STATE`) obeys.

Only what needs nothing else can be here: a server reached by plain HTTP, on any host name, not the hub. Routes below a
path that is here must be here as well, or requests for them would end at the wrong server.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from marimohub.proxy.routes import PATH_INPUT, RECENT_STATE, Route, prefix_map, split_routespec
from marimohub.proxy.wire import encode

LIMIT = 50
FILTER = "recent"
TYPE_MATCHER = "envoy.extensions.common.matching.v3.ExtensionWithMatcher"
TYPE_NOTHING = "envoy.extensions.filters.http.set_filter_state.v3.Config"
_TYPE_ACTION = "envoy.extensions.filters.http.composite.v3.ExecuteFilterAction"


def fits(route: Route) -> bool:
    """Whether the route can be served from here."""
    return not (route.tls or route.unix or route.is_hub) and split_routespec(route.routespec)[0] == "*"


def render_route(route: Route) -> bytes:
    """The entries of one route, one for each spelling of its path."""
    value = {
        "object_key": RECENT_STATE,
        # `%` starts a command in a format.
        "format_string": {"text_format_source": {"inline_string": route.address.replace("%", "%%")}},
        "factory_key": "envoy.string",
    }
    state = {"@type": TYPE_NOTHING, "on_request_headers": value, "clear_route_cache": True}
    action = {"@type": _TYPE_ACTION, "typed_config": {"name": "target", "typed_config": state}}
    return prefix_map(split_routespec(route.routespec)[1], lambda key: action)


def render(version: str, routes: Iterable[Route]) -> bytes:
    """The filter as one encoded DiscoveryResponse; without routes it does nothing."""
    entries = b"".join(map(render_route, routes))
    config: dict[str, Any] = {"@type": TYPE_NOTHING}
    if entries:  # An empty map is refused by Envoy.
        config = {
            "@type": TYPE_MATCHER,
            "xds_matcher": {"matcher_tree": {"input": PATH_INPUT, "prefix_match_map": entries}},
            "extension_config": {
                "name": "composite",
                "typed_config": {"@type": "envoy.extensions.filters.http.composite.v3.Composite"},
            },
        }
    resource = {"@type": "envoy.config.core.v3.TypedExtensionConfig", "name": FILTER, "typed_config": config}
    return encode("envoy.service.discovery.v3.DiscoveryResponse", {"version_info": version, "resources": [resource]})
