"""When a call is tried again, and how long it waits first."""

import asyncio
import itertools
import random
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smsid_async import errors
from smsid_async._retry import (
    RetryPolicy,
    Tally,
    backoff,
    parse_http_date,
    parse_retry_after,
    pause_before_retry,
    retrying,
    should_retry,
)
from smsid_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    BudgetTimeoutError,
    ConfigurationError,
    InvalidResponseError,
    NotSentError,
    OTPVerificationError,
    OutcomeUnknownError,
    RateLimitError,
    ServerError,
    TransportError,
)

# looptime asks for the current event loop in plain tests too; until Python 3.14 that makes
# one, which nobody closes. After this it is told that there is none.
asyncio.set_event_loop(None)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()
DAY = 86_400.0
DEFAULT = RetryPolicy()
relaxed = settings(deadline=None)
seconds = st.floats(0, allow_infinity=False, allow_nan=False)
draws = st.floats(0, 1, exclude_max=True)


def half():
    return 0.5


def from_now(delta):
    """An HTTP date so far from now."""
    return format_datetime(datetime.fromtimestamp(NOW, UTC) + delta, usegmt=True)


# -- the policy --------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones():
    assert attrs.asdict(DEFAULT) == {
        "max_attempts": 4,
        "rate_limit_attempts": 10,
        "backoff": 0.5,
        "max_backoff": 30.0,
        "max_retry_after": 120.0,
        "retry_unknown": False,
    }


def test_a_policy_is_frozen_and_takes_keywords_only():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        DEFAULT.max_attempts = 5
    with pytest.raises(TypeError):
        RetryPolicy(4)


@pytest.mark.parametrize("name", ["max_attempts", "rate_limit_attempts"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "4", None, float("nan")])
def test_a_count_that_is_not_1_or_more_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"^RetryPolicy.{name} is "):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("name", ["backoff", "max_backoff", "max_retry_after"])
@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, float("nan"), float("inf"), float("-inf"), True, "1", None, 1j, 10**400],
)
def test_seconds_that_are_not_0_or_more_and_finite_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"^RetryPolicy.{name} is "):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", ["no", "false", "", 1, 0, None])
def test_retry_unknown_is_a_plain_bool_since_a_mistake_sends_twice(value):
    with pytest.raises(ConfigurationError, match=r"^RetryPolicy.retry_unknown is "):
        RetryPolicy(retry_unknown=value)


@pytest.mark.parametrize("value", [1, 7, 10**6])
def test_a_count_of_1_or_more_passes(value):
    policy = RetryPolicy(max_attempts=value, rate_limit_attempts=value)
    assert (policy.max_attempts, policy.rate_limit_attempts) == (value, value)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 1e308])
def test_seconds_of_0_or_more_pass(value):
    policy = RetryPolicy(backoff=value, max_backoff=value, max_retry_after=value)
    assert (policy.backoff, policy.max_backoff, policy.max_retry_after) == (value,) * 3


# -- the backoff -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (6, 16.0), (7, 30.0), (8, 30.0), (10**6, 30.0)],
)
def test_the_ceiling_doubles_with_every_failure_up_to_the_largest(failures, ceiling):
    assert backoff(DEFAULT, failures, lambda: 1.0) == ceiling
    assert backoff(DEFAULT, failures, half) == ceiling / 2
    assert backoff(DEFAULT, failures, lambda: 0.0) == 0.0


@relaxed
@given(first=seconds, most=seconds, failures=st.integers(1, 10**30), drawn=draws)
@example(first=1e308, most=1e308, failures=10**9, drawn=0.0)
@example(first=0.0, most=0.0, failures=10**9, drawn=0.5)
@example(first=5e-324, most=1e308, failures=1, drawn=0.5)
def test_a_pause_is_never_negative_never_nan_and_never_beyond_the_largest(
    first, most, failures, drawn
):
    pause = backoff(RetryPolicy(backoff=first, max_backoff=most), failures, lambda: drawn)
    assert 0.0 <= pause <= most
    if failures == 1:
        assert pause <= first


