"""Hostile answers: how to feed one to every method, and an oracle for what may come of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

import attrs
import httpcore
import httpx

from smsid_async import (
    APIError,
    Balance,
    MessageStatus,
    OTPReceipt,
    OTPVerification,
    OTPVerificationError,
    OutcomeUnknownError,
    RateLimitError,
    RetryPolicy,
    SendReceipt,
    SMSIDClient,
    SMSIDError,
)
from smsid_async._envelope import read_answer
from smsid_async._options import Options
from smsid_async._resources import OTP, SMS
from smsid_async._verdict import result_of_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from smsid_async import Priority

NUMBER = "+447700900123"
TEXT = "text-canary"
CODE = "604-canary"
KEY = "key-canary"
MESSAGE_ID = "M1"
ONCE = RetryPolicy(max_attempts=1, rate_limit_attempts=1)
LONGEST_RETRY_AFTER = 86_400.0
MOST_SECONDS = 3.0  # of processor time, for one answer
MOST_WORDS = 1_000  # characters of an error

METHODS: dict[str, Callable[[Any], Coroutine[Any, Any, object]]] = {
    "sms.send": lambda client: client.sms.send(NUMBER, TEXT),
    "sms.status": lambda client: client.sms.status(MESSAGE_ID),
    "balance": lambda client: client.balance(),
    "otp.send": lambda client: client.otp.send(NUMBER),
    "otp.verify": lambda client: client.otp.verify(NUMBER, CODE),
    "otp.check": lambda client: client.otp.check(NUMBER, CODE),
}
READS = frozenset({"sms.status", "balance"})


@attrs.frozen
class Reply:
    """An answer as the server gives it, its framing apart."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@attrs.frozen
class Ending:
    """How a call ended: with a value, or with an error of the package."""

    value: object = None
    error: SMSIDError | None = None


# -- the oracle: json.loads and simple rules, nothing of the package ------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("duplicate")
    return dict(pairs)


def _no_constant(name: str) -> object:
    raise ValueError(name)


