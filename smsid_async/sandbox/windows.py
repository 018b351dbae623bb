"""Rate windows: who is admitted at which moment; pure arithmetic on a clock passed in.

Every window has one method, `hit(now)`: 0.0 when the request is admitted, else the seconds after
which the next one will be. Moments are seconds on any clock that does not go backwards. Refused
requests do not count. `hit(now + wait)` admits, rounding of floats included, unless somebody else
was faster.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal, Protocol

__all__ = [
    "AlignedWindow",
    "BucketWindow",
    "FixedWindow",
    "NoWindow",
    "SlidingWindow",
    "Window",
    "WindowKind",
    "largest_count",
    "make_window",
]

WindowKind = Literal["sliding", "fixed", "aligned", "bucket"]


class Window(Protocol):
    """The rate window of one API key."""

    def hit(self, now: float) -> float:
        """Ask for one request at `now`: 0.0 if it is admitted, else the seconds to wait."""
        ...


class NoWindow:
    """No limit: everybody is admitted."""

    def hit(self, now: float) -> float:
        """Admit."""
        return 0.0


class SlidingWindow:
    """Never more than `limit` admitted requests in any half-open span of `period` seconds."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._ends: deque[float] = deque()  # when each counted request leaves the window

    def hit(self, now: float) -> float:
        """Ask for one request at `now`: 0.0 if it is admitted, else the seconds to wait."""
        ends = self._ends
        while ends and ends[0] <= now:
            ends.popleft()
        if len(ends) >= self._limit:
            return _until(ends[0], now)
        ends.append(now + self._period)
        return 0.0


class FixedWindow:
    """A window of `period` seconds opens with the first request after the last one closed."""

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._closes = -math.inf
        self._count = 0

    def hit(self, now: float) -> float:
        """Ask for one request at `now`: 0.0 if it is admitted, else the seconds to wait."""
        if now >= self._closes:
            self._closes = self._end(now)
            self._count = 0
        if self._count >= self._limit:
            return _until(self._closes, now)
        self._count += 1
        return 0.0

    def _end(self, now: float) -> float:
        return now + self._period


class AlignedWindow(FixedWindow):
    """Windows lie at whole multiples of `period` on the clock."""

    def _end(self, now: float) -> float:
        index = math.floor(now / self._period)
        while index * self._period <= now:  # the division may have been rounded either way
            index += 1
        return index * self._period


class BucketWindow:
    """A bucket of `limit` tokens, refilled evenly at `limit` tokens a `period`.

    The level is not stored but follows from when the bucket was last full and how many tokens
    were taken since, so no rounding errors add up.
    """

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._full_at = -math.inf
        self._taken = 0

    def hit(self, now: float) -> float:
        """Ask for one request at `now`: 0.0 if it is admitted, else the seconds to wait."""
        if now >= self._refilled(self._taken):
            self._full_at = now
            self._taken = 0
        next_token = self._refilled(self._taken + 1 - self._limit)
        if now < next_token:
            return _until(next_token, now)
        self._taken += 1
        return 0.0

    def _refilled(self, tokens: int) -> float:
        """Tell when `tokens` have flowed in since the bucket was last full."""
        return self._full_at + tokens * self._period / self._limit


def make_window(kind: WindowKind, limit: int | None, period: float) -> Window:
    """Build a window by the name of its kind.

    Args:
        kind: "sliding", "fixed", "aligned" or "bucket".
        limit: Requests admitted a period; None for no limit.
        period: Length of the window in seconds.

    Raises:
        ValueError: The kind is unknown, the limit below 1, or the period not a positive number.
    """
    kinds: dict[str, type[SlidingWindow | FixedWindow | BucketWindow]] = {
        "sliding": SlidingWindow,
        "fixed": FixedWindow,
        "aligned": AlignedWindow,
        "bucket": BucketWindow,
    }
    if kind not in kinds:
        raise ValueError(f"window must be one of {', '.join(kinds)}, not {kind!r}")
    if not (math.isfinite(period) and period > 0):
        raise ValueError(f"period must be a positive number of seconds, not {period!r}")
    if limit is None:
        return NoWindow()
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}")
    return kinds[kind](limit, period)


def largest_count(moments: Iterable[float], span: float) -> int:
    """Return the largest number of `moments` in any half-open span of `span` seconds.

    Args:
        moments: Seconds, in ascending order.
        span: Length of the span in seconds.
    """
    inside: deque[float] = deque()
    largest = 0
    for moment in moments:
        inside.append(moment)
        while inside[0] + span <= moment:
            inside.popleft()
        largest = max(largest, len(inside))
    return largest


def _until(moment: float, now: float) -> float:
    """Return the seconds from `now` to `moment`, never rounded to less."""
    wait = moment - now
    while now + wait < moment:
        wait = math.nextafter(wait, math.inf)
    return wait
