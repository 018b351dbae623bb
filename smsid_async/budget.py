"""The rate budget: who may send one request, and when.

`_window` holds the arithmetic and says why the guarantee holds. Here a `_Pump` is the
queue and the one timer of one event loop, and `RateBudget` ties the two together.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from weakref import WeakValueDictionary

import attrs

from smsid_async._window import Priority, Rules, Window, check_count, check_duration
from smsid_async.errors import BudgetTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

__all__ = ["Budget", "BudgetStatistics", "Priority", "RateBudget", "Slot", "shared_budget"]


_SHORTEST_NAP = 1e-5  # seconds; a rounded-off timer must not fire for ever at one instant


class Slot(Protocol):
    """The right to one request; end it exactly once."""

    def answered(self) -> None:
        """Say that the server has answered: it has counted the request by now."""
        ...

    def given_up(self) -> None:
        """Say that the request left and no answer is awaited: it may be counted later."""
        ...

    def unused(self) -> None:
        """Say that the request provably never left: the slot is free again at once."""
        ...


@runtime_checkable
class Budget(Protocol):
    """What the client asks before every request; bring your own if you like.

    A budget whose slots have an `arrival` is handed it back as the keyword
    `arrival` when the same call asks again, so that a retry keeps its place. Slots may
    have a `held` too: when it is true at the last moment, the request does not leave.
    """

    async def acquire(
        self, priority: Priority = Priority.NORMAL, max_wait: float | None = None
    ) -> Slot:
        """Wait for a slot.

        Args:
            priority: The lane to wait in.
            max_wait: Seconds it may take; None for as long as needed.

        Raises:
            BudgetTimeoutError: No slot within `max_wait`; nothing was sent.
        """
        ...

    def hold(self, seconds: float) -> None:
        """Let nobody send for so many seconds: the server answered 429."""
        ...

    def statistics(self) -> BudgetStatistics:
        """Tell how full the budget is."""
        ...

    async def aclose(self) -> None:
        """Let go of what the budget holds open, if anything."""
        ...


@attrs.frozen
class BudgetStatistics:
    """How full a budget is, at one moment.

    Attributes:
        limit: Requests in each period.
        period: Seconds.
        free: Slots that could be taken now.
        in_flight: Requests that are being made.
        waiting: Calls in the queue, by lane.
        held_for: Seconds until the present hold ends, 0 without one.
        rate_limited: Answers 429 seen so far.
        rate: The share of the full rate that is used, 1.0 unless 429s came.
    """

    limit: int
    period: float
    free: int
    in_flight: int
    waiting: Mapping[Priority, int]
    held_for: float
    rate_limited: int
    rate: float


class _RateSlot:
    """A slot of a `RateBudget`."""

    __slots__ = ("_budget", "_open", "_pump", "_taken_at", "arrival")

    def __init__(self, budget: RateBudget, pump: _Pump, arrival: int, taken_at: float) -> None:
        self._budget = budget
        self._pump = pump
        pump.slots.add(self)
        self._open = True
        self._taken_at = taken_at
        self.arrival = arrival

    @property
    def held(self) -> bool:
        """Whether a hold has begun since the grant, so that the request must not leave."""
        return self._budget._held()  # noqa: SLF001 - a slot is part of its budget

    def answered(self) -> None:
        self._end(0.0)

    def given_up(self) -> None:
        self._end(self._budget._rules.linger)  # noqa: SLF001 - as above

    def unused(self) -> None:
        self._end(None)

    def _end(self, extra: float | None) -> None:
        if self._open:
            self._open = False
            self._pump.slots.discard(self)
            self._budget._end(self._taken_at, extra)  # noqa: SLF001 - as above


class _Pump:
    """The queue of one event loop, and the one timer that serves it."""

    def __init__(self, budget: RateBudget, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting = [0] * len(Priority)
        self._budget = budget
        self.slots: set[_RateSlot] = set()  # granted in this loop and not ended
        self._order = itertools.count()  # tells entries of one arrival apart
        self._queue: list[tuple[Priority, int, int, asyncio.Future[_RateSlot]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def ahead(self, lane: Priority) -> int:
        """Calls that are served before a newcomer in this lane."""
        return sum(self.waiting[: lane + 1])

    def join(self, lane: Priority, arrival: int) -> asyncio.Future[_RateSlot]:
        """Queue up; the future gets the slot."""
        future: asyncio.Future[_RateSlot] = self.loop.create_future()
        while self._queue and self._queue[0][-1].done():
            heapq.heappop(self._queue)  # a cancelled head would keep us from being served
        heapq.heappush(self._queue, (lane, arrival, next(self._order), future))
        self.waiting[lane] += 1
        if self._queue[0][-1] is future:
            self.serve()
        return future

    def leave(self, lane: Priority) -> None:
        """Note that a call left the queue without a slot; its entry is dropped in passing."""
        self.waiting[lane] -= 1
        if len(self._queue) > 2 * sum(self.waiting) + 64:
            self._queue = [entry for entry in self._queue if not entry[-1].done()]
            heapq.heapify(self._queue)

    def serve(self) -> None:
        """Grant what can be granted now, best waiter first, and set the timer for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            lane, arrival, _, future = self._queue[0]
            if not future.done():
                wait = self._budget._try(self, lane, arrival, future)  # noqa: SLF001 - one module
                if wait > 0:
                    self._wake_in(wait)
                    return
                self.waiting[lane] -= 1
            heapq.heappop(self._queue)

    def _wake_in(self, seconds: float) -> None:
        if seconds < math.inf:
            self._timer = self.loop.call_later(max(seconds, _SHORTEST_NAP), self.serve)


