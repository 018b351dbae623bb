"""The client against the sandbox on a real socket: every call, every documented error."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import warnings
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
import pytest
from conftest import NUMBER
from wire import RawServer, answer, lanes_into, ok

from smsid_async import (
    AuthenticationError,
    BadRequestError,
    BudgetTimeoutError,
    ConfigurationError,
    DeliveryStatus,
    DeliveryTimeoutError,
    InsufficientBalanceError,
    OTPVerificationError,
    Priority,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    SenderNotApprovedError,
    ServerError,
    SMSIDClient,
    SMSIDError,
    ValidationError,
)
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from wire import Script


def open_client(sandbox: Sandbox, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {"budget": RateBudget.unlimited(), "base_url": sandbox.url}
    return SMSIDClient(**({"api_key": "test"} | settings | options))  # type: ignore[arg-type]


# -- every call ----------------------------------------------------------------


async def test_send_returns_the_apis_receipt(client: SMSIDClient, sandbox: Sandbox) -> None:
    receipt = await client.sms.send(NUMBER, "Hello", sender_id="SMSID")

    message = sandbox.messages[0]
    assert (message.to, message.text, message.sender_id) == (NUMBER, "Hello", "SMSID")
    assert receipt.message_id == message.message_id
    assert receipt.status == "success"
    assert receipt.cost == Decimal("0.0400")
    assert receipt.remaining_balance == Decimal("99.9600")
    assert receipt.raw["message_id"] == message.message_id


async def test_status_and_balance(client: SMSIDClient) -> None:
    receipt = await client.sms.send(NUMBER, "Hello")

    status = await client.sms.status(receipt.message_id)
    balance = await client.balance()

    assert status.message_id == receipt.message_id
    assert status.status is DeliveryStatus.QUEUED
    assert not status.is_final
    assert balance.amount == Decimal("99.9600")


@pytest.mark.looptime
async def test_wait_polls_until_the_status_is_final() -> None:
    async with Sandbox(limit=None, delivery=(5.0, 20.0)) as sandbox, open_client(sandbox) as client:
        receipt = await client.sms.send(NUMBER, "Hello")
        final = await client.sms.wait(receipt.message_id, timeout=120)

        polls = [request for request in sandbox.requests if request.path.endswith("/sms/status")]
        pauses = [later.at - poll.at for poll, later in itertools.pairwise(polls)]
    assert final.status is DeliveryStatus.DELIVERED
    assert polls[-1].at - sandbox.messages[0].at >= 20
    assert len(polls) < 12
    assert pauses[-1] > pauses[0]


@pytest.mark.looptime
async def test_wait_gives_up_at_its_timeout_and_tells_the_last_status() -> None:
    async with (
        Sandbox(limit=None, delivery=(5.0, 999.0)) as sandbox,
        open_client(sandbox) as client,
    ):
        receipt = await client.sms.send(NUMBER, "Hello")
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeliveryTimeoutError) as caught:
            await client.sms.wait(receipt.message_id, timeout=30)
        took = asyncio.get_running_loop().time() - began
    assert caught.value.last is not None
    assert caught.value.last.status is DeliveryStatus.SENT
    assert not caught.value.maybe_sent
    assert 29 <= took <= 30


@pytest.mark.looptime
async def test_wait_outlives_what_may_pass() -> None:
    def status(word: str) -> Script:
        return answer(200, ok({"message_id": "M1", "status": word}))

    busy = answer(503, b"")
    scripts = [busy, status("sent"), busy, status("failed")]
    async with RawServer(*scripts) as server:
        async with SMSIDClient(
            "key", base_url=server.url, retry=RetryPolicy(max_attempts=1)
        ) as client:
            final = await client.sms.wait("M1", timeout=None)
        assert len(server.ledger) == 4
    assert final.status is DeliveryStatus.FAILED


@pytest.mark.looptime
async def test_wait_tells_the_trouble_when_it_gives_up() -> None:
    async with RawServer(answer(503, b"")) as server:
        async with SMSIDClient("key", base_url=server.url) as client:
            with pytest.raises(DeliveryTimeoutError, match="no status was seen") as caught:
                await client.sms.wait("M1", timeout=20)
    assert caught.value.last is None
    assert isinstance(caught.value.__cause__, (ServerError, BudgetTimeoutError))


@pytest.mark.looptime
@pytest.mark.parametrize("timeout", [0.3, 0.9, 2.0, 10.0])
async def test_wait_uses_all_its_time(timeout: float) -> None:
    queued = answer(200, ok({"message_id": "M1", "status": "queued"}))
    async with RawServer(queued) as server:
        async with SMSIDClient("key", base_url=server.url) as client:
            began = asyncio.get_running_loop().time()
            with pytest.raises(DeliveryTimeoutError):
                await client.sms.wait("M1", timeout=timeout)
            took = asyncio.get_running_loop().time() - began
    assert took == pytest.approx(timeout, abs=0.01)


@pytest.mark.looptime
async def test_wait_outlives_a_429_and_a_strange_page() -> None:
    final = answer(200, ok({"message_id": "M1", "status": "delivered"}))
    scripts = [answer(429, b"", "Retry-After: 200"), answer(200, b"<html>"), final]
    async with RawServer(*scripts) as server:
        async with SMSIDClient("key", base_url=server.url) as client:
            assert (await client.sms.wait("M1", timeout=600)).is_final


async def test_a_misspelt_option_is_not_ignored(client: SMSIDClient, sandbox: Sandbox) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sender'"):
        await client.sms.send(NUMBER, "Hello", sender="SMSID")  # type: ignore[call-arg]
    assert sandbox.requests == []


async def test_a_message_can_fail(client: SMSIDClient, sandbox: Sandbox) -> None:
    receipt = await client.sms.send("+447700900999", "Hello")
    statuses = {(await client.sms.status(receipt.message_id)).status}
    assert statuses == {DeliveryStatus.QUEUED}


async def test_otp_send_verify_and_check(client: SMSIDClient, sandbox: Sandbox) -> None:
    receipt = await client.otp.send(NUMBER)
    code = sandbox.otp_code(NUMBER)
    wrong = "0" * len(code) if code != "0" * len(code) else "1" * len(code)

    assert (receipt.status, receipt.to) == ("sent", NUMBER)
    assert await client.otp.check(NUMBER, wrong) is False
    verification = await client.otp.verify(NUMBER, code)
    assert verification.verified is True
    assert verification.status == "verified"
    with pytest.raises(OTPVerificationError) as caught:  # a code can be used once
        await client.otp.verify(NUMBER, code)
    assert caught.value.status_code == 422
    assert not caught.value.maybe_sent


async def test_check_is_true_for_the_right_code(client: SMSIDClient, sandbox: Sandbox) -> None:
    await client.otp.send(NUMBER)
    assert await client.otp.check(NUMBER, sandbox.otp_code(NUMBER)) is True


async def test_every_request_is_signed_with_a_secret_gets_included() -> None:
    async with (
        Sandbox(api_secret="s3cret", limit=None) as sandbox,
        open_client(sandbox, api_secret="s3cret") as client,
    ):
        await client.balance()
        await client.sms.send(NUMBER, "Grüße 🎉 „quoted“")
        assert sandbox.messages[0].text == "Grüße 🎉 „quoted“"
        assert [request.status for request in sandbox.requests] == [200, 200]


# -- every documented error ----------------------------------------------------


async def test_a_wrong_key_is_an_authentication_error(sandbox: Sandbox) -> None:
    async with open_client(sandbox, api_key="wrong") as client:
        with pytest.raises(AuthenticationError, match="SMSID_API_KEY") as caught:
            await client.sms.send(NUMBER, "Hello")
    assert caught.value.status_code == caught.value.code == 401
    assert not caught.value.maybe_sent
    assert sandbox.messages == []


async def test_a_wrong_signature_is_an_authentication_error() -> None:
    async with (
        Sandbox(api_secret="right", limit=None) as sandbox,
        open_client(sandbox, api_secret="wrong") as client,
    ):
        with pytest.raises(AuthenticationError):
            await client.balance()


async def test_an_unapproved_sender_has_its_own_error(client: SMSIDClient) -> None:
    with pytest.raises(SenderNotApprovedError) as caught:
        await client.sms.send(NUMBER, "Hello", sender_id="OTHER")
    assert caught.value.status_code == 400
    assert not caught.value.maybe_sent


async def test_an_exhausted_balance_has_its_own_error() -> None:
    async with (
        Sandbox(limit=None, balance=Decimal("0.0500")) as sandbox,
        open_client(sandbox) as client,
    ):
        await client.sms.send(NUMBER, "Hello")
        with pytest.raises(InsufficientBalanceError, match="top up") as caught:
            await client.sms.send(NUMBER, "Hello")
        assert len(sandbox.messages) == 1
    assert not caught.value.maybe_sent


async def test_any_other_400_is_a_bad_request(client: SMSIDClient) -> None:
    with pytest.raises(BadRequestError) as caught:
        await client.sms.status("no-such-message")
    assert type(caught.value) is BadRequestError
    assert caught.value.raw is not None


@pytest.mark.looptime
async def test_a_429_that_stays_is_a_rate_limit_error() -> None:
    policy = RetryPolicy(max_retry_after=10)
    async with Sandbox(limit=1, period=3600.0) as sandbox:
        async with open_client(sandbox, retry=policy) as client:
            await client.balance()
            with pytest.raises(RateLimitError) as caught:
                await client.sms.send(NUMBER, "Hello")
        assert sandbox.messages == []
    assert caught.value.status_code == 429
    assert caught.value.retry_after == pytest.approx(3600, abs=2)
    assert not caught.value.maybe_sent


@pytest.mark.looptime
async def test_a_429_that_passes_is_waited_for() -> None:
    async with Sandbox(limit=1, period=30.0) as sandbox, open_client(sandbox) as client:
        await client.balance()
        began = asyncio.get_running_loop().time()
        await client.sms.send(NUMBER, "Hello")
        assert asyncio.get_running_loop().time() - began >= 29
        assert sandbox.refused == 1
        assert client.budget.statistics().rate_limited == 1


# -- nothing is sent that cannot be right --------------------------------------


@pytest.mark.parametrize(
    ("to", "text", "sender_id"),
    [
        ("07700900123", "Hello", None),
        ("+44 7700 900123", "Hello", None),
        ("", "Hello", None),
        (NUMBER, "", None),
        (NUMBER, "x" * 1601, None),
        (NUMBER, "\ud83d", None),
        (NUMBER, "Hello", "X"),
        (NUMBER, "Hello", "TWELVE CHARS"),
        (NUMBER, "Hello", "A\r\nB"),
    ],
)
async def test_a_wrong_argument_is_refused_before_anything_is_sent(
    client: SMSIDClient, sandbox: Sandbox, to: str, text: str, sender_id: str | None
) -> None:
    with pytest.raises(ValidationError) as caught:
        await client.sms.send(to, text, sender_id=sender_id)
    assert not caught.value.maybe_sent
    assert sandbox.requests == []


async def test_a_reference_needs_a_journal(client: SMSIDClient, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match="journal"):
        await client.sms.send(NUMBER, "Hello", reference="order-17")
    assert sandbox.requests == []


@pytest.mark.parametrize("code", ["", "  ", "12\n34"])
async def test_an_empty_code_is_refused(client: SMSIDClient, sandbox: Sandbox, code: str) -> None:
    with pytest.raises(ValidationError):
        await client.otp.verify(NUMBER, code)
    assert sandbox.requests == []


async def test_an_empty_message_id_is_refused(client: SMSIDClient, sandbox: Sandbox) -> None:
    with pytest.raises(ValidationError):
        await client.sms.status(" ")
    assert sandbox.requests == []


# -- options -------------------------------------------------------------------


def test_constructor_refuses_what_cannot_work() -> None:
    for options in (
        {"timeout": 0},
        {"timeout": float("nan")},
        {"attempt_timeout": -1},
        {"attempt_timeout": None},
        {"max_wait": "5"},
        {"transport": "carrier-pigeon"},
        {"journal": object()},
        {"http_client": object()},
        {"budget": object()},
        {"hooks": 5},
        {"hooks": ["not callable"]},
        {"retry": object()},
        {"sender_id": "X"},
    ):
        with pytest.raises(ConfigurationError):
            SMSIDClient("key", **options)  # type: ignore[arg-type]


def test_constructor_needs_no_event_loop_and_shows_no_key() -> None:
    client = SMSIDClient("top-secret-key", "top-secret-secret")
    assert repr(client) == "<SMSIDClient https://smsid.co.uk/api/v1>"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSID_API_KEY", "key")
    monkeypatch.setenv("SMSID_BASE_URL", "http://127.0.0.1:8025/api/v1/")
    assert repr(SMSIDClient()) == "<SMSIDClient http://127.0.0.1:8025/api/v1>"


async def test_a_view_has_its_own_options_and_shares_the_rest(sandbox: Sandbox) -> None:
    async with open_client(sandbox, sender_id="SMSID") as client:
        view = client.with_options(sender_id="OTHER", timeout=5, priority=Priority.HIGH)
        assert view.budget is client.budget
        with pytest.raises(SenderNotApprovedError):
            await view.sms.send(NUMBER, "Hello")
        await view.aclose()  # closes nothing
        await client.sms.send(NUMBER, "Hello")
        assert [message.sender_id for message in sandbox.messages] == ["SMSID"]


def test_a_view_refuses_unknown_and_wrong_options() -> None:
    client = SMSIDClient("key")
    with pytest.raises(ConfigurationError, match="with_options takes timeout"):
        client.with_options(budget=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="timeout"):
        client.with_options(timeout=-1)
    with pytest.raises(ConfigurationError, match="sender_id"):
        client.with_options(sender_id="X")


async def test_a_call_refuses_wrong_options(client: SMSIDClient, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigurationError, match="max_wait"):
        await client.balance(max_wait=-1)
    with pytest.raises(ConfigurationError, match="priority"):
        await client.balance(priority="high")  # type: ignore[arg-type]
    assert sandbox.requests == []


async def test_lanes_follow_call_then_view_then_method(sandbox: Sandbox) -> None:
    lanes: list[Priority] = []
    async with open_client(sandbox, hooks=[lanes_into(lanes)]) as client:
        await client.otp.send(NUMBER)
        await client.sms.send(NUMBER, "Hello")
        view = client.with_options(priority=Priority.BULK)
        await view.sms.send(NUMBER, "Hello")
        await view.sms.send(NUMBER, "Hello", priority=Priority.HIGH)
    assert lanes == [Priority.HIGH, Priority.NORMAL, Priority.BULK, Priority.HIGH]


@pytest.mark.looptime
async def test_timeout_covers_the_wait_for_the_budget() -> None:
    async with Sandbox(limit=None) as sandbox:
        budget = RateBudget(2, 60.0, reserve=0)
        async with open_client(sandbox, budget=budget) as client:
            await client.balance()
            await client.balance()
            with pytest.raises(BudgetTimeoutError) as caught:
                await client.sms.send(NUMBER, "Hello", timeout=5)
            with pytest.raises(TimeoutError):
                await client.sms.send(NUMBER, "Hello", max_wait=5)
        assert sandbox.messages == []
    assert caught.value.retry_after == pytest.approx(61, abs=1)
    assert not caught.value.maybe_sent


async def test_a_write_is_not_started_with_less_than_a_second_left(
    client: SMSIDClient, sandbox: Sandbox
) -> None:
    with pytest.raises(BudgetTimeoutError, match="a write needs 1 s"):
        await client.sms.send(NUMBER, "Hello", timeout=0.9)
    await client.balance(timeout=0.9)  # a read may
    assert len(sandbox.requests) == 1


# -- lifecycle -----------------------------------------------------------------


async def test_a_closed_client_says_so_and_sends_nothing(sandbox: Sandbox) -> None:
    async with open_client(sandbox) as client:
        pass
    for call in (client.sms.send(NUMBER, "Hello"), client.balance(), client.otp.send(NUMBER)):
        with pytest.raises(ConfigurationError, match="closed"):
            await call
    await client.aclose()  # again is fine
    assert sandbox.requests == []
    assert repr(client).endswith("closed>")


async def test_a_callers_http_client_is_used_and_never_closed(sandbox: Sandbox) -> None:
    async with httpx.AsyncClient() as http_client:
        async with open_client(sandbox, http_client=http_client) as client:
            await client.sms.send(NUMBER, "Hello")
        assert not http_client.is_closed
    async with open_client(sandbox, http_client=http_client) as client:
        with pytest.raises(ConfigurationError, match="closed"):
            await client.sms.send(NUMBER, "Hello")
    assert len(sandbox.messages) == 1


def test_one_client_serves_consecutive_event_loops_without_a_warning() -> None:
    client = SMSIDClient("test", base_url="http://127.0.0.1:1/", budget=RateBudget.unlimited())

    async def session() -> int:
        async with Sandbox(limit=None, port=port) as sandbox:
            await asyncio.gather(*(client.sms.send(NUMBER, "Hello") for _ in range(20)))
            return len(sandbox.messages)

    async def free_port() -> int:
        async with Sandbox() as sandbox:
            return int(sandbox.url.split(":")[2].split("/")[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        port = asyncio.run(free_port())
        client = SMSIDClient(
            "test", base_url=f"http://127.0.0.1:{port}/api/v1", budget=RateBudget.unlimited()
        )
        assert [asyncio.run(session()) for _ in range(5)] == [20] * 5
        gc.collect()


def test_four_threads_with_a_loop_each_keep_one_budget_without_a_warning() -> None:
    budget = RateBudget(40, 1.0, burst=40)
    ready, over = threading.Event(), threading.Event()
    sandboxes: list[Sandbox] = []

    async def serve() -> None:
        async with Sandbox(limit=None) as sandbox:
            sandboxes.append(sandbox)
            url.append(sandbox.url)
            ready.set()
            await asyncio.to_thread(over.wait)

    async def work() -> None:
        async with SMSIDClient("test", base_url=url[0], budget=budget) as client:
            await asyncio.gather(*(client.sms.send(NUMBER, "Hello") for _ in range(20)))

    url: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        server = threading.Thread(target=lambda: asyncio.run(serve()))
        server.start()
        ready.wait()
        workers = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        over.set()
        server.join()
    assert len(sandboxes[0].messages) == 80
    assert sandboxes[0].largest_count(1.0) <= 40


def test_closing_in_another_loop_leaves_the_connections_to_their_own() -> None:
    async def use() -> SMSIDClient:
        async with RawServer(answer(200, ok({"balance": 1}))) as server:
            client = SMSIDClient("key", base_url=server.url)
            await client.balance()
        return client

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(use())
    asyncio.run(client.aclose())
    assert client._pipeline.open_connections
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert not client._pipeline.open_connections


def test_a_client_is_for_one_running_loop_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Sandbox(limit=None) as sandbox, open_client(sandbox) as client:
            await client.balance()

            def elsewhere() -> None:
                asyncio.run(client.balance())

            with pytest.raises(ConfigurationError, match="one client for each loop"):
                await asyncio.to_thread(elsewhere)

    asyncio.run(main())


async def test_a_forgotten_client_warns(sandbox: Sandbox) -> None:
    client = open_client(sandbox)
    await client.balance()
    clients = [client]
    del client
    with pytest.warns(ResourceWarning, match="was not closed"):
        clients.clear()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_client_that_never_sent_needs_no_closing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SMSIDClient("key")
        gc.collect()


async def test_clients_of_one_key_share_one_budget_unless_given_another() -> None:
    one, same = SMSIDClient("key-1"), SMSIDClient("key-1")
    other_key, other_place = SMSIDClient("key-2"), SMSIDClient("key-1", base_url="http://[::1]:9")
    own = SMSIDClient("key-1", budget=RateBudget())
    assert one.budget is same.budget
    assert len({id(client.budget) for client in (one, other_key, other_place, own)}) == 4


async def test_a_thousand_sends_at_once_all_succeed(sandbox: Sandbox) -> None:
    async with open_client(sandbox) as client:
        receipts = await asyncio.gather(*(client.sms.send(NUMBER, "x") for _ in range(1000)))
    assert len({receipt.message_id for receipt in receipts}) == 1000
    assert len(sandbox.messages) == 1000


async def test_nothing_but_our_errors_comes_out(client: SMSIDClient) -> None:
    with pytest.raises(SMSIDError):
        await client.sms.send(None, None)  # type: ignore[arg-type]
