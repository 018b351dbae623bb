"""Before `smsid bulk run` sends: the file is checked, and what is to be sent is told."""

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from smsid_async.bulk import BadRow, BulkJob, Preparation, Region, Row, Source, journal_beside
from smsid_async.cli._check import seconds_for, tell_bad
from smsid_async.cli._output import Output
from smsid_async.cli._session import Session
from smsid_async.cli.display import duration_text
from smsid_async.errors import ConfigurationError
from smsid_async.journal import SQLiteJournal
from smsid_async.models import mask_number
from smsid_async.segments import count_segments

if TYPE_CHECKING:
    from smsid_async import SMSIDClient
    from smsid_async.bulk import JobSummary

__all__ = ["Order", "Ready", "copied", "journal_for", "prepare", "rehearse"]

_SHOWN = 10  # lines of repeated rows


@attrs.frozen
class Order:
    """What `smsid bulk run` is asked to do.

    Attributes:
        file: The messages.
        journal: The journal's path; None for one beside the file.
        message: A template for the text.
        encoding: The file's.
        region: The country whose national numbers it has.
        resend_unknown: Whether to send again what may have been sent.
        allow_changed: Whether to send to who already got a different text.
    """

    file: Path
    journal: Path | None = None
    message: str | None = None
    encoding: str = "utf-8"
    region: str | None = None
    resend_unknown: bool = False
    allow_changed: bool = False

    def source(self) -> Source:
        """Make the source, and look whether it is one before there is a journal for it."""
        region = None if self.region is None else Region(self.region)
        source = Source(self.file, self.message, self.encoding, region)
        with contextlib.closing(source.rows()) as rows:
            next(rows, None)
        return source

    def job(self, source: Source, journal: SQLiteJournal) -> BulkJob:
        """Make the job."""
        return BulkJob(
            source,
            journal,
            resend_unknown=self.resend_unknown,
            allow_changed=self.allow_changed,
        )


@attrs.frozen
class Ready:
    """A job that may be sent.

    Attributes:
        title: The file's name.
        rows: Its rows.
        repeats: Those that say the same as an earlier one.
        to_send: Messages to be sent now.
        sent_earlier: Messages that earlier runs sent.
        unknown_earlier: Messages that earlier runs may have sent, and that are left alone.
        journal: The journal's path; None if it goes when the run ends.
    """

    title: str
    rows: int
    repeats: int
    to_send: int
    sent_earlier: int = 0
    unknown_earlier: int = 0
    journal: Path | None = None


def journal_for(order: Order, client: "SMSIDClient") -> SQLiteJournal:
    """Make the journal that was named, or else the one beside the file."""
    beside = journal_beside(order.file, client)
    if order.journal is None:
        return beside
    return SQLiteJournal(order.journal, account=beside.account)


async def prepare(
    session: Session, client: "SMSIDClient", job: BulkJob, source: Source, journal: Path
) -> Ready | None:
    """Check a file and tell what is in it; None if nothing may be sent."""
    out, segments = session.out, 0

    def look(row: Row | BadRow) -> None:
        nonlocal segments
        tell_bad(row, source.path, out)
        segments += count_segments(row.message.text).segments if isinstance(row, Row) else 0

    with out.busy(f"Checking {source.path.name}"):
        found = await job.prepare(client, look=look)
        summary = await asyncio.to_thread(job.summary)
    if found.bad_rows:
        _tell_bad_rows(out, found)
        return None
    if found.changed_rows and not job.allow_changed:
        _tell_changed(out, source.path, found)
        return None
    ready = Ready(
        source.path.name,
        found.rows,
        found.repeats,
        found.to_send,
        summary.sent,
        0 if job.resend_unknown else summary.unknown,
        journal,
    )
    out.line(f"{ready.title}: {_words(session, found, ready, segments)}")
    out.line(f"journal: {journal}")
    for sentence in _warnings(found, summary, job, journal):
        out.sentence(sentence)
    return ready


