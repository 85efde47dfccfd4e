"""Servers on Unix sockets: the endpoints of one cluster, among which each route picks its own.

ORIGINAL_DST, which serves every other target, takes an IP address and nothing else. A cluster for each socket would
cost Envoy 50 KB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from marimohub.proxy.routes import CLUSTER_UNIX, SOCKET_KEY

_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def render(version: str, paths: Iterable[str]) -> bytes:
    """The endpoints as a DiscoveryResponse (JSON)."""
    endpoints = [
        {
            "endpoint": {"address": {"pipe": {"path": path}}},
            "metadata": {"filter_metadata": {"envoy.lb": {SOCKET_KEY: path}}},
        }
        for path in sorted(set(paths))
    ]
    assignment = {"@type": _TYPE, "cluster_name": CLUSTER_UNIX, "endpoints": [{"lb_endpoints": endpoints}]}
    return json.dumps({"version_info": version, "resources": [assignment]}).encode()
