"""Messages by the thousand: files of them, and jobs that survive being killed.

`Source` reads a CSV or JSONL file as often as it is iterated over, and yields a `Row`
for each good row and a `BadRow` for each other. `make_plan` counts them in one pass. A
`BulkJob` sends them over a journal: killed at any moment and run again, it sends no
message twice and loses none unreported::

    job = BulkJob("customers.csv", "customers.journal", message="Hi {name}, it is here.")
    async with SMSIDClient() as client:
        async for result in job.run(client):
            print(result.line, result.outcome)
    print(job.summary())
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import attrs

from smsid_async import _entries, _manifest
from smsid_async._config import account_label, check_flag, check_seconds
from smsid_async._fanout import SendMany, send_all
from smsid_async._feeds import FileFeed, Preparation, StreamFeed
from smsid_async._manifest import Changed
from smsid_async._regions import Region
from smsid_async._report import check_form, write_report
from smsid_async._sources import BadRow, Plan, Row, Source, Template, make_plan
from smsid_async._sqlite import read_only
from smsid_async._tracking import Delivery, follow
from smsid_async.budget import Priority, RateBudget
from smsid_async.errors import ConfigurationError, ValidationError
from smsid_async.journal import SQLiteJournal
from smsid_async.models import Message, SendResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from typing import Self

    from smsid_async._client import SMSIDClient
    from smsid_async._exchange import Call
    from smsid_async._feeds import Pending
    from smsid_async.models import SendReceipt

__all__ = [
    "BadRow",
    "BulkJob",
    "BulkRun",
    "Changed",
    "Delivery",
    "JobSummary",
    "Plan",
    "Preparation",
    "Region",
    "Row",
    "RowResult",
    "Source",
    "Template",
    "journal_beside",
    "make_plan",
    "report",
    "summarise",
    "track",
]

# When each budget was last told what a journal's earlier processes had sent.
_told: WeakKeyDictionary[RateBudget, dict[str, float]] = WeakKeyDictionary()


async def _restore(client: SMSIDClient, journal: SQLiteJournal) -> None:
    """Tell the budget what earlier processes sent within its last period."""
    budget = client.budget
    if isinstance(budget, RateBudget):
        since = min(budget.memory, _since_told(budget, journal.path))
        past = await journal.requests_since(since)
        budget.restore(
            answered=[request.age for request in past if request.answered],
            given_up=[request.age for request in past if not request.answered],
        )


def _since_told(budget: RateBudget, journal: Path) -> float:
    told, path, now = _told.setdefault(budget, {}), os.path.realpath(journal), time.monotonic()
    last, told[path] = told.get(path, -math.inf), now
    return now - last


@attrs.frozen
class RowResult(SendResult):
    """What became of one row of a job.

    Attributes:
        index: Its place among all rows, from 0.
        line: Its line in the file, None for messages from elsewhere.
    """

    line: int | None = None


@attrs.frozen
class JobSummary:
    """Where a job, or a whole journal, stands.

    Attributes:
        total: Entries.
        sent: Accepted by the API.
        rejected: Refused by it; sent again by the next run.
        not_sent: Tried, but never left; sent by the next run.
        unknown: Left, and no trustworthy answer came; never sent again unasked.
        waiting: Not tried yet.
        in_flight: Being sent at this moment.
        delivered: Sent, and known to have arrived.
        failed: Sent, and known not to have arrived.
        untraceable: Sent, and the API refuses to tell where it is.
        cost: Of what was sent, as far as the API told.
    """

    total: int
    sent: int
    rejected: int
    not_sent: int
    unknown: int
    waiting: int
    in_flight: int
    delivered: int
    failed: int
    untraceable: int
    cost: Decimal


class BulkJob:
    """Messages on their way, remembered by a journal.

    Other messages than a file's are pulled a hundred ahead at the most; what was pulled
    and not sent is `waiting` in the journal, and goes out when it comes again.

    Each row has a reference: its own, or one made from its content and its number among
    rows of that content. So the same file run again continues, rows may be moved or
    inserted, and of an edited file only what is new is sent.

    Args:
        source: A CSV or JSONL file, a `Source`, or any iterable or async iterable of
            `Message`. A file is checked whole before anything is sent; other messages
            are pulled as they can be sent.
        journal: An `SQLiteJournal` or the path of one; None for the client's.
        message: A template for the text, in place of the file's column `message`.
        encoding: The file's encoding.
        region: Read national numbers as those of this country, such as `GB`; needs the
            extra `phonenumbers`.
        resend_unknown: Send again what may have been sent; it may then arrive twice.
        allow_changed: Send to recipients who already got a different text in this
            journal.
        concurrency: Calls in hand at the most.
        priority: The lane.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source | Iterable[Message] | AsyncIterable[Message],
        journal: SQLiteJournal | str | os.PathLike[str] | None = None,
        *,
        message: str | Template | None = None,
        encoding: str = "utf-8",
        region: str | None = None,
        resend_unknown: bool = False,
        allow_changed: bool = False,
        concurrency: int = 100,
        priority: Priority = Priority.BULK,
    ) -> None:
        self.resend_unknown = check_flag("resend_unknown", resend_unknown)
        self.allow_changed = check_flag("allow_changed", allow_changed)
        self.concurrency = concurrency
        self.priority = priority
        self._source = _as_source(source, message, encoding, region)
        self._given = journal
        self._journal = None if journal is None else _as_journal(journal)
        self._feed: FileFeed | StreamFeed | None = None
        self._prepared: Preparation | None = None

    async def prepare(
        self, client: SMSIDClient, *, look: Callable[[Row | BadRow], None] | None = None
    ) -> Preparation:
        """Check a whole file and enter its rows into the journal; nothing is sent.

        Args:
            client: Gives the sender ID and the base URL.
            look: Is called with every row, in a thread, unless the file is known.

        Raises:
            ConfigurationError: The file or the journal cannot be used, or the messages
                do not come from a file.
            ValidationError: The file is no list of messages.
        """
        feed = await self._feed_for(client)
        if not isinstance(feed, FileFeed):
            raise ConfigurationError("only a file can be prepared; other messages are pulled once")
        self._prepared = await feed.prepare(look=look, resend_unknown=self.resend_unknown)
        return self._prepared

    def run(self, client: SMSIDClient) -> BulkRun:
        """Send what is to be sent, and tell what becomes of each row.

        A file is prepared first, if it has not been. What an earlier run sent is not
        sent again and not told again. It halts as `sms.send_many` does, and continues
        when it is run again.

        Args:
            client: Sends.

        Returns:
            An async iterator of `RowResult`, with `stop()` and `aclose()`.

        Raises:
            ValidationError: While iterating, before anything is sent: the file has bad
                rows, or recipients who already got a different text.
            ConfigurationError: While iterating: the file or the journal cannot be used.
            SMSIDError: While iterating: as the iterator of `sms.send_many`.
        """
        return BulkRun(self, client)

    def summary(self) -> JobSummary:
        """Tell where the job stands: of its rows, or of the whole journal before it ran.

        It reads the disk; in a service call it with `asyncio.to_thread`.
        """
        return summarise(self._path(), batch=self._batch())

    def report(
        self,
        destination: str | os.PathLike[str] | TextIO,
        *,
        format: str = "csv",  # noqa: A002
    ) -> int:
        """Write a line for each row; see `report`, also about formulas in spreadsheets.

        It works on the disk; in a service call it with `asyncio.to_thread`.
        """
        return report(self._path(), destination, format=format, batch=self._batch())

    async def aclose(self) -> None:
        """Close the journal if the job opened it, as a run does at its end."""
        if self._journal is not None and self._journal is not self._given:
            await self._journal.aclose()

    # -- for BulkRun -----------------------------------------------------------

    async def pending(self, client: SMSIDClient) -> AsyncGenerator[Pending, None]:
        """Prepare what needs it, and return what is to be sent."""
        feed = await self._feed_for(client)
        if self._prepared is None and isinstance(feed, FileFeed):
            await self.prepare(client)
        _refuse(self._prepared, allow_changed=self.allow_changed)
        await _restore(client, feed.journal)
        if isinstance(feed, FileFeed):
            return feed.messages(resend_unknown=self.resend_unknown)
        return feed.messages(resend_unknown=self.resend_unknown, allow_changed=self.allow_changed)

    def call_for(self, client: SMSIDClient, message: Message) -> Call[SendReceipt]:
        """Make the call for one message."""
        return client.sms._send_call(  # noqa: SLF001 - as `send_many` makes it
            message,
            lane=self.priority,
            journal=self._journal,
            resend_unknown=self.resend_unknown,
        )

    def forget(self) -> None:
        """Look at the file anew when it is run again."""
        self._prepared = None

    async def _feed_for(self, client: SMSIDClient) -> FileFeed | StreamFeed:
        if self._journal is None:
            journal = client._pipeline.journal  # noqa: SLF001 - the job uses the client's
            if not isinstance(journal, SQLiteJournal):
                raise ConfigurationError(
                    "a job needs a SQLiteJournal, its own or the client's; give the path of one"
                )
            self._given = self._journal = journal
        await self._journal.open(client._base_url)  # noqa: SLF001 - likewise
        sender = client._options.sender_id  # noqa: SLF001 - likewise
        if self._feed is None or self._feed.sender_id != sender:
            self._prepared = None
            self._feed = (
                FileFeed(self._source, self._journal, sender)
                if isinstance(self._source, Source)
                else StreamFeed(self._source, self._journal, sender)
            )
        return self._feed

    def _path(self) -> Path:
        if self._journal is None:
            raise ConfigurationError("the job has no journal yet; run it, or give it one")
        return self._journal.path

    def _batch(self) -> int | None:
        return None if self._feed is None else self._feed.batch


