"""A restart sends no second burst: the budget takes over what an earlier process sent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
import virtual
from conftest import NUMBER
from hypothesis import given, settings
from wire import SENT, RawServer, answer, reset

import smsid_async.journal
from smsid_async import Message, Outcome, Priority, RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob
from smsid_async.journal import PastRequest, SQLiteJournal
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.csv"
    path.write_text("to,message\n" + "".join(f"{NUMBER},Text {index}\n" for index in range(12)))
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "list.journal"


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make a function after which this is another process, as far as a journal knows."""
    numbers = itertools.count()
    return lambda: monkeypatch.setattr(smsid_async.journal, "_PROCESS", f"process-{next(numbers)}")


async def run(url: str, job: BulkJob, budget: RateBudget) -> list[Outcome]:
    async with SMSIDClient("test", base_url=url, budget=budget) as client:
        return [result.outcome async for result in job.run(client)]


def free(budget: RateBudget) -> int:
    return budget.statistics().free


async def test_after_a_restart_the_slots_of_the_last_period_are_taken(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    assert len(await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())) == 12
    restart()
    budget = RateBudget(LIMIT)
    assert await run(sandbox.url, BulkJob(path, journal), budget) == []
    assert free(budget) == LIMIT - 12
    assert sum(budget.statistics().waiting.values()) == 0


