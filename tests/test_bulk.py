"""Bulk sources: files in, rows and plain sentences out."""

import asyncio
import contextlib
import csv
import errno
import io
import itertools
import json
import math
import os
import string
import subprocess
import sys
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from smsid_async import (
    ConfigurationError,
    Message,
    Priority,
    RateBudget,
    SMSIDError,
    ValidationError,
)
from smsid_async.bulk import BadRow, Plan, Row, Source, Template, make_plan

NUMBER = "+447700900456"  # not the one that our sentences show
HEADER = "to,message\n"
GOOD = f"{NUMBER},Hello\n"


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.fixture
def csv_file(tmp_path):
    return lambda content, encoding="utf-8": written(tmp_path / "list.csv", content, encoding)


@pytest.fixture
def jsonl_file(tmp_path):
    def make(*lines):
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        return written(tmp_path / "list.jsonl", "\n".join(texts))

    return make


def refusal(source, kind=ConfigurationError):
    with pytest.raises(SMSIDError) as caught:
        list(source)
    assert type(caught.value) is kind
    assert not caught.value.maybe_sent
    assert "\n" not in str(caught.value)
    assert NUMBER not in str(caught.value)
    return str(caught.value)


# -- CSV -----------------------------------------------------------------------


def test_each_row_of_a_csv_file_becomes_a_message(csv_file):
    path = csv_file(
        "reference,to,message,sender_id,other\n"
        f"a-1,{NUMBER},Hello,SMSID,x\n"
        f',{NUMBER},"Hello, ""you""",,x\n'
    )
    assert list(Source(path)) == [
        Row(2, Message(NUMBER, "Hello", "SMSID", "a-1")),
        Row(3, Message(NUMBER, 'Hello, "you"')),
    ]


def test_a_source_can_be_read_again_and_takes_a_path_as_text(csv_file):
    source = Source(str(csv_file(HEADER + GOOD)))
    assert list(source) == list(source) == [Row(2, Message(NUMBER, "Hello"))]


def test_text_is_another_name_for_message(csv_file):
    assert list(Source(csv_file("text,to\n" + f"Hello,{NUMBER}\n"))) == [
        Row(2, Message(NUMBER, "Hello"))
    ]


def test_a_line_number_is_that_on_which_the_row_begins(csv_file):
    path = csv_file(
        f'\nto,message\n{NUMBER},"one\ntwo\r\nthree"\n\n\n{NUMBER},four\r\n{NUMBER},"f\rive"\r'
        f"{NUMBER},six"
    )
    rows = list(Source(path))
    assert [row.line for row in rows] == [3, 8, 9, 11]
    assert [row.message.text for row in rows] == ["one\ntwo\r\nthree", "four", "f\rive", "six"]


