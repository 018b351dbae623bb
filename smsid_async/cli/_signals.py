"""Ctrl-C, and a polite request to end, as a call in the event loop."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["on_interrupt"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_interrupt(handler: Callable[[], object]) -> Iterator[None]:
    """Call `handler` in the running loop for each Ctrl-C or SIGTERM, instead of ending."""
    loop = asyncio.get_running_loop()
    try:
        for each in _SIGNALS:
            loop.add_signal_handler(each, handler)
    except NotImplementedError:  # an event loop of Windows
        with _without_loop(loop, handler):
            yield
        return
    try:
        yield
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


@contextlib.contextmanager
def _without_loop(loop: asyncio.AbstractEventLoop, handler: Callable[[], object]) -> Iterator[None]:
    def pass_on(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(handler)

    before = [(each, signal.signal(each, pass_on)) for each in _SIGNALS]
    try:
        yield
    finally:
        for each, previous in before:
            signal.signal(each, previous)
