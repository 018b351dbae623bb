"""A program that uses every public call, as its author's type checker sees it. It is never run."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from decimal import Decimal
from typing import assert_type

import httpx

from smsid_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    Balance,
    Budget,
    BudgetStatistics,
    BudgetTimeoutError,
    BudgetUnavailableError,
    CallOptions,
    ConfigurationError,
    DeliveryStatus,
    DeliveryTimeoutError,
    DuplicateReferenceError,
    InsufficientBalanceError,
    InvalidResponseError,
    Journal,
    JournalUnavailableError,
    JSONObject,
    JSONValue,
    Message,
    MessageStatus,
    NotSentError,
    OptionOverrides,
    OTPReceipt,
    OTPVerification,
    OTPVerificationError,
    Outcome,
    OutcomeUnknownError,
    PollOptions,
    Priority,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    Segments,
    SenderNotApprovedError,
    SendMany,
    SendReceipt,
    SendResult,
    ServerError,
    Slot,
    SMSIDClient,
    SMSIDError,
    SQLiteJournal,
    TransportError,
    ValidationError,
    __version__,
    count_segments,
)
from smsid_async.bulk import (
    BadRow,
    BulkJob,
    BulkRun,
    Delivery,
    JobSummary,
    Preparation,
    Row,
    RowResult,
    Source,
    report,
    summarise,
    track,
)
from smsid_async.hooks import AttemptFinished, Event, HoldStarted, Hook, SlotGranted
from smsid_async.journal import Claim

TO = "+447700900123"


class MyBudget:
    """A budget of the program's own: it lets everybody pass."""

    async def acquire(
        self, priority: Priority = Priority.NORMAL, max_wait: float | None = None
    ) -> "MySlot":
        assert_type(priority, Priority)
        assert_type(max_wait, float | None)
        return MySlot()

    def hold(self, seconds: float) -> None:
        assert_type(seconds, float)

    def statistics(self) -> BudgetStatistics:
        return BudgetStatistics(
            limit=1,
            period=1.0,
            free=1,
            in_flight=0,
            waiting={},
            held_for=0.0,
            rate_limited=0,
            rate=1.0,
        )

    async def aclose(self) -> None:
        return None


class MySlot:
    def answered(self) -> None:
        return None

    def given_up(self) -> None:
        return None

    def unused(self) -> None:
        return None


def observe(event: Event) -> None:
    assert_type(event, SlotGranted | HoldStarted | AttemptFinished)
    if isinstance(event, SlotGranted):
        assert_type(event.waited, float)
        assert_type(event.priority, Priority)
        return
    if isinstance(event, HoldStarted):
        assert_type(event.seconds, float)
        assert_type(event.asked, float | None)
        return
    assert_type(event.method, str)
    assert_type(event.path, str)
    assert_type(event.attempt, int)
    assert_type(event.priority, Priority)
    assert_type(event.waited, float)
    assert_type(event.duration, float)
    assert_type(event.status_code, int | None)
    assert_type(event.outcome, Outcome)
    assert_type(event.error, str | None)


def policies() -> RetryPolicy:
    policy = RetryPolicy(
        max_attempts=3,
        rate_limit_attempts=5,
        backoff=0.5,
        max_backoff=30,
        max_retry_after=120.0,
        retry_unknown=False,
    )
    assert_type(policy.max_attempts, int)
    assert_type(policy.rate_limit_attempts, int)
    assert_type(policy.backoff, float)
    assert_type(policy.max_backoff, float)
    assert_type(policy.max_retry_after, float)
    assert_type(policy.retry_unknown, bool)
    return policy


async def budgets(own: Budget) -> RateBudget:
    slot = await own.acquire(Priority.HIGH, 5.0)
    assert_type(slot, Slot)
    slot.unused()
    unlimited = RateBudget.unlimited(max_in_flight=10)
    assert_type(unlimited, RateBudget)
    budget = RateBudget(
        120, 60.0, burst=10, reserve=1, max_in_flight=50, margin=None, linger=None, clock=None
    )
    budget.restore(answered=[1.0, 2.5], given_up=[0.5])
    same: Budget = budget
    same.hold(1.5)
    statistics = budget.statistics()
    assert_type(statistics, BudgetStatistics)
    assert_type(statistics.limit, int)
    assert_type(statistics.period, float)
    assert_type(statistics.free, int)
    assert_type(statistics.in_flight, int)
    assert_type(statistics.waiting, Mapping[Priority, int])
    assert_type(statistics.held_for, float)
    assert_type(statistics.rate_limited, int)
    assert_type(statistics.rate, float)
    await own.aclose()
    return budget


