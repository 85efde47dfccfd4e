"""Keeping Envoy alive: restarts it with backoff, tells its warnings to the hub's log, renews its certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from marimohub.proxy.admin import Admin
from marimohub.proxy.errors import ProxyError
from marimohub.proxy.process import EnvoyProcess

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 10.0
_STEADY_SECONDS = 30.0
_MISSED_CHECKS = 5
_LINE = re.compile(r"^\S+ \[(warning|error|critical)\] \[\w+\] (.*)$", re.DOTALL)
_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}


def _shortened(message: str) -> str:
    """A refused configuration is quoted in full by Envoy, and the reason comes last."""
    return message if len(message) <= 800 else f"{message[:200]} […] {message[-500:]}"


class Supervisor:
    """Watches one Envoy until cancelled.

    Args:
        start: starts Envoy and waits until it serves; raises ProxyError.
        each_check: called at every check, for what else must be looked after.
        interval: seconds between health checks. A process that ends is noticed at once.
        grace: seconds between SIGTERM and SIGKILL for an Envoy that stopped answering.
    """

    def __init__(
        self,
        process: EnvoyProcess,
        admin: Admin,
        log: Any,
        *,
        start: Callable[[], Awaitable[None]],
        each_check: Callable[[], Awaitable[None]],
        interval: float,
        grace: float,
    ) -> None:
        self._process = process
        self._admin = admin
        self._log = log
        self._start = start
        self._each_check = each_check
        self._interval = interval
        self._grace = grace
        self._log_offset = self._log_size()
        self.restarts = 0
        self._missed = 0
        self._delay = _FIRST_DELAY
        self._started = asyncio.get_running_loop().time()

    def _log_size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._process.log_path.stat().st_size
        return 0

    async def run(self) -> None:
        """Until cancelled, whatever happens: without it nobody starts Envoy again."""
        while True:
            if not await self._quietly(self._watch):
                await asyncio.sleep(self._interval)

    async def _watch(self) -> None:
        """One look at Envoy, and a new start if it is gone. Raises OSError if there are no descriptors to look with."""
        ended = await self._process.wait_ended(self._interval)
        await asyncio.to_thread(self.relay_log)
        if not ended:
            self._missed = 0 if await self._admin.is_live() else self._missed + 1
            if self._missed < _MISSED_CHECKS:
                await self._each_check()
                return
            self._log.error("Envoy has not answered %i health checks: ending it", self._missed)
            await self._process.stop(self._grace)
        loop = asyncio.get_running_loop()
        steady = loop.time() - self._started > _STEADY_SECONDS
        self._delay = _FIRST_DELAY if steady else min(self._delay * 2, _LONGEST_DELAY)
        self._log.warning("Envoy (the proxy) ended unexpectedly: starting it again")
        while not await self._quietly(self._start):
            await asyncio.sleep(self._delay)
            self._delay = min(self._delay * 2, _LONGEST_DELAY)
        self.restarts += 1
        self._missed = 0
        self._started = loop.time()
        if not steady:  # It died young: do not spin if it goes on doing so.
            await asyncio.sleep(self._delay / 2)

    async def _quietly(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Whether the action worked; the supervisor itself must survive whatever happens."""
        try:
            await action()
        except (ProxyError, OSError) as error:
            self._log.error("Proxy: %s", error)
            return False
        except Exception:
            self._log.exception("Proxy: unexpected error in the supervisor")
            return False
        return True

    def relay_log(self) -> None:
        """Copy what Envoy warned of since the last call into the hub's log. Reads a file."""
        if self._process.trim_log():
            self._log_offset = 0
        try:
            with open(self._process.log_path, "rb") as file:
                file.seek(self._log_offset)
                new = file.read(1_000_000)
        except FileNotFoundError:
            return
        complete, newline, _ = new.rpartition(b"\n")
        self._log_offset += len(complete) + len(newline)
        for line in complete.decode(errors="replace").splitlines():
            if match := _LINE.match(line):
                self._log.log(_LEVELS[match[1]], "Envoy: %s", _shortened(match[2]))
