"""Messages from files: CSV and JSONL, read row by row in flat memory.

No message of an error or a `BadRow` shows a phone number or a text.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import json
import re
import stat
import string
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import attrs

from smsid_async.errors import ConfigurationError, SMSIDError, ValidationError
from smsid_async.models import Message, check_number, check_reference, check_sender, check_text
from smsid_async.segments import count_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from decimal import Decimal

__all__ = ["BadRow", "Plan", "Row", "Source", "Template", "make_plan"]

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_TEXT_COLUMNS = ("message", "text")
_LONGEST_LINE = 1_000_000  # characters; whatever has longer ones is no list of messages
_CHUNK = 65_536  # bytes
_DIGITS = 6  # no column's name has so many, every phone number has
_COLUMN = re.compile(r"\w[\w -]{0,30}")  # whatever else stands there may be private

_Cells: TypeAlias = "Mapping[str, object]"
_Record: TypeAlias = "tuple[int, _Cells | str]"  # the line, and the cells or what is wrong
_Check: TypeAlias = "Callable[[Sequence[str]], None]"  # of the column names, once they are known
Normalise: TypeAlias = "Callable[[str], str]"  # a number to E.164, or raises ValidationError


@attrs.frozen
class Row:
    """A row that can be sent.

    Attributes:
        line: The line of the file on which the row begins, from 1.
        message: What to send.
    """

    line: int
    message: Message


@attrs.frozen
class BadRow:
    """A row that cannot be sent.

    Attributes:
        line: The line of the file on which the row begins, from 1.
        reason: What is wrong with it, without its number and text.
    """

    line: int
    reason: str


class Template:
    """A text with placeholders, such as `Hi {name}`.

    A placeholder is a column's name in braces and nothing else; `{{` and `}}` stand for
    the braces themselves.

    Args:
        text: The template.

    Raises:
        ConfigurationError: It has a brace too many, or something other than a name in braces.
    """

    def __init__(self, text: str) -> None:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as exc:
            raise ConfigurationError(
                f"the message template is broken ({exc}); write {{{{ or }}}} for a brace itself"
            ) from exc
        for _, column, spec, conversion in parts:
            if column is not None and (not column or spec or conversion):
                raise ConfigurationError(
                    "the message template has a placeholder that is not a plain column name; "
                    "write {column} and nothing more"
                )
        self.text = text
        self._parts = [(literal, column) for literal, column, _, _ in parts]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it needs."""
        return frozenset(column for _, column in self._parts if column is not None)

    def fill(self, cells: _Cells) -> str:
        """Return the text for one row.

        Args:
            cells: The row's cells by column name.

        Raises:
            ValidationError: A column is missing or holds something other than text.
        """
        return "".join(
            literal if column is None else literal + _text(cells, column)
            for literal, column in self._parts
        )


def _as_template(message: str | Template | None) -> Template | None:
    return Template(message) if isinstance(message, str) else message


