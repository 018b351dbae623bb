"""The one way to the API: retry → budget → sign → exchange → decode.

Every attempt takes a slot, is signed, and runs as one exchange in a task of its
own, so that a cancelled caller neither wedges the connection pool nor hides what
became of a message that had left. Every foreign exception ends here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from smsid_async._connections import Connections, read_body
from smsid_async._envelope import Answer, read_answer
from smsid_async._exchange import LEAST_FOR_A_WRITE, Call, Exchange, HeldBackError
from smsid_async._request import RequestFactory
from smsid_async._retry import Tally, backoff, retrying
from smsid_async._verdict import doubt, error_of_broken, outcome_of, result_of_answer
from smsid_async.budget import RateBudget
from smsid_async.errors import (
    BudgetTimeoutError,
    BudgetUnavailableError,
    ConfigurationError,
    InvalidResponseError,
    OutcomeUnknownError,
    RateLimitError,
    ServerError,
    SMSIDError,
    TransportError,
)
from smsid_async.hooks import AttemptFinished, HoldStarted, SlotGranted
from smsid_async.models import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from smsid_async._config import Settings
    from smsid_async._registration import Registration
    from smsid_async.budget import Budget, Priority, Slot
    from smsid_async.hooks import Event, Hook
    from smsid_async.journal import Journal

__all__ = ["Pipeline"]

_T = TypeVar("_T")
_logger = logging.getLogger("smsid_async")
_logger.addHandler(logging.NullHandler())  # quiet, unless the program wants to hear it

_PLACES_UNTOLD = 50  # requests at once for a budget that does not say how many it lets out
_EARLIER = "a later attempt failed, but an earlier one"
_MAY_COUNT_LATER = frozenset({502, 504})  # a gateway answered for a server that had not


class Pipeline:
    """Carries calls to the API; shared by a client and all views on it.

    Args:
        settings: Who we are and where the API is.
        budget: Asked for a slot before every request.
        http_client: The caller's own client, None to own one for each event loop.
        journal: Closed with the client.
        hooks: Told the end of every attempt.
        draw: Returns an even draw from [0, 1), for the retry's jitter.
        wall_clock: Returns seconds since the epoch, for `Retry-After` dates.
    """

    def __init__(
        self,
        settings: Settings,
        budget: Budget,
        *,
        http_client: httpx.AsyncClient | None = None,
        journal: Journal | None = None,
        hooks: tuple[Hook, ...] = (),
        draw: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._given_client = http_client
        self._journal = journal
        self._hooks = hooks
        self._draw = draw
        self._wall_clock = wall_clock
        self._connections: Connections | None = None
        self._transport_traces = http_client is None or _is_httpx_all_through(http_client)
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = RequestFactory(settings)
        self._secrets = (settings.api_key, settings.api_secret or "")
        self.closed = False

    @property
    def budget(self) -> Budget:
        """The budget that every request is taken from."""
        return self._budget

    @property
    def journal(self) -> Journal | None:
        """Where references are recorded."""
        return self._journal

    @property
    def open_connections(self) -> bool:
        """Whether connections of ours wait in a live event loop to be closed."""
        connections = self._connections
        return not (connections is None or connections.over or connections.loop.is_closed())

    def request(self, call: Call[_T]) -> Coroutine[Any, Any, _T]:
        """Carry one call to its end.

        Returns:
            The decoded `data` of a plain success.

        Raises:
            SMSIDError: Every failure there is, with `maybe_sent`.
            asyncio.CancelledError: As the caller's task was; it too carries `maybe_sent`.
        """
        if call.timeout is not None:
            call.deadline = asyncio.get_running_loop().time() + call.timeout
        if call.registration is None:
            return self._request(call)
        return self._registered(call, call.registration)

    async def _registered(self, call: Call[_T], registration: Registration) -> _T:
        """Carry a call with a reference to its end: at most once."""
        try:
            receipt = await registration.claim(self._settings.base_url, call.deadline)
            if receipt is not None:
                return cast("_T", receipt)
            call.doubtful = registration.doubtful
            result = await self._request(call)
        except asyncio.CancelledError as cancelled:
            cancelled.maybe_sent = getattr(cancelled, "maybe_sent", False)  # type: ignore[attr-defined]
            self._let_go(call, registration)
            raise
        except SMSIDError as error:
            try:
                await registration.release(error)
            except asyncio.CancelledError as cancelled:
                cancelled.maybe_sent = error.maybe_sent  # type: ignore[attr-defined]
                raise
            raise
        return result

    def _let_go(self, call: Call[Any], registration: Registration) -> None:
        """End the claim of a cancelled call, now or with the exchange that goes on."""
        if call.exchange is not None and call.exchange.goes_on:
            registration.abandoned = True
        else:
            self._release_soon(registration)

    def _release_soon(self, registration: Registration) -> None:
        task = asyncio.create_task(registration.release())
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._released(registration, task))

    def _released(self, registration: Registration, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and not registration.over:  # before its first step, by a shutdown
            self._release_soon(registration)

    async def _request(self, call: Call[_T]) -> _T:
        try:
            try:
                slot = await self._slot(call)  # here, so that a waiting call has few frames
                return await self._attempt(call, slot)
            except (ServerError, TransportError, RateLimitError) as error:
                return await self._carry_on(call, error)
        except asyncio.CancelledError as cancelled:
            cancelled.maybe_sent = call.write and (call.doubtful or call.left)  # type: ignore[attr-defined]
            raise
        except SMSIDError as error:
            if call.doubtful and not error.maybe_sent:
                raise doubt(call, _EARLIER) from error
            raise

    async def settle(self, call: Call[_T]) -> _T:
        """Wait for the exchange that a cancelled call left behind, and return its result."""
        exchange = call.exchange
        assert exchange is not None  # noqa: S101 - only asked of a call that has left
        assert exchange.task is not None  # noqa: S101 - and so has a task
        await asyncio.wait((exchange.task,))
        try:
            return _result_of(exchange)
        except SMSIDError as error:
            if call.doubtful and not error.maybe_sent:
                raise doubt(call, _EARLIER) from error
            raise

    async def aclose(self) -> None:
        """Refuse new attempts, wait for the exchanges under way, close what is ours."""
        self.closed = True
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        if tasks:
            await asyncio.wait(tasks)
        if self._connections is not None:
            await self._connections.aclose()
        if self._journal is not None:
            await self._journal.aclose()

    # -- one attempt ---------------------------------------------------------

    def _slot(self, call: Call[_T]) -> Coroutine[Any, Any, Slot]:
        """Begin an attempt: ask the budget for a slot, with the time that the call has."""
        self._check_open()
        call.attempt += 1
        call.asked_at = asyncio.get_running_loop().time()
        max_wait, time_left = call.max_wait, call.time_left()
        if time_left is not None:
            if time_left <= 0:
                raise BudgetTimeoutError(
                    f"timeout={call.timeout} leaves no time to start"
                    + (f"; a write needs {LEAST_FOR_A_WRITE:g} s for itself" if call.write else "")
                )
            max_wait = time_left if max_wait is None else min(max_wait, time_left)
        place = {} if call.arrival is None else {"arrival": call.arrival}
        if type(self._budget) is RateBudget:
            return self._budget.acquire(call.priority, max_wait, **place)
        return self._slot_of_another(call.priority, max_wait, place)

    async def _slot_of_another(
        self, lane: Priority, max_wait: float | None, place: dict[str, int]
    ) -> Slot:
        """Ask a budget of the caller's, whose failures may be of any kind."""
        try:
            return await self._budget.acquire(lane, max_wait, **place)
        except SMSIDError:
            raise
        except Exception as exc:
            raise BudgetUnavailableError(
                f"the budget raised {type(exc).__name__}, so the request was not sent; "
                "mend the budget, or its store, and try again"
            ) from exc

    async def _attempt(self, call: Call[_T], slot: Slot) -> _T:
        while True:
            call.arrival = getattr(slot, "arrival", None)
            try:
                self._check_open()
            except ConfigurationError:
                self._use_budget(slot.unused)
                raise
            exchange = call.exchange = self._prepare(call, slot)
            if self._hooks:
                self._tell(SlotGranted(call.path, call.priority, exchange.waited))
            try:
                result = await self._perform(exchange)
            except HeldBackError:
                call.attempt -= 1
                slot = await self._slot(call)
            except SMSIDError:
                call.exchange = None
                raise
            else:
                call.exchange = None
                return result

    def _prepare(self, call: Call[_T], slot: Slot) -> Exchange[_T]:
        import anyio  # noqa: PLC0415 - httpx too loads it with its first request only

        loop = asyncio.get_running_loop()
        now = loop.time()
        return Exchange(
            call=call,
            slot=slot,
            waited=now - call.asked_at,
            started=now,
            scope=anyio.CancelScope(deadline=_deadline(call)),
            done=loop.create_future(),
            transport_traces=self._transport_traces,
        )

    async def _perform(self, exchange: Exchange[_T]) -> _T:
        """Run an exchange in its own task, so that cancelling the caller is safe."""
        exchange.task = task = asyncio.create_task(self._run(exchange))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._finished(exchange, task))
        try:
            await exchange.done
        except asyncio.CancelledError:
            await _abandon(exchange, task)
            raise
        return _result_of(exchange)

    async def _run(self, exchange: Exchange[_T]) -> None:
        """Make the exchange and note how it ended; nothing but a shutdown gets out."""
        try:
            with exchange.scope:
                if exchange.call.registration is not None:
                    await exchange.call.registration.intend()
                answer, headers = await self._send_and_read(exchange)
                exchange.result = result_of_answer(
                    exchange.call,
                    answer,
                    headers,
                    wall_clock=self._wall_clock(),
                    secrets=self._secrets,
                )
            if exchange.scope.cancelled_caught:
                exchange.error = error_of_broken(
                    exchange, TimeoutError(_late(exchange)), self._secrets
                )
        except SMSIDError as error:
            exchange.error = error
        except asyncio.CancelledError as exc:  # the event loop is shutting down
            exchange.error = error_of_broken(exchange, exc, self._secrets)
            raise
        except Exception as exc:  # noqa: BLE001 - foreign exceptions end here, and only here
            exchange.error = error_of_broken(exchange, exc, self._secrets)
        finally:
            self._give_back(exchange)
            if exchange.call.registration is None:
                self._end(exchange)
            else:
                await self._end_registered(exchange, exchange.call.registration)

    async def _send_and_read(self, exchange: Exchange[_T]) -> tuple[Answer, httpx.Headers]:
        call = exchange.call
        request = self._requests.make(call.method, call.path, call.body, trace=exchange.trace)
        async with await self._client() as client:
            exchange.started = asyncio.get_running_loop().time()
            exchange.scope.deadline = _deadline(call)  # waiting for a connection has cost nothing
            exchange.handed_over = True
            response = await client.send(request, stream=True, auth=None, follow_redirects=False)
            exchange.status_code = response.status_code
            try:
                answer = read_answer(response.status_code, await read_body(response))
            except InvalidResponseError as fault:
                answer = Answer(response.status_code, fault=str(fault))
            finally:
                await response.aclose()
        return answer, response.headers

    def _finished(self, exchange: Exchange[_T], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not exchange.ended:  # cancelled by a shutdown before its first step
            exchange.error = error_of_broken(exchange, asyncio.CancelledError(), self._secrets)
            self._give_back(exchange)
            self._end(exchange)

    def _give_back(self, exchange: Exchange[_T]) -> None:
        """Give the slot back, at the answer; a 429 holds everybody."""
        self._use_budget(lambda: self._end_slot(exchange))
        if isinstance(exchange.error, RateLimitError):
            self._hold(exchange.call, exchange.error.retry_after)

    async def _end_registered(self, exchange: Exchange[_T], registration: Registration) -> None:
        """Let the journal know the outcome before the caller does."""
        try:
            doubtful = exchange.call.doubtful
            await registration.note(exchange.error, exchange.result, doubtful=doubtful)
        finally:
            self._end(exchange)

    def _end(self, exchange: Exchange[_T]) -> None:
        """Release the caller and tell the observers."""
        exchange.ended = True
        call = exchange.call
        if isinstance(exchange.error, OutcomeUnknownError):
            call.doubtful = True
            _logger.warning("%s %s: outcome unknown", call.method, call.path)
        if not exchange.done.done():
            exchange.done.set_result(None)
        self._report(exchange)

    def _use_budget(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exc:  # noqa: BLE001 - a budget of the caller's; the outcome stands
            _logger.error("the budget raised %s", type(exc).__name__)  # noqa: TRY400 - no private data

    def _end_slot(self, exchange: Exchange[_T]) -> None:
        if not exchange.may_have_left:
            exchange.slot.unused()
        elif exchange.status_code is None or exchange.status_code in _MAY_COUNT_LATER:
            exchange.slot.given_up()
        else:
            exchange.slot.answered()

    def _hold(self, call: Call[_T], asked: float | None) -> None:
        seconds = asked
        if seconds is None:
            refused = 0 if call.tally is None else call.tally.refused
            seconds = backoff(call.policy, refused + 1, self._draw)
        self._use_budget(lambda: self._budget.hold(seconds))
        _logger.warning("HTTP 429: all requests of this key are held for %.1f s", seconds)
        self._tell(HoldStarted(seconds, asked))

    def _tell(self, event: Event) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception as exc:  # noqa: BLE001 - an observer must not change an outcome
                names = type(hook).__name__, type(exc).__name__
                _logger.error("hook %s raised %s", *names)  # noqa: TRY400 - no private data

    def _report(self, exchange: Exchange[_T]) -> None:
        debugging = _logger.isEnabledFor(logging.DEBUG)
        if not debugging and not self._hooks:
            return
        event = _event(exchange)
        if debugging:
            _logger.debug(
                "%s %s %s in %.0f ms, attempt %d, lane %s, waited %.3f s",
                event.method,
                event.path,
                event.status_code or event.error,
                event.duration * 1000,
                event.attempt,
                event.priority.name,
                event.waited,
            )
        self._tell(event)

    # -- further attempts ----------------------------------------------------

    async def _carry_on(self, call: Call[_T], error: SMSIDError) -> _T:
        """Hand a failed first attempt to tenacity, as the first of its attempts."""
        first: list[SMSIDError] = [error]

        async def attempt() -> _T:
            if first:
                raise first.pop()
            return await self._attempt(call, await self._slot(call))

        def too_late(pause: float) -> bool:
            time_left = call.time_left()
            return time_left is not None and pause >= time_left

        tally = call.tally = Tally(write=call.write)
        machine = retrying(call.policy, tally, draw=self._draw, give_up=too_late)
        return await machine(attempt)

    # -- the HTTP client -----------------------------------------------------

    async def _client(self) -> contextlib.AbstractAsyncContextManager[httpx.AsyncClient]:
        """Return a client for one exchange: the caller's, or one of ours."""
        if self._given_client is not None:
            return contextlib.nullcontext(self._given_client)
        loop = asyncio.get_running_loop()
        connections = self._connections
        if connections is None or connections.over or connections.loop is not loop:
            if connections is not None and not connections.over and connections.loop.is_running():
                raise ConfigurationError(
                    "this SMSIDClient is in use in another running event loop; "
                    "make one client for each loop that runs at the same time"
                )
            self._connections = connections = Connections(
                loop, places=_places_of(self._budget), loopback=self._settings.loopback
            )
            await connections.start()
        return connections.client()

    def _check_open(self) -> None:
        given = self._given_client
        if self.closed or (given is not None and given.is_closed):
            raise ConfigurationError(
                "the client is closed, nothing was sent; make the call inside `async with`, "
                "or make a new client"
            )


def _places_of(budget: Budget) -> int:
    """How many requests a budget lets be under way, or a guess if it does not say."""
    places = getattr(budget, "max_in_flight", None)
    if isinstance(places, bool) or not isinstance(places, int) or places < 1:
        return _PLACES_UNTOLD
    return places


def _is_httpx_all_through(client: httpx.AsyncClient) -> bool:
    """Whether a caller's client has httpx's own transports only, whose trace tells all.

    There is no public way to ask; where the private one is gone, the answer is no.
    """
    own = httpx.AsyncHTTPTransport
    mounted = getattr(client, "_mounts", {}).values()
    return type(getattr(client, "_transport", None)) is own and all(
        each is None or type(each) is own for each in mounted
    )


async def _abandon(exchange: Exchange[Any], task: asyncio.Task[None]) -> None:
    """Let go of an exchange whose caller was cancelled.

    Once the request may have left it goes on by itself, to learn its outcome.
    Before that it is ended in anyio's way, which leaves the connection pool whole.
    """
    if exchange.may_have_left:
        return
    exchange.scope.cancel()
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):  # the first one is raised again
            await asyncio.wait((task,))


def _result_of(exchange: Exchange[_T]) -> _T:
    error, exchange.error = exchange.error, None
    if error is None:
        return exchange.result  # type: ignore[return-value]  # set whenever there is no error
    try:
        raise error
    finally:
        del error  # its traceback knows this frame: without this, a cycle


def _deadline(call: Call[Any]) -> float:
    """When an attempt that begins now must end, on the loop's clock."""
    limit = asyncio.get_running_loop().time() + call.attempt_timeout
    return limit if call.deadline is None else min(limit, call.deadline)


def _late(exchange: Exchange[Any]) -> str:
    return f"no answer within {exchange.scope.deadline - exchange.started:.3g} s"


def _event(exchange: Exchange[Any]) -> AttemptFinished:
    call, error = exchange.call, exchange.error
    return AttemptFinished(
        method=call.method,
        path=call.path,
        attempt=call.attempt,
        priority=call.priority,
        waited=exchange.waited,
        duration=asyncio.get_running_loop().time() - exchange.started,
        status_code=exchange.status_code,
        outcome=Outcome.SENT if error is None else outcome_of(error),
        error=None if error is None else type(error).__name__,
    )