class RateBudget:
    """The rate budget of one process.

    In no span of `period` seconds does the server count more than `limit` requests
    of this process, whether its window is fixed, aligned or sliding, across event
    loops and threads. It assumes that a request given up without an answer is
    counted, if ever, within `linger`.

    Args:
        limit: Requests in each period.
        period: Seconds.
        burst: Requests that may leave at once after a pause, for `HIGH` and
            `NORMAL`; other lanes are spread evenly. Default 10, or `limit` if less.
        reserve: Slots, and places in flight, for `HIGH` alone. Default 1 (0 if
            `limit` is 1).
        max_in_flight: Requests that may be under way at once.
        margin: Seconds that a slot stays away longer, for servers that count in
            whole seconds. Default `period` / 60.
        linger: Seconds after being given up within which a request may still be
            counted. Default `period` / 2.
        clock: Returns monotonic seconds. Default `time.monotonic`, or the running
            loop's own clock where that keeps another time (virtual time in tests).

    Raises:
        ConfigurationError: The numbers cannot hold the guarantee.
    """

    def __init__(
        self,
        limit: int = 120,
        period: float = 60.0,
        *,
        burst: int | None = None,
        reserve: int | None = None,
        max_in_flight: int = 50,
        margin: float | None = None,
        linger: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_count("limit", limit, least=1)
        check_count("max_in_flight", max_in_flight, least=1)
        check_duration("period", period)
        self._rules = Rules(
            limit=limit,
            period=period,
            burst=min(10, limit) if burst is None else burst,
            reserve=min(1, limit - 1, max_in_flight - 1) if reserve is None else reserve,
            max_in_flight=max_in_flight,
            margin=period / 60 if margin is None else margin,
            linger=period / 2 if linger is None else linger,
        )
        self._window = Window(self._rules)
        self._lock = threading.Lock()
        self._arrivals = itertools.count()
        self._pumps: dict[asyncio.AbstractEventLoop, _Pump] = {}
        self._follows_loops = clock is None
        self._clock = clock or time.monotonic

    @classmethod
    def unlimited(cls, *, max_in_flight: int = 50) -> Self:
        """Make a budget with a limit that nothing reaches.

        Args:
            max_in_flight: Requests that may be under way at once.
        """
        most = 10**9
        return cls(
            most, 0.001, burst=most, reserve=0, max_in_flight=max_in_flight, margin=0.0, linger=0.0
        )

    @property
    def max_in_flight(self) -> int:
        """Requests that may be under way at once."""
        return self._rules.max_in_flight

    async def acquire(
        self,
        priority: Priority = Priority.NORMAL,
        max_wait: float | None = None,
        *,
        arrival: int | None = None,
    ) -> Slot:
        """Wait for a slot.

        Args:
            priority: The lane to wait in.
            max_wait: Seconds it may take; None for as long as needed. Where the
                projected wait is longer, the error comes at once.
            arrival: The `arrival` of a slot that the same call had before, to keep
                its place in the queue.

        Returns:
            The slot. End it with `answered()`, `given_up()` or `unused()`.

        Raises:
            BudgetTimeoutError: No slot within `max_wait`; nothing was sent.
        """
        pump = self._pump()
        again = arrival is not None
        if arrival is None:
            arrival = next(self._arrivals)
            if not pump.ahead(priority) and not self._take(priority):
                return _RateSlot(self, pump, arrival, self._clock())
        deadline = None if max_wait is None else self._clock() + max_wait
        while True:
            future = self._join(pump, priority, arrival, deadline, again=again)
            try:
                slot = await future
            except asyncio.CancelledError:
                _leave(pump, priority, future)
                raise
            if not self._held():
                return slot
            slot.unused()  # a hold began between the grant and now: it is for all
            again = True

    def hold(self, seconds: float) -> None:
        """Let nobody send for so many seconds, because the server answered 429.

        Args:
            seconds: From now; 0 or more.
        """
        check_duration("seconds", seconds, zero=True)
        with self._lock:
            self._window.hold(seconds, self._clock())

    @property
    def memory(self) -> float:
        """Seconds after which a request that has left can no longer matter."""
        return self._rules.cooldown + self._rules.linger

    def restore(self, answered: Iterable[float], given_up: Iterable[float] = ()) -> None:
        """Take the slots of requests that an earlier process made, until they are back.

        Args:
            answered: Seconds since each request's answer.
            given_up: Seconds since each request left whose answer is not known.
        """
        ages = [*answered, *(age - self._rules.linger for age in given_up)]
        with self._lock:
            self._window.restore(ages, self._clock())

    def statistics(self) -> BudgetStatistics:
        """Tell how full the budget is now."""
        with self._lock:
            now = self._clock()
            pumps = list(self._pumps.values())
            return BudgetStatistics(
                limit=self._rules.limit,
                period=self._rules.period,
                free=self._window.free(now),
                in_flight=self._window.in_flight,
                waiting={lane: sum(pump.waiting[lane] for pump in pumps) for lane in Priority},
                held_for=max(0.0, self._window.held_until - now),
                rate_limited=self._window.rate_limited,
                rate=self._window.speed(now),
            )

    async def aclose(self) -> None:
        """Nothing is held open; here for the protocol."""

    def __repr__(self) -> str:
        return f"RateBudget(limit={self._rules.limit}, period={self._rules.period})"

    @property
    def idle(self) -> bool:
        """Whether every slot is free and nobody waits: forgetting the budget loses nothing."""
        now = self.statistics()
        return now.free == now.limit and not now.held_for and not any(now.waiting.values())

    def _join(
        self, pump: _Pump, lane: Priority, arrival: int, deadline: float | None, *, again: bool
    ) -> asyncio.Future[_RateSlot]:
        """Queue up, unless that is hopeless, with an end to the patience if there is one."""
        if deadline is None:
            return pump.join(lane, arrival)
        # A call that comes again stands before its lane, near enough for an estimate.
        others = sum(pump.waiting[:lane]) if again else pump.ahead(lane)
        self._refuse_if_hopeless(lane, others, deadline)
        future = pump.join(lane, arrival)
        seconds = max(0.0, deadline - self._clock())
        timer = pump.loop.call_later(seconds, self._expire, pump, lane, future)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def _refuse_if_hopeless(self, lane: Priority, others: int, deadline: float) -> None:
        with self._lock:
            now = self._clock()
            wait = self._window.projected_wait(lane, others, now)
        if now + wait > deadline:
            raise _too_long(wait)

    def _expire(self, pump: _Pump, lane: Priority, future: asyncio.Future[_RateSlot]) -> None:
        if future.done():
            return
        with self._lock:
            others = pump.ahead(lane) - 1
            wait = self._window.projected_wait(lane, others, self._clock())
        pump.leave(lane)
        future.set_exception(_too_long(wait))

    def _held(self) -> bool:
        return self._clock() < self._window.held_until

    def _take(self, lane: Priority) -> float:
        with self._lock:
            return self._window.take(lane, self._clock())

    def _try(
        self, pump: _Pump, lane: Priority, arrival: int, future: asyncio.Future[_RateSlot]
    ) -> float:
        """Grant a waiter its slot and return 0, or return the seconds to wait."""
        wait = self._take(lane)
        if wait <= 0:
            future.set_result(_RateSlot(self, pump, arrival, self._clock()))
        return wait

    def _end(self, taken_at: float, extra: float | None) -> None:
        """Take a slot back, `extra` seconds later than its cooldown, or at once for None."""
        with self._lock:
            if extra is None:
                self._window.undo()
            else:
                self._window.give_back(
                    self._clock(), cooldown=self._rules.cooldown + extra, taken_at=taken_at
                )
            pumps = [pump for pump in self._pumps.values() if any(pump.waiting)]
        for pump in pumps:
            _wake(pump)

    def _pump(self) -> _Pump:
        loop = asyncio.get_running_loop()
        pump = self._pumps.get(loop)
        if pump is None:
            with self._lock:
                if self._follows_loops:
                    self._follow(loop)
                gone = [other for other in self._pumps if other.is_closed()]
                left = [slot for other in gone for slot in self._pumps.pop(other).slots]
                pump = self._pumps[loop] = _Pump(self, loop)
            for slot in left:  # its loop was closed over it: nobody else will end it
                slot.given_up()
        return pump

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take a new loop's own clock if it is not the monotonic one, without going back."""
        own = loop.time if abs(loop.time() - time.monotonic()) > 1 else time.monotonic
        if own is self._clock:
            return
        shift = self._clock() - own()
        self._clock = lambda: own() + shift


def _leave(pump: _Pump, lane: Priority, future: asyncio.Future[_RateSlot]) -> None:
    """Give up waiting, or give back a slot that was granted in the same moment."""
    if future.cancelled():
        pump.leave(lane)
    elif future.exception() is None:
        future.result().unused()


def _wake(pump: _Pump) -> None:
    """Serve a pump now, or soon if its loop runs in another thread."""
    try:
        here = asyncio.get_running_loop() is pump.loop
    except RuntimeError:
        here = False
    if here:
        pump.serve()
    else:
        with contextlib.suppress(RuntimeError):  # the loop was closed with calls waiting
            pump.loop.call_soon_threadsafe(pump.serve)


def _too_long(wait: float) -> BudgetTimeoutError:
    return BudgetTimeoutError(
        f"no slot in the rate budget within the time allowed; one is expected in {wait:.1f} s. "
        "Try again then, or allow more time",
        retry_after=max(0.0, wait),
    )


_shared: WeakValueDictionary[tuple[str, str], RateBudget] = WeakValueDictionary()
_in_use: set[RateBudget] = set()  # kept alive, clients or not, until every slot is back
_shared_lock = threading.Lock()


def shared_budget(origin: str, key_digest: str) -> RateBudget:
    """Return this process's budget for one API key at one origin.

    It outlives its clients as long as one of its slots is not back, so that a client
    made anew for every request keeps the limit too.

    Args:
        origin: Scheme, host and port.
        key_digest: Names the key without being it.
    """
    with _shared_lock:
        _in_use.difference_update([budget for budget in _in_use if budget.idle])
        budget = _shared.setdefault((origin, key_digest), RateBudget())
        _in_use.add(budget)
        return budget
