"""Whatever a server answers: only our errors, no false promise, bounded memory and time."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import random
import sys
import time
import zlib
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import hypothesis.strategies as st
import pytest
from conftest import NUMBER
from hostile import (
    KEY,
    METHODS,
    ONCE,
    READS,
    Ending,
    FreeBudget,
    Puppet,
    Reply,
    ending_of,
    judge,
    judge_words,
    one_input,
)
from hypothesis import HealthCheck, given, settings
from wire import SENT, RawServer, answer, ok, raw

from smsid_async import (
    APIError,
    OTPVerificationError,
    OutcomeUnknownError,
    RateBudget,
    RateLimitError,
    RetryPolicy,
    SMSIDClient,
    SMSIDError,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wire import Arrival, Script

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
CORPUS = HERE / "fuzz" / "corpus"

DOCUMENTED: dict[str, dict[str, object]] = {
    "sms.send": {
        "status": "success",
        "message_id": "M1",
        "cost": "0.0400",
        "remaining_balance": "9.96",
    },
    "sms.status": {"message_id": "M1", "status": "delivered"},
    "balance": {"balance": "95.6000"},
    "otp.send": {"status": "sent"},
    "otp.verify": {"status": "verified", "verified": True},
    "otp.check": {"status": "verified", "verified": True},
}

# -- strategies: texts of JSON, so that what no serialiser writes can be written --

VALUES = [
    *("true", "false", "null", "200", '"200"', "200.0", "2e2", "-0", "0", "1", "-5", "17"),
    *("NaN", "Infinity", "-Infinity", "1e400", "1e999999999", "-1e-999999999", "0.1e-40"),
    *('"NaN"', '"1e400"', '"-5"', '"+1"', '"٣"', '"1_0"', '" 5 "', '"0x10"', '"1,000.50"'),
    *(
        '"true"',
        '"M1"',
        '"M2"',
        '""',
        '"\\ud800"',
        '"\\u0000"',
        '"\\u001b[31m"',
        '"\u017f"',
        '"\ufeff"',
    ),
    *("[]", "{}", "[true]", '{"verified":true}', "[[[[]]]]", "'x'", "tru", "True", "01", "+1"),
    *("9" * 18, "9" * 19, "9" * 5_000, '"' + "9" * 5_000 + '"', "1" + "0" * 4_400 + ".5"),
    *("[" * 31 + "]" * 31, "[" * 100 + "]" * 100, "[" * 100_000, '{"a":' * 40 + "1" + "}" * 40),
    *(
        json.dumps(word)
        for word in (f"{NUMBER} is bad", "no balance " * 300, "sender\r\n approved")
    ),
]
NAMES = ["meta", "data", "code", "text", "verified", "message_id", "cost", "balance", "status"]
STATUSES = [*[200] * 12, 201, 204, 301, 400, 401, 402, 403, 404, 422, 429, 500, 502, 503]
RETRY_AFTER = [b"0", b"7", b"-1", b"nan", b"1e400", b"\xff\xfe", b"9" * 40, b"5, 6", b"\xd9\xa3"]
HEADER_NAMES = ["Retry-After", "Date", "Content-Encoding", "Content-Length", "Location"]
HEADER_NAMES += ["Set-Cookie", "Content-Type", "Transfer-Encoding", "X-Other"]
HEADER_VALUES = [b"gzip", b"identity", b"gzip, gzip", b"br", b"0", b"-1", b"chunked", b"", b"//["]
HEADER_VALUES += [b"http://[", b"text/html; charset=\xff", b"a=b; expires=", b"\x00", b"x" * 9_000]
HEADER_VALUES += [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sun, 06 Nov 0000 99:99:99 GMT", *RETRY_AFTER]

json_texts = st.one_of(
    st.sampled_from(VALUES),
    st.integers().map(str),
    st.text(max_size=20).map(json.dumps),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ).map(json.dumps),
)
header_lists = st.lists(
    st.tuples(
        st.sampled_from(HEADER_NAMES).map(str.encode),
        st.sampled_from(HEADER_VALUES) | st.binary(max_size=20),
    ),
    max_size=3,
).map(tuple)

Pairs = list[tuple[str, str]]


def written(pairs: Pairs) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in pairs) + "}"


@st.composite
def edited(draw: st.DrawFn, pairs: Pairs) -> Pairs:
    """Drop, retype, nest, double or add a field."""
    edit = draw(st.sampled_from(["retype", "drop", "nest", "double", "add"]))
    index = draw(st.integers(0, len(pairs) - 1))
    name, text = pairs[index]
    before, after = pairs[:index], pairs[index + 1 :]
    if edit == "drop":
        return before + after
    if edit == "nest":
        return [*before, (name, written([(name, text)])), *after]
    value = draw(json_texts)
    if edit == "retype":
        return [*before, (name, value), *after]
    return [*pairs, (name if edit == "double" else draw(st.sampled_from(NAMES)), value)]


DISGUISES: list[Callable[[bytes], bytes]] = [
    lambda body: b"\xef\xbb\xbf" + body,
    lambda body: body.decode().encode("utf-16"),
    lambda body: body.decode().encode("utf-32-be"),
    lambda body: body + body,
    lambda body: body + b"\n<!-- cached -->",
    lambda body: b")]}',\n" + body,
    lambda body: body + b"\x00",
    lambda body: body[:-1],
    lambda body: body[: len(body) // 2],
    lambda body: body.replace(b'"', b"'"),
    lambda body: body.replace(b"M1", b"\xed\xa0\x80"),
    lambda body: b"[" + body + b"]",
    lambda body: body + b" " * (1 << 20),
]


PLACES = ["", "", "meta", "data", "data", "data", "meta data", "whole", "disguise"]


@st.composite
def envelopes(draw: st.DrawFn, method: str, status: int) -> bytes:
    """The documented envelope of a method, as it is, edited or disguised."""
    place = draw(st.sampled_from(PLACES))
    meta: Pairs = [("code", str(status)), ("text", '"OK"')]
    data = [(name, json.dumps(value)) for name, value in DOCUMENTED[method].items()]
    if "meta" in place:
        meta = draw(edited(meta))
    if "data" in place:
        data = draw(edited(data))
    whole = [("meta", written(meta)), ("data", written(data))]
    body = written(draw(edited(whole)) if place == "whole" else whole).encode()
    return draw(st.sampled_from(DISGUISES))(body) if place == "disguise" else body


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, Reply]:
    method = draw(st.sampled_from(list(METHODS)))
    kind = draw(st.sampled_from(["envelope"] * 6 + ["odd status", "bytes", "JSON"]))
    status = draw(st.integers(0, 999) if kind == "odd status" else st.sampled_from(STATUSES))
    if kind == "bytes":
        body = draw(st.binary(max_size=200))
    elif kind == "JSON":
        body = draw(json_texts).encode()
    else:
        body = draw(envelopes(method, status))
    headers = draw(header_lists) if draw(st.booleans()) else ()
    return method, Reply(status, body, headers)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "smsid_async")  # thousands of lines, for each example one


def many(examples: int) -> settings:
    checks = list(HealthCheck)
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=checks
    )


def try_answers(examples: int) -> dict[str, int]:
    """Give so many answers to the client; returns how many of the endings were values."""
    endings = {"value": 0, "error": 0}
    with Puppet() as puppet:

        @many(examples)
        @given(answers())
        def check(given_answer: tuple[str, Reply]) -> None:
            method, reply = given_answer
            ending = puppet.ending(method, reply)
            endings["value" if ending.error is None else "error"] += 1
            judge(method, reply, ending)

        check()
    return endings


def test_whatever_is_answered_only_our_errors_come_out_and_none_promises_too_much() -> None:
    endings = try_answers(3_000)
    assert endings["value"] > 50  # neither is all a refusal, nor all a success
    assert endings["error"] > 500


@pytest.mark.long
def test_a_hundred_thousand_answers() -> None:
    endings = try_answers(100_000)
    assert endings["value"] > 2_500
    assert endings["error"] > 25_000


@pytest.mark.parametrize("method", METHODS)
def test_the_documented_answer_is_a_value(method: str) -> None:
    body = json.dumps(ok(DOCUMENTED[method])).encode()
    with Puppet() as puppet:
        ending = puppet.ending(method, Reply(200, body))
    assert ending.error is None
    judge(method, Reply(200, body), ending)


NOT_TRUE = [text for text in VALUES if text != "true"]


@pytest.mark.parametrize("method", ["otp.verify", "otp.check"])
def test_verify_fails_closed_whatever_stands_for_true(method: str) -> None:
    """Every value in place of `verified: true`, with the rest of the answer as documented."""
    with Puppet() as puppet:
        for text in NOT_TRUE:
            body = written([("meta", '{"code":200}'), ("data", written([("verified", text)]))])
            error = puppet.ending(method, Reply(200, body.encode())).error
            expected = OTPVerificationError if text == "false" else OutcomeUnknownError
            assert type(error) is expected, text


# -- the decoding alone: what the fuzzer does, without it -----------------------


def mutant(draw: random.Random, seeds: list[bytes]) -> bytes:
    """Cut, join, overwrite or repeat pieces of the corpus."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = start + draw.randrange(8)
        other = draw.choice(seeds)
        piece = draw.randrange(len(other))
        data[start:end] = draw.choice(
            [
                b"",
                draw.randbytes(draw.randrange(1, 4)),
                other[piece : piece + draw.randrange(60)],
                bytes(data[start:end]) * 2,
                draw.choice(VALUES).encode(),
            ]
        )
    return bytes(data)