@pytest.mark.parametrize(
    ("written_in", "told"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-8-sig", "UTF8"),
        ("cp1252", "cp1252"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
    ],
)
def test_encodings_and_byte_order_marks(csv_file, written_in, told):
    path = csv_file(f"to,message\n{NUMBER},Zoë pays 5 €\n", written_in)
    assert list(Source(path, encoding=told)) == [Row(2, Message(NUMBER, "Zoë pays 5 €"))]


def test_a_byte_order_mark_that_the_encoding_keeps_is_dropped(csv_file):
    path = csv_file("\ufefftext,to\n" + f"Hello,{NUMBER}\n", "utf-16-le")
    assert list(Source(path, encoding="utf-16-le")) == [Row(2, Message(NUMBER, "Hello"))]


def test_bad_rows_are_told_apart_one_by_one(csv_file):
    path = csv_file(
        "to,message,sender_id\n"
        "07700900456,Hello,\n"
        f"{NUMBER},,\n"
        f"{NUMBER},{'x' * 1601},\n"
        f"{NUMBER},Hello,x\n"
        f"{NUMBER},Hello\n"
        f"{NUMBER},Hello, you,\n"
        f'{NUMBER},"Hello" you,\n'
        f"{NUMBER},Hello,\n"
        f'{NUMBER},"not closed,\n'
    )
    *bad, good, last = Source(path)
    assert good == Row(9, Message(NUMBER, "Hello"))
    assert [row.line for row in (*bad, last)] == [2, 3, 4, 5, 6, 7, 8, 10]
    reasons = [row.reason for row in (*bad, last)]
    assert reasons[0].startswith("the number ***456 is not in E.164 form")
    assert reasons[1] == "the message text has 0 characters; the API takes 1 to 1600"
    assert reasons[2] == "the message text has 1601 characters; the API takes 1 to 1600"
    assert reasons[3] == "the sender ID has 1 characters; the API takes 2 to 11"
    assert reasons[4].startswith("it has 2 cells and the header has 3; put quotes")
    assert reasons[5].startswith("it has 4 cells and the header has 3; put quotes")
    assert "cannot be read as CSV" in reasons[6]
    assert "a quote is not closed" in reasons[7]
    assert not any("0456" in reason or "Hello" in reason for reason in reasons)


def test_a_cell_that_swallows_the_file_is_one_bad_row(csv_file):
    path = csv_file(HEADER + f'{NUMBER},"' + "x\n" * 100_000 + GOOD)
    first, *_ = Source(path)
    assert isinstance(first, BadRow)
    assert first.line == 2
    assert "field larger than field limit" in first.reason


@pytest.mark.parametrize("content", ["", "\n\n\r\n", HEADER, HEADER + "\n\n"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_without_rows_is_refused(tmp_path, content, suffix):
    if suffix == ".jsonl":
        content = content.replace(HEADER, "")
    path = written(tmp_path / f"list{suffix}", content)
    assert refusal(Source(path), ValidationError) == f"{path} has no rows; nothing can be sent"


def test_missing_columns_are_named_beside_those_found(csv_file):
    path = csv_file("number,message,\n1,2,3\n")
    assert refusal(Source(path)) == f"{path} has no column to; found: number, message"
    path = csv_file("a\n1\n")
    assert refusal(Source(path)) == f"{path} has no column message, to; found: a"
    path = csv_file('""\n1\n')
    assert refusal(Source(path)).endswith("found: none")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_delimiter_is_recognised(csv_file, mark):
    said = refusal(Source(csv_file(f"to{mark}message\n")))
    assert said.endswith("Save it with commas between the cells")


def test_doubled_columns_are_refused_but_not_empty_ones(csv_file):
    path = csv_file("to,message,to,message,x\n")
    assert "has more than one column message, to;" in refusal(Source(path))
    assert len(list(Source(csv_file(f"to,message,,\n{NUMBER},Hello,,\n")))) == 1


def test_two_columns_for_the_text_make_every_row_bad(csv_file):
    (row,) = Source(csv_file(f"to,message,text\n{NUMBER},a,b\n"))
    assert row == BadRow(2, "it has both `message` and `text`; keep one of them")


def test_a_broken_header_is_told_with_its_line(csv_file):
    said = refusal(Source(csv_file('\nto,"message\n')), ValidationError)
    assert said.startswith("the header on line 2 cannot be read as CSV")


def test_nul_bytes_and_endless_lines_are_refused(csv_file):
    said = refusal(Source(csv_file(HEADER + GOOD + f"{NUMBER},a\0b\n")), ValidationError)
    assert said.startswith("line 3 of ")
    assert "NUL byte" in said
    assert "utf-16" in said
    said = refusal(Source(csv_file(HEADER + "x" * 1_000_001)), ValidationError)
    assert "line 2 of " in said
    assert "a million characters" in said


# -- the file ------------------------------------------------------------------


def test_what_is_not_there_or_no_file_is_told(tmp_path):
    assert refusal(Source(tmp_path / "no.csv")) == (
        f"there is no file {tmp_path / 'no.csv'}; check the path"
    )
    assert refusal(Source(tmp_path)) == f"{tmp_path} is a directory; name a file in it"
    inside = written(tmp_path / "file", "") / "list.csv"
    assert refusal(Source(inside)) == f"{inside} cannot be read: Not a directory"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file; it is read more than once" in refusal(Source(tmp_path / "pipe"))


def test_a_file_that_may_not_be_read_is_told(csv_file, monkeypatch):
    path = csv_file(HEADER + GOOD)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run this, may read everything
    assert refusal(Source(path)) == f"{path} may not be read by you; check its permissions"


@pytest.mark.parametrize(
    ("content", "encoding", "where"),
    [
        (f"to,message\n{NUMBER},caf\xe9 one\n".encode("latin-1"), "utf-8", "byte 29, on line 2"),
        (b"\xe9,to\n", "utf-8", "byte 1, on line 1"),
        (b"\xef\xbb\xbfto,\xe9\n", "utf-8", "byte 7, on line 1"),
        (HEADER.encode() + GOOD.encode() * 9000 + b"\xff", "utf-8", "byte 180012, on line 9002"),
        (HEADER.encode() + b"\xc3", "utf-8", "byte 12, on line 2"),
        (b"to,message\r\r\n\x81", "cp1252", "byte 14, on line 3"),
        ("to,message\n".encode("utf-16-le") + b"\x00\xd8a\x00", "utf-16-le", "byte 23, on line 2"),
    ],
)
def test_a_wrong_encoding_is_told_with_the_place(csv_file, content, encoding, where):
    said = refusal(Source(csv_file(content), encoding=encoding))
    assert f"is not in {encoding} ({where}); save it as UTF-8, or give" in said


def test_a_missing_byte_order_mark_is_told(csv_file):
    said = refusal(Source(csv_file(HEADER, "utf-16-be"), encoding="utf-16"))
    assert "is not in utf-16 (" in said  # and then why or where, as the Python version has it


def test_a_file_repaired_in_the_meantime_is_still_told(csv_file, monkeypatch):
    path = csv_file(b"\xe9")
    opened, real = [], Path.open

    def repairing(self, *args, **kwargs):
        opened.append(args)
        return io.BytesIO(HEADER.encode()) if len(opened) > 1 else real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", repairing)
    assert "is not in utf-8 ('utf-8' codec can't decode byte" in refusal(Source(path))


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "", "a\0b", "é"])
def test_an_encoding_that_does_not_exist_is_told(csv_file, encoding):
    said = refusal(Source(csv_file(HEADER + GOOD), encoding=encoding))
    assert said.startswith(f"there is no text encoding {encoding!r}; give one such as utf-8")


# -- JSONL ---------------------------------------------------------------------


def test_each_line_of_a_jsonl_file_becomes_a_message(jsonl_file):
    path = jsonl_file(
        {"to": NUMBER, "message": "Hello\nyou", "reference": "a", "other": 5},
        "",
        {"to": NUMBER, "text": "Hello", "sender_id": "SMSID", "reference": None},
    )
    assert list(Source(path)) == [
        Row(1, Message(NUMBER, "Hello\nyou", None, "a")),
        Row(3, Message(NUMBER, "Hello", "SMSID")),
    ]


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.json"])
def test_json_lines_are_known_by_the_suffix(tmp_path, name):
    path = written(tmp_path / name, "\ufeff" + json.dumps({"to": NUMBER, "message": "Hello"}))
    assert list(Source(path)) == [Row(1, Message(NUMBER, "Hello"))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is not one JSON object on one line (Expecting property name"),
        ("[", "it is not one JSON object on one line (Expecting value, column 2)"),
        ("[1]", "it is JSON, but not an object; write {...} with `to` and `message`"),
        ("[" * 200_000, "it is not JSON that can be read (RecursionError)"),
        ('{"to": ' + "1" * 5000 + "}", "it is not JSON that can be read (ValueError)"),
        ('{"to": "1", "to": "2"}', "it has a name twice; keep one of them"),
        ({"to": 447700900456, "message": "x"}, "its `to` is a number, not text; write it in"),
        ({"to": 1.5, "message": "x"}, "its `to` is a number, not text"),
        ({"to": NUMBER, "message": True}, "its `message` is true or false, not text"),
        ({"to": NUMBER, "message": None}, "its `message` is null, not text"),
        ({"to": NUMBER, "message": ["x"]}, "its `message` is a list, not text"),
        ({"to": NUMBER, "message": {}}, "its `message` is an object, not text"),
        ({"to": NUMBER}, "it has no `message`"),
        ({"message": "x"}, "it has no `to`"),
        ({"to": NUMBER, "message": "x", "text": "x"}, "it has both `message` and `text`"),
        ({"to": NUMBER, "message": "x", "sender_id": 5}, "its `sender_id` is a number"),
        ({"to": NUMBER, "message": "\ud800"}, "the message text has half a surrogate pair"),
    ],
)
def test_a_bad_line_of_json_is_told(jsonl_file, line, reason):
    _, row = Source(jsonl_file({"to": NUMBER, "message": "Hello"}, line))
    assert isinstance(row, BadRow)
    assert row.line == 2
    assert row.reason.startswith(reason)
    assert "456" not in row.reason


def test_the_first_object_tells_the_columns(jsonl_file):
    path = jsonl_file("oops", {"number": NUMBER, "message": "x"})
    assert refusal(Source(path)) == f"{path} has no column to; found: number, message"


def test_rows_at_the_beginning_can_be_passed_over(csv_file, jsonl_file):
    paths = [
        csv_file(HEADER + GOOD + f'{NUMBER},"Hello" you\n\n0,Hello\n{NUMBER}\n' + GOOD),
        jsonl_file({"to": NUMBER, "message": "Hello"}, "", "{", {"to": NUMBER, "message": "you"}),
    ]
    for path in paths:
        every = list(Source(path))
        for skip in range(1, len(every) + 2):
            assert list(Source(path).rows(skip=skip)) == every[skip:]


@pytest.mark.parametrize("reference", ["x" * 201, "a\nb", "\ud800", 5])
def test_a_reference_that_cannot_be_one_makes_its_row_bad(jsonl_file, reference):
    (row,) = Source(jsonl_file({"to": NUMBER, "message": "x", "reference": reference}))
    assert isinstance(row, BadRow)
    assert "reference" in row.reason


# -- templates -----------------------------------------------------------------


def test_a_template_is_filled_from_any_columns(csv_file):
    path = csv_file(f"name,to,a.b[0],message\nZoë,{NUMBER},7,unused\n")
    source = Source(path, message="Hi {name}, {{{a.b[0]}}} {{name}}!")
    assert list(source) == [Row(2, Message(NUMBER, "Hi Zoë, {7} {name}!"))]
    assert source.message.columns == {"name", "a.b[0]"}


def test_a_template_without_placeholders_is_the_text(csv_file):
    path = csv_file(f"to\n{NUMBER}\n")
    assert list(Source(path, message=Template("Hello"))) == [Row(2, Message(NUMBER, "Hello"))]


def test_an_unknown_column_of_a_template_is_told_once(csv_file):
    path = csv_file(f"to,name\n{NUMBER},Zoë\n" * 3)
    assert refusal(Source(path, message="Hi {nom} {name}")) == (
        f"{path} has no column nom; found: to, name"
    )


def test_a_template_on_json_needs_text_in_every_object(jsonl_file):
    path = jsonl_file(
        {"to": NUMBER, "n": "1"}, {"to": NUMBER, "n": 1}, {"to": NUMBER}, {"to": NUMBER, "n": ""}
    )
    assert list(Source(path, message="{n}")) == [
        Row(1, Message(NUMBER, "1")),
        BadRow(2, "its `n` is a number, not text; write it in quotes"),
        BadRow(3, "it has no `n`"),
        BadRow(4, "the message text has 0 characters; the API takes 1 to 1600"),
    ]


@pytest.mark.parametrize("text", ["{", "}", "{name", "a } b", "{a{b}", "{name!x}}"])
def test_a_template_with_a_brace_too_many_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"the message template"):
        Template(text)


