"""The arithmetic of the rate budget: slots, places, shape and holds, on times it is given.

Why the guarantee holds: a slot taken for a request comes back `period` + `margin`
after that request's answer. Were `limit` + 1 requests counted within less than a
period, then at the last count each of them has left, and none has had its slot
back: the server counted it before it answered, less than a period ago. So all of
them hold a slot at once, and there are only `limit`.
"""

from __future__ import annotations

import heapq
import math
from enum import IntEnum
from typing import TYPE_CHECKING

import attrs

from smsid_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Priority", "Rules", "Window", "check_count", "check_duration"]


class Priority(IntEnum):
    """The lane in which a call waits for its slot, best first."""

    HIGH = 0
    NORMAL = 1
    BULK = 2
    BACKGROUND = 3


_BURSTING = (Priority.HIGH, Priority.NORMAL)
_LATE = 0.25  # seconds; paced lanes go one at a time, and make up for a timer so late
_SETTLING = 1 / 60  # of a period after a hold: a 429 then is still the same trouble
_SLOWDOWN = 0.7  # of the rate, for each hold
_SLOWEST = 0.1
_RECOVERY = 1.8  # periods from the slowest back to full
_CALM = 4  # periods without a 429 until requests may leave in bursts again
_CAUTION = 2  # the power of that recovery: half of the time brings a quarter
_SMOOTHING = 0.2  # weight of the newest exchange in the running mean of their durations


@attrs.frozen
class Rules:
    """What a budget was told, checked."""

    limit: int
    period: float
    burst: int
    reserve: int
    max_in_flight: int
    margin: float
    linger: float

    def __attrs_post_init__(self) -> None:
        for name in ("limit", "burst", "max_in_flight"):
            check_count(name, getattr(self, name), least=1)
        check_count("reserve", self.reserve, least=0)
        check_duration("period", self.period)
        for name in ("margin", "linger"):
            check_duration(name, getattr(self, name), zero=True)
        if self.reserve >= self.limit:
            raise ConfigurationError(
                f"reserve={self.reserve} leaves nothing of limit={self.limit} for other lanes"
            )
        if self.burst > self.limit:
            raise ConfigurationError(f"burst={self.burst} is more than limit={self.limit} allows")
        if self.reserve >= self.max_in_flight:
            raise ConfigurationError(
                f"reserve={self.reserve} leaves no place in flight of "
                f"max_in_flight={self.max_in_flight} for other lanes"
            )

    @property
    def cooldown(self) -> float:
        """Seconds from an answer to its slot's return."""
        return self.period + self.margin

    @property
    def rate(self) -> float:
        """Requests a second at which the shape's bucket is refilled."""
        return self.limit / self.cooldown

    def kept_from(self, lane: Priority) -> int:
        """Slots, and places in flight, that this lane must leave alone.

        `BACKGROUND` leaves a burst as well, so that its polls never delay a send, but
        no more than a quarter of what there is, so that it is not starved.
        """
        if lane is Priority.HIGH:
            return 0
        if lane is not Priority.BACKGROUND:
            return self.reserve
        quarter = min(self.limit, self.max_in_flight) // 4
        return max(self.reserve, min(self.reserve + self.burst, quarter))


