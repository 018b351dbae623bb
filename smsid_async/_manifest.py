"""What a bulk job knows of its rows: statements on an SQLite journal.

A batch is one version of a file, or one pass over other messages. Every row of it has
an entry under its reference; an entry that an earlier batch made is taken over, so that
what was sent then is not sent now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from smsid_async.models import mask_number

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

__all__ = [
    "Changed",
    "Counts",
    "Entering",
    "Item",
    "Undelivered",
    "any_undelivered",
    "batch_of",
    "changed",
    "count_changed",
    "count_open",
    "counts",
    "finish",
    "first_open",
    "new_batch",
    "newest",
    "open_rows",
    "record_deliveries",
    "size",
    "undelivered",
]

_TOLD = 100  # repeated rows whose lines are kept
_OPEN = "('claimed', 'not_sent', 'rejected')"
_OPEN_OR_UNKNOWN = "('claimed', 'not_sent', 'rejected', 'intent', 'unknown')"
_ON_ITS_WAY = (  # what was settled by hand has no ID to ask by
    "state = 'sent' AND message_id != '' "
    "AND coalesce(delivery, '') NOT IN ('delivered', 'failed', 'untraceable')"
)
_GOT_ANOTHER = (  # its words are those of the index by recipient
    "EXISTS (SELECT 1 FROM entries AS old WHERE old.recipient = new.recipient AND old.batch {} "
    "AND old.fingerprint != new.fingerprint AND old.state IN ('sent', 'intent', 'unknown'))"
)
_CHANGED = (
    f"FROM entries AS new WHERE batch = ? AND row >= ? AND state IN {_OPEN} "
    f"AND ({_GOT_ANOTHER.format('< new.batch')} OR {_GOT_ANOTHER.format('IS NULL')})"
)


@attrs.frozen
class Item:
    """One row, to be entered.

    Attributes:
        row: Its place in the batch, from 0.
        line: Its line in the file, None for other messages.
        fingerprint: Of the message.
        recipient: The number in E.164.
        reference: Its own; None to derive one from its content.
    """

    row: int
    line: int | None
    fingerprint: str
    recipient: str
    reference: str | None


@attrs.frozen
class Changed:
    """A recipient who got another text under an earlier version of the file.

    Attributes:
        row: The place of the new message among all rows, from 0.
        line: Its line in the file, None for messages from elsewhere.
        recipient: The number in E.164.
    """

    row: int
    line: int | None
    recipient: str = attrs.field(repr=mask_number)


@attrs.frozen
class Counts:
    """How many entries are in which state, and what they cost.

    Attributes:
        states: By state.
        deliveries: The sent ones by delivery status; "" where it was never asked for.
        costs: What each sent one cost, as text, with how often it did.
    """

    states: dict[str, int]
    deliveries: dict[str, int]
    costs: dict[str, int]


def batch_of(file: sqlite3.Connection, digest: str) -> tuple[int, int, int] | None:
    """Return the last batch, its rows and repeats, if it was entered whole from this content."""
    found: tuple[int, int, int, str | None] | None = file.execute(
        "SELECT id, rows, repeats, digest FROM batches ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return None if found is None or found[3] != digest else found[:3]


def new_batch(file: sqlite3.Connection, source: str) -> int:
    """Begin a batch."""
    (number,) = file.execute(
        "INSERT INTO batches (source) VALUES (?) RETURNING id", (source,)
    ).fetchone()
    return int(number)


def finish(
    file: sqlite3.Connection, batch: int, *, digest: str | None, rows: int, repeats: int
) -> None:
    """Note that all rows of a batch are entered."""
    file.execute(
        "UPDATE batches SET digest = ?, rows = ?, repeats = ? WHERE id = ?",
        (digest, rows, repeats, batch),
    )


class Entering:
    """Enters the rows of one batch, in their order.

    Attributes:
        repeats: Rows that say the same as an earlier row of the batch.
        repeated: The lines of the first hundred of them.
    """

    def __init__(self, batch: int) -> None:
        self.repeats = 0
        self.repeated: list[int] = []
        self._batch = batch
        self._times: dict[str, int] = {}  # how often a content came, if more than once

    def enter(
        self, file: sqlite3.Connection, items: Sequence[Item]
    ) -> tuple[dict[int, str], list[Item]]:
        """Enter some rows.

        Returns:
            The reference of each row that has an entry of its own, and the rows whose
            reference belongs to another message.
        """
        references: dict[int, str] = {}
        strangers: list[Item] = []
        for item in items:
            if item.reference is None:
                references[item.row] = self._enter_derived(file, item)
            elif self._put(file, item, item.reference):
                references[item.row] = item.reference
            elif _fingerprint(file, item.reference) == item.fingerprint:
                self._note_repeat(item)
            else:
                strangers.append(item)
        return references, strangers

    def _enter_derived(self, file: sqlite3.Connection, item: Item) -> str:
        """Enter a row under its content and its number among all rows of that content."""
        content = item.fingerprint[:32]
        times = self._times.get(content, 1)
        while not self._put(file, item, reference := f"row-{content}-{times}"):
            times += 1
        if times > 1:
            self._note_repeat(item)
            self._times[content] = times + 1
        return reference

    def _note_repeat(self, item: Item) -> None:
        self.repeats += 1
        if item.line is not None and len(self.repeated) < _TOLD:
            self.repeated.append(item.line)

    def _put(self, file: sqlite3.Connection, item: Item, reference: str) -> bool:
        """Make an entry, or take over that of an earlier batch; False if this one has it."""
        return (
            file.execute(
                "INSERT INTO entries (reference, fingerprint, recipient, state, batch, row, line)"
                " VALUES (?, ?, ?, 'claimed', ?, ?, ?) ON CONFLICT (reference) DO UPDATE SET "
                "batch = excluded.batch, row = excluded.row, line = excluded.line "
                "WHERE batch IS NOT excluded.batch AND fingerprint = excluded.fingerprint",
                (reference, item.fingerprint, item.recipient, self._batch, item.row, item.line),
            ).rowcount
            > 0
        )


def _fingerprint(file: sqlite3.Connection, reference: str) -> str:
    (found,) = file.execute(
        "SELECT fingerprint FROM entries WHERE reference = ?", (reference,)
    ).fetchone()
    return str(found)


def changed(file: sqlite3.Connection, batch: int, *, first: int = 0) -> Iterator[Changed]:
    """Yield rows to be sent whose recipient may have got a text that is not in the batch."""
    for row, line, recipient in file.execute(
        f"SELECT row, line, recipient {_CHANGED} ORDER BY row", (batch, first)
    ):
        yield Changed(row, line, recipient)


def count_changed(file: sqlite3.Connection, batch: int) -> int:
    """Count what `changed` yields."""
    (number,) = file.execute(f"SELECT count(*) {_CHANGED}", (batch, 0)).fetchone()
    return int(number)


def newest(file: sqlite3.Connection) -> int:
    """Return the last entry's number, 0 without any."""
    (number,) = file.execute("SELECT coalesce(max(id), 0) FROM entries").fetchone()
    return int(number)


