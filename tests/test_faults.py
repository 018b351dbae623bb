"""Each row of the fault matrix: one answer from the client, at most one message, no leak."""

from __future__ import annotations

import asyncio
import itertools
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from faults import (
    AFTERWARDS,
    KEY,
    NUMBER,
    OVER_TLS,
    QUICK,
    ROWS,
    SHORT,
    TEXT,
    WHOLE,
    Row,
    Server,
    Watch,
    flood,
    good,
    head,
    open_client,
    plain,
    problems,
    run,
    send_afterwards,
    sequence,
    tunnelled,
)
from wire import answer, raw

from smsid_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    Outcome,
    OutcomeUnknownError,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    SMSIDClient,
    SMSIDError,
)
from smsid_async._http import Pipeline
from smsid_async.hooks import AttemptFinished

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import MakeWorld, World
    from wire import Script

    from smsid_async._exchange import Exchange

ONCE = RetryPolicy(max_attempts=1, rate_limit_attempts=1, backoff=0.001, max_backoff=0.001)


def test_every_row_has_its_own_name() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) >= 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_the_outcome_is_known_and_the_client_goes_on(row: Row) -> None:
    assert problems(row, await run(row)) == []


# -- every status --------------------------------------------------------------

REFUSALS: dict[int, type[SMSIDError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    422: BadRequestError,
}


def expected(status: int, *, enveloped: bool) -> type[SMSIDError] | None:
    """What an answer means to a send, by the rule."""
    if status == 429:
        return RateLimitError
    if enveloped and 400 <= status < 500:
        return REFUSALS.get(status, APIError)
    if enveloped and (status == 200 or (status < 200 and status != 101)):
        return None  # below 200 it only announces the answer that follows it
    return OutcomeUnknownError


def of_status(status: int, *, enveloped: bool) -> Script:
    first = f"HTTP/1.1 {status} Any\r\n\r\n".encode()
    if status < 200:
        return raw(first + WHOLE, close=False) if enveloped else raw(first)
    if status in (204, 304):
        return raw(first, close=False)
    body = {"meta": {"code": status, "text": "Any"}, "data": {"message_id": "M"}}
    return answer(status, body if enveloped else b"")


async def test_every_status_from_100_to_999_is_one_post_and_means_what_it_should() -> None:
    cases = [(status, enveloped) for status in range(100, 1000) for enveloped in (False, True)]
    wrong = []
    async with (
        asyncio.timeout(30),
        Server(good) as server,
        plain_client(server, ONCE) as client,
    ):
        for number, (status, enveloped) in enumerate(cases, 1):
            server._scripts[:] = [of_status(status, enveloped=enveloped)]
            error = await failure_of(client)
            kind, want = type(error) if error else None, expected(status, enveloped=enveloped)
            doubt = error is not None and error.maybe_sent
            if (kind, doubt, len(server.ledger)) != (want, want is OutcomeUnknownError, number):
                wrong.append((status, enveloped, kind, doubt, len(server.ledger), number))
        await server.heal()
        assert await send_afterwards(client) == AFTERWARDS
        assert len(server.ledger) == len(cases) + AFTERWARDS
    assert wrong == []


async def failure_of(client: SMSIDClient, **options: Any) -> SMSIDError | None:
    try:
        await client.sms.send(NUMBER, TEXT, **options)
    except SMSIDError as error:
        return error
    return None


# -- memory --------------------------------------------------------------------

FLOODS: dict[str, Script] = {
    "100 Continue": flood(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": sequence(raw(b"HTTP/1.1 200 OK\r\n", close=False), flood(b"X: y\r\n")),
    "one header": sequence(raw(b"HTTP/1.1 200 OK\r\nX: ", close=False), flood(b"y")),
    "a body": sequence(raw(head("Connection: close"), close=False), flood(b" " * 1000)),
    "chunks": sequence(
        raw(head("Transfer-Encoding: chunked"), close=False), flood(b"1;x=y\r\n \r\n")
    ),
}


@pytest.mark.parametrize("script", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_without_an_end_costs_little_memory(script: Script) -> None:
    async with Server(script, good) as server, plain_client(server) as client:
        tracemalloc.start()
        try:
            error = await failure_of(client, attempt_timeout=2 * SHORT)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(error, OutcomeUnknownError)
        assert peak < 5 << 20
        await server.heal()
        assert await send_afterwards(client) == AFTERWARDS


def plain_client(server: Server, policy: RetryPolicy = QUICK) -> SMSIDClient:
    budget = RateBudget.unlimited()
    return SMSIDClient(KEY, base_url=server.url, retry=policy, budget=budget)


# -- ended at every step -------------------------------------------------------

WORLDS = {"plain": plain(), "TLS": OVER_TLS, "TLS through a proxy": tunnelled()}


class Ending:
    """Starts a send and ends it at a given step of the event loop, in one of three ways."""

    def __init__(self, client: SMSIDClient, kept: list[Exchange[Any]]) -> None:
        self._client = client
        self._kept = kept

    async def cancel(self, number: int, step: int) -> bool | None:
        return await self._end(self._send(number), step, lambda task: task.cancel())

    async def timeout(self, number: int, step: int) -> bool | None:
        scope = asyncio.timeout(None)

        async def send() -> None:
            async with scope:
                await self._send(number)

        def end(_: object) -> None:
            if step:  # at step 0 the scope is not entered yet
                scope.reschedule(asyncio.get_running_loop().time())

        return await self._end(send(), step, end)

    async def own(self, number: int, step: int) -> bool | None:
        self._kept.clear()

        def end(_: object) -> None:
            if self._kept:
                self._kept[0].scope.deadline = asyncio.get_running_loop().time()

        return await self._end(self._send(number), step, end)

    async def _send(self, number: int) -> None:
        receipt = await self._client.sms.send(NUMBER, f"{TEXT} {number}")
        assert receipt.message_id == f"M{number}"

    async def _end(self, call: Any, step: int, end: Callable[[Any], object]) -> bool | None:
        """Return `maybe_sent`; True for a success all the same, None for one not ended."""
        task = asyncio.ensure_future(call)
        for _ in range(step):
            await asyncio.sleep(0)
        if task.done():
            await task
            return None
        end(task)
        try:
            await task
        except asyncio.CancelledError as error:
            return getattr(error, "maybe_sent", False)  # none at step 0: it had not begun
        except SMSIDError as error:
            return error.maybe_sent
        except TimeoutError as error:
            return error.__cause__.maybe_sent  # type: ignore[union-attr]
        return True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Exchange[Any]]:
    """The exchanges that were prepared."""
    exchanges: list[Exchange[Any]] = []
    prepare = Pipeline._prepare

    def keep(self: Pipeline, call: Any, slot: Any) -> Exchange[Any]:
        exchanges.append(prepare(self, call, slot))
        return exchanges[-1]

    monkeypatch.setattr(Pipeline, "_prepare", keep)
    return exchanges


@pytest.mark.parametrize("way", ["cancel", "timeout", "own"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh connection", "kept connection"])
@pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS.keys())
async def test_a_send_that_is_ended_at_any_step_knows_its_outcome(
    make: MakeWorld, fresh: bool, way: str, kept: list[Exchange[Any]]
) -> None:
    said: dict[int, bool] = {}
    numbers = itertools.count(1000)
    watch = Watch()
    async with asyncio.timeout(30), make(()) as world:
        async with open_client(world, watch, retry=ONCE, attempt_timeout=3.0) as client:
            end_at = getattr(Ending(client, kept), way)
            step = 0
            # Steps are not time: on a busy machine a sweep may jump over the one that counts.
            while step or True not in said.values():
                number = next(numbers)
                outcome = await _ended_once(client, world, end_at, number, step, fresh)
                step = 0 if outcome is None else step + 1
                if outcome is None:
                    continue
                said[number] = outcome
                if outcome and way != "own":
                    assert last_attempt(watch).outcome is Outcome.SENT  # it finished by itself
            assert await send_afterwards(client) == AFTERWARDS
            assert client.budget.statistics().in_flight == 0
    counted = texts(world)
    for number, maybe_sent in said.items():
        times = counted.count(f"{TEXT} {number}")
        assert times <= 1
        if way != "own":
            assert times == maybe_sent, number
        assert maybe_sent or not times, number
    assert set(said.values()) == {True, False}


async def _ended_once(
    client: SMSIDClient,
    world: World,
    end_at: Callable[..., Any],
    number: int,
    step: int,
    fresh: bool,
) -> bool | None:
    if fresh:
        world.server.hang_up(hard=True)
        await asyncio.sleep(0.002)
    else:
        await client.sms.send(NUMBER, TEXT)
    outcome = await end_at(number, step)
    while client._pipeline._tasks:
        await asyncio.sleep(0.001)
    assert client.budget.statistics().in_flight == 0
    return outcome


def last_attempt(watch: Watch) -> AttemptFinished:
    return [event for event in watch.events if isinstance(event, AttemptFinished)][-1]


def texts(world: World) -> list[str]:
    return [json.loads(arrival.body)["message"] for arrival in world.server.ledger]