@attrs.frozen
class Source:
    """A CSV or JSONL file of messages; iterating over it reads it anew.

    CSV is RFC 4180 with a header line. JSONL, known by the suffix `.jsonl`, `.ndjson` or
    `.json`, has one object a line. The columns are `to`, `message` (or `text`), and
    optionally `sender_id` and `reference`; with a template `to` and what it names.

    Args:
        path: The file. It must be a regular one, since it may be read more than once.
        message: A template for the text, in place of the column `message`.
        encoding: The file's encoding; a byte order mark is understood.
        normalise: Turns a number as it stands in the file into E.164, or raises
            `ValidationError`; None where the numbers are in that form.

    Raises:
        ConfigurationError: While iterating: the file cannot be read, is not in the
            encoding, or lacks a column.
        ValidationError: While iterating: the file as a whole is not a list of messages.
    """

    path: Path = attrs.field(converter=Path)
    message: Template | None = attrs.field(default=None, converter=_as_template)
    encoding: str = "utf-8"
    normalise: Normalise | None = None

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.rows()

    def rows(self, *, skip: int = 0) -> Generator[Row | BadRow, None, None]:
        """Read the file.

        Args:
            skip: Rows at its beginning to pass over, good or bad, without a look.
        """
        records = _json_records if self.path.suffix.lower() in _JSON_SUFFIXES else _csv_records
        empty = True
        with _opened(self.path, self.encoding) as lines:
            for line, cells in records(lines, self._check_columns, skip):
                empty = False
                yield BadRow(line, cells) if isinstance(cells, str) else self._row(line, cells)
        if empty and not skip:
            raise ValidationError(f"{self.path} has no rows; nothing can be sent")

    def digest(self) -> str:
        """Return what changes when the messages in the file may have.

        Raises:
            ConfigurationError: The file cannot be read.
        """
        template = None if self.message is None else self.message.text
        with _opened(self.path, self.encoding), self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return json.dumps([content, template, self.encoding, repr(self.normalise)])

    def _check_columns(self, found: Sequence[str]) -> None:
        if any(sum(character.isdigit() for character in name) >= _DIGITS for name in found):
            raise ConfigurationError(
                f"the first line of {self.path} seems to be a message, not a header; put a line "
                "with the column names, such as to,message, before it"
            )
        names = ", ".join(name for name in found if _COLUMN.fullmatch(name)) or "none"
        twice = sorted(
            name for name, times in Counter(found).items() if times > 1 and _COLUMN.fullmatch(name)
        )
        if twice:
            raise ConfigurationError(
                f"{self.path} has more than one column {', '.join(twice)}; rename or remove one"
            )
        missing = {"to"} - set(found)
        if self.message is not None:
            missing |= self.message.columns - set(found)
        elif not set(_TEXT_COLUMNS) & set(found):
            missing.add("message")
        if missing:
            raise ConfigurationError(
                f"{self.path} has no column {', '.join(sorted(missing))}; "
                f"found: {names}{_advice(found)}"
            )

    def _row(self, line: int, cells: _Cells) -> Row | BadRow:
        try:
            to = _text(cells, "to")
            message = Message(
                check_number(to if self.normalise is None else self.normalise(to)),
                check_text(self._text(cells)),
                _optional(cells, "sender_id"),
                _optional(cells, "reference"),
            )
            _ = message.sender_id is None or check_sender(message.sender_id)
            _ = message.reference is None or check_reference(message.reference)
        except ValidationError as exc:
            return BadRow(line, str(exc))
        return Row(line, message)

    def _text(self, cells: _Cells) -> str:
        if self.message is not None:
            return self.message.fill(cells)
        column, *more = [name for name in _TEXT_COLUMNS if name in cells] or ["message"]
        if more:
            raise ValidationError("it has both `message` and `text`; keep one of them")
        return _text(cells, column)


@attrs.frozen
class Plan:
    """What sending a file means.

    Attributes:
        messages: Good rows.
        bad_rows: The others.
        segments: What the good rows take on the air, and are charged for.
        longest: Segments of the longest message.
        encodings: How many messages are in which encoding, `GSM-7` or `UCS-2`.
    """

    messages: int
    bad_rows: int
    segments: int
    longest: int
    encodings: Mapping[str, int]

    def seconds(self, limit: int = 120, period: float = 60.0) -> float:
        """Estimate how long sending takes with a `RateBudget` of these numbers.

        Args:
            limit: Requests in each period.
            period: Seconds.

        Returns:
            Seconds, when nothing else uses the budget and the API answers quickly.
        """
        slots = max(1, limit - 1)  # the budget keeps one for one-time codes
        margin = period / 60  # as RateBudget adds to each slot's time
        return max(0, self.messages - 1) * (period + margin) / slots

    def cost(self, price: Decimal) -> Decimal:
        """Return what the segments cost at a price for each."""
        return self.segments * price


def make_plan(rows: Iterable[Row | BadRow]) -> Plan:
    """Count rows, segments and encodings in one pass.

    Args:
        rows: A `Source`, or any rows.
    """
    bad_rows = segments = longest = 0
    encodings: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, BadRow):
            bad_rows += 1
            continue
        count = count_segments(row.message.text)
        encodings[count.encoding] += 1
        segments += count.segments
        longest = max(longest, count.segments)
    return Plan(encodings.total(), bad_rows, segments, longest, dict(encodings))


# -- cells ---------------------------------------------------------------------


_JSON_KINDS = {bool: "true or false", dict: "an object", list: "a list"}


def _text(cells: _Cells, column: str) -> str:
    value = cells.get(column)
    if isinstance(value, str):
        return value
    if column not in cells:
        raise ValidationError(f"it has no `{column}`")
    kind = "null" if value is None else _JSON_KINDS.get(type(value), "a number")
    raise ValidationError(f"its `{column}` is {kind}, not text; write it in quotes")


def _optional(cells: _Cells, column: str) -> str | None:
    return None if cells.get(column) is None else _text(cells, column) or None


def _advice(found: Sequence[str]) -> str:
    other = next((mark for mark in (";", "\t") if len(found) == 1 and mark in found[0]), None)
    return "" if other is None else ". Save it with commas between the cells"


# -- CSV -----------------------------------------------------------------------


def _csv_records(lines: Iterator[str], check: _Check, skip: int) -> Iterator[_Record]:
    reader = csv.reader(lines, strict=True)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            if columns is None:
                raise ValidationError(f"the header on line {line} {_broken(exc)}") from exc
            skip -= 1
            if skip < 0:
                yield line, f"it {_broken(exc)}"
            continue
        if columns is None and cells:
            columns = [cell.strip().removeprefix("\ufeff") for cell in cells]
            check(columns)
        elif columns is not None and cells:
            skip -= 1
            if skip < 0:
                yield line, _ragged(cells, columns) or dict(zip(columns, cells, strict=True))


