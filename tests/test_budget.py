"""The rate budget on virtual time: the guarantee, full use, lanes, holds, failing fast."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import Phase, find, given, settings
from virtual import largest_count, run

from smsid_async import (
    Budget,
    BudgetTimeoutError,
    ConfigurationError,
    Priority,
    RateBudget,
)
from smsid_async.budget import _RateSlot, shared_budget
from smsid_async.sandbox.windows import make_window

NORMAL, HIGH, BULK = Priority.NORMAL, Priority.HIGH, Priority.BULK


def now() -> float:
    return asyncio.get_running_loop().time()


# -- the guarantee -------------------------------------------------------------

PERIOD = 60.0
FATES = ("answered", "given up", "never left", "cancelled")


@attrs.frozen
class Plan:
    """One call: when it comes, where it waits, how long the server takes, how it ends."""

    at: float
    lane: Priority
    counted_after: float
    answered_after: float
    fate: str
    patience: float


@attrs.frozen
class Rules:
    limit: int
    burst: int
    reserve: int
    max_in_flight: int
    margin: float


@attrs.define
class Ledger:
    """What the simulated server saw, and in which order calls were served."""

    counted: list[float] = attrs.field(factory=list)
    asked: dict[Priority, list[int]] = attrs.field(factory=lambda: {lane: [] for lane in Priority})
    served: dict[Priority, list[int]] = attrs.field(factory=lambda: {lane: [] for lane in Priority})
    cancelled: set[int] = attrs.field(factory=set)
    idle_while_waiting: list[float] = attrs.field(factory=list)


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    limit = draw(st.integers(2, 8))
    max_in_flight = draw(st.integers(1, 10))
    return Rules(
        limit=limit,
        burst=draw(st.integers(1, limit)),
        reserve=draw(st.integers(0, min(limit - 1, max_in_flight - 1))),
        max_in_flight=max_in_flight,
        margin=draw(st.sampled_from([0.0, 0.01, 1.0])),
    )


def seconds(most: int) -> st.SearchStrategy[float]:
    return st.integers(0, most * 100).map(lambda hundredths: hundredths / 100)


latencies = st.one_of(seconds(1), seconds(40))
plans = st.builds(
    Plan,
    at=st.one_of(st.just(0.0), seconds(200)),
    lane=st.sampled_from(Priority),
    counted_after=latencies,
    answered_after=latencies,
    fate=st.sampled_from(FATES),
    patience=st.one_of(st.just(math.inf), seconds(100)),
)


async def simulate(budget: RateBudget, calls: list[Plan]) -> Ledger:  # noqa: C901
    """Play calls against a server that counts each request some time before its answer."""
    ledger = Ledger()

    async def call(index: int, plan: Plan) -> None:
        await asyncio.sleep(plan.at)
        ledger.asked[plan.lane].append(index)
        slot = await budget.acquire(plan.lane)
        ledger.served[plan.lane].append(index)
        if plan.fate == "never left":
            await asyncio.sleep(plan.counted_after)
            slot.unused()
        elif plan.fate == "given up":  # counted up to `linger` after we gave it up
            await asyncio.sleep(plan.answered_after)
            slot.given_up()
            await asyncio.sleep(min(plan.counted_after, budget._rules.linger))
            ledger.counted.append(now())
        else:
            await asyncio.sleep(plan.counted_after)
            ledger.counted.append(now())
            await asyncio.sleep(plan.answered_after)
            slot.answered()
            slot.answered()  # ending it twice is ending it once

    async def impatient(index: int, plan: Plan) -> None:
        task = asyncio.create_task(call(index, plan))
        if plan.fate == "cancelled" and plan.patience < math.inf:
            await asyncio.sleep(plan.at + plan.patience)
            if index not in ledger.served[plan.lane]:
                ledger.cancelled.add(index)
                task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def watch() -> None:
        """Probe that nobody waits whom the window would let go."""
        while True:
            await asyncio.sleep(7.31)
            waiting = budget.statistics().waiting
            best = next((lane for lane in Priority if waiting[lane]), None)
            if best is not None and _could_go(budget, best):
                ledger.idle_while_waiting.append(now())

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(impatient(index, plan) for index, plan in enumerate(calls)))
    watcher.cancel()
    return ledger


def _could_go(budget: RateBudget, lane: Priority) -> bool:
    window, moment = budget._window, budget._clock() - 1e-4
    waits = (window._slot_wait(lane, moment), window._shape_wait(lane, moment))
    return window._has_place(lane) and max(waits) <= 0


def budget_of(given: Rules, kind: type[RateBudget] = RateBudget) -> RateBudget:
    return kind(
        given.limit,
        PERIOD,
        burst=given.burst,
        reserve=given.reserve,
        max_in_flight=given.max_in_flight,
        margin=given.margin,
    )


@settings(max_examples=100, deadline=None)
@given(rules(), st.lists(plans, max_size=25))
def test_never_more_than_limit_in_any_period_and_nobody_is_lost(
    given: Rules, calls: list[Plan]
) -> None:
    async def main() -> None:
        budget = budget_of(given)
        ledger = await simulate(budget, calls)

        assert largest_count(ledger.counted, PERIOD) <= given.limit
        if given.margin:  # without one, the clock's rounding decides at the very edge
            for kind in ("sliding", "fixed", "aligned", "bucket"):
                server = make_window(kind, given.limit, PERIOD)
                assert not any(server.hit(moment) for moment in sorted(ledger.counted)), kind
        assert ledger.idle_while_waiting == []
        served = sorted(index for lane in Priority for index in ledger.served[lane])
        assert served == sorted(set(range(len(calls))) - ledger.cancelled)
        for lane in Priority:
            in_order = [index for index in ledger.asked[lane] if index not in ledger.cancelled]
            assert ledger.served[lane] == in_order
        assert budget.statistics().in_flight == 0
        await asyncio.sleep(2 * PERIOD)
        assert budget.statistics().free == given.limit

    run(main())


class ReturnsAtDeparture(RateBudget):
    """A mutant: the slot's time runs from the grant instead of the answer."""

    def _end(self, taken_at: float, extra: float | None) -> None:
        late = self._clock() - taken_at
        super()._end(taken_at, None if extra is None else extra - late)