def test_the_jitter_is_full():
    draw = random.Random(7).random
    pauses = [backoff(DEFAULT, 3, draw) for _ in range(2000)]
    assert min(pauses) < 0.01
    assert max(pauses) > 1.99
    assert sum(pauses) / len(pauses) == pytest.approx(1.0, abs=0.05)


# -- Retry-After -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("60", 60.0),
        ("0.5", 0.5),
        ("59.999999999", 59.999999999),
        ("007", 7.0),
        ("86400", DAY),
        (" 5 ", 5.0),
        ("\t5\t", 5.0),
        (from_now(timedelta(seconds=30)), 30.0),
        (from_now(timedelta(days=1)), DAY),
        (from_now(timedelta(0)), 0.0),
        (from_now(timedelta(seconds=-1)), 0.0),
        (from_now(timedelta(days=-4000)), 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        (None, None),
    ],
)
def test_seconds_decimal_seconds_and_http_dates_are_read(value, expected):
    assert parse_retry_after(value, now=NOW) == expected


HOSTILE = [
    "",
    " ",
    "-1",
    "-0",
    "+5",
    "5.",
    ".5",
    ".",
    "1_0",
    "0x10",
    "1e3",
    "1E3",
    "1e9",
    "nan",
    "NaN",
    "-nan",
    "inf",
    "-inf",
    "Infinity",
    "1000000000",
    "999999999",
    "86400.1",
    "86401",
    "9" * 5000,
    "0." + "1" * 5000,
    "1.5.5",
    "1,5",
    "1 0",
    "5 seconds",
    "5s",
    "5;",
    '"5"',
    "5, 6",
    "5\n",
    "\n5",
    "5\r\nX-Evil: 1",
    "\x005",
    "\u00a05",
    "\uff15",  # full-width
    "\u0665",  # Arabic-Indic
    "\u2466",  # circled
    "\u00b2",  # superscript
    "1\u0660",
    "½",
    "None",
    "null",
    "true",
    from_now(timedelta(days=1, seconds=1)),
    from_now(timedelta(days=3000)),
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Sun, 32 Nov 2026 08:49:37 GMT",
    "Sun, 06 Foo 2026 08:49:37 GMT",
    "Sun, 06 Nov 2026 25:49:37 GMT",
    "Sun, 06 Nov 2026 08:61:37 GMT",
    "Sun, 06 Nov 2026 08:49:99 GMT",
    "Sun, 06 Nov 2026 GMT",
    f"Sun, 06 Nov {'9' * 5000} 08:49:37 GMT",
    f"Sun, {'9' * 30} Nov 2026 08:49:37 GMT",
    "Sun Nov  6 08:49:37 2026",
    "2026-03-01T12:00:30Z",
    "Sun, 01 Mar 2026 12:00:30 +0000",
    "Sun, 01 Mar 2026 12:00:30 UTC",
    "Sun, 01 Mar 2026 12:00:30 gmt",
    "Sun, \uff10\uff11 Mar 2026 12:00:30 GMT",
    "Sun, 01 Mär 2026 12:00:30 GMT",
    " GMT",
    "GMT",
    ", GMT",
    "::: GMT",
    "1 1 1 1 1 GMT",
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(value)[:40])
def test_anything_absurd_counts_as_absent(value):
    assert parse_retry_after(value, now=NOW) is None


def date_like():
    words = ["Sun,", "Sunday,", "06", "Nov", "2026", "26", "08:49:37", "08:49", "99:99:99", "-0000"]
    pieces = st.sampled_from([*words, ",", "-", ":", ".", "+0100", "9" * 25, "06-Nov-26", "\x00"])
    return st.lists(pieces | st.text(max_size=3), max_size=8).map(
        lambda chosen: " ".join(chosen) + " GMT"
    )