@pytest.mark.parametrize("text", ["{}", "{name:>5}", "{name!r}", "{name!r:>5}", "{:5}"])
def test_a_template_takes_plain_columns_only(text):
    with pytest.raises(ConfigurationError, match="not a plain column name"):
        Template(text)


def test_a_template_looks_nothing_up_but_columns():
    template = Template("{name.__class__}")
    assert template.columns == {"name.__class__"}
    with pytest.raises(ValidationError, match=r"it has no `name\.__class__`"):
        template.fill({"name": "x"})


# -- plans ---------------------------------------------------------------------


def test_a_plan_counts_in_one_pass():
    rows = [
        Row(2, Message(NUMBER, "Hello")),
        BadRow(3, "bad"),
        Row(4, Message(NUMBER, "x" * 161)),
        Row(5, Message(NUMBER, "ž")),
    ]
    plan = make_plan(iter(rows))
    assert plan == Plan(
        messages=3, bad_rows=1, segments=4, longest=2, encodings={"GSM-7": 2, "UCS-2": 1}
    )
    assert plan.cost(Decimal("0.04")) == Decimal("0.16")


def test_an_empty_plan_takes_no_time():
    plan = make_plan([])
    assert plan == Plan(0, 0, 0, 0, {})
    assert plan.seconds() == 0


