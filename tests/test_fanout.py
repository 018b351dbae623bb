"""`sms.send_many`: lazy pulling, every message accounted for, stopping in every way."""

from __future__ import annotations

import asyncio
import gc
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from conftest import NUMBER
from wire import SENT, RawServer, answer, hang, lanes_into, reset

from smsid_async import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InsufficientBalanceError,
    Message,
    NotSentError,
    Outcome,
    OutcomeUnknownError,
    Priority,
    RateBudget,
    RetryPolicy,
    SendResult,
    SMSIDClient,
    SMSIDError,
    ValidationError,
)
from smsid_async.hooks import AttemptFinished, SlotGranted
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from smsid_async import SendMany
    from smsid_async.hooks import Event, Hook


def messages(count: int) -> list[Message]:
    return [Message(NUMBER, f"Text {index}") for index in range(count)]


def open_client(url: str, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {"budget": RateBudget.unlimited()}
    return SMSIDClient("test", base_url=url, **(settings | options))  # type: ignore[arg-type]


async def collect(results: SendMany) -> tuple[list[SendResult], BaseException | None]:
    seen: list[SendResult] = []
    try:
        async for result in results:
            seen.append(result)  # noqa: PERF401 - kept when the iteration fails
    except Exception as error:
        return seen, error
    return seen, None


async def test_every_message_is_sent_once_and_reported_once(
    client: SMSIDClient, sandbox: Sandbox
) -> None:
    seen, error = await collect(client.sms.send_many(messages(250), concurrency=20))

    assert error is None
    assert sorted(result.index for result in seen) == list(range(250))
    assert all(result.outcome is Outcome.SENT and result.error is None for result in seen)
    assert all(result.message.text == f"Text {result.index}" for result in seen)
    by_id = {message.message_id: message.text for message in sandbox.messages}
    assert len(by_id) == 250
    for result in seen:
        assert result.receipt is not None
        assert by_id[result.receipt.message_id] == result.message.text


async def test_nothing_to_send_ends_at_once(client: SMSIDClient) -> None:
    assert await collect(client.sms.send_many([])) == ([], None)


async def test_an_async_source_and_one_at_a_time(client: SMSIDClient, sandbox: Sandbox) -> None:
    async def source() -> AsyncIterator[Message]:
        for message in messages(5):
            await asyncio.sleep(0)
            yield message

    seen, error = await collect(client.sms.send_many(source(), concurrency=1))
    assert error is None
    assert [result.index for result in seen] == [0, 1, 2, 3, 4]
    assert [message.text for message in sandbox.messages] == [f"Text {n}" for n in range(5)]


async def test_messages_wait_in_the_bulk_lane(sandbox: Sandbox) -> None:
    lanes: list[Priority] = []
    async with open_client(sandbox.url, hooks=[lanes_into(lanes)]) as client:
        await collect(client.sms.send_many(messages(1)))
        await collect(client.sms.send_many(messages(1), priority=Priority.NORMAL))
    assert lanes == [Priority.BULK, Priority.NORMAL]


async def test_a_wrong_message_is_not_sent_and_does_not_stop_the_others(
    client: SMSIDClient, sandbox: Sandbox
) -> None:
    source = [Message(NUMBER, "one"), Message("0770", "two"), Message(NUMBER, ""), *messages(1)]
    seen, error = await collect(client.sms.send_many(source))

    assert error is None
    outcomes = {result.index: result.outcome for result in seen}
    assert outcomes == {
        0: Outcome.SENT,
        1: Outcome.NOT_SENT,
        2: Outcome.NOT_SENT,
        3: Outcome.SENT,
    }
    assert {type(result.error) for result in seen} == {type(None), ValidationError}
    assert len(sandbox.messages) == 2


async def test_a_reference_is_carried_to_the_result(client: SMSIDClient) -> None:
    seen, _ = await collect(client.sms.send_many([Message(NUMBER, "Hello", reference="order-1")]))
    assert seen[0].message.reference == "order-1"


async def test_at_most_concurrency_are_in_hand_and_a_slow_consumer_stops_the_pulling(
    client: SMSIDClient,
) -> None:
    pulled = 0

    def source() -> Iterator[Message]:
        nonlocal pulled
        for message in messages(100):
            pulled += 1
            yield message

    consumed = 0
    async for _ in client.sms.send_many(source(), concurrency=7):
        consumed += 1
        for _ in range(50):  # time enough to pull everything, were it allowed
            await asyncio.sleep(0)
        assert pulled <= consumed + 7
    assert consumed == pulled == 100


async def test_an_endless_source_and_break(client: SMSIDClient, sandbox: Sandbox) -> None:
    def endless() -> Iterator[Message]:
        while True:
            yield Message(NUMBER, "again")

    consumed = 0
    async for _ in client.sms.send_many(endless(), concurrency=5):
        consumed += 1
        if consumed == 20:
            break
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)
    await client.aclose()
    arrived = len(sandbox.messages)
    assert 20 <= arrived <= 25
    assert client.budget.statistics().in_flight == 0
    assert sum(client.budget.statistics().waiting.values()) == 0