def seeds_of_the_fuzzer() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


def test_every_input_of_the_fuzzers_corpus_ends_as_it_may() -> None:
    seeds = seeds_of_the_fuzzer()
    assert len(seeds) > 30
    for seed in seeds:
        one_input(seed)


def test_mutants_of_the_fuzzers_corpus_end_as_they_may() -> None:
    draw, seeds = random.Random(604), seeds_of_the_fuzzer()
    for _ in range(10_000):
        data = mutant(draw, seeds)
        try:
            one_input(data)
        except Exception as exc:
            raise AssertionError(f"{data[:2_000]!r} ends in {exc!r}") from exc


# -- the raw wire ---------------------------------------------------------------

STARTS = [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 422 No\r\n", b"HTTP/1.0 200\r\n\r\n"]
STARTS += [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 429 No\r\n\r\n"]
STARTS += [b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", b"HTTP/1.1 101 Go\r\n\r\n"]
STARTS += [b"HTTP/1.1 100 Continue\r\n\r\n" * 50, b"HTTP/9.9 999 Odd\r\n", b"\x16\x03\x01\x02\x00"]
PIECES = [b"\r\n", b"\r\n\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n"]
PIECES += [
    b"Content-Length: 7\r\n",
    b"Content-Length: -1\r\n",
    b"Retry-After: 1\r\n",
    b": \r\n",
    b"\x00",
]
PIECES += [b"Transfer-Encoding: gzip, chunked\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n"]
PIECES += [b" folded\r\n", json.dumps(SENT).encode(), json.dumps(ok({"verified": True})).encode()]

wire_bytes = st.builds(
    lambda start, pieces: start + b"".join(pieces),
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=30), max_size=6),
)


def judge_raw(method: str, data: bytes, ending: Ending) -> None:
    """Judge by the bytes alone, whose framing is the HTTP library's to judge."""
    error = ending.error
    if error is None:
        assert b" 200" in data
        assert b'"meta"' in data
        return
    judge_words(error)
    if method in READS:
        assert not error.maybe_sent
    elif not error.maybe_sent:
        assert isinstance(error, APIError)
        assert error.status_code == 429
        assert b" 429" in data


def test_raw_bytes_on_a_socket() -> None:
    answers_given: list[bytes] = []

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await raw(answers_given[-1])(arrival, writer)

    with asyncio.Runner() as runner:
        server = runner.run(RawServer(script).__aenter__())
        client = SMSIDClient(KEY, base_url=server.url, budget=FreeBudget(), retry=ONCE)  # type: ignore[arg-type]

        @many(1_000)
        @given(st.sampled_from(list(METHODS)), wire_bytes)
        def check(method: str, data: bytes) -> None:
            answers_given.append(data)
            judge_raw(method, data, ending_of(METHODS[method](client), runner))

        check()
        assert len(server.ledger) == len(answers_given)
        runner.run(client.aclose())
        runner.run(server.__aexit__())


@contextlib.asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[SMSIDClient]:
    """A client that wastes no time on reading certificates."""
    async with httpx.AsyncClient(verify=False, trust_env=False) as http_client:
        settings = {"budget": RateBudget.unlimited(), "http_client": http_client}
        async with SMSIDClient(KEY, base_url=url, **(settings | options)) as client:  # type: ignore[arg-type]
            yield client


# -- drip -----------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = HEAD + b"Content-Length: 1000000\r\n\r\n"
DRIPS: dict[str, tuple[bytes, bytes]] = {
    "status line": (b"", b"HTTP/1.1 200 " + b"x" * 9_000),
    "header name": (HEAD, b"x" * 9_000),
    "headers": (HEAD, b"X-More: y\r\n" * 900),
    "header value": (HEAD + b"X: ", b"y" * 9_000),
    "1xx": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 900),
    "body": (LONG, b" " * 9_000),
    "body without a length": (HEAD + b"\r\n", b" " * 9_000),
    "chunks": (CHUNKED, b"1\r\n \r\n" * 2_000),
    "chunk size": (CHUNKED, b"0" * 9_000),
    "chunk extension": (CHUNKED, b"1;x=" + b"y" * 9_000),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-More: y\r\n" * 900),
    "a refusal's headers": (b"HTTP/1.1 429 No\r\n", b"X-More: y\r\n" * 900),
    "an error's body": (b"HTTP/1.1 503 No\r\nContent-Length: 100000\r\n\r\n", b"x" * 9_000),
}


