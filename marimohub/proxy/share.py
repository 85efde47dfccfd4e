"""A folder through which further Envoys get the same routes, and knowing when each of them serves a change.

The hub writes the files that its own Envoy reads here as well, and SETTINGS_FILE. A replica (follower.py) copies them,
asks its Envoy for the versions it serves, and says so in a file of its own in STATUS_FOLDER, anew every BEAT_SECONDS.

The rule that keeps a removed or changed route from being served by a replica that does not know: a replica that cannot
read and write here for LEASE_SECONDS serves no routes until it can, and one whose Envoy does not take what it was given
in that time ends it. The hub waits for every replica that gave a sign of life within PATIENCE_SECONDS, which is longer
than both together. Times are of each one's own monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from marimohub.proxy import bootstrap
from marimohub.proxy.bootstrap import Settings
from marimohub.proxy.errors import ProxyStartFailed, ReplicaBehind
from marimohub.proxy.table import write_atomically

FORMAT = 1
SETTINGS_FILE = "settings.json"
STATUS_FOLDER = "replicas"
BEAT_SECONDS = 0.5
LEASE_SECONDS = 3.0
PATIENCE_SECONDS = 8.0
_FORGET_SECONDS = 3600.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Status:
    """What a replica last said.

    Attributes:
        beat: different in every file that it writes.
        serving: whether people reach their servers through it.
        versions: Envoy's name of a file's version → the one that it serves.
        used: address of a server → when it was last used through it, in seconds since the epoch.
    """

    beat: int
    serving: bool
    versions: dict[str, str]
    used: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> Status:
        """Raises OSError, ValueError."""
        try:
            members = json.loads(path.read_text())
            return cls(
                int(members["beat"]),
                bool(members["serving"]),
                {str(name): str(version) for name, version in members["versions"].items()},
                {str(address): float(moment) for address, moment in members["used"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)), durable=False)


class Share:
    """The hub's side of the folder."""

    def __init__(self, folder: Path, log: Any) -> None:
        self._folder = folder
        self._log = log
        self._heard: dict[str, tuple[int, float]] = {}  # replica → its last beat, and when that was new to us
        self._used: dict[str, float] = {}
        self._complaints: set[str] = set()
        # A thread of its own: one that hangs in a lost network folder must not take the hub's others with it.
        self._thread = ThreadPoolExecutor(1, "envoy-share")

    def open(self) -> None:
        """Make the folder. Raises ProxyStartFailed."""
        try:
            for name in ("", STATUS_FOLDER, *bootstrap.FOLDERS):
                (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
        except OSError as error:
            raise ProxyStartFailed(
                f"The folder for further proxies, {self._folder}, cannot be used: {error.strerror}. "
                "Check c.EnvoyProxy.share_dir."
            ) from error

    async def give(self, file: str, content: str | bytes, *, strict: bool = True) -> None:
        """Replace one of the files.

        Raises ReplicaBehind if that fails or takes too long; with `strict=False` the log has it instead: the hub's own
        Envoy starts without this folder too, and the next change tries again.
        """
        try:
            await self._quickly(partial(write_atomically, self._folder / file, content, durable=False))
        except ReplicaBehind as error:
            if strict:
                raise
            self._log.error("%s", error)

    async def give_settings(self, settings: Settings) -> None:
        """What the replicas' Envoys are started with."""
        document = json.dumps({"format": FORMAT, "settings": asdict(settings)})
        await self.give(SETTINGS_FILE, document, strict=False)

    async def _quickly(self, function: Callable[[], Any], *, seconds: float = 0.0) -> Any:
        try:
            async with asyncio.timeout(seconds or PATIENCE_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except TimeoutError:
            raise ReplicaBehind(f"The folder for further proxies, {self._folder}, does not answer.") from None
        except OSError as error:
            raise ReplicaBehind(f"The folder for further proxies, {self._folder}, cannot be used: {error}.") from error

    async def confirm(self, name: str, version: str) -> None:
        """Wait until every live replica serves that version of the file, or a later one of the same series.

        Args:
            name: what Envoy calls its statistic of the file's version.
            version: `series.number`.

        Raises:
            ReplicaBehind: the folder does not answer, or a replica goes on living and does not serve it.
        """
        end = time.monotonic() + PATIENCE_SECONDS + 2.0  # time to see that one died while we wait
        while behind := [
            replica
            for replica, status in (await self._quickly(self._live)).items()
            if status.serving and not _covers(status.versions.get(name, ""), version)
        ]:
            if time.monotonic() > end:
                raise ReplicaBehind(f"The proxy {', '.join(sorted(behind))} does not serve the new routes.")
            await asyncio.sleep(_POLL_SECONDS)

    async def read_used(self) -> dict[str, float]:
        """Address → when a server was last used through any replica, as far as that is new or can be read."""
        try:
            await self._quickly(self._live, seconds=1.0)
            self._complaints.discard("used")
        except ReplicaBehind as error:
            self._complain("used", str(error))
        used, self._used = self._used, {}
        return used

    def _live(self) -> dict[str, Status]:
        """The replicas that gave a sign of life lately, with what they last said. Reads files."""
        now = time.monotonic()
        live = {}
        for path in (self._folder / STATUS_FOLDER).glob("*.json"):
            try:
                status = Status.read(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                self._complain(path.stem, f"Proxy {path.stem}: {error}")
                status = Status(-1, True, {}, {})
            beat, heard = self._heard.get(path.stem, (None, now))
            if beat != status.beat:
                heard = now
            self._heard[path.stem] = (status.beat, heard)
            if now - heard <= PATIENCE_SECONDS:
                live[path.stem] = status
                self._complaints.discard(f"{path.stem} gone")
                for address, moment in status.used.items():
                    self._used[address] = max(moment, self._used.get(address, 0.0))
            elif now - heard > _FORGET_SECONDS:
                path.unlink(missing_ok=True)
                del self._heard[path.stem]
            else:
                self._complain(f"{path.stem} gone", f"The proxy {path.stem} gives no sign of life: not waiting for it")
        return live

    def _complain(self, key: str, sentence: str) -> None:
        """Say it once."""
        if key not in self._complaints:
            self._complaints.add(key)
            self._log.warning("%s", sentence)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _covers(served: str, wanted: str) -> bool:
    series, _, number = served.strip('"').partition(".")
    wanted_series, _, least = wanted.partition(".")
    return series == wanted_series and number.isdigit() and int(number) >= int(least)
