"""What an answer, or an exchange that broke, means for a call.

This is the only mapping of foreign exceptions. For a write everything but a plain
success or a promise of refusal is in doubt, and says so.
"""

from __future__ import annotations

import json
import re
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from smsid_async._envelope import SHORTEST_PRIVATE, Answer, api_error, plain_success
from smsid_async._retry import parse_http_date, parse_retry_after
from smsid_async.errors import (
    InvalidResponseError,
    NotSentError,
    OutcomeUnknownError,
    SMSIDError,
    TransportError,
)
from smsid_async.models import Outcome

if TYPE_CHECKING:
    from smsid_async._exchange import Call, Exchange

__all__ = ["doubt", "error_of_broken", "outcome_of", "result_of_answer"]

_T = TypeVar("_T")

_QUOTED = re.compile(r"bytearray\(|\bb?['\"{]")  # where a protocol error begins to quote

# Raised before a connection is in use, by transports that do not tell us more.
_BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
)


def result_of_answer(
    call: Call[_T],
    answer: Answer,
    headers: httpx.Headers,
    *,
    wall_clock: float,
    secrets: tuple[str, ...],
) -> _T:
    """Turn an answer into the call's result, or raise its error.

    Args:
        call: What was asked.
        answer: What came back.
        headers: Of the answer: `Retry-After`, and `Date` to read it by.
        wall_clock: Seconds since the epoch, where the answer has no `Date`.
        secrets: What no error's text may show, beside what the call sent.
    """
    if answer.refused or answer.status_code >= 500:
        moment = parse_http_date(headers.get("Date")) or wall_clock
        error = api_error(
            answer,
            verifying=call.verifying,
            retry_after=parse_retry_after(headers.get("Retry-After"), now=moment),
            private=(*call.private, *secrets),
        )
        if call.write and not answer.refused:
            raise doubt(call, f"HTTP {answer.status_code} came back, but it") from error
        raise error
    try:
        return call.decode(plain_success(answer))
    except InvalidResponseError as error:
        if call.write:
            raise doubt(call, "no trustworthy answer came back, but it") from error
        raise


def error_of_broken(
    exchange: Exchange[Any], exc: BaseException, secrets: tuple[str, ...]
) -> SMSIDError:
    """Turn a foreign exception into our error, with it as the cause.

    Args:
        exchange: What broke.
        exc: How.
        secrets: What nothing may show, beside what the call sent.
    """
    call = exchange.call
    if exchange.handed_over and not exchange.traced and isinstance(exc, Exception):
        # No trace although our own transport emits them: it was replaced, by a mock say.
        exchange.headers_started |= not isinstance(exc, (*_BEFORE_SENDING, TimeoutError))
    why = str(exc) if isinstance(exc, TimeoutError) else type(exc).__name__
    error: SMSIDError
    if not exchange.may_have_left:
        error = NotSentError(f"the request never left: {why}. Check the network and base_url")
    elif call.write:
        error = doubt(call, f"the exchange broke ({why}), but it")
    else:
        error = TransportError(f"the exchange broke: {why}. It was a read, so try again")
    error.__cause__ = _fit_to_show(exc, (*call.private, *secrets))
    return error


def _fit_to_show(exc: BaseException, private: tuple[str, ...]) -> BaseException:
    """Return the exception, or one of its name alone if it quotes what we sent.

    A server can send back what it got, and protocol errors quote it.
    """
    if isinstance(exc, httpx.ProtocolError):
        return type(exc)(_QUOTED.split(str(exc), maxsplit=1)[0].rstrip(" :("))
    shown = "".join(traceback.format_exception(exc))
    if any(form in shown for value in private for form in _forms(value)):
        return TransportError(f"{type(exc).__module__}.{type(exc).__name__}")
    return exc


def _forms(value: str) -> set[str]:
    """Return how a text looks as it is, in JSON, and in Python's way to show bytes."""
    if len(value) < SHORTEST_PRIVATE:
        return set()
    return {value, json.dumps(value)[1:-1], repr(value.encode())[2:-1]}


def doubt(call: Call[Any], what: str) -> OutcomeUnknownError:
    """Make the error of a write that may have taken effect."""
    return OutcomeUnknownError(
        f"{call.method} {call.path}: {what} may have taken effect. "
        "Find out before you send it again"
    )


def outcome_of(error: SMSIDError) -> Outcome:
    """Tell what became of a send that raised this."""
    if error.maybe_sent:
        return Outcome.UNKNOWN
    refused = getattr(error, "status_code", None) is not None
    return Outcome.REJECTED if refused else Outcome.NOT_SENT
