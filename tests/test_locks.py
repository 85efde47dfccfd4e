"""The lock rules, on a controlled clock."""

from __future__ import annotations

import threading

import pytest

from marimohub import locks
from marimohub.database import Database

pytestmark = pytest.mark.unit
TTL = 900.0


def acquire(database: Database, user: str, now: float) -> locks.LockState:
    with database.transaction() as session:
        return locks.acquire(session, 1, "Report", user, now=now, ttl=TTL)


def heartbeat(database: Database, user: str, fence: int, now: float) -> locks.LockState:
    with database.transaction() as session:
        return locks.heartbeat(session, 1, "Report", user, fence, now=now, ttl=TTL)


def test_second_user_is_told_who_holds_the_lock_and_since_when(database: Database) -> None:
    acquire(database, "ann", 100.0)
    with pytest.raises(locks.LockHeld) as caught:
        acquire(database, "bob", 200.0)
    assert (caught.value.holder, caught.value.since) == ("ann", 100.0)


def test_lock_is_one_for_all_spellings_of_a_name(database: Database) -> None:
    acquire(database, "ann", 100.0)
    with database.transaction() as session, pytest.raises(locks.LockHeld):
        locks.acquire(session, 1, "REPORT", "bob", now=100.0, ttl=TTL)


def test_opening_ones_own_lock_again_continues_it_with_the_same_fence(database: Database) -> None:
    first = acquire(database, "ann", 100.0)
    again = acquire(database, "ann", 500.0)
    assert again.fence == first.fence
    assert again.acquired == 100.0
    assert again.expires == 500.0 + TTL


def test_lock_is_free_exactly_fifteen_minutes_after_the_last_heartbeat(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    heartbeat(database, "ann", first.fence, 60.0)
    with pytest.raises(locks.LockHeld):
        acquire(database, "bob", 60.0 + TTL - 0.001)
    assert acquire(database, "bob", 60.0 + TTL).holder == "bob"


def test_fence_rises_with_every_change_of_holder(database: Database) -> None:
    fences = []
    for turn in range(5):
        now = turn * 10.0
        fences.append(acquire(database, f"user{turn}", now).fence)
        with database.transaction() as session:
            locks.release(session, 1, "Report", f"user{turn}", now=now)
    assert fences == sorted(set(fences))


def test_expired_holder_cannot_heartbeat_back_to_life(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    with pytest.raises(locks.LockLost):
        heartbeat(database, "ann", first.fence, TTL)


def test_heartbeat_of_an_older_fence_is_refused(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    acquire(database, "ann", TTL + 1)
    with pytest.raises(locks.LockLost):
        heartbeat(database, "ann", first.fence, TTL + 2)


def test_nobody_can_release_or_renew_anothers_lock(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    with pytest.raises(locks.LockLost):
        heartbeat(database, "bob", first.fence, 1.0)
    with database.transaction() as session, pytest.raises(locks.NotHolder):
        locks.release(session, 1, "Report", "bob", now=1.0)
    assert acquire(database, "ann", 2.0).fence == first.fence


def test_release_with_an_older_fence_leaves_the_newer_lock_alone(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    acquire(database, "ann", TTL + 1)
    with database.transaction() as session, pytest.raises(locks.NotHolder):
        locks.release(session, 1, "Report", "ann", now=TTL + 2, fence=first.fence)


def test_revoked_holder_can_do_nothing_with_the_old_fence(database: Database) -> None:
    first = acquire(database, "ann", 0.0)
    with database.transaction() as session:
        assert locks.revoke(session, 1, "Report", now=1.0).holder == "ann"
    with pytest.raises(locks.LockLost):
        heartbeat(database, "ann", first.fence, 2.0)
    assert acquire(database, "ann", 3.0).fence > first.fence


def test_force_unlock_of_a_free_notebook_says_so(database: Database) -> None:
    with database.transaction() as session, pytest.raises(locks.NotLocked):
        locks.revoke(session, 1, "Report", now=1.0)


def test_of_many_simultaneous_requests_exactly_one_wins(database: Database) -> None:
    winners: list[str] = []
    barrier = threading.Barrier(12)

    def compete(user: str) -> None:
        barrier.wait()
        try:
            acquire(database, user, 100.0)
        except locks.LockHeld:
            return
        winners.append(user)

    threads = [threading.Thread(target=compete, args=(f"user{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
