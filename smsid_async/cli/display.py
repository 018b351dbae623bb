"""How long work looks: drawn from plain states that know nothing of clients or terminals."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Protocol, Self

import attrs
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from smsid_async import BudgetStatistics, Outcome

__all__ = [
    "BulkDisplay",
    "BulkState",
    "Display",
    "LiveView",
    "PlainView",
    "TrackDisplay",
    "TrackState",
    "View",
    "duration_text",
    "refreshing",
    "words_of",
]

_COLOURS = {
    Outcome.SENT: "green",
    Outcome.REJECTED: "red",
    Outcome.NOT_SENT: "yellow",
    Outcome.UNKNOWN: "magenta",
}
_LINE_EVERY = 10.0  # seconds, where nothing can be drawn
_TICK = 0.2  # seconds between two drawings


@attrs.define
class BulkState:
    """How far a bulk run is.

    Attributes:
        title: What is being sent, the file's name for instance.
        total: Messages that this run is to send.
        sent_earlier: Others, that earlier runs sent.
        unknown_earlier: Others, that earlier runs may have sent.
        counts: Messages by what became of them.
        elapsed: Seconds since the start.
        balance: What the newest receipt said is left.
        budget: How full the rate budget is.
        stopping: Whether it was interrupted, and only what is in flight is awaited.
    """

    title: str
    total: int
    sent_earlier: int = 0
    unknown_earlier: int = 0
    counts: Counter[Outcome] = attrs.field(factory=Counter)
    elapsed: float = 0.0
    balance: Decimal | None = None
    budget: BudgetStatistics | None = None
    stopping: bool = False

    @property
    def done(self) -> int:
        """Messages of this run whose outcome is known, as far as it can be."""
        return self.counts.total()

    @property
    def earlier(self) -> int:
        """Messages that were done before this run."""
        return self.sent_earlier + self.unknown_earlier

    @property
    def per_minute(self) -> float:
        """Messages a minute so far."""
        return 60 * self.done / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the rate so far, None while there is none."""
        left = max(0, self.total - self.done)
        return 60 * left / self.per_minute if self.per_minute and not self.stopping else None


class Display(Protocol):
    """A state in words and as a picture."""

    def line(self) -> str:
        """Write it on one line."""
        ...

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        ...


class BulkDisplay:
    """Draws a `BulkState`; give it to any rich console, as often as the state changes."""

    def __init__(self, state: BulkState) -> None:
        self._state = state

    def line(self) -> str:
        """Write the state on one line."""
        state = self._state
        left = state.seconds_left
        return (
            f"{state.done:,} of {state.total:,} done, {state.counts[Outcome.SENT]:,} sent, "
            f"{state.per_minute:,.0f}/min"
            + ("" if left is None else f", {duration_text(left)} left")
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self._state
        title = f"{state.title}: stopping, waiting for what is in flight"
        yield _panel(
            title if state.stopping else state.title,
            "yellow" if state.stopping else "cyan",
            *(self._progress(), self._outcomes(), self._budget()),
        )

    def _progress(self) -> RenderableType:
        state = self._state
        left = "-" if state.seconds_left is None else duration_text(state.seconds_left)
        return _bar_line(
            "Messages",
            state.earlier + state.done,
            state.earlier + state.total,
            f"{state.per_minute:,.0f}/min, {left} left",
        )

    def _outcomes(self) -> Text:
        state = self._state
        counts = state.counts + Counter({Outcome.UNKNOWN: state.unknown_earlier})
        parts = [
            Text(f"{counts[outcome]:,} {words_of(outcome)}", style=colour)
            for outcome, colour in _COLOURS.items()
        ]
        if state.sent_earlier:
            parts.insert(0, Text(f"{state.sent_earlier:,} sent earlier", style="green"))
        if state.balance is not None:
            parts.append(Text(f"balance {state.balance}"))
        return Text(", ").join(parts)

    def _budget(self) -> RenderableType:
        budget = self._state.budget
        if budget is None:
            return Text()
        words = f"{budget.in_flight} in flight, {sum(budget.waiting.values())} waiting"
        if budget.held_for:
            words += f", held for {budget.held_for:.0f} s"
        return _bar_line("Budget", budget.limit - budget.free, budget.limit, words)


@attrs.define
class TrackState:
    """What is known of the delivery of what a journal has sent.

    Attributes:
        title: The journal's name.
        total: Messages that were sent.
        delivered: Those known to have arrived.
        failed: Those known not to have.
        refused: Those that the API refuses to tell about.
    """

    title: str
    total: int
    delivered: int = 0
    failed: int = 0
    refused: int = 0

    @property
    def waiting(self) -> int:
        """Messages that may still arrive."""
        return max(0, self.total - self.delivered - self.failed - self.refused)


class TrackDisplay:
    """Draws a `TrackState`."""

    def __init__(self, state: TrackState) -> None:
        self._state = state

    def line(self) -> str:
        """Write the state on one line."""
        return ", ".join(words for words, _ in self._parts())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self._state
        yield _panel(
            state.title,
            "cyan",
            _bar_line("Final", state.total - state.waiting, state.total, ""),
            Text(", ").join(Text(words, style=colour) for words, colour in self._parts()),
        )

    def _parts(self) -> list[tuple[str, str]]:
        state = self._state
        parts = [
            (f"{state.delivered:,} delivered", "green"),
            (f"{state.failed:,} failed", "red"),
            (f"{state.waiting:,} waiting", "yellow"),
        ]
        if state.refused:
            parts.append((f"{state.refused:,} not told", "magenta"))
        return parts


class View(Protocol):
    """Shows work while it goes on."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *exc: object) -> None:
        """Show the last state and end."""
        ...

    def refresh(self) -> None:
        """Show the state as it is now."""
        ...


class LiveView:
    """Draws over itself on a terminal."""

    def __init__(self, display: Display, console: Console) -> None:
        self._live = Live(
            display,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def refresh(self) -> None:
        """Show the state as it is now."""
        self._live.refresh()


class PlainView:
    """Writes a line now and then, where nothing can be drawn."""

    def __init__(
        self,
        display: Display,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display = display
        self._write = write
        self._clock = clock
        self._next = 0.0

    def __enter__(self) -> Self:
        self._next = self._clock() + _LINE_EVERY
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def refresh(self) -> None:
        """Write a line if the last one is old enough."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + _LINE_EVERY
        self._write(self._display.line())


@contextlib.asynccontextmanager
async def refreshing(view: View, look: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """Look and draw a few times a second; a terminal that holds up delays only the drawing."""

    async def tick() -> None:
        while True:
            look()
            await asyncio.to_thread(view.refresh)
            await asyncio.sleep(_TICK)

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticker.cancel()
        look()


def duration_text(seconds: float) -> str:
    """Write a duration as `3.4 s`, `2 min 5 s` or `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def words_of(outcome: Outcome) -> str:
    """Write an outcome for people: `not sent`."""
    return outcome.value.replace("_", " ")


def _panel(title: str, colour: str, *lines: RenderableType) -> Panel:
    return Panel(
        Group(*lines),
        title=Text(title),
        title_align="left",
        border_style=colour,
        box=box.ROUNDED,
    )


def _bar_line(name: str, part: int, whole: int, words: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=8)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(min_width=28, no_wrap=True)
    bar = ProgressBar(total=max(1, whole), completed=min(part, whole))
    grid.add_row(name, bar, f"{part:,}/{whole:,}", words)
    return grid
