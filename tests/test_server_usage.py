"""What servers use is measured once for all who ask, and the share of processor time is that of the last moments."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest

from marimohub.server_usage import DISK_FRESH, FRESH, LONGEST_WINDOW, Measured, ServerUsage

pytestmark = pytest.mark.unit


@dataclass
class Used:
    cpu_seconds: float
    memory_bytes: int = 100
    processes: int = 3


class Machine:
    """A clock and processes that tests move."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.running = {7: Used(50.0)}
        self.asked = 0
        self.counted: list[Sequence[str]] = []
        self.unreadable = False
        self.usage = ServerUsage(self.measure, self.count, lambda: self.time)

    def measure(self, pids: Iterable[int]) -> dict[int, Used]:
        assert threading.current_thread() is not threading.main_thread(), "it would stop the hub"
        self.asked += 1
        return {pid: Used(**vars(self.running[pid])) for pid in pids if pid in self.running}

    def count(self, folders: Sequence[str]) -> int:
        assert threading.current_thread() is not threading.main_thread(), "it would stop the hub"
        self.counted.append(folders)
        if self.unreadable:
            raise PermissionError
        return 1234

    async def ask(self, *pids: int) -> dict[int, Measured]:
        found = await self.usage.now({pid: [f"/users/{pid}"] for pid in pids or (7,)})
        if self.usage._counting is not None:
            await self.usage._counting
        return found


def test_processor_time_is_a_share_of_the_time_since_the_last_question() -> None:
    async def run() -> None:
        machine = Machine()
        assert (await machine.ask())[7] == Measured(None, 100, 3, None)
        machine.time += 4
        machine.running[7].cpu_seconds += 6
        assert (await machine.ask())[7].cpu == 1.5
        machine.time += LONGEST_WINDOW + 1
        assert (await machine.ask())[7].cpu is None, "that long ago is not now"

    asyncio.run(run())


def test_many_who_ask_at_once_cost_one_measurement() -> None:
    async def run() -> None:
        machine = Machine()
        found = await asyncio.gather(*(machine.ask() for _ in range(20)))
        assert machine.asked == 1
        assert {one[7].memory for one in found} == {100}
        machine.time += FRESH
        await machine.ask()
        assert machine.asked == 2

    asyncio.run(run())


def test_ended_servers_are_left_out_and_new_ones_are_not_known_before_the_next_measurement() -> None:
    async def run() -> None:
        machine = Machine()
        machine.running[8] = Used(1.0)
        assert set(await machine.ask(7, 8)) == {7, 8}
        machine.time += FRESH
        del machine.running[8]
        assert set(await machine.ask(7, 8)) == {7}
        machine.running[9] = Used(1.0)
        assert set(await machine.ask(7, 9)) == {7}
        machine.time += FRESH
        assert set(await machine.ask(7, 9)) == {7, 9}

    asyncio.run(run())


def test_disk_is_counted_beside_the_answer_and_not_again_for_a_while() -> None:
    async def run() -> None:
        machine = Machine()
        assert (await machine.ask())[7].disk is None
        assert (await machine.ask())[7].disk == 1234
        machine.time += DISK_FRESH - 1
        await machine.ask()
        assert len(machine.counted) == 1
        machine.time += 1
        machine.unreadable = True
        assert (await machine.ask())[7].disk == 1234
        assert (await machine.ask())[7].disk is None, "an old figure is no answer when there is no new one"

    asyncio.run(run())
