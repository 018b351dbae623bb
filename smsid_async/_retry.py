"""When a call is tried again and how long it waits first; tenacity is built from that."""

from __future__ import annotations

import re
import sys
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import attrs

from smsid_async._config import check_flag
from smsid_async.errors import (
    ConfigurationError,
    JournalUnavailableError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitError,
    ServerError,
    SMSIDError,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import AsyncRetrying, RetryCallState

__all__ = ["RetryPolicy", "Tally", "backoff", "parse_retry_after", "retrying"]

_DECIMAL_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_ABSURD = 86_400.0  # seconds; no rate limit of a minute asks for more than a day
_LARGEST_POWER = 60  # 2.0 ** 60 times any backoff is beyond any max_backoff


def _positive_count(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"RetryPolicy.{attribute.name} is {value!r}; give 1 or more")


def _seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= sys.float_info.max:
        raise ConfigurationError(
            f"RetryPolicy.{attribute.name} is {value!r}; give 0 or more seconds"
        )


def _plain_bool(_: object, attribute: attrs.Attribute[bool], value: bool) -> None:
    check_flag(f"RetryPolicy.{attribute.name}", value)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often a call is tried, and how long it pauses between.

    What never left and what was refused with 429 is tried again for every call;
    5xx answers and broken exchanges only for reads. A write whose outcome is
    unknown is never repeated unless `retry_unknown` says so.

    Args:
        max_attempts: Attempts of one call, those answered 429 not counted.
        rate_limit_attempts: Attempts of one call that were answered 429.
        backoff: Seconds that the first pause may take; each further one may take
            twice as long. The pause is drawn evenly between nothing and that.
        max_backoff: Seconds that no pause exceeds.
        max_retry_after: Seconds of `Retry-After` that a call waits for; when the
            server asks for more, the call raises `RateLimitError`.
        retry_unknown: Repeat a write whose outcome is unknown. The message may
            then be sent, and charged, twice.

    Raises:
        ConfigurationError: A number is negative or not finite, or a type is wrong.
    """

    max_attempts: int = attrs.field(default=4, validator=_positive_count)
    rate_limit_attempts: int = attrs.field(default=10, validator=_positive_count)
    backoff: float = attrs.field(default=0.5, validator=_seconds)
    max_backoff: float = attrs.field(default=30.0, validator=_seconds)
    max_retry_after: float = attrs.field(default=120.0, validator=_seconds)
    retry_unknown: bool = attrs.field(default=False, validator=_plain_bool)


@attrs.define
class Tally:
    """What has happened to one call so far.

    Attributes:
        write: Whether the call is a write.
        refused: Attempts answered 429.
        failed: Other failed attempts.
    """

    write: bool
    refused: int = 0
    failed: int = 0

    def note(self, error: BaseException) -> None:
        """Count one failed attempt."""
        if isinstance(error, RateLimitError):
            self.refused += 1
        else:
            self.failed += 1


def backoff(policy: RetryPolicy, failures: int, draw: Callable[[], float]) -> float:
    """Return the pause after so many failures, with full jitter, in seconds.

    Args:
        policy: Gives the first and the largest pause.
        failures: How often the call has failed, 1 or more.
        draw: Returns an even draw from [0, 1).
    """
    ceiling = policy.backoff * 2.0 ** min(failures - 1, _LARGEST_POWER)
    return draw() * min(ceiling, policy.max_backoff)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Read a `Retry-After` header as seconds from now.

    Args:
        value: Seconds, decimal seconds or an HTTP date; None if there is none.
        now: The wall clock, in seconds since the epoch.

    Returns:
        Seconds, at least 0; None for anything absurd, which then counts as absent.
    """
    if value is None:
        return None
    value = value.strip(" \t")
    if _DECIMAL_SECONDS.fullmatch(value):
        seconds = float(value)
    elif (moment := parse_http_date(value)) is not None:
        seconds = max(0.0, moment - now)
    else:
        return None
    return seconds if seconds <= _ABSURD else None


def parse_http_date(value: str | None) -> float | None:
    """Read an HTTP date as seconds since the epoch; None for anything else."""
    if value is None or not value.isascii() or not value.endswith(" GMT"):
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None


def should_retry(policy: RetryPolicy, tally: Tally, error: BaseException) -> bool:
    """Say whether a call that has just failed so is worth, and allowed, another attempt."""
    if isinstance(error, RateLimitError):
        asked = error.retry_after or 0.0
        return tally.refused < policy.rate_limit_attempts and asked <= policy.max_retry_after
    if tally.failed >= policy.max_attempts or not _may_pass(error):
        return False
    if isinstance(error, NotSentError):
        return True
    if tally.write:
        return policy.retry_unknown and isinstance(error, OutcomeUnknownError)
    return isinstance(error, ServerError | TransportError)


def pause_before_retry(
    policy: RetryPolicy, tally: Tally, error: BaseException, draw: Callable[[], float]
) -> float:
    """Return the seconds before the next attempt; after a 429 the budget's hold is the pause."""
    if isinstance(error, RateLimitError):
        return 0.0
    pause = backoff(policy, tally.failed, draw)
    asked = getattr(error, "retry_after", None)
    return pause if asked is None else max(pause, min(asked, policy.max_retry_after))


def retrying(
    policy: RetryPolicy,
    tally: Tally,
    *,
    draw: Callable[[], float],
    give_up: Callable[[float], bool],
) -> AsyncRetrying:
    """Build the tenacity object that carries a call on after its first failure.

    Args:
        policy: What may be tried again.
        tally: Is told every failure.
        draw: Returns an even draw from [0, 1), for the jitter.
        give_up: Is told the next pause in seconds; True ends the call with its last error.
    """
    import tenacity  # noqa: PLC0415 - a call that succeeds at once needs none of it

    def error_of(state: RetryCallState) -> BaseException:
        assert state.outcome is not None  # noqa: S101 - tenacity asks after an attempt only
        error = state.outcome.exception()
        assert error is not None  # noqa: S101 - and only after one that failed
        return error

    def again(error: BaseException) -> bool:
        if not isinstance(error, SMSIDError):  # a cancellation ends a call
            return False
        tally.note(error)
        return should_retry(policy, tally, error)

    def pause(state: RetryCallState) -> float:
        return pause_before_retry(policy, tally, error_of(state), draw)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(again),
        wait=pause,
        stop=lambda state: give_up(state.upcoming_sleep),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Whether the fault may pass: a bad certificate or a full disk stays that way."""
    import ssl  # noqa: PLC0415 - httpx has it loaded by now

    if isinstance(error, JournalUnavailableError):
        return False
    cause = error.__cause__  # its context may be what the caller was handling, nothing of ours
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return True
