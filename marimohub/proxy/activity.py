"""When each server was last used, told by the traffic through Envoy: an open notebook in use is never culled as idle.

Envoy writes ACTIVITY_LOG: a line for each request that ended, and every few seconds one for each that has not, with the
bytes so far. So a WebSocket counts while something is said on it, and a forgotten tab does not. Lines hold addresses
and numbers and nothing that a client could choose.

The log goes on without a hub. It is emptied once what it said is in STORED_FILE, so nothing is lost between two hubs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from marimohub.proxy.table import write_atomically

STORED_FILE = "activity.json"
# Envoy's kind of line → its format; the address comes last, since the path of a socket may hold blanks.
FORMATS = {
    "DownstreamEnd": "E %START_TIME(%s)% %RESPONSE_CODE% %UPSTREAM_HOST%\n",
    "DownstreamPeriodic": (
        "P %START_TIME(%s)% %RESPONSE_CODE% %DURATION% %STREAM_ID% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST%\n"
    ),
}
_EMPTY_OVER_BYTES = 1_000_000
_STORE_SECONDS = 60.0
_DAY_SECONDS = 86_400.0
_CHUNK_BYTES = 4_000_000
# What keeps an unused WebSocket open is no use of it. uvicorn pings every 20 seconds with 6 bytes and gets 10 back.
_PING_BYTES = 14
_PING_BYTES_PER_SECOND = 1.0
_SWITCHED, _NOT_MODIFIED = 101, 304


class ActivityUnreadable(Exception):
    """What an earlier hub stored is damaged."""


def _counts(code: int) -> bool:
    """Whether the server did what was asked: strangers, who are turned away, do not keep it running."""
    return 200 <= code < 300 or code in (_SWITCHED, _NOT_MODIFIED)


class Lines:
    """Makes times of use out of lines.

    Args:
        interval: seconds between two lines about one open request.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._streams: dict[str, tuple[float, int, int]] = {}  # id → time, bytes received and sent until then

    def take(self, lines: Collection[str]) -> dict[str, float]:
        """Address → when it was used last (seconds since the epoch), of those that these lines say were used."""
        used: dict[str, float] = {}
        for line in dict.fromkeys(lines):  # most are equal to another when there are many
            try:
                found = self._one(line)
            except ValueError:  # a piece of a line, after the disk was full
                continue
            if found is not None and found[1] > used.get(found[0], 0.0):
                used[found[0]] = found[1]
        self._forget_ended()
        return used

    def _one(self, line: str) -> tuple[str, float] | None:
        kind, start, code, rest = line.split(" ", 3)
        if not _counts(int(code)):
            return None
        if kind == "E":
            return rest, float(start)
        duration, stream, received, sent, address = rest.split(" ", 4)
        now = float(start) + int(duration) / 1000
        if self._moved(stream, now, float(start), int(received), int(sent)):
            return address, now
        return None

    def _moved(self, stream: str, now: float, start: float, received: int, sent: int) -> bool:
        """Whether more was said on the stream since its last line than keeps it open."""
        before = self._streams.get(stream)
        self._streams[stream] = (now, received, sent)
        if before is None:
            if now - start > 1.5 * self._interval:  # Its earlier lines are gone: nobody knows when these bytes were.
                return False
            before = (start, 0, 0)
        quiet = max(_PING_BYTES, (now - before[0]) * _PING_BYTES_PER_SECOND)
        return received - before[1] > quiet or sent - before[2] > quiet

    def _forget_ended(self) -> None:
        latest = max((now for now, _, _ in self._streams.values()), default=0.0)
        ended = [stream for stream, (now, _, _) in self._streams.items() if latest - now > 3 * self._interval + 10]
        for stream in ended:
            del self._streams[stream]


class Activity:
    """When the server at each address was used last.

    Args:
        log: file that Envoy writes.
        interval: seconds between two of its lines about one open request.
    """

    def __init__(self, log: Path, interval: float) -> None:
        self._log = log
        self._stored = log.with_name(STORED_FILE)
        self._lines = Lines(interval)
        self._used: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._offset = 0
        self._stored_at = time.monotonic()
        self._lock = asyncio.Lock()

    def load(self) -> None:
        """What an earlier hub stored. Raises ActivityUnreadable; then it begins with nothing."""
        try:
            members = json.loads(self._stored.read_text())
            used, since = members["used"], members["since"]
            self._used = {str(address): float(moment) for address, moment in used.items()}
            self._since = {str(address): float(moment) for address, moment in since.items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._used, self._since = {}, {}
            raise ActivityUnreadable(f"{self._stored} is damaged: {error}") from error

    def last(self, address: str) -> float | None:
        """When the server there was last used, in seconds since the epoch; None if it was not."""
        return self._used.get(address)

    def begin(self, address: str) -> None:
        """Another server is there from now on: what the former one did says nothing about it."""
        self._used.pop(address, None)
        self._since[address] = time.time()

    def merge(self, used: Mapping[str, float]) -> None:
        """Take in what further Envoys saw: address → seconds since the epoch, by the clocks of their machines."""
        now = time.time()
        for address, moment in used.items():
            if moment >= self._since.get(address, 0.0) - 1.0:
                self._used[address] = max(min(moment, now), self._used.get(address, 0.0))

    def recent(self, seconds: float) -> dict[str, float]:
        """Address → when its server was used last, of those that were in these last seconds."""
        after = time.time() - seconds
        return {address: moment for address, moment in self._used.items() if moment > after}

    async def update(self, addresses: Collection[str] | None) -> None:
        """Take in what Envoy wrote since the last call, and forget servers that are not at one of `addresses`.

        None, where these are not known: those that were not used for a day.
        """
        async with self._lock:
            while await self._take_chunk():
                pass
            known = set(self.recent(_DAY_SECONDS) if addresses is None else addresses)
            for kept in (self._used, self._since):
                for address in kept.keys() - known:
                    del kept[address]
            due = time.monotonic() - self._stored_at > _STORE_SECONDS
            if self._offset > _EMPTY_OVER_BYTES or (due and self._offset):
                await self._store()

    async def _take_chunk(self) -> bool:
        """Whether there may be more."""
        text, more = await asyncio.to_thread(self._read)
        # The times are of whole seconds, the start of the second in which a request began.
        for address, moment in (await asyncio.to_thread(self._lines.take, text.splitlines())).items():
            if moment >= self._since.get(address, 0.0) - 1.0:
                self._used[address] = max(moment, self._used.get(address, 0.0))
        return more

    def _read(self) -> tuple[str, bool]:
        try:
            with open(self._log, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # somebody else emptied it
                    self._offset = 0
                file.seek(self._offset)
                new = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return "", False
        complete, newline, _ = new.rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return complete.decode(errors="replace"), len(new) == _CHUNK_BYTES and bool(newline)

    async def _store(self) -> None:
        """Write down what is known and empty the log.

        A line that Envoy writes in the same moment is lost; an open connection gives another soon.
        """
        document = json.dumps({"used": self._used, "since": self._since})
        await asyncio.to_thread(write_atomically, self._stored, document, durable=False)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._log, 0)
        self._offset = 0
        self._stored_at = time.monotonic()
