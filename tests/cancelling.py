"""A storm of calls that are cut short in every way, and what must hold after it.

The server keeps a ledger of the messages it has read; it knows from each text how to
answer. Only the plan is drawn from the seed: the moments are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import httpx
from wire import SENT, RawServer, answer, reset

from smsid_async import (
    Message,
    Outcome,
    Priority,
    RetryPolicy,
    SendResult,
    SMSIDClient,
    SMSIDError,
)
from smsid_async.hooks import AttemptFinished, SlotGranted

if TYPE_CHECKING:
    from wire import Arrival

    from smsid_async import RateBudget
    from smsid_async.hooks import Event

__all__ = ["PLACES", "Call", "Ending", "Storm", "Summary", "run", "run_bare"]

NUMBER = "+447700900123"
PLACES = 10  # connections, and places in flight
CALLERS = 20  # at once, so that some wait for a place when their end comes
BATCH = 4  # messages in each `send_many`
LATE = 1.3  # seconds; the shortest `timeout` of a send is a little over one
PROBES = 100
PATIENCE = 10.0  # seconds for the probes, which take a fraction of one

Send: TypeAlias = Callable[..., Coroutine[Any, Any, object]]
Results: TypeAlias = AsyncIterator[SendResult]


@attrs.frozen
class Call:
    """What a caller does, and when it is cut short.

    Attributes:
        texts: Of its messages; each is sent once.
        way: How it is cut short, a key of `WAYS` or `WAYS_OF_MANY`.
        lane: That it waits in.
        cycles: Turns of the event loop until then,
        pause: and seconds.
    """

    texts: tuple[str, ...]
    way: str
    lane: Priority
    cycles: int
    pause: float

    async def moment(self) -> None:
        for _ in range(self.cycles):
            await asyncio.sleep(0)
        if self.pause:
            await asyncio.sleep(self.pause)

    @property
    def limit(self) -> float:
        return self.pause + self.cycles * 1e-4


@attrs.frozen
class Fate:
    """What the server does with a message: waits, then answers, answers and closes, or resets."""

    delay: float
    kind: str


@attrs.frozen
class Ending:
    """How a message ended for its caller; `maybe_sent` is None if nobody was told."""

    text: str
    way: str
    name: str
    maybe_sent: bool | None


# -- the ways to be cut short --------------------------------------------------


async def by_asyncio_timeout(send: Send, call: Call) -> None:
    async with asyncio.timeout(call.limit):
        await send()


async def by_wait_for(send: Send, call: Call) -> None:
    await asyncio.wait_for(send(), call.limit)


async def by_cancel(send: Send, call: Call) -> None:
    task = asyncio.create_task(send())
    await call.moment()
    task.cancel()
    await task


async def by_two_cancels(send: Send, call: Call) -> None:
    task = asyncio.create_task(send())
    await call.moment()
    task.cancel()
    for _ in range(call.cycles % 3):
        await asyncio.sleep(0)
    task.cancel()
    await task


async def by_a_failing_sibling(send: Send, call: Call) -> None:
    async def fail() -> None:
        await call.moment()
        raise RuntimeError("the sibling")

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(send())
            group.create_task(fail())
    task.result()


async def by_attempt_timeout(send: Send, call: Call) -> None:
    await send(attempt_timeout=call.limit + 1e-4)


async def by_timeout(send: Send, call: Call) -> None:
    await send(timeout=1 + call.limit + 1e-4)


WAYS: dict[str, Callable[[Send, Call], Coroutine[Any, Any, None]]] = {
    "asyncio.timeout": by_asyncio_timeout,
    "asyncio.wait_for": by_wait_for,
    "task.cancel()": by_cancel,
    "task.cancel() twice": by_two_cancels,
    "a TaskGroup's failure": by_a_failing_sibling,
    "attempt_timeout=": by_attempt_timeout,
    "timeout=": by_timeout,
}


async def by_break(results: Any, call: Call, seen: list[SendResult]) -> None:
    async for result in results:
        seen.append(result)
        if len(seen) > call.cycles % BATCH:
            break
    await results.aclose()


async def by_aclose(results: Any, call: Call, seen: list[SendResult]) -> None:
    reader = asyncio.create_task(_read(results, seen))
    await call.moment()
    await results.aclose()
    with contextlib.suppress(StopAsyncIteration):
        await reader


async def by_cancelled_reader(results: Any, call: Call, seen: list[SendResult]) -> None:
    reader = asyncio.create_task(_read(results, seen))
    await call.moment()
    reader.cancel()
    await asyncio.wait((reader,))
    await results.aclose()


async def by_stop(results: Any, call: Call, seen: list[SendResult]) -> None:
    reader = asyncio.create_task(_read(results, seen))
    await call.moment()
    results.stop()
    await reader


async def _read(results: Results, seen: list[SendResult]) -> None:
    async for result in results:
        seen.append(result)  # noqa: PERF401 - one by one, for it may be cancelled


WAYS_OF_MANY: dict[str, Callable[[Any, Call, list[SendResult]], Coroutine[Any, Any, None]]] = {
    "send_many: break": by_break,
    "send_many: aclose()": by_aclose,
    "send_many: a cancelled reader": by_cancelled_reader,
    "send_many: stop()": by_stop,
}
# The SDK's own time limits end the exchange itself; in all other ways it goes on. They have
# a lane for themselves, by which a hook can tell them apart.
OWN_LIMITS = {"attempt_timeout=", "timeout="}
OTHER_LANES = (Priority.HIGH, Priority.NORMAL, Priority.BULK)


# -- the plan and the server ---------------------------------------------------


class Storm:
    """The calls to make, and the server's part in them.

    Args:
        messages: How many are sent, about.
        seed: Of the plan.
        ways: To draw from.
    """

    def __init__(self, messages: int, seed: int, ways: list[str]) -> None:
        self._random = random.Random(seed)
        self._ways = ways
        self.fates: dict[str, Fate] = {}
        self.way_of: dict[str, str] = {}
        self.calls: list[Call] = []
        while len(self.fates) < messages:
            self.calls.append(self.draw())
        self._met: dict[str, int] = Counter()
        self._all_met: dict[str, asyncio.Event] = {}

    def draw(self) -> Call:
        pick = self._random
        way = pick.choice(self._ways)
        first = len(self.fates)
        count = BATCH if way in WAYS_OF_MANY else 1
        texts = tuple(f"m-{number:06}" for number in range(first, first + count))
        for text in texts:
            late = way == "timeout=" and pick.random() < 0.03
            delay = LATE if late else pick.choice((0.0, pick.uniform(0, 0.006)))
            self.fates[text] = Fate(
                delay, pick.choices(("answer", "close", "reset"), (18, 1, 1))[0]
            )
            self.way_of[text] = way
        pause = pick.choice((0.0, pick.uniform(0, 0.005), pick.uniform(0, 0.03)))
        lane = Priority.BACKGROUND if way in OWN_LIMITS else pick.choice(OTHER_LANES)
        return Call(texts, way, lane, pick.randrange(24), pause)

    async def serve(self, arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        text = text_of(arrival)
        if text.startswith("p-"):  # a probe: answered once a whole group is here
            await self.meet(text[:6])
            await answer(200, SENT)(arrival, writer)
            return
        fate = self.fates[text]
        await asyncio.sleep(fate.delay)
        await (reset if fate.kind == "reset" else answer(200, SENT))(arrival, writer)
        if fate.kind == "close":  # unannounced, as servers close idle connections
            writer.close()

    def will_be_answered(self, text: str) -> bool:
        """Whether the answer to a message must arrive, even if its caller has gone."""
        return self.fates[text].kind != "reset" and self.way_of[text] not in OWN_LIMITS

    async def meet(self, group: str) -> None:
        self._met[group] += 1
        met = self._all_met.setdefault(group, asyncio.Event())
        if self._met[group] == PLACES:
            met.set()
        await met.wait()

    def release(self) -> None:
        for met in self._all_met.values():
            met.set()

    async def stuck(self, send: Callable[[str], Coroutine[Any, Any, object]]) -> int:
        """Send a hundred in groups that need every place at once; count the places missing."""
        for group in range(PROBES // PLACES):
            name = f"p-{group:04}"
            probes = [asyncio.create_task(send(f"{name}-{place}")) for place in range(PLACES)]
            _, late = await asyncio.wait(probes, timeout=PATIENCE / 5)
            arrived = self._met[name]
            self.release()
            for probe in late:
                probe.cancel()
            ends = await asyncio.gather(*probes, return_exceptions=True)
            failed = sum(isinstance(end, BaseException) for end in ends)
            if missing := max(PLACES - arrived, failed):
                return missing
        return 0


def text_of(arrival: Arrival) -> str:
    return str(json.loads(arrival.body)["message"])


# -- one run -------------------------------------------------------------------


class Told:
    """A hook that counts what it is told."""

    def __init__(self) -> None:
        self.granted = 0
        self.ended: Counter[Outcome] = Counter()
        self.sent_in_other_lanes = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, SlotGranted):
            self.granted += 1
        elif isinstance(event, AttemptFinished):
            self.ended[event.outcome] += 1
            sent = event.outcome is Outcome.SENT
            self.sent_in_other_lanes += sent and event.priority in OTHER_LANES

    @property
    def missing(self) -> int:
        return self.granted - self.ended.total()


# A request that has begun to leave may not arrive; anything beyond that is a false alarm.
MOST_OVERCLAIMED = 0.05


@attrs.define
class Summary:
    """What a run came to; `faults` is empty if every promise was kept."""

    endings: list[Ending] = attrs.Factory(list)
    ledger: Counter[str] = attrs.Factory(Counter)
    ended: Counter[Outcome] = attrs.Factory(Counter)  # as the hooks were told
    stuck: int = 0
    probes_took: float = 0.0
    leaked_slots: int = 0
    leaked_tasks: int = 0
    left_open: int = 0
    untold: int = 0
    unfinished: int = 0
    took: float = 0.0

    @property
    def foreign(self) -> set[str]:
        """Exceptions that no caller should see, or that do not say `maybe_sent`."""
        return {end.name for end in self.endings if end.name.startswith("foreign ")}

    @property
    def untrue(self) -> list[Ending]:
        """Endings that the ledger gives the lie to."""
        return [end for end in self.endings if self._is_untrue(end)]

    def _is_untrue(self, end: Ending) -> bool:
        counted = self.ledger[end.text]
        if end.name == "sent":
            return counted != 1
        return end.maybe_sent is False and counted > 0

    @property
    def overclaimed(self) -> float:
        """The share of all that was said to have perhaps left, and is not in the ledger."""
        said = [end for end in self.endings if end.maybe_sent]
        return sum(not self.ledger[end.text] for end in said) / max(1, len(said))

    @property
    def twice(self) -> list[str]:
        return [text for text, count in self.ledger.items() if count > 1]

    @property
    def faults(self) -> dict[str, object]:
        found: dict[str, object] = {
            "stuck connections": self.stuck,
            "slow probes": self.probes_took > PATIENCE,
            "leaked slots": self.leaked_slots,
            "leaked tasks": self.leaked_tasks,
            "connections left open": self.left_open,
            "attempts that no hook was told the end of": self.untold,
            "left, and not finished": self.unfinished,
            "untrue": self.untrue,
            "doubts without a reason": self.overclaimed > MOST_OVERCLAIMED,
            "posted twice": self.twice,
            "foreign exceptions": self.foreign,
        }
        return {name: what for name, what in found.items() if what}


async def run(
    messages: int, seed: int, budget: RateBudget, *, attempt_timeout: float = 10.0
) -> Summary:
    """Cut `messages` sends short, look at what is left, and close clients under way."""
    storm = Storm(messages, seed, 3 * list(WAYS) + list(WAYS_OF_MANY))
    summary, told = Summary(), []

    def client() -> SMSIDClient:
        told.append(Told())
        return SMSIDClient(
            "test",
            base_url=server.url,
            budget=budget,
            hooks=[told[-1]],
            attempt_timeout=attempt_timeout,
            retry=RetryPolicy(backoff=0.002),
        )

    began = time.perf_counter()
    async with RawServer(storm.serve) as server:
        main = client()

        async def one(call: Call) -> None:
            summary.endings += await _carry_out_one(main, call)

        await _all(storm.calls, one)
        await _quiet(budget)
        await _probe(main, storm, summary)
        await _close_under_way(main, storm, summary)
        for _ in range(messages // 100):
            await _close_under_way(client(), storm, summary)
        storm.release()
        summary.leaked_slots = budget.statistics().in_flight + sum(
            budget.statistics().waiting.values()
        )
        summary.leaked_tasks += len(_tasks() - {asyncio.current_task()})
        summary.left_open = await _left_open(server)
    summary.took = time.perf_counter() - began
    summary.ledger = Counter(text_of(arrival) for arrival in server.ledger)
    _compare_with_hooks(summary, storm, told)
    return summary


async def run_bare(messages: int, seed: int) -> int:
    """Cut bare httpx's posts short in the same ways; return how many connections it has lost."""
    storm = Storm(messages, seed, [way for way in WAYS if way not in OWN_LIMITS])
    limits = httpx.Limits(max_connections=PLACES, max_keepalive_connections=PLACES)
    patience = httpx.Timeout(5.0, pool=0.2)
    async with RawServer(storm.serve) as server:
        async with httpx.AsyncClient(limits=limits, timeout=patience, trust_env=False) as client:

            async def post(text: str) -> object:
                return await client.post(f"{server.url}/sms/send", json={"message": text})

            async def one(call: Call) -> None:
                await how_it_ended(WAYS[call.way](partial(post, call.texts[0]), call))

            await _all(storm.calls, one)
            return await storm.stuck(post)


