"""`/hub/metrics`: JupyterHub's metrics with those of our proxy, for whoever may read the former."""

from __future__ import annotations

from typing import Any

from jupyterhub.handlers.metrics import MetricsHandler as JupyterHubMetrics
from jupyterhub.utils import metrics_authentication
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest


class MetricsHandler(JupyterHubMetrics):
    """Needs the scope `read:metrics`, as JupyterHub's own."""

    @metrics_authentication
    async def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.write(generate_latest(REGISTRY))
        if hasattr(self.proxy, "metrics"):  # another proxy has metrics of its own, elsewhere
            self.write(await self.proxy.metrics())


handlers: list[tuple[Any, ...]] = [(r"/metrics", MetricsHandler), (r"/api/metrics", MetricsHandler)]
