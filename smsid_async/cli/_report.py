"""What became of a bulk run: a line for each row that matters, and the sums at the end."""

from decimal import Decimal

from rich import box
from rich.table import Table

from smsid_async import NotSentError, Outcome, SendResult, SMSIDError
from smsid_async.bulk import Row
from smsid_async.cli._output import Output
from smsid_async.cli._session import Code
from smsid_async.cli.display import BulkState, duration_text, words_of
from smsid_async.models import mask_number

__all__ = ["Report", "lines_text"]


class Report:
    """Counts into a state, and writes.

    Attributes:
        error: Why sending ended early, if an error was the reason.
        interrupted: Whether Ctrl-C was.
        not_started: Rows that were never taken in hand.
        following: Place and line of the first of these.
        more: Further sums to show at the end.
    """

    def __init__(self, state: BulkState, out: Output) -> None:
        self.error: SMSIDError | None = None
        self.interrupted = False
        self.not_started = 0
        self.following: tuple[int, int] | None = None
        self.more: list[tuple[str, str]] = []
        self._state = state
        self._out = out
        self._cost: Decimal | None = None
        self._newest = 0  # place of the message whose receipt told the balance
        self._unsent: list[tuple[int, int]] = []  # place and line; as many as were in hand

    def add(self, row: Row, result: SendResult) -> None:
        """Count a result, and write it."""
        self._state.counts[result.outcome] += 1
        self._out.record(_record(row, result))
        if result.receipt is not None:
            cost, balance = result.receipt.cost, result.receipt.remaining_balance
            if cost is not None:
                self._cost = (self._cost or Decimal(0)) + cost
            if balance is not None and result.index >= self._newest:  # answers overtake
                self._state.balance, self._newest = balance, result.index
        elif _was_stopped(result):
            self._unsent.append((result.index, row.line))
        else:
            self._out.line(
                f"line {row.line}: {mask_number(row.message.to)} "
                f"{words_of(result.outcome)}: {result.error}"
            )

    def close(self) -> int:
        """Write the sums and why it ended early, and return the exit code."""
        if self._out.console is None:
            for name, words in self._sums():
                self._out.line(f"{name + ':':<16}{words}")
        else:
            self._out.console.print(self._table())
        self._out.record({"summary": self._summary()})
        for sentence in self._sentences():
            self._out.sentence(sentence)
        return self._code()

    def _code(self) -> int:
        counts = self._state.counts
        if self.interrupted:
            return Code.INTERRUPTED
        if counts[Outcome.UNKNOWN]:
            return Code.UNKNOWN
        all_sent = counts[Outcome.SENT] == self._state.total and self.error is None
        return Code.WELL if all_sent else Code.FAILED

    def _not_sent(self) -> int:
        return self._state.counts[Outcome.NOT_SENT] + self.not_started

    def _sums(self) -> list[tuple[str, str]]:
        state, counts = self._state, self._state.counts
        sums = [
            ("sent", f"{counts[Outcome.SENT]:,} of {state.total:,}"),
            ("rejected", f"{counts[Outcome.REJECTED]:,}"),
            ("not sent", f"{self._not_sent():,}"),
            ("unknown", f"{counts[Outcome.UNKNOWN]:,}"),
            ("duration", duration_text(state.elapsed)),
        ]
        if self._cost is not None:
            sums.append(("cost", str(self._cost)))
        if state.balance is not None:
            sums.append(("balance", str(state.balance)))
        if state.budget is not None:
            sums.append(("429s seen", f"{state.budget.rate_limited:,}"))
        return [*sums, *self.more]

    def _table(self) -> Table:
        table = Table(box=box.ROUNDED, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, words in self._sums():
            table.add_row(name, words)
        return table

    def _summary(self) -> dict[str, object]:
        state, counts = self._state, self._state.counts
        unsent = self._unsent if self.following is None else [*self._unsent, self.following]
        return {
            "rows": state.total,
            "bad_rows": 0,
            "sent": counts[Outcome.SENT],
            "rejected": counts[Outcome.REJECTED],
            "not_sent": self._not_sent(),
            "unknown": counts[Outcome.UNKNOWN],
            "not_started": self.not_started,
            "not_sent_from_line": min((line for _, line in unsent), default=None),
            "cost": self._cost,
            "remaining_balance": state.balance,
            "rate_limited": None if state.budget is None else state.budget.rate_limited,
            "seconds": round(state.elapsed, 1),
            "interrupted": self.interrupted,
            "error": None if self.error is None else type(self.error).__name__,
            "error_text": None if self.error is None else str(self.error),
        }

    def _sentences(self) -> list[str]:
        sentences = []
        if self.error is not None:
            sentences.append(f"stopped early: {self.error}")
        if self._unsent or self.not_started:
            number = len(self._unsent) + self.not_started
            where = lines_text(self._unsent, self.following)
            sentences.append(
                f"{number:,} of {self._state.total:,} rows were left unsent"
                + (f": {where}" if where else "")
            )
        if self._state.counts[Outcome.UNKNOWN]:
            sentences.append("rows with an unknown outcome may have been sent; find out first")
        return sentences


def lines_text(rows: list[tuple[int, int]], following: tuple[int, int] | None) -> str:
    """Write where rows are, `line 4, lines 7 to 9 and all from line 12 on`.

    Args:
        rows: Their places among all rows, and their lines.
        following: Place and line of the row from which on all belong to them.
    """
    runs: list[tuple[int, int, int]] = []  # first line, last line, last place
    for place, line in sorted(rows if following is None else [*rows, following]):
        if runs and runs[-1][2] == place - 1:
            runs[-1] = (runs[-1][0], line, place)
        else:
            runs.append((line, line, place))
    words = [f"line {a}" if a == b else f"lines {a} to {b}" for a, b, _ in runs]
    if following is not None:
        words[-1] = f"all from line {runs[-1][0]} on"
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _was_stopped(result: SendResult) -> bool:
    """Whether nothing failed, and the row was only left behind when sending ended."""
    return isinstance(result.error, NotSentError) and result.error.__cause__ is None


def _record(row: Row, result: SendResult) -> dict[str, object]:
    receipt, error = result.receipt, result.error
    return {
        "line": row.line,
        "index": result.index,
        "to": mask_number(row.message.to),
        "reference": row.message.reference,
        "outcome": result.outcome.value,
        "message_id": None if receipt is None else receipt.message_id,
        "cost": None if receipt is None else receipt.cost,
        "error": None if error is None else type(error).__name__,
        "error_text": None if error is None else str(error),
    }
