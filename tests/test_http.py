"""What an answer, a fault or a cancellation means: the pipeline on real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
import respx
from conftest import NUMBER
from wire import SENT, RawServer, answer, hang, ok, only_ends, raw, reset

from smsid_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    BudgetStatistics,
    BudgetTimeoutError,
    BudgetUnavailableError,
    ConfigurationError,
    InvalidResponseError,
    Message,
    NotSentError,
    OTPVerificationError,
    Outcome,
    OutcomeUnknownError,
    Priority,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    ServerError,
    SMSIDClient,
    SMSIDError,
    TransportError,
)
from smsid_async._exchange import Exchange
from smsid_async.hooks import HoldStarted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wire import Arrival, Script

    from smsid_async.hooks import AttemptFinished, Event

QUICK = RetryPolicy(backoff=0.001, max_backoff=0.001)


def envelope(code: int, text: str = "No") -> dict[str, object]:
    return {"meta": {"code": code, "text": text}}


def open_client(url: str, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {"budget": RateBudget.unlimited(), "retry": QUICK}
    return SMSIDClient("key-canary", base_url=url, **(settings | options))  # type: ignore[arg-type]


async def send(client: SMSIDClient) -> object:
    return await client.sms.send(NUMBER, "text-canary")


# -- answers -------------------------------------------------------------------

UNKNOWN_FOR_WRITES: dict[str, Script] = {
    "500": answer(500, envelope(500)),
    "502 with a page": answer(502, b"<html>Bad gateway</html>"),
    "503": answer(503, b""),
    "504": answer(504, b""),
    "400 without the envelope": answer(400, b"<html>Bad request</html>"),
    "401 without the envelope": answer(401, b""),
    "403 without the envelope": answer(403, b"Forbidden"),
    "422 without the envelope": answer(422, b"{}"),
    "400 that says 200": answer(400, envelope(200)),
    "201": answer(201, SENT),
    "204": answer(204, b""),
    "301": answer(301, b"", "Location: http://127.0.0.1:1/"),
    "302": answer(302, b"", "Location: http://127.0.0.1:1/"),
    "307": answer(307, b"", "Location: http://127.0.0.1:1/"),
    "308": answer(308, b"", "Location: http://127.0.0.1:1/"),
    "200 with another code": answer(200, envelope(400)),
    "200 with a page": answer(200, b"<html>Welcome to the hotel's network</html>"),
    "200 empty": answer(200, b""),
    "200 without data": answer(200, envelope(200)),
    "200 without message_id": answer(200, ok({"status": "success"})),
    "200 with message_id 17": answer(200, ok({"message_id": 17})),
    "200 with a cost of true": answer(200, ok({"message_id": "M1", "cost": True})),
    "200 compressed": answer(200, SENT, "Content-Encoding: gzip"),
    "200 too large": answer(200, b" " * (1 << 20) + b"{}"),
    "200 truncated": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
    "reset after the body was read": reset,
    "closed without an answer": raw(b""),
    "half a status line": raw(b"HTTP/1.1 2"),
    "half the headers": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "garbage": raw(b"\x00\xff\x00 not HTTP at all\r\n\r\n"),
    "huge headers": raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
    "a broken chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"),
    "a wrong Content-Length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
}


@pytest.mark.parametrize("script", UNKNOWN_FOR_WRITES.values(), ids=UNKNOWN_FOR_WRITES.keys())
async def test_a_write_whose_outcome_is_unknown_says_so_and_is_posted_once(script: Script) -> None:
    async with RawServer(script) as server, open_client(server.url) as client:
        with pytest.raises(OutcomeUnknownError) as caught:
            await send(client)
        assert len(server.ledger) == 1
    assert caught.value.maybe_sent
    assert caught.value.__cause__ is not None
    for canary in (NUMBER, "text-canary", "key-canary"):
        assert canary not in f"{caught.value!r} {caught.value.__cause__!r}"


REFUSED: dict[str, tuple[Script, type[APIError]]] = {
    "400": (answer(400, envelope(400)), BadRequestError),
    "401": (answer(401, envelope(401)), AuthenticationError),
    "403": (answer(403, envelope(403)), APIError),
    "422 of a send": (answer(422, envelope(422)), BadRequestError),
}


@pytest.mark.parametrize(("script", "kind"), REFUSED.values(), ids=REFUSED.keys())
async def test_an_enveloped_refusal_is_a_promise(script: Script, kind: type[APIError]) -> None:
    async with RawServer(script) as server, open_client(server.url) as client:
        with pytest.raises(kind) as caught:
            await send(client)
        assert len(server.ledger) == 1
    assert type(caught.value) is kind
    assert not caught.value.maybe_sent


async def test_only_verify_takes_a_422_for_a_wrong_code() -> None:
    async with RawServer(answer(422, envelope(422))) as server, open_client(server.url) as client:
        with pytest.raises(OTPVerificationError):
            await client.otp.verify(NUMBER, "123456")
        assert await client.otp.check(NUMBER, "123456") is False
        with pytest.raises(BadRequestError):
            await client.otp.send(NUMBER)


@pytest.mark.parametrize("verified", ["true", 1, None, [], {}])
async def test_verify_fails_closed_on_a_malformed_success(verified: object) -> None:
    body = ok({"status": "verified", "verified": verified})
    async with RawServer(answer(200, body)) as server, open_client(server.url) as client:
        with pytest.raises(OutcomeUnknownError):
            await client.otp.verify(NUMBER, "123456")
        with pytest.raises(OutcomeUnknownError):
            await client.otp.check(NUMBER, "123456")


async def test_a_plain_verified_false_raises_and_is_no_422() -> None:
    body = ok({"status": "failed", "verified": False})
    async with RawServer(answer(200, body)) as server, open_client(server.url) as client:
        with pytest.raises(OTPVerificationError):
            await client.otp.check(NUMBER, "123456")


async def test_undocumented_fields_pass_and_money_may_be_a_number() -> None:
    body = b'{"meta":{"code":200,"x":1},"data":{"message_id":"M1","cost":0.04,"more":[1]},"y":2}'
    async with RawServer(answer(200, body)) as server, open_client(server.url) as client:
        receipt = await client.sms.send(NUMBER, "Hello")
    assert str(receipt.cost) == "0.04"
    assert receipt.remaining_balance is None
    assert receipt.status == ""


async def test_what_the_call_sent_is_masked_in_the_servers_words() -> None:
    text = f"{NUMBER} or text-canary is bad, key-canary\r\n\x1b[31m"
    async with RawServer(answer(400, envelope(400, text))) as server:
        async with open_client(server.url) as client:
            with pytest.raises(BadRequestError) as caught:
                await send(client)
    for canary in (NUMBER, "text-canary", "key-canary", "\n", "\x1b"):
        assert canary not in str(caught.value)
        assert canary not in caught.value.text


# -- reads ---------------------------------------------------------------------


@pytest.mark.parametrize("script", [answer(500, b""), reset, raw(b"")], ids=["500", "reset", "eof"])
async def test_a_read_is_tried_again_after_an_ambiguous_failure(script: Script) -> None:
    good = answer(200, ok({"balance": "1.50"}))
    async with RawServer(script, script, good) as server, open_client(server.url) as client:
        assert str((await client.balance()).amount) == "1.50"
        assert len(server.ledger) == 3


@pytest.mark.parametrize(
    ("script", "kind"), [(answer(503, b""), ServerError), (reset, TransportError)]
)
async def test_a_read_fails_in_the_end_without_a_doubt(
    script: Script, kind: type[SMSIDError]
) -> None:
    async with RawServer(script) as server, open_client(server.url) as client:
        with pytest.raises(kind) as caught:
            await client.balance()
        assert len(server.ledger) == 4
    assert not caught.value.maybe_sent
    assert not isinstance(caught.value, OutcomeUnknownError)


async def test_a_read_says_when_the_answer_is_not_the_apis() -> None:
    script = answer(404, b"<html>Not found</html>")
    async with RawServer(script) as server, open_client(server.url) as client:
        with pytest.raises(InvalidResponseError, match="HTTP 404"):
            await client.balance()
        assert len(server.ledger) == 1


@pytest.mark.looptime
async def test_a_503_of_a_read_is_given_the_time_it_asks_for() -> None:
    busy = answer(503, b"", "Retry-After: 7")
    async with RawServer(busy, answer(200, ok({"balance": 1}))) as server:
        async with open_client(server.url) as client:
            began = asyncio.get_running_loop().time()
            await client.balance()
            assert 7 <= asyncio.get_running_loop().time() - began < 8


# -- what never left -----------------------------------------------------------


async def test_a_refused_connection_was_not_sent_and_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    attempts: list[AttemptFinished] = []
    budget = RateBudget(reserve=0)
    async with open_client(
        f"http://127.0.0.1:{port}", hooks=[only_ends(attempts)], budget=budget
    ) as client:
        with pytest.raises(NotSentError) as caught:
            await send(client)
    assert not caught.value.maybe_sent
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert [event.attempt for event in attempts] == [1, 2, 3, 4]
    assert {event.outcome for event in attempts} == {Outcome.NOT_SENT}
    assert budget.statistics().free == 120  # each slot went back at once


async def test_a_connection_that_hangs_is_not_sent_within_the_attempts_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        once = RetryPolicy(max_attempts=1)
        async with open_client(
            f"http://127.0.0.1:{address[1]}", attempt_timeout=0.3, retry=once
        ) as client:
            with pytest.raises(NotSentError, match=r"no answer within 0\.3 s"):
                await send(client)
        for filler in fillers:
            filler.close()


async def test_an_answer_that_never_comes_is_unknown_after_the_attempts_time() -> None:
    async with RawServer(hang) as server:
        async with open_client(server.url, attempt_timeout=0.2) as client:
            with pytest.raises(OutcomeUnknownError, match=r"no answer within 0\.2 s") as caught:
                await send(client)
        assert len(server.ledger) == 1
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_body_that_drips_ends_with_the_attempt() -> None:
    async def drip(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with RawServer(drip) as server:
        async with open_client(server.url, attempt_timeout=0.3) as client:
            began = asyncio.get_running_loop().time()
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            assert asyncio.get_running_loop().time() - began < 0.6


@pytest.mark.looptime
async def test_the_calls_own_timeout_bounds_the_exchange_too() -> None:
    async with RawServer(hang) as server, open_client(server.url) as client:
        began = asyncio.get_running_loop().time()
        with pytest.raises(OutcomeUnknownError):
            await client.sms.send(NUMBER, "Hello", timeout=5)
        assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.1)


async def test_what_an_unknown_transport_quotes_is_not_shown() -> None:
    words = "Grüße an alle"

    def quote(request: httpx.Request) -> httpx.Response:
        raise LookupError(f"bad: {request.content!r}")

    async with httpx.AsyncClient(transport=httpx.MockTransport(quote)) as http_client:
        async with open_client("http://localhost", http_client=http_client) as client:
            with pytest.raises(OutcomeUnknownError) as caught:
                await client.sms.send(NUMBER, words)
    shown = "".join(traceback.format_exception(caught.value))
    assert "builtins.LookupError" in shown
    assert NUMBER not in shown
    assert "an alle" not in shown.replace('words = "Grüße an alle"', "")


# -- 429 -----------------------------------------------------------------------


@pytest.mark.looptime
async def test_a_429_holds_everybody_and_is_tried_again_in_its_turn() -> None:
    no = answer(429, envelope(429), "Retry-After: 20")
    async with RawServer(no, answer(200, SENT)) as server:
        events: list[Event] = []
        times: list[float] = []

        def hook(event: Event) -> None:
            events.append(event)
            times.append(asyncio.get_running_loop().time())

        async with open_client(server.url, hooks=[hook]) as client:
            await asyncio.gather(send(client), _later(client, 5))
        assert len(server.ledger) == 3
    names = [type(event).__name__ for event in events]
    assert names[:3] == ["SlotGranted", "HoldStarted", "AttemptFinished"]
    assert events[1] == HoldStarted(seconds=20.0, asked=20.0)
    assert names[3:].count("SlotGranted") == names[3:].count("AttemptFinished") == 2
    assert min(times[3:]) >= 20


async def _later(client: SMSIDClient, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await send(client)


BROKEN_REFUSALS: dict[str, Script] = {
    "a page": answer(429, b"<html>Slow down</html>"),
    "no body": answer(429, b""),
    "truncated": raw(b"HTTP/1.1 429 No\r\nContent-Length: 500\r\n\r\n{"),
    "compressed": answer(429, b"\x1f\x8b", "Content-Encoding: gzip"),
    "never ending": raw(b"HTTP/1.1 429 No\r\nContent-Length: 500\r\n\r\n{", close=False),
}


@pytest.mark.looptime
@pytest.mark.parametrize("script", BROKEN_REFUSALS.values(), ids=BROKEN_REFUSALS.keys())
async def test_any_429_is_a_refusal_whatever_its_body(script: Script) -> None:
    async with RawServer(script, answer(200, SENT)) as server, open_client(server.url) as client:
        await send(client)
        assert len(server.ledger) == 2
        assert client.budget.statistics().rate_limited == 1


async def test_a_429_whose_body_hangs_is_a_refusal_even_in_a_short_attempt() -> None:
    hanging = raw(b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 500\r\n\r\n{", close=False)
    async with RawServer(hanging, answer(200, SENT)) as server:
        async with open_client(server.url, attempt_timeout=0.4) as client:
            await send(client)
            assert client.budget.statistics().rate_limited == 1


@pytest.mark.looptime
async def test_429s_end_after_the_policys_number_of_them() -> None:
    policy = RetryPolicy(rate_limit_attempts=3)
    async with RawServer(answer(429, b"")) as server:
        async with open_client(server.url, retry=policy) as client:
            with pytest.raises(RateLimitError) as caught:
                await send(client)
        assert len(server.ledger) == 3
    assert not caught.value.maybe_sent


@pytest.mark.looptime
async def test_a_hold_longer_than_the_calls_time_is_a_budget_timeout() -> None:
    async with RawServer(answer(429, b"", "Retry-After: 60")) as server:
        async with open_client(server.url) as client:
            with pytest.raises(BudgetTimeoutError) as caught:
                await client.sms.send(NUMBER, "Hello", timeout=10)
        assert len(server.ledger) == 1
    assert caught.value.retry_after == pytest.approx(60, abs=1)


# -- retry_unknown -------------------------------------------------------------


async def test_unknown_is_repeated_only_if_the_policy_says_so() -> None:
    policy = RetryPolicy(retry_unknown=True, backoff=0.001, max_backoff=0.001)
    async with RawServer(reset, answer(200, SENT)) as server:
        async with open_client(server.url, retry=policy) as client:
            await send(client)
        assert len(server.ledger) == 2


async def test_a_refusal_after_a_doubt_stays_a_doubt() -> None:
    policy = RetryPolicy(retry_unknown=True, backoff=0.001, max_backoff=0.001)
    async with RawServer(reset, answer(400, envelope(400))) as server:
        async with open_client(server.url, retry=policy) as client:
            with pytest.raises(OutcomeUnknownError) as caught:
                await send(client)
    assert isinstance(caught.value.__cause__, BadRequestError)


async def test_what_a_cancelled_call_left_behind_keeps_the_doubt_of_an_earlier_attempt() -> None:
    policy = RetryPolicy(retry_unknown=True, backoff=0.001, max_backoff=0.001)
    gate = asyncio.Event()

    async def refuse_late(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(400, envelope(400))(arrival, writer)

    async with RawServer(reset, refuse_late) as server:
        async with open_client(server.url, retry=policy) as client:
            call = client.sms._send_call(Message(NUMBER, "Hello"), lane=Priority.BULK)
            await cancelled(client._pipeline.request(call), lambda: len(server.ledger) == 2)
            gate.set()
            with pytest.raises(OutcomeUnknownError) as caught:
                await client._pipeline.settle(call)
    assert isinstance(caught.value.__cause__, BadRequestError)


async def test_no_retry_starts_that_would_come_too_late() -> None:
    policy = RetryPolicy(backoff=1000.0, max_backoff=1000.0)
    async with RawServer(answer(503, b"")) as server:
        async with open_client(server.url, retry=policy) as client:
            with pytest.raises(ServerError):
                await client.balance(timeout=0.2)
        assert len(server.ledger) == 1


# -- cancellation --------------------------------------------------------------


async def cancelled(awaitable: Awaitable[object], when: Callable[[], bool]) -> BaseException:
    task = asyncio.ensure_future(awaitable)
    while not when():
        await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        return error
    raise AssertionError("not cancelled")


async def test_cancelled_after_it_left_the_exchange_finishes_by_itself() -> None:
    gate = asyncio.Event()

    async def slow(arrival: object, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(200, SENT)(arrival, writer)  # type: ignore[arg-type]

    events: list[AttemptFinished] = []
    budget = RateBudget(reserve=0)
    async with RawServer(slow) as server:
        client = open_client(server.url, hooks=[only_ends(events)], budget=budget)
        error = await cancelled(send(client), lambda: len(server.ledger) == 1)
        assert error.maybe_sent is True  # type: ignore[attr-defined]
        assert events == []
        assert budget.statistics().in_flight == 1
        gate.set()
        await client.aclose()  # waits for it
    assert [event.outcome for event in events] == [Outcome.SENT]
    assert budget.statistics().in_flight == 0


async def test_cancelled_while_waiting_for_the_budget_nothing_was_sent() -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, budget=RateBudget(1, 60.0)) as client:
            await send(client)
            error = await cancelled(
                send(client), lambda: sum(client.budget.statistics().waiting.values()) == 1
            )
            assert sum(client.budget.statistics().waiting.values()) == 0
        assert len(server.ledger) == 1
    assert error.maybe_sent is False  # type: ignore[attr-defined]


async def test_cancelled_while_connecting_nothing_was_sent_and_the_pool_is_whole() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        budget = RateBudget(reserve=0)
        async with open_client(f"http://127.0.0.1:{port}", budget=budget) as client:
            error = await cancelled(send(client), lambda: budget.statistics().in_flight == 1)
            assert budget.statistics().in_flight == 0
            assert budget.statistics().free == 120
        for filler in fillers:
            filler.close()
    assert error.maybe_sent is False  # type: ignore[attr-defined]


async def test_a_timeout_of_the_callers_carries_maybe_sent_on_its_cause() -> None:
    async def let_time_run_out(_: object, __: object) -> None:
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    async with RawServer(let_time_run_out) as server:
        async with open_client(server.url, attempt_timeout=0.3) as client:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(30) as limit:
                    await send(client)
        assert len(server.ledger) == 1
    assert caught.value.__cause__.maybe_sent is True  # type: ignore[union-attr]


async def test_reads_that_are_cancelled_never_leave_a_doubt() -> None:
    async with RawServer(hang) as server:
        async with open_client(server.url, attempt_timeout=0.2) as client:
            error = await cancelled(client.balance(), lambda: len(server.ledger) == 1)
    assert error.maybe_sent is False  # type: ignore[attr-defined]


async def test_a_request_does_not_leave_once_its_call_was_ended() -> None:
    request = httpx.Request("POST", "http://localhost")
    exchange = Exchange(
        call=None,  # type: ignore[arg-type]
        slot=OwnSlot([], held=False),
        waited=0.0,
        started=0.0,
        scope=anyio.CancelScope(),
        done=asyncio.get_running_loop().create_future(),
        transport_traces=True,
    )
    exchange.scope.cancel()
    with pytest.raises(NotSentError):
        await exchange.trace("http11.send_request_headers.started", {"request": request})
    assert not exchange.may_have_left


async def test_many_cancellations_leave_no_slot_no_task_and_no_stuck_connection() -> None:
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget.unlimited(max_in_flight=5)
        async with open_client(server.url, budget=budget) as client:
            for round_ in range(60):
                tasks = [asyncio.create_task(send(client)) for _ in range(10)]
                for _ in range(round_ % 7):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            before = len(server.ledger)
            await asyncio.gather(*(send(client) for _ in range(50)))
            assert len(server.ledger) >= before + 50
            assert budget.statistics().in_flight == 0


def test_a_loop_that_ends_with_calls_under_way_leaves_no_slot_taken() -> None:
    budget = RateBudget(reserve=0)
    clients = []  # kept, so that they end with their loops and not before

    async def one_has_left() -> None:
        async with RawServer(hang) as server:
            clients.append(open_client(server.url, budget=budget))
            task = asyncio.create_task(send(clients[-1]))
            while not server.ledger:
                await asyncio.sleep(0.001)
            task.cancel()  # the exchange goes on, until the loop ends

    async def one_only_begins() -> None:
        once = RetryPolicy(max_attempts=1)
        clients.append(open_client("http://127.0.0.1:1", budget=budget, retry=once))
        task = asyncio.create_task(send(clients[-1]))
        await asyncio.sleep(0)
        assert budget.statistics().in_flight == 1
        for exchange in clients[-1]._pipeline._tasks:
            exchange.cancel()  # as a loop does that shuts down
        with pytest.raises(NotSentError):
            await task

    asyncio.run(one_has_left())
    asyncio.run(one_only_begins())
    statistics = budget.statistics()
    assert statistics.in_flight == 0
    assert statistics.free == 119


# -- other transports ----------------------------------------------------------


async def test_a_transport_without_a_trace_leaves_a_doubt_whatever_it_raises() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("too slow", request=request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as http_client:
        async with open_client("http://localhost", http_client=http_client) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)


async def test_a_callers_client_with_httpxs_own_transport_knows_what_never_left() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with httpx.AsyncClient(follow_redirects=True, auth=("user", "pass")) as http_client:
        url = f"http://127.0.0.1:{port}"
        async with open_client(url, http_client=http_client) as client:
            with pytest.raises(NotSentError):
                await send(client)


async def test_a_wrapped_transport_that_traces_only_part_leaves_a_doubt() -> None:
    class Fallback(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await request.extensions["trace"]("connection.connect_tcp.started", {})
            raise httpx.ConnectError("the first way failed, and the second was not traced")

    async with httpx.AsyncClient(transport=Fallback()) as http_client:
        async with open_client("http://localhost", http_client=http_client) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)


async def test_redirects_are_never_followed_not_even_by_a_callers_client() -> None:
    async with RawServer(answer(200, SENT)) as elsewhere:
        there = answer(307, b"", f"Location: {elsewhere.url}/sms/send")
        async with (
            RawServer(there) as server,
            httpx.AsyncClient(follow_redirects=True) as http_client,
            open_client(server.url, http_client=http_client) as client,
        ):
            with pytest.raises(OutcomeUnknownError):
                await send(client)
        assert elsewhere.connections == 0


async def test_a_mock_of_httpx_works_without_a_server() -> None:
    with respx.mock(base_url="http://localhost/api/v1") as mock:
        route = mock.post("/sms/send").respond(json=SENT)
        async with open_client("http://localhost/api/v1") as client:
            receipt = await client.sms.send(NUMBER, "Hello")
            assert receipt.message_id == "M1"
            route.side_effect = httpx.ReadTimeout
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            route.side_effect = httpx.ConnectError
            with pytest.raises(NotSentError):
                await send(client)
    assert route.call_count == 1 + 1 + 4


async def test_any_foreign_exception_is_mapped() -> None:
    def explode(_: httpx.Request) -> httpx.Response:
        raise LookupError("something odd")

    async with httpx.AsyncClient(transport=httpx.MockTransport(explode)) as http_client:
        async with open_client("http://localhost", http_client=http_client) as client:
            with pytest.raises(OutcomeUnknownError) as caught:
                await send(client)
    assert isinstance(caught.value.__cause__, LookupError)


async def test_proxies_are_passed_by_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        await send(client)
        assert len(server.ledger) == 1


async def test_an_answer_that_an_event_hook_has_read_is_read_all_the_same() -> None:
    async def read_it(response: httpx.Response) -> None:
        await response.aread()

    async with (
        RawServer(answer(200, SENT)) as server,
        httpx.AsyncClient(event_hooks={"response": [read_it]}) as http_client,
        open_client(server.url, http_client=http_client) as client,
    ):
        assert (await client.sms.send(NUMBER, "Hello")).message_id == "M1"


# -- a budget of the caller's --------------------------------------------------


class OwnSlot:
    """A slot that notes how it ended, and may be held at the last moment."""

    def __init__(self, ends: list[str], *, held: bool) -> None:
        self.ends = ends
        self.held = held

    def answered(self) -> None:
        self.ends.append("answered")

    def given_up(self) -> None:
        self.ends.append("given up")

    def unused(self) -> None:
        self.ends.append("unused")


class OwnBudget:
    """The smallest budget there is; its first slots are held."""

    def __init__(self, *, held: int = 0) -> None:
        self.ends: list[str] = []
        self.holds: list[float] = []
        self.held = held

    async def acquire(
        self, priority: Priority = Priority.NORMAL, max_wait: float | None = None
    ) -> OwnSlot:
        self.held -= 1
        return OwnSlot(self.ends, held=self.held >= 0)

    def hold(self, seconds: float) -> None:
        self.holds.append(seconds)

    def statistics(self) -> BudgetStatistics:
        return BudgetStatistics(1, 1.0, 1, 0, {}, 0.0, 0, 1.0)

    async def aclose(self) -> None:
        self.ends.append("closed")


async def test_a_budget_of_the_callers_is_told_how_each_request_ended() -> None:
    budget = OwnBudget()
    no = answer(429, b"", "Retry-After: 3")
    async with RawServer(no, answer(502, b""), answer(200, SENT)) as server:
        async with open_client(server.url, budget=budget) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            await send(client)
    assert budget.ends == ["answered", "given up", "answered"]
    assert budget.holds == [3.0]


@pytest.mark.parametrize("broken", ["answered", "hold"])
async def test_a_budget_that_fails_changes_no_outcome_and_nobody_hangs(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("the store is gone")

    monkeypatch.setattr(OwnSlot if broken == "answered" else OwnBudget, broken, fail)
    no = answer(429, b"", "Retry-After: 0")
    async with RawServer(no, answer(200, SENT)) as server:
        async with open_client(server.url, budget=OwnBudget()) as client:
            receipt = await asyncio.wait_for(client.sms.send(NUMBER, "Hello"), timeout=5)
    assert receipt.message_id == "M1"
    assert "the budget raised LookupError" in caplog.text


async def test_a_budget_that_raises_is_one_of_our_errors_and_nothing_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> OwnSlot:
        raise LookupError("redis://:secret@store")

    monkeypatch.setattr(OwnBudget, "acquire", fail)
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, budget=OwnBudget()) as client:
            with pytest.raises(BudgetUnavailableError, match="LookupError") as caught:
                await send(client)
        assert server.ledger == []
    assert not caught.value.maybe_sent
    assert isinstance(caught.value.__cause__, LookupError)
    assert "secret" not in str(caught.value)


async def test_a_budget_made_from_ours_may_raise_anything_too() -> None:
    class Remote(RateBudget):
        async def acquire(self, *_: object, **__: object) -> OwnSlot:  # type: ignore[override]
            raise ConnectionError("the store is gone")

    async with open_client("http://localhost", budget=Remote()) as client:
        with pytest.raises(BudgetUnavailableError, match="ConnectionError"):
            await send(client)


async def test_a_budget_may_raise_our_own_errors() -> None:
    class Full(OwnBudget):
        async def acquire(
            self, priority: Priority = Priority.NORMAL, max_wait: float | None = None
        ) -> OwnSlot:
            raise BudgetTimeoutError("full", retry_after=1.0)

    async with open_client("http://localhost", budget=Full()) as client:
        with pytest.raises(BudgetTimeoutError, match="full"):
            await send(client)


async def test_a_request_that_a_hold_meets_before_it_leaves_goes_back_into_the_queue() -> None:
    budget = OwnBudget(held=2)
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, budget=budget) as client:
            await send(client)
        assert len(server.ledger) == 1
    assert budget.ends == ["unused", "unused", "answered"]


async def test_a_call_that_waits_while_the_callers_client_is_closed_is_not_sent() -> None:
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget(1, 60.0)
        http_client = httpx.AsyncClient()
        client = open_client(server.url, budget=budget, http_client=http_client)
        holder = await budget.acquire()
        waiting = asyncio.create_task(send(client))
        await asyncio.sleep(0)
        await http_client.aclose()
        holder.unused()
        with pytest.raises(ConfigurationError, match="closed"):
            await waiting


async def test_two_may_close_a_client_at_once() -> None:
    async with RawServer(answer(200, SENT)) as server:
        client = open_client(server.url)
        await send(client)
        await asyncio.gather(client.aclose(), client.aclose(), client.aclose())


async def test_a_call_that_waits_while_the_client_is_closed_is_not_sent() -> None:
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget(1, 60.0)
        client = open_client(server.url, budget=budget)
        holder = await budget.acquire()
        waiting = asyncio.create_task(send(client))
        await asyncio.sleep(0)
        await client.aclose()
        holder.unused()
        with pytest.raises(ConfigurationError, match="closed"):
            await waiting
        assert server.ledger == []
    assert budget.statistics().free == 1


# -- the wire ------------------------------------------------------------------


async def test_the_request_is_what_the_reference_documents() -> None:
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        await client.sms.send(NUMBER, "Grüße", sender_id="SMSID")
        with pytest.raises(InvalidResponseError):
            await client.balance()
    post, get = server.ledger
    assert post.line == "POST /api/v1/sms/send HTTP/1.1"
    assert post.headers["x-api-key"] == "key-canary"
    assert post.headers["content-type"] == "application/json"
    assert post.headers["accept-encoding"] == "identity"
    assert "x-api-sign" not in post.headers
    expected = f'{{"to":"{NUMBER}","message":"Grüße","sender_id":"SMSID"}}'
    assert post.body == expected.encode()
    assert get.line == "GET /api/v1/balance HTTP/1.1"
    assert get.body == b""


async def test_a_connection_is_used_again() -> None:
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        for _ in range(5):
            await send(client)
        assert server.connections == 1


# -- observers -----------------------------------------------------------------


async def test_each_attempt_is_one_debug_line_without_private_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        await send(client)
    lines = [record.getMessage() for record in caplog.records if record.name == "smsid_async"]
    assert len(lines) == 1
    assert lines[0].startswith("POST /sms/send 200 in ")
    for canary in (NUMBER, "text-canary", "key-canary"):
        assert canary not in caplog.text


async def test_a_call_on_its_way_shows_nothing_private() -> None:
    shown: list[str] = []

    async def look(request: httpx.Request) -> None:
        shown.append(repr(request.extensions))

    async with (
        RawServer(answer(200, SENT)) as server,
        httpx.AsyncClient(event_hooks={"request": [look]}) as http_client,
        open_client(server.url, http_client=http_client) as client,
    ):
        await send(client)
    assert "trace" in shown[0]
    for canary in (NUMBER, "text-canary", "key-canary"):
        assert canary not in shown[0]


async def test_a_hook_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("text-canary")

    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, hooks=[broken]) as client:
            await send(client)
    assert "raised RuntimeError" in caplog.text
    assert "text-canary" not in caplog.text


QUIET = """
import asyncio, smsid_async
from smsid_async import *

async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with SMSIDClient("test", base_url=url, attempt_timeout=5) as client:
        try:
            await client.sms.send("+447700900123", "Hello")
        except OutcomeUnknownError:
            print("unknown")

asyncio.run(main())
"""


def test_it_is_quiet_unless_the_program_wants_to_hear_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (b"unknown\n", b"")


async def test_an_unknown_outcome_and_a_hold_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    no = answer(429, b"", "Retry-After: 0")
    async with RawServer(no, reset) as server, open_client(server.url) as client:
        with pytest.raises(OutcomeUnknownError):
            await send(client)
    levels = [record.levelname for record in caplog.records if record.name == "smsid_async"]
    assert levels == ["WARNING", "WARNING"]
