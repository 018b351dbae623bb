"""What the command writes: results to stdout, sentences to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console
from rich.text import Text

from smsid_async.cli.display import Display, LiveView, PlainView, View
from smsid_async.errors import ConfigurationError

if TYPE_CHECKING:
    import io

__all__ = ["Output"]

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}


class Output:
    """The two streams. A reader that goes away is noted and never an error.

    Args:
        as_json: Whether stdout is for JSON objects only.

    Attributes:
        as_json: Whether stdout is for JSON objects only.
        closed: Whether stdout's reader has gone, or it cannot be written to.
        console: The terminal to draw on, None if there is none.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.closed = False
        free = () if as_json and _is_terminal(sys.stdout) else (sys.stdout, sys.stderr)
        terminal = next(filter(_is_terminal, free), None)
        self.console = None if terminal is None else Console(file=terminal, highlight=False)
        self._through_console = terminal is not None and terminal is sys.stdout

    def line(self, text: str) -> None:
        """Write one line for people to stdout; nothing with `--json`."""
        if not self.as_json:
            self._write(text)

    def record(self, values: Mapping[str, object]) -> None:
        """Write one object to stdout; nothing without `--json`."""
        if self.as_json:
            self._write(json.dumps(values, default=str))

    def sentence(self, text: str) -> None:
        """Tell something on stderr."""
        _write(sys.stderr, f"smsid: {text.translate(_CONTROL)}")

    def busy(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Show on a terminal that something takes its time."""
        return contextlib.nullcontext() if self.console is None else self.console.status(Text(text))

    def view(self, display: Display) -> View:
        """Make a view of something that goes on: a drawing, or a line now and then."""
        if self.console is None:
            return PlainView(display, self.sentence)
        return LiveView(display, self.console)

    @contextlib.contextmanager
    def lent(self) -> Iterator[TextIO]:
        """Lend stdout for a file's text: in UTF-8, with its line ends as they are."""
        stream = sys.stdout
        if stream is None:
            raise ConfigurationError("there is no stdout to write to; name a file with -o")
        try:
            cast("io.TextIOWrapper", stream).reconfigure(encoding="utf-8", newline="")
            yield stream
            stream.flush()
        except OSError as exc:
            _abandon(stream)
            self._note(exc)

    def _note(self, trouble: OSError) -> None:
        """Note that stdout is of no use any more."""
        self.closed = True
        if not isinstance(trouble, BrokenPipeError):
            self.sentence(f"stdout cannot be written to: {trouble.strerror}")

    def _write(self, text: str) -> None:
        text = text.translate(_CONTROL)  # a file's cell could hold a terminal's commands
        if self.console is not None and self._through_console:  # above what it draws
            self.console.print(text, markup=False, soft_wrap=True)
        elif not self.closed and (trouble := _write(sys.stdout, text)) is not None:
            self._note(trouble)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _write(stream: TextIO | None, text: str) -> OSError | None:
    """Write a line, or return why that is not possible."""
    if stream is None:  # the process was started without it
        return BrokenPipeError()
    try:
        print(text, file=stream, flush=True)
    except OSError as exc:
        _abandon(stream)
        return exc
    return None


def _abandon(stream: TextIO) -> None:
    """Let what is still to be written to a broken stream go nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), stream.fileno())
