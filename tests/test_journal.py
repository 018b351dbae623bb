"""References: at most one message for each, whatever happens to us, the network or the disk."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sqlite3
import subprocess
import sys
import threading
import warnings
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from conftest import NUMBER
from full_disk import FakeDisk, states
from wire import SENT, RawServer, answer, hang, ok, reset

from smsid_async import (
    AuthenticationError,
    BadRequestError,
    BudgetTimeoutError,
    ConfigurationError,
    DuplicateReferenceError,
    JournalUnavailableError,
    Message,
    NotSentError,
    Outcome,
    OutcomeUnknownError,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    SendReceipt,
    SendResult,
    SMSIDClient,
    SMSIDError,
    SQLiteJournal,
    ValidationError,
    _entries,
)
from smsid_async.hooks import AttemptFinished
from smsid_async.journal import Claim, Journal, fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from wire import Arrival, Script

    from smsid_async import BudgetStatistics, Priority, Slot
    from smsid_async.hooks import Event

REFERENCE = "order-17-shipped"
TEXT = "text-canary"
QUICK = RetryPolicy(backoff=0.001, max_backoff=0.001)
ONCE = RetryPolicy(max_attempts=1, rate_limit_attempts=1)
RECEIPT = SendReceipt("M1", "success", Decimal("0.0400"), Decimal("9.96"))


def envelope(code: int) -> dict[str, object]:
    return {"meta": {"code": code, "text": "No"}}


def open_client(url: str, journal: object, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {"budget": RateBudget.unlimited(), "retry": QUICK}
    return SMSIDClient(
        "key-canary",
        base_url=url,
        journal=journal,  # type: ignore[arg-type]  # tests give other objects too
        **(settings | options),  # type: ignore[arg-type]
    )


async def send(client: SMSIDClient, reference: str = REFERENCE, **options: Any) -> SendReceipt:
    return await client.sms.send(NUMBER, TEXT, reference=reference, **options)


def numbered() -> Script:
    """Accept every message, each under its own message ID."""
    numbers = itertools.count(1)

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await answer(200, ok({"status": "success", "message_id": f"M{next(numbers)}"}))(
            arrival, writer
        )

    return script


class Held:
    """A script that waits before it goes on with another."""

    def __init__(self, then: Script) -> None:
        self.arrived, self.free, self._then = asyncio.Event(), asyncio.Event(), then

    async def __call__(self, arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        self.arrived.set()
        await self.free.wait()
        await self._then(arrival, writer)


class GateBudget:
    """Grants no slot before it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        self._budget = RateBudget.unlimited()

    async def acquire(
        self, priority: Priority, max_wait: float | None = None, **place: int
    ) -> Slot:
        self.asked.set()
        await self.open.wait()
        return await self._budget.acquire(priority, max_wait, **place)

    def hold(self, seconds: float) -> None:
        self._budget.hold(seconds)

    def statistics(self) -> BudgetStatistics:
        return self._budget.statistics()

    async def aclose(self) -> None:
        await self._budget.aclose()


class LateServer(RawServer):
    """Has its address before it listens."""

    def __init__(self, *scripts: Script) -> None:
        super().__init__(*scripts)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/v1"

    async def reserve(self) -> None:
        async with RawServer(hang) as other:
            self._port = int(other.url.split(":")[2].split("/")[0])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert "smsid journal" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sms.db"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    return FakeDisk().install(monkeypatch)


# -- the table: nothing known, sent, rejected, not sent ------------------------


async def test_what_was_sent_is_not_sent_again_and_has_the_same_receipt(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            assert await send(client) == RECEIPT
            assert await send(client) == RECEIPT
            assert await send(client, resend_unknown=True) == RECEIPT
        async with open_client(server.url, SQLiteJournal(path)) as client:
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 1
    assert states(path) == {REFERENCE: "sent"}


SEND_ONCE = """
import asyncio, sys
from smsid_async import OutcomeUnknownError, RateBudget, SMSIDClient, SQLiteJournal

async def main():
    journal = SQLiteJournal(sys.argv[2])
    async with SMSIDClient("key", base_url=sys.argv[1], journal=journal) as client:
        try:
            print(await client.sms.send(sys.argv[3], sys.argv[4], reference=sys.argv[5]))
        except OutcomeUnknownError as error:
            print("unknown", error.maybe_sent)

asyncio.run(main())
"""


async def start_process(url: str, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SEND_ONCE, url, str(path), NUMBER, TEXT, REFERENCE),
        stdout=subprocess.PIPE,
    )