class ReturnsTwice(RateBudget):
    """A mutant: a slot that was cancelled after its grant comes back twice."""

    def _end(self, taken_at: float, extra: float | None) -> None:
        if extra is None:
            self._window._idle += 1
        super()._end(taken_at, extra)


class ForgetsTheLinger(RateBudget):
    """A mutant: a request given up is taken for one that was answered."""

    def _end(self, taken_at: float, extra: float | None) -> None:
        super()._end(taken_at, None if extra is None else 0.0)


@pytest.mark.parametrize("mutant", [ReturnsAtDeparture, ReturnsTwice, ForgetsTheLinger])
def test_the_property_finds_a_budget_that_breaks_the_guarantee(mutant: type[RateBudget]) -> None:
    def breaks(case: tuple[Rules, list[Plan]]) -> bool:
        given, calls = case
        ledger = run(simulate(budget_of(given, mutant), calls))
        return largest_count(ledger.counted, PERIOD) > given.limit

    cases = st.tuples(rules(), st.lists(plans, min_size=10, max_size=25))
    assert breaks(
        find(
            cases,
            breaks,
            settings=settings(
                max_examples=2000, deadline=None, database=None, phases=[Phase.generate]
            ),
        )
    )


@pytest.mark.parametrize("window", ["sliding", "fixed", "aligned", "bucket"])
def test_no_kind_of_server_window_refuses_us(window: str) -> None:
    async def main() -> None:
        server = make_window(window, 120, PERIOD)  # type: ignore[arg-type]
        budget = RateBudget()

        async def call(index: int) -> None:
            slot = await budget.acquire(Priority(index % 4))
            await asyncio.sleep((index * 37 % 101) / 300)
            assert server.hit(now()) == 0.0
            await asyncio.sleep((index * 53 % 97) / 300)
            slot.answered()

        await asyncio.gather(*(call(index) for index in range(600)))

    run(main(), start=17.3)