class BulkRun(AsyncIterator[RowResult]):
    """The results of one run of a job, in order of completion. Iterate over it once."""

    def __init__(self, job: BulkJob, client: SMSIDClient) -> None:
        self._run = _Run(job, client)
        self._results = self._run.results()

    async def __anext__(self) -> RowResult:
        return await anext(self._results)

    def stop(self) -> None:
        """Send nothing that has not left; iterate on for what becomes of the rest in hand."""
        self._run.stop()

    async def aclose(self) -> None:
        """Stop silently: what has left finishes by itself, the rest is not sent."""
        await self._run.aclose()
        with contextlib.suppress(RuntimeError):  # a consumer waits in it, and was woken
            await self._results.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class _Run:
    """What a `BulkRun` does. It knows neither that nor its iterator, so that `break` ends both."""

    def __init__(self, job: BulkJob, client: SMSIDClient) -> None:
        self._job = job
        self._client = client
        self._in_hand: dict[int, Pending] = {}
        self._refusals: dict[str | None, ValidationError] = {}
        self._stopped = False
        self._sending: SendMany | None = None

    def stop(self) -> None:
        """Stop, now or as soon as the file has been checked."""
        self._stopped = True
        if self._sending is not None:
            self._sending.stop()

    async def aclose(self) -> None:
        """Stop silently."""
        self._stopped = True
        if self._sending is not None:
            await self._sending.aclose()

    async def results(self) -> AsyncGenerator[RowResult, None]:
        """Check, send and tell."""
        job = self._job
        try:
            pending = await job.pending(self._client)
            async with contextlib.aclosing(pending), self._send(pending) as sending:
                async for result in sending:
                    yield self._named(result)
        finally:
            job.forget()
            await job.aclose()

    def _send(self, pending: AsyncGenerator[Pending, None]) -> SendMany:
        self._sending = sending = send_all(
            self._client._pipeline,  # noqa: SLF001 - the job is part of the client
            self._messages(pending),
            self._call_for,
            concurrency=self._job.concurrency,
        )
        if self._stopped:  # while the file was being checked
            sending.stop()
        return sending

    async def _messages(
        self, pending: AsyncGenerator[Pending, None]
    ) -> AsyncGenerator[Message, None]:
        index = 0
        async for each in pending:
            self._in_hand[index] = each
            if each.refusal is not None:
                self._refusals[each.message.reference] = each.refusal
            index += 1
            yield each.message

    def _call_for(self, message: Message) -> Call[SendReceipt]:
        refusal = self._refusals.pop(message.reference, None)
        if refusal is not None:
            raise refusal
        return self._job.call_for(self._client, message)

    def _named(self, result: SendResult) -> RowResult:
        each = self._in_hand.pop(result.index)
        return RowResult(
            each.row,
            result.message,
            result.outcome,
            result.receipt,
            result.error,
            line=each.line,
        )


