"""What waiting costs: time a grant, bytes a waiting send, idle CPU, time to refuse.

    python benchmarks/budget_cost.py [--idle 10] [--most 100000]

For 1,000, 10,000 and 100,000 waiting calls:

- us/join: CPU time to queue one `budget.acquire()` in a task of its own,
- us/grant: CPU time from one grant to the next, task switch and return of the slot included,
- bytes: what one waiting `client.sms.send` takes by tracemalloc, its asyncio task included,
- RSS: the same by the resident set of a fresh process,
- refuse: the longest of 100 calls of `client.sms.send(max_wait=1)` that find the queue so long,
- idle: CPU time over real time while all wait on the default budget and it grants 2 a second.

Exits 1 if a promise is broken: grants at most twice as dear from 10,000 to 100,000, 2,500 bytes
(tracemalloc), 5 ms to refuse, 1 % idle.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import resource
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from smsid_async import BudgetTimeoutError, RateBudget, SMSIDClient

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")

NUMBER = "+447700900123"
NOWHERE = "http://127.0.0.1:9/api/v1"  # never asked: everybody waits
PLACES = 50
GROWTH, BYTES, REFUSAL, IDLE = 2.0, 2500, 0.005, 0.01
UNMEASURED = 0.5  # seconds for a queue to come to rest


@attrs.frozen
class Cost:
    """What so many waiting calls cost."""

    waiting: int
    join: float
    grant: float
    traced: float
    resident: float
    refusal: float
    idle: float


async def all_waiting(budget: RateBudget, count: int) -> None:
    while sum(budget.statistics().waiting.values()) < count:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def grants(count: int) -> tuple[float, float]:
    """CPU seconds to queue one call, and to grant one, where no limit but the CPU's holds."""
    budget = RateBudget.unlimited(max_in_flight=PLACES)
    slots = [await budget.acquire() for _ in range(PLACES)]

    async def call() -> None:
        (await budget.acquire()).answered()

    began = time.process_time()
    tasks = [asyncio.create_task(call()) for _ in range(count)]
    await all_waiting(budget, count)
    joined = time.process_time()
    for slot in slots:
        slot.answered()
    await asyncio.wait(tasks)
    return (joined - began) / count, (time.process_time() - joined) / count


async def waiting_sends(count: int, weigh: Callable[[], int]) -> float:
    """Bytes of one waiting send."""
    budget = RateBudget(1, 3600)
    await budget.acquire()
    async with SMSIDClient("test", base_url=NOWHERE, budget=budget) as client:

        async def send(text: str) -> None:
            await client.sms.send(NUMBER, text)

        first = [asyncio.create_task(send("first"))]  # fills every cache
        await all_waiting(budget, 1)
        gc.collect()
        before = weigh()
        sends = [client.sms.send(NUMBER, f"Text {number}") for number in range(count)]
        tasks = [asyncio.create_task(each) for each in sends]
        del sends
        await all_waiting(budget, count + 1)
        gc.collect()
        after = weigh()
        await stop(first)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return (after - before) / count


def traced() -> int:
    return tracemalloc.get_traced_memory()[0]


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def traced_bytes(count: int) -> float:
    tracemalloc.start()
    try:
        return await waiting_sends(count, traced)
    finally:
        tracemalloc.stop()


async def resident_bytes(count: int) -> float:
    return await waiting_sends(count, resident)


async def refusals(count: int) -> float:
    """The longest of a hundred refusals, in seconds."""
    budget = RateBudget()
    async with SMSIDClient("test", base_url=NOWHERE, budget=budget) as client:

        async def call() -> None:
            (await budget.acquire()).answered()

        tasks = [asyncio.create_task(call()) for _ in range(count)]
        await asyncio.sleep(UNMEASURED)
        longest = 0.0
        for _ in range(100):
            began = time.perf_counter()
            with contextlib.suppress(BudgetTimeoutError):
                await client.sms.send(NUMBER, "Text", max_wait=1)
            longest = max(longest, time.perf_counter() - began)
        assert sum(budget.statistics().waiting.values()) > count / 2
        await stop(tasks)
        return longest


async def idle(count: int, seconds: float) -> float:
    """The share of a CPU while `count` wait for the default budget."""
    budget = RateBudget()

    async def call() -> None:
        (await budget.acquire()).answered()

    tasks = [asyncio.create_task(call()) for _ in range(count)]
    await asyncio.sleep(UNMEASURED)
    began, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    share = (time.process_time() - used) / (time.perf_counter() - began)
    await stop(tasks)
    return share


def _answer(
    pipe: Connection, measure: Callable[..., Coroutine[object, object, T]], *args: object
) -> None:
    pipe.send(asyncio.run(measure(*args)))


def fresh(measure: Callable[..., Awaitable[T]], *args: object) -> T:
    """Measure in a process of its own."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, measure, *args))
    process.start()
    theirs.close()
    result: T = ours.recv()
    process.join()
    return result


def measure(waiting: int, seconds: float) -> Cost:
    runs = [fresh(grants, waiting) for _ in range(3)]
    return Cost(
        waiting=waiting,
        join=min(join for join, _ in runs),
        grant=min(grant for _, grant in runs),
        traced=fresh(traced_bytes, waiting),
        resident=fresh(resident_bytes, waiting),
        refusal=fresh(refusals, waiting),
        idle=fresh(idle, waiting, seconds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=float, default=10.0, help="real seconds to idle, each")
    parser.add_argument("--most", type=int, default=100_000)
    given = parser.parse_args()
    print(
        f"{'waiting':>8} {'us/join':>8} {'us/grant':>9} {'bytes':>7} {'RSS':>7} "
        f"{'refuse ms':>10} {'idle %':>7}"
    )
    costs = []
    for waiting in (given.most // 100, given.most // 10, given.most):
        cost = measure(waiting, given.idle)
        costs.append(cost)
        print(
            f"{waiting:8,} {cost.join * 1e6:8.1f} {cost.grant * 1e6:9.1f} {cost.traced:7,.0f} "
            f"{cost.resident:7,.0f} {cost.refusal * 1e3:10.2f} {cost.idle * 100:7.2f}",
            flush=True,
        )
    growth = costs[2].grant / costs[1].grant
    print(f"a grant costs {growth:.2f} times as much with {costs[2].waiting:,} waiting")
    kept = (
        growth < GROWTH
        and max(cost.traced for cost in costs) <= BYTES
        and max(cost.refusal for cost in costs) < REFUSAL
        and max(cost.idle for cost in costs) < IDLE
    )
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
