"""An hour of mixed traffic on virtual time, and what stalls of the event loop cost.

    python benchmarks/budget_hour.py [--minutes 60] [--no-stalls]

The whole client, but for the network, works for an hour with the default budget (120 per 60 s)
against each of the sandbox's windows, and against a fixed one that closes a second late. All
lanes ask for more than there is; answers take 0 to 300 ms; calls are cancelled while they wait
and while they are under way; connections fail; some answers are lost: the client gives
those requests up after 30 s, and the server counts half of them, at any time until then.
Prints for each window:

- counted: requests that the server counted,
- 429s: requests that were over its limit,
- largest: the most counted in any 60 s,
- use: counted over 120 a minute.

Then, in real time and against a sandbox in another process, 120 per 6 s: the time that a full
queue takes with the event loop blocked for 200 ms in every 2 s, over the time without.
Exits 1 if a promise is broken: a 429, less than 96.5 % use, 3 % or more for the stalls.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import logging
import random
import sys
import time
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import TYPE_CHECKING

import attrs
import httpx
import looptime

from smsid_async import Priority, RateBudget, SMSIDClient, SMSIDError
from smsid_async.sandbox import Sandbox
from smsid_async.sandbox.windows import (
    AlignedWindow,
    BucketWindow,
    FixedWindow,
    SlidingWindow,
    Window,
    largest_count,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from multiprocessing.connection import Connection

NUMBER = "+447700900123"
LIMIT, PERIOD = 120, 60.0
LATENCY = 0.3  # seconds; an exchange takes up to so long
ATTEMPT = 30.0  # seconds until an answer is given up
LOST, BROKEN, CANCELLED, IMPATIENT = 0.002, 0.01, 0.02, 0.05  # shares of the requests
LEAST_USE, STALL_COST = 0.965, 0.03
PER_MINUTE = {  # calls that begin; sends alone are more than there is room for
    Priority.HIGH: 10,
    Priority.NORMAL: 60,
    Priority.BULK: 80,
    Priority.BACKGROUND: 30,
}
WINDOWS: dict[str, Window] = {
    "sliding": SlidingWindow(LIMIT, PERIOD),
    "fixed": FixedWindow(LIMIT, PERIOD),
    "aligned": AlignedWindow(LIMIT, PERIOD),
    "bucket": BucketWindow(LIMIT, PERIOD),
    "fixed, 1 s late": FixedWindow(LIMIT, PERIOD + 1),
}


def now() -> float:
    return asyncio.get_running_loop().time()


class Server(httpx.AsyncBaseTransport):
    """The API behind a network that loses things, on the running loop's time."""

    def __init__(self, window: Window, draw: random.Random) -> None:
        self.counted: list[float] = []
        self.refused = 0
        self.lost = 0
        self._window = window
        self._draw = draw
        self._late: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fate = self._draw.random()
        takes = self._draw.uniform(0, LATENCY)
        connected, counted = sorted(self._draw.uniform(0, takes) for _ in range(2))
        await asyncio.sleep(connected)
        if fate < BROKEN:
            raise httpx.ConnectError("no route")
        await _tell_that_it_leaves(request)
        if fate < BROKEN + LOST:
            self.lost += 1
            if self._draw.random() < 0.5:
                self._count_later(self._draw.uniform(0, ATTEMPT))
            await asyncio.sleep(10 * ATTEMPT)
        await asyncio.sleep(counted - connected)
        wait = self.count()
        await asyncio.sleep(takes - counted)
        if wait:
            return httpx.Response(429, headers={"Retry-After": f"{wait:.0f}"})
        return httpx.Response(200, content=_answer(request.url.path))

    def count(self) -> float:
        wait = self._window.hit(now())
        if wait:
            self.refused += 1
        else:
            self.counted.append(now())
        return wait

    def _count_later(self, seconds: float) -> None:
        async def later() -> None:
            await asyncio.sleep(seconds)
            self.count()

        task = asyncio.create_task(later())
        self._late.add(task)
        task.add_done_callback(self._late.discard)


async def _tell_that_it_leaves(request: httpx.Request) -> None:
    """Emit httpcore's trace event."""
    info = {"request": SimpleNamespace(method=request.method.encode())}
    await request.extensions["trace"]("http11.send_request_headers.started", info)


