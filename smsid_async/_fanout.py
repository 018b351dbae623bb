"""Sending many messages with a bounded number of calls in hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from smsid_async._verdict import doubt, outcome_of
from smsid_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InsufficientBalanceError,
    JournalUnavailableError,
    NotSentError,
    RateLimitError,
    SMSIDError,
)
from smsid_async.models import Message, Outcome, SendResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Self

    from smsid_async._exchange import Call
    from smsid_async._http import Pipeline
    from smsid_async.models import SendReceipt

__all__ = ["SendMany", "send_all"]

_SAME_REFUSALS = 20  # in a row: what is wrong is wrong with all of them
_HOPELESS = (
    AuthenticationError,
    ConfigurationError,
    InsufficientBalanceError,
    JournalUnavailableError,
)


class CallFactory(Protocol):
    """Makes the call for one message, or raises `ValidationError`."""

    def __call__(self, message: Message, /) -> Call[SendReceipt]:
        """Make the call."""
        ...


class SendMany(AsyncIterator[SendResult]):
    """The results of `sms.send_many`, in order of completion.

    Iterate over it once. `aclose()`, the end of `async with` and, unless you keep the
    object, `break` stop it silently; so does a cancelled `anext`. `stop()` stops it and
    still tells what became of everything in hand.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        messages: AsyncIterable[Message],
        call_for: CallFactory,
        places: int,
    ) -> None:
        self._fan_out = _FanOut(pipeline, call_for, places)
        self._results = _results(self._fan_out, messages)

    async def __anext__(self) -> SendResult:
        return await anext(self._results)

    def stop(self) -> None:
        """Pull no more messages, and send none that has not left.

        Iterate on for what became of those in hand: what had left finishes, the rest
        ends as `not_sent`, and what was not pulled stays in the source.
        """
        self._fan_out.stop()

    async def aclose(self) -> None:
        """Stop silently: what has left finishes by itself, the rest is not sent."""
        await self._fan_out.end()
        with contextlib.suppress(RuntimeError):  # a consumer waits in it, and was woken
            await self._results.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def send_all(
    pipeline: Pipeline,
    messages: Iterable[Message] | AsyncIterable[Message],
    call_for: CallFactory,
    *,
    concurrency: int,
) -> SendMany:
    """Send what `messages` yields; see `SMS.send_many`."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency!r}; give 1 or more")
    if not isinstance(messages, AsyncIterable | Iterable):
        raise ConfigurationError(f"messages is {type(messages).__name__}, which yields no Message")
    return SendMany(pipeline, _as_async(messages), call_for, concurrency)


async def _results(
    fan_out: _FanOut, source: AsyncIterable[Message]
) -> AsyncGenerator[SendResult, None]:
    fan_out.start(source)
    try:
        while (result := await fan_out.next_result()) is not None:
            yield result
            fan_out.places.release()
    finally:
        await fan_out.end()
    if fan_out.error is not None:
        raise fan_out.error


async def _as_async(
    messages: Iterable[Message] | AsyncIterable[Message],
) -> AsyncGenerator[Message, None]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message


class _FanOut:
    """The calls in hand.

    A place is taken before a message is pulled from the source, and is free again once
    its result has been consumed.
    """

    def __init__(self, pipeline: Pipeline, call_for: CallFactory, concurrency: int) -> None:
        self.places = asyncio.Semaphore(concurrency)
        self.error: BaseException | None = None
        self._pipeline = pipeline
        self._call_for = call_for
        self._in_hand: dict[asyncio.Task[SendReceipt], Call[SendReceipt]] = {}
        self._results: asyncio.Queue[SendResult | None] = asyncio.Queue()
        self._puller: asyncio.Task[None] | None = None
        self._stopping = False
        self._silent = False  # nobody is told of what is in hand any more
        self._refusal = ("", 0)  # the text of the last refusals in a row, and their number

    def start(self, source: AsyncIterable[Message]) -> None:
        if not self._stopping:
            self._puller = asyncio.create_task(self._pull(source))
            self._puller.add_done_callback(lambda _: self._results.put_nowait(None))

    async def next_result(self) -> SendResult | None:
        """Return the next result, or None after the last."""
        while self._in_hand or not self._results.empty() or not self._pulled_all:
            result = await self._results.get()
            if result is not None:
                return result
        return None

    async def end(self) -> None:
        """Stop silently: what has left goes on in the client, the rest is cancelled."""
        self._silent = True
        tasks = [*self._in_hand, *filter(None, [self._puller])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._results.put_nowait(None)  # wakes a consumer that still waits

    @property
    def _pulled_all(self) -> bool:
        return self._puller is None or self._puller.done()

    async def _pull(self, source: AsyncIterable[Message]) -> None:
        try:
            await self.places.acquire()
            index = 0
            async for message in source:
                self._begin(index, message)
                index += 1
                await self.places.acquire()
        except asyncio.CancelledError as exc:
            if self._stopping or self._silent:
                raise
            self.error = SMSIDError("the source of messages was cancelled; its rest was not sent")
            self.error.__cause__ = exc
        except Exception as exc:  # noqa: BLE001 - the source's own; raised again at the end
            self.error = self.error or exc

    def _begin(self, index: int, message: Message) -> None:
        if not isinstance(message, Message):
            raise ConfigurationError(
                f"the source yielded {type(message).__name__} at index {index}; "
                "yield smsid_async.Message(to, text)"
            )
        try:
            call = self._call_for(message)
        except SMSIDError as error:
            self._results.put_nowait(SendResult(index, message, Outcome.NOT_SENT, error=error))
            return
        task = asyncio.create_task(self._send(call))
        self._in_hand[task] = call
        task.add_done_callback(partial(self._done, index, message))

    async def _send(self, call: Call[SendReceipt]) -> SendReceipt:
        try:
            return await self._pipeline.request(call)
        except asyncio.CancelledError:
            if self._silent or not (self._stopping and call.left):
                raise
        return await self._pipeline.settle(call)

    def _done(self, index: int, message: Message, task: asyncio.Task[SendReceipt]) -> None:
        """Report a call that has ended; it leaves our hand in the same moment."""
        call = self._in_hand.pop(task)
        if self._silent:
            return
        if task.cancelled():
            error: BaseException | None = (
                doubt(call, "it was stopped, but an earlier attempt")
                if call.doubtful
                else NotSentError("stopped before this message left")
            )
        else:
            error = task.exception()
        if error is None:
            self._report(SendResult(index, message, Outcome.SENT, task.result()))
        elif isinstance(error, SMSIDError):
            self._report(SendResult(index, message, outcome_of(error), error=error))
        else:  # a defect of ours; it must not be swallowed
            self._fail(error)

    def _report(self, result: SendResult) -> None:
        self._results.put_nowait(result)
        if (error := self._reason_to_stop(result)) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._results.put_nowait(None)
        self.stop()

    def stop(self) -> None:
        """Pull no more; end the calls that have not left, and let the others finish."""
        self._stopping = True
        if self._puller is not None:
            self._puller.cancel()
        for task, call in self._in_hand.items():
            if not (call.left or _is_over(call)):
                task.cancel()

    def _reason_to_stop(self, result: SendResult) -> SMSIDError | None:
        error = result.error
        if isinstance(error, _HOPELESS):
            return error
        if not isinstance(error, BadRequestError):
            self._refusal = ("", 0)
            return None
        text, times = self._refusal
        self._refusal = (error.text, times + 1 if error.text == text else 1)
        return error if self._refusal[1] >= _SAME_REFUSALS else None


def _is_over(call: Call[SendReceipt]) -> bool:
    """Whether its outcome is known, though its journal may still be writing it."""
    exchange = call.exchange
    if exchange is None or isinstance(exchange.error, NotSentError | RateLimitError):
        return False  # what comes next would be another attempt
    return exchange.ended or isinstance(exchange.error, APIError)
