"""What an answer says: bounded, strict JSON and the API's documented envelope."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, cast

import attrs

from smsid_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    InvalidResponseError,
    OTPVerificationError,
    RateLimitError,
    SenderNotApprovedError,
    ServerError,
)

if TYPE_CHECKING:
    from typing import NoReturn

    from smsid_async.models import JSONObject, JSONValue

__all__ = ["MAX_BODY", "SHORTEST_PRIVATE", "Answer", "api_error", "plain_success", "read_answer"]

MAX_BODY = 1 << 20  # bytes; real answers have a few hundred
_MAX_DEPTH = 32
SHORTEST_PRIVATE = 3  # characters; shorter ones stand in any sentence by chance
_MAX_TEXT = 300  # characters of the server's words that an error repeats

# The gaps are bounded, so that no text, however long, takes more than linear time.
_BALANCE = re.compile(
    r"\b(insufficient|not enough|low|no)\b.{0,60}\b(balance|credit|fund)"
    r"|\b(balance|credit|fund)s?\b.{0,60}\b(insufficient|not enough|low|exhausted)\b",
    re.DOTALL,
)
_SENDER = re.compile(
    r"sender.{0,60}(approv|regist|authori[sz]|allowed|permitted)"
    r"|(unapproved|unregistered).{0,60}sender",
    re.DOTALL,
)
_LONG_NUMBER = re.compile(r"\+?[0-9][0-9 ().-]{4,}[0-9]")


@attrs.frozen
class Answer:
    """An HTTP answer, read whole.

    Attributes:
        status_code: The HTTP status.
        code: `meta.code`, None where there is no envelope.
        text: `meta.text`, empty where there is none.
        data: `data`, None where it is absent or not an object.
        raw: The whole body, None where it is not a JSON object.
        fault: Why the body cannot be trusted, None where it can.
    """

    status_code: int
    code: int | None = None
    text: str = attrs.field(default="", repr=False)
    data: JSONObject | None = attrs.field(default=None, repr=False)
    raw: JSONObject | None = attrs.field(default=None, repr=False)
    fault: str | None = None

    @property
    def refused(self) -> bool:
        """Whether this answer is a promise that nothing took effect.

        Any 429 is; every other 4xx only in the API's own envelope.
        """
        if self.status_code == 429:
            return True
        return 400 <= self.status_code < 500 and self.code == self.status_code


def read_answer(status_code: int, body: bytes) -> Answer:
    """Read a body as the API's envelope; what is wrong with it stands in `fault`."""
    try:
        raw = _strict_object(body)
        meta = raw.get("meta")
        if not isinstance(meta, dict):
            return Answer(status_code, raw=raw, fault="it has no `meta` object")
        code, text = meta.get("code"), meta.get("text", "")
        if isinstance(code, bool) or not isinstance(code, int):
            return Answer(status_code, raw=raw, fault="its `meta` has no whole-number `code`")
        if not isinstance(text, str):
            return Answer(status_code, raw=raw, fault="its `meta.text` is not a text")
    except (ValueError, ArithmeticError, RecursionError) as exc:
        return Answer(status_code, fault=f"it is not the API's JSON ({type(exc).__name__})")
    data = raw.get("data")
    return Answer(
        status_code, code=code, text=text, data=data if isinstance(data, dict) else None, raw=raw
    )


def plain_success(answer: Answer) -> JSONObject:
    """Return the `data` of an HTTP 200 with code 200, or raise `InvalidResponseError`."""
    if answer.status_code != 200:
        fault = f"HTTP {answer.status_code}" + (f": {answer.fault}" if answer.fault else "")
    elif answer.fault is not None:
        fault = f"HTTP 200, but {answer.fault}"
    elif answer.code != 200:
        fault = f"HTTP 200, but its `meta.code` is {answer.code}"
    elif answer.data is None:
        fault = "HTTP 200, but it has no `data` object"
    else:
        return answer.data
    raise InvalidResponseError(
        f"the answer is not one that the API documents ({fault}); is base_url right?"
    )


def api_error(
    answer: Answer, *, verifying: bool, retry_after: float | None, private: tuple[str, ...]
) -> APIError:
    """Build the error for an answer that says no.

    Args:
        answer: A 4xx that is `refused`, or a 5xx.
        verifying: Whether the call was `otp.verify`, whose 422 means a wrong code.
        retry_after: Seconds, as the server asked.
        private: What the call sent, to be masked in the server's words.
    """
    text = _masked(answer.text, private)
    kind = _error_class(answer, verifying=verifying)
    return kind(
        _sentence(kind, answer.status_code, text),
        status_code=answer.status_code,
        code=answer.code,
        text=text,
        retry_after=retry_after,
        raw=answer.raw,
    )


def _error_class(answer: Answer, *, verifying: bool) -> type[APIError]:
    status = answer.status_code
    if status == 400:
        return _bad_request_class(answer.text.lower())
    if status == 422:
        return OTPVerificationError if verifying else BadRequestError
    if status >= 500:
        return ServerError
    return {401: AuthenticationError, 429: RateLimitError}.get(status, APIError)


def _bad_request_class(text: str) -> type[BadRequestError]:
    if _BALANCE.search(text):
        return InsufficientBalanceError
    return SenderNotApprovedError if _SENDER.search(text) else BadRequestError


_ADVICE: dict[type[APIError], str] = {
    AuthenticationError: "check SMSID_API_KEY and, if requests are signed, SMSID_API_SECRET",
    InsufficientBalanceError: "top up the account, then send again",
    SenderNotApprovedError: "use a sender ID that is approved for the account, or leave it out",
    RateLimitError: "another program may be using the same key; wait, then try again",
    ServerError: "the API is in trouble; try again later",
}


def _sentence(kind: type[APIError], status_code: int, text: str) -> str:
    said = f"the API said: {text}" if text else "the API gave no reason"
    advice = _ADVICE.get(kind)
    return f"HTTP {status_code}, {said}" + (f"; {advice}" if advice else "")


def _masked(text: str, private: tuple[str, ...]) -> str:
    """Hide what the call sent, what looks like a phone number, and control characters."""
    for value in sorted(private, key=len, reverse=True):  # a text may have the number in it
        if len(value) >= SHORTEST_PRIVATE:
            text = text.replace(value, "***")
    text = _LONG_NUMBER.sub("***", text)[:_MAX_TEXT]
    return "".join(character if character.isprintable() else " " for character in text)


def _strict_object(body: bytes) -> JSONObject:
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH:
        _check_depth(body)
    value = cast(
        "JSONValue",
        json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=Decimal,
            parse_constant=_refuse_constant,
        ),
    )
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - all faults of a body are one kind
    return value


def _object(pairs: list[tuple[str, JSONValue]]) -> JSONObject:
    value = dict(pairs)
    if len(value) != len(pairs):  # which of the two would be the truth?
        raise ValueError("a name stands twice in an object")
    return value


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before the parser meets it; brackets in texts do not count."""
    depth = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', body, re.DOTALL):
        if token[0] in b"[{":
            depth += 1
        elif token[0] in b"]}":
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