def _answer(path: str) -> bytes:
    data: dict[str, str]
    if path.endswith("/send"):
        data = {"status": "success", "message_id": "m", "cost": "0", "remaining_balance": "9"}
    elif path.endswith("/status"):
        data = {"message_id": "m", "status": "sent"}
    else:
        data = {"balance": "9"}
    return json.dumps({"meta": {"code": 200, "text": "OK"}, "data": data}).encode()


@attrs.frozen
class Hour:
    """What came of one hour."""

    counted: int
    refused: int
    largest: int
    use: float
    lost: int
    ends: collections.Counter[str]
    waits: dict[Priority, list[float]]


@attrs.define
class Traffic:
    """Calls that begin at random moments in every lane."""

    client: SMSIDClient
    draw: random.Random
    minutes: float
    ends: collections.Counter[str] = attrs.field(factory=collections.Counter)
    waits: dict[Priority, list[float]] = attrs.field(
        factory=lambda: {lane: [] for lane in Priority}
    )
    calls: set[asyncio.Task[None]] = attrs.field(factory=set)

    async def arrive(self, lane: Priority) -> None:
        while now() < self.minutes * 60:
            task = asyncio.create_task(self.call(lane))
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)
            fate = self.draw.random()
            if fate < CANCELLED:  # soon: those that wait little are under way by then
                asyncio.get_running_loop().call_later(
                    self.draw.uniform(0, 2 * LATENCY), task.cancel
                )
            elif fate < CANCELLED + IMPATIENT:
                asyncio.get_running_loop().call_later(self.draw.uniform(0, 120), task.cancel)
            await asyncio.sleep(self.draw.expovariate(PER_MINUTE[lane] / 60))

    async def call(self, lane: Priority) -> None:
        began = now()
        try:
            if lane is Priority.BACKGROUND:
                await self.client.sms.status("m", priority=lane)
            elif self.draw.random() < 0.1:
                await self.client.balance(priority=lane)
            else:
                await self.client.sms.send(NUMBER, "Text", priority=lane)
        except SMSIDError as error:
            self.ends[type(error).__name__] += 1
        except asyncio.CancelledError:
            self.ends["cancelled"] += 1
            raise
        else:
            self.ends["done"] += 1
            self.waits[lane].append(now() - began)


async def hour(window: Window, minutes: float) -> Hour:
    draw = random.Random(7)
    server = Server(window, draw)
    async with (
        httpx.AsyncClient(transport=server) as http_client,
        SMSIDClient(
            "test",
            base_url="http://127.0.0.1:9/api/v1",
            budget=RateBudget(LIMIT, PERIOD),
            attempt_timeout=ATTEMPT,
            http_client=http_client,
        ) as client,
    ):
        traffic = Traffic(client, draw, minutes)
        await asyncio.gather(*(traffic.arrive(lane) for lane in Priority))
        counted, refused, ends = list(server.counted), server.refused, traffic.ends.copy()
        for task in list(traffic.calls):
            task.cancel()
        await asyncio.wait(traffic.calls)
    ended = sum(1 for moment in counted if moment <= minutes * 60)
    return Hour(
        counted=ended,
        refused=refused,
        largest=largest_count(counted, PERIOD),
        use=ended / (minutes * 60 / PERIOD * LIMIT),
        lost=server.lost,
        ends=ends,
        waits=traffic.waits,
    )


def run_virtually(main: Coroutine[object, object, Hour]) -> Hour:
    """Run a coroutine in a loop in which sleeping takes no real time."""
    loop_class = looptime.make_event_loop_class(asyncio.SelectorEventLoop)
    with asyncio.Runner(loop_factory=lambda: loop_class(noop_cycles=3)) as runner:
        return runner.run(main)