def dripping(at_once: bytes, then: bytes) -> Script:
    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(at_once)
        for byte in then:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.013)

    return script


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("method", "kind"), [("sms.send", OutcomeUnknownError), ("balance", TransportError)]
)
@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS.keys())
async def test_a_drip_ends_with_the_attempt(
    drip: tuple[bytes, bytes], method: str, kind: type[SMSIDError]
) -> None:
    loop = asyncio.get_running_loop()
    async with RawServer(dripping(*drip)) as server:
        async with opened(server.url, retry=ONCE, attempt_timeout=3) as client:
            began = loop.time()
            with pytest.raises(kind, match="no answer within 3 s"):
                await METHODS[method](client)
            assert 3 <= loop.time() - began <= 3.1
        assert len(server.ledger) == 1


# -- Retry-After ----------------------------------------------------------------

NOW = "Date: Sun, 06 Nov 1994 08:49:37 GMT"
FIRST_BACKOFF = 0.5  # seconds at the most, after one failure
ABSURD = [
    *(
        b"-1",
        b"-0",
        b"-7.5",
        b"nan",
        b"NaN",
        b"inf",
        b"Infinity",
        b"-inf",
        b"1e400",
        b"1e2",
        b"7e0",
    ),
    *(b"", b"+5", b"5, 6", b"1_0", b"5;q=1", b"0x10", b"0b11", b"7.", b".5", b"7,5", b"7s", b"7 s"),
    *(
        b"1.5.5",
        b"'7'",
        b'"7"',
        b"five",
        b"null",
        b"99999999999",
        b"9" * 400,
        b"86401",
        b"1" * 90_000,
    ),
    *(
        "\uff17".encode(),
        "٣".encode(),
        "²".encode(),
        b"\xb2",
        b"\xff",
        b"\xa07",
        b"7\x85",
        b"7\x1c",
    ),
    b"Sun, 06 Nov 0000 08:49:37 GMT",
    b"Sun, 06 Nov 9999 08:49:37 GMT",
    b"Sun, 06 Nov 99999999999 08:49:37 GMT",
    b"Sun, 99 Nov 1994 99:99:99 GMT",
    b"Sun, 06 Nov 1994 08:49:40 +0100",
    b"Sun, 06 Nov 1994 08:49:40 PST",
    b"Sun, 06 Nov 1994 08:49:40",
    b"1994-11-06T08:49:40Z",
    b"GMT",
    b" GMT",
    b", , GMT",
    b"784111780",
]
SEVERAL = [b"7\r\nRetry-After: 7", b"7\r\n" + b"Retry-After: 8\r\n" * 500 + b"X: y"]
EXACT = {
    b"0": 0.0,
    b"7": 7.0,
    b"7.5": 7.5,
    b"007": 7.0,
    b" \t7 ": 7.0,
    b"120": 120.0,
    b"0.000000001": 0.0,
    b"Sun, 06 Nov 1994 08:49:57 GMT": 20.0,
    b"Sun, 06 Nov 1994 08:50:37 GMT": 60.0,
    b"Sun, 06 Nov 1994 08:49:36 GMT": 0.0,
    b"Thu, 01 Jan 1970 00:00:00 GMT": 0.0,
}
TOO_LONG = [b"120.1", b"121", b"3600", b"86400", b"Sun, 06 Nov 1994 08:51:38 GMT"]
NOT_HTTP = [b"\x00", b"7\x00", b"\n7", b"\r7", b"7\r\n\x00: x", b"1" * 200_000]
GOOD = {"sms.send": answer(200, SENT), "balance": answer(200, ok({"balance": 1}))}
BUSY = {"sms.send": b"429 No", "balance": b"503 Busy"}