async def _all(calls: list[Call], make: Callable[[Call], Awaitable[None]]) -> None:
    """Make the calls, so many at a time; every call has an end."""
    queue = iter(calls)

    async def caller() -> None:
        for call in queue:
            await make(call)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _carry_out_one(client: SMSIDClient, call: Call) -> list[Ending]:
    if call.way in WAYS_OF_MANY:
        return await _carry_out_many(client, call)
    [text] = call.texts

    begun = False

    async def send(**options: Any) -> object:
        nonlocal begun
        begun = True
        return await client.sms.send(NUMBER, text, priority=call.lane, **options)

    name, maybe_sent = await how_it_ended(WAYS[call.way](send, call))
    if maybe_sent is None and not begun:  # its task was cancelled before its first step,
        maybe_sent = False  # so that none of our code ran that could say so
    return [
        Ending(text, call.way, name if maybe_sent is not None else f"foreign {name}", maybe_sent)
    ]


async def how_it_ended(way: Coroutine[Any, Any, None]) -> tuple[str, bool | None]:
    """Return the name of what the caller saw, and what it says of the message."""
    try:
        await way
    except SMSIDError as error:
        return type(error).__name__, error.maybe_sent
    except (TimeoutError, asyncio.CancelledError) as error:
        cancelled = error.__cause__ if isinstance(error, TimeoutError) else error
        return type(error).__name__, getattr(cancelled, "maybe_sent", None)
    except Exception as error:
        return type(error).__name__, None
    return "sent", True


