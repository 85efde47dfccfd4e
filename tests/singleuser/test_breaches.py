"""What a person is told when a notebook was stopped, and how the server hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import Any

import pytest

from marimohub.singleuser.breaches import kernel_ended, listen, sentence
from marimohub.spawners.watch import Breach

pytestmark = pytest.mark.unit

GB = 1 << 30
MEMORY = Breach("memory", 4 * GB, 4 * GB + 5, 3 * GB, 17, (17, 18), "A notebook used too much.")


async def heard(*pieces: bytes) -> tuple[list[dict[str, Any]], bool]:
    """What listeners are told of what the guard sends, and whether they still listen then."""
    ours, theirs = socket.socketpair()
    told: list[dict[str, Any]] = []
    fd = theirs.detach()
    close = listen(fd, told.append)
    try:
        for piece in pieces:
            with contextlib.suppress(BrokenPipeError):
                ours.sendall(piece)
            await asyncio.sleep(0.01)
        ours.setblocking(False)
        try:
            listening = bool(ours.send(b"\n"))
        except OSError:
            listening = False
    finally:
        close()
        close()
        ours.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    return told, listening


async def test_the_guards_lines_are_heard_in_any_pieces() -> None:
    line = MEMORY.to_json().encode()
    told, listening = await heard(line + line[:10], line[10:-1], b"\n" + line)
    assert [one["pid"] for one in told] == [17, 17, 17]
    assert told[0] == json.loads(line)
    assert listening


@pytest.mark.parametrize(
    "line", [b"no json\n", b"[]\n", b'{"event": "breach"}\n', b'{"event": "other"}\n', b"7\n", b'"breach"\n', b"\xff\n"]
)
async def test_what_is_not_understood_stops_nothing(line: bytes) -> None:
    told, listening = await heard(line + MEMORY.to_json().encode())
    assert [one["kind"] for one in told] == ["memory"]
    assert listening


async def test_a_line_without_an_end_is_given_up() -> None:
    told, listening = await heard(*[b"x" * 8192] * 12)
    assert told == [] and not listening


async def test_one_who_cannot_tell_hears_on() -> None:
    ours, theirs = socket.socketpair()
    told: list[int] = []

    def tell(breach: dict[str, Any]) -> None:
        told.append(breach["pid"])
        raise RuntimeError("no page")

    close = listen(theirs.detach(), tell)
    ours.sendall(MEMORY.to_json().encode() * 2)
    while len(told) < 2:
        await asyncio.sleep(0.001)
    ours.close()
    await asyncio.sleep(0.01)
    close()


def test_people_are_told_what_happened_what_is_kept_and_what_to_do() -> None:
    title, text = sentence(json.loads(MEMORY.to_json()), "sales.py")
    assert title == "Stopped: out of memory"
    assert text.startswith("The notebook sales.py used 3 GB of memory. Your server may use 4 GB for all notebooks")
    assert "Other notebooks go on. Your saved code is kept." in text and "fewer rows" in text
    assert "A notebook of yours used" in sentence(json.loads(MEMORY.to_json()))[1]
    by_kernel = Breach("memory", 4 * GB, 4 * GB, 0, None, (), "")
    assert "needed more memory than there was" in sentence(json.loads(by_kernel.to_json()))[1]
    processes = Breach("processes", 1024, 1030, 1030, 5, (5,), "")
    assert "ran 1030 processes and threads; your server may run 1024" in sentence(json.loads(processes.to_json()))[1]
    disk = Breach("disk", 20 * GB, 21 * GB, 21 * GB, 5, (5,), "")
    assert "Your files take 21 GB; 20 GB are allowed" in sentence(json.loads(disk.to_json()))[1]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-signal.SIGKILL, "was killed (SIGKILL): by a command of yours, by an administrator, or because the machine"),
        (-signal.SIGSEGV, "crashed (SIGSEGV) in compiled code"),
        (-signal.SIGABRT, "gave up (SIGABRT). Libraries do that when they get no more memory"),
        (-signal.SIGSYS, "not allowed here (SIGSYS)"),
        (-signal.SIGXFSZ, "bigger than your disk space"),
        (-signal.SIGTERM, "ended (SIGTERM)."),
        (-99, "ended (signal 99)."),
        (3, "ended by itself, with exit status 3"),
        (None, "The kernel of sales.py ended."),
    ],
)
def test_every_end_of_a_kernel_is_explained(status: int | None, words: str) -> None:
    title, text = kernel_ended(status, "sales.py")
    assert title and words in text
    assert "Your saved code is kept." in text and "Run the notebook again" in text