busy_methods = pytest.mark.parametrize("method", BUSY)


def named(values: list[bytes]) -> list[str]:
    return [repr(value[:40])[2:-1] or "nothing" for value in values]


async def waited(method: str, retry_after: bytes, *more: str) -> float:
    """The virtual seconds that a call takes which is put off once with this `Retry-After`."""
    head = [b"HTTP/1.1 " + BUSY[method], b"Content-Length: 0", *map(str.encode, more)]
    off = raw(b"\r\n".join([*head, b"Retry-After: " + retry_after]) + b"\r\n\r\n", close=False)
    loop = asyncio.get_running_loop()
    async with RawServer(off, GOOD[method]) as server:
        async with opened(server.url) as client:
            began = loop.time()
            try:
                await METHODS[method](client)
            except SMSIDError as error:
                error.add_note(f"waited {loop.time() - began:.6f} s")
                assert len(server.ledger) == 1
                raise
            assert len(server.ledger) == 2
            return loop.time() - began


@pytest.mark.looptime
@busy_methods
@pytest.mark.parametrize("value", [*ABSURD, *SEVERAL], ids=named([*ABSURD, *SEVERAL]))
async def test_an_absurd_retry_after_is_none(method: str, value: bytes) -> None:
    assert 0 <= await waited(method, value, NOW) <= FIRST_BACKOFF + 0.01