async def test_what_this_process_sent_is_not_counted_twice(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    budget = RateBudget(LIMIT, burst=LIMIT)
    for _ in range(3):
        await run(sandbox.url, BulkJob(path, journal, priority=Priority.NORMAL), budget)
        assert free(budget) == LIMIT - 12
    restart()
    budget = RateBudget(LIMIT)
    for _ in range(3):  # nor is an earlier process's told to a budget more than once
        await run(sandbox.url, BulkJob(path, journal), budget)
        assert free(budget) == LIMIT - 12


async def test_two_journals_are_told_to_one_budget(
    sandbox: Sandbox, path: Path, tmp_path: Path, restart: Callable[[], None]
) -> None:
    journals = [tmp_path / "a.journal", tmp_path / "b.journal"]
    for each in journals:
        await run(sandbox.url, BulkJob(path, each), RateBudget.unlimited())
    restart()
    budget = RateBudget(LIMIT)
    for number, each in enumerate(journals, 1):
        await run(sandbox.url, BulkJob(path, each), budget)
        assert free(budget) == LIMIT - 12 * number


async def test_more_than_fits_fills_the_budget(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())
    restart()
    budget = RateBudget(5)
    await run(sandbox.url, BulkJob(path, journal), budget)
    assert free(budget) == 0


async def test_what_was_sent_long_ago_takes_no_slot(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())
    restart()
    shift(journal, -3600.0)
    budget = RateBudget(LIMIT)
    await run(sandbox.url, BulkJob(path, journal), budget)
    assert free(budget) == LIMIT


def shift(journal: Path, seconds: float) -> None:
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute(
            "UPDATE entries SET intent_at = intent_at + ?, ended_at = ended_at + ?",
            (seconds, seconds),
        )


async def past(journal: Path, seconds: float) -> list[PastRequest]:
    own = SQLiteJournal(journal)
    try:
        return await own.requests_since(seconds)
    finally:
        await own.aclose()


async def test_a_request_counts_from_its_end(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute(
            "UPDATE entries SET intent_at = ?, ended_at = ?", (time.time() - 70, time.time() - 50)
        )
    assert await past(journal, 60) == []  # this process's own
    restart()
    found = await past(journal, 60)
    assert len(found) == 12
    assert all(request.answered and 50 <= request.age < 55 for request in found)
    assert await past(journal, 49) == []


async def test_what_is_in_doubt_was_given_up_and_may_be_counted_later(
    path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    async with RawServer(reset, answer(200, SENT)) as server:
        outcomes = await run(
            server.url, BulkJob(path, journal, concurrency=1), RateBudget.unlimited()
        )
    assert outcomes[:2] == [Outcome.UNKNOWN, Outcome.SENT]
    restart()
    found = await past(journal, 60)
    assert [request.answered for request in found].count(False) == 1


async def test_what_a_killed_process_left_counts_from_its_intent(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute(
            "UPDATE entries SET state = 'intent', message_id = NULL, ended_at = NULL, "
            "intent_at = ? WHERE line = 2",
            (time.time() - 80,),
        )
    restart()
    assert len(await past(journal, 60)) == 11
    (old,) = (each for each in await past(journal, 91) if each.age > 60)
    assert not old.answered
    assert 80 <= old.age < 85
    budget = RateBudget(LIMIT)
    await run(sandbox.url, BulkJob(path, journal), budget)
    assert free(budget) == LIMIT - 12  # it may be counted until 30 s after its end


async def test_a_clock_that_was_set_back_makes_no_request_younger_than_now(
    sandbox: Sandbox, path: Path, journal: Path, restart: Callable[[], None]
) -> None:
    await run(sandbox.url, BulkJob(path, journal), RateBudget.unlimited())
    restart()
    shift(journal, 1000.0)
    assert {request.age for request in await past(journal, 60)} == {0.0}


async def test_a_budget_of_the_caller_s_own_is_left_alone(
    sandbox: Sandbox, path: Path, journal: Path
) -> None:
    class Own:
        """A budget that has no `restore`."""

        def __init__(self) -> None:
            budget = RateBudget.unlimited()
            self.acquire = budget.acquire
            self.hold = budget.hold
            self.statistics = budget.statistics
            self.aclose = budget.aclose

    outcomes = await run(sandbox.url, BulkJob(path, journal), Own())  # type: ignore[arg-type]
    assert len(outcomes) == 12


# -- the guarantee ---------------------------------------------------------------

seconds = st.floats(0, 1, allow_nan=False).map(lambda share: round(share, 3))


@settings(deadline=None, max_examples=150)
@given(
    limit=st.integers(1, 6),
    gaps=st.lists(seconds.map(lambda share: share * 4), max_size=12),
    latency=seconds,
    given_up=st.lists(st.booleans(), min_size=12, max_size=12),
    pause=seconds.map(lambda share: share * 20),
    lane=st.sampled_from(list(Priority)),
    margin=st.sampled_from([0.0, 0.2]),
)
def test_never_more_than_the_limit_in_any_period_across_a_restart(
    limit: int,
    gaps: list[float],
    latency: float,
    given_up: list[bool],
    pause: float,
    lane: Priority,
    margin: float,
) -> None:
    """Two budgets one after the other; the second is told what the first one's calls did."""
    period, linger = 10.0, 3.0
    counted: list[float] = []
    ends: list[tuple[float, bool]] = []

    def budget() -> RateBudget:
        clock = asyncio.get_running_loop().time
        return RateBudget(limit, period, margin=margin, linger=linger, clock=clock)

    async def request(slots: RateBudget, *, lost: bool) -> None:
        slot = await slots.acquire(lane)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(latency)
        ends.append((loop.time(), not lost))
        counted.append(loop.time() + (linger if lost else 0.0))  # as late as may be
        if lost:
            slot.given_up()
        else:
            slot.answered()

    async def main() -> None:
        first = budget()
        for gap, lost in zip(gaps, given_up, strict=False):
            await asyncio.sleep(gap)
            await request(first, lost=lost)
        await asyncio.sleep(pause)
        now = asyncio.get_running_loop().time()
        second = budget()
        old = [(now - end, answered) for end, answered in ends if now - end <= second.memory]
        second.restore(
            answered=[age for age, answered in old if answered],
            given_up=[age for age, answered in old if not answered],
        )
        assert second.statistics().free >= limit - len(old)
        await asyncio.gather(*(request(second, lost=False) for _ in range(2 * limit)))

    virtual.run(main())
    assert virtual.largest_count(counted, period) <= limit


async def test_a_job_after_a_restart_keeps_the_limit(
    journal: Path, restart: Callable[[], None]
) -> None:
    numbers = itertools.count()
    async with Sandbox(limit=10, period=1.0) as sandbox:
        for count in (6, 12):
            restart()
            messages = [Message(NUMBER, f"Text {next(numbers)}") for _ in range(count)]
            job = BulkJob(messages, journal, allow_changed=True, priority=Priority.HIGH)
            assert await run(sandbox.url, job, RateBudget(10, 1.0)) == [Outcome.SENT] * count
        assert sandbox.refused == 0
        assert sandbox.largest_count() <= 10
