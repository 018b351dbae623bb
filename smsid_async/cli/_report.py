"""What became of a bulk run: a line for each row that matters, and the sums at the end."""

import shlex
import threading
from collections import deque
from decimal import Decimal

from rich import box
from rich.table import Table

from smsid_async import NotSentError, Outcome, SMSIDError
from smsid_async.bulk import JobSummary, RowResult
from smsid_async.cli._output import Output
from smsid_async.cli._prepare import Ready
from smsid_async.cli._session import Code
from smsid_async.cli.display import BulkState, duration_text, words_of
from smsid_async.models import mask_number

__all__ = ["Report"]


class Report:
    """Counts into a state, and writes.

    Attributes:
        error: Why sending ended early, if an error was the reason.
        interrupted: Whether Ctrl-C was.
        more: Further sums to show at the end.
    """

    def __init__(self, state: BulkState, ready: Ready, out: Output) -> None:
        self.error: SMSIDError | None = None
        self.interrupted = False
        self.more: list[tuple[str, str]] = []
        self._state = state
        self._ready = ready
        self._out = out
        self._cost: Decimal | None = None
        self._writing = threading.Lock()  # a second Ctrl-C closes it from another thread
        self._closed = False
        # Answers overtake one another: of as many as can be in flight, the least is the last.
        self._balances: deque[Decimal] = deque(maxlen=50)

    def add(self, result: RowResult) -> None:
        """Count a result and write it, unless the sums have been written."""
        with self._writing:
            if not self._closed:
                self._add(result)

    def _add(self, result: RowResult) -> None:
        self._state.counts[result.outcome] += 1
        self._out.record(_record(result))
        if result.receipt is not None:
            cost, balance = result.receipt.cost, result.receipt.remaining_balance
            if cost is not None:
                self._cost = (self._cost or Decimal(0)) + cost
            if balance is not None:
                self._balances.append(balance)
                self._state.balance = min(self._balances)
        elif not _was_stopped(result):
            self._out.line(
                f"line {result.line}: {mask_number(result.message.to)} "
                f"{words_of(result.outcome)}: {result.error}"
            )

    def summary(self) -> JobSummary:
        """Sum up from what was seen, where the journal cannot be read."""
        state, counts = self._state, self._state.counts
        return JobSummary(
            total=state.earlier + state.total,
            sent=state.sent_earlier + counts[Outcome.SENT],
            rejected=counts[Outcome.REJECTED],
            not_sent=counts[Outcome.NOT_SENT],
            unknown=state.unknown_earlier + counts[Outcome.UNKNOWN],
            waiting=state.total - state.done,
            in_flight=0,
            delivered=0,
            failed=0,
            untraceable=0,
            cost=self._cost or Decimal(0),
        )

    def close(self, job: JobSummary) -> int:
        """Write the sums and why it ended early, and return the exit code."""
        with self._writing:
            self._closed = True
            self._tell_sums(job)
        return self._code(job)

    def _tell_sums(self, job: JobSummary) -> None:
        if self._out.console is None:
            for name, words in self._sums(job):
                self._out.line(f"{name + ':':<16}{words}")
        else:
            self._out.console.print(self._table(job))
        self._out.record({"summary": self._summary(job)})
        for sentence in self._sentences(job):
            self._out.sentence(sentence)

    def _code(self, job: JobSummary) -> int:
        if self.interrupted:
            return Code.INTERRUPTED
        if job.unknown:
            return Code.UNKNOWN
        return Code.WELL if job.sent == job.total and self.error is None else Code.FAILED

    def _sums(self, job: JobSummary) -> list[tuple[str, str]]:
        state = self._state
        sums = [("sent", f"{job.sent - state.sent_earlier:,} of {state.total:,}")]
        if state.sent_earlier:
            sums.append(("sent earlier", f"{state.sent_earlier:,}"))
        sums += [
            ("rejected", f"{job.rejected:,}"),
            ("not sent", f"{job.not_sent + job.waiting:,}"),
            ("unknown", f"{job.unknown:,}"),
            ("duration", duration_text(state.elapsed)),
        ]
        if self._cost is not None:
            sums.append(("cost", str(self._cost)))
        if state.balance is not None:
            sums.append(("balance", str(state.balance)))
        if state.budget is not None:
            sums.append(("429s seen", f"{state.budget.rate_limited:,}"))
        return [*sums, *self.more]

    def _table(self, job: JobSummary) -> Table:
        table = Table(box=box.ROUNDED, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, words in self._sums(job):
            table.add_row(name, words)
        return table

    def _summary(self, job: JobSummary) -> dict[str, object]:
        state, ready = self._state, self._ready
        return {
            "rows": ready.rows,
            "bad_rows": 0,
            "repeats": ready.repeats,
            "sent_earlier": state.sent_earlier,
            "sent": job.sent - state.sent_earlier,
            "rejected": job.rejected,
            "not_sent": job.not_sent,
            "unknown": job.unknown,
            "waiting": job.waiting,
            "cost": self._cost,
            "remaining_balance": state.balance,
            "rate_limited": None if state.budget is None else state.budget.rate_limited,
            "seconds": round(state.elapsed, 1),
            "interrupted": self.interrupted,
            "error": None if self.error is None else type(self.error).__name__,
            "error_text": None if self.error is None else str(self.error),
            "journal": None if ready.journal is None else str(ready.journal),
        }

    def _sentences(self, job: JobSummary) -> list[str]:
        sentences = []
        if self.error is not None:
            sentences.append(f"stopped early: {self.error}")
        left, journal = job.not_sent + job.waiting, self._ready.journal
        if left:
            again = "" if journal is None else "; run the same command again to send them"
            sentences.append(f"{left:,} of {job.total:,} messages were left unsent{again}")
        if job.unknown:
            sentences.append(f"{job.unknown:,} messages may have been sent or not")
        if job.unknown and journal is not None:
            sentences[-1] += (
                f": `smsid bulk report {shlex.quote(str(journal))}` names them, find out and "
                "tell `smsid bulk settle`. They are not sent again, unless you say --resend-unknown"
            )
        return sentences


def _was_stopped(result: RowResult) -> bool:
    """Whether nothing failed, and the row was only left behind when sending ended."""
    return isinstance(result.error, NotSentError) and result.error.__cause__ is None


def _record(result: RowResult) -> dict[str, object]:
    receipt, error = result.receipt, result.error
    return {
        "line": result.line,
        "index": result.index,
        "to": mask_number(result.message.to),
        "reference": result.message.reference,
        "outcome": result.outcome.value,
        "message_id": None if receipt is None else receipt.message_id,
        "cost": None if receipt is None else receipt.cost,
        "error": None if error is None else type(error).__name__,
        "error_text": None if error is None else str(error),
    }