async def track(
    client: SMSIDClient,
    journal: SQLiteJournal | str | os.PathLike[str],
    *,
    timeout: float | None = None,
) -> AsyncGenerator[Delivery, None]:
    """Ask where every sent message is until each is delivered or has failed.

    Polls in rounds with growing pauses, in the lowest lane, so that it never delays a
    send. What it learns is recorded, and stands in the report.

    Args:
        client: Asks.
        journal: An `SQLiteJournal` or the path of one.
        timeout: Seconds after which nothing more is asked; None goes on to the end.

    Yields:
        A `Delivery` for each answer, final or not.

    Raises:
        ConfigurationError: The journal cannot be used.
        AuthenticationError: The key or the signature is wrong.
    """
    check_seconds("timeout", timeout)
    own = _as_journal(journal)
    try:
        await own.open(client._base_url)  # noqa: SLF001 - as for a job
        await _restore(client, own)
        async with contextlib.aclosing(follow(client, own, timeout=timeout)) as found:
            async for delivery in found:
                yield delivery
    finally:
        if own is not journal:
            await own.aclose()


def journal_beside(path: str | os.PathLike[str], client: SMSIDClient) -> SQLiteJournal:
    """Return the journal that a file has if none is named.

    It stands beside the file and carries the account's label, `SMSID_ACCOUNT`, or else
    the API's host, so that a rehearsal against a sandbox is not taken for the real run.

    Args:
        path: The file.
        client: Tells the API's host.
    """
    label = account_label()
    name = label or urlsplit(client._base_url).netloc  # noqa: SLF001 - as for a job
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    return SQLiteJournal(f"{os.fspath(path)}.{safe}.journal", account=label or "default")


