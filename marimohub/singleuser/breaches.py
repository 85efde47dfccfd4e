"""Why kernels ended that nobody asked to end: what the server's guard says of limits, and what an exit status tells.

The guard sends a line of JSON for each limit that was reached (`marimohub.spawners.watch`). It may come a moment after
the kernel's end was noticed (deaths.py waits for it).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

log = logging.getLogger("marimohub.singleuser")

Words = tuple[str, str]  # title and text of a notice

_MAX_LINE = 1 << 16
_CHUNK = 1 << 16

_KEEPS = "Your saved code is kept."
_LESS_MEMORY = (
    "To need less: select fewer rows and columns in SQL before they become a data frame, and delete large variables. "
    "Run the notebook again to go on."
)


def listen(fd: int, tell: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Hear what the guard says, in the running event loop.

    Args:
        fd: a stream socket. It belongs to the listener from now on.
        tell: called with each breach.
    Returns:
        A function that ends it; may be called more than once.
    """
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    buffer = bytearray()
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            loop.remove_reader(fd)
            os.close(fd)

    def hear() -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            close()
            return
        buffer.extend(data)
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            _hand_on(line, tell)
        if len(buffer) > _MAX_LINE:
            log.error("the guard of this server says something without an end: it is not listened to any more")
            close()

    loop.add_reader(fd, hear)
    return close


def _hand_on(line: bytes, tell: Callable[[dict[str, Any]], None]) -> None:
    try:
        breach = json.loads(line)
        if breach["event"] != "breach":
            return
        sentence(breach)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.error("the guard said what this server does not understand: %r", error)
        return
    try:
        tell(breach)
    except Exception:
        log.exception("could not tell of a breach")


def sentence(breach: dict[str, Any], notebook: str = "") -> Words:
    """Title and text for the page of a notebook that was stopped.

    Args:
        breach: as the guard told it.
        notebook: its name; "" if it is not known which one it was.
    Raises:
        KeyError, TypeError: that is no breach.
    """
    kind, limit, used = breach["kind"], breach["limit"], breach["used"]
    if not isinstance(breach["text"], str) or not isinstance(limit, int) or not isinstance(used, int):
        raise TypeError("a breach has numbers and a text")
    what = f"The notebook {notebook}" if notebook else "A notebook of yours"
    if kind == "memory":
        size = breach.get("size", 0)
        much = f"{what} used {_bytes(size)} of memory. " if size else f"{what} needed more memory than there was. "
        return (
            "Stopped: out of memory",
            f"{much}Your server may use {_bytes(limit)} for all notebooks together, so this notebook was stopped and "
            f"its variables are gone. Other notebooks go on. {_KEEPS} {_LESS_MEMORY}",
        )
    if kind == "processes":
        return (
            "Stopped: too many processes",
            f"Your notebooks ran {used} processes and threads; your server may run {limit}. All notebooks were stopped "
            f"and their variables are gone. {_KEEPS} Start fewer processes at a time, then run the notebook again.",
        )
    if kind == "disk":
        return (
            "Stopped: your disk space is used up",
            f"Your files take {_bytes(used)}; {_bytes(limit)} are allowed. All notebooks were stopped so that it does "
            f"not become more. {_KEEPS} Delete files in the file browser on the left, then run the notebook again.",
        )
    return "Stopped", breach["text"]


def kernel_ended(status: int | None, notebook: str = "") -> Words:
    """Title and text for the page of a kernel that ended by itself, or was killed and no limit was the reason.

    Args:
        status: its exit status, minus a signal's number, None if it is not known.
    """
    what = f"The kernel of {notebook}" if notebook else "The notebook's kernel"
    gone = f"Its variables are gone. {_KEEPS}"
    again = "Run the notebook again to go on."
    if status is not None and status >= 0:
        return "The kernel ended", f"{what} ended by itself, with exit status {status}. {gone} {again}"
    if status in (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE):
        return (
            "The kernel crashed",
            f"{what} crashed ({_name(status)}) in compiled code, most likely in a library that the last cell used. "
            f"{gone} {again}",
        )
    if status == -signal.SIGABRT:
        return (
            "The kernel crashed",
            f"{what} gave up ({_name(status)}). Libraries do that when they get no more memory, or find an error of "
            f"their own. {gone} {_LESS_MEMORY}",
        )
    if status == -signal.SIGSYS:
        return (
            "The kernel was stopped",
            f"{what} asked the system for something that is not allowed here ({_name(status)}). {gone} {again}",
        )
    if status == -signal.SIGXFSZ:
        return (
            "The kernel was stopped",
            f"{what} wrote a file that is bigger than your disk space ({_name(status)}). {gone} {again}",
        )
    if status == -signal.SIGKILL:
        return (
            "The kernel was killed",
            f"{what} was killed ({_name(status)}): by a command of yours, by an administrator, or because the machine "
            f"ran out of memory. {gone} {again}",
        )
    how = f" ({_name(status)})" if status is not None else ""
    return "The kernel ended", f"{what} ended{how}. {gone} {again}"


def _name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _bytes(count: int) -> str:
    """In units of 1024. This package knows nothing of the spawners', which have the same."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if count >= 1024**power:
            return f"{round(count / 1024**power, 1):g} {unit}"
    return f"{round(count / 1024):g} KB"