async def rehearse(session: Session, client: "SMSIDClient", job: BulkJob, ready: Ready) -> None:
    """Tell what would be sent."""
    out, number = session.out, 0
    async with contextlib.aclosing(await job.pending(client)) as pending:
        async for each in pending:
            to, reference = mask_number(each.message.to), each.message.reference
            out.line(f"line {each.line}: {to} would be sent")
            out.record({"line": each.line, "to": to, "reference": reference, "outcome": None})
            number += 1
            if out.closed:
                break
    out.sentence(f"a dry run: {ready.to_send:,} messages would be sent, nothing was")
    summary = {
        "dry_run": True,
        "rows": ready.rows,
        "repeats": ready.repeats,
        "sent_earlier": ready.sent_earlier,
        "to_send": ready.to_send,
        "unknown": ready.unknown_earlier,
        "journal": str(ready.journal),
    }
    out.record({"summary": summary})


@contextlib.contextmanager
def copied(journal: SQLiteJournal) -> Iterator[SQLiteJournal]:
    """Give a copy of a journal, an empty one if it is not there, and remove it at the end."""
    path = journal.path
    with tempfile.TemporaryDirectory(prefix="smsid-") as folder:
        copy = Path(folder) / path.name
        if path.exists():
            try:
                _copy(path, copy)
            except sqlite3.Error as exc:
                raise ConfigurationError(f"the journal {path} cannot be read ({exc})") from exc
        yield SQLiteJournal(copy, account=journal.account)


def _copy(path: Path, copy: Path) -> None:
    path = path.resolve()
    # Without a write-ahead log nobody works on it, and nothing needs to be made beside it.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    uri = f"{path.resolve().as_uri()}?{how}"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True)) as old,
        contextlib.closing(sqlite3.connect(copy)) as new,
    ):
        old.backup(new)


def _words(session: Session, found: Preparation, ready: Ready, segments: int) -> str:
    words = [f"{found.rows:,} messages"]
    if segments and ready.to_send == ready.rows:
        words.append(f"{segments:,} segments")
    if ready.to_send != ready.rows:
        words += [f"{ready.sent_earlier:,} sent earlier", f"{ready.to_send:,} to send"]
    if ready.to_send:
        words.append(f"about {duration_text(seconds_for(ready.to_send, session))}")
    return ", ".join(words)


def _warnings(
    found: Preparation, summary: "JobSummary", job: BulkJob, journal: Path
) -> Iterator[str]:
    if summary.sent and not found.known and found.to_send:
        yield (
            f"the file has changed since its last run: {found.new:,} of its rows are new; "
            "what was sent then is not sent again"
        )
    if found.repeats:
        yield (
            f"{found.repeats:,} rows say the same as an earlier row{_lines(found)}; each is sent, "
            "unless they share a reference"
        )
    if found.changed_rows:
        yield f"{found.changed_rows:,} recipients already got a different text, and get this too"
    if summary.unknown and job.resend_unknown:
        yield f"{summary.unknown:,} messages that may have been sent are sent again"
    elif summary.unknown:
        yield (
            f"{summary.unknown:,} messages of earlier runs may have been sent or not, and are "
            f"left alone; `smsid bulk report {journal}` names them, --resend-unknown sends them"
        )


def _lines(found: Preparation) -> str:
    shown = ", ".join(str(line) for line in found.repeated[:_SHOWN])
    more = ", ..." if found.repeats > _SHOWN else ""
    return f" (on the lines {shown}{more})" if shown else ""


def _tell_bad_rows(out: Output, found: Preparation) -> None:
    rows = found.rows + found.bad_rows
    out.sentence(
        f"{found.bad_rows:,} of {rows:,} rows cannot be sent, so nothing was sent; "
        "correct them, then run this again"
    )
    out.record({"summary": {"rows": rows, "bad_rows": found.bad_rows, "sent": 0}})


def _tell_changed(out: Output, path: Path, found: Preparation) -> None:
    for each in found.changed:
        to, reason = mask_number(each.recipient), "already got a different text"
        out.sentence(f"{path}, line {each.line}: {to} {reason}")
        out.record({"line": each.line, "to": to, "reason": reason})
    more = found.changed_rows - len(found.changed)
    out.sentence(
        (f"and {more:,} more; " if more else "")
        + f"{found.changed_rows:,} recipients already got a different text from this journal, so "
        "nothing was sent; --allow-changed sends to them too"
    )
    out.record({"summary": {"rows": found.rows, "changed_rows": found.changed_rows, "sent": 0}})
