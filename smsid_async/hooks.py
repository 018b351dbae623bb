"""Observers: what the client tells about its own work, as frozen values.

A hook is any callable that takes one event. It is called in the event loop, so it
must return at once; what it raises is logged and never changes a call's outcome.
No event holds a key, a phone number, a text or a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from smsid_async.budget import Priority
    from smsid_async.models import Outcome

__all__ = ["AttemptFinished", "Event", "HoldStarted", "Hook", "SlotGranted"]


@attrs.frozen
class SlotGranted:
    """A call got its slot in the budget, and its request is about to leave.

    Attributes:
        path: Below the base URL, such as `/sms/send`.
        priority: The lane that it waited in.
        waited: Seconds it waited, for this attempt.
    """

    path: str
    priority: Priority
    waited: float


@attrs.frozen
class HoldStarted:
    """The server answered 429, so that nobody sends for a while.

    Attributes:
        seconds: How long, from now.
        asked: Seconds of the answer's `Retry-After`, None where there was no valid one.
    """

    seconds: float
    asked: float | None


@attrs.frozen
class AttemptFinished:
    """One attempt of a call has ended, in whichever way; a 429 has its `status_code`.

    Attributes:
        method: `GET` or `POST`.
        path: Below the base URL, such as `/sms/send`.
        attempt: 1 for the first.
        priority: The lane that it waited in.
        waited: Seconds it waited for its slot.
        duration: Seconds from the slot to the end of the exchange.
        status_code: The HTTP status, None when no answer came.
        outcome: What became of the request: `sent` for a plain success. For a read
            `not_sent` means that it had no effect, not that it never left.
        error: The name of the error's class, None for a plain success.
    """

    method: str
    path: str
    attempt: int
    priority: Priority
    waited: float
    duration: float
    status_code: int | None
    outcome: Outcome
    error: str | None


Event: TypeAlias = SlotGranted | HoldStarted | AttemptFinished


class Hook(Protocol):
    """An observer of a client."""

    def __call__(self, event: Event, /) -> None:
        """Take note of an event, without blocking."""
        ...