@settings(deadline=None, max_examples=500)
@given(
    st.text(st.sampled_from("0123456789.eE+-_ \t,xnaif\uff11\u0661"), max_size=14)
    | st.text(max_size=20)
    | date_like(),
    st.floats(0, 1e11),
)
def test_every_value_gives_none_or_0_to_86400_seconds(value, now):
    result = parse_retry_after(value, now=now)
    assert result is None or 0.0 <= result <= DAY


@relaxed
@given(st.integers(0, 10**8))
def test_every_http_date_is_read_exactly(moment):
    date = format_datetime(datetime.fromtimestamp(moment, UTC), usegmt=True)
    assert parse_http_date(date) == moment
    assert parse_retry_after(date, now=moment - 60.0) == 60.0


@pytest.mark.parametrize("value", [None, "", "now", "1700000000", "Sun, 06 Nov 1994 08:49:37"])
def test_what_is_no_http_date_is_none(value):
    assert parse_http_date(value) is None


# -- the decision ------------------------------------------------------------------

ALWAYS, READS, UNKNOWN, NEVER = "always", "reads", "reads, and writes if asked to", "never"
WHEN = {
    "NotSentError": ALWAYS,
    "RateLimitError": ALWAYS,
    "ServerError": READS,
    "TransportError": READS,
    "OutcomeUnknownError": UNKNOWN,
}
KINDS = [getattr(errors, name) for name in errors.__all__]


def expected(kind, *, write, retry_unknown):
    when = WHEN.get(kind.__name__, NEVER)
    if when == UNKNOWN:
        return retry_unknown if write else True
    return when == ALWAYS or (when == READS and not write)


def tally(kind, attempts, *, write):
    count = "refused" if issubclass(kind, RateLimitError) else "failed"
    return Tally(write=write, **{count: attempts})


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
reads_and_writes = pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
retry_unknown_or_not = pytest.mark.parametrize(
    "retry_unknown", [False, True], ids=["", "retry_unknown"]
)


@every_kind
@reads_and_writes
@retry_unknown_or_not
@pytest.mark.parametrize("attempts", [1, 2, 3, 4, 5])
def test_the_table_of_what_is_tried_again(kind, write, retry_unknown, attempts):
    policy = RetryPolicy(max_attempts=4, rate_limit_attempts=4, retry_unknown=retry_unknown)
    may = expected(kind, write=write, retry_unknown=retry_unknown)
    answer = should_retry(policy, tally(kind, attempts, write=write), kind("no"))
    assert answer is (may and attempts < 4)


def test_refusals_and_failures_are_counted_apart():
    policy = RetryPolicy(max_attempts=2, rate_limit_attempts=3)
    assert should_retry(policy, Tally(write=True, refused=2, failed=99), RateLimitError("no"))
    assert should_retry(policy, Tally(write=True, refused=99, failed=1), NotSentError("no"))
    assert not should_retry(policy, Tally(write=True, refused=3, failed=0), RateLimitError("no"))
    assert not should_retry(policy, Tally(write=True, refused=0, failed=2), NotSentError("no"))


@reads_and_writes
@pytest.mark.parametrize(
    ("asked", "again"), [(None, True), (0.0, True), (120.0, True), (120.001, False), (DAY, False)]
)
def test_a_429_is_waited_for_up_to_the_longest_retry_after(write, asked, again):
    error = RateLimitError("no", status_code=429, retry_after=asked)
    assert should_retry(DEFAULT, Tally(write=write, refused=1), error) is again


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x"), OSError("x"), TimeoutError("x")]
)
@reads_and_writes
def test_a_foreign_exception_is_never_tried_again(error, write):
    assert should_retry(RetryPolicy(retry_unknown=True), Tally(write=write), error) is False


def bad_certificate():
    return ssl.SSLCertVerificationError("self-signed certificate")


def chained(*chain, explicit=True):
    """Link errors, the first being caused by the second and so on."""
    for error, cause in itertools.pairwise(chain):
        if explicit:
            error.__cause__ = cause
        else:
            error.__context__ = cause
    return chain[0]