@pytest.mark.parametrize(
    ("limit", "period", "expected"), [(120, 60.0, 512.1), (120, 6.0, 51.2), (1, 1.0, 1015.7)]
)
def test_a_plan_estimates_its_duration(limit, period, expected):
    plan = Plan(messages=1000, bad_rows=0, segments=1000, longest=1, encodings={})
    assert math.isclose(plan.seconds(limit, period), expected, abs_tol=0.1)


@pytest.mark.parametrize(("limit", "period"), [(20, 1.0), (50, 0.5)])
def test_the_estimate_is_what_the_budget_does(limit, period):
    async def use(count):
        budget = RateBudget(limit, period)
        for _ in range(count):
            (await budget.acquire(Priority.BULK)).answered()

    count = limit * 2
    began = time.perf_counter()
    asyncio.run(use(count))
    took = time.perf_counter() - began
    plan = Plan(messages=count, bad_rows=0, segments=count, longest=1, encodings={})
    assert math.isclose(plan.seconds(limit, period), took, rel_tol=0.25)


# -- properties ----------------------------------------------------------------

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60
)
numbers = st.integers(0, 999).map("+447700900{:03d}".format)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(numbers, texts), min_size=1, max_size=8),
    dialect=st.sampled_from(["excel", "unix"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_what_the_csv_module_writes_is_read_back(tmp_path, rows, dialect, encoding):
    path = tmp_path / "list.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, dialect)
        writer.writerow(("to", "message"))
        writer.writerows(rows)
    found = list(Source(path, encoding=encoding))
    assert [(row.message.to, row.message.text) for row in found] == rows
    text = path.read_bytes().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    for row in found:
        assert lines[row.line - 1].lstrip('"').startswith(row.message.to)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(numbers, texts), min_size=1, max_size=8), ascii_only=st.booleans())
