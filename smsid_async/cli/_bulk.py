"""`smsid bulk run`: check the whole file, then send it and tell what became of every row."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from smsid_async import (
    Message,
    Outcome,
    OutcomeUnknownError,
    SendResult,
    SMSIDError,
    ValidationError,
)
from smsid_async.bulk import BadRow, Plan, Row, Source
from smsid_async.cli._check import check_file, seconds_for
from smsid_async.cli._output import Output
from smsid_async.cli._report import Report
from smsid_async.cli._session import Code, Session
from smsid_async.cli._signals import on_interrupt
from smsid_async.cli.display import BulkState, LiveView, PlainView, View, duration_text

if TYPE_CHECKING:
    from smsid_async import SMSIDClient

__all__ = ["BulkRun", "run_file"]

_TICK = 0.2  # seconds between two looks at the budget
_GOODBYE = 1.0  # seconds that the last words may take


def run_file(session: Session, source: Source) -> int:
    """Check a file, and send it if every row is good."""
    client = session.client()  # first: a missing key is told before a long check
    plan = check_file(source, session.out)
    if plan.bad_rows:
        rows = plan.messages + plan.bad_rows
        session.out.sentence(
            f"{plan.bad_rows:,} of {rows:,} rows cannot be sent, so nothing was sent; "
            "correct them, then run this again"
        )
        session.out.record({"summary": {"rows": rows, "bad_rows": plan.bad_rows, "sent": 0}})
        return Code.USAGE
    session.out.line(
        f"{source.path.name}: {plan.messages:,} messages, {plan.segments:,} segments, "
        f"about {duration_text(seconds_for(plan, session))}"
    )
    return asyncio.run(_send(client, source, plan, session.out))


async def _send(client: "SMSIDClient", source: Source, plan: Plan, out: Output) -> int:
    async with client:
        run = BulkRun(client, source, plan, out)
        await run.run()
        return run.report.close()


class BulkRun:
    """One pass over a checked file that sends it.

    While requests are in flight, all writing is done in threads: a reader that pauses (a
    pager, Ctrl-S) must not hold up the event loop until their answers seem to be late.

    Args:
        client: Sends.
        source: The file.
        plan: What the check found in it.
        out: Where to write.
        leave: Ends the process at once, after a second Ctrl-C.
    """

    def __init__(
        self,
        client: "SMSIDClient",
        source: Source,
        plan: Plan,
        out: Output,
        *,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.state = BulkState(source.path.name, plan.messages)
        self.report = Report(self.state, out)
        self._client = client
        self._source = source
        self._out = out
        self._leave = leave
        self._rows = source.rows()
        self._in_hand: dict[int, Row] = {}
        self._pulled = 0
        self._results = client.sms.send_many(self._messages())
        self._view: View = (
            PlainView(self.state, out.sentence)
            if out.console is None
            else LiveView(self.state, out.console)
        )

    async def run(self) -> None:
        """Send everything, and tell what became of each row; `report` has the sums."""
        with contextlib.closing(self._rows):
            with self._view, on_interrupt(self._interrupt):
                async with self._ticking():
                    await self._take_all()
            if self.state.stopping or self.report.error is not None:
                self._note_the_rest()

    def _messages(self) -> Iterator[Message]:
        for row in self._rows:
            if isinstance(row, BadRow) or self._pulled == self.state.total:
                raise self._changed(f"line {row.line}")
            self._in_hand[self._pulled] = row
            self._pulled += 1
            yield row.message
        if self._pulled < self.state.total:
            raise self._changed("its end")

    def _changed(self, where: str) -> ValidationError:
        return ValidationError(
            f"{self._source.path} was changed after it was checked, as {where} shows; "
            "nothing more was sent from it"
        )

    async def _take_all(self) -> None:
        try:
            async for result in self._results:
                row = self._in_hand.pop(result.index)
                await asyncio.to_thread(self.report.add, row, result)
                if self._out.closed and not self.state.stopping:
                    self._stop()
        except SMSIDError as error:
            self.report.error = error

    def _stop(self) -> None:
        self.state.stopping = True
        self._results.stop()

    def _interrupt(self) -> None:
        """Take a Ctrl-C: stop at the first, leave at the second."""
        if not self.report.interrupted:
            self.report.interrupted = True
            self._stop()
            return
        goodbye = threading.Thread(target=self._say_goodbye, daemon=True)
        goodbye.start()
        goodbye.join(_GOODBYE)
        self._leave(Code.INTERRUPTED)

    def _say_goodbye(self) -> None:
        self._view.__exit__(None, None, None)
        for index, row in self._in_hand.items():
            self.report.add(row, _not_awaited(index, row))
        self._note_the_rest()
        self.report.close()

    def _note_the_rest(self) -> None:
        """Note what was never pulled, and where it begins."""
        following = None
        with contextlib.suppress(SMSIDError):  # the file's own trouble was told already
            following = next(self._rows, None)
        self.report.not_started = max(0, self.state.total - self._pulled)
        if following is not None:
            self.report.following = (self._pulled, following.line)

    @contextlib.asynccontextmanager
    async def _ticking(self) -> AsyncIterator[None]:
        began = asyncio.get_running_loop().time()

        def look() -> None:
            self.state.elapsed = asyncio.get_running_loop().time() - began
            self.state.budget = self._client.budget.statistics()

        async def tick() -> None:
            while True:
                look()
                await asyncio.to_thread(self._view.refresh)
                await asyncio.sleep(_TICK)

        ticker = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticker.cancel()
            look()


def _not_awaited(index: int, row: Row) -> SendResult:
    error = OutcomeUnknownError("its answer was not awaited, so it may have been sent")
    return SendResult(index, row.message, Outcome.UNKNOWN, error=error)
