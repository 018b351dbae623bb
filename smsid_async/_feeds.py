"""Where a bulk job's messages come from: a file read twice, or a stream pulled once.

Both enter every row into the journal before it can be sent, and pass on what the
journal does not know as sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterable
from functools import partial
from typing import TYPE_CHECKING

import attrs

from smsid_async import _manifest
from smsid_async._manifest import Changed, Entering, Item
from smsid_async._sources import BadRow, Row, Source
from smsid_async.errors import ConfigurationError, ValidationError
from smsid_async.journal import fingerprint_of
from smsid_async.models import Message, check_number, check_reference, check_sender, check_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence

    from smsid_async.journal import SQLiteJournal

__all__ = ["FileFeed", "Pending", "Preparation", "StreamFeed"]

_CHUNK = 1000  # rows that are entered, or looked up, at once
_PULLED = 100  # messages of a plain iterable, likewise
_TOLD = 100  # bad rows and changed recipients that are kept to be shown


@attrs.frozen
class Preparation:
    """What a look at a whole file has found, before anything is sent.

    Attributes:
        rows: Good rows.
        to_send: Those that will be sent now.
        new: Rows that this journal had not seen before.
        repeats: Good rows that say the same as an earlier one. They are sent as often as
            they stand there, unless they share a `reference`.
        repeated: The lines of the first hundred of them, unless the file is known.
        bad_rows: Rows that cannot be sent; with one of them, nothing is.
        bad: The first hundred of them.
        changed_rows: Rows to be sent whose recipient already got a different text in
            this journal.
        changed: The first hundred of them.
        known: Whether the file is the one that this journal saw last, unchanged.
    """

    rows: int
    to_send: int
    new: int
    repeats: int
    repeated: tuple[int, ...] = ()
    bad_rows: int = 0
    bad: tuple[BadRow, ...] = ()
    changed_rows: int = 0
    changed: tuple[Changed, ...] = ()
    known: bool = False


@attrs.frozen
class Pending:
    """A message that is to be sent.

    Attributes:
        row: Its place among all rows, from 0.
        line: Its line in the file, None for messages from elsewhere.
        message: With the reference under which the journal knows it.
        refusal: Why it must not be sent after all, if so.
    """

    row: int
    line: int | None
    message: Message
    refusal: ValidationError | None = None


class FileFeed:
    """The rows of a file.

    Args:
        source: The file.
        journal: Where its rows are entered.
        sender_id: For rows that name none; None for the account's own.
    """

    def __init__(self, source: Source, journal: SQLiteJournal, sender_id: str | None) -> None:
        self.batch: int | None = None
        self._rows = 0
        self._entries = 0
        self._source = source
        self.journal = journal
        self.sender_id = sender_id

    async def prepare(
        self, *, look: Callable[[Row | BadRow], None] | None, resend_unknown: bool
    ) -> Preparation:
        """Enter the whole file, unless the journal knows it from last time."""
        digest = await self._digest()
        known = await self.journal.run(lambda file: _manifest.batch_of(file, digest))
        if known is None:
            found = await self._enter(digest, look)
        else:
            self.batch, rows, repeats = known
            found = Preparation(rows, 0, 0, repeats, known=True)
        self._rows = found.rows + found.bad_rows
        batch = self.batch
        assert batch is not None  # noqa: S101 - both ways set it
        self._entries = await self.journal.run(lambda file: _manifest.size(file, batch))

        def look_back(file: sqlite3.Connection) -> Preparation:
            changed = list(itertools.islice(_manifest.changed(file, batch), _TOLD))
            return attrs.evolve(
                found,
                to_send=_manifest.count_open(file, batch, resend_unknown=resend_unknown),
                changed=tuple(changed),
                changed_rows=_manifest.count_changed(file, batch) if changed else 0,
            )

        return await self.journal.run(look_back)

    async def _digest(self) -> str:
        content = await asyncio.to_thread(self._source.digest)
        return f"{content} {self.sender_id}"

    async def _enter(self, digest: str, look: Callable[[Row | BadRow], None] | None) -> Preparation:
        name = str(self._source.path)
        newest = await self.journal.run(_manifest.newest)
        batch = await self.journal.run(lambda file: _manifest.new_batch(file, name))
        entering, bad, bad_rows, good_rows = Entering(batch), list[BadRow](), 0, 0
        async for first, rows in _chunks(self._source.rows()):
            items = await asyncio.to_thread(self._items, first, rows, look)
            _, strangers = await self.journal.run(partial(entering.enter, items=items))
            wrong = [row for row in rows if isinstance(row, BadRow)]
            wrong += [_stranger(item, look) for item in strangers]
            bad_rows += len(wrong)
            good_rows += len(rows) - len(wrong)
            wrong.sort(key=lambda row: row.line)
            bad += wrong[: _TOLD - len(bad)]
        if await self._digest() != digest:
            raise ValidationError(
                f"{self._source.path} was changed while it was checked, so nothing was sent; "
                "run it again"
            )
        self.batch = batch
        whole = None if bad_rows else digest
        repeats = entering.repeats
        await self.journal.run(
            lambda file: _manifest.finish(
                file, batch, digest=whole, rows=good_rows, repeats=repeats
            )
        )
        return Preparation(
            rows=good_rows,
            to_send=0,
            new=await self.journal.run(_manifest.newest) - newest,
            repeats=repeats,
            repeated=tuple(entering.repeated),
            bad_rows=bad_rows,
            bad=tuple(bad),
        )

    def _items(
        self, first: int, rows: Sequence[Row | BadRow], look: Callable[[Row | BadRow], None] | None
    ) -> list[Item]:
        if look is not None:
            for row in rows:
                look(row)
        return [
            _item(place, row.line, row.message, self.sender_id)
            for place, row in enumerate(rows, first)
            if isinstance(row, Row)
        ]

    async def messages(self, *, resend_unknown: bool) -> AsyncGenerator[Pending, None]:
        """Read the file again, and yield what is to be sent."""
        batch = self.batch
        assert batch is not None  # noqa: S101 - prepared before
        first = await self.journal.run(
            lambda file: _manifest.first_open(file, batch, resend_unknown=resend_unknown)
        )
        if first is None:
            await self._check_ours()
            return
        end = first
        async for place, rows in _chunks(self._source.rows(skip=first), first):
            open_rows = await self.journal.run(
                partial(
                    _manifest.open_rows,
                    batch=batch,
                    first=place,
                    last=place + len(rows) - 1,
                    resend_unknown=resend_unknown,
                )
            )
            for number, row in enumerate(rows, place):
                if isinstance(row, BadRow):
                    raise self._changed_meanwhile(f"line {row.line} shows")
                if number in open_rows:
                    message = attrs.evolve(row.message, reference=open_rows[number])
                    yield Pending(number, row.line, message)
            end = place + len(rows)
        if end < self._rows:
            raise self._changed_meanwhile()
        await self._check_ours()

    async def _check_ours(self) -> None:
        batch = self.batch
        assert batch is not None  # noqa: S101 - prepared before
        if await self.journal.run(lambda file: _manifest.size(file, batch)) < self._entries:
            raise ConfigurationError(
                "another job has entered rows of this one into the same journal meanwhile, so not "
                "all were sent; run it again when that has ended"
            )

    def _changed_meanwhile(self, sign: str = "its missing rows show") -> ValidationError:
        return ValidationError(
            f"{self._source.path} was changed after it was checked, as {sign}; "
            "nothing more was sent from it"
        )


class StreamFeed:
    """Messages of any iterable, pulled as they can be sent.

    Args:
        messages: The iterable.
        journal: Where they are entered.
        sender_id: For messages that name none; None for the account's own.
    """

    def __init__(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        journal: SQLiteJournal,
        sender_id: str | None,
    ) -> None:
        self.batch: int | None = None
        self._source = messages
        self.journal = journal
        self.sender_id = sender_id

    async def messages(
        self, *, resend_unknown: bool, allow_changed: bool
    ) -> AsyncGenerator[Pending, None]:
        """Pull messages, enter them, and yield what is to be sent."""
        batch = self.batch = await self.journal.run(
            lambda file: _manifest.new_batch(file, "messages")
        )
        entering = Entering(batch)
        first = 0
        async for messages in _pulled(self._source):
            items = [
                _item(place, None, message, self.sender_id)
                for place, message in enumerate(messages, first)
                if _is_sound(message)
            ]
            work = partial(
                _enter_and_look, entering, batch, items, first, resend_unknown=resend_unknown
            )
            open_rows, changed = await self.journal.run(work)
            entered = {item.row for item in items}
            for place, message in enumerate(messages, first):
                if place not in entered:  # it is refused where it is checked, on its way
                    yield Pending(place, None, message)
                elif place in open_rows:
                    refusal = None if allow_changed or place not in changed else _refusal()
                    named = attrs.evolve(message, reference=open_rows[place])
                    yield Pending(place, None, named, refusal)
            first += len(messages)


def _enter_and_look(
    entering: Entering,
    batch: int,
    items: Sequence[Item],
    first: int,
    file: sqlite3.Connection,
    *,
    resend_unknown: bool,
) -> tuple[dict[int, str], set[int]]:
    """Enter rows; return the references of those to be sent, and which are changed ones."""
    _, strangers = entering.enter(file, items)
    last = max((item.row for item in items), default=first)
    references = _manifest.open_rows(file, batch, first, last, resend_unknown=resend_unknown)
    # A stranger goes on under its reference: the journal refuses it with the reason.
    references |= {item.row: item.reference or "" for item in strangers}
    return references, {row.row for row in _manifest.changed(file, batch, first=first)}


def _item(row: int, line: int | None, message: Message, sender_id: str | None) -> Item:
    sender = message.sender_id if message.sender_id is not None else sender_id
    fingerprint = fingerprint_of(message.to, message.text, sender)
    return Item(row, line, fingerprint, message.to, message.reference)


def _is_sound(message: object) -> bool:
    if not isinstance(message, Message):
        return False
    try:
        check_number(message.to)
        check_text(message.text)
        _ = message.sender_id is None or check_sender(message.sender_id)
        _ = message.reference is None or check_reference(message.reference)
    except ValidationError:
        return False
    return True


def _stranger(item: Item, look: Callable[[Row | BadRow], None] | None) -> BadRow:
    bad = BadRow(item.line or 0, "its reference belongs to another message in this journal")
    if look is not None:
        look(bad)
    return bad


def _refusal() -> ValidationError:
    return ValidationError(
        "this recipient already got a different text in this journal; "
        "allow_changed=True sends this one too"
    )


async def _chunks(
    rows: Generator[Row | BadRow, None, None], first: int = 0
) -> AsyncGenerator[tuple[int, list[Row | BadRow]], None]:
    """Read rows in a thread, many at once, each time with the place of the first."""
    try:
        while chunk := await asyncio.to_thread(_take, rows, _CHUNK):
            yield first, chunk
            first += len(chunk)
    finally:
        with contextlib.suppress(ValueError):  # cancelled, while the thread still reads
            rows.close()


def _take(rows: Iterator[Row | BadRow], number: int) -> list[Row | BadRow]:
    return list(itertools.islice(rows, number))


async def _pulled(
    source: Iterable[Message] | AsyncIterable[Message],
) -> AsyncGenerator[list[Message], None]:
    """Pull messages: many at once where that cannot mean to wait for the last of them."""
    if isinstance(source, AsyncIterable):
        async for message in source:
            yield [message]
        return
    messages, failure = iter(source), None
    while failure is None:
        chunk: list[Message] = []
        try:
            chunk.extend(itertools.islice(messages, _PULLED))
        except Exception as exc:  # noqa: BLE001 - raised below, after what came before it
            failure = exc
        if not chunk:
            break
        yield chunk
    if failure is not None:
        raise failure