@reads_and_writes
@pytest.mark.parametrize("kind", [NotSentError, TransportError, OutcomeUnknownError])
def test_a_certificate_that_does_not_verify_is_not_tried_again(kind, write):
    policy = RetryPolicy(retry_unknown=True)
    direct = chained(kind("no"), bad_certificate())
    deep = chained(kind("no"), OSError("a"), OSError("b"), bad_certificate())
    implicit = chained(kind("no"), chained(OSError("a"), bad_certificate(), explicit=False))
    for error in (direct, deep, implicit):
        assert should_retry(policy, Tally(write=write, failed=1), error) is False


def test_another_tls_fault_may_pass_and_is_tried_again():
    error = chained(NotSentError("no"), OSError("a"), ssl.SSLError("handshake failure"))
    assert should_retry(DEFAULT, Tally(write=True, failed=1), error) is True


def test_a_bad_certificate_that_the_caller_was_busy_with_does_not_count():
    """Python hangs on our error, as its context, what the caller was handling meanwhile."""
    error = chained(ServerError("no"), bad_certificate(), explicit=False)
    assert should_retry(DEFAULT, Tally(write=False, failed=1), error) is True


@every_kind
def test_a_tally_counts_refusals_and_failures(kind):
    count = Tally(write=True)
    count.note(kind("no"))
    refused = kind is RateLimitError
    assert (count.refused, count.failed) == (int(refused), int(not refused))


# -- the pause ---------------------------------------------------------------------


def test_after_a_429_the_hold_of_the_budget_is_the_pause():
    error = RateLimitError("no", retry_after=50.0)
    assert pause_before_retry(DEFAULT, Tally(write=True, refused=3, failed=3), error, half) == 0.0


@pytest.mark.parametrize("error", [NotSentError("no"), ServerError("no"), TransportError("no")])
@pytest.mark.parametrize(("failed", "pause"), [(1, 0.25), (2, 0.5), (3, 1.0), (9, 15.0)])
def test_without_a_retry_after_the_backoff_is_the_pause(error, failed, pause):
    assert pause_before_retry(DEFAULT, Tally(write=False, failed=failed), error, half) == pause


@pytest.mark.parametrize(
    ("asked", "pause"), [(0.0, 0.25), (0.2, 0.25), (7.0, 7.0), (120.0, 120.0), (DAY, 120.0)]
)
def test_a_503_with_a_retry_after_is_left_alone_for_so_long_within_reason(asked, pause):
    error = ServerError("no", status_code=503, retry_after=asked)
    assert pause_before_retry(DEFAULT, Tally(write=False, failed=1), error, half) == pause


@relaxed
@given(
    first=seconds,
    most=seconds,
    longest=seconds,
    asked=st.none() | st.floats(0, DAY),
    failed=st.integers(1, 100),
    drawn=draws,
)
def test_every_pause_is_a_sane_number(first, most, longest, asked, failed, drawn):
    policy = RetryPolicy(backoff=first, max_backoff=most, max_retry_after=longest)
    error = ServerError("no", retry_after=asked)
    pause = pause_before_retry(policy, Tally(write=False, failed=failed), error, lambda: drawn)
    assert 0.0 <= pause <= max(most, longest)
    if asked is not None and asked <= longest:
        assert pause >= asked


# -- tenacity ----------------------------------------------------------------------


