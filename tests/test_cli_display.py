"""What a bulk run looks like, on a recorded console and on a terminal."""

import io
import sys
import time
from collections import Counter
from decimal import Decimal

import pytest
from rich.console import Console

from smsid_async import BudgetStatistics, Message, Outcome, Priority, SendReceipt
from smsid_async.bulk import RowResult
from smsid_async.cli import _output
from smsid_async.cli._prepare import Ready
from smsid_async.cli._report import Report
from smsid_async.cli.display import (
    BulkDisplay,
    BulkState,
    LiveView,
    PlainView,
    TrackDisplay,
    TrackState,
    duration_text,
)


def statistics(**changes):
    values = {
        "limit": 120,
        "period": 60.0,
        "free": 20,
        "in_flight": 3,
        "waiting": {Priority.BULK: 90, Priority.HIGH: 7},
        "held_for": 0.0,
        "rate_limited": 0,
        "rate": 1.0,
    }
    return BudgetStatistics(**{**values, **changes})


def state(**changes):
    counts = Counter({Outcome.SENT: 1200, Outcome.REJECTED: 2, Outcome.UNKNOWN: 1})
    values = {
        "title": "customers.csv",
        "total": 5000,
        "counts": counts,
        "elapsed": 601.5,
        "balance": Decimal("51.8800"),
        "budget": statistics(),
    }
    return BulkState(**{**values, **changes})


def drawn(shown, width=100):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(BulkDisplay(shown) if isinstance(shown, BulkState) else TrackDisplay(shown))
    return console.export_text()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_everything_that_matters_is_drawn():
    text = drawn(state())
    assert "customers.csv" in text
    assert "1,203/5,000" in text
    assert "120/min, 31 min 38 s left" in text
    assert "1,200 sent, 2 rejected, 0 not sent, 1 unknown, balance 51.8800" in text
    assert "100/120" in text
    assert "3 in flight, 97 waiting" in text
    assert "held" not in text
    assert "stopping" not in text


def test_a_hold_and_a_stop_are_drawn():
    text = drawn(state(stopping=True, budget=statistics(held_for=12.3)))
    assert "customers.csv: stopping, waiting for what is in flight" in text
    assert "3 in flight, 97 waiting, held for 12 s" in text
    assert "- left" in text  # nothing of the rest is sent


def test_what_earlier_runs_did_is_drawn():
    text = drawn(state(sent_earlier=3000, unknown_earlier=4))
    assert "4,207/8,004" in text
    assert "3,000 sent earlier, 1,200 sent, 2 rejected, 0 not sent, 5 unknown, balance" in text


def test_the_delivery_of_what_was_sent_is_drawn():
    shown = TrackState("list.csv.main.journal", 2000, delivered=1200, failed=3)
    text = drawn(shown)
    assert "list.csv.main.journal" in text
    assert "1,203/2,000" in text
    assert "1,200 delivered, 3 failed, 797 waiting" in text
    assert "not told" not in text
    shown.refused = 7
    assert "1,200 delivered, 3 failed, 790 waiting, 7 not told" in drawn(shown)
    assert TrackDisplay(shown).line() == "1,200 delivered, 3 failed, 790 waiting, 7 not told"