def size(file: sqlite3.Connection, batch: int) -> int:
    """Count the entries that belong to a batch."""
    (number,) = file.execute("SELECT count(*) FROM entries WHERE batch = ?", (batch,)).fetchone()
    return int(number)


def count_open(file: sqlite3.Connection, batch: int, *, resend_unknown: bool) -> int:
    """Count the rows that are to be sent."""
    (number,) = file.execute(
        f"SELECT count(*) FROM entries WHERE batch = ? AND state IN {_to_send(resend_unknown)}",
        (batch,),
    ).fetchone()
    return int(number)


def first_open(file: sqlite3.Connection, batch: int, *, resend_unknown: bool) -> int | None:
    """Return the first row that is to be sent, None if there is none."""
    (row,) = file.execute(
        f"SELECT row FROM entries WHERE batch = ? AND state IN {_to_send(resend_unknown)} "
        "ORDER BY row LIMIT 1",
        (batch,),
    ).fetchone() or (None,)
    return None if row is None else int(row)


def open_rows(
    file: sqlite3.Connection, batch: int, first: int, last: int, *, resend_unknown: bool
) -> dict[int, str]:
    """Return the rows from `first` to `last` that are to be sent, with their references."""
    return dict(
        file.execute(
            "SELECT row, reference FROM entries WHERE batch = ? AND row BETWEEN ? AND ? "
            f"AND state IN {_to_send(resend_unknown)}",
            (batch, first, last),
        ).fetchall()
    )


def counts(file: sqlite3.Connection, batch: int | None) -> Counts:
    """Count the entries of a batch, or of the whole journal."""
    where = "" if batch is None else "WHERE batch = :batch"
    also = "WHERE" if batch is None else "AND"
    named = {"batch": batch}

    def by(column: str, where: str) -> dict[str, int]:
        return dict(
            file.execute(
                f"SELECT {column}, count(*) FROM entries {where} GROUP BY 1", named
            ).fetchall()
        )

    sent = f"{where} {also} state = 'sent'"
    return Counts(
        by("state", where),
        by("coalesce(delivery, '')", sent),
        by("cost", f"{sent} AND cost IS NOT NULL"),
    )


@attrs.frozen
class Undelivered:
    """An entry that was sent, and of which no final delivery status is known."""

    id: int
    reference: str
    line: int | None
    message_id: str


def undelivered(file: sqlite3.Connection, *, after: int, number: int) -> list[Undelivered]:
    """Return the next so many entries after this one."""
    return [
        Undelivered(*values)
        for values in file.execute(
            f"SELECT id, reference, line, message_id FROM entries WHERE id > ? AND {_ON_ITS_WAY} "
            "ORDER BY id LIMIT ?",
            (after, number),
        )
    ]


def any_undelivered(file: sqlite3.Connection) -> bool:
    """Whether there is any at all."""
    return bool(undelivered(file, after=0, number=1))


def record_deliveries(file: sqlite3.Connection, *, words: dict[str, str], now: float) -> None:
    """Write down delivery statuses, by reference."""
    file.executemany(
        "UPDATE entries SET delivery = ?, delivery_at = ? WHERE reference = ?",
        [(word, now, reference) for reference, word in words.items()],
    )


def _to_send(resend_unknown: bool) -> str:
    return _OPEN_OR_UNKNOWN if resend_unknown else _OPEN