# -- full use ------------------------------------------------------------------


@pytest.mark.parametrize("lane", [NORMAL, BULK])
@pytest.mark.parametrize("round_trip", [0.05, 0.5, 5.0])
def test_many_sends_finish_within_three_percent_of_the_optimum(
    lane: Priority, round_trip: float
) -> None:
    count, budget = 600, RateBudget()
    times: list[float] = []

    async def call() -> None:
        slot = await budget.acquire(lane)
        times.append(now())
        await asyncio.sleep(round_trip)
        slot.answered()

    async def main() -> float:
        await asyncio.gather(*(call() for _ in range(count)))
        return now()

    took = run(main())
    assert took <= 1.03 * (count - 10) * (61 + round_trip) / 119
    assert largest_count(times, PERIOD) <= 120


def test_a_campaign_is_spread_evenly() -> None:
    budget, times = RateBudget(), []

    async def call() -> None:
        slot = await budget.acquire(BULK)
        times.append(now())
        await asyncio.sleep(0.2)
        slot.answered()

    async def main() -> None:
        await asyncio.gather(*(call() for _ in range(500)))

    run(main())
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(pauses) < 3
    assert sum(pause < 0.1 for pause in pauses) <= 5


# -- lanes and the reserve -----------------------------------------------------


async def saturate(
    budget: RateBudget, lane: Priority, count: int, round_trip: float
) -> list[asyncio.Task[None]]:
    async def call() -> None:
        slot = await budget.acquire(lane)
        await asyncio.sleep(round_trip)
        slot.answered()

    tasks = [asyncio.create_task(call()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("moment", [0.0, 30.0, 100.0, 333.3])
def test_one_high_call_leaves_at_once_whatever_waits(moment: float) -> None:
    async def main() -> None:
        budget = RateBudget()
        tasks = await saturate(budget, NORMAL, 5000, 0.2)
        tasks += await saturate(budget, BULK, 5000, 0.2)
        await asyncio.sleep(moment)
        asked = now()
        (await budget.acquire(HIGH)).answered()
        assert now() - asked <= 0.05
        await stop(tasks)
        assert sum(budget.statistics().waiting.values()) == 0

    run(main())


@pytest.mark.parametrize("lane", [NORMAL, BULK])
@pytest.mark.parametrize("round_trip", [0.2, 1000.0])
def test_the_reserve_leaves_at_once_behind_ten_thousand_calls_and_slow_answers(
    lane: Priority, round_trip: float
) -> None:
    async def main() -> None:
        budget = RateBudget(reserve=12, max_in_flight=30)
        tasks = await saturate(budget, lane, 10_000, round_trip)
        await asyncio.sleep(70)
        asked = now()
        slots = await asyncio.gather(*(budget.acquire(HIGH) for _ in range(12)))
        assert now() - asked <= 0.05
        for slot in slots:
            slot.answered()
        await stop(tasks)

    run(main())


@pytest.mark.parametrize("moment", [0.0, 30.0, 100.0, 333.3])
@pytest.mark.parametrize("lane", [NORMAL, HIGH])
def test_polls_never_delay_a_burst_of_sends(moment: float, lane: Priority) -> None:
    async def main() -> None:
        budget = RateBudget()
        tasks = await saturate(budget, Priority.BACKGROUND, 3000, 0.2)
        await asyncio.sleep(moment)
        asked = now()
        for slot in await asyncio.gather(*(budget.acquire(lane) for _ in range(8))):
            slot.answered()
        assert now() - asked <= 0.05
        await stop(tasks)

    run(main())


@pytest.mark.parametrize(("limit", "kept"), [(120, 11), (40, 10), (5, 1), (2, 1), (1, 0)])
def test_polls_leave_a_burst_alone_but_are_not_starved(limit: int, kept: int) -> None:
    async def main() -> None:
        budget = RateBudget(limit)
        for _ in range(limit - kept):
            (await budget.acquire(Priority.BACKGROUND)).answered()
        assert now() < PERIOD
        assert budget.statistics().free == kept
        (await budget.acquire(Priority.BACKGROUND)).answered()
        assert now() >= PERIOD

    run(main())


def test_polls_alone_use_what_they_may() -> None:
    async def main() -> None:
        budget = RateBudget()
        tasks = await saturate(budget, Priority.BACKGROUND, 436, 0.2)
        await asyncio.wait(tasks)
        assert now() <= 436 * 61.2 / 109  # in a steady stream from the start

    run(main())


def test_the_reserve_is_there_again_after_a_period() -> None:
    async def main() -> None:
        budget = RateBudget(reserve=12)
        tasks = await saturate(budget, NORMAL, 5000, 0.2)
        for _ in range(4):
            await asyncio.sleep(62)
            asked = now()
            for slot in await asyncio.gather(*(budget.acquire(HIGH) for _ in range(12))):
                slot.answered()
            assert now() - asked <= 0.05
        await stop(tasks)

    run(main())


def test_lanes_are_served_best_first_and_fifo_within() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0, margin=0.0)
        order: list[str] = []

        async def call(name: str, lane: Priority) -> None:
            slot = await budget.acquire(lane)
            order.append(name)
            slot.answered()

        (await budget.acquire()).answered()
        names = [("d1", Priority.BACKGROUND), ("c1", BULK), ("b1", NORMAL), ("a1", HIGH)]
        names += [("b2", NORMAL), ("a2", HIGH), ("c2", BULK)]
        await asyncio.gather(*(call(name, lane) for name, lane in names))
        assert order == ["a1", "a2", "b1", "b2", "c1", "c2", "d1"]

    run(main())


def test_a_retry_keeps_its_place() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0, margin=0.0)
        first = await budget.acquire()
        assert isinstance(first, _RateSlot)
        others = [asyncio.create_task(budget.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        first.answered()
        retry = asyncio.create_task(budget.acquire(arrival=first.arrival))
        (await retry).unused()
        assert not any(task.done() for task in others)
        for task in others:
            (await task).unused()

    run(main())


def test_a_slot_that_was_never_used_is_free_at_once() -> None:
    async def main() -> None:
        budget = RateBudget(2, 60.0, reserve=0)
        for _ in range(50):
            (await budget.acquire()).unused()
        assert now() == 0
        assert budget.statistics().free == 2

    run(main())


def test_many_cancelled_waiters_cost_the_others_nothing() -> None:
    async def main() -> None:
        budget = RateBudget(2, 10.0, reserve=0, margin=0.0)
        tasks = await saturate(budget, NORMAL, 2000, 0.0)
        await stop(tasks[2:])
        pump = budget._pump()
        assert len(pump._queue) <= 200
        assert sum(budget.statistics().waiting.values()) == 0
        asked = now()
        (await budget.acquire()).answered()
        assert now() - asked <= 10.01
        await stop(tasks[:2])

    run(main())


def test_a_cancelled_waiter_does_not_stand_in_the_way_when_nothing_else_happens() -> None:
    async def main() -> None:
        budget = RateBudget(10, 60.0, max_in_flight=2, burst=2)
        holder = await budget.acquire()
        waiting = asyncio.create_task(budget.acquire())  # for a place: no timer is set
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        holder.answered()
        budget.hold(5.0)
        slot = await asyncio.wait_for(budget.acquire(), timeout=30)
        assert 5 <= now() < 15
        slot.answered()

    run(main())


def test_a_retry_is_not_refused_for_those_who_came_after_it() -> None:
    async def main() -> None:
        budget = RateBudget(2, 10.0, reserve=0, margin=0.0)
        slot = await budget.acquire()
        assert isinstance(slot, _RateSlot)
        tasks = await saturate(budget, NORMAL, 50, 0.1)
        slot.answered()
        (await budget.acquire(NORMAL, 15.0, arrival=slot.arrival)).answered()
        assert now() <= 10.2
        await stop(tasks)

    run(main())


def test_a_busy_place_counts_in_the_projected_wait() -> None:
    async def main() -> None:
        budget = RateBudget(max_in_flight=1)
        for _ in range(60):
            slot = await budget.acquire()
            await asyncio.sleep(10.0)
            slot.answered()
        holder = await budget.acquire()
        with pytest.raises(BudgetTimeoutError) as caught:
            await budget.acquire(max_wait=1.0)
        assert caught.value.retry_after == pytest.approx(10.0, rel=0.01)
        holder.answered()

    run(main())


def test_several_429s_of_one_trouble_slow_down_once() -> None:
    async def main() -> None:
        budget = RateBudget()
        (await budget.acquire()).answered()
        for _ in range(10):
            budget.hold(0.0)
            await asyncio.sleep(0.01)
        assert budget.statistics().rate == pytest.approx(0.7, abs=0.001)
        assert budget.statistics().rate_limited == 10

    run(main())


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1.0, "5"])
def test_a_hold_that_cannot_end_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds is"):
        RateBudget().hold(seconds)


