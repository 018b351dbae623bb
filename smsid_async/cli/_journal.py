"""`smsid bulk status` and `smsid bulk report`: what a journal knows."""

from pathlib import Path

import attrs

from smsid_async.bulk import report, summarise
from smsid_async.cli._session import Code, Session

__all__ = ["status", "write_report"]

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