async def _carry_out_many(client: SMSIDClient, call: Call) -> list[Ending]:
    seen: list[SendResult] = []
    messages = [Message(NUMBER, text) for text in call.texts]
    results = client.sms.send_many(messages, concurrency=BATCH - 1, priority=call.lane)
    name = ""
    try:
        await WAYS_OF_MANY[call.way](results, call, seen)
    except SMSIDError:
        pass  # the client was closed: the reason why the iterator stopped
    except Exception as error:
        name = f"foreign {type(error).__name__}"
    ends = {result.message.text: _ending_of(result, call.way) for result in seen}
    return [
        ends.get(text, Ending(text, call.way, name or "nobody told", None)) for text in call.texts
    ]


def _ending_of(result: SendResult, way: str) -> Ending:
    text = result.message.text
    if result.error is None:
        return Ending(text, way, "sent", maybe_sent=True)
    told = isinstance(result.error, SMSIDError) and result.error.maybe_sent
    if told != (result.outcome is Outcome.UNKNOWN):
        return Ending(text, way, f"foreign {result.outcome}", told)
    return Ending(text, way, type(result.error).__name__, told)


async def _quiet(budget: RateBudget) -> None:
    """Wait for the exchanges that cut-off calls left behind, and for their connections' ends."""
    deadline = time.perf_counter() + PATIENCE
    while budget.statistics().in_flight and time.perf_counter() < deadline:
        await asyncio.sleep(0.001)
    for _ in range(10):
        await asyncio.sleep(0)


