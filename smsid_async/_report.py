"""The report of a journal: a line for each entry, as CSV or JSONL."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from smsid_async.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

__all__ = ["COLUMNS", "check_form", "neutral", "write_report"]

COLUMNS = (
    "line",
    "reference",
    "to",
    "outcome",
    "message_id",
    "cost",
    "delivery",
    "sent_at",
    "delivery_at",
    "error",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_OUTCOMES = {"claimed": "waiting", "intent": "in flight"}  # all others are outcomes themselves


def write_report(
    file: sqlite3.Connection, out: TextIO, *, batch: int | None = None, form: str = "csv"
) -> int:
    """Write a line for each entry.

    In CSV a cell that a spreadsheet would take for a formula, a phone number with its
    `+` too, gets an apostrophe in front; so does one that begins with an apostrophe, so
    that taking one away from each cell that has one gives back what was there.

    Args:
        file: The journal.
        out: Where to write; a CSV's file is opened with `newline=""`.
        batch: Of these rows only; None for every entry.
        form: `csv` or `jsonl`.

    Returns:
        How many entries there were.
    """
    number = 0
    writer = csv.writer(out)
    if form == "csv":
        writer.writerow(COLUMNS)
    for values in _entries(file, batch):
        number += 1
        if form == "csv":
            writer.writerow(["" if value is None else neutral(str(value)) for value in values])
        else:
            told = dict(zip(COLUMNS, values, strict=True))
            out.write(json.dumps(told, ensure_ascii=False) + "\n")
    return number


def check_form(form: str) -> None:
    """Refuse a form that there is not."""
    if form not in ("csv", "jsonl"):
        raise ConfigurationError(f"there is no report format {form!r}; give csv or jsonl")


def neutral(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _entries(file: sqlite3.Connection, batch: int | None) -> Iterator[tuple[object, ...]]:
    where = "" if batch is None else "WHERE batch = ?"
    for line, reference, to, state, message_id, cost, delivery, ended, seen, why in file.execute(
        "SELECT line, reference, recipient, state, message_id, cost, delivery, ended_at, "
        f"delivery_at, why FROM entries {where} ORDER BY batch, row, id",
        () if batch is None else (batch,),
    ):
        sent = ended if state == "sent" else None
        outcome = _OUTCOMES.get(state, state)
        yield (
            *(line, reference, to, outcome, message_id, cost, delivery),
            *(_moment(sent), _moment(seen), why),
        )


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