def test_what_the_json_module_writes_is_read_back(tmp_path, rows, ascii_only):
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"to": to, "text": text}, ensure_ascii=ascii_only) for to, text in rows]
    path.write_bytes("\n".join(lines).encode())
    found = list(Source(path))
    assert [(row.line, row.message.to, row.message.text) for row in found] == [
        (line, *row) for line, row in enumerate(rows, 1)
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='ab,"\r\n\0' + NUMBER, max_size=80).map(
            lambda text: (HEADER + text).encode()
        ),
    ),
    suffix=st.sampled_from([".csv", ".jsonl"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "cp1252"]),
)
def test_no_content_raises_anything_but_our_errors(tmp_path, content, suffix, encoding):
    path = written(tmp_path / f"list{suffix}", content)
    with contextlib.suppress(SMSIDError):
        rows = list(Source(path, encoding=encoding))
        assert rows
        assert all(isinstance(row, Row) or row.reason for row in rows)


@given(
    cells=st.dictionaries(st.text(string.ascii_letters, min_size=1), st.text(), max_size=4),
    literal=st.text(),
)
def test_a_template_says_what_was_put_in(cells, literal):
    escaped = literal.replace("{", "{{").replace("}", "}}")
    template = Template(escaped + "".join(f"{{{name}}}" for name in cells))
    assert template.fill(cells) == literal + "".join(cells.values())


# -- size and imports ----------------------------------------------------------


def test_a_file_without_a_header_shows_none_of_its_first_message(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("+447700900123,Dear Anna your code is 4711\n+447700900124,Hello\n")
    with pytest.raises(ConfigurationError, match="seems to be a message, not a header") as caught:
        list(Source(path))
    assert "7700" not in str(caught.value)
    assert "Anna" not in str(caught.value)


def test_strange_column_names_are_not_shown(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("name,Dear Anna!!,Dear Anna!!\nx,y,z\n")
    with pytest.raises(ConfigurationError, match=r"found: name$") as caught:
        list(Source(path))
    assert "Anna" not in str(caught.value)


def test_a_path_that_cannot_be_one_is_told():
    with pytest.raises(ConfigurationError, match="cannot be a path"):
        list(Source("a\0b"))


@pytest.mark.heavy
def test_memory_is_flat_for_many_rows(tmp_path):
    path = tmp_path / "list.csv"
    with path.open("w") as file:
        file.write("to,name\n")
        for number in range(200_000):
            file.write(f"+447700900{number % 1000:03d},name {number}\n")
    source = Source(path, message="Hi {name}, your parcel is here.")
    read = make_plan(itertools.islice(source, 150_000))
    tracemalloc.start()  # late, for it is slow; by now a leak would be in every further row
    try:
        rows = iter(source)
        peaks = []
        for _ in range(2):
            read = make_plan(itertools.islice(rows, 25_000))
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert read.messages == 25_000
    assert peaks[1] < peaks[0] + 10_000 < 500_000


def test_the_package_imports_neither_bulk_nor_the_command_line():
    script = (
        "import sys; from smsid_async import *\n"
        "print({'smsid_async.bulk', 'smsid_async.cli', 'smsid_async.sandbox'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "set()"


def test_bulk_needs_none_of_the_extras():
    script = (
        "import sys, smsid_async.bulk\n"
        "print({m.partition('.')[0] for m in sys.modules} & "
        "{'typer', 'starlette', 'uvicorn'})"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "set()"
