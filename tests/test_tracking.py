"""Following up what a journal has sent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import NUMBER
from wire import RawServer, answer, lanes_into, ok, reset

from smsid_async import (
    AuthenticationError,
    ConfigurationError,
    DeliveryStatus,
    Outcome,
    Priority,
    RateBudget,
    RetryPolicy,
    SMSIDClient,
)
from smsid_async.bulk import Delivery, summarise, track
from smsid_async.journal import Claim, SQLiteJournal
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from wire import Arrival, Script

FAILING = "+447700900999"
STATUS = "/sms/status"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "sent.journal"


def open_client(url: str, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {
        "budget": RateBudget.unlimited(),
        "retry": RetryPolicy(max_attempts=1),
    }
    return SMSIDClient("test", base_url=url, **(settings | options))  # type: ignore[arg-type]


async def send(client: SMSIDClient, journal: Path, *numbers: str) -> None:
    """Send, and enter it in the journal afterwards.

    A send with the journal would not do: virtual time runs on while its thread works, and
    the send's own timeout with it.
    """
    own = SQLiteJournal(journal)
    await own.open(client._base_url)
    for index, to in enumerate(numbers):
        receipt = await client.sms.send(to, f"Text {index}")
        claim = await own.claim(f"ref-{index}", fingerprint=str(index), recipient=to)
        assert isinstance(claim, Claim)
        await own.intend(claim)
        await own.record(claim, Outcome.SENT, receipt=receipt)
    await own.aclose()


async def told(deliveries: AsyncIterator[Delivery]) -> list[Delivery]:
    return [delivery async for delivery in deliveries]


def recorded(journal: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(journal)) as file:
        return Counter(word for (word,) in file.execute("SELECT delivery FROM entries"))


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.looptime
async def test_every_message_is_followed_to_its_end(journal: Path) -> None:
    numbers = [NUMBER] * 45 + [FAILING] * 5
    lanes: list[Priority] = []
    async with Sandbox(limit=None, delivery=(5.0, 20.0)) as sandbox:
        async with open_client(sandbox.url) as client:
            await send(client, journal, *numbers)
        async with open_client(sandbox.url, hooks=[lanes_into(lanes)]) as client:
            began = now()
            seen = await told(track(client, journal))
            assert 15 <= now() - began <= 60
            polls = [each for each in sandbox.requests if each.path.endswith(STATUS)]
            assert len(polls) == len(seen) <= 50 * 10
            assert await told(track(client, journal)) == []  # nothing is left to ask
        messages = {message.message_id: message.to for message in sandbox.messages}
    assert set(lanes) == {Priority.BACKGROUND}
    last = {delivery.message_id: delivery for delivery in seen}
    assert set(last) == set(messages)
    for message_id, delivery in last.items():
        failed = messages[message_id] == FAILING
        assert delivery.status is (DeliveryStatus.FAILED if failed else DeliveryStatus.DELIVERED)
        assert delivery.line is None
        assert delivery.reference.startswith("ref-")
    assert recorded(journal) == {"delivered": 45, "failed": 5}
    summary = summarise(journal)
    assert (summary.delivered, summary.failed, summary.sent) == (45, 5, 50)
    finals = Counter(
        each.message_id for each in seen if each.status is not None and each.status.is_final
    )
    assert set(finals.values()) == {1}  # what is final is not asked for again


async def test_stopped_and_continued(sandbox: Sandbox, client: SMSIDClient, journal: Path) -> None:
    await send(client, journal, *[NUMBER] * 30)
    own = SQLiteJournal(journal)
    async with contextlib.aclosing(track(client, own)) as deliveries:
        first = await anext(deliveries)
    assert first.status is not None
    assert client.budget.statistics().in_flight == 0
    await told(track(client, own))
    assert recorded(journal) == {"delivered": 30}
    await own.aclose()
    assert len(sandbox.messages) == 30


# -- answers of every kind -------------------------------------------------------


def status_of(word: str) -> Script:
    return answer(200, ok({"status": word}))


def refusal(code: int, text: str) -> Script:
    return answer(code, json.dumps({"meta": {"code": code, "text": text}}).encode())


def by_path(*statuses: Script) -> Script:
    """Accept every message, and answer the polls one after the other by these."""
    left = list(statuses)
    sent = 0

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if STATUS not in arrival.line:
            sent += 1
            data = {"status": "success", "message_id": f"M{sent}", "cost": "0.04"}
            await answer(200, ok(data))(arrival, writer)
        else:
            await (left.pop(0) if len(left) > 1 else left[0])(arrival, writer)

    return script


PASSING = {
    "500": refusal(500, "Broken"),
    "503": answer(503, b""),
    "429": answer(429, b"", "Retry-After: 1"),
    "a reset": reset,
    "no status": answer(200, ok({})),
    "no JSON": answer(200, b"<html>"),
    "another message's": answer(200, ok({"message_id": "M9", "status": "delivered"})),
}


@pytest.mark.looptime
@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING.keys())
async def test_what_may_pass_is_asked_again(journal: Path, trouble: Script) -> None:
    async with RawServer(by_path(trouble, trouble, status_of("delivered"))) as server:
        retry = RetryPolicy(max_attempts=1, rate_limit_attempts=1)
        async with open_client(server.url, retry=retry) as client:
            await send(client, journal, NUMBER)
            (delivery,) = await told(track(client, journal))
    assert (delivery.message_id, delivery.status) == ("M1", DeliveryStatus.DELIVERED)
    assert recorded(journal) == {"delivered": 1}


@pytest.mark.looptime
@pytest.mark.parametrize("code", [400, 404, 422])
async def test_what_the_api_will_not_tell_is_final(journal: Path, code: int) -> None:
    async with RawServer(
        by_path(refusal(code, "No such message"), status_of("delivered"))
    ) as server:
        async with open_client(server.url) as client:
            await send(client, journal, NUMBER, NUMBER)
            seen = await told(track(client, journal))
            assert {delivery.status for delivery in seen} == {None, DeliveryStatus.DELIVERED}
            assert recorded(journal) == {"untraceable": 1, "delivered": 1}
            polls = len(server.ledger)
            assert await told(track(client, journal)) == []
            assert len(server.ledger) == polls
    summary = summarise(journal)
    assert (summary.sent, summary.delivered, summary.failed) == (2, 1, 0)


@pytest.mark.looptime
async def test_words_that_are_not_documented_are_not_final(journal: Path) -> None:
    words = [*map(status_of, ("queued", "routed", "sent")), status_of("failed")]
    async with RawServer(by_path(*words)) as server, open_client(server.url) as client:
        await send(client, journal, NUMBER)
        seen = await told(track(client, journal))
    assert [delivery.status for delivery in seen] == [
        DeliveryStatus.QUEUED,
        DeliveryStatus.UNRECOGNISED,
        DeliveryStatus.SENT,
        DeliveryStatus.FAILED,
    ]


@pytest.mark.looptime
async def test_what_still_waits_at_the_timeout_is_asked_for_next_time(journal: Path) -> None:
    scripts = [status_of("sent")] * 20
    async with RawServer(by_path(*scripts, status_of("delivered"))) as server:
        async with open_client(server.url) as client:
            await send(client, journal, NUMBER)
            began = now()
            seen = await told(track(client, journal, timeout=30))
            assert 10 < now() - began <= 30
            assert {each.status for each in seen} == {DeliveryStatus.SENT}
            assert recorded(journal) == {"sent": 1}
            assert summarise(journal).delivered == 0
            assert len(await told(track(client, journal, timeout=0.5))) == 1  # one round at least
            assert (await told(track(client, journal)))[-1].status is DeliveryStatus.DELIVERED


@pytest.mark.looptime
async def test_a_timeout_ends_a_round_that_the_budget_slows_down(journal: Path) -> None:
    async with RawServer(by_path(status_of("delivered"))) as server:
        async with open_client(server.url) as client:
            await send(client, journal, *[NUMBER] * 60)
        async with open_client(server.url, budget=RateBudget(4, 10.0, burst=1)) as client:
            began = now()
            seen = await told(track(client, journal, timeout=60))
            assert now() - began <= 61
    assert 10 < len(seen) < 30


@pytest.mark.looptime
async def test_no_page_begins_after_the_timeout(journal: Path) -> None:
    async def slow(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        if b"/sms/status" in arrival.head:
            await asyncio.sleep(2)
        await by_path(status_of("delivered"))(arrival, writer)

    async with RawServer(slow) as server:
        async with open_client(server.url) as client:
            await send(client, journal, *[NUMBER] * 60)
            assert len(await told(track(client, journal, timeout=3))) == 40


@pytest.mark.looptime
async def test_pauses_grow_to_half_a_minute(journal: Path) -> None:
    scripts = [status_of("sent")] * 12
    async with RawServer(by_path(*scripts, status_of("failed"))) as server:
        async with open_client(server.url) as client:
            await send(client, journal, NUMBER)
            moments = []
            async for _ in track(client, journal):
                moments.append(now())  # noqa: PERF401
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    growing = [1.5**number for number in range(9)]
    assert pauses == pytest.approx([*growing, 30, 30, 30], rel=0.02)


async def test_a_wrong_key_is_raised_and_ends_every_poll(journal: Path) -> None:
    async with RawServer(by_path(refusal(401, "Invalid API key"))) as server:
        async with open_client(server.url) as client:
            await send(client, journal, *[NUMBER] * 25)
            with pytest.raises(AuthenticationError):
                await told(track(client, journal))
            assert sum(client.budget.statistics().waiting.values()) == 0
    assert recorded(journal) == {None: 25}  # type: ignore[comparison-overlap]


@pytest.mark.looptime
async def test_without_a_free_slot_it_goes_on_later(journal: Path) -> None:
    async with RawServer(by_path(status_of("delivered"))) as server:
        async with open_client(server.url) as client:
            await send(client, journal, NUMBER)
        budget = RateBudget(1, 10.0)
        (await budget.acquire()).answered()
        async with open_client(server.url, budget=budget, max_wait=0.001) as client:
            began = now()
            (delivery,) = await told(track(client, journal))
            assert now() - began >= 10
    assert delivery.status is DeliveryStatus.DELIVERED


async def test_nothing_was_sent(client: SMSIDClient, journal: Path) -> None:
    assert await told(track(client, journal)) == []


async def test_wrong_arguments_are_told(client: SMSIDClient, journal: Path) -> None:
    with pytest.raises(ConfigurationError, match="journal is int"):
        await told(track(client, 5))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="timeout"):
        await told(track(client, journal, timeout=-1))
