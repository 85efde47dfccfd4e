"""What the hub does with its kind of spawner as a whole: checks before the start, warm processes, people's folders."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from marimohub.snapshots.errors import SnapshotError
from marimohub.spawners.confinement import CannotConfine
from marimohub.spawners.identities import Identities, IdentityError
from marimohub.spawners.interpreters import check_profiles
from marimohub.spawners.local import LocalMarimoSpawner
from marimohub.spawners.profiles import BadProfile
from marimohub.startup import StartupError


def own_uids(spawner_class: type) -> bool:
    """Whether each person's servers run with a user id of their own."""
    return issubclass(spawner_class, LocalMarimoSpawner) and os.geteuid() == 0


async def check(spawner_class: type, config: Any, secrets: Collection[Path]) -> None:
    """See whether servers can run as the configuration asks, before anything is started.

    Args:
        secrets: files and folders that no server may read.
    Raises:
        StartupError: they cannot.
    """
    try:
        await check_profiles(spawner_class, config)
        if issubclass(spawner_class, LocalMarimoSpawner):
            await asyncio.to_thread(spawner_class.check, config, secrets)
    except (BadProfile, CannotConfine) as error:
        raise StartupError(str(error)) from error


def say_what_holds(spawner_class: type, config: Any, log: Any) -> None:
    """Tell the log what keeps notebooks apart on this machine, and what does not."""
    if not issubclass(spawner_class, LocalMarimoSpawner):
        return
    about = spawner_class(config=config).describe_confinement()
    if about["sandbox"] == "off":
        for sentence in about["problems"]:
            log.warning("%s", sentence)
        return
    log.info("%s", about["text"])
    if about["problems"]:
        log.info("What this machine leaves open is listed on the Admin page, below Notebook servers.")


def snapshot_group(spawner_class: type, config: Any) -> int | None:
    """The group that people's servers have in common, which may read snapshots; None: they run as the hub's user."""
    identities = _identities(spawner_class, config)
    return identities.snapshot_group if identities is not None else None


def folder_maker(spawner_class: type, config: Any) -> Callable[[Path], None]:
    """What prepares a person's folders, given their snapshot folder, before a snapshot is put there."""
    identities = _identities(spawner_class, config)

    def make(snapshot_folder: Path) -> None:
        if identities is None:
            return
        try:
            identities.of(snapshot_folder.parent)
        except IdentityError as error:
            raise SnapshotError(error.message) from error

    return make


def _identities(spawner_class: type, config: Any) -> Identities | None:
    if not issubclass(spawner_class, LocalMarimoSpawner):
        return None
    try:
        return spawner_class(config=config).identities
    except IdentityError as error:
        raise StartupError(f"LocalMarimoSpawner: {error.message}") from error