def summarise(journal: str | os.PathLike[str], *, batch: int | None = None) -> JobSummary:
    """Tell where a journal stands, even while another process works on it.

    Args:
        journal: The path of an `SQLiteJournal`.
        batch: Of these rows only; None for every entry.

    Raises:
        ConfigurationError: It cannot be read, or is no journal.
    """
    with _reading(journal) as file:
        found = _manifest.counts(file, batch)
    states, deliveries = Counter(found.states), Counter(found.deliveries)
    return JobSummary(
        total=states.total(),
        sent=states["sent"],
        rejected=states["rejected"],
        not_sent=states["not_sent"],
        unknown=states["unknown"],
        waiting=states["claimed"],
        in_flight=states["intent"],
        delivered=deliveries["delivered"],
        failed=deliveries["failed"],
        untraceable=deliveries["untraceable"],
        cost=sum((Decimal(cost) * times for cost, times in found.costs.items()), Decimal(0)),
    )


def report(
    journal: str | os.PathLike[str],
    destination: str | os.PathLike[str] | TextIO,
    *,
    format: str = "csv",  # noqa: A002 - the word that everybody looks for
    batch: int | None = None,
) -> int:
    """Write a line for each entry of a journal, with its phone number in full.

    In CSV a cell that a spreadsheet would take for a formula, a phone number with its
    `+` too, gets an apostrophe in front; so does one that begins with an apostrophe, so
    that taking one away from each cell that has one gives back what was there.

    Args:
        journal: The path of an `SQLiteJournal`.
        destination: A path, or a text file; a CSV's is opened with `newline=""`.
        format: `csv` or `jsonl`.
        batch: Of these rows only; None for every entry.

    Returns:
        How many entries there are.

    Raises:
        ConfigurationError: The journal cannot be read, the file cannot be written, or
            there is no such format.
    """
    check_form(format)
    with _reading(journal) as file:
        if not isinstance(destination, str | os.PathLike):
            return write_report(file, destination, form=format, batch=batch)
        if _is_part_of(destination, journal):
            raise ConfigurationError("the report would take the journal's place; name another file")
        try:
            with _private(Path(destination)) as out:
                return write_report(file, out, form=format, batch=batch)
        except OSError as exc:
            raise ConfigurationError(
                f"the report {destination} cannot be written ({exc.strerror})"
            ) from exc


