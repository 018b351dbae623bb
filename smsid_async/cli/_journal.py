"""`smsid bulk status`, `report` and `settle`: what a journal knows, and is told."""

import asyncio
from pathlib import Path

import attrs

from smsid_async.bulk import report, summarise
from smsid_async.cli._session import Code, Session
from smsid_async.journal import SQLiteJournal

__all__ = ["settle", "status", "write_report"]

_SHOWN = ("rejected", "not_sent", "unknown", "waiting", "in_flight", "delivered", "failed")


def status(session: Session, journal: Path) -> int:
    """Show where a journal stands."""
    found = summarise(journal)
    session.out.line(f"journal:    {journal}")
    session.out.line(f"sent:       {found.sent:,} of {found.total:,}")
    numbers = attrs.asdict(found)
    for name in _SHOWN:
        session.out.line(f"{name.replace('_', ' ') + ':':<12}{numbers[name]:,}")
    if found.untraceable:
        session.out.line(f"untraceable: {found.untraceable:,} (the API tells nothing about them)")
    session.out.line(f"cost:       {found.cost}")
    session.out.record({**numbers, "journal": str(journal)})
    return Code.WELL


async def settle(session: Session, path: Path, references: list[str], *, sent: bool) -> int:
    """Record what became of messages in doubt."""
    await asyncio.to_thread(summarise, path)  # a journal that is not there is not made
    journal, wrong = SQLiteJournal(path), 0
    try:
        for reference in references:
            done = await journal.settle(reference, sent=sent)
            session.out.record({"reference": reference, "settled": done})
            if not done:
                wrong += 1
                session.out.sentence(
                    f"{reference}: the journal has no unknown message of this name"
                )
    finally:
        await journal.aclose()
    word = "sent" if sent else "not sent"
    session.out.line(f"settled as {word}: {len(references) - wrong:,}")
    return Code.FAILED if wrong else Code.WELL


def write_report(session: Session, journal: Path, form: str, destination: Path | None) -> int:
    """Write the report, to stdout if nowhere else."""
    if destination is None:
        with session.out.lent() as stdout:
            report(journal, stdout, format=form)
        return Code.FAILED if session.out.closed else Code.WELL
    number = report(journal, destination, format=form)
    session.out.sentence(f"wrote {number:,} entries to {destination}")
    session.out.record({"entries": number, "report": str(destination)})
    return Code.WELL
