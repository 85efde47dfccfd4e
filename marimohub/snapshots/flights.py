"""Single flight: work that many ask for at once is done once, and ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Told how far the work is, from 0 to 1, and in a few words what is being done.
Report = Callable[[float, str], None]


def ignore(_part: float, _what: str) -> None:
    """A report that nobody reads."""


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.task: asyncio.Task[T] | None = None
        self.listeners: list[Report] = []
        self.last: tuple[float, str] | None = None

    def report(self, part: float, what: str) -> None:
        self.last = part, what
        for listener in self.listeners:
            listener(part, what)


class Flights(Generic[T]):
    """Running work by key."""

    def __init__(self) -> None:
        self._running: dict[str, _Flight[T]] = {}

    async def join(self, key: str, work: Callable[[Report], Awaitable[T]], report: Report = ignore) -> T:
        """The outcome of `work`, which is started unless it runs already for this key.

        Every caller's `report` hears of its progress. It is cancelled when all callers were.
        """
        flight = self._running.get(key)
        if flight is None:
            flight = self._running[key] = _Flight()
            flight.task = asyncio.ensure_future(self._run(key, flight, work))
        assert flight.task is not None
        if flight.last is not None:
            report(*flight.last)
        flight.listeners.append(report)
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if len(flight.listeners) == 1 and not flight.task.done():
                # nobody may join what is about to be cancelled
                self._forget(key, flight)
                flight.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await flight.task
            raise
        finally:
            flight.listeners.remove(report)

    async def _run(self, key: str, flight: _Flight[T], work: Callable[[Report], Awaitable[T]]) -> T:
        try:
            return await work(flight.report)
        finally:
            self._forget(key, flight)

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._running.get(key) is flight:
            del self._running[key]
