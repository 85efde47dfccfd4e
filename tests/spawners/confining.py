"""Runs a function in a process of its own that may be confined: to see what confinement denies and allows."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marimohub.spawners import landlock, sandbox
from marimohub.spawners.job import Sandbox

NOBODY = 65534

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")


def needs_abi(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(landlock.abi() < version, reason=f"this kernel's Landlock ABI is below {version}")


def in_child(
    function: Callable[..., Any],
    *args: Any,
    view: Callable[[], None] | None = None,
    confine: Callable[[], None] | None = None,
) -> Any:
    """What a function answers (as JSON has it) in a forked process, which runs as an ordinary user.

    Args:
        view: called in the child before it becomes that user.
        confine: called afterwards.
    Raises:
        AssertionError: the child raised an exception, or was killed.
    """
    answer, telling = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(answer)
            if view is not None:
                view()
            become_ordinary()
            if confine is not None:
                confine()
            told = {"answer": function(*args)}
        except BaseException:
            told = {"failed": traceback.format_exc()}
        try:
            with open(telling, "w") as pipe:
                json.dump(told, pipe)
        finally:
            os._exit(0)
    os.close(telling)
    with open(answer) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert text, f"the child ended with {status} and said nothing"
    found = json.loads(text)
    assert "failed" not in found, found["failed"]
    return found["answer"]


def become_ordinary() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def give(path: Path) -> Path:
    """Hand a file or folder to the user that children run as."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    return path


def denied(function: Callable[..., Any], *args: Any, **named: Any) -> str:
    """The name of the OSError that a call fails with, "" if it succeeds."""
    import errno

    try:
        function(*args, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


@dataclass(frozen=True)
class World:
    """Folders of two people and of the hub, all of one user id: so that only confinement can keep them apart."""

    home: Path
    snapshot: Path
    other: Path

    def sandbox(self, **different: Any) -> Sandbox:
        paths = sandbox.standard_paths(sys.executable)
        return Sandbox(
            **{
                "read": (*paths.read, str(self.snapshot)),
                "write": (*paths.write, str(self.home)),
                "devices": paths.devices,
                "shared_memory": paths.shared_memory,
                "connect": ((1, 9999),),
                **different,
            }
        )

    def confined(self, *, own_user: bool, private: bool, **different: Any) -> dict[str, Callable[[], None]]:
        """The arguments `view` and `confine` of `in_child`."""
        found = self.sandbox(**different)

        def view() -> None:
            assert sandbox.enter_view(found)

        def confine() -> None:
            os.environ.update({"HOME": str(self.home), "TMPDIR": str(self.home), "USER": "somebody"})
            os.chdir(self.home)
            sandbox.confine(found, own_user=own_user, private=private)

        return {"confine": confine, **({"view": view} if private else {})}


def make_world(folder: Path) -> World:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o5 != 0o5:
            parent.chmod(parent.stat().st_mode | 0o5)  # pytest's folders are closed to others
    world = World(*(folder / name for name in ("home", "snapshot", "other")))
    for one in (world.home, world.snapshot, world.other):
        one.mkdir()
        (one / "file").write_text(f"of {one.name}")
        give(one / "file")
        give(one)
    return world
