"""Reports of journals: nothing lost, nothing that a spreadsheet would calculate."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import sqlite3
import stat
from collections import Counter
from datetime import datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from conftest import NUMBER
from hypothesis import HealthCheck, given, settings
from wire import SENT, RawServer, answer, reset

from smsid_async import ConfigurationError, RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob, report, summarise, track
from smsid_async.journal import SQLiteJournal
from smsid_async.sandbox import Sandbox

COLUMNS = [
    *("line", "reference", "to", "outcome", "message_id", "cost"),
    *("delivery", "sent_at", "delivery_at", "error"),
]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.csv"
    rows = "".join(f"+44770090000{index},Text {index}\n" for index in range(4))
    path.write_text("to,message\n" + rows)
    return path


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "list.journal"


def as_csv(journal: Path, **options: int) -> list[dict[str, str]]:
    out = io.StringIO(newline="")
    number = report(journal, out, **options)  # type: ignore[arg-type]
    header, *lines = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert header == COLUMNS
    assert len(lines) == number
    return [dict(zip(header, map(undone, line), strict=True)) for line in lines]


def undone(cell: str) -> str:
    """Take back what is done against formulas, as the documentation says it."""
    return cell.removeprefix("'")


def as_jsonl(journal: Path) -> list[dict[str, object]]:
    out = io.StringIO()
    number = report(journal, out, format="jsonl")
    lines = [json.loads(line) for line in out.getvalue().split("\n")[:-1]]
    assert len(lines) == number
    return lines


async def run_job(path: Path, journal: Path) -> BulkJob:
    """Send four rows: one ends unknown, one is refused, two are sent."""
    refusal = answer(422, b'{"meta": {"code": 422, "text": "=1+1"}}')
    async with RawServer(reset, refusal, answer(200, SENT)) as server:
        async with SMSIDClient(
            "test", base_url=server.url, budget=RateBudget.unlimited()
        ) as client:
            job = BulkJob(path, journal, concurrency=1)
            async for _ in job.run(client):
                pass
    return job


async def test_each_row_is_told_in_the_order_of_the_file(path: Path, journal: Path) -> None:
    job = await run_job(path, journal)
    rows = as_csv(journal)
    assert [row["line"] for row in rows] == ["2", "3", "4", "5"]
    assert [row["to"] for row in rows] == [f"+44770090000{index}" for index in range(4)]
    assert [row["outcome"] for row in rows] == ["unknown", "rejected", "sent", "sent"]
    assert [row["message_id"] for row in rows] == ["", "", "M1", "M1"]
    assert [row["cost"] for row in rows] == ["", "", "0.0400", "0.0400"]
    assert [bool(row["sent_at"]) for row in rows] == [False, False, True, True]
    assert datetime.fromisoformat(rows[2]["sent_at"]).tzinfo is not None
    assert rows[0]["error"].startswith("OutcomeUnknownError: ")
    assert "=1+1" in rows[1]["error"]
    assert not rows[2]["error"]
    assert len({row["reference"] for row in rows}) == 4

    out = io.StringIO()
    assert job.report(out, format="jsonl") == 4
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert told == as_jsonl(journal)
    for row, line in zip(rows, told, strict=True):
        assert list(line) == COLUMNS
        assert row == {name: "" if value is None else str(value) for name, value in line.items()}
    assert (told[0]["line"], told[0]["cost"], told[0]["delivery"]) == (2, None, None)


async def test_a_phone_number_is_no_formula(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    out = io.StringIO(newline="")
    report(journal, out)
    assert f"'{NUMBER[:-3]}000" in out.getvalue()
    assert ",+44" not in out.getvalue()


async def test_a_report_at_every_stage(sandbox: Sandbox, path: Path, journal: Path) -> None:
    job = BulkJob(path, journal, concurrency=1)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        job.report(io.StringIO())
    async with SMSIDClient("test", base_url=sandbox.url, budget=RateBudget.unlimited()) as client:
        await job.prepare(client)
        assert {row["outcome"] for row in as_csv(journal)} == {"waiting"}
        sent = 0
        async for _ in job.run(client):
            sent += 1
            outcomes = Counter(row["outcome"] for row in as_csv(journal))
            assert outcomes["sent"] == sent
            assert outcomes["in flight"] + outcomes["waiting"] == 4 - sent


async def test_what_is_in_flight_is_told(path: Path, journal: Path) -> None:
    arrived = asyncio.Event()

    async def hold(_: object, __: object) -> None:
        arrived.set()
        await asyncio.Event().wait()

    async with RawServer(hold) as server:
        budget = RateBudget.unlimited()
        client = SMSIDClient("test", base_url=server.url, budget=budget, attempt_timeout=1.0)
        async with client:
            job = BulkJob(path, journal, concurrency=1)
            run = job.run(client)
            consumer = asyncio.ensure_future(anext(run))
            await arrived.wait()
            assert [row["outcome"] for row in as_csv(journal)] == ["in flight", *["waiting"] * 3]
            assert (await consumer).outcome == "unknown"
            await run.aclose()


async def test_the_report_of_a_job_has_its_own_rows_only(
    sandbox: Sandbox, tmp_path: Path, path: Path, journal: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("to,message\n+447700900777,Hello\n")
    async with SMSIDClient("test", base_url=sandbox.url, budget=RateBudget.unlimited()) as client:
        jobs = [BulkJob(path, journal), BulkJob(other, journal)]
        for job in jobs:
            async for _ in job.run(client):
                pass
    assert [job.report(io.StringIO()) for job in jobs] == [4, 1]
    assert [job.summary().total for job in jobs] == [4, 1]
    assert report(journal, io.StringIO()) == summarise(journal).total == 5
    assert BulkJob(path, journal).report(io.StringIO()) == 5


async def test_deliveries_are_in_the_report(tmp_path: Path, journal: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("to,message\n+447700900001,Hello\n+447700900999,Hello\n")
    async with Sandbox(limit=None, delivery=(0.0, 0.0)) as sandbox:
        async with SMSIDClient(
            "test", base_url=sandbox.url, budget=RateBudget.unlimited()
        ) as client:
            async for _ in BulkJob(path, journal).run(client):
                pass
            assert [row["delivery_at"] for row in as_csv(journal)] == ["", ""]
            async for _ in track(client, journal):
                pass
    rows = as_csv(journal)
    assert [row["delivery"] for row in rows] == ["delivered", "failed"]
    assert all(datetime.fromisoformat(row["delivery_at"]) for row in rows)
    summary = summarise(journal)
    assert (summary.sent, summary.delivered, summary.failed) == (2, 1, 1)


# -- files ---------------------------------------------------------------------


async def test_a_report_in_a_file_is_for_its_owner_only(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    for form, suffix in (("csv", b"\r\n"), ("jsonl", b"\n")):
        destination = path.with_suffix(f".{form}.report")
        for name in (destination, str(destination)):  # new, and then written over
            assert report(journal, name, format=form) == 4
            assert stat.S_IMODE(destination.stat().st_mode) == 0o600
        content = destination.read_bytes()
        assert content.endswith(suffix)
        assert content.count(b"\n") == 4 + (form == "csv")


async def test_what_cannot_be_written_is_told(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    with pytest.raises(ConfigurationError, match="cannot be written") as caught:
        report(journal, path.parent)
    assert "Is a directory" in str(caught.value)
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        report(journal, path.parent / "no" / "report.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
async def test_a_full_disk_is_told(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        report(journal, "/dev/full")


async def test_a_report_does_not_take_the_journals_place(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    with pytest.raises(ConfigurationError, match="the journal's place"):
        report(journal, journal.parent / "." / journal.name)
    link = path.with_suffix(".link")
    link.hardlink_to(journal)
    for part in (link, Path(f"{journal}.lock"), Path(f"{journal}-wal")):
        with pytest.raises(ConfigurationError, match="the journal's place"):
            report(journal, part)
    assert report(journal, path.with_suffix(".csv2")) > 0


async def test_a_wrong_format_is_told_and_harms_no_file(path: Path, journal: Path) -> None:
    await run_job(path, journal)
    destination = path.with_suffix(".old")
    destination.write_text("precious")
    for form in ("xlsx", "CSV", ""):
        with pytest.raises(ConfigurationError, match=f"there is no report format '{form}'"):
            report(journal, destination, format=form)
    assert destination.read_text() == "precious"


async def test_what_is_no_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to,message\n" * 100)
    with contextlib.closing(sqlite3.connect(tmp_path / "other")) as file:
        file.execute("CREATE TABLE entries (id)")
    for name, words in (
        ("text", "cannot be read"),
        ("none", "cannot be read"),
        ("other", "is an SQLite file, but not a journal"),
    ):
        for tell in (summarise, lambda journal: report(journal, io.StringIO())):
            with pytest.raises(ConfigurationError, match=words):
                tell(tmp_path / name)
    assert not (tmp_path / "none").exists()


# -- properties ----------------------------------------------------------------


@pytest.fixture(scope="module")
def empty_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "a ?%20#.journal"  # and a name to be escaped

    async def make() -> None:
        journal = SQLiteJournal(path)
        await journal.open("http://127.0.0.1:9/api/v1")
        await journal.aclose()

    asyncio.run(make())
    return path


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
cells = st.one_of(
    words, st.builds(str.__add__, st.sampled_from([*FORMULA, "'", "''", "'="]), words)
)
entries = st.tuples(cells, cells, st.none() | cells, st.none() | cells)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entries=st.lists(entries, max_size=5, unique_by=lambda entry: entry[0]))
def test_no_cell_is_a_formula_and_none_loses_anything(
    empty_journal: Path, entries: list[tuple[str, str, str | None, str | None]]
) -> None:
    with contextlib.closing(sqlite3.connect(empty_journal)) as file, file:
        file.execute("DELETE FROM entries")
        file.executemany(
            "INSERT INTO entries (reference, recipient, message_id, why, fingerprint, state) "
            "VALUES (?, ?, ?, ?, '', 'sent')",
            entries,
        )
    out = io.StringIO(newline="")
    report(empty_journal, out)
    for line in csv.reader(io.StringIO(out.getvalue(), newline="")):
        assert not any(cell.startswith(FORMULA) for cell in line)

    names = ("reference", "to", "message_id", "error")
    found = [tuple(row[name] for name in names) for row in as_csv(empty_journal)]
    assert found == [tuple(cell or "" for cell in entry) for entry in entries]
    exact = [tuple(row[name] for name in names) for row in as_jsonl(empty_journal)]
    assert exact == entries
