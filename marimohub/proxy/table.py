"""The route table the hub asked for, kept in a file that survives the hub, Envoy and a power cut."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from marimohub.proxy import routes
from marimohub.proxy.errors import BadRoute
from marimohub.proxy.routes import Route

FORMAT = 1
RECENT_FILE = "recent.json"  # beside the table: routes that are newer than it


class TableUnreadable(Exception):
    """The stored table, or its file of recent routes, is damaged or of a newer version."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path = path


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
    """Routes by routespec. Each is rendered once, when it is set, so one more among 10,000 costs little.

    Attributes:
        changes: how many there were, over all restarts; tells which of two stored routes is newer.
    """

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._stored: dict[str, str] = {}
        self._rendered: dict[str, dict[str, bytes]] = {}
        self._sockets: dict[str, str] = {}
        self.changes = 0

    def __len__(self) -> int:
        return len(self._routes)

    def get(self, routespec: str) -> Route | None:
        return self._routes.get(routespec)

    def values(self) -> list[Route]:
        return list(self._routes.values())

    @property
    def has_hosts(self) -> bool:
        """Whether any route is for one host name only."""
        return bool(self._rendered.keys() - {"*"})

    def sockets(self) -> frozenset[str]:
        """Paths of the Unix sockets that routes lead to."""
        return frozenset(self._sockets.values())

    def below(self, routespec: str) -> list[Route]:
        """Routes whose path begins with that of `routespec` on the same host, without that one."""
        host, path = routes.split_routespec(routespec)
        prefix = routes.canonical(path)
        if not any(key.startswith(prefix) and key != prefix for key in self._rendered.get(host, {})):
            return []
        found = []
        for route in self._routes.values():
            other, path = routes.split_routespec(route.routespec)
            if other == host and (key := routes.canonical(path)) != prefix and key.startswith(prefix):
                found.append(route)
        return found

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
        self._sockets.pop(route.routespec, None)
        if route.unix:
            self._sockets[route.routespec] = route.address
        self.changes += 1

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
            self._sockets.pop(routespec, None)
            self.changes += 1
            host, path = routes.split_routespec(routespec)
            del self._rendered[host][routes.canonical(path)]
            if not self._rendered[host]:
                del self._rendered[host]
        return route

    def snapshot(self) -> Snapshot:
        """A frozen copy that a thread can turn into text."""
        rendered = {host: dict(r) for host, r in self._rendered.items()}
        return Snapshot(list(self._stored.values()), rendered, self.changes)

    @classmethod
    def load(cls, path: Path) -> RouteTable:
        """The stored table, empty if there is no file. Raises TableUnreadable, OSError."""
        table = cls()
        changes, stored = _read(path, "changes")
        table._restore(path, stored)
        beside = path.with_name(RECENT_FILE)
        latest, stored = _read(beside, "latest")
        if latest > changes:
            table._restore(beside, stored, after=changes)
        table.changes = max(changes, latest)
        return table

    def _restore(self, path: Path, stored: dict[str, dict[str, Any]], *, after: int = -1) -> None:
        try:
            for routespec, members in stored.items():
                if int(members.get("change", 0)) > after:
                    self.set(Route(routespec, members["target"], members["address"], members["data"]))
        except (ValueError, KeyError, TypeError, AttributeError, BadRoute) as error:
            raise TableUnreadable(path, f"is damaged: {error}") from error


def _read(path: Path, number: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The member `number` of a stored document, 0 if it has none, and its routes. Raises TableUnreadable, OSError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise TableUnreadable(path, f"has format {document['format']}, expected {FORMAT}")
        stored = {spec: dict(members) for spec, members in document["routes"].items()}
        return int(document.get(number, 0)), stored
    except FileNotFoundError:
        return 0, {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableUnreadable(path, f"is damaged: {error}") from error


class Snapshot:
    """The table at one moment."""

    def __init__(self, stored: list[str], rendered: dict[str, dict[str, bytes]], changes: int) -> None:
        self._stored = stored
        self._rendered = rendered
        self._changes = changes

    def save(self, path: Path) -> None:
        """Write the table durably."""
        head = f'{{"format":{FORMAT},"changes":{self._changes},"routes":{{\n'
        write_atomically(path, head + ",\n".join(self._stored) + "\n}}\n", durable=True)

    def render(self, version: str, *, trusted_hops: int) -> bytes:
        """What Envoy reads."""
        return routes.render_table(version, self._rendered, trusted_hops=trusted_hops)


def save_recent(path: Path, newest: list[tuple[Route, int]]) -> None:
    """Write routes that are newer than the stored table, each with the number of its change.

    Not durable, since whoever opened a notebook waits for it: this survives a killed hub, and the table, which follows
    within seconds, a power cut too.
    """
    stored = {
        route.routespec: {"change": change, "target": route.target, "address": route.address, "data": route.data}
        for route, change in newest
    }
    latest = max((change for _, change in newest), default=0)
    write_atomically(path, json.dumps({"format": FORMAT, "latest": latest, "routes": stored}), durable=False)
