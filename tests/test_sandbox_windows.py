"""The sandbox's rate windows: exact models on fractions, rounding on floats."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsid_async.sandbox import windows
from smsid_async.sandbox.windows import (
    BucketWindow,
    NoWindow,
    SlidingWindow,
    largest_count,
    make_window,
)

KINDS = ["sliding", "fixed", "aligned", "bucket"]

limits = st.integers(1, 6)
periods = st.fractions(Fraction(1, 10), 90, max_denominator=12)
gaps = st.lists(st.fractions(0, 30, max_denominator=12), max_size=60)


def moments(first, gaps):
    now = first
    for gap in gaps:
        now += gap
        yield now


def admitted_by(window, arrivals):
    return [now for now in arrivals if window.hit(now) == 0]


@given(limits, periods, gaps)
def test_sliding_never_admits_more_than_the_limit_in_any_span(limit, period, gaps):
    admitted = admitted_by(make_window("sliding", limit, period), moments(Fraction(3), gaps))
    assert largest_count(admitted, period) <= limit


@given(limits, periods, gaps)
def test_sliding_refuses_only_when_the_span_is_full(limit, period, gaps):
    window = make_window("sliding", limit, period)
    admitted = []
    for now in moments(Fraction(3), gaps):
        inside = sum(now - period < earlier <= now for earlier in admitted)
        assert (window.hit(now) == 0) == (inside < limit)
        if inside < limit:
            admitted.append(now)


@given(limits, periods, gaps)
def test_fixed_opens_with_the_first_request_after_the_last_window(limit, period, gaps):
    window = make_window("fixed", limit, period)
    opened, count = None, 0
    for now in moments(Fraction(3), gaps):
        if opened is None or now >= opened + period:
            opened, count = now, 0
        wait = window.hit(now)
        assert wait == (0 if count < limit else opened + period - now)
        count += wait == 0


@given(limits, periods, gaps)
def test_aligned_counts_in_whole_multiples_of_the_period(limit, period, gaps):
    window = make_window("aligned", limit, period)
    counts = {}
    for now in moments(Fraction(3), gaps):
        index = now // period
        wait = window.hit(now)
        counts[index] = counts.get(index, 0)
        assert wait == (0 if counts[index] < limit else (index + 1) * period - now)
        counts[index] += wait == 0


@given(limits, periods, gaps)
def test_bucket_holds_limit_tokens_and_refills_evenly(limit, period, gaps):
    window = make_window("bucket", limit, period)
    tokens, last = Fraction(limit), Fraction(0)
    for now in moments(Fraction(3), gaps):
        tokens, last = min(Fraction(limit), tokens + (now - last) * limit / period), now
        wait = window.hit(now)
        assert wait == (0 if tokens >= 1 else (1 - tokens) * period / limit)
        tokens -= wait == 0


@pytest.mark.parametrize("kind", KINDS)
@given(limits, periods, gaps)
def test_a_refused_caller_is_admitted_exactly_when_said(kind, limit, period, gaps):
    window = make_window(kind, limit, period)
    now = Fraction(3)
    for gap in gaps:
        now += gap
        wait = window.hit(now)
        if wait > 0:
            assert window.hit(now + wait - min(wait, Fraction(1, 10**9)) / 2) > 0
            now += wait
            assert window.hit(now) == 0


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.integers(1, 130),
    st.floats(1e-3, 1e4),
    st.floats(0, 1e9),
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
)
def test_rounding_never_breaks_the_promise(kind, limit, period, start, gaps):
    window = make_window(kind, limit, period)
    now = start
    for gap in gaps:
        now += gap
        while (wait := window.hit(now)) == 0:
            pass  # fill the window
        assert 0 < wait <= period * (1 + 1e-9) + math.ulp(now)
        now += wait
        assert window.hit(now) == 0


@given(st.integers(1, 1000), st.floats(1e-3, 1e4), st.floats(0, 1e9))
def test_a_full_bucket_admits_all_its_tokens_at_once(limit, period, now):
    window = BucketWindow(limit, period)
    assert [window.hit(now) for _ in range(limit)] == [0.0] * limit
    assert window.hit(now) > 0


@given(limits, st.floats(1e-3, 100), st.lists(st.floats(0, 10), max_size=200))
def test_largest_count_agrees_with_the_sliding_window_on_floats(limit, period, gaps):
    window = SlidingWindow(limit, period)
    assert largest_count(admitted_by(window, moments(0.1, gaps)), period) <= limit


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 15))
def test_largest_count_is_the_fullest_half_open_span(times, span):
    times.sort()
    fullest = max((sum(a <= b < a + span for b in times) for a in times), default=0)
    assert largest_count(times, span) == fullest


def test_a_request_a_period_later_is_in_another_span():
    assert largest_count([0.0, 60.0], 60.0) == 1
    assert largest_count([0.0, math.nextafter(60.0, 0)], 60.0) == 2


def test_no_limit_admits_everybody():
    window = make_window("fixed", None, 60.0)
    assert isinstance(window, NoWindow)
    assert [window.hit(0.0) for _ in range(1000)] == [0.0] * 1000


@pytest.mark.parametrize(
    ("kind", "limit", "period", "named"),
    [
        ("weekly", 1, 1.0, "window"),
        ("fixed", 0, 1.0, "limit"),
        ("fixed", 1, 0.0, "period"),
        ("fixed", None, math.nan, "period"),
        ("fixed", 1, math.inf, "period"),
    ],
)
def test_what_makes_no_window_is_refused(kind, limit, period, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        make_window(kind, limit, period)


def test_a_wait_is_never_rounded_to_less_than_it_takes():
    now, moment = 0.069, 0.9600000000000001  # a pair whose plain difference falls short
    assert now + (moment - now) < moment
    assert now + windows._until(moment, now) >= moment
