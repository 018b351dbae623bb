"""Bulk jobs: what is sent, what is not sent again, and what is told of it."""

from __future__ import annotations

import asyncio
import csv
import gc
import io
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path

import attrs
import pytest
from conftest import NUMBER
from wire import SENT, RawServer, answer, lanes_into, reset

from smsid_async import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    DuplicateReferenceError,
    InsufficientBalanceError,
    Message,
    Outcome,
    Priority,
    RateBudget,
    SMSIDClient,
    SMSIDError,
    ValidationError,
)
from smsid_async.bulk import BadRow, BulkJob, BulkRun, RowResult, Source, journal_beside
from smsid_async.journal import SQLiteJournal
from smsid_async.sandbox import Sandbox

OTHER = "+447700900456"
Rows = list[tuple[str, ...]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "list.csv"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "list.journal"


def write(path: Path, rows: Rows, columns: tuple[str, ...] = ("to", "message")) -> Path:
    out = io.StringIO()
    csv.writer(out).writerows([columns, *rows])
    path.write_bytes(out.getvalue().encode())
    return path


def rows_of(*texts: str) -> Rows:
    """Rows to one recipient for each different text, so that none gets another text."""
    return [(f"+447700900{ord(text[0]):03}", text) for text in texts]


def open_client(url: str, **options: object) -> SMSIDClient:
    settings: dict[str, object] = {"budget": RateBudget.unlimited()}
    return SMSIDClient("test", base_url=url, **(settings | options))  # type: ignore[arg-type]


async def told(run: BulkRun) -> list[RowResult]:
    return [result async for result in run]


async def told_until_it_fails(run: BulkRun) -> tuple[list[RowResult], SMSIDError]:
    seen: list[RowResult] = []
    try:
        async for result in run:
            seen.append(result)  # noqa: PERF401 - kept when the iteration fails
    except SMSIDError as error:
        return seen, error
    pytest.fail("the run did not fail")


async def refused(run: BulkRun, kind: type[SMSIDError]) -> str:
    seen, error = await told_until_it_fails(run)
    assert seen == []
    assert type(error) is kind
    assert not error.maybe_sent
    assert NUMBER not in str(error)
    assert "\n" not in str(error)
    return str(error)


def texts(sandbox: Sandbox) -> Counter[str]:
    return Counter(message.text for message in sandbox.messages)


def bodies(server: RawServer) -> list[str]:
    return [json.loads(arrival.body)["message"] for arrival in server.ledger]


# -- one run -------------------------------------------------------------------


async def test_each_row_is_sent_once_and_told(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    rows = [(NUMBER, f"Text\n{index}", "" if index % 2 else f"ref-{index}") for index in range(40)]
    write(path, rows, ("to", "message", "reference"))
    seen = await told(BulkJob(path, journal).run(client))

    assert sorted(result.index for result in seen) == list(range(40))
    accepted = {message.message_id: message.text for message in sandbox.messages}
    assert len(accepted) == 40
    for result in seen:
        assert result.line == 2 + 2 * result.index  # each text is on two lines
        assert (result.message.to, result.message.text) == rows[result.index][:2]
        assert result.message.reference is not None
        if result.index % 2 == 0:
            assert result.message.reference == f"ref-{result.index}"
        assert (result.outcome, result.error) == (Outcome.SENT, None)
        assert result.receipt is not None
        assert accepted[result.receipt.message_id] == result.message.text
    assert len({result.message.reference for result in seen}) == 40


async def test_the_lane_is_bulk_unless_told_otherwise(sandbox: Sandbox, tmp_path: Path) -> None:
    lanes: list[Priority] = []
    async with open_client(sandbox.url, hooks=[lanes_into(lanes)]) as client:
        for number, options in enumerate(({}, {"priority": Priority.NORMAL})):
            messages = [Message(NUMBER, "Hello")]
            await told(BulkJob(messages, tmp_path / str(number), **options).run(client))
    assert lanes == [Priority.BULK, Priority.NORMAL]


FILES: dict[str, tuple[str, bytes, dict[str, str], Rows]] = {
    "a byte order mark": (
        "a.csv",
        f"\ufeffto,message\r\n{NUMBER},Zoë\r\n".encode(),
        {},
        [(NUMBER, "Zoë")],
    ),
    "an encoding": (
        "a.csv",
        f"to,message\n{NUMBER},5 €\n".encode("cp1252"),
        {"encoding": "cp1252"},
        [(NUMBER, "5 €")],
    ),
    "utf-16": (
        "a.csv",
        f"to,message\n{NUMBER},5 €\n".encode("utf-16"),
        {"encoding": "utf-16"},
        [(NUMBER, "5 €")],
    ),
    "quotes": (
        "a.csv",
        f'to,message\n{NUMBER},"one, ""two""\n\nthree"\n'.encode(),
        {},
        [(NUMBER, 'one, "two"\n\nthree')],
    ),
    "a template": (
        "a.csv",
        f"name,to\nZoë,{NUMBER}\nIvo,{OTHER}\n".encode(),
        {"message": "Hi {name}"},
        [(NUMBER, "Hi Zoë"), (OTHER, "Hi Ivo")],
    ),
    "JSON lines": (
        "a.jsonl",
        json.dumps({"to": NUMBER, "text": "one\ntwo"}).encode(),
        {},
        [(NUMBER, "one\ntwo")],
    ),
    "a region": ("a.csv", b"to,message\n(07700) 900 123,Hi\n", {"region": "GB"}, [(NUMBER, "Hi")]),
}


@pytest.mark.parametrize(("name", "content", "options", "sent"), FILES.values(), ids=FILES.keys())
async def test_kinds_of_files(
    client: SMSIDClient,
    sandbox: Sandbox,
    tmp_path: Path,
    journal: Path,
    name: str,
    content: bytes,
    options: dict[str, str],
    sent: Rows,
) -> None:
    (tmp_path / name).write_bytes(content)
    for _ in range(2):
        await told(BulkJob(tmp_path / name, journal, **options).run(client))  # type: ignore[arg-type]
    assert sorted((message.to, message.text) for message in sandbox.messages) == sorted(sent)


# -- interrupted, and run again ------------------------------------------------


async def _break(run: BulkRun) -> None:
    number = 0
    async for _ in run:
        number += 1
        if number == 7:
            return


async def _stop(run: BulkRun) -> None:
    seen = []
    async for result in run:
        seen.append(result)
        if len(seen) == 7:
            run.stop()
    assert len([result for result in seen if result.outcome is Outcome.SENT]) <= 8


async def _aclose(run: BulkRun) -> None:
    async with run:
        for _ in range(7):
            await anext(run)
    with pytest.raises(StopAsyncIteration):
        await anext(run)


def _fail(kind: type[SMSIDError], number: int) -> Callable[[BulkRun], Awaitable[None]]:
    async def until_it_fails(run: BulkRun) -> None:
        seen, error = await told_until_it_fails(run)
        assert type(error) is kind
        outcomes = Counter(result.outcome for result in seen)
        assert outcomes == {Outcome.SENT: 7, Outcome.REJECTED: number}

    return until_it_fails


def _no(status: int, text: str) -> bytes:
    return json.dumps({"meta": {"code": status, "text": text}}).encode()


INTERRUPTIONS = {
    "break": (_break, []),
    "stop": (_stop, []),
    "aclose": (_aclose, []),
    "401": (_fail(AuthenticationError, 1), [answer(401, _no(401, "Invalid API key"))]),
    "no balance": (
        _fail(InsufficientBalanceError, 1),
        [answer(400, _no(400, "Insufficient balance"))],
    ),
    "twenty refusals": (_fail(BadRequestError, 20), [answer(400, _no(400, "Bad words"))] * 20),
}


@pytest.mark.parametrize(
    ("interrupt", "refusals"), INTERRUPTIONS.values(), ids=INTERRUPTIONS.keys()
)
async def test_a_stopped_run_is_continued_exactly(
    path: Path, journal: Path, interrupt: Callable[[BulkRun], Awaitable[None]], refusals: list
) -> None:
    write(path, [(NUMBER, f"Text {index}") for index in range(60)])
    scripts = [answer(200, SENT)] * 7
    async with RawServer(*scripts, *refusals, answer(200, SENT)) as server:
        async with open_client(server.url) as client:
            job = BulkJob(path, journal, concurrency=1)
            await interrupt(job.run(client))
            before = len(server.ledger)
            assert 7 <= before - len(refusals) <= 8
            seen = await told(job.run(client))
            assert all(result.outcome is Outcome.SENT for result in seen)
            assert bodies(server)[before:] == [result.message.text for result in seen]
            assert await told(job.run(client)) == []
        sent = bodies(server)
        del sent[7 : 7 + len(refusals)]
    assert sorted(sent) == sorted(f"Text {index}" for index in range(60))
    assert job.summary().sent == job.summary().total == 60


async def test_a_break_ends_what_is_in_hand_without_the_collector(
    path: Path, journal: Path
) -> None:
    write(path, [(NUMBER, f"Text {index}") for index in range(50)])
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget.unlimited(max_in_flight=1)
        async with open_client(server.url, budget=budget) as client:
            job = BulkJob(path, journal, concurrency=20)
            gc.disable()
            try:
                async for _ in job.run(client):
                    break
                async with asyncio.timeout(10):
                    while budget.statistics().in_flight or any(
                        budget.statistics().waiting.values()
                    ):
                        await asyncio.sleep(0.01)
            finally:
                gc.enable()
            assert len(server.ledger) < 10
            await told(job.run(client))
        assert sorted(bodies(server)) == sorted(f"Text {index}" for index in range(50))


class Gate:
    """Lets the check of a file begin and waits before it goes on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, number: str) -> str:
        self.entered.set()
        assert self.open.wait(30)
        return number


@pytest.mark.parametrize("how", ["aclose", "stop"])
async def test_stopped_while_the_file_is_checked(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path, how: str
) -> None:
    write(path, rows_of("a", "b", "c"))
    gate = Gate()
    job = BulkJob(Source(path, normalise=gate), journal)
    run = job.run(client)
    consumer = asyncio.create_task(told(run))
    assert await asyncio.to_thread(gate.entered.wait, 30)
    if how == "stop":
        run.stop()
    else:
        await run.aclose()
    gate.open.set()
    assert await consumer == []
    assert sandbox.messages == []
    assert job.summary().waiting == 3
    assert len(await told(job.run(client))) == 3


async def test_closed_or_stopped_before_it_began(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, rows_of("a")), journal)
    run = job.run(client)
    await run.aclose()
    assert await told(run) == []
    assert not journal.exists()
    run = job.run(client)
    run.stop()
    assert await told(run) == []
    assert sandbox.messages == []
    assert job.summary().waiting == 1


async def test_what_had_left_at_the_end_is_recorded_and_the_file_let_go(
    path: Path, journal: Path
) -> None:
    write(path, rows_of("a", "b"))
    arrived, go = asyncio.Event(), asyncio.Event()

    async def held(arrival: object, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await go.wait()
        await answer(200, SENT)(arrival, writer)  # type: ignore[arg-type]

    async with RawServer(held) as server:
        async with open_client(server.url) as client:
            job = BulkJob(path, journal, concurrency=1)
            run = job.run(client)
            consumer = asyncio.create_task(told(run))
            await arrived.wait()
            await run.aclose()
            assert await consumer == []
            assert job.summary().in_flight == 1
            go.set()
        assert (job.summary().sent, job.summary().waiting) == (1, 1)
        script = (
            "import asyncio, sys\n"
            "from smsid_async.journal import SQLiteJournal\n"
            "asyncio.run(SQLiteJournal(sys.argv[1]).open(sys.argv[2]))"
        )
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, journal, server.url, stderr=subprocess.PIPE
        )
        _, said = await other.communicate()
        assert (other.returncode, said) == (0, b"")


# -- versions of a file --------------------------------------------------------

EDITS: dict[str, tuple[str, str]] = {
    "the same": ("abc", "abc"),
    "moved": ("abc", "cab"),
    "inserted": ("abc", "axbyc"),
    "removed": ("abc", "b"),
    "another": ("abc", "xyz"),
    "edited": ("abc", "abd"),
    "doubled": ("abc", "abbc"),
    "one more of the same": ("aaa", "aaaa"),
    "one less of the same": ("aaa", "aa"),
    "one more, elsewhere": ("aab", "abaa"),
}


@pytest.mark.parametrize(("old", "new"), EDITS.values(), ids=EDITS.keys())
async def test_of_an_edited_file_only_what_is_new_is_sent(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path, old: str, new: str
) -> None:
    for version in (old, new, old, new):
        write(path, rows_of(*version))
        job = BulkJob(path, journal)
        prepared = await job.prepare(client)
        new_ones = Counter(version) - texts(sandbox)
        assert prepared.to_send == new_ones.total()
        assert prepared.rows == len(version)
        assert prepared.repeats == len(version) - len(set(version))
        seen = await told(job.run(client))
        assert Counter(result.message.text for result in seen) == new_ones
        assert all(version[result.index] == result.message.text for result in seen)
    assert texts(sandbox) == Counter(old) | Counter(new)


async def test_a_file_and_another_and_the_first_again(
    client: SMSIDClient, sandbox: Sandbox, tmp_path: Path, journal: Path
) -> None:
    first = write(tmp_path / "first.csv", rows_of(*"abc"))
    second = write(tmp_path / "second.csv", rows_of(*"cde"))
    async with BulkJob(first, journal, concurrency=1).run(client) as run:
        await anext(run)
    for each in (second, first, second):
        await told(BulkJob(each, journal).run(client))
    assert texts(sandbox) == Counter("abcde")


async def test_references_from_a_column(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    columns = ("reference", "to", "message")
    job = BulkJob(write(path, [("a", NUMBER, "Hi"), ("b", NUMBER, "Hi")], columns), journal)
    seen = await told(job.run(client))
    assert {result.message.reference for result in seen} == {"a", "b"}
    write(path, [("b", NUMBER, "Hi"), ("c", NUMBER, "Hi"), ("c", NUMBER, "Hi")], columns)
    prepared = await job.prepare(client)
    assert (prepared.rows, prepared.to_send, prepared.repeats) == (3, 1, 1)
    (result,) = await told(job.run(client))
    assert (result.index, result.line, result.message.reference) == (1, 3, "c")
    assert len(sandbox.messages) == 3


@pytest.mark.parametrize("earlier", [True, False], ids=["of an earlier file", "of an earlier row"])
async def test_a_reference_of_another_message_makes_its_row_bad(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path, earlier: bool
) -> None:
    columns = ("reference", "to", "message")
    rows = [("a", NUMBER, "Hi"), ("a", NUMBER, "Other")]
    if earlier:
        await told(BulkJob(write(path, rows[:1], columns), journal).run(client))
        rows = [("b", NUMBER, "Hi"), *rows[1:]]
    looked: list[object] = []
    job = BulkJob(write(path, rows, columns), journal)
    prepared = await job.prepare(client, look=looked.append)
    assert prepared.new == 1
    assert await job.prepare(client) == attrs.evolve(prepared, new=0)
    why = "its reference belongs to another message in this journal"
    assert prepared.bad == (BadRow(3, why),)
    assert (prepared.rows, prepared.bad_rows) == (1, 1)
    assert BadRow(3, why) in looked
    assert why in await refused(job.run(client), ValidationError)
    assert len(sandbox.messages) == earlier


@pytest.mark.parametrize("reference", ["x" * 201, "a\nb", "\ud800"])
async def test_a_reference_that_cannot_be_one_is_found_before_anything_is_sent(
    client: SMSIDClient, sandbox: Sandbox, tmp_path: Path, journal: Path, reference: str
) -> None:
    lines = [
        {"to": NUMBER, "message": "one"},
        {"to": NUMBER, "message": "two", "reference": reference},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    said = await refused(BulkJob(path, journal).run(client), ValidationError)
    assert "1 rows cannot be sent, so nothing was; the first is on line 2: the reference" in said
    assert sandbox.messages == []


async def test_a_changed_text_is_listed_and_needs_leave(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    await told(BulkJob(write(path, [(NUMBER, "old"), (OTHER, "same")]), journal).run(client))
    write(path, [(OTHER, "same"), (NUMBER, "new")])
    job = BulkJob(path, journal)
    prepared = await job.prepare(client)
    assert (prepared.to_send, prepared.changed_rows) == (1, 1)
    (changed,) = prepared.changed
    assert (changed.row, changed.line, changed.recipient) == (1, 3, NUMBER)
    assert NUMBER not in repr(prepared)
    said = await refused(job.run(client), ValidationError)
    assert said.startswith("1 recipients already got a different text in this journal")
    assert "line 3" in said
    assert len(sandbox.messages) == 2

    job.allow_changed = True
    assert [result.message.text for result in await told(job.run(client))] == ["new"]
    assert texts(sandbox) == Counter(["old", "same", "new"])
    assert (await BulkJob(path, journal).prepare(client)).changed_rows == 0


async def test_two_texts_for_one_recipient_in_one_file_are_no_change(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, [(NUMBER, "one"), (NUMBER, "two")]), journal, concurrency=1)
    async for _ in job.run(client):
        break
    write(path, [(NUMBER, "one"), (NUMBER, "two"), (OTHER, "three")])
    assert len(await told(BulkJob(path, journal).run(client))) == 2
    assert texts(sandbox) == Counter(["one", "two", "three"])


async def test_many_changed_recipients_are_counted_and_a_hundred_shown(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    numbers = [f"+447700900{index:03}" for index in range(150)]
    await told(BulkJob(write(path, [(each, "old") for each in numbers]), journal).run(client))
    prepared = await BulkJob(write(path, [(each, "new") for each in numbers]), journal).prepare(
        client
    )
    assert (prepared.changed_rows, len(prepared.changed)) == (150, 100)
    assert len(sandbox.messages) == 150


async def test_a_job_may_be_run_by_a_client_with_another_sender(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, rows_of("one", "two")), journal, allow_changed=True)
    await told(job.run(client))
    async with open_client(sandbox.url, sender_id="SMSID") as other:
        results = await told(job.run(other))
    assert [result.outcome for result in results] == [Outcome.SENT] * 2
    assert len(sandbox.messages) == 4


async def test_a_job_says_so_when_another_took_its_rows(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    """Another job prepares an edited file over the same journal, while this one sends."""
    body = [(NUMBER, f"Text {number}") for number in range(1500)]
    write(path, body)
    other = write(path.with_name("edited.csv"), [*body, ("no number", "oops")])
    own = SQLiteJournal(journal)
    seen: list[RowResult] = []

    async def disturbed() -> None:
        async for result in BulkJob(path, own, concurrency=10).run(client):
            seen.append(result)
            if len(seen) == 50:
                await BulkJob(other, own).prepare(client)

    with pytest.raises(ConfigurationError, match="another job has entered rows"):
        await disturbed()
    assert len(sandbox.messages) == len(seen) < 1500
    job = BulkJob(path, own)
    await job.prepare(client)
    await BulkJob(other, own).prepare(client)
    assert "another job has entered rows" in await refused(job.run(client), ConfigurationError)
    await told(BulkJob(path, own).run(client))
    assert len({message.text for message in sandbox.messages}) == len(sandbox.messages) == 1500
    await own.aclose()


async def test_a_file_that_changes_while_it_is_checked_is_not_taken_for_the_other(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    write(path, rows_of("one", "two"))
    job = BulkJob(path, journal)
    with pytest.raises(ValidationError, match="was changed while it was checked"):
        await job.prepare(client, look=lambda _: write(path, rows_of("three")))
    await told(job.run(client))
    assert [message.text for message in sandbox.messages] == ["three"]


@pytest.mark.parametrize("flag", ["resend_unknown", "allow_changed"])
def test_a_flag_that_is_a_text_is_refused(path: Path, flag: str) -> None:
    with pytest.raises(ConfigurationError, match="give True or False"):
        BulkJob(path, **{flag: "false"})  # type: ignore[arg-type]


async def test_the_sender_of_the_client_is_part_of_a_message(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    write(path, rows_of("a"))
    await told(BulkJob(path, journal).run(client))
    async with open_client(sandbox.url, sender_id="SMSID") as other:
        said = await refused(BulkJob(path, journal).run(other), ValidationError)
        assert "a different text" in said
        await told(BulkJob(path, journal, allow_changed=True).run(other))
        assert await told(BulkJob(path, journal, allow_changed=True).run(other)) == []
    assert len(sandbox.messages) == 2


# -- other messages than a file's ----------------------------------------------


def a_list(number: int) -> list[Message]:
    return [Message(f"+447700900{index:03}", f"Text {index}") for index in range(number)]


async def an_async_generator(number: int) -> AsyncIterator[Message]:
    for message in a_list(number):
        await asyncio.sleep(0)
        yield message


STREAMS: dict[str, Callable[[int], object]] = {
    "list": a_list,
    "generator": lambda number: iter(a_list(number)),
    "async generator": an_async_generator,
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS.keys())
async def test_iterables_of_messages(
    client: SMSIDClient, sandbox: Sandbox, journal: Path, make: Callable[[int], object]
) -> None:
    for number in (120, 250, 250):
        before = len(sandbox.messages)
        job = BulkJob(make(number), journal)  # type: ignore[arg-type]
        seen = await told(job.run(client))
        assert {result.index for result in seen} == set(range(before, number))
        assert all(result.line is None for result in seen)
        assert all(result.message.text == f"Text {result.index}" for result in seen)
        assert (job.summary().total, job.summary().sent) == (number, number)
    assert texts(sandbox) == Counter(f"Text {index}" for index in range(250))


@pytest.mark.parametrize(("asynchronous", "ahead"), [(True, 1), (False, 100)])
async def test_messages_are_pulled_as_they_can_be_sent(
    client: SMSIDClient, sandbox: Sandbox, journal: Path, asynchronous: bool, ahead: int
) -> None:
    pulled = 0

    def endless() -> Iterator[Message]:
        nonlocal pulled
        while True:
            pulled += 1
            yield Message(NUMBER, f"Text {pulled}")

    async def endless_too() -> AsyncIterator[Message]:
        for message in endless():
            yield message

    consumed = 0
    job = BulkJob(endless_too() if asynchronous else endless(), journal, concurrency=3)
    async for _ in job.run(client):
        consumed += 1
        for _ in range(50):  # time enough to pull more, were it allowed
            await asyncio.sleep(0)
        assert pulled <= consumed + 3 + ahead
        if consumed == 130:
            break
    await client.aclose()
    assert 130 <= len(sandbox.messages) <= 133
    assert max(texts(sandbox).values()) == 1


async def test_wrong_messages_are_told_and_the_others_sent(
    client: SMSIDClient, sandbox: Sandbox, journal: Path
) -> None:
    messages = [
        Message(NUMBER, "one", reference="a"),
        Message("0770", "two"),
        Message(NUMBER, ""),
        Message(NUMBER, "three", "x"),
        Message(NUMBER, "four", reference="a"),  # another message's
        Message(NUMBER, "one", reference="a"),  # the same again
        Message(NUMBER, "five", reference=["x"]),  # type: ignore[arg-type]
        Message(NUMBER, "six", reference="\ud800"),
        Message(NUMBER, "seven"),
    ]
    seen = {result.index: result for result in await told(BulkJob(messages, journal).run(client))}
    kinds = {index: type(result.error) for index, result in seen.items()}
    assert kinds == {
        **dict.fromkeys((1, 2, 3, 6, 7), ValidationError),
        0: type(None),
        4: DuplicateReferenceError,
        8: type(None),
    }
    assert all(
        result.outcome is (Outcome.NOT_SENT if result.error else Outcome.SENT)
        for result in seen.values()
    )
    assert texts(sandbox) == Counter(["one", "seven"])


async def test_what_is_no_message_ends_the_run(
    client: SMSIDClient, sandbox: Sandbox, journal: Path
) -> None:
    source = [Message(NUMBER, "one"), "two", Message(NUMBER, "three")]
    seen, error = await told_until_it_fails(BulkJob(source, journal).run(client))  # type: ignore[arg-type]
    assert isinstance(error, ConfigurationError)
    assert "yielded str at index 1" in str(error)
    assert [result.message.text for result in seen] == ["one"]
    assert texts(sandbox) == Counter(["one"])


async def test_what_came_before_a_source_failed_is_sent(
    client: SMSIDClient, sandbox: Sandbox, journal: Path
) -> None:
    def failing() -> Iterator[Message]:
        yield from a_list(130)
        raise LookupError("the queue is gone")

    run = BulkJob(failing(), journal).run(client)
    for _ in range(130):
        assert (await anext(run)).outcome is Outcome.SENT
    with pytest.raises(LookupError, match="the queue is gone"):
        await anext(run)
    assert len(sandbox.messages) == 130


async def test_changed_texts_in_a_stream_are_refused_one_by_one(
    client: SMSIDClient, sandbox: Sandbox, journal: Path
) -> None:
    await told(BulkJob([Message(NUMBER, "old")], journal).run(client))
    messages = [Message(NUMBER, "new"), Message(OTHER, "first")]
    seen = {
        result.message.text: result for result in await told(BulkJob(messages, journal).run(client))
    }
    assert seen["first"].outcome is Outcome.SENT
    assert seen["new"].outcome is Outcome.NOT_SENT
    assert isinstance(seen["new"].error, ValidationError)
    assert "allow_changed=True" in str(seen["new"].error)
    assert texts(sandbox) == Counter(["old", "first"])
    await told(BulkJob(messages, journal, allow_changed=True).run(client))
    assert texts(sandbox) == Counter(["old", "first", "new"])


async def test_two_texts_for_one_recipient_in_one_stream_are_no_change(
    client: SMSIDClient, sandbox: Sandbox, journal: Path
) -> None:
    async def two() -> AsyncIterator[Message]:
        yield Message(NUMBER, "one")
        yield Message(NUMBER, "two")

    seen = await told(BulkJob(two(), journal, concurrency=1).run(client))
    assert [result.outcome for result in seen] == [Outcome.SENT] * 2
    assert len(sandbox.messages) == 2


# -- before the run ------------------------------------------------------------


async def test_prepare_tells_what_will_be_sent(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    write(path, [(NUMBER, "one"), (NUMBER, "two"), (NUMBER, "one")])
    job = BulkJob(path, journal)
    looked: list[object] = []
    first = await job.prepare(client, look=looked.append)
    assert (first.rows, first.to_send, first.repeats, first.bad_rows) == (3, 3, 1, 0)
    assert not first.known
    assert looked == list(Source(path))
    assert sandbox.requests == []
    again = await job.prepare(client, look=looked.append)
    assert (again.rows, again.to_send, again.repeats, again.known) == (3, 3, 1, True)
    assert len(looked) == 3
    assert len(await told(job.run(client))) == 3
    assert (await job.prepare(client)).to_send == 0
    await job.aclose()


async def test_look_sees_every_row_of_a_long_file(
    client: SMSIDClient, path: Path, journal: Path
) -> None:
    write(path, [(NUMBER if index % 5 else "bad", f"Text {index}") for index in range(2500)])
    lines: list[int] = []
    job = BulkJob(path, journal)
    prepared = await job.prepare(client, look=lambda row: lines.append(row.line))
    await job.aclose()
    assert lines == list(range(2, 2502))
    assert (prepared.rows, prepared.bad_rows, len(prepared.bad)) == (2000, 500, 100)
    assert [row.line for row in prepared.bad] == list(range(2, 502, 5))


async def test_one_bad_row_and_nothing_is_sent(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, [(NUMBER, "one"), (NUMBER, "secret" * 300)]), journal)
    for _ in range(2):  # it is not taken for a known file
        said = await refused(job.run(client), ValidationError)
        assert said == (
            "1 rows cannot be sent, so nothing was; the first is on line 3: "
            "the message text has 1800 characters; the API takes 1 to 1600"
        )
    assert sandbox.requests == []
    assert len(await told(BulkJob(write(path, [(NUMBER, "one")]), journal).run(client))) == 1


@pytest.mark.parametrize("content", ["", "to,message\n"])
async def test_an_empty_file(client: SMSIDClient, path: Path, journal: Path, content: str) -> None:
    path.write_text(content)
    said = await refused(BulkJob(path, journal).run(client), ValidationError)
    assert said == f"{path} has no rows; nothing can be sent"


async def test_a_file_that_is_not_there(client: SMSIDClient, path: Path, journal: Path) -> None:
    said = await refused(BulkJob(path, journal).run(client), ConfigurationError)
    assert said == f"there is no file {path}; check the path"


async def test_only_a_file_can_be_prepared(client: SMSIDClient, journal: Path) -> None:
    job = BulkJob([Message(NUMBER, "one")], journal)
    with pytest.raises(ConfigurationError, match="only a file can be prepared"):
        await job.prepare(client)
    await job.aclose()


ALL = [(NUMBER, "one"), (NUMBER, "two"), (NUMBER, "three")]
CHANGES: dict[str, tuple[Rows, type[SMSIDError], str, list[str]]] = {
    "a row went bad": ([*ALL[:1], ("0", "two"), ALL[2]], ValidationError, "line 3", ["one"]),
    "rows went": (ALL[:1], ValidationError, "was changed after it was checked", ["one"]),
}


@pytest.mark.parametrize(("rows", "kind", "words", "sent"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_file_changed_after_it_was_checked(
    client: SMSIDClient,
    sandbox: Sandbox,
    path: Path,
    journal: Path,
    rows: Rows,
    kind: type[SMSIDError],
    words: str,
    sent: list[str],
) -> None:
    job = BulkJob(write(path, ALL), journal)
    await job.prepare(client)
    write(path, rows)
    seen, error = await told_until_it_fails(job.run(client))
    assert type(error) is kind
    assert words in str(error)
    assert [result.message.text for result in seen] == sent
    assert len(await told(BulkJob(write(path, ALL), journal).run(client))) == 3 - len(sent)
    assert texts(sandbox) == Counter(["one", "two", "three"])


async def test_a_row_edited_after_it_was_checked_is_not_sent(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, ALL), journal)
    await job.prepare(client)
    write(path, [ALL[0], (OTHER, "two"), ALL[2]])
    seen = {result.message.text: result for result in await told(job.run(client))}
    assert isinstance(seen["two"].error, DuplicateReferenceError)
    assert texts(sandbox) == Counter(["one", "three"])
    (result,) = await told(job.run(client))  # looks at the file anew
    assert (result.message.to, result.outcome) == (OTHER, Outcome.SENT)


async def test_a_file_that_vanished_after_it_was_checked(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, ALL), journal)
    await job.prepare(client)
    path.unlink()
    assert "there is no file" in await refused(job.run(client), ConfigurationError)
    assert sandbox.messages == []


async def test_many_rows_to_one_number_are_checked_quickly(
    client: SMSIDClient, path: Path, journal: Path
) -> None:
    job = BulkJob(write(path, [(NUMBER, f"Text {index}") for index in range(10_000)]), journal)
    async with asyncio.timeout(8):  # 12 s and more if each were compared with each
        assert (await job.prepare(client)).to_send == 10_000
    await job.aclose()


# -- journals ------------------------------------------------------------------


async def test_without_one_the_job_uses_the_journal_of_the_client(
    sandbox: Sandbox, path: Path, journal: Path
) -> None:
    own = SQLiteJournal(journal)
    async with open_client(sandbox.url, journal=own) as client:
        job = BulkJob(write(path, rows_of("a", "b")))
        with pytest.raises(ConfigurationError, match="the job has no journal yet"):
            job.summary()
        await told(job.run(client))
        assert await told(BulkJob(path, own).run(client)) == []
        assert await told(BulkJob(path, journal).run(client)) == []
        await client.sms.send(NUMBER, "Hello", reference="order-1")
        assert (job.summary().total, BulkJob([], own).summary().total) == (2, 3)
    assert texts(sandbox) == Counter(["a", "b", "Hello"])


async def test_a_job_needs_a_journal(client: SMSIDClient, path: Path) -> None:
    said = await refused(BulkJob(write(path, rows_of("a"))).run(client), ConfigurationError)
    assert said.startswith("a job needs a SQLiteJournal")


async def test_a_journal_of_another_api_is_refused(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    await told(BulkJob(write(path, rows_of("a")), journal).run(client))
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as other:
        said = await refused(BulkJob(path, journal).run(other), ConfigurationError)
        assert "was made for base_url" in said
        assert server.ledger == []


WRONG: dict[str, tuple[object, dict[str, object], str]] = {
    "a number": (5, {}, "source is int, which has no messages"),
    "bytes": (None, {}, "source is NoneType"),
    "a template for messages": ([], {"message": "Hi"}, "for the path of a file"),
    "a region for a source": (Source("a"), {"region": "GB"}, "for the path of a file"),
    "a journal of a wrong type": ("a", {"journal": 5}, "journal is int; give a SQLiteJournal"),
    "an empty path": ("a", {"journal": ""}, "a journal needs the path of a file"),
    "no such region": ("a", {"region": "XX"}, "there is no region 'XX'"),
    "a broken template": ("a", {"message": "{"}, "the message template is broken"),
}


@pytest.mark.parametrize(("source", "options", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_told_at_once(
    source: object, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        BulkJob(source, **options)  # type: ignore[arg-type]


async def test_a_wrong_concurrency_is_told(client: SMSIDClient, path: Path, journal: Path) -> None:
    job = BulkJob(write(path, rows_of("a")), journal, concurrency=0)
    assert "concurrency is 0" in await refused(job.run(client), ConfigurationError)


@pytest.mark.parametrize(
    ("label", "name"),
    [(None, "127.0.0.1-9"), ("main", "main"), ("a/b é", "a-b-")],
)
async def test_the_journal_beside_a_file_is_named_after_the_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: str | None, name: str
) -> None:
    monkeypatch.delenv("SMSID_ACCOUNT", raising=False)
    if label is not None:
        monkeypatch.setenv("SMSID_ACCOUNT", label)
    async with SMSIDClient("test", base_url="http://127.0.0.1:9/api/v1") as client:
        found = journal_beside(tmp_path / "list.csv", client)
    assert found.path == tmp_path / f"list.csv.{name}.journal"
    assert found.account == (label or "default")


# -- what is in doubt ----------------------------------------------------------


async def test_what_is_in_doubt_is_sent_again_only_when_asked(path: Path, journal: Path) -> None:
    write(path, rows_of("a", "b"))
    async with RawServer(reset, answer(200, SENT)) as server, open_client(server.url) as client:
        job = BulkJob(path, journal, concurrency=1)
        seen = await told(job.run(client))
        assert [result.outcome for result in seen] == [Outcome.UNKNOWN, Outcome.SENT]
        assert (job.summary().unknown, job.summary().sent) == (1, 1)
        assert await told(BulkJob(path, journal).run(client)) == []
        again = BulkJob(path, journal, resend_unknown=True)
        assert (await again.prepare(client)).to_send == 1
        (result,) = await told(again.run(client))
        assert (result.outcome, result.message.text) == (Outcome.SENT, "a")
        assert await told(again.run(client)) == []
        assert bodies(server) == ["a", "b", "a"]


async def test_what_is_in_doubt_in_a_stream(journal: Path) -> None:
    messages = a_list(2)
    async with RawServer(reset, answer(200, SENT)) as server, open_client(server.url) as client:
        await told(BulkJob(messages, journal, concurrency=1).run(client))
        assert await told(BulkJob(messages, journal).run(client)) == []
        await told(BulkJob(messages, journal, resend_unknown=True).run(client))
        assert bodies(server) == ["Text 0", "Text 1", "Text 0"]


# -- summaries -----------------------------------------------------------------


async def test_the_summary_at_every_stage(
    client: SMSIDClient, sandbox: Sandbox, path: Path, journal: Path
) -> None:
    write(path, [(NUMBER, "one"), (NUMBER, "two"), (NUMBER, "x" * 161)])
    job = BulkJob(path, journal, concurrency=1)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        job.summary()
    await job.prepare(client)
    summary = job.summary()
    assert (summary.total, summary.waiting, summary.cost) == (3, 3, Decimal(0))
    sent = 0
    async for _ in job.run(client):
        sent += 1
        summary = job.summary()
        assert summary.total == 3
        assert summary.sent == sent
        assert summary.in_flight + summary.waiting == 3 - sent
    assert (summary.sent, summary.cost) == (3, Decimal("0.16"))
    assert (summary.delivered, summary.failed, summary.unknown) == (0, 0, 0)


async def test_each_outcome_is_counted(path: Path, journal: Path) -> None:
    write(path, rows_of(*"abcd"))
    scripts = [reset, answer(422, _no(422, "Bad number")), answer(200, SENT)]
    async with RawServer(*scripts) as server, open_client(server.url) as client:
        job = BulkJob(path, journal, concurrency=1)
        await told(job.run(client))
    summary = job.summary()
    counts = (summary.total, summary.unknown, summary.rejected, summary.sent)
    assert counts == (4, 1, 1, 2)


async def test_what_never_left_is_counted_as_such(
    sandbox: Sandbox, path: Path, journal: Path
) -> None:
    budget = RateBudget(1, 60.0)
    async with open_client(sandbox.url, budget=budget, max_wait=1.0) as client:
        job = BulkJob(write(path, rows_of("a", "b")), journal)
        outcomes = [result.outcome for result in await told(job.run(client))]
    assert sorted(outcomes) == [Outcome.NOT_SENT, Outcome.SENT]
    assert (job.summary().not_sent, job.summary().sent) == (1, 1)