def _broken(exc: csv.Error) -> str:
    return (
        f"cannot be read as CSV ({exc}): a quote is not closed, or one inside a cell is not doubled"
    )


def _ragged(cells: list[str], columns: list[str]) -> str:
    if len(cells) == len(columns):
        return ""
    return (
        f"it has {len(cells)} cells and the header has {len(columns)}; put quotes around a cell "
        "that has a comma in it"
    )


# -- JSONL ---------------------------------------------------------------------


def _json_records(lines: Iterator[str], check: _Check, skip: int) -> Iterator[_Record]:
    checked = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        skip -= 1
        if skip >= 0:
            continue
        cells = _json_object(line)
        if not checked and not isinstance(cells, str):
            check(list(cells))
            checked = True
        yield number, cells


def _json_object(line: str) -> _Cells | str:
    """Return a line's object, or what is wrong with the line."""
    try:
        value = json.loads(line, object_pairs_hook=_without_doubles)
    except ValidationError as exc:
        return str(exc)
    except json.JSONDecodeError as exc:
        return f"it is not one JSON object on one line ({exc.msg}, column {exc.colno})"
    except (ValueError, RecursionError) as exc:  # an endless number, or nested too deeply
        return f"it is not JSON that can be read ({type(exc).__name__})"
    if not isinstance(value, dict):
        return "it is JSON, but not an object; write {...} with `to` and `message`"
    return value


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValidationError("it has a name twice; keep one of them")
    return cells


# -- the file ------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """Open a file for reading, and turn all that goes wrong with it into our own errors."""
    codec = _codec(encoding)
    try:
        mode = path.stat().st_mode  # first: opening a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise ConfigurationError(f"{path} is a directory; name a file in it")
        if not stat.S_ISREG(mode):
            raise ConfigurationError(
                f"{path} is not a regular file; it is read more than once, so save it to one"
            )
        with path.open(encoding=codec, newline="") as file:
            yield _lines(file, path)
    except UnicodeError as exc:  # it holds a piece of the file, so it is no cause
        raise _wrong_encoding(path, codec, encoding, exc) from None
    except ValueError as exc:
        if isinstance(exc, SMSIDError):
            raise
        raise ConfigurationError(f"{str(path)!r} cannot be a path ({exc})") from exc
    except FileNotFoundError as exc:
        raise ConfigurationError(f"there is no file {path}; check the path") from exc
    except PermissionError as exc:
        raise ConfigurationError(f"{path} may not be read by you; check its permissions") from exc
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc


def _codec(encoding: str) -> str:
    """Return the codec's name; UTF-8 may begin with a byte order mark."""
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), name)  # refuses what is a codec, but not for text
    except (LookupError, ValueError) as exc:
        raise ConfigurationError(
            f"there is no text encoding {encoding!r}; give one such as utf-8, utf-16 or cp1252"
        ) from exc
    return "utf-8-sig" if name == "utf-8" else name


def _lines(file: io.TextIOBase, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise ValidationError(
                f"line {number} of {path} has a million characters or more; "
                "is this a list of messages?"
            )
        if "\0" in line:
            raise ValidationError(
                f"line {number} of {path} has a NUL byte; if the file is in UTF-16, "
                "give utf-16 as its encoding, else it is damaged"
            )
        yield line


def _wrong_encoding(
    path: Path, codec: str, encoding: str, error: UnicodeError
) -> ConfigurationError:
    try:
        where = _first_bad_byte(path, codec)
    except UnicodeError:  # no byte of it is bad: it lacks its byte order mark, for instance
        where = str(error)
    return ConfigurationError(
        f"{path} is not in {encoding} ({where}); save it as UTF-8, or give the encoding "
        "that it is in, such as cp1252 or utf-16"
    )


def _first_bad_byte(path: Path, codec: str) -> str:
    """Find where decoding fails: a text file tells it for its buffer only."""
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder(codec)("strict"), translate=True
    )
    position, line, size, chunk = 0, 1, _CHUNK, b"-"
    with path.open("rb") as file:
        while chunk:
            before = decoder.getstate()
            chunk = file.read(size)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as exc:
                if len(chunk) <= 1:
                    begin = position + len(chunk) - len(exc.object) + exc.start
                    return f"byte {begin + 1}, on line {line}"
                decoder.setstate(before)  # and again, byte by byte, to count the lines
                file.seek(position)
                size = 1
            else:
                position += len(chunk)
    raise UnicodeError("the file has changed meanwhile")
