"""The route table the hub asked for, kept in a file that survives the hub, Envoy and a power cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from marimohub.proxy import routes
from marimohub.proxy.routes import Route

FORMAT = 1


class TableUnreadable(Exception):
    """The stored table is damaged or of a newer version."""


def write_atomically(path: Path, content: str | bytes, *, durable: bool, mode: int = 0o600) -> None:
    """Replace `path` by rename, so that a reader sees the old or the new text, never a part.

    Args:
        durable: also survive a power cut (fsync of file and folder; milliseconds).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RouteTable:
    """Routes by routespec. Each is rendered once, when it is set, so one more among 10,000 costs little."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._stored: dict[str, str] = {}
        self._rendered: dict[str, dict[str, bytes]] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def get(self, routespec: str) -> Route | None:
        return self._routes.get(routespec)

    def values(self) -> list[Route]:
        return list(self._routes.values())

    def set(self, route: Route) -> None:
        """Add or replace. Raises BadRoute, and then changes nothing, if the route cannot be served."""
        host, path = routes.split_routespec(route.routespec)
        rendered = routes.render_route(route)
        members = {"target": route.target, "address": route.address, "data": route.data}
        stored = f"{json.dumps(route.routespec)}:{json.dumps(members, separators=(',', ':'))}"
        key = routes.canonical(path)
        for other in [r for r in self._same(host, key) if r != route.routespec]:
            self.remove(other)
        self._routes[route.routespec] = route
        self._stored[route.routespec] = stored
        self._rendered.setdefault(host, {})[key] = rendered

    def _same(self, host: str, key: str) -> list[str]:
        """Routespecs that spell the same path differently; Envoy refuses a map with one key twice."""
        if key not in self._rendered.get(host, {}):
            return []
        return [
            spec
            for spec in self._routes
            if (parts := routes.split_routespec(spec))[0] == host and routes.canonical(parts[1]) == key
        ]

    def remove(self, routespec: str) -> Route | None:
        """Remove and return the route, or None if there is none."""
        route = self._routes.pop(routespec, None)
        if route is not None:
            del self._stored[routespec]
            host, path = routes.split_routespec(routespec)
            del self._rendered[host][routes.canonical(path)]
            if not self._rendered[host]:
                del self._rendered[host]
        return route

    def snapshot(self) -> Snapshot:
        """A frozen copy that a thread can turn into text."""
        return Snapshot(list(self._stored.values()), {host: dict(r) for host, r in self._rendered.items()})

    @classmethod
    def load(cls, path: Path) -> RouteTable:
        """The stored table, empty if there is no file. Raises TableUnreadable, OSError."""
        table = cls()
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise TableUnreadable(f"{path} has format {document['format']}, expected {FORMAT}")
            for routespec, stored in document["routes"].items():
                table.set(Route(routespec, stored["target"], stored["address"], stored["data"]))
        except FileNotFoundError:
            return table
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TableUnreadable(f"{path} is damaged: {error}") from error
        return table


class Snapshot:
    """The table at one moment."""

    def __init__(self, stored: list[str], rendered: dict[str, dict[str, bytes]]) -> None:
        self._stored = stored
        self._rendered = rendered

    def save(self, path: Path) -> None:
        """Write the table durably."""
        text = f'{{"format":{FORMAT},"routes":{{\n' + ",\n".join(self._stored) + "\n}}\n"
        write_atomically(path, text, durable=True)

    def publish(self, path: Path, version: str, *, trusted_hops: int) -> None:
        """Write what Envoy reads. Not durable: it is rendered again at every start."""
        content = routes.render_table(version, self._rendered, trusted_hops=trusted_hops)
        write_atomically(path, content, durable=False)