@pytest.mark.looptime
@busy_methods
@pytest.mark.parametrize(("value", "seconds"), EXACT.items(), ids=named(list(EXACT)))
async def test_a_valid_retry_after_is_waited_for(method: str, value: bytes, seconds: float) -> None:
    jitter = FIRST_BACKOFF if method == "balance" and seconds < FIRST_BACKOFF else 0
    assert seconds <= await waited(method, value, NOW) <= seconds + jitter + 0.01


@pytest.mark.looptime
@pytest.mark.parametrize("value", TOO_LONG, ids=named(TOO_LONG))
async def test_a_valid_retry_after_beyond_the_policys_ends_the_call_at_once(value: bytes) -> None:
    with pytest.raises(RateLimitError) as caught:
        await waited("sms.send", value, NOW)
    assert caught.value.retry_after > RetryPolicy().max_retry_after
    assert caught.value.__notes__ == ["waited 0.000000 s"]
    assert not caught.value.maybe_sent


@pytest.mark.looptime
@pytest.mark.parametrize("value", TOO_LONG, ids=named(TOO_LONG))
async def test_a_read_waits_no_longer_than_the_policy_says(value: bytes) -> None:
    most = RetryPolicy().max_retry_after
    assert await waited("balance", value, NOW) == pytest.approx(most, abs=0.01)


@pytest.mark.looptime
@pytest.mark.parametrize("value", NOT_HTTP, ids=named(NOT_HTTP))
async def test_a_retry_after_that_is_not_http_leaves_a_send_in_doubt(value: bytes) -> None:
    with pytest.raises(OutcomeUnknownError) as caught:
        await waited("sms.send", value)
    assert caught.value.__notes__ == ["waited 0.000000 s"]


@pytest.mark.looptime
async def test_a_date_without_the_servers_own_is_read_by_our_clock() -> None:
    assert 18 <= await waited("sms.send", formatdate(time.time() + 20, usegmt=True).encode()) <= 20


# -- memory ---------------------------------------------------------------------

GIB = 1 << 30
BLOCK = 1 << 16
GROWTH = 10_000  # kB
ATTEMPT = 1.0  # seconds; a flood that nothing else ends lasts so long
BOMB = gzip.compress(b" " * 200_000_000, mtime=0)