def test_asking_again_with_the_place_of_a_cancelled_call_is_no_error() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0, margin=0.0)
        first = await budget.acquire()
        assert isinstance(first, _RateSlot)
        first.answered()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await budget.acquire(arrival=first.arrival)
        others = await saturate(budget, HIGH, 1, 0.0)
        again = asyncio.create_task(budget.acquire(arrival=first.arrival))
        await asyncio.wait(others)
        (await again).answered()

    run(main())


def test_slots_of_a_loop_that_was_closed_over_them_come_back() -> None:
    budget = RateBudget(5, 0.2, max_in_flight=2, reserve=0, burst=5, margin=0.0, linger=0.0)

    async def take(count: int) -> None:
        for _ in range(count):
            await budget.acquire()

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.wait_for(take(2), timeout=5))
        loop.close()
    assert budget.statistics().in_flight == 2


def test_cancelled_in_the_moment_of_its_grant_a_slot_goes_back() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0)
        holder = await budget.acquire()
        waiting = asyncio.create_task(budget.acquire())
        await asyncio.sleep(0)
        holder.unused()  # grants to `waiting`, which is cancelled before it wakes
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert budget.statistics().free == 1
        assert budget.statistics().in_flight == 0

    run(main())


# -- failing fast --------------------------------------------------------------


