"""HTTP: parse, call one domain function, render. `routes` is the list that the app prepends to JupyterHub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marimohub.handlers import accounts as account_pages
from marimohub.handlers import (
    drafts,
    events,
    metrics,
    notebooks,
    openapi,
    pages,
    people,
    policy,
    policy_pages,
    profiles,
    servers_admin,
    snapshots,
    versions,
)  # fmt: skip
from marimohub.opening import HubServices

__all__ = ["HubServices", "overrides", "routes"]


def routes(static: Path | None, *, accounts: bool) -> list[tuple[Any, ...]]:
    """Handlers relative to a prefix.

    Args:
        static: folder of our static files; None for the bare `/api/…` paths outside the hub's prefix, where no cookie
            reaches and only the API is served.
        accounts: whether this hub keeps accounts of its own.
    """
    found: list[tuple[Any, ...]] = [
        *notebooks.handlers,
        *versions.handlers,
        *drafts.handlers,
        *policy.handlers,
        *snapshots.handlers,
        *profiles.handlers,
        *servers_admin.handlers,
    ]
    if static is not None:
        found += [
            (r"/marimohub-static/(.+)", pages.StaticHandler, {"path": str(static)}),
            *pages.handlers,
            *policy_pages.handlers,
            *events.handlers,
        ]
        if accounts:
            found += account_pages.handlers
    return [*found, *openapi.handlers(pages=static is not None)]


def overrides() -> list[tuple[Any, ...]]:
    """JupyterHub's own calls that mean more here, relative to the hub's prefix."""
    return [*people.handlers, *metrics.handlers]
