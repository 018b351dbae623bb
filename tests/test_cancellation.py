"""Cancelled in every way: no promise is broken, and each guard is seen to be needed."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
from cancelling import PLACES, WAYS, WAYS_OF_MANY, run, run_bare

from smsid_async import RateBudget, _http
from smsid_async._http import Pipeline, _result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smsid_async._exchange import Exchange

pytestmark = pytest.mark.heavy

BUDGETS: dict[str, Callable[[], RateBudget]] = {
    "no rate limit": lambda: RateBudget.unlimited(max_in_flight=PLACES),
    "a window": lambda: RateBudget(10**6, 60.0, reserve=0, max_in_flight=PLACES),
}
NAMES = {"sent", "CancelledError", "TimeoutError", "NotSentError", "OutcomeUnknownError"}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize(
    "messages", [1_000, pytest.param(10_000, marks=pytest.mark.long)], ids="{:,}".format
)
async def test_calls_cut_short_in_every_way_break_no_promise(
    messages: int, budget: Callable[[], RateBudget]
) -> None:
    summary = await run(messages, seed=messages, budget=budget())
    assert summary.faults == {}
    # And it was a storm: every way was tried, and every kind of end was seen.
    assert {end.way for end in summary.endings} == WAYS.keys() | WAYS_OF_MANY.keys()
    assert {end.name for end in summary.endings} >= NAMES
    cut = {end.maybe_sent for end in summary.endings if end.name == "CancelledError"}
    assert cut == {True, False}


# -- each guard taken out ------------------------------------------------------
# A connection that is wedged takes nobody with it: each exchange has a client of one
# connection, and one whose exchange broke is not used again. Bare httpx loses its pool.


async def in_the_callers_task(self: Pipeline, exchange: Exchange[Any]) -> object:
    await self._run(exchange)
    return _result_of(exchange)


async def ended_even_if_it_left(exchange: Exchange[Any], task: asyncio.Task[None]) -> None:
    exchange.scope.cancel()
    await asyncio.wait((task,))


async def ended_by_cancelling_its_task(exchange: Exchange[Any], task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def never_ended(exchange: Exchange[Any], task: asyncio.Task[None]) -> None:
    """Let every exchange go on, those that have not left too."""


WITHOUT: dict[str, tuple[object, str, object, set[str]]] = {
    "an exchange in the caller's task": (
        Pipeline,
        "_perform",
        in_the_callers_task,
        {"left, and not finished"},
    ),
    "an exchange whose task is cancelled": (
        _http,
        "_abandon",
        ended_by_cancelling_its_task,
        {"left, and not finished"},
    ),
    "an exchange that is ended though it has left": (
        _http,
        "_abandon",
        ended_even_if_it_left,
        {"left, and not finished"},
    ),
    "an exchange that goes on though it has not left": (
        _http,
        "_abandon",
        never_ended,
        {"untrue"},
    ),
}


@pytest.fixture
def _sockets_may_be_lost() -> Iterator[None]:
    """What is wedged here is never closed; let that be said within the test."""
    yield
    gc.collect()


@pytest.mark.usefixtures("_sockets_may_be_lost")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("where", "name", "naive", "expected"), WITHOUT.values(), ids=WITHOUT.keys()
)
async def test_without_its_guard_the_storm_is_seen_to_break_it(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, naive: object, expected: set[str]
) -> None:
    monkeypatch.setattr(where, name, naive)
    budget = RateBudget.unlimited(max_in_flight=PLACES)
    summary = await run(300, seed=1, budget=budget, attempt_timeout=0.5)
    assert summary.faults.keys() >= expected


@pytest.mark.usefixtures("_sockets_may_be_lost")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_bare_httpx_loses_connections_in_the_same_storm() -> None:
    assert await run_bare(500, seed=1) > PLACES / 2