@pytest.mark.parametrize("lane", [HIGH, NORMAL, BULK])
@pytest.mark.parametrize("ahead", [1, 50, 300])
def test_the_projected_wait_is_right_within_ten_percent(lane: Priority, ahead: int) -> None:
    async def main() -> None:
        budget = RateBudget()
        tasks = await saturate(budget, lane, 400 + ahead, 0.2)
        await asyncio.sleep(130)
        while budget.statistics().waiting[lane] > ahead:
            await asyncio.sleep(0.1)
        asked = now()
        with pytest.raises(BudgetTimeoutError) as caught:
            await budget.acquire(lane, 0.001)
        assert now() == asked
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.retry_after is not None
        (await budget.acquire(lane)).answered()
        assert caught.value.retry_after == pytest.approx(now() - asked, rel=0.1, abs=0.6)
        await stop(tasks)

    run(main())


def test_max_wait_is_a_hard_bound_when_better_lanes_come_in_between() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0, margin=0.0)
        (await budget.acquire()).answered()
        waiting = asyncio.create_task(budget.acquire(BULK, 15.0))
        await asyncio.sleep(0)
        tasks = await saturate(budget, HIGH, 5, 0.0)
        with pytest.raises(BudgetTimeoutError) as caught:
            await waiting
        assert now() == pytest.approx(15, abs=0.01)
        assert caught.value.retry_after is not None
        assert budget.statistics().waiting[BULK] == 0
        await stop(tasks)

    run(main())


def test_a_wait_that_fits_is_waited_for() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0, margin=0.0)
        (await budget.acquire()).answered()
        (await budget.acquire(max_wait=10.5)).answered()
        assert now() == pytest.approx(10, abs=0.01)

    run(main())


def test_a_slot_that_comes_with_the_last_moment_is_not_lost() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0)
        holder = await budget.acquire()
        task = asyncio.create_task(budget.acquire(max_wait=30.0))
        await asyncio.sleep(29.9)
        holder.unused()
        (await task).unused()
        assert budget.statistics().free == 1

    run(main())