def endless(head: bytes, block: bytes, told: list[int]) -> Script:
    """Write a head, then the block for 1 GiB or until the client has had enough."""

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        try:
            for _ in range(GIB // len(block)):
                writer.write(block)
                await writer.drain()
                told[0] += len(block)
        finally:
            writer.close()

    return script


def headed(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def bomb(*encodings: str, content: bytes = BOMB, status: str = "200 OK") -> tuple[bytes, bytes]:
    lines = [f"Content-Encoding: {encoding}" for encoding in encodings]
    return headed(f"Content-Length: {len(content)}", *lines, status=status), content


def repeated(piece: bytes) -> bytes:
    return piece * (BLOCK // len(piece))


CHUNK = b"10000\r\n" + bytes(BLOCK) + b"\r\n"
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "1 GB of zeros": (headed(f"Content-Length: {GIB}"), bytes(BLOCK)),
    "1 GB of spaces, chunked": (headed("Transfer-Encoding: chunked"), CHUNK.replace(b"\0", b" ")),
    "1 GB without a length": (headed(), b" " * BLOCK),
    "1 GB of an error": (headed(f"Content-Length: {GIB}", status="500 No"), bytes(BLOCK)),
    "1 GB of a refusal": (headed(f"Content-Length: {GIB}", status="429 No"), bytes(BLOCK)),
    "small chunks": (headed("Transfer-Encoding: chunked"), repeated(b"1\r\n \r\n")),
    "a chunk extension": (headed("Transfer-Encoding: chunked") + b"1;", b"x" * BLOCK),
    "trailers": (headed("Transfer-Encoding: chunked") + b"0\r\n", repeated(b"X-More: y\r\n")),
    "headers": (b"HTTP/1.1 200 OK\r\n", repeated(b"X-More: y\r\n")),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", b"y" * BLOCK),
    "a status line": (b"HTTP/1.1 200 ", b"y" * BLOCK),
    "1xx": (b"", repeated(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "1xx with headers": (b"", headed("X: " + "y" * 60_000, status="103 Early Hints")),
    "empty lines": (b"", repeated(b"\r\n")),
}
BOMBS: dict[str, tuple[bytes, bytes]] = {
    "gzip": bomb("gzip"),
    "gzip of an error": bomb("gzip", status="502 No"),
    "gzip of a refusal": bomb("gzip", status="429 No"),
    "gzip in gzip": bomb("gzip, gzip", content=gzip.compress(BOMB, mtime=0)),
    "two headers": bomb("gzip", "gzip", content=gzip.compress(BOMB, mtime=0)),
    "deflate": bomb("deflate", content=zlib.compress(b" " * 200_000_000)),
    "br": bomb("br"),
    "zstd": bomb("zstd"),
    "not labelled": bomb(),
}

MEASURE = """
import asyncio, json, pathlib, sys, time
from smsid_async import RateBudget, RetryPolicy, SMSIDClient, SMSIDError

def memory(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1])

async def main(url, attempt):
    once = RetryPolicy(max_attempts=1, rate_limit_attempts=1)
    async with SMSIDClient("test", base_url=url, budget=RateBudget.unlimited(), retry=once,
                           attempt_timeout=attempt) as client:
        for _ in range(3):
            await client.sms.send("+447700900123", "Hello")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew from here
        before, began, error = memory("VmRSS"), time.monotonic(), None
        try:
            await client.sms.send("+447700900123", "Hello")
        except SMSIDError as exc:
            error = type(exc).__name__
        seconds = time.monotonic() - began
        print(json.dumps([memory("VmHWM") - before, seconds, error]))

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


async def measured(script: Script) -> tuple[int, float, str]:
    """Send in a fresh process: its growth in kB, the seconds it took, the error's name."""
    good = answer(200, SENT)
    async with RawServer(good, good, good, script) as server:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", MEASURE, server.url, str(ATTEMPT)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await child.communicate()
        assert len(server.ledger) == 4
    assert child.returncode == 0
    return tuple(json.loads(out))


def expected_error(head: bytes) -> str:
    return "RateLimitError" if b" 429 " in head else "OutcomeUnknownError"


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_memory_stays_flat_under_a_flood(flood: tuple[bytes, bytes]) -> None:
    told = [0]
    growth, seconds, error = await measured(endless(*flood, told))
    assert error == expected_error(flood[0])
    assert growth < GROWTH
    assert seconds < ATTEMPT + 1.0
    assert told[0] < GIB


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
async def test_memory_stays_flat_under_a_compression_bomb(content: tuple[bytes, bytes]) -> None:
    growth, seconds, error = await measured(raw(b"".join(content)))
    assert error == expected_error(content[0])
    assert growth < GROWTH
    assert seconds < ATTEMPT