async def test_a_wrong_key_stops_the_pulling_and_is_raised_last(sandbox: Sandbox) -> None:
    source = iter(messages(1000))
    async with SMSIDClient(
        "wrong", base_url=sandbox.url, budget=RateBudget.unlimited(max_in_flight=3)
    ) as client:
        seen, error = await collect(client.sms.send_many(source, concurrency=10))
    assert isinstance(error, AuthenticationError)
    outcomes = [result.outcome for result in seen]
    assert set(outcomes) == {Outcome.REJECTED, Outcome.NOT_SENT}
    stopped = [result for result in seen if result.outcome is Outcome.NOT_SENT]
    assert stopped
    assert all(isinstance(result.error, NotSentError) for result in stopped)
    assert len(list(source)) == 1000 - len(seen)  # the rest stays in the source
    assert sandbox.messages == []


async def test_an_exhausted_balance_stops_and_loses_count_of_nothing() -> None:
    async with Sandbox(limit=None, balance=Decimal("2.0000"), latency=0.002) as sandbox:
        source = iter(messages(500))
        async with open_client(sandbox.url) as client:
            seen, error = await collect(client.sms.send_many(source, concurrency=20))
        assert isinstance(error, InsufficientBalanceError)
        sent = [result for result in seen if result.outcome is Outcome.SENT]
        assert len(sent) == len(sandbox.messages) == 50
        assert len(list(source)) == 500 - len(seen)


async def test_twenty_same_refusals_in_a_row_stop() -> None:
    no = answer(400, {"meta": {"code": 400, "text": "Country not allowed"}})
    async with RawServer(no) as server, open_client(server.url) as client:
        seen, error = await collect(client.sms.send_many(messages(100), concurrency=1))
    assert isinstance(error, BadRequestError)
    assert len(seen) == 20


async def test_refusals_that_differ_or_are_not_in_a_row_do_not_stop() -> None:
    no = answer(400, {"meta": {"code": 400, "text": "Country not allowed"}})
    other = answer(400, {"meta": {"code": 400, "text": "Landline"}})
    scripts = [*[no] * 19, other, *[no] * 19, answer(200, SENT), *[no] * 19, other]
    async with RawServer(*scripts) as server, open_client(server.url) as client:
        seen, error = await collect(client.sms.send_many(messages(60), concurrency=1))
    assert error is None
    assert len(seen) == 60


async def test_an_unknown_outcome_is_reported_and_does_not_stop() -> None:
    gateway = answer(502, b"")
    async with RawServer(gateway, answer(200, SENT)) as server, open_client(server.url) as client:
        seen, error = await collect(client.sms.send_many(messages(3), concurrency=1))
    assert error is None
    assert [result.outcome for result in seen] == [Outcome.UNKNOWN, Outcome.SENT, Outcome.SENT]
    assert isinstance(seen[0].error, OutcomeUnknownError)