async def test_refusing_is_quick_with_a_hundred_thousand_waiting() -> None:
    budget = RateBudget()
    tasks = await saturate(budget, BULK, 100_000, 0.2)
    timings = []
    for _ in range(20):
        began = time.perf_counter()
        with pytest.raises(BudgetTimeoutError):
            await budget.acquire(BULK, 1.0)
        timings.append(time.perf_counter() - began)
    assert min(timings) < 0.005
    await stop(tasks)


# -- after a 429 ---------------------------------------------------------------


def test_a_hold_is_one_for_all_and_then_the_rate_is_lower_and_recovers() -> None:
    async def main() -> None:
        budget = RateBudget()
        times: list[float] = []

        async def call() -> None:
            slot = await budget.acquire(NORMAL)
            times.append(now())
            slot.answered()

        tasks = [asyncio.create_task(call()) for _ in range(500)]
        await asyncio.sleep(5.25)
        budget.hold(20.0)
        budget.hold(5.0)  # shorter: changes nothing, and slows nothing down again
        statistics = budget.statistics()
        assert statistics.held_for == pytest.approx(20)
        assert statistics.rate == pytest.approx(0.7)
        assert statistics.rate_limited == 2
        before = len(times)
        await asyncio.sleep(19.99)
        assert len(times) == before
        await asyncio.sleep(1.5)
        assert before + 1 <= len(times) <= before + 2  # one at a time, no burst
        await asyncio.sleep(2 * PERIOD)
        assert budget.statistics().rate == 1.0
        await stop(tasks)

    run(main())


def test_the_projected_wait_knows_of_a_hold_and_of_the_slower_rate_after_it() -> None:
    async def main() -> None:
        budget = RateBudget()
        (await budget.acquire()).answered()
        budget.hold(40.0)
        tasks = await saturate(budget, NORMAL, 10, 0.1)
        with pytest.raises(BudgetTimeoutError) as caught:
            await budget.acquire(max_wait=1.0)
        assert caught.value.retry_after is not None
        (await budget.acquire()).answered()
        assert caught.value.retry_after == pytest.approx(now(), rel=0.05)
        await stop(tasks)

    run(main())


def test_the_rate_never_falls_below_a_tenth() -> None:
    async def main() -> None:
        budget = RateBudget()
        (await budget.acquire()).answered()
        for _ in range(30):
            budget.hold(1.0)
            await asyncio.sleep(2.01)
        assert budget.statistics().rate == pytest.approx(0.1, abs=0.001)
        await asyncio.sleep(2 * PERIOD)
        assert budget.statistics().rate == 1.0

    run(main())


def test_a_slot_granted_when_the_hold_begins_waits_too() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0)
        holder = await budget.acquire()
        waiting = asyncio.create_task(budget.acquire())
        await asyncio.sleep(0)
        holder.unused()  # granted to `waiting`, which has not run yet
        budget.hold(5.0)
        slot = await waiting
        assert now() >= 5.0
        budget.hold(5.0)
        assert getattr(slot, "held", None) is True
        slot.unused()

    run(main())


def test_a_program_that_shares_the_key_is_met_with_few_429s_and_full_use_comes_back() -> None:
    async def main() -> None:
        server, budget = make_window("sliding", 120, PERIOD), RateBudget()
        answers: list[tuple[float, bool]] = []

        async def send() -> None:
            while True:
                slot = await budget.acquire(BULK)
                await asyncio.sleep(0.05)
                wait = server.hit(now())
                await asyncio.sleep(0.05)
                slot.answered()
                answers.append((now(), wait == 0))
                if not wait:
                    return
                budget.hold(math.ceil(wait))

        async def foreigner(until: float) -> None:
            while now() < until:
                await asyncio.sleep(PERIOD / 36)
                server.hit(now())

        tasks = [asyncio.create_task(send()) for _ in range(1600)]
        await foreigner(until=600.0)
        await asyncio.sleep(240.0)
        shared = [passed for moment, passed in answers if 60 < moment <= 600]
        assert shared.count(False) / len(shared) <= 0.01
        assert shared.count(True) >= 9 * 84 * 0.85  # of what the foreigner leaves
        afterwards = [moment for moment, passed in answers if 720 < moment <= 780 and passed]
        assert len(afterwards) >= 115
        await stop(tasks)

    run(main())


