"""What a journal knows of the rows of a job, over any sequence of versions and interruptions."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from wire import SENT, RawServer, answer

from smsid_async import Message, RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

# A row is a letter: its text, for a recipient of its own, so that no text is ever a changed one.
Version = str
Run = tuple[Version, int | None, bool]  # stopped after so many results; as a stream, not a file


def row(letter: str) -> tuple[str, str]:
    return f"+447700900{ord(letter):03}", letter


def write(path: Path, version: Version) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("to", "message"), *map(row, version)])


def job_for(folder: Path, version: Version, *, streamed: bool) -> BulkJob:
    if streamed:
        messages = [Message(*row(letter)) for letter in version]
        return BulkJob(messages, folder / "journal", concurrency=2)
    write(folder / "list.csv", version)
    return BulkJob(folder / "list.csv", folder / "journal", concurrency=2)


async def run_all(folder: Path, runs: Sequence[Run]) -> list[list[str]]:
    """Do the runs one after the other; return what the server had got after each."""
    ledgers = []
    async with RawServer(answer(200, SENT)) as server:
        for version, stop_after, streamed in runs:
            budget = RateBudget.unlimited()
            async with SMSIDClient("test", base_url=server.url, budget=budget) as client:
                job = job_for(folder, version, streamed=streamed)
                async with job.run(client) as results:
                    number = 0
                    while number != stop_after and await anext(results, None) is not None:
                        number += 1
            ledgers.append([_letter(arrival.body) for arrival in server.ledger])
    return ledgers


def _letter(body: bytes) -> str:
    return body.partition(b'"message":"')[2][:1].decode()


versions = st.text("abc", min_size=1, max_size=8)
runs = st.tuples(versions, st.none() | st.integers(0, 4), st.booleans())


@settings(deadline=None, max_examples=20)
@given(runs=st.lists(runs, min_size=1, max_size=4))
def test_each_content_is_sent_as_often_as_it_ever_stood_in_one_version(runs: list[Run]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ledgers = asyncio.run(run_all(folder, runs))
        most: Counter[str] = Counter()
        for (version, stop_after, _), ledger in zip(runs, ledgers, strict=True):
            most |= Counter(version)
            assert Counter(ledger) <= most  # none twice
            if stop_after is None:
                assert Counter(version) <= Counter(ledger)  # none lost
        if not (folder / "journal").exists():  # no run came as far
            assert ledgers[-1] == []
            return
        summary = summarise(folder / "journal")
        assert summary.sent == len(ledgers[-1])
        assert summary.sent + summary.waiting + summary.not_sent == summary.total
        assert summary.unknown == summary.in_flight == summary.rejected == 0


@settings(deadline=None, max_examples=10)
@given(version=versions, stops=st.lists(st.integers(0, 3), max_size=4))
def test_however_often_it_is_interrupted_the_file_is_sent_exactly_once(
    version: Version, stops: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        runs = [*((version, stop, False) for stop in stops), (version, None, False)]
        ledgers = asyncio.run(run_all(Path(name), runs))
    assert Counter(ledgers[-1]) == Counter(version)


async def test_a_file_whose_check_was_cut_short_is_checked_anew(tmp_path: Path) -> None:
    path, journal = tmp_path / "list.csv", tmp_path / "journal"
    write(path, "abc")
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget.unlimited()
        async with SMSIDClient("test", base_url=server.url, budget=budget) as client:
            job = BulkJob(path, journal)
            await job.prepare(client)
            await job.aclose()
            with contextlib.closing(sqlite3.connect(journal)) as file, file:
                file.execute("UPDATE batches SET digest = NULL")  # as a kill would leave it
                file.execute("DELETE FROM entries WHERE line = 4")
            prepared = await BulkJob(path, journal).prepare(client)
            assert (prepared.known, prepared.to_send) == (False, 3)
            assert [result.line async for result in BulkJob(path, journal).run(client)] != []
    assert sorted(_letter(arrival.body) for arrival in server.ledger) == ["a", "b", "c"]


@pytest.mark.parametrize("rows", [999, 1000, 1001, 2500])
async def test_the_pieces_in_which_a_file_is_entered_do_not_show(tmp_path: Path, rows: int) -> None:
    path, journal = tmp_path / "list.csv", tmp_path / "journal"
    lines = "".join(f"+447700900{index % 1000:03},Text {index}\n" for index in range(rows))
    path.write_text("to,message\n" + lines)
    async with RawServer(answer(200, SENT)) as server:
        budget = RateBudget.unlimited()
        async with SMSIDClient("test", base_url=server.url, budget=budget) as client:
            job = BulkJob(path, journal)
            assert (await job.prepare(client)).to_send == rows
            await job.aclose()
            left = [rows - 1, *range(777, rows, 777)]  # the first ones are passed over
            with contextlib.closing(sqlite3.connect(journal)) as file, file:
                file.execute(
                    "UPDATE entries SET state = 'sent', message_id = 'M' WHERE row NOT IN "
                    f"({','.join(map(str, left))})"
                )
            seen = [result async for result in BulkJob(path, journal).run(client)]
    assert {result.index for result in seen} == set(left)
    assert all(result.message.text == f"Text {result.index}" for result in seen)
    assert all(result.line == result.index + 2 for result in seen)
    assert len(server.ledger) == len(seen)
