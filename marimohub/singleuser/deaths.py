"""Why a kernel ended, for the pages that had it.

The guard, which watches the server's limits, tells what it has killed and why. marimo notices within a second that a
kernel is gone and shows a banner with a button to restart it: the reason goes into that one.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterable
from typing import Any, Protocol

from marimohub.singleuser import breaches

log = logging.getLogger("marimohub.singleuser")

PATIENCE = 5.0  # seconds after a kernel was killed in which the guard's word about it may still be on its way
RECENT = 10.0  # seconds in which a kernel's end goes back to a breach that names no process
_REMEMBERED = 100


class Pages(Protocol):
    """What this needs of marimo's server."""

    def has_kernel(self, pid: int) -> bool:
        """Whether this process is a kernel that a page has open."""

    def tell_all(self, title: str, text: str) -> None:
        """Show a lasting banner in all open pages."""


class Deaths:
    """What is known about kernels that ended. `guarded`: whether there is a guard that will tell."""

    def __init__(self, pages: Pages, *, guarded: bool) -> None:
        self._pages, self._guarded = pages, guarded
        self._breaches: dict[int, dict[str, Any]] = {}
        self._seen: dict[int, float] = {}
        self._at_large: tuple[float, dict[str, Any]] | None = None

    def heard(self, breach: dict[str, Any]) -> None:
        """Take the guard's word that a limit was exceeded (see breaches.py)."""
        title, text = breaches.sentence(breach)
        log.warning("%s", breach["text"])
        killed = {pid for pid in (breach.get("pid"), *_list(breach.get("pids"))) if isinstance(pid, int)}
        kernels = [pid for pid in killed if self._pages.has_kernel(pid)]
        for pid in kernels:
            _remember(self._breaches, pid, breach)
        if not kernels:
            self._at_large = (time.monotonic(), breach)
            self._pages.tell_all(title, text)

    def reason_may_come(self, pid: int | None, exitcode: int | None) -> bool:
        """Whether to wait a moment before saying that this kernel ended: the guard may be about to say why."""
        if not self._guarded or exitcode not in (None, -signal.SIGKILL) or pid is None or pid in self._breaches:
            return False
        if pid not in self._seen:
            _remember(self._seen, pid, time.monotonic())
        return time.monotonic() - self._seen[pid] < PATIENCE

    def reason(self, pid: int | None, exitcode: int | None, notebook: str) -> str:
        """Why a kernel ended, for the person who has the notebook open."""
        breach = self._breaches.get(pid) if pid is not None else None
        if breach is None and exitcode == -signal.SIGKILL and self._at_large is not None:
            when, unnamed = self._at_large
            breach = unnamed if time.monotonic() - when < RECENT else None
        if breach is not None:
            return breaches.sentence(breach, notebook)[1]
        return breaches.kernel_ended(exitcode, notebook)[1]


def _list(found: object) -> Iterable[object]:
    return found if isinstance(found, list) else ()


def _remember(kept: dict[int, Any], pid: int, value: Any) -> None:
    kept[pid] = value
    if len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