def test_a_server_that_allows_no_burst_is_met_by_the_same_rule() -> None:
    async def main() -> None:
        leaky, budget = make_window("bucket", 3, 1.5), RateBudget()  # 2 a second, 3 at once
        refused = sent = 0

        async def send() -> None:
            nonlocal refused, sent
            while True:
                slot = await budget.acquire()
                wait = leaky.hit(now())
                await asyncio.sleep(0.05)
                slot.answered()
                if not wait:
                    sent += 1
                    return
                refused += 1
                budget.hold(wait)

        await asyncio.gather(*(send() for _ in range(400)))
        assert sent == 400
        assert refused <= 8  # the first burst, and no more

    run(main())


# -- loops and threads ---------------------------------------------------------


def test_the_guarantee_holds_across_event_loops() -> None:
    budget = RateBudget(20, 1.0, burst=20, reserve=0, margin=0.0)
    times: list[float] = []

    async def main() -> None:
        async def call() -> None:
            slot = await budget.acquire()
            times.append(time.monotonic())
            slot.answered()

        await asyncio.gather(*(call() for _ in range(3)))

    for _ in range(20):
        asyncio.run(main())
    assert len(times) == 60
    assert largest_count(times, 1.0) <= 20
    assert len(budget._pumps) == 1  # closed loops are forgotten


def test_the_guarantee_holds_across_threads() -> None:
    budget = RateBudget(40, 0.5, burst=40, max_in_flight=5, margin=0.0)
    times: list[float] = []

    async def main() -> None:
        async def call() -> None:
            slot = await budget.acquire()
            times.append(time.monotonic())
            await asyncio.sleep(0)
            slot.answered()

        await asyncio.gather(*(call() for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(times) == 100
    assert largest_count(times, 0.5) <= 40
    assert budget.statistics().in_flight == 0


def test_a_loop_closed_with_calls_waiting_does_not_disturb_the_next() -> None:
    budget = RateBudget(1, 60.0)
    left: list[object] = []

    async def leave_one_waiting() -> None:
        left.append(await budget.acquire())
        left.append(asyncio.ensure_future(budget.acquire()))
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_one_waiting())
    task = left.pop()
    assert isinstance(task, asyncio.Task)
    assert isinstance(left[0], _RateSlot)
    loop.call_soon(task.cancel)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    left[0].unused()
    assert budget.statistics().free == 1


def test_a_slot_ended_outside_its_loop_wakes_the_next_call() -> None:
    budget = RateBudget(1, 60.0)
    slots: list[object] = []

    async def one_waits() -> asyncio.Task[object]:
        slots.append(await budget.acquire())
        task = asyncio.ensure_future(budget.acquire())
        await asyncio.sleep(0)
        return task  # type: ignore[return-value]

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(one_waits())
    slots[0].unused()  # type: ignore[attr-defined]
    assert isinstance(loop.run_until_complete(task), _RateSlot)
    loop.close()


def test_a_call_cancelled_in_the_moment_its_time_is_up_is_cancelled() -> None:
    async def main() -> None:
        budget = RateBudget(1, 10.0)
        (await budget.acquire()).answered()
        task = asyncio.create_task(budget.acquire(max_wait=11.0))
        await asyncio.sleep(0)
        pump = budget._pump()
        future = pump._queue[0][-1]
        budget._expire(pump, NORMAL, future)
        budget._expire(pump, NORMAL, future)  # once is enough
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget.statistics().waiting[NORMAL] == 0

    run(main())


def test_a_virtual_clock_is_followed_and_never_goes_back() -> None:
    budget = RateBudget(1, 60.0, margin=0.0)

    async def take() -> float:
        (await budget.acquire()).answered()
        return now()

    began = time.perf_counter()
    assert run(take()) == 0
    assert run(take(), start=5.0) == pytest.approx(65, abs=0.1)  # no time passed between the loops
    assert time.perf_counter() - began < 5


def test_an_injected_clock_is_the_only_one() -> None:
    moment = 100.0
    budget = RateBudget(1, 60.0, clock=lambda: moment)

    async def take() -> None:
        (await budget.acquire()).answered()
        with pytest.raises(BudgetTimeoutError):
            await budget.acquire(max_wait=1.0)

    asyncio.run(take())
    assert budget.statistics().free == 0
    moment += 62
    assert budget.statistics().free == 1


# -- settings, statistics, sharing ---------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"limit": True}, "limit is True"),
        ({"period": 0}, "period is 0"),
        ({"period": -1.0}, "period is -1.0"),
        ({"period": math.nan}, "period is nan"),
        ({"period": math.inf}, "period is inf"),
        ({"period": "60"}, "period is '60'"),
        ({"burst": 0}, "burst is 0"),
        ({"burst": 121}, "burst=121 is more than limit=120"),
        ({"reserve": -1}, "reserve is -1"),
        ({"reserve": 120}, "reserve=120 leaves nothing"),
        ({"reserve": 50}, "leaves no place in flight"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"max_in_flight": "50"}, "max_in_flight is '50'"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": math.nan}, "margin is nan"),
        ({"linger": -1}, "linger is -1"),
        ({"linger": math.inf}, "linger is inf"),
    ],
)
def test_numbers_that_cannot_hold_the_guarantee_are_refused(
    options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        RateBudget(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "burst", "reserve"), [(120, 10, 1), (5, 5, 1), (1, 1, 0)])
