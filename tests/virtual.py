"""Virtual time: an event loop whose clock jumps from timer to timer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import looptime

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


def run(main: Coroutine[object, object, _T], *, start: float = 0.0) -> _T:
    """Run a coroutine in a loop of its own, in which sleeping takes no real time."""
    loop_class = looptime.make_event_loop_class(asyncio.SelectorEventLoop)
    with asyncio.Runner(loop_factory=lambda: loop_class(start=start, noop_cycles=3)) as runner:
        return runner.run(main)


def largest_count(times: list[float], period: float) -> int:
    """The most events in any half-open span of `period`, to the virtual clock's microsecond."""
    ordered = sorted(times)
    most, first = 0, 0
    for index, moment in enumerate(ordered):
        while ordered[first] <= moment - period + 1e-6:
            first += 1
        most = max(most, index - first + 1)
    return most