def virtual_hours(minutes: float) -> bool:
    print(f"{minutes:g} virtual minutes for each window, {LIMIT} per {PERIOD:g} s")
    print(
        f"{'window':16} {'counted':>8} {'429s':>5} {'largest':>8} {'use %':>6} {'cancelled':>10} "
        f"{'broken':>7} {'lost':>5} {'HIGH median, 99 %':>18} {'real s':>7}"
    )
    kept = True
    for name, window in WINDOWS.items():
        began = time.perf_counter()
        seen = run_virtually(hour(window, minutes))
        high = sorted(seen.waits[Priority.HIGH])
        waits = f"{high[len(high) // 2]:.2f}, {high[len(high) * 99 // 100]:.2f} s"
        print(
            f"{name:16} {seen.counted:8} {seen.refused:5} {seen.largest:8} {seen.use * 100:6.2f} "
            f"{seen.ends['cancelled']:10} {seen.ends['NotSentError']:7} {seen.lost:5} "
            f"{waits:>18} {time.perf_counter() - began:7.1f}",
            flush=True,
        )
        kept = kept and not seen.refused and seen.largest <= LIMIT and seen.use >= LEAST_USE
    return kept


# -- stalls ----------------------------------------------------------------------


def serve(pipe: Connection, limit: int, period: float) -> None:
    """Run a sandbox in a process of its own until told to stop."""
    draw = random.Random(1)

    async def main() -> None:
        async with Sandbox(
            limit=limit,
            period=period,
            balance=10**9,
            latency=lambda: draw.uniform(0, LATENCY),
        ) as sandbox:
            pipe.send(sandbox.url)
            await asyncio.to_thread(pipe.recv)  # until told to stop
            moments = [request.at for request in sandbox.requests if request.counted]
            pipe.send((sandbox.refused, moments))

    asyncio.run(main())


async def stall(every: float, seconds: float) -> None:
    while True:
        await asyncio.sleep(every)
        time.sleep(seconds)  # noqa: ASYNC251 - this is what is measured


async def send_all(
    url: str, sends: int, limit: int, period: float, lane: Priority, seconds: float
) -> None:
    async with SMSIDClient("test", base_url=url, budget=RateBudget(limit, period)) as client:
        staller = asyncio.create_task(stall(2.0, seconds))
        calls = (client.sms.send(NUMBER, f"Text {n}", priority=lane) for n in range(sends))
        await asyncio.gather(*calls)
        staller.cancel()


def _send_all(*given: object) -> None:
    asyncio.run(send_all(*given))  # type: ignore[arg-type]


def steady(sends: int, lane: Priority, seconds: float) -> tuple[int, float]:
    """The 429s, and the time from the first to the last request, with such stalls."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    limit, period = 120, 6.0
    server = context.Process(target=serve, args=(theirs, limit, period))
    server.start()
    theirs.close()
    given = (ours.recv(), sends, limit, period, lane, seconds)
    client = context.Process(target=_send_all, args=given)
    client.start()
    client.join()
    ours.send("stop")
    refused, moments = ours.recv()
    server.join()
    return refused, moments[-1] - moments[0]


def stalls(sends: int, runs: int) -> bool:
    print(f"\n200 ms stalls in every 2 s, {sends} sends, 120 per 6 s, best of {runs}")
    print(f"{'lane':8} {'429s':>5} {'without s':>10} {'with s':>8} {'cost %':>7}")
    kept = True
    for lane in (Priority.NORMAL, Priority.BULK):
        cases = [(sends, lane, seconds) for seconds in (0.0, 0.2) for _ in range(runs)]
        with ThreadPool(2 * runs) as pool:  # side by side: a case idles all but a few percent
            seen = pool.starmap(steady, cases)
        without = min(took for _, took in seen[:runs])
        with_them = min(took for _, took in seen[runs:])
        refused = sum(count for count, _ in seen)
        cost = with_them / without - 1
        print(
            f"{lane.name:8} {refused:5} {without:10.2f} {with_them:8.2f} {cost * 100:7.2f}",
            flush=True,
        )
        kept = kept and not refused and cost < STALL_COST
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--no-stalls", action="store_true")
    parser.add_argument("--sends", type=int, default=590, help="for the stalls")
    parser.add_argument("--runs", type=int, default=2, help="for the stalls")
    given = parser.parse_args()
    logging.getLogger("smsid_async").setLevel(logging.CRITICAL)  # lost answers are meant here
    kept = virtual_hours(given.minutes)
    kept = (given.no_stalls or stalls(given.sends, given.runs)) and kept
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