def test_defaults_fit_small_limits(limit: int, burst: int, reserve: int) -> None:
    budget = RateBudget(limit)
    assert (budget._rules.burst, budget._rules.reserve) == (burst, reserve)
    assert (budget._rules.margin, budget._rules.linger) == (1.0, 30.0)


def test_statistics_tell_how_full_it_is() -> None:
    async def main() -> None:
        budget = RateBudget(3, 60.0)
        slots = [await budget.acquire(HIGH) for _ in range(2)]
        tasks = await saturate(budget, BULK, 4, 0.0)
        statistics = budget.statistics()
        assert (statistics.limit, statistics.period) == (3, 60.0)
        assert statistics.free == 1
        assert statistics.in_flight == 2
        assert statistics.waiting == {HIGH: 0, NORMAL: 0, BULK: 4, Priority.BACKGROUND: 0}
        assert statistics.held_for == 0.0
        assert statistics.rate_limited == 0
        for slot in slots:
            slot.given_up()
        assert budget.statistics().in_flight == 0
        await stop(tasks)
        await budget.aclose()

    run(main())


def test_it_is_a_budget_and_shows_its_numbers() -> None:
    assert isinstance(RateBudget(), Budget)
    assert repr(RateBudget(10, 5.0)) == "RateBudget(limit=10, period=5.0)"
    assert RateBudget().max_in_flight == 50


def test_unlimited_lets_everybody_go_and_projects_no_wait() -> None:
    async def main() -> None:
        budget = RateBudget.unlimited(max_in_flight=3)
        for _ in range(2000):
            (await budget.acquire(max_wait=0.5)).answered()
        assert now() == 0
        for _ in range(2000):
            (await budget.acquire(BULK, 0.5)).answered()
        assert now() < 0.1
        for slot in [await budget.acquire(max_wait=0.5) for _ in range(3)]:
            slot.answered()

    run(main())


def test_clients_of_one_key_share_a_budget_that_outlives_them_while_it_cools_down() -> None:
    async def main() -> None:
        first = shared_budget("https://a", "digest-of-one-key")
        assert shared_budget("https://a", "digest-of-one-key") is first
        assert shared_budget("https://b", "digest-of-one-key") is not first
        (await first.acquire()).answered()
        name = id(first)
        del first
        again = shared_budget("https://a", "digest-of-one-key")
        assert id(again) == name
        assert again.statistics().free == 119

    asyncio.run(main())