async def _probe(client: SMSIDClient, storm: Storm, summary: Summary) -> None:
    began = time.perf_counter()
    summary.stuck = await storm.stuck(lambda text: client.sms.send(NUMBER, text))
    summary.probes_took = time.perf_counter() - began


async def _close_under_way(client: SMSIDClient, storm: Storm, summary: Summary) -> None:
    """Close a client while its calls are made and cut short, and cut the closing short."""
    calls = [storm.draw() for _ in range(2 * PLACES)]
    making = [asyncio.create_task(_carry_out_one(client, call)) for call in calls]
    await calls[0].moment()
    closing = asyncio.create_task(client.aclose())
    await calls[1].moment()
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await client.aclose()
    summary.leaked_tasks += sum(_is_exchange(task) for task in _tasks())
    for each in await asyncio.gather(*making):
        summary.endings += each


def _is_exchange(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "") == "Pipeline._run"


def _tasks() -> set[asyncio.Task[Any]]:
    """All tasks that are not the server's."""
    return {
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") != "RawServer._serve"
    }


async def _left_open(server: RawServer) -> int:
    """Count the connections that the server still sees open once it has had time to look."""
    deadline = time.perf_counter() + LATE + 1
    while True:
        still = sum(not writer.is_closing() for writer in server._writers)
        if not still or time.perf_counter() > deadline:
            return still
        await asyncio.sleep(0.001)


def _compare_with_hooks(summary: Summary, storm: Storm, told: list[Told]) -> None:
    for each in told:
        summary.ended += each.ended
        summary.untold += abs(each.missing)
    had_left = [
        text for text in summary.ledger if text.startswith("p-") or storm.will_be_answered(text)
    ]
    summary.unfinished = len(had_left) - sum(each.sent_in_other_lanes for each in told)
