"""Room for Python's frames, for programs that begin deep in the calls of another one.

CPython 3.11 and later keep frames in pieces of 16 KB, and give a piece back to the system as soon as nothing is in it:
a loop that calls a function just where a piece ends makes two system calls and a page fault for each call. Where pieces
end depends on how deep everything began: importing altair took 480,000 such turns and 3 s in a kernel, 0 s in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SLOTS = 66_000  # of 8 bytes: just over half a megabyte, so that the piece is one megabyte and the rest of it is free


def with_room(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a frame so big that it gets a piece of its own, where the frames below find room, too."""

    def call() -> Any:
        return function(*args)

    call.__code__ = call.__code__.replace(co_stacksize=_SLOTS)
    return call()