def test_a_run_that_has_just_begun_is_drawn():
    text = drawn(BulkState("list.csv", 10))
    assert "0/10" in text
    assert "0/min, - left" in text
    assert "balance" not in text
    assert "Budget" not in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_it_fits_every_width(width):
    lines = drawn(state(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 5


def test_names_from_outside_are_not_markup():
    assert "[bold]x[/nope].csv" in drawn(state(title="[bold]x[/nope].csv"))


def test_it_can_be_exported_as_a_picture():
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(BulkDisplay(state()))
    assert console.export_svg(title="smsid").startswith("<svg")


def test_a_state_estimates_the_rest():
    assert state().per_minute == 120
    assert state().seconds_left == pytest.approx((5000 - 1203) / 2)
    assert state(total=1000).seconds_left == 0
    assert BulkState("x", 5).per_minute == 0
    assert BulkState("x", 5).seconds_left is None


def test_a_live_view_draws_over_itself():
    terminal = Terminal()
    shown = state()
    with LiveView(
        BulkDisplay(shown), Console(file=terminal, width=100, force_terminal=True)
    ) as view:
        shown.counts[Outcome.SENT] = 4000
        view.refresh()
    assert "1,203/5,000" in terminal.getvalue()
    assert "4,003/5,000" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_plain_view_writes_a_line_now_and_then():
    now, lines = [100.0], []
    shown = state(counts=Counter(), elapsed=0.0)
    with PlainView(BulkDisplay(shown), lines.append, clock=lambda: now[0]) as view:
        view.refresh()
        assert lines == []
        now[0] += 10
        view.refresh()
        view.refresh()
        now[0] += 10
        shown.counts[Outcome.SENT], shown.elapsed = 20, 20.0
        view.refresh()
    assert lines == [
        "0 of 5,000 done, 0 sent, 0/min",
        "20 of 5,000 done, 20 sent, 60/min, 1 h 23 min left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (4800, "1 h 20 min"),
        (1e7, "2,777 h 46 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration_text(seconds) == words


def sent(number, **money):
    receipt = SendReceipt(f"m-{number}", "success", money.get("cost"), money.get("balance"))
    message = Message("+447700900456", "x")
    return RowResult(number, message, Outcome.SENT, receipt, line=number + 2)


def reported(terminal, monkeypatch, *results):
    monkeypatch.setattr(sys, "stdout", terminal)
    ready = Ready("list.csv", len(results), 0, len(results))
    report = Report(BulkState("list.csv", len(results)), ready, _output.Output(as_json=False))
    for result in results:
        report.add(result)
    assert report.close(report.summary()) == 0
    report.add(sent(len(results)))  # the sums are the last that is written
    assert report.summary().sent == len(results)
    return terminal.getvalue()


def test_the_sums_on_a_terminal_are_a_table(monkeypatch):
    money = {"cost": Decimal("0.04"), "balance": Decimal("9.96")}
    text = reported(Terminal(), monkeypatch, sent(0, **money), sent(1, **money))
    assert "│ sent     │ 2 of 2 │" in text
    assert "│ cost     │   0.08 │" in text
    assert "│ balance  │   9.96 │" in text


def test_money_that_no_receipt_told_is_left_out(monkeypatch):
    text = reported(io.StringIO(), monkeypatch, sent(0))
    assert "sent:           1 of 1" in text
    assert "cost" not in text
    assert "balance" not in text
    assert "\x1b" not in text


def test_lines_go_above_what_is_drawn(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    out = _output.Output(as_json=False)
    with out.view(BulkDisplay(state())):
        out.line("line 5: [red]\x1b[31m rejected")
    text = terminal.getvalue()
    assert "line 5: [red]\\x1b[31m rejected\n" in text
    assert text.count("customers.csv") == 3  # drawn at first, again below the line, and at the end


def test_a_long_check_shows_that_it_goes_on(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with _output.Output(as_json=False).busy("Checking [x].csv"):
        deadline = time.monotonic() + 5
        while "Checking [x].csv" not in terminal.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("as_json", "stdout", "stderr", "drawn_on"),
    [
        (False, True, True, "stdout"),
        (False, False, True, "stderr"),
        (False, False, False, None),
        (True, False, True, "stderr"),
        (True, True, True, None),
    ],
)
def test_the_terminal_is_chosen_so_that_results_stay_clean(
    monkeypatch, as_json, stdout, stderr, drawn_on
):
    for name, is_terminal in (("stdout", stdout), ("stderr", stderr)):
        monkeypatch.setattr(sys, name, Terminal() if is_terminal else io.StringIO())
    out = _output.Output(as_json=as_json)
    expected = None if drawn_on is None else getattr(sys, drawn_on)
    assert (out.console and out.console.file) is expected
    (out.record if as_json else lambda values: out.line(str(values)))({"x": 1})
    assert "x" in sys.stdout.getvalue()
    assert sys.stderr.getvalue() == ""