async def test_stop_reports_all_in_hand_and_lets_finish_what_had_left() -> None:
    gate = asyncio.Event()

    async def slow(arrival: object, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(200, SENT)(arrival, writer)  # type: ignore[arg-type]

    source = iter(messages(100))
    async with RawServer(slow) as server:
        budget = RateBudget.unlimited(max_in_flight=3)
        async with open_client(server.url, budget=budget) as client:
            results = client.sms.send_many(source, concurrency=10)
            collecting = asyncio.create_task(collect(results))
            while len(server.ledger) < 3:
                await asyncio.sleep(0.001)
            results.stop()
            await asyncio.sleep(0.01)
            assert not collecting.done()  # three have left, and their answers count
            gate.set()
            seen, error = await collecting
        assert len(server.ledger) == 3
    assert error is None
    outcomes = sorted(result.outcome for result in seen)
    assert outcomes == [Outcome.NOT_SENT] * 7 + [Outcome.SENT] * 3
    assert len(list(source)) == 90


async def test_aclose_after_stop_does_not_wait_for_what_is_in_flight() -> None:
    async with RawServer(hang) as server:
        async with open_client(server.url, attempt_timeout=0.5) as client:
            results = client.sms.send_many(messages(3))
            collecting = asyncio.create_task(anext(results))
            while len(server.ledger) < 3:
                await asyncio.sleep(0.001)
            results.stop()
            began = asyncio.get_running_loop().time()
            collecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await collecting
            await results.aclose()
            assert asyncio.get_running_loop().time() - began < 0.3


async def test_stop_keeps_the_doubt_of_an_earlier_attempt() -> None:
    policy = RetryPolicy(retry_unknown=True, backoff=60.0, max_backoff=60.0)
    async with RawServer(reset) as server:
        async with open_client(server.url, retry=policy) as client:
            client._pipeline._draw = lambda: 1.0
            results = client.sms.send_many(messages(1))
            collecting = asyncio.create_task(collect(results))
            while client.budget.statistics().in_flight or not server.ledger:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            results.stop()
            seen, error = await collecting
        assert len(server.ledger) == 1
    assert error is None
    assert [result.outcome for result in seen] == [Outcome.UNKNOWN]
    assert seen[0].error is not None
    assert seen[0].error.maybe_sent


async def test_stop_keeps_a_refusal_that_has_just_come() -> None:
    no = answer(400, {"meta": {"code": 400, "text": "No"}})
    async with RawServer(no) as server:

        def stop(event: Event) -> None:
            if isinstance(event, AttemptFinished):
                results.stop()

        async with open_client(server.url, hooks=[stop]) as client:
            results = client.sms.send_many(messages(1))
            seen, _ = await collect(results)
    assert [result.outcome for result in seen] == [Outcome.REJECTED]


async def test_a_source_that_is_cancelled_does_not_look_complete(client: SMSIDClient) -> None:
    async def source() -> AsyncIterator[Message]:
        yield messages(1)[0]
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    seen, error = await collect(client.sms.send_many(source()))
    assert [result.outcome for result in seen] == [Outcome.SENT]
    assert isinstance(error, SMSIDError)
    assert isinstance(error.__cause__, asyncio.CancelledError)


async def test_aclose_while_a_consumer_waits_ends_its_iteration() -> None:
    async with RawServer(hang) as server:
        async with open_client(server.url, attempt_timeout=0.5) as client:
            async with client.sms.send_many(messages(3)) as results:
                collecting = asyncio.create_task(collect(results))
                while len(server.ledger) < 3:
                    await asyncio.sleep(0.001)
            assert await asyncio.wait_for(collecting, timeout=0.3) == ([], None)


async def test_a_misspelt_option_is_an_error_at_once(client: SMSIDClient) -> None:
    with pytest.raises(TypeError, match="time_out"):
        client.sms.send_many(messages(1), time_out=5)  # type: ignore[call-arg]


async def test_stop_before_the_first_pull_sends_nothing(
    client: SMSIDClient, sandbox: Sandbox
) -> None:
    source = iter(messages(3))
    results = client.sms.send_many(source)
    results.stop()
    assert await collect(results) == ([], None)
    assert len(list(source)) == 3
    assert sandbox.requests == []


async def test_stop_between_a_pull_and_its_first_step_loses_nothing(client: SMSIDClient) -> None:
    class Stopping(list[Message]):
        def __iter__(self) -> Iterator[Message]:
            yield from messages(2)
            results.stop()

    results = client.sms.send_many(Stopping(), concurrency=5)
    seen, error = await collect(results)
    assert error is None
    assert sorted(result.index for result in seen) == [0, 1]


async def test_aclose_stops_silently(client: SMSIDClient, sandbox: Sandbox) -> None:
    results = client.sms.send_many(messages(50), concurrency=5)
    await anext(results)
    await results.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    await client.aclose()
    assert 1 <= len(sandbox.messages) <= 6


async def test_cancelling_the_consumer_cancels_what_has_not_left() -> None:
    async with Sandbox(limit=None) as sandbox:
        budget = RateBudget(2, 3600.0, reserve=0)
        async with open_client(sandbox.url, budget=budget) as client:
            task = asyncio.create_task(collect(client.sms.send_many(messages(50))))
            while len(sandbox.messages) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sum(budget.statistics().waiting.values()) == 0
        assert len(sandbox.messages) == 2


async def test_a_source_that_fails_is_raised_after_all_it_gave(client: SMSIDClient) -> None:
    def source() -> Iterator[Message]:
        yield from messages(5)
        raise OSError("disk gone")

    seen, error = await collect(client.sms.send_many(source(), concurrency=2))
    assert isinstance(error, OSError)
    assert [result.outcome for result in seen] == [Outcome.SENT] * 5


async def test_a_source_of_something_else_says_what_to_yield(
    client: SMSIDClient, sandbox: Sandbox
) -> None:
    source = [*messages(1), (NUMBER, "Hello")]
    seen, error = await collect(client.sms.send_many(source))  # type: ignore[arg-type]
    assert isinstance(error, ConfigurationError)
    assert "yield smsid_async.Message" in str(error)
    assert [result.outcome for result in seen] == [Outcome.SENT]


def test_a_wrong_concurrency_or_source_is_refused_at_once() -> None:
    client = SMSIDClient("key")
    for concurrency in (0, -1, True, 1.5):
        with pytest.raises(ConfigurationError, match="concurrency"):
            client.sms.send_many([], concurrency=concurrency)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="yields no Message"):
        client.sms.send_many(17)  # type: ignore[arg-type]


