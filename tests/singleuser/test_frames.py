"""Calls cost no system calls, however deep a kernel's program begins."""

from __future__ import annotations

import resource
import threading

import pytest

from marimohub.singleuser.frames import with_room

pytestmark = pytest.mark.unit

CALLS, DEPTHS = 2000, 300


def leaf(one: int, two: int, three: int) -> int:
    return one + two + three


def most_faults_of_a_loop() -> int:
    """The page faults of a loop of calls, at the depth where it has the most."""
    most = 0

    def at(depth: int) -> None:
        nonlocal most
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for number in range(CALLS):
            leaf(number, number, number)
        most = max(most, resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        if depth < DEPTHS:
            at(depth + 1)

    at(0)
    return most


def test_a_loop_of_calls_gives_no_memory_back_and_forth_at_any_depth() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(with_room(most_faults_of_a_loop)))
    thread.start()
    thread.join()
    assert found[0] < CALLS / 10


def test_arguments_results_and_errors_pass() -> None:
    assert with_room(leaf, 1, 2, 3) == 6
    with pytest.raises(TypeError):
        with_room(leaf)
