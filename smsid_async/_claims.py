"""Who holds which reference in this process, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import attrs

__all__ = ["Claims", "Holder"]


@attrs.define(eq=False)
class Holder:
    """A call that holds a reference.

    Attributes:
        fingerprint: Of its message.
        expires: When another may take the reference over, on the journal's clock.
        doubtful: Whether some request under it may have taken effect.
        over: Whether it has ended or was taken over.
        waiting: Who wants it next.
    """

    fingerprint: str
    expires: float
    doubtful: bool = False
    over: bool = attrs.field(default=False, init=False)
    waiting: list[asyncio.Future[None]] = attrs.field(factory=list, init=False)


class Claims:
    """The references that calls of this process hold; safe across threads and loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[str, Holder] = {}

    def take(self, reference: str, holder: Holder, *, now: float) -> Holder | None:
        """Give a reference to `holder`, or return who has it and whose lease is not over."""
        with self._lock:
            other = self._holders.get(reference)
            if other is not None and now < other.expires:
                return other
            self._holders[reference] = holder
            if other is not None:
                _wake(other)
            return None

    def has(self, reference: str, holder: Holder) -> bool:
        """Whether `holder` still has the reference."""
        return self._holders.get(reference) is holder

    def drop(self, reference: str, holder: Holder) -> None:
        """End a claim, if it has not been taken over, and wake who waits for it."""
        with self._lock:
            if self._holders.get(reference) is holder:
                del self._holders[reference]
            _wake(holder)

    async def wait(self, holder: Holder, *, seconds: float) -> None:
        """Wait for the end of a claim, or of so many seconds."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if holder.over:  # it ended in another thread since it was seen
                return
            holder.waiting.append(future)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await future


def _wake(holder: Holder) -> None:
    holder.over = True
    waiting, holder.waiting = holder.waiting, []
    for future in waiting:
        with contextlib.suppress(RuntimeError):  # its loop was closed
            future.get_loop().call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