async def test_a_closed_client_stops_it(sandbox: Sandbox) -> None:
    async with open_client(sandbox.url) as client:
        pass
    seen, error = await collect(client.sms.send_many(messages(100), concurrency=3))
    assert isinstance(error, ConfigurationError)
    assert all(result.outcome is Outcome.NOT_SENT for result in seen)
    assert sandbox.requests == []


async def test_a_defect_of_ours_is_not_swallowed(
    client: SMSIDClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(client._pipeline, "request", broken)
    _, error = await collect(client.sms.send_many(messages(3), concurrency=1))
    assert isinstance(error, RuntimeError)


def granted_twice(then: Callable[[], None]) -> Hook:
    grants: list[Event] = []

    def hook(event: Event) -> None:
        if isinstance(event, SlotGranted):
            grants.append(event)
            if len(grants) == 2:
                then()

    return hook


@pytest.mark.parametrize("steps", [0, 3, 6, 9, 12, 20])
async def test_stopped_while_a_second_attempt_leaves_the_first_is_not_forgotten(steps: int) -> None:
    policy = RetryPolicy(retry_unknown=True, backoff=0.0)
    refused = answer(400, {"meta": {"code": 400, "text": "No"}})
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        results.stop()

    hook = granted_twice(lambda: stopping.append(asyncio.create_task(stop())))
    async with RawServer(reset, refused) as server:
        async with SMSIDClient(
            "test",
            base_url=server.url,
            budget=RateBudget.unlimited(),
            retry=policy,
            hooks=[hook],
        ) as client:
            results = client.sms.send_many([Message(NUMBER, "Hello")])
            seen = [result async for result in results]
            await stopping[0]
    assert [result.outcome for result in seen] == [Outcome.UNKNOWN]


async def test_stopped_as_a_429_comes_in_it_is_not_tried_again() -> None:
    def hook(event: Event) -> None:
        if isinstance(event, AttemptFinished) and event.status_code == 429:
            results.stop()

    async with RawServer(answer(429, b"", "Retry-After: 0"), answer(200, SENT)) as server:
        async with SMSIDClient(
            "test", base_url=server.url, budget=RateBudget.unlimited(), hooks=[hook]
        ) as client:
            results = client.sms.send_many([Message(NUMBER, "Hello")])
            seen = [result async for result in results]
        assert len(server.ledger) == 1
    assert [result.outcome for result in seen] == [Outcome.NOT_SENT]