@contextlib.contextmanager
def _reading(journal: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    path = Path(journal)
    with contextlib.closing(read_only(path)) as file:
        try:
            _entries.check(file, path)
            yield file
        except sqlite3.Error as exc:
            raise ConfigurationError(f"the journal {path} cannot be read ({exc})") from exc


def _is_part_of(path: str | os.PathLike[str], journal: str | os.PathLike[str]) -> bool:
    here, own = os.path.realpath(path), os.path.realpath(journal)
    beside = {f"{own}{end}" for end in ("-wal", "-shm", ".lock")}
    return here in beside or (Path(here).exists() and Path(here).samefile(own))


def _private(path: Path) -> TextIO:
    """Open a file to be written, for its owner's eyes only if it is new."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    return open(path, "w", encoding="utf-8", newline="", opener=opener)


def _as_source(
    source: str | os.PathLike[str] | Source | Iterable[Message] | AsyncIterable[Message],
    message: str | Template | None,
    encoding: str,
    region: str | None,
) -> Source | Iterable[Message] | AsyncIterable[Message]:
    if isinstance(source, str | os.PathLike):
        return Source(Path(source), message, encoding, None if region is None else Region(region))
    if message is not None or region is not None:
        raise ConfigurationError("a template or a region is for the path of a file")
    if isinstance(source, Source | AsyncIterable) or (
        isinstance(source, Iterable) and not isinstance(source, str)
    ):
        return source
    raise ConfigurationError(f"source is {type(source).__name__}, which has no messages")


def _as_journal(journal: SQLiteJournal | str | os.PathLike[str]) -> SQLiteJournal:
    if isinstance(journal, SQLiteJournal):
        return journal
    if isinstance(journal, str | os.PathLike):
        return SQLiteJournal(journal)
    raise ConfigurationError(
        f"journal is {type(journal).__name__}; give a SQLiteJournal or the path of one"
    )


def _refuse(prepared: Preparation | None, *, allow_changed: bool) -> None:
    """Raise if a file must not be sent."""
    if prepared is None:
        return
    if prepared.bad_rows:
        first = prepared.bad[0]
        raise ValidationError(
            f"{prepared.bad_rows:,} rows cannot be sent, so nothing was; the first is on line "
            f"{first.line}: {first.reason}"
        )
    if prepared.changed_rows and not allow_changed:
        raise ValidationError(
            f"{prepared.changed_rows:,} recipients already got a different text in this journal, "
            f"so nothing was sent; the first is on line {prepared.changed[0].line}. "
            "allow_changed=True sends to them too"
        )
