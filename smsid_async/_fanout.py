"""Sending many messages with a bounded number of calls in hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Protocol

from smsid_async._http import outcome_of
from smsid_async.errors import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InsufficientBalanceError,
    NotSentError,
    SMSIDError,
)
from smsid_async.models import Message, Outcome, SendResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from smsid_async._http import Call, Pipeline
    from smsid_async.models import SendReceipt

__all__ = ["send_all"]

_SAME_REFUSALS = 20  # in a row: what is wrong is wrong with all of them
_HOPELESS = (AuthenticationError, InsufficientBalanceError, ConfigurationError)


class CallFactory(Protocol):
    """Makes the call for one message, or raises `ValidationError`."""

    def __call__(self, message: Message, /) -> Call[SendReceipt]:
        """Make the call."""
        ...


def send_all(
    pipeline: Pipeline,
    messages: Iterable[Message] | AsyncIterable[Message],
    call_for: CallFactory,
    *,
    concurrency: int,
) -> AsyncGenerator[SendResult, None]:
    """Send what `messages` yields; see `SMS.send_many`."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency!r}; give 1 or more")
    if not hasattr(messages, "__aiter__") and not hasattr(messages, "__iter__"):
        raise ConfigurationError(f"messages is {type(messages).__name__}, which yields no Message")
    return _results(_FanOut(pipeline, call_for, concurrency), _as_async(messages))


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
        self._in_hand: dict[asyncio.Task[None], Call[SendReceipt]] = {}
        self._results: asyncio.Queue[SendResult | None] = asyncio.Queue()
        self._puller: asyncio.Task[None] | None = None
        self._stopping = False
        self._refusal = ("", 0)  # the text of the last refusals in a row, and their number

    def start(self, source: AsyncIterable[Message]) -> None:
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
        tasks = [*self._in_hand, *([self._puller] if self._puller is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def _pulled_all(self) -> bool:
        return self._puller is not None and self._puller.done()

    async def _pull(self, source: AsyncIterable[Message]) -> None:
        try:
            await self.places.acquire()
            index = 0
            async for message in source:
                self._begin(index, message)
                index += 1
                await self.places.acquire()
        except asyncio.CancelledError:
            raise
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
        task = asyncio.create_task(self._send(index, message, call))
        self._in_hand[task] = call
        task.add_done_callback(self._in_hand.pop)

    async def _send(self, index: int, message: Message, call: Call[SendReceipt]) -> None:
        try:
            receipt = await self._outcome(call)
        except SMSIDError as error:
            self._report(SendResult(index, message, outcome_of(error), error=error))
        else:
            self._report(SendResult(index, message, Outcome.SENT, receipt))

    async def _outcome(self, call: Call[SendReceipt]) -> SendReceipt:
        try:
            return await self._pipeline.request(call)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        if call.left:
            return await self._pipeline.settle(call)
        raise NotSentError("sending was stopped before this message left")

    def _report(self, result: SendResult) -> None:
        self._results.put_nowait(result)
        if (error := self._reason_to_stop(result)) is not None and not self._stopping:
            self._stopping = True
            self.error = error
            self._stop()

    def _stop(self) -> None:
        """Pull no more; end the calls that have not left, and let the others finish."""
        if self._puller is not None:
            self._puller.cancel()
        for task, call in self._in_hand.items():
            if not call.left and task is not asyncio.current_task():
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