class Call:
    """Fails with each of these errors in turn, then returns."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.started_at = []

    async def __call__(self):
        self.started_at.append(asyncio.get_running_loop().time())
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    @property
    def attempts(self):
        return len(self.started_at)


def machine(policy=DEFAULT, *, write=False, draw=half, give_up=lambda _: False):
    return retrying(policy, Tally(write=write), draw=draw, give_up=give_up)


@pytest.mark.looptime
async def test_a_success_comes_back_after_the_pauses_in_between():
    call = Call(ServerError("1"), TransportError("2"), NotSentError("3"))
    assert await machine()(call) == "done"
    assert call.started_at == pytest.approx([0.0, 0.25, 0.75, 1.75])


@pytest.mark.looptime
@pytest.mark.parametrize("most", [1, 2, 4, 7])
async def test_a_call_ends_with_its_last_error_after_the_last_attempt(most):
    failures = [ServerError(str(number)) for number in range(1, 10)]
    call = Call(*failures)
    with pytest.raises(ServerError) as caught:
        await machine(RetryPolicy(max_attempts=most))(call)
    assert call.attempts == most
    assert caught.value is failures[most - 1]


@pytest.mark.looptime
async def test_refusals_have_a_count_of_their_own_and_no_pause():
    policy = RetryPolicy(max_attempts=2, rate_limit_attempts=5)
    refusals = [RateLimitError(str(number)) for number in range(1, 8)]
    call = Call(refusals[0], refusals[1], NotSentError("x"), *refusals[2:])
    with pytest.raises(RateLimitError) as caught:
        await machine(policy, write=True)(call)
    assert call.attempts == 6
    assert caught.value is refusals[4]
    assert call.started_at == pytest.approx([0, 0, 0, 0.25, 0.25, 0.25])


@pytest.mark.looptime
async def test_the_tally_that_was_given_is_kept():
    count = Tally(write=True)
    call = Call(RateLimitError("1"), NotSentError("2"), NotSentError("3"))
    await retrying(DEFAULT, count, draw=half, give_up=lambda _: False)(call)
    assert (count.refused, count.failed) == (1, 2)


@pytest.mark.looptime
@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("no"),
        BadRequestError("no"),
        OTPVerificationError("no"),
        APIError("no"),
        InvalidResponseError("no"),
        BudgetTimeoutError("no"),
        ServerError("no"),
        OutcomeUnknownError("no"),
        KeyError("no"),
        asyncio.CancelledError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_write_ends_at_once_with_what_may_not_be_tried_again(error):
    call = Call(error)
    with pytest.raises(type(error)) as caught:
        await machine(write=True)(call)
    assert call.attempts == 1
    assert caught.value is error


@pytest.mark.looptime
async def test_an_unknown_outcome_of_a_write_is_repeated_if_the_policy_says_so():
    call = Call(OutcomeUnknownError("1"), OutcomeUnknownError("2"))
    assert await machine(RetryPolicy(retry_unknown=True), write=True)(call) == "done"
    assert call.attempts == 3


@pytest.mark.looptime
async def test_a_cancellation_during_a_pause_ends_the_call():
    call = Call(*[ServerError("no")] * 3)
    task = asyncio.create_task(machine(RetryPolicy(backoff=100.0, max_backoff=100.0))(call))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.attempts == 1
    assert asyncio.get_running_loop().time() == pytest.approx(1.0)


@pytest.mark.looptime
async def test_give_up_is_told_the_next_pause_and_ends_with_the_last_error():
    told = []

    def give_up(pause):
        told.append(pause)
        return len(told) == 2

    failures = [ServerError("1"), ServerError("2"), ServerError("3")]
    call = Call(*failures)
    with pytest.raises(ServerError) as caught:
        await machine(give_up=give_up)(call)
    assert caught.value is failures[1]
    assert told == pytest.approx([0.25, 0.5])
    assert call.started_at == pytest.approx([0.0, 0.25])


@pytest.mark.looptime
async def test_give_up_is_not_asked_when_the_call_ends_anyway():
    told = []
    with pytest.raises(AuthenticationError):
        await machine(give_up=told.append)(Call(AuthenticationError("no")))
    assert told == []


@pytest.mark.looptime
async def test_a_long_retry_after_of_a_503_is_waited_for():
    call = Call(ServerError("busy", status_code=503, retry_after=90.0))
    assert await machine()(call) == "done"
    assert call.started_at == pytest.approx([0.0, 90.0])
