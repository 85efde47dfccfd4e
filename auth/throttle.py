"""Counting attempts in a sliding window, so that guessing and flooding get slow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

_PURGE_ABOVE = 10_000  # keys


class Throttle:
    """At most `limit` attempts per key within `window` seconds. Kept in memory: a restart forgets them."""

    def __init__(self, limit: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._attempts: dict[Hashable, deque[float]] = {}

    def take(self, key: Hashable) -> bool:
        """Count an attempt before it is made; False if there were too many. A limit of 0 means none."""
        if not self.limit:
            return True
        now = self._clock()
        if len(self._attempts) > _PURGE_ABOVE:
            self._purge(now)
        attempts = self._recent(key, now)
        if len(attempts) >= self.limit:
            return False
        attempts.append(now)
        return True

    def forgive(self, key: Hashable) -> None:
        """Take back the newest attempt: it was a right one."""
        attempts = self._attempts.get(key)
        if attempts:
            attempts.pop()

    def _recent(self, key: Hashable, now: float) -> deque[float]:
        attempts = self._attempts.setdefault(key, deque())
        while attempts and attempts[0] <= now - self.window:
            attempts.popleft()
        return attempts

    def _purge(self, now: float) -> None:
        for key in list(self._attempts):
            if not self._recent(key, now):
                del self._attempts[key]