async def construct(http_client: httpx.AsyncClient) -> SMSIDClient:
    hook: Hook = observe
    plain = SMSIDClient()
    own_budget = SMSIDClient("key", "secret", budget=MyBudget())
    await plain.aclose()
    await own_budget.aclose()
    return SMSIDClient(
        "key",
        api_secret="secret",
        base_url="http://localhost:8025/api/v1",
        sender_id="SMSID",
        budget=await budgets(MyBudget()),
        retry=policies(),
        journal=SQLiteJournal("sms.db", account="main", lease=600.0),
        timeout=60,
        attempt_timeout=10.0,
        max_wait=5.0,
        http_client=http_client,
        transport="httpx",
        hooks=[hook, observe],
    )


def with_options(client: SMSIDClient) -> SMSIDClient:
    overrides: OptionOverrides = {"timeout": None, "sender_id": "SMSID"}
    view = client.with_options(
        timeout=1.0,
        attempt_timeout=1.0,
        max_wait=None,
        retry=RetryPolicy(),
        priority=Priority.BULK,
        sender_id=None,
    )
    assert_type(view, SMSIDClient)
    return view.with_options(**overrides)


async def send(client: SMSIDClient) -> None:
    options: CallOptions = {"timeout": 5.0, "priority": Priority.HIGH}
    receipt = await client.sms.send(TO, "Hello")
    assert_type(receipt, SendReceipt)
    assert_type(receipt.message_id, str)
    assert_type(receipt.status, str)
    assert_type(receipt.cost, Decimal | None)
    assert_type(receipt.remaining_balance, Decimal | None)
    assert_type(receipt.raw, JSONObject)
    assert_type(receipt.raw.get("message_id"), JSONValue)
    await client.sms.send(
        TO,
        text="Hello",
        sender_id="SMSID",
        reference=None,
        resend_unknown=False,
        priority=Priority.NORMAL,
        timeout=10,
        attempt_timeout=5.0,
        max_wait=None,
    )
    assert_type(await client.sms.send(TO, "Hello", **options), SendReceipt)


async def follow(client: SMSIDClient) -> None:
    options: PollOptions = {"max_wait": 5.0}
    status = await client.sms.status("id", timeout=5.0, priority=None)
    assert_type(status, MessageStatus)
    assert_type(status.message_id, str)
    assert_type(status.status, DeliveryStatus)
    assert_type(status.is_final, bool)
    assert_type(status.raw, JSONObject)
    assert_type(status.status.is_final, bool)
    if status.status is DeliveryStatus.DELIVERED:
        return
    assert_type(await client.sms.wait("id"), MessageStatus)
    assert_type(await client.sms.wait("id", timeout=None), MessageStatus)
    assert_type(await client.sms.wait("id", timeout=120, attempt_timeout=5.0), MessageStatus)
    assert_type(await client.sms.wait("id", **options), MessageStatus)


def from_a_list() -> Iterator[Message]:
    yield Message(TO, "Hello")
    yield Message(to=TO, text="Hello", sender_id="SMSID", reference="order-17")


async def from_a_stream() -> AsyncIterator[Message]:
    for message in from_a_list():
        assert_type(message.to, str)
        assert_type(message.text, str)
        assert_type(message.sender_id, str | None)
        assert_type(message.reference, str | None)
        yield message
        await asyncio.sleep(0)


async def fan_out(client: SMSIDClient) -> None:
    async for result in client.sms.send_many(from_a_list()):
        assert_type(result, SendResult)
        assert_type(result.index, int)
        assert_type(result.message, Message)
        assert_type(result.outcome, Outcome)
        assert_type(result.receipt, SendReceipt | None)
        assert_type(result.error, SMSIDError | None)
        if result.outcome is Outcome.UNKNOWN:
            break
    results = client.sms.send_many(
        from_a_stream(), concurrency=10, priority=Priority.BULK, timeout=None
    )
    assert_type(results, SendMany)
    assert_type(await anext(results), SendResult)
    results.stop()
    assert_type([result.index async for result in results], list[int])
    await results.aclose()
    await client.sms.send_many([Message(TO, "Hello")]).aclose()


class MyJournal:
    """A journal of the program's own: it forgets everything."""

    async def open(self, base_url: str) -> None:
        assert_type(base_url, str)

    async def claim(
        self, reference: str, *, fingerprint: str, recipient: str, resend_unknown: bool = False
    ) -> Claim | SendReceipt:
        assert_type(resend_unknown, bool)
        return Claim(reference, fingerprint, recipient, "token", doubtful=False)

    async def intend(self, claim: Claim) -> None:
        assert_type(claim.reference, str)
        assert_type(claim.fingerprint, str)
        assert_type(claim.recipient, str)
        assert_type(claim.token, str)
        assert_type(claim.doubtful, bool)

    async def withdraw(self, claim: Claim) -> None:
        return None

    async def record(
        self, claim: Claim, outcome: Outcome, *, receipt: SendReceipt | None = None, why: str = ""
    ) -> None:
        return None

    async def release(self, claim: Claim, *, why: str = "") -> None:
        return None

    async def aclose(self) -> None:
        return None


