"""The tables of an SQLite journal, and every statement on one entry of it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from smsid_async.errors import ConfigurationError
from smsid_async.models import SendReceipt

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from smsid_async.models import Outcome

__all__ = [
    "Entry",
    "bind",
    "check",
    "find",
    "intend",
    "prepare",
    "record",
    "requests_since",
    "settle",
    "withdraw",
]

_FORMAT = 1
_APPLICATION = 0x534D5344  # "SMSD": tells a journal from any other SQLite file
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    reference TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,
    recipient TEXT NOT NULL,
    state TEXT NOT NULL,
    message_id TEXT,
    status TEXT,
    cost TEXT,
    balance TEXT,
    why TEXT,
    process TEXT,       -- that made the last request
    token TEXT,         -- of the claim that it was made under
    intent_at REAL,     -- seconds since the epoch, like all times here
    ended_at REAL,
    delivery TEXT,
    delivery_at REAL,
    batch INTEGER,      -- the file that it came from, and where it stands in it
    row INTEGER,
    line INTEGER
);
CREATE INDEX entries_by_row ON entries (batch, row);
CREATE INDEX entries_by_recipient ON entries (recipient, batch)
    WHERE state IN ('sent', 'intent', 'unknown');
CREATE INDEX entries_in_flight ON entries (state) WHERE state = 'intent';
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    digest TEXT,        -- of the whole file, once all its rows are entered
    rows INTEGER NOT NULL DEFAULT 0,
    repeats INTEGER NOT NULL DEFAULT 0
);
"""


@attrs.frozen
class Entry:
    """What the file knows of a reference."""

    fingerprint: str
    state: str
    receipt: SendReceipt | None
    why: str


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in a new file; in an old one, call intents without an end unknown.

    Raises:
        ConfigurationError: The file is not a journal, or a newer version's.
    """
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables:
        check(connection, path)
    connection.execute("BEGIN IMMEDIATE")
    if not tables:
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    connection.execute(
        "UPDATE entries SET state = 'unknown', why = 'the process ended before its answer came' "
        "WHERE state = 'intent'"
    )
    connection.execute("COMMIT")


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not a journal, or a newer version's, with `ConfigurationError`."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise ConfigurationError(f"{path} is an SQLite file, but not a journal; name another")
    if version > _FORMAT:
        raise ConfigurationError(f"the journal {path} was made by a newer smsid-async; update")


def bind(connection: sqlite3.Connection, path: Path, **labels: str) -> None:
    """Write these labels into a new journal, or check that it has them.

    Raises:
        ConfigurationError: It was made with others.
    """
    known = dict(connection.execute("SELECT name, value FROM meta"))
    for name, label in labels.items():
        if known.setdefault(name, label) != label:
            raise ConfigurationError(
                f"the journal {path} was made for {name} {known[name]}, not {label}; "
                "name another journal, so that none is taken for the other"
            )
    connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", labels.items())


def find(connection: sqlite3.Connection, reference: str) -> Entry | None:
    """Look a reference up."""
    found = connection.execute(
        "SELECT fingerprint, state, why, message_id, status, cost, balance "
        "FROM entries WHERE reference = ?",
        (reference,),
    ).fetchone()
    if found is None:
        return None
    fingerprint, state, why, message_id, status, cost, balance = found
    receipt = None
    if message_id is not None:
        receipt = SendReceipt(message_id, status, _money(cost), _money(balance))
    return Entry(fingerprint, state, receipt, why or "")


def intend(
    connection: sqlite3.Connection,
    reference: str,
    *,
    fingerprint: str,
    recipient: str,
    process: str,
    token: str,
    doubtful: bool,
    now: float,
) -> bool:
    """Write that the message may leave from now on; False if another call's request stands."""
    written = connection.execute(
        "INSERT INTO entries (reference, fingerprint, recipient, state, process, token, intent_at) "
        "VALUES (?, ?, ?, 'intent', ?, ?, ?) ON CONFLICT (reference) DO UPDATE SET "
        "state = 'intent', process = excluded.process, token = excluded.token, "
        "intent_at = excluded.intent_at, why = NULL, ended_at = NULL "
        "WHERE fingerprint = excluded.fingerprint AND state != 'sent' "
        "AND (? OR token = excluded.token OR state NOT IN ('intent', 'unknown'))",
        (reference, fingerprint, recipient, process, token, now, doubtful),
    )
    return written.rowcount > 0


def withdraw(
    connection: sqlite3.Connection, reference: str, *, token: str, state: str, why: str = ""
) -> None:
    """Take an intent or a claim back, to another state, unless another call's stands there."""
    connection.execute(
        "UPDATE entries SET state = ?, why = ? "
        "WHERE reference = ? "
        "AND (state IN ('claimed', 'not_sent') OR state = 'intent' AND token = ?)",
        (state, why or None, reference, token),
    )


def record(
    connection: sqlite3.Connection,
    reference: str,
    outcome: Outcome,
    *,
    token: str,
    receipt: SendReceipt | None,
    why: str,
    now: float,
) -> None:
    """Write what became of a message."""
    told: tuple[str | None, ...] = (None,) * 4
    if receipt is not None:
        told = (receipt.message_id, receipt.status, *map(_words, _amounts(receipt)))
    connection.execute(
        "UPDATE entries SET state = ?, message_id = ?, status = ?, cost = ?, balance = ?, "
        "why = ?, ended_at = ? WHERE reference = ? "
        "AND (? = 'sent' OR token = ? AND state != 'sent')",
        (outcome.value, *told, why or None, now, reference, outcome.value, token),
    )


def settle(connection: sqlite3.Connection, reference: str, *, sent: bool, now: float) -> bool:
    """Write what became of a message in doubt; False if it is not in doubt."""
    state, message_id = ("sent", "") if sent else ("not_sent", None)  # nobody knows its ID
    found = connection.execute(
        "UPDATE entries SET state = ?, message_id = ?, status = 'settled', ended_at = ?, "
        "why = 'settled by hand' WHERE reference = ? AND state = 'unknown'",
        (state, message_id, now, reference),
    )
    return found.rowcount > 0


def requests_since(
    connection: sqlite3.Connection, moment: float, *, process: str
) -> list[tuple[float, int]]:
    """Return when other processes' requests since then ended, and whether by an answer."""
    return connection.execute(
        "SELECT coalesce(ended_at, intent_at) AS last, state IN ('sent', 'rejected') "
        "FROM entries WHERE last >= ? AND process != ?",
        (moment, process),
    ).fetchall()


def _amounts(receipt: SendReceipt) -> tuple[Decimal | None, Decimal | None]:
    return receipt.cost, receipt.remaining_balance


def _words(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)


def _money(words: str | None) -> Decimal | None:
    return None if words is None else Decimal(words)
