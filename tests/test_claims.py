"""Who holds a reference in this process: taking, waiting, the end of a lease."""

from __future__ import annotations

import asyncio
import threading

import pytest

from smsid_async._claims import Claims, Holder

REFERENCE = "order-1"


def holder(expires: float = 10.0) -> Holder:
    return Holder("fingerprint", expires)


@pytest.fixture
def claims() -> Claims:
    return Claims()


def test_a_free_reference_is_given_and_a_held_one_is_not(claims: Claims) -> None:
    first, second = holder(), holder()
    assert claims.take(REFERENCE, first, now=0) is None
    assert claims.take(REFERENCE, second, now=0) is first
    assert claims.has(REFERENCE, first)
    assert not claims.has(REFERENCE, second)
    assert claims.take("order-2", second, now=0) is None


@pytest.mark.parametrize(("now", "taken_over"), [(9.999, False), (10.0, True), (11.0, True)])
def test_a_claim_is_taken_over_once_its_lease_is_over(
    claims: Claims, now: float, taken_over: bool
) -> None:
    first, second = holder(expires=10), holder(expires=20)
    claims.take(REFERENCE, first, now=0)
    assert (claims.take(REFERENCE, second, now=now) is None) is taken_over
    assert claims.has(REFERENCE, first) is not taken_over
    assert claims.has(REFERENCE, second) is taken_over


def test_a_dropped_claim_leaves_the_reference_free(claims: Claims) -> None:
    first = holder()
    claims.take(REFERENCE, first, now=0)
    claims.drop(REFERENCE, first)
    assert not claims.has(REFERENCE, first)
    assert claims.take(REFERENCE, holder(), now=0) is None


def test_a_lost_claim_cannot_be_dropped_for_its_successor(claims: Claims) -> None:
    first, second = holder(expires=1), holder()
    claims.take(REFERENCE, first, now=0)
    claims.take(REFERENCE, second, now=2)
    claims.drop(REFERENCE, first)
    assert claims.has(REFERENCE, second)


@pytest.mark.looptime
async def test_the_end_of_a_claim_wakes_all_who_wait(claims: Claims) -> None:
    first = holder(expires=100)
    claims.take(REFERENCE, first, now=0)
    waiting = [asyncio.create_task(claims.wait(first, seconds=100)) for _ in range(3)]
    await asyncio.sleep(5)
    assert not any(task.done() for task in waiting)
    claims.drop(REFERENCE, first)
    await asyncio.gather(*waiting)
    assert asyncio.get_running_loop().time() == pytest.approx(5)


@pytest.mark.looptime
async def test_a_take_over_wakes_who_waits_too(claims: Claims) -> None:
    first = holder(expires=1)
    claims.take(REFERENCE, first, now=0)
    waiting = asyncio.create_task(claims.wait(first, seconds=100))
    await asyncio.sleep(1)
    claims.take(REFERENCE, holder(), now=1)
    await waiting
    assert asyncio.get_running_loop().time() == pytest.approx(1)


@pytest.mark.looptime
async def test_a_wait_ends_with_the_lease(claims: Claims) -> None:
    first = holder()
    claims.take(REFERENCE, first, now=0)
    await claims.wait(first, seconds=10)
    assert asyncio.get_running_loop().time() == pytest.approx(10)


@pytest.mark.looptime
async def test_one_who_was_cancelled_does_not_hinder_the_others(claims: Claims) -> None:
    first = holder()
    claims.take(REFERENCE, first, now=0)
    gone, stays = (asyncio.create_task(claims.wait(first, seconds=100)) for _ in range(2))
    await asyncio.sleep(1)
    gone.cancel()
    await asyncio.wait({gone})
    claims.drop(REFERENCE, first)
    await stays
    assert gone.cancelled()
    assert asyncio.get_running_loop().time() == pytest.approx(1)


@pytest.mark.looptime
async def test_a_claim_that_ended_just_before_is_not_waited_for(claims: Claims) -> None:
    """Another thread ends it between the look and the wait."""
    first = holder()
    claims.take(REFERENCE, first, now=0)
    assert claims.take(REFERENCE, holder(), now=0) is first
    claims.drop(REFERENCE, first)
    await claims.wait(first, seconds=3600)
    assert asyncio.get_running_loop().time() == pytest.approx(0)


async def test_a_claim_that_ends_in_another_thread_wakes_this_loop(claims: Claims) -> None:
    first = holder()
    claims.take(REFERENCE, first, now=0)
    waiting = asyncio.create_task(claims.wait(first, seconds=3600))
    while not first.waiting:
        await asyncio.sleep(0)
    threading.Thread(target=claims.drop, args=(REFERENCE, first)).start()
    await asyncio.wait_for(waiting, 10)


def test_a_loop_that_was_closed_is_no_hindrance(claims: Claims) -> None:
    first = holder()
    claims.take(REFERENCE, first, now=0)

    async def wait_and_go() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(claims.wait(first, seconds=3600), 0.01)

    asyncio.run(wait_and_go())
    assert len(first.waiting) == 1
    claims.drop(REFERENCE, first)
    assert claims.take(REFERENCE, holder(), now=0) is None


def test_of_many_threads_at_once_one_gets_the_reference(claims: Claims) -> None:
    start, winners = threading.Barrier(16), []

    def work() -> None:
        mine = holder()
        start.wait()
        if claims.take(REFERENCE, mine, now=0) is None:
            winners.append(mine)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert claims.has(REFERENCE, winners[0])