async def journaled() -> SendReceipt:
    journal: Journal = MyJournal()
    async with SMSIDClient("key", journal=journal) as client:
        return await client.sms.send(TO, "Hello", reference="order-17", resend_unknown=True)


def look(row: Row | BadRow) -> None:
    assert_type(row.line, int)


async def campaign(client: SMSIDClient) -> JobSummary:
    job = BulkJob("list.csv", "list.journal", message="Hi {name}", encoding="utf-8", region="GB")
    prepared = await job.prepare(client, look=look)
    assert_type(prepared, Preparation)
    assert_type(prepared.to_send, int)
    run = job.run(client)
    assert_type(run, BulkRun)
    async for result in run:
        assert_type(result, RowResult)
        assert_type(result.line, int | None)
        assert_type(result.outcome, Outcome)
    run.stop()
    BulkJob(Source("list.csv"), SQLiteJournal("list.journal"), resend_unknown=True)
    BulkJob(from_a_list(), concurrency=10, allow_changed=False)
    BulkJob(from_a_stream(), priority=Priority.NORMAL)
    async for delivery in track(client, "list.journal", timeout=60):
        assert_type(delivery, Delivery)
        assert_type(delivery.status, DeliveryStatus | None)
    assert_type(report("list.journal", "report.csv", format="csv"), int)
    assert_type(job.report("report.jsonl", format="jsonl"), int)
    assert_type(summarise("list.journal"), JobSummary)
    summary = job.summary()
    assert_type(summary.sent, int)
    assert_type(summary.cost, Decimal)
    return summary


async def one_time_codes(client: SMSIDClient) -> bool:
    receipt = await client.otp.send(TO, timeout=10.0)
    assert_type(receipt, OTPReceipt)
    assert_type(receipt.status, str)
    assert_type(receipt.to, str)
    assert_type(receipt.raw, JSONObject)
    verification = await client.otp.verify(TO, "123456", priority=Priority.HIGH)
    assert_type(verification, OTPVerification)
    assert_type(verification.status, str)
    assert_type(verification.verified, bool)
    assert_type(verification.raw, JSONObject)
    right = await client.otp.check(TO, code="123456", max_wait=1.0)
    assert_type(right, bool)
    return right


async def money(client: SMSIDClient) -> Decimal:
    balance = await client.balance(timeout=5.0)
    assert_type(balance, Balance)
    assert_type(balance.raw, JSONObject)
    return assert_type(balance.amount, Decimal)


def about_an_api_error(error: APIError) -> None:
    assert_type(error.maybe_sent, bool)
    assert_type(error.status_code, int)
    assert_type(error.code, int | None)
    assert_type(error.text, str)
    assert_type(error.retry_after, float | None)
    assert_type(error.raw, JSONObject | None)


async def errors(client: SMSIDClient) -> str:
    try:
        await client.otp.verify(TO, "123456")
    except BudgetTimeoutError as error:
        assert_type(error.retry_after, float | None)
        timeout: TimeoutError = error
        return str(timeout)
    except DeliveryTimeoutError as error:
        assert_type(error.last, MessageStatus | None)
        late: TimeoutError = error
        return str(late)
    except (ConfigurationError, ValidationError) as error:
        wrong: ValueError = error
        return str(wrong)
    except (InsufficientBalanceError, SenderNotApprovedError) as error:
        refused: BadRequestError = error
        return refused.text
    except (AuthenticationError, OTPVerificationError, RateLimitError, ServerError) as error:
        about_an_api_error(error)
        return error.text
    except JournalUnavailableError as error:
        never_left: NotSentError = error
        return str(never_left)
    except (NotSentError, OutcomeUnknownError) as error:
        broken: TransportError = error
        return str(broken.maybe_sent)
    except (BudgetUnavailableError, DuplicateReferenceError, InvalidResponseError) as error:
        base: SMSIDError = error
        return str(base)
    return ""


def segments() -> int:
    counted = count_segments("Hello")
    assert_type(counted, Segments)
    assert_type(counted.encoding, str)
    assert_type(counted.units, int)
    assert_type(counted.units_per_segment, int)
    return assert_type(counted.segments, int)


async def main() -> None:
    async with SMSIDClient() as client:
        assert_type(client, SMSIDClient)
        assert_type(client.budget, Budget)
        assert_type(client.budget.statistics(), BudgetStatistics)
        await send(with_options(client))
        await follow(client)
        await fan_out(client)
        await campaign(client)
        await journaled()
        await one_time_codes(client)
        await money(client)
        await errors(client)
    async with httpx.AsyncClient() as http_client:
        await (await construct(http_client)).aclose()
    assert_type(len(__version__), int)


if __name__ == "__main__":
    asyncio.run(main())