def _parsed(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; empty if it is anything else."""
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _code(body: bytes) -> int | None:
    meta = _parsed(body).get("meta")
    code = meta.get("code") if isinstance(meta, dict) else None
    return code if type(code) is int else None


def _data(reply: Reply) -> dict[str, Any] | None:
    """The `data` of a plain success, None if the reply is not one."""
    if reply.status != 200 or _code(reply.body) != 200:
        return None
    data = _parsed(reply.body).get("data")
    return data if isinstance(data, dict) else None


def _encoded(reply: Reply) -> bool:
    encodings = [value for name, value in reply.headers if name.lower() == b"content-encoding"]
    return any(set(re.findall(rb"\w+", value.lower())) - {b"identity"} for value in encodings)


def _is_money(value: object, *, optional: bool = True) -> bool:
    if value is None:
        return optional
    return isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= 36


def _well_typed(method: str, value: object) -> bool:
    if method == "sms.send":
        return (
            type(value) is SendReceipt
            and type(value.message_id) is str
            and value.message_id != ""
            and type(value.status) is str
            and _is_money(value.cost)
            and _is_money(value.remaining_balance)
        )
    if method == "sms.status":
        return type(value) is MessageStatus and value.message_id == MESSAGE_ID
    if method == "balance":
        return type(value) is Balance and _is_money(value.amount, optional=False)
    if method == "otp.send":
        return type(value) is OTPReceipt and value.to == NUMBER and type(value.status) is str
    if method == "otp.verify":
        return type(value) is OTPVerification and value.verified is True
    return type(value) is bool


def _success_is_told(method: str, data: dict[str, Any]) -> bool:
    if method == "sms.send":
        return isinstance(data.get("message_id"), str) and data["message_id"] != ""
    if method == "sms.status":
        return data.get("message_id", MESSAGE_ID) == MESSAGE_ID
    if method == "balance":
        return type(data.get("balance")) in (str, int, float)
    return method == "otp.send" or data.get("verified") is True


def _refused(method: str, reply: Reply) -> bool:
    """Whether the reply is a promise that a write did not take effect."""
    if reply.status == 429:
        return True
    if 400 <= reply.status < 500 and _code(reply.body) == reply.status:
        return True
    data = _data(reply)
    return (
        method in ("otp.verify", "otp.check") and data is not None and data.get("verified") is False
    )


def _judge_value(method: str, reply: Reply, value: object) -> None:
    assert _well_typed(method, value), value
    if value is False:  # of otp.check: the API's own "this code is wrong"
        assert reply.status == 422
        assert _code(reply.body) == 422
        return
    data = _data(reply)
    assert data is not None, "a success that the reply is not"
    assert _success_is_told(method, data), "a success that the data does not tell"
    assert not _encoded(reply), "a success out of an encoded body"
    if method == "sms.send":
        assert value.message_id == data["message_id"]  # type: ignore[attr-defined]


def _judge_error(method: str, reply: Reply, error: SMSIDError) -> None:
    if method in READS:
        assert error.maybe_sent is False
    elif error.maybe_sent:
        assert isinstance(error, OutcomeUnknownError)
        assert error.__cause__ is not None
    else:
        assert _refused(method, reply), f"{error!r} promises what the reply does not"
    if isinstance(error, OTPVerificationError):
        assert method in ("otp.verify", "otp.check")
    if isinstance(error, RateLimitError):
        assert reply.status == 429
    judge_words(error)


def judge_words(error: SMSIDError) -> None:
    """Check what an error says: short, printable, no secret, a sound `retry_after`."""
    words = f"{error} {error.__cause__} {getattr(error, 'text', '')}"
    assert len(words) <= MOST_WORDS
    assert words.isprintable()
    assert not [canary for canary in (NUMBER, TEXT, CODE, KEY) if canary in words]
    for each in (error, error.__cause__):
        if isinstance(each, APIError) and each.retry_after is not None:
            assert 0 <= each.retry_after <= LONGEST_RETRY_AFTER


def judge(method: str, reply: Reply, ending: Ending) -> None:
    """Fail unless the call may end so after that reply."""
    if ending.error is None:
        _judge_value(method, reply, ending.value)
    else:
        _judge_error(method, reply, ending.error)


def ending_of(call: Coroutine[Any, Any, object], runner: asyncio.Runner) -> Ending:
    """Run one call to its end, which must come soon."""
    began = time.process_time()
    try:
        ending = Ending(value=runner.run(call))
    except SMSIDError as error:
        ending = Ending(error=error)
    assert time.process_time() - began < MOST_SECONDS
    return ending


# -- the whole pipeline, on a pool that only pretends ---------------------------


class _Slot:
    def __init__(self, offences: list[str]) -> None:
        self._offences = offences

    def answered(self) -> None: ...

    def given_up(self) -> None: ...

    def unused(self) -> None:
        self._offences.append("a request that did not leave; all of these do")


class FreeBudget:
    """Grants at once, holds nobody, and notes what it should not be asked.

    It does not raise: the client would log that and go on.
    """

    max_in_flight = 50

    def __init__(self) -> None:
        self.offences: list[str] = []

    async def acquire(
        self, priority: Priority, max_wait: float | None = None, **_: object
    ) -> _Slot:
        return _Slot(self.offences)

    def hold(self, seconds: float) -> None:
        if not 0 <= seconds <= LONGEST_RETRY_AFTER:
            self.offences.append(f"a hold of {seconds} s")

    def statistics(self) -> object:
        raise NotImplementedError

    async def aclose(self) -> None: ...


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._content), 1 << 16):
            yield self._content[start : start + (1 << 16)]

    async def aclose(self) -> None: ...


class _Pool:
    """Stands where httpcore's pool does, and traces as it does."""

    reply = Reply(200, b"")

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        await request.extensions["trace"](
            "http11.send_request_headers.started", {"request": request}
        )
        await asyncio.sleep(0)
        reply = self.reply
        return httpcore.Response(
            reply.status, headers=list(reply.headers), content=_Body(reply.body)
        )

    async def aclose(self) -> None: ...


class Puppet:
    """A client in a loop of its own, whose server says what the test says."""

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._troubles: list[dict[str, Any]] = []
        self._runner.get_loop().set_exception_handler(
            lambda _, context: self._troubles.append(context)
        )
        self._pool = _Pool()
        self._budget = FreeBudget()
        transport = httpx.AsyncHTTPTransport(verify=False)
        transport._pool = self._pool  # type: ignore[assignment]
        self._client = SMSIDClient(
            KEY,
            base_url="http://127.0.0.1/api/v1",
            budget=self._budget,  # type: ignore[arg-type]
            retry=ONCE,
            http_client=httpx.AsyncClient(transport=transport),
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()
        assert not self._troubles
        assert not self._budget.offences

    def ending(self, method: str, reply: Reply) -> Ending:
        """Give a method this reply and see how it ends."""
        self._pool.reply = reply
        return ending_of(METHODS[method](self._client), self._runner)


# -- the decoding alone, for the fuzzer -----------------------------------------


class _Decoding:
    """Stands where the pipeline does: each request is answered by `reply`."""

    reply = Reply(200, b"")
    journal = None

    async def request(self, call: Any) -> object:
        return result_of_answer(
            call,
            read_answer(self.reply.status, self.reply.body),
            httpx.Headers(list(self.reply.headers)),
            wall_clock=1_800_000_000.0,
            secrets=(KEY, ""),
        )


class Decoder:
    """The public methods on nothing but the decoding of an answer."""

    def __init__(self) -> None:
        self._pipeline = _Decoding()
        options = Options(retry=ONCE, attempt_timeout=30.0)
        self.sms = SMS(self._pipeline, options)  # type: ignore[arg-type]
        self.otp = OTP(self._pipeline, options)  # type: ignore[arg-type]
        client = object.__new__(SMSIDClient)
        client._pipeline, client._options, client._owner = self._pipeline, options, client  # type: ignore[assignment]
        self.balance = client.balance

    def ending(self, method: str, reply: Reply) -> Ending:
        """Give a method this reply and see how it ends, without an event loop."""
        self._pipeline.reply = reply
        try:
            METHODS[method](self).send(None)
        except StopIteration as stop:
            return Ending(value=stop.value)
        except SMSIDError as error:
            return Ending(error=error)
        raise AssertionError("decoding waited for something")


_decoder = Decoder()


def read_input(data: bytes) -> tuple[str, Reply]:
    """Read a fuzzer's input: lines of method, status and `Retry-After`, then the body.

    Lines that are none of these stand for one all the same, so that every input is one.
    """
    name, status, retry_after, body, *_ = [*data.split(b"\n", 3), b"", b"", b""]
    method = name.decode("latin-1")
    if method not in METHODS:
        method = list(METHODS)[sum(name) % len(METHODS)]
    number = int(status) if len(status) == 3 and status.isdigit() else sum(status) * 7 % 1000
    headers = ((b"Retry-After", retry_after),) if retry_after else ()
    return method, Reply(number, body, headers)


def one_input(data: bytes) -> None:
    """Decode one input of a fuzzer, and fail unless it ends as it may."""
    method, reply = read_input(data)
    judge(method, reply, _decoder.ending(method, reply))