async def test_another_process_gets_the_same_receipt(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await send(client)
        out, _ = await (await start_process(server.url, path)).communicate()
        assert len(server.ledger) == 1
    assert out.decode().strip() == repr(RECEIPT)


async def test_other_references_are_other_messages(path: Path) -> None:
    async with RawServer(numbered()) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            receipts = [await send(client, f"order-{number}") for number in range(3)]
            await client.sms.send(NUMBER, TEXT)
        assert len(server.ledger) == 4
    assert [receipt.message_id for receipt in receipts] == ["M1", "M2", "M3"]
    assert states(path) == {f"order-{number}": "sent" for number in range(3)}


REFUSALS: dict[str, tuple[Script, type[SMSIDError], str]] = {
    "400": (answer(400, envelope(400)), BadRequestError, "rejected"),
    "401": (answer(401, envelope(401)), AuthenticationError, "rejected"),
    "422": (answer(422, envelope(422)), BadRequestError, "rejected"),
    "429": (answer(429, envelope(429)), RateLimitError, "rejected"),
}


@pytest.mark.parametrize(("script", "kind", "state"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_what_was_refused_is_sent_again(
    path: Path, script: Script, kind: type[SMSIDError], state: str
) -> None:
    async with RawServer(script, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path), retry=ONCE) as client:
            with pytest.raises(kind) as caught:
                await send(client)
            assert not caught.value.maybe_sent
            assert states(path) == {REFERENCE: state}
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 2
    assert states(path) == {REFERENCE: "sent"}


async def test_what_never_left_is_sent_again(path: Path) -> None:
    server = LateServer(answer(200, SENT))
    await server.reserve()
    async with open_client(server.url, SQLiteJournal(path)) as client:
        with pytest.raises(NotSentError):
            await send(client)
        assert states(path) == {REFERENCE: "not_sent"}
        async with server:
            assert await send(client) == RECEIPT
            assert len(server.ledger) == 1


async def test_what_got_no_slot_in_time_is_sent_again(path: Path) -> None:
    budget = RateBudget(limit=1, reserve=0)
    async with RawServer(answer(200, SENT)) as server:
        journal = SQLiteJournal(path)
        async with open_client(server.url, journal, budget=budget) as client:
            await client.sms.send(NUMBER, TEXT)
            with pytest.raises(BudgetTimeoutError):
                await send(client, max_wait=0.01)
        async with open_client(server.url, journal) as client:
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 2


# -- the table: in hand elsewhere ----------------------------------------------


async def test_of_fifty_at_once_one_sends_and_all_get_its_receipt(path: Path) -> None:
    held = Held(numbered())
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            tasks = [asyncio.create_task(send(client)) for _ in range(50)]
            await held.arrived.wait()
            assert not any(task.done() for task in tasks)
            held.free.set()
            receipts = await asyncio.gather(*tasks)
        assert len(server.ledger) == 1
    assert {receipt.message_id for receipt in receipts} == {"M1"}


async def test_who_waited_sends_itself_when_the_first_was_refused(path: Path) -> None:
    held = Held(answer(400, envelope(400)))
    async with RawServer(held, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            tasks = [asyncio.create_task(send(client)) for _ in range(5)]
            await held.arrived.wait()
            held.free.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(server.ledger) == 2
    assert [type(result) for result in results].count(BadRequestError) == 1
    assert results.count(RECEIPT) == 4


async def test_who_waited_is_told_when_the_first_is_in_doubt(path: Path) -> None:
    held = Held(reset)
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            tasks = [asyncio.create_task(send(client)) for _ in range(5)]
            await held.arrived.wait()
            held.free.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(server.ledger) == 1
    assert {type(result) for result in results} == {OutcomeUnknownError}


async def test_the_next_one_sends_when_the_first_is_cancelled_in_the_queue(path: Path) -> None:
    gate, journal = GateBudget(), SQLiteJournal(path)
    async with RawServer(answer(200, SENT)) as server:
        async with (
            open_client(server.url, journal, budget=gate) as queued,
            open_client(server.url, journal) as client,
        ):
            first = asyncio.create_task(send(queued))
            await gate.asked.wait()
            second = asyncio.create_task(send(client))
            first.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await first
            assert await second == RECEIPT
        assert len(server.ledger) == 1
    assert caught.value.maybe_sent is False  # type: ignore[attr-defined]


async def test_the_next_one_sends_when_the_first_is_cancelled_at_its_intent(
    path: Path, disk: FakeDisk
) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with disk.held():
                first = asyncio.create_task(send(client))
                await disk.reached()
                first.cancel()
                second = asyncio.create_task(send(client))
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await second == RECEIPT
        assert len(server.ledger) == 1


async def test_cancelled_after_leaving_it_finishes_and_who_waits_gets_its_receipt(
    path: Path,
) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            first = asyncio.create_task(send(client))
            await held.arrived.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await first
            assert caught.value.maybe_sent  # type: ignore[attr-defined]
            second = asyncio.create_task(send(client))
            await asyncio.sleep(0)
            held.free.set()
            assert await second == RECEIPT
        assert len(server.ledger) == 1
    assert states(path) == {REFERENCE: "sent"}


async def test_cancelled_after_leaving_and_then_in_doubt_it_is_not_sent_again(path: Path) -> None:
    held = Held(reset)
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            first = asyncio.create_task(send(client))
            await held.arrived.wait()
            first.cancel()
            await asyncio.wait({first})
            second = asyncio.create_task(send(client))
            await asyncio.sleep(0)
            held.free.set()
            with pytest.raises(OutcomeUnknownError):
                await second
        assert len(server.ledger) == 1


async def test_a_wait_for_another_send_ends_with_the_calls_own_time(path: Path) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            first = asyncio.create_task(send(client))
            await held.arrived.wait()
            with pytest.raises(BudgetTimeoutError, match="another send") as caught:
                await send(client, timeout=0.05)
            assert not caught.value.maybe_sent
            held.free.set()
            assert await first == RECEIPT
        assert len(server.ledger) == 1


# -- the table: in doubt -------------------------------------------------------


async def test_what_is_in_doubt_is_not_sent_again_unless_the_call_says_so(path: Path) -> None:
    async with RawServer(reset, answer(200, SENT)) as server:
        for number in range(2):  # the second time in a new client
            async with open_client(server.url, SQLiteJournal(path)) as client:
                with pytest.raises(OutcomeUnknownError) as caught:
                    await send(client)
            assert caught.value.maybe_sent
            assert len(server.ledger) == 1, number
        async with open_client(server.url, SQLiteJournal(path)) as client:
            assert await send(client, resend_unknown=True) == RECEIPT
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 2


async def test_a_process_killed_in_flight_leaves_its_message_in_doubt(path: Path) -> None:
    held = Held(hang)
    async with RawServer(held, answer(200, SENT)) as server:
        process = await start_process(server.url, path)
        await held.arrived.wait()
        assert await asyncio.to_thread(states, path) == {REFERENCE: "intent"}
        process.kill()
        await process.wait()
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(OutcomeUnknownError, match="the process ended") as caught:
                await send(client)
            assert caught.value.maybe_sent
            assert len(server.ledger) == 1
            assert await send(client, resend_unknown=True) == RECEIPT
        assert len(server.ledger) == 2
    held.free.set()


FRUITLESS: dict[str, tuple[Script, type[SMSIDError]]] = {
    "refused": (answer(400, envelope(400)), OutcomeUnknownError),
    "refused for now": (answer(429, envelope(429)), OutcomeUnknownError),
    "in doubt again": (reset, OutcomeUnknownError),
}


@pytest.mark.parametrize(("script", "kind"), FRUITLESS.values(), ids=FRUITLESS.keys())
async def test_a_fruitless_resend_leaves_the_doubt(
    path: Path, script: Script, kind: type[SMSIDError]
) -> None:
    async with RawServer(reset, script, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path), retry=ONCE) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            with pytest.raises(kind) as caught:
                await send(client, resend_unknown=True)
            assert caught.value.maybe_sent
            assert states(path) == {REFERENCE: "unknown"}
            with pytest.raises(OutcomeUnknownError):
                await send(client)
        assert len(server.ledger) == 2


async def test_a_resend_that_never_leaves_leaves_the_doubt(path: Path) -> None:
    journal, gate = SQLiteJournal(path), GateBudget()
    async with RawServer(reset) as server:
        async with open_client(server.url, journal) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
        async with open_client(server.url, journal, budget=gate) as client:
            resend = asyncio.create_task(send(client, resend_unknown=True))
            await gate.asked.wait()
            resend.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await resend
            assert caught.value.maybe_sent  # type: ignore[attr-defined]
        async with open_client(server.url, journal) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
        assert len(server.ledger) == 1
    assert states(path) == {REFERENCE: "unknown"}


async def test_a_policy_may_repeat_what_is_in_doubt(path: Path) -> None:
    policy = RetryPolicy(backoff=0.001, max_backoff=0.001, retry_unknown=True)
    async with RawServer(reset, reset, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path), retry=policy) as client:
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 3
    assert states(path) == {REFERENCE: "sent"}


async def test_a_policys_repetition_that_is_refused_stays_in_doubt(path: Path) -> None:
    policy = RetryPolicy(backoff=0.001, max_backoff=0.001, retry_unknown=True)
    async with RawServer(reset, answer(400, envelope(400))) as server:
        async with open_client(server.url, SQLiteJournal(path), retry=policy) as client:
            for _ in range(2):
                with pytest.raises(OutcomeUnknownError):
                    await send(client)
        assert len(server.ledger) == 2
    assert states(path) == {REFERENCE: "unknown"}


# -- the table: another message ------------------------------------------------

OTHERS: dict[str, dict[str, Any]] = {
    "recipient": {"to": "+447700900124", "text": TEXT},
    "text": {"to": NUMBER, "text": "Another"},
    "sender": {"to": NUMBER, "text": TEXT, "sender_id": "SMSID"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("script", [answer(200, SENT), reset, answer(400, envelope(400))])
async def test_another_message_under_the_same_reference_is_refused(
    path: Path, script: Script, other: dict[str, Any]
) -> None:
    async with RawServer(script) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await asyncio.gather(send(client), return_exceptions=True)
            with pytest.raises(DuplicateReferenceError, match=REFERENCE) as caught:
                await client.sms.send(reference=REFERENCE, resend_unknown=True, **other)
        assert len(server.ledger) == 1
    assert not caught.value.maybe_sent


async def test_another_message_is_refused_while_the_first_is_in_hand(path: Path) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            first = asyncio.create_task(send(client))
            await held.arrived.wait()
            with pytest.raises(DuplicateReferenceError):
                await client.sms.send(NUMBER, "Another", reference=REFERENCE)
            held.free.set()
            assert await first == RECEIPT


async def test_the_clients_own_sender_belongs_to_the_message(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path), sender_id="SMSID") as client:
            await send(client)
            assert await send(client, sender_id="SMSID") == RECEIPT
            with pytest.raises(DuplicateReferenceError):
                await send(client.with_options(sender_id="Other"))
        assert len(server.ledger) == 1


def test_a_fingerprint_tells_messages_apart_and_shows_none() -> None:
    messages = [(NUMBER, "ab", None), (NUMBER, "a", "b"), (NUMBER, "ab", "b"), (NUMBER, "a", None)]
    prints = [fingerprint_of(*message) for message in messages]
    assert len(set(prints)) == len(messages)
    assert fingerprint_of(*messages[0]) == prints[0]
    assert all(len(each) == 64 and NUMBER[1:] not in each for each in prints)


# -- leases --------------------------------------------------------------------


async def test_a_claim_whose_lease_is_over_is_taken_over_and_its_holder_sends_nothing(
    path: Path,
) -> None:
    now, gate, held = [0.0], GateBudget(), Held(answer(200, SENT))
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    async with RawServer(held) as server:
        async with (
            open_client(server.url, journal, budget=gate) as queued,
            open_client(server.url, journal) as client,
        ):
            first = asyncio.create_task(send(queued))
            await gate.asked.wait()
            now[0] = 10.0
            second = asyncio.create_task(send(client))
            await held.arrived.wait()
            gate.open.set()
            with pytest.raises(JournalUnavailableError, match="taken over") as caught:
                await first
            assert not caught.value.maybe_sent
            # What is in flight now would be in doubt if we died.
            assert await asyncio.to_thread(states, path) == {REFERENCE: "intent"}
            held.free.set()
            assert await second == RECEIPT
        assert len(server.ledger) == 1
    assert states(path) == {REFERENCE: "sent"}


async def test_an_intent_renews_the_lease(path: Path) -> None:
    now, gate, held = [0.0], GateBudget(), Held(answer(200, SENT))
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    async with RawServer(held) as server:
        async with open_client(server.url, journal, budget=gate) as client:
            first = asyncio.create_task(send(client))
            await gate.asked.wait()
            now[0] = 9.0
            gate.open.set()
            await held.arrived.wait()
            now[0] = 18.0
            with pytest.raises(BudgetTimeoutError, match="another send"):
                await send(client, timeout=0.05)
            held.free.set()
            assert await first == RECEIPT


async def test_what_is_in_flight_beyond_its_lease_is_in_doubt(path: Path) -> None:
    now, held = [0.0], Held(answer(200, SENT))
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    async with RawServer(held) as server:
        async with open_client(server.url, journal) as client:
            first = asyncio.create_task(send(client))
            await held.arrived.wait()
            now[0] = 11.0
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            held.free.set()
            assert await first == RECEIPT
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 1


LATE_ENDS: dict[str, Callable[[SQLiteJournal, Claim], Any]] = {
    "withdraw": lambda journal, claim: journal.withdraw(claim),
    "release": lambda journal, claim: journal.release(claim),
    "rejected": lambda journal, claim: journal.record(claim, Outcome.REJECTED),
}


@pytest.mark.parametrize("end", LATE_ENDS.values(), ids=LATE_ENDS.keys())
async def test_who_lost_a_claim_cannot_change_what_its_successor_wrote(
    path: Path, end: Callable[[SQLiteJournal, Claim], Any]
) -> None:
    now = [0.0]
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    await journal.open("http://127.0.0.1/")
    first = await claimed(journal)
    now[0] = 10.0
    second = await claimed(journal)
    await journal.intend(second)
    with pytest.raises(JournalUnavailableError):
        await journal.intend(first)
    await end(journal, first)
    assert states(path) == {REFERENCE: "intent"}
    await journal.record(second, Outcome.SENT, receipt=RECEIPT)
    assert states(path) == {REFERENCE: "sent"}
    await journal.aclose()


async def claimed(journal: Journal, reference: str = REFERENCE, **options: Any) -> Claim:
    found = await journal.claim(reference, fingerprint="f", recipient=NUMBER, **options)
    assert isinstance(found, Claim)
    return found


@pytest.mark.parametrize("last", [Outcome.UNKNOWN, Outcome.REJECTED], ids=str)
async def test_a_receipt_that_came_late_is_kept(path: Path, last: Outcome) -> None:
    """The first request is answered after its lease, when another is on its way."""
    now = [0.0]
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    await journal.open("http://127.0.0.1/")
    first = await claimed(journal)
    await journal.intend(first)
    now[0] = 10.0
    second = await claimed(journal, resend_unknown=True)
    await journal.intend(second)
    await journal.record(first, Outcome.SENT, receipt=RECEIPT)
    await journal.record(second, last)
    await journal.release(second) if last is Outcome.UNKNOWN else None
    found = await journal.claim(REFERENCE, fingerprint="f", recipient=NUMBER)
    assert found == RECEIPT
    await journal.aclose()


async def test_what_was_sent_meanwhile_is_not_sent_again(path: Path) -> None:
    now = [0.0]
    journal = SQLiteJournal(path, lease=10, clock=lambda: now[0])
    await journal.open("http://127.0.0.1/")
    first = await claimed(journal)
    await journal.intend(first)
    now[0] = 10.0
    second = await claimed(journal, resend_unknown=True)
    await journal.record(first, Outcome.SENT, receipt=RECEIPT)
    with pytest.raises(JournalUnavailableError):
        await journal.intend(second)
    await journal.release(second)
    assert states(path) == {REFERENCE: "sent"}
    await journal.aclose()


@pytest.mark.parametrize("lease", [0, -1, float("nan"), "60", None])
def test_a_lease_that_cannot_work_is_refused(path: Path, lease: Any) -> None:
    with pytest.raises(ConfigurationError, match="lease"):
        SQLiteJournal(path, lease=lease)


# -- durable before it leaves --------------------------------------------------


async def test_the_intent_is_durable_when_the_request_arrives(path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        seen.append(await asyncio.to_thread(states, path))
        await answer(200, SENT)(arrival, writer)

    async with RawServer(script) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await send(client)
            assert seen == [{REFERENCE: "intent"}]
            assert states(path) == {REFERENCE: "sent"}


async def opened(client: SMSIDClient) -> None:
    """Let the client open its journal, with one send."""
    await send(client, "first of all")


async def test_nothing_leaves_and_the_loop_goes_on_until_the_intent_is_durable(
    path: Path, disk: FakeDisk
) -> None:
    async with RawServer(answer(200, SENT)) as server:
        journal = SQLiteJournal(path)
        gate = GateBudget()
        async with open_client(server.url, journal, budget=gate) as client:
            task = asyncio.create_task(send(client))
            await gate.asked.wait()  # the claim is made
            with disk.held():
                gate.open.set()
                await disk.reached()
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert server.connections == 0
                assert not task.done()
                assert states(path) == {}
            assert await task == RECEIPT


async def test_a_send_returns_when_its_outcome_is_durable(path: Path, disk: FakeDisk) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            task = asyncio.create_task(send(client))
            await held.arrived.wait()
            with disk.held():
                held.free.set()
                await disk.reached()
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert not task.done()
                assert states(path) == {REFERENCE: "intent"}
            assert await task == RECEIPT
            assert states(path) == {REFERENCE: "sent"}


@pytest.mark.parametrize("script", [answer(429, envelope(429)), None], ids=["429", "not sent"])
async def test_an_attempt_without_effect_is_a_claim_again(
    path: Path, script: Script | None
) -> None:
    seen: list[dict[str, str]] = []

    def hook(event: Event) -> None:
        if isinstance(event, AttemptFinished):
            seen.append(states(path))

    server = LateServer(*[script] * (script is not None), answer(200, SENT))
    await server.reserve()
    async with open_client(server.url, SQLiteJournal(path), hooks=[hook]) as client:
        if script is None:
            with pytest.raises(NotSentError):
                await send(client)
            assert seen == [{REFERENCE: "claimed"}] * 4
            return
        async with server:
            assert await send(client) == RECEIPT
            assert len(server.ledger) == 2
    assert seen == [{REFERENCE: "claimed"}, {REFERENCE: "sent"}]


async def test_many_sends_share_their_commits(path: Path, disk: FakeDisk) -> None:
    async with RawServer(numbered()) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await opened(client)
            disk.commits, disk.slowness = 0, 0.01
            receipts = await asyncio.gather(*(send(client, f"order-{n}") for n in range(300)))
            commits = disk.commits
    assert len({receipt.message_id for receipt in receipts}) == 300
    assert commits < 150  # one for each step would be 900


# -- faults of the disk --------------------------------------------------------

DISK_FAULTS = [("database or disk is full", "INSERT"), ("disk I/O error", "COMMIT")]


@pytest.mark.parametrize(("fault", "statement"), DISK_FAULTS)
async def test_nothing_is_sent_when_the_intent_cannot_be_written(
    path: Path, disk: FakeDisk, fault: str, statement: str
) -> None:
    attempts: list[Event] = []
    gate = GateBudget()
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(
            server.url, SQLiteJournal(path), budget=gate, hooks=[attempts.append]
        ) as client:
            task = asyncio.create_task(send(client))
            await gate.asked.wait()
            with disk.broken(fault, statement):
                gate.open.set()
                with pytest.raises(JournalUnavailableError, match=fault) as caught:
                    await task
            assert isinstance(caught.value, NotSentError)
            assert not caught.value.maybe_sent
            assert len([e for e in attempts if isinstance(e, AttemptFinished)]) == 1
            assert not server.ledger
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 1


async def test_nothing_is_sent_when_the_journal_cannot_be_read(path: Path, disk: FakeDisk) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await opened(client)
            with disk.broken("disk I/O error", "SELECT"):
                with pytest.raises(JournalUnavailableError):
                    await send(client)
            assert len(server.ledger) == 1
            assert await send(client) == RECEIPT


async def test_many_sends_halt_when_the_journal_fails(path: Path, disk: FakeDisk) -> None:
    pulled: list[int] = []

    def source() -> Iterator[Message]:
        for number in range(1000):
            pulled.append(number)
            yield Message(NUMBER, TEXT, reference=f"order-{number}")

    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await opened(client)
            results: list[SendResult] = []

            async def collect() -> None:
                async for result in client.sms.send_many(source(), concurrency=10):
                    results.append(result)  # noqa: PERF401 - kept when the iteration fails

            with disk.broken("database or disk is full", "INSERT"):
                with pytest.raises(JournalUnavailableError):
                    await collect()
        assert len(server.ledger) == 1
    assert len(results) == len(pulled) < 1000
    assert {result.outcome for result in results} == {Outcome.NOT_SENT}


async def test_an_outcome_that_cannot_be_written_is_returned_all_the_same(
    path: Path, disk: FakeDisk, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            task = asyncio.create_task(send(client))
            await held.arrived.wait()
            with disk.broken():
                held.free.set()
                assert await task == RECEIPT
            errors = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert [record.name for record in errors] == ["smsid_async"]
            for private in (NUMBER, TEXT, "key-canary", REFERENCE):
                assert private not in caplog.text
            assert states(path) == {REFERENCE: "intent"}
            await send(client, "another")  # whose commit works
            assert states(path) == {REFERENCE: "sent", "another": "sent"}
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 2


async def test_an_outcome_that_was_never_written_is_in_doubt_in_the_next_process(
    path: Path, disk: FakeDisk, tmp_path: Path
) -> None:
    held, copy = Held(answer(200, SENT)), tmp_path / "copy.db"
    async with RawServer(held) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            task = asyncio.create_task(send(client))
            await held.arrived.wait()
            with disk.broken():
                held.free.set()
                await task
                as_a_kill_would_leave_it(path, copy)
        async with open_client(server.url, SQLiteJournal(copy)) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
        assert len(server.ledger) == 1


def as_a_kill_would_leave_it(path: Path, copy: Path) -> None:
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(
            path.with_name(path.name + suffix).read_bytes()
        )


async def test_a_receipt_that_no_file_can_hold_harms_no_other_send(path: Path) -> None:
    odd = b'{"meta":{"code":200},"data":{"message_id":"M1","status":"\\ud800"}}'
    async with RawServer(answer(200, odd), answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await asyncio.gather(send(client), return_exceptions=True)
            assert await send(client, "another") == RECEIPT
            await asyncio.gather(send(client), return_exceptions=True)
        assert len(server.ledger) == 2  # in no case is the first one repeated


# -- what cannot be a journal --------------------------------------------------


async def send_with(path: object, url: str) -> None:
    async with open_client(url, SQLiteJournal(path)) as client:  # type: ignore[arg-type]
        await send(client)


async def refused(path: object, pattern: str) -> None:
    """Assert that a send with this journal says so and that nothing is sent."""
    async with RawServer(answer(200, SENT)) as server:
        with pytest.raises(SMSIDError, match=pattern) as caught:
            await send_with(path, server.url)
        assert not caught.value.maybe_sent
        assert isinstance(caught.value, ConfigurationError | JournalUnavailableError)
        assert not server.ledger


async def test_a_text_file_is_no_journal(path: Path) -> None:
    path.write_text("to,text\n" * 1000)
    await refused(path, "file is not a database")
    assert path.read_text() == "to,text\n" * 1000


async def test_another_programs_database_is_no_journal_and_stays_as_it_was(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    before = path.read_bytes()
    await refused(path, "not a journal")
    assert path.read_bytes() == before


async def test_a_newer_versions_journal_is_refused(path: Path) -> None:
    await (journal := SQLiteJournal(path)).open("http://127.0.0.1/")
    await journal.aclose()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    await refused(path, "newer smsid-async")


async def test_a_directory_or_a_missing_one_is_no_journal(tmp_path: Path) -> None:
    await refused(tmp_path, "directory|open")
    await refused(tmp_path / "missing" / "sms.db", "No such file")


@pytest.mark.parametrize("path", [":memory:", "", None, 7, b"sms.db"])
async def test_a_journal_needs_the_path_of_a_file(path: object) -> None:
    await refused(path, "path of a file")


@pytest.mark.parametrize("label", ["", "a\nb", 7, None])
def test_a_label_that_cannot_work_is_refused(path: Path, label: Any) -> None:
    with pytest.raises(ConfigurationError, match="label"):
        SQLiteJournal(path, account=label)


UNWRITABLE = """
import asyncio, os, sys, tempfile
from pathlib import Path
from smsid_async import ConfigurationError, JournalUnavailableError, SMSIDClient, SQLiteJournal
import smsid_async._sqlite, fcntl, concurrent.futures.thread, encodings.idna

url, what = sys.argv[1:]
if os.geteuid() == 0:
    os.seteuid(65534)  # the superuser may write everywhere

async def send(path):
    async with SMSIDClient("key", base_url=url, journal=SQLiteJournal(path)) as client:
        await client.sms.send("+447700900123", "Hello", reference="order-1")

async def make(path):
    await (journal := SQLiteJournal(path)).open(url)
    await journal.aclose()

with tempfile.TemporaryDirectory() as name:
    path = Path(name, "sms.db")
    if what != "new":
        asyncio.run(make(path))
    (path if what == "file" else path.parent).chmod(0o500)
    try:
        asyncio.run(send(path))
    except (ConfigurationError, JournalUnavailableError) as error:
        print(error.maybe_sent, error)
    finally:
        path.parent.chmod(0o700)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such permissions")
@pytest.mark.parametrize("what", ["file", "new"])
async def test_what_may_not_be_written_is_no_journal(what: str) -> None:
    async with RawServer(answer(200, SENT)) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", UNWRITABLE, server.url, what), stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert not server.ledger
    assert process.returncode == 0
    assert out.startswith(b"False the journal ")
    assert b"readonly" in out or b"Permission denied" in out


async def test_a_journal_of_another_base_url_is_refused(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await send(client)
    await refused(path, "base_url")


async def test_a_journal_of_another_account_is_refused(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path, account="main")) as client:
            await send(client)
        journal = SQLiteJournal(path, account="other")
        async with open_client(server.url, journal) as client:
            with pytest.raises(ConfigurationError, match="account main, not other"):
                await send(client, "another")
        assert len(server.ledger) == 1


async def test_a_new_key_of_the_same_account_is_fine(path: Path) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            await send(client)
        async with SMSIDClient(
            "another-key", base_url=server.url, journal=SQLiteJournal(path)
        ) as client:
            assert await send(client) == RECEIPT
        assert len(server.ledger) == 1


async def test_a_reference_needs_a_journal() -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with SMSIDClient("key", base_url=server.url) as client:
            with pytest.raises(ConfigurationError, match="needs a journal"):
                await send(client)
        assert not server.ledger


@pytest.mark.parametrize("reference", ["", "x" * 201, "a\nb", "\ud800", 7])
async def test_a_reference_that_cannot_work_is_refused(path: Path, reference: Any) -> None:
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(ValidationError, match="reference"):
                await send(client, reference)
        assert not server.ledger


async def test_another_processes_journal_is_refused_until_that_one_has_ended(path: Path) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        process = await start_process(server.url, path)
        await held.arrived.wait()
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(ConfigurationError, match=f"another process .*{process.pid}"):
                await send(client, "another")
            assert len(server.ledger) == 1
            held.free.set()
            await process.communicate()
            assert await send(client, "another") == RECEIPT


# -- send_many -----------------------------------------------------------------


async def test_many_messages_with_references_go_out_once(path: Path) -> None:
    messages = [Message(NUMBER, f"Text {n}", reference=f"order-{n}") for n in range(60)]
    async with RawServer(numbered()) as server:
        receipts = []
        for part in (messages[:40], messages):
            async with open_client(server.url, SQLiteJournal(path)) as client:
                results = [result async for result in client.sms.send_many(part)]
            assert {result.outcome for result in results} == {Outcome.SENT}
            receipts.append({result.index: result.receipt for result in results})
        assert len(server.ledger) == 60
    assert all(receipts[1][index] == receipt for index, receipt in receipts[0].items())


async def test_many_messages_tell_what_is_in_doubt_or_another(path: Path) -> None:
    async with RawServer(reset, answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client, "in doubt")
            await send(client, "sent")
            source = [
                Message(NUMBER, TEXT, reference="in doubt"),
                Message(NUMBER, "Another", reference="sent"),
            ]
            results = {r.index: r async for r in client.sms.send_many(source)}
        assert len(server.ledger) == 2
    assert [results[index].outcome for index in (0, 1)] == [Outcome.UNKNOWN, Outcome.NOT_SENT]
    assert isinstance(results[1].error, DuplicateReferenceError)


# -- loops, threads, lifetime --------------------------------------------------


class AnyServer(SQLiteJournal):
    """A journal of one API whose servers come and go, each on a port of its own."""

    async def open(self, base_url: str) -> None:
        await super().open("http://127.0.0.1/api/v1")


async def serve_and_send(journal: Journal, *references: str) -> int:
    """Send these, and return how many requests that took."""
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, journal) as client:
            for reference in references:
                assert await send(client, reference) == RECEIPT
        return len(server.ledger)


def test_one_journal_serves_one_event_loop_after_another(path: Path) -> None:
    journal = AnyServer(path)
    counts = [asyncio.run(serve_and_send(journal, name)) for name in ("one", "two", "one")]
    assert counts == [1, 1, 0]


def test_loops_of_two_threads_send_a_reference_once(path: Path) -> None:
    journal, counts, together = AnyServer(path), [], threading.Barrier(4)
    names = [f"order-{number}" for number in range(25)]

    async def main() -> None:
        async with RawServer(answer(200, SENT)) as server:
            async with open_client(server.url, journal) as client:
                together.wait()
                receipts = await asyncio.gather(*(send(client, name) for name in names))
                together.wait()  # a journal is closed with its client, for all
            assert receipts == [RECEIPT] * len(names)
            counts.append(len(server.ledger))

    threads = [threading.Thread(target=asyncio.run, args=(main(),), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(counts) == 4
    assert sum(counts) == len(names)


async def test_a_closed_journal_opens_again_with_its_next_use(path: Path) -> None:
    journal = SQLiteJournal(path)
    await journal.aclose()
    async with RawServer(answer(200, SENT)) as server:
        for _ in range(2):
            async with open_client(server.url, journal) as client:
                assert await send(client) == RECEIPT
            assert not any(thread.name == "smsid journal" for thread in threading.enumerate())
        assert len(server.ledger) == 1
    await journal.aclose()


async def test_two_journals_of_one_file_know_of_each_others_sends(path: Path) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        async with (
            open_client(server.url, SQLiteJournal(path)) as one,
            open_client(server.url, SQLiteJournal(path)) as two,
        ):
            first = asyncio.create_task(send(one))
            await held.arrived.wait()
            second = asyncio.create_task(send(two))
            await asyncio.sleep(0)
            assert not second.done()
            held.free.set()
            assert await asyncio.gather(first, second) == [RECEIPT, RECEIPT]
        assert len(server.ledger) == 1


async def test_a_claim_keeps_its_journal_open(path: Path) -> None:
    """One of two clients closes the journal that they share."""
    gate, journal = GateBudget(), SQLiteJournal(path)
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, journal, budget=gate) as queued:
            first = asyncio.create_task(send(queued))
            await gate.asked.wait()
            async with open_client(server.url, journal):
                pass
            gate.open.set()
            results = await asyncio.gather(first, return_exceptions=True)
            assert results == [RECEIPT]
            assert await send(queued) == RECEIPT
        assert len(server.ledger) == 1


async def test_a_client_waits_for_the_outcomes_when_it_is_closed(path: Path) -> None:
    held = Held(answer(200, SENT))
    async with RawServer(held) as server:
        client = open_client(server.url, SQLiteJournal(path))
        task = asyncio.create_task(send(client))
        await held.arrived.wait()
        task.cancel()
        closing = asyncio.create_task(client.aclose())
        await asyncio.wait({task})
        held.free.set()
        await closing
    assert states(path) == {REFERENCE: "sent"}


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "in flight"])
def test_a_loop_that_was_ended_leaves_no_claim(path: Path, *, queued: bool) -> None:
    journal = AnyServer(path)

    async def interrupted() -> None:
        gate, held = GateBudget(), Held(hang)
        async with RawServer(held) as server:
            client = open_client(server.url, journal, budget=gate)
            tasks = [asyncio.create_task(send(client, f"order-{n}")) for n in range(3)]
            await gate.asked.wait()
            if not queued:
                gate.open.set()
                await held.arrived.wait()
            raise KeyboardInterrupt(tasks, client)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())

    async def again() -> None:
        async with asyncio.timeout(10):  # and not when the lease of an hour ends
            await serve_and_send(journal, *(f"order-{n}" for n in range(3)))

    if queued:
        asyncio.run(again())
    else:
        with pytest.raises(OutcomeUnknownError):
            asyncio.run(again())
        asyncio.run(journal.aclose())


def test_nothing_is_left_open(path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(serve_and_send(AnyServer(path), "one", "two"))
        gc.collect()
    assert [str(warning.message) for warning in seen] == []


async def test_the_file_shows_its_owner_only_and_no_texts(path: Path) -> None:
    refusal = answer(400, {"meta": {"code": 400, "text": f"{TEXT} for key-canary is bad"}})
    async with RawServer(answer(200, SENT), reset, refusal) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            names = ("sent", "in doubt", "refused")
            await asyncio.gather(*(send(client, name) for name in names), return_exceptions=True)
            assert set(states(path)) == set(names)
            files = list(path.parent.iterdir())
            assert len(files) == 4
            assert {each.stat().st_mode & 0o777 for each in files} == {0o600}
            bytes_of_all = b"".join(each.read_bytes() for each in files)
    for private in (TEXT, "key-canary"):
        assert private.encode() not in bytes_of_all
    assert REFERENCE.encode() not in bytes_of_all
    assert NUMBER.encode() in bytes_of_all  # as documented


def test_a_claim_shows_no_number() -> None:
    assert NUMBER not in repr(Claim(REFERENCE, "f", NUMBER, "token"))


async def test_it_tells_what_earlier_processes_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]

    def journal_of(process: str) -> SQLiteJournal:
        monkeypatch.setattr("smsid_async.journal._PROCESS", process)
        return SQLiteJournal(path, wall_clock=lambda: now[0])

    before = journal_of("before")
    for moment, reference in ((1000.0, "old"), (1050.0, "answered"), (1052.0, "in flight")):
        now[0] = moment
        claim = await claimed(before, reference)
        await before.intend(claim)
        if reference != "in flight":
            now[0] += 1.0
            await before.record(claim, Outcome.SENT, receipt=RECEIPT)
    assert await before.requests_since(60) == []
    before._holders.clear()  # it ends as a crash does, with one in flight
    await before.aclose()
    now[0] = 1070.0
    after = journal_of("after")
    found = await after.requests_since(60)
    await after.aclose()
    assert sorted((each.age, each.answered) for each in found) == [(18.0, False), (19.0, True)]


async def test_a_claim_that_has_ended_cannot_be_used(path: Path) -> None:
    journal = SQLiteJournal(path)
    claim = await claimed(journal)
    await journal.release(claim)
    for use in (journal.intend, journal.withdraw, journal.release):
        with pytest.raises(JournalUnavailableError):
            await use(claim)
    assert states(path) == {}
    await journal.aclose()


async def test_a_journal_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "sms.db"
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(JournalUnavailableError):
                await send(client)
            path.parent.mkdir()
            assert await send(client) == RECEIPT


# -- a journal of the caller's own ---------------------------------------------


class MemoryJournal:
    """The protocol's methods, over a dict, for one task at a time."""

    def __init__(self) -> None:
        self.base_url = ""
        self.receipts: dict[str, SendReceipt] = {}
        self.calls: list[str] = []
        self.faulty = ""

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.faulty:
            raise OSError(f"{name} failed for {NUMBER}")

    async def open(self, base_url: str) -> None:
        self.base_url = base_url
        self._note("open")

    async def claim(
        self, reference: str, *, fingerprint: str, recipient: str, resend_unknown: bool = False
    ) -> Claim | SendReceipt:
        self._note("claim")
        if reference in self.receipts:
            return self.receipts[reference]
        return Claim(reference, fingerprint, recipient, "token", doubtful=resend_unknown)

    async def intend(self, claim: Claim) -> None:
        self._note("intend")

    async def withdraw(self, claim: Claim) -> None:
        self._note("withdraw")

    async def record(
        self, claim: Claim, outcome: Outcome, *, receipt: SendReceipt | None = None, why: str = ""
    ) -> None:
        self._note(f"record {outcome}")
        if receipt is not None:
            self.receipts[claim.reference] = receipt

    async def release(self, claim: Claim, *, why: str = "") -> None:
        self._note("release")

    async def aclose(self) -> None:
        self._note("aclose")


PATHS: dict[str, tuple[list[Script], list[str]]] = {
    "sent": ([answer(200, SENT)], ["intend", "record sent"]),
    "refused": ([answer(400, envelope(400))], ["intend", "record rejected"]),
    "in doubt": ([reset], ["intend", "record unknown", "release"]),
    "held": (
        [answer(429, envelope(429)), answer(200, SENT)],
        ["intend", "withdraw", "intend", "record sent"],
    ),
}


@pytest.mark.parametrize(("scripts", "calls"), PATHS.values(), ids=PATHS.keys())
async def test_a_journal_of_the_callers_own_is_told_every_step(
    scripts: list[Script], calls: list[str]
) -> None:
    journal = MemoryJournal()
    async with RawServer(*scripts) as server:
        async with open_client(server.url, journal) as client:
            await asyncio.gather(send(client), return_exceptions=True)
        assert journal.base_url == server.url
    assert journal.calls == ["open", "claim", *calls, "aclose"]


async def test_its_receipts_are_believed() -> None:
    journal = MemoryJournal()
    journal.receipts[REFERENCE] = RECEIPT
    async with RawServer(hang) as server:
        async with open_client(server.url, journal) as client:
            assert await send(client) == RECEIPT
        assert not server.ledger


@pytest.mark.parametrize("faulty", ["open", "claim", "intend"])
async def test_its_faults_before_the_send_are_errors_of_ours(faulty: str) -> None:
    journal = MemoryJournal()
    journal.faulty = faulty
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, journal) as client:
            with pytest.raises(JournalUnavailableError, match="OSError") as caught:
                await send(client)
        assert not server.ledger
    assert not caught.value.maybe_sent
    assert isinstance(caught.value.__cause__, OSError)
    assert NUMBER not in str(caught.value)
    assert journal.calls.count(faulty) == 1  # it is not tried again


async def test_its_own_timeout_is_a_fault_like_any_other() -> None:
    class Slow(MemoryJournal):
        async def open(self, base_url: str) -> None:
            raise TimeoutError

    async with open_client("http://127.0.0.1:9", Slow()) as client:
        with pytest.raises(JournalUnavailableError, match="TimeoutError"):
            await send(client)


LATE_FAULTS: dict[str, tuple[Script, type[SMSIDError] | None]] = {
    "record sent": (answer(200, SENT), None),
    "record rejected": (answer(400, envelope(400)), BadRequestError),
    "record unknown": (reset, OutcomeUnknownError),
    "withdraw": (answer(429, envelope(429)), RateLimitError),
    "release": (reset, OutcomeUnknownError),
}


@pytest.mark.parametrize("faulty", LATE_FAULTS)
async def test_its_faults_after_the_send_are_logged_and_the_outcome_stands(
    faulty: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal, (script, kind) = MemoryJournal(), LATE_FAULTS[faulty]
    journal.faulty = faulty
    async with RawServer(script) as server:
        async with open_client(server.url, journal, retry=ONCE) as client:
            (result,) = await asyncio.gather(send(client), return_exceptions=True)
        assert len(server.ledger) == 1
    assert type(result) is (kind or SendReceipt)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "OSError" in errors[0].getMessage()
    assert NUMBER not in caplog.text


def test_both_are_journals() -> None:
    assert isinstance(SQLiteJournal("sms.db"), Journal)
    assert isinstance(MemoryJournal(), Journal)


@pytest.mark.parametrize("other", ["sms.db", {}, object(), RateBudget()])
def test_what_is_no_journal_is_refused(other: object) -> None:
    with pytest.raises(ConfigurationError, match="SQLiteJournal"):
        SMSIDClient("key", journal=other)  # type: ignore[arg-type]


async def test_cancelled_while_its_claim_is_released_it_says_what_the_error_would(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releasing = asyncio.Event()

    async def release(*_: object, **__: object) -> None:
        releasing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(SQLiteJournal, "release", release)
    async with RawServer(reset) as server:
        journal = SQLiteJournal(path)
        async with open_client(server.url, journal) as client:
            task = asyncio.create_task(send(client))
            await releasing.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            journal._holders.clear()
    assert caught.value.maybe_sent is True  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["message_id", "status"])
async def test_an_answer_that_cannot_be_written_down_is_not_trusted(path: Path, field: str) -> None:
    data = {"status": "success", "message_id": "M1"} | {field: "\ud800"}
    async with RawServer(answer(200, ok(data))) as server:
        async with open_client(server.url, SQLiteJournal(path)) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
    assert states(path) == {REFERENCE: "unknown"}


async def test_a_request_of_another_process_is_not_overwritten(path: Path) -> None:
    """Should two get past the lock, a file system without locks say, the row itself decides."""
    journal = SQLiteJournal(path)
    await journal.open("http://127.0.0.1/")
    claim = await claimed(journal)
    await journal.run(
        lambda file: file.execute(
            "INSERT INTO entries (reference, fingerprint, recipient, state, token) "
            "VALUES (?, ?, ?, 'intent', 'another')",
            (claim.reference, claim.fingerprint, claim.recipient),
        )
    )
    with pytest.raises(JournalUnavailableError, match="came first"):
        await journal.intend(claim)
    await journal.release(claim)
    assert states(path) == {REFERENCE: "intent"}
    await journal.aclose()


async def test_hundreds_of_calls_with_one_reference_end_together(path: Path) -> None:
    held, journal = Held(answer(200, SENT)), SQLiteJournal(path)
    looks: list[str] = []
    find = _entries.find

    def counted(file: sqlite3.Connection, reference: str) -> _entries.Entry | None:
        looks.append(reference)
        return find(file, reference)

    async with RawServer(held) as server:
        async with open_client(server.url, journal) as client:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_entries, "find", counted)
                calls = [asyncio.create_task(send(client)) for _ in range(300)]
                await held.arrived.wait()
                held.free.set()
                assert set(await asyncio.gather(*calls)) == {RECEIPT}
        assert len(server.ledger) == 1
    assert len(looks) <= 2 * len(calls)  # and not a number that grows with its square


async def test_a_journal_that_is_closed_by_others_keeps_the_claims_of_all(path: Path) -> None:
    journal = SQLiteJournal(path)
    async with RawServer(answer(200, SENT)) as server:

        async def one(number: int) -> SendReceipt:
            async with open_client(server.url, journal) as client:
                return await client.sms.send(NUMBER, "Hello", reference=f"order-{number}")

        receipts = await asyncio.gather(*(one(number) for number in range(100)))
    assert set(receipts) == {RECEIPT}
    assert repr(journal) == f"SQLiteJournal({str(path)!r}, account='default')"


async def test_resend_unknown_is_true_or_false_and_no_text(path: Path) -> None:
    async with open_client("http://127.0.0.1:9", SQLiteJournal(path)) as client:
        with pytest.raises(ConfigurationError, match="give True or False"):
            await client.sms.send(NUMBER, "Hello", reference="r", resend_unknown="false")  # type: ignore[arg-type]


def test_a_loop_that_ends_before_an_exchange_began_leaves_no_claim(path: Path) -> None:
    journal = SQLiteJournal(path)

    async def begin(url: str) -> None:
        client = open_client(url, journal)
        clients.append(client)
        task = asyncio.create_task(send(client))
        while not client._pipeline._tasks:
            await asyncio.sleep(0)
        for each in client._pipeline._tasks:
            each.cancel()  # as a loop does that shuts down
        task.cancel()

    async def again() -> None:
        async with RawServer(answer(200, SENT)) as server, asyncio.timeout(10):
            async with open_client(server.url, journal) as client:
                await send(client)

    clients: list[SMSIDClient] = []
    asyncio.run(begin("http://127.0.0.1:9"))
    journal._bound_to = ""
    journal_file = sqlite3.connect(path)
    journal_file.execute("DELETE FROM meta")
    journal_file.commit()
    journal_file.close()
    asyncio.run(again())
    assert states(path) == {REFERENCE: "sent"}


@pytest.mark.parametrize("sent", [True, False])
async def test_what_was_in_doubt_can_be_settled(path: Path, sent: bool) -> None:
    journal = SQLiteJournal(path)
    async with RawServer(reset, answer(200, SENT)) as server:
        async with open_client(server.url, journal) as client:
            with pytest.raises(OutcomeUnknownError):
                await send(client)
            assert not await journal.settle("another", sent=sent)
            assert await journal.settle(REFERENCE, sent=sent)
            assert not await journal.settle(REFERENCE, sent=not sent)
            receipt = await send(client)
        assert len(server.ledger) == (1 if sent else 2)
    assert receipt.message_id == ("" if sent else "M1")
    assert states(path) == {REFERENCE: "sent"}
