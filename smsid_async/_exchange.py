"""One call on its way, and one HTTP exchange made for it: what is known of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from smsid_async.errors import NotSentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import anyio
    import httpcore

    from smsid_async._registration import Registration
    from smsid_async._retry import RetryPolicy, Tally
    from smsid_async.budget import Priority, Slot
    from smsid_async.errors import SMSIDError
    from smsid_async.models import JSONObject

__all__ = ["LEAST_FOR_A_WRITE", "Call", "Exchange"]

_T = TypeVar("_T")

LEAST_FOR_A_WRITE = 1.0  # seconds of a call's timeout; less would cut the answer off


class HeldBackError(NotSentError):
    """A hold began before the request left: it goes back into the queue."""


@attrs.define(eq=False, repr=False, kw_only=True)
class Call(Generic[_T]):
    """One call of a public method, on its way.

    Attributes:
        method: `GET` or `POST`.
        path: Below the base URL, such as `/sms/send`.
        body: The exact bytes of the request; empty for a GET.
        decode: Turns an answer's `data` into the result.
        private: What must appear in no error's text.
        write: Whether it costs money or changes something.
        verifying: Whether a 422 means a wrong code.
        registration: Its reference in a journal, None for a call without one.
        policy: What may be tried again.
        priority: The lane.
        timeout: Seconds for the whole call, None for no limit.
        attempt_timeout: Seconds for one attempt.
        max_wait: Seconds to wait for each slot, None for no limit.
        deadline: When the call must end, on the loop's clock.
        tally: What has happened so far; None before the first failure.
        attempt: The number of the present attempt, from 1.
        asked_at: When it asked for its slot, on the loop's clock.
        arrival: The place in the budget's queue, once it is known.
        doubtful: Whether an earlier attempt may have taken effect.
        exchange: The present exchange.
    """

    method: str
    path: str
    body: bytes
    decode: Callable[[JSONObject], _T]
    private: tuple[str, ...]
    write: bool
    verifying: bool = False
    registration: Registration | None = None
    policy: RetryPolicy
    priority: Priority
    timeout: float | None
    attempt_timeout: float
    max_wait: float | None
    deadline: float | None = None
    tally: Tally | None = None
    attempt: int = 0
    asked_at: float = 0.0
    arrival: int | None = None
    doubtful: bool = False
    exchange: Exchange[_T] | None = None

    @property
    def left(self) -> bool:
        """Whether its last exchange may have taken effect."""
        exchange = self.exchange
        if exchange is None or not exchange.may_have_left:
            return False
        return exchange.error is None or exchange.error.maybe_sent

    def time_left(self) -> float | None:
        """Seconds in which an attempt may still start, None for no limit."""
        if self.deadline is None:
            return None
        spare = LEAST_FOR_A_WRITE if self.write else 0.0
        return self.deadline - asyncio.get_running_loop().time() - spare


@attrs.define(eq=False, repr=False, kw_only=True)
class Exchange(Generic[_T]):
    """One HTTP exchange: what it is for, how far it came, and how it ended."""

    call: Call[_T]
    slot: Slot
    waited: float
    started: float
    scope: anyio.CancelScope
    done: asyncio.Future[None]
    transport_traces: bool
    handed_over: bool = False
    headers_started: bool = False
    traced: bool = False
    stream: Any = None
    status_code: int | None = None
    task: asyncio.Task[None] | None = None
    ended: bool = False
    result: _T | None = None
    error: SMSIDError | None = None

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Listen to httpcore: the request leaves when its first header byte does."""
        self.traced = True
        if event == "connection.connect_tcp.complete":
            self.stream = info["return_value"]
        elif event.endswith("start_tls.failed") and self.stream is not None:
            await self.stream.aclose()  # httpcore forgets it, if it is cancelled here
        elif event.endswith("send_request_headers.started") and _is_ours(info["request"]):
            if self.scope.cancel_called:  # anyio delivers a cancellation one await later
                raise NotSentError("the call was ended before its request left")
            if getattr(self.slot, "held", False):
                raise HeldBackError("a 429 came while this request was connecting")
            self.headers_started = True

    @property
    def goes_on(self) -> bool:
        """Whether its task has still to end it."""
        return not (self.ended or self.task is None or self.task.done())

    @property
    def may_have_left(self) -> bool:
        """Whether the request may have reached the server.

        A transport that emits no trace leaves us in doubt from the moment it is
        handed the request.
        """
        if self.headers_started or self.status_code is not None:
            return True
        return self.handed_over and not self.transport_traces


def _is_ours(request: httpcore.Request) -> bool:
    """Whether it is the call's own request, and not a proxy's CONNECT before it."""
    return request.method != b"CONNECT"
