"""Envoy's statistics are told to whoever may read the hub's metrics."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from marimohub.proxy import metrics
from marimohub.proxy.admin import AdminUnavailable
from tests.hub import Hub
from tests.proxy.conftest import Hubs, Upstream, raw
from tests.proxy.test_envoy import eventually, pid

Start = Callable[..., Upstream]


def values(text: str) -> dict[str, float]:
    """Sample → its value; the same as Prometheus reads it."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(text: str, name: str, **labels: str) -> float:
    """Sum of a family's samples with these labels; the parser gives counters the ending `_total`."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (name, f"{name}_total") and sample.labels.items() >= labels.items()
    )


async def test_envoys_statistics_are_prometheus_text_and_name_nobody(hubs: Hubs, upstream: Start) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    await proxy.add_route("/", upstream("hub").url, {"hub": True})
    alice = upstream("alice")
    await proxy.add_route("/user/alice/", alice.url, {"user": "alice"})
    for path in ("/user/alice/", "/user/alice/x?token=secret", "/hub/home"):
        assert (await raw(proxy, path)).status == 200
    text = await proxy.metrics()
    assert total(text, "marimohub_proxy_up") == 1
    assert total(text, "marimohub_proxy_routes") == 2
    assert total(text, "envoy_http_downstream_rq_total", envoy_http_conn_manager_prefix="public") == 3
    assert total(text, "envoy_cluster_upstream_rq_xx", envoy_response_code_class="2") == 3
    assert total(text, "envoy_server_live") == 1
    assert "envoy_http_local_rate_limit_rate_limited" in text
    assert not re.search(f"alice|secret|{alice.port}|{proxy.public_url.rsplit(':', 1)[1].strip('/')}", text)
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


async def test_metrics_tell_that_envoy_is_away_and_came_back(hubs: Hubs) -> None:
    proxy = hubs.proxy(check_interval=0.2)
    await proxy.start()
    proxy._admin.socket_path = hubs.folder / "nobody.sock"
    assert values(await proxy.metrics())["marimohub_proxy_up[]"] == 0
    assert proxy._process is not None and proxy._supervisor is not None
    proxy._admin.socket_path = proxy._process.admin_socket
    before = pid(proxy)
    os.kill(before, signal.SIGKILL)
    supervisor = proxy._supervisor
    await eventually(lambda: supervisor.restarts == 1, 20)
    text = await proxy.metrics()
    assert total(text, "marimohub_proxy_up") == 1
    assert total(text, "marimohub_proxy_restarts_total") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/stats/prometheus",
        "/stats/prometheus?filter=.*",
        metrics.PATH.replace("overload.", ".*"),
        f"{metrics.PATH}&usedonly",
        f"{metrics.PATH}|.*",
        "/clusters",
        "/config_dump",
    ],
)
async def test_the_admin_interface_answers_those_statistics_only(hubs: Hubs, path: str) -> None:
    proxy = hubs.proxy()
    await proxy.start()
    assert await proxy._admin.metrics()
    status, _ = await proxy._admin.get(path)
    assert status == 403
    with pytest.raises(AdminUnavailable, match="403"):
        await proxy._admin.stats(".*")


def test_the_hubs_metrics_have_them_for_whoever_may_read_metrics(tmp_path: Path) -> None:
    hub = Hub(
        tmp_path,
        "c.JupyterHub.services = [{'name': n, 'api_token': n[0] * 40} for n in ('prometheus', 'other')]\n"
        "c.JupyterHub.load_roles = [{'name': 'metrics', 'scopes': ['read:metrics'], 'services': ['prometheus']}]",
    )
    try:
        hub.start()
        for path in ("/hub/metrics", "/hub/api/metrics"):
            found = requests.get(hub.url + path, headers={"Authorization": f"token {'p' * 40}"}, timeout=10)
            assert found.status_code == 200
            assert total(found.text, "marimohub_proxy_up") == 1
            assert total(found.text, "envoy_http_downstream_rq_total") > 0
            assert "jupyterhub_init_spawners_duration_seconds" in found.text
            refused = requests.get(hub.url + path, headers={"Authorization": f"token {'o' * 40}"}, timeout=10)
            assert refused.status_code == 403
            assert "envoy_" not in requests.get(hub.url + path, timeout=10).text
    finally:
        hub.stop()
