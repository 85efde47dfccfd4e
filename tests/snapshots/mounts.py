"""Folders on file systems that can share blocks: an image in a file, mounted for one test module."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import missing


class CannotMount(Exception):
    """The reason, for people, why this file system cannot be had here."""


@contextmanager
def mounted(kind: str, folder: Path, gigabytes: float = 4.0) -> Iterator[Path]:
    """A new file system of `kind` (xfs, btrfs) in the empty `folder`; its image lies beside it and is sparse.

    Raises CannotMount.
    """
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() != 0:
        raise CannotMount(f"mounting {kind} needs root")
    if make is None:
        raise CannotMount(f"mkfs.{kind} is not installed")
    image = folder.with_name(f"{folder.name}.img")
    with open(image, "wb") as file:
        file.truncate(int(gigabytes * 2**30))
    point = folder / "mounted"
    point.mkdir(parents=True)
    try:
        for command in ([make, "-q", str(image)], ["mount", "-o", "loop", "-t", kind, str(image), str(point)]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise CannotMount(f"{command[0]} was refused: {done.stderr.strip() or done.returncode}")
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)
    finally:
        image.unlink()


def _fixture(kind: str, factory: pytest.TempPathFactory) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            point = stack.enter_context(mounted(kind, factory.mktemp(kind) / kind))
        except CannotMount as error:
            missing("mounts", str(error))
            raise
        yield point


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from _fixture("xfs", tmp_path_factory)


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from _fixture("btrfs", tmp_path_factory)