class Window:
    """Slots, places in flight, shape and hold. All methods take the time and never wait."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.in_flight = 0
        self.held_until = -math.inf
        self.rate_limited = 0
        self._idle = rules.limit
        self._returns: list[float] = []  # a heap: when each slot that cools down is back
        self._level = 0.0  # of the bucket: requests that the refill has not yet covered
        self._leaked_at = -math.inf
        self._slowed_to = 1.0
        self._slowed_at = -math.inf
        self._calm_at = -math.inf
        self._exchange_time = 0.0

    def take(self, lane: Priority, now: float) -> float:
        """Take a slot and return 0, or take nothing and return the seconds to wait.

        Infinity means: until some request in flight ends.
        """
        wait = max(self._hold_wait(now), self._slot_wait(lane, now), self._shape_wait(lane, now))
        if wait <= 0 and self._has_place(lane):
            self._idle -= 1
            self.in_flight += 1
            self._level += 1
            return 0.0
        return wait if self._has_place(lane) else math.inf

    def give_back(self, now: float, *, cooldown: float, taken_at: float) -> None:
        """End a request: its slot is free again after `cooldown` seconds."""
        self.in_flight -= 1
        heapq.heappush(self._returns, now + cooldown)
        self._exchange_time += _SMOOTHING * (now - taken_at - self._exchange_time)

    def restore(self, ages: Iterable[float], now: float) -> None:
        """Take slots that others used so many seconds ago, as far as there are free ones."""
        for age in sorted(ages)[: self.free(now)]:
            self._idle -= 1
            heapq.heappush(self._returns, now + self.rules.cooldown - age)

    def undo(self) -> None:
        """End a request that never left, as though it had never been granted."""
        self.in_flight -= 1
        self._idle += 1
        self._level = max(0.0, self._level - 1)

    def hold(self, seconds: float, now: float) -> None:
        """Let nobody take a slot for so long, and go slower afterwards, once for each hold."""
        self.rate_limited += 1
        if now >= self.held_until + _SETTLING * self.rules.period:
            self._slowed_to = max(_SLOWEST, self.speed(now) * _SLOWDOWN)
        self.held_until = max(self.held_until, now + seconds)
        self._slowed_at = self.held_until
        self._calm_at = self.held_until + _CALM * self.rules.period
        self._level, self._leaked_at = 1.0, self.held_until

    def speed(self, now: float) -> float:
        """The share of the full rate that the present time allows.

        It recovers slowly at first, where the limit was met, and faster the longer no
        429 came.
        """
        if self._slowed_to == 1.0:
            return 1.0
        progress = max(0.0, now - self._slowed_at) / (_RECOVERY * self.rules.period)
        if progress >= 1.0:
            self._slowed_to = 1.0
            return 1.0
        return self._slowed_to + (1.0 - self._slowed_to) * progress**_CAUTION

    def free(self, now: float) -> int:
        """Slots that are not taken and not cooling down."""
        while self._returns and self._returns[0] <= now:
            heapq.heappop(self._returns)
            self._idle += 1
        return self._idle

    def projected_wait(self, lane: Priority, ahead: int, now: float) -> float:
        """Estimate the seconds until a call with so many others ahead of it is served."""
        kept = self.rules.kept_from(lane)
        cycle = self.rules.cooldown + self._exchange_time
        laps, turn = divmod(ahead, self.rules.limit - kept)
        slot = self._nth_return(kept + turn, now, cycle) + laps * cycle
        hold = max(0.0, self._hold_wait(now))
        shape = hold + self._shape_wait(lane, now, ahead=ahead)  # refilled only after it
        before = ahead if self._has_place(lane) else ahead + 1  # exchanges that must end first
        places = before * self._exchange_time / (self.rules.max_in_flight - kept)
        return max(slot, shape, places)

    def _nth_return(self, n: int, now: float, cycle: float) -> float:
        """Seconds until more than `n` slots are free, if nobody takes any."""
        nth_cooling = n - self.free(now)
        if nth_cooling < 0:
            return 0.0
        if nth_cooling < len(self._returns):
            return sorted(self._returns)[nth_cooling] - now
        return cycle  # in flight still: answered any moment, then it cools down

    def _hold_wait(self, now: float) -> float:
        return self.held_until - now

    def _has_place(self, lane: Priority) -> bool:
        return self.in_flight < self.rules.max_in_flight - self.rules.kept_from(lane)

    def _slot_wait(self, lane: Priority, now: float) -> float:
        missing = self.rules.kept_from(lane) + 1 - self.free(now)
        if missing <= 0:
            return 0.0
        if missing == 1 and self._returns:
            return self._returns[0] - now
        if missing > len(self._returns):
            return math.inf
        return heapq.nsmallest(missing, self._returns)[-1] - now

    def _shape_wait(self, lane: Priority, now: float, *, ahead: int = 0) -> float:
        speed = self.speed(now)
        rate = self.rules.rate * speed
        if now > self._leaked_at:
            self._level = max(0.0, self._level - (now - self._leaked_at) * rate)
            self._leaked_at = now
        return (self._level + ahead + 1 - self._depth(lane, now)) / rate

    def _depth(self, lane: Priority, now: float) -> int:
        """How many may go at once after a pause; after a 429 only one."""
        if now < self._calm_at:
            return 1
        if lane not in _BURSTING:
            return min(1 + math.ceil(self.rules.rate * _LATE), self.rules.burst)
        return self.rules.burst + (self.rules.reserve if lane is Priority.HIGH else 0)


def check_count(name: str, value: object, *, least: int) -> None:
    """Refuse what is not a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} is {value!r}; give a whole number of {least} or more")


def check_duration(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is not a finite, positive number of seconds; 0 only if `zero`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"{name} is {value!r}; give a finite number of seconds")
    if value < 0 or (value == 0 and not zero):
        raise ConfigurationError(f"{name} is {value!r}; the guarantee needs more than that")
