"""A disk that is held back, full or broken when a test says so, under the journal's own code."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

look = sqlite3.connect  # a plain connection, whatever a test has put in its place


class FakeDisk:
    """What every SQLite connection meets that is opened after `install`.

    Attributes:
        commits: How many went well.
        slowness: Seconds that each takes, beside what it takes anyway.
        fault: What a statement of `fails_on` raises, None while all is well.
        fails_on: How the statements begin that fail.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.slowness = 0.0
        self.fault: str | None = None
        self.fails_on: tuple[str, ...] = ("COMMIT",)
        self._before = threading.Event()
        self._after = threading.Event()
        self._reached = threading.Event()
        self._before.set()
        self._after.set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
        """Let new connections come to this disk."""

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = look(*arguments, factory=_Connection, **options)
            connection.disk = self
            connection.disk = self
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect)
        return self

    @contextmanager
    def held(self, *, committed: bool = False) -> Iterator[None]:
        """Hold commits back: before they are made, or before anybody is told of them."""
        gate = self._after if committed else self._before
        self._reached.clear()
        gate.clear()
        try:
            yield
        finally:
            gate.set()

    async def reached(self) -> None:
        """Wait until a commit is held back."""
        assert await asyncio.to_thread(self._reached.wait, 10)

    @contextmanager
    def broken(self, fault: str = "disk I/O error", *fails_on: str) -> Iterator[None]:
        """Let these statements fail, commits if none is given."""
        self.fault, self.fails_on = fault, fails_on or ("COMMIT",)
        try:
            yield
        finally:
            self.fault = None

    def execute(self, connection: _Connection, sql: str, values: Any) -> sqlite3.Cursor:
        if self.fault is not None and sql.startswith(self.fails_on):
            raise sqlite3.OperationalError(self.fault)
        if sql != "COMMIT":
            return connection.run(sql, values)
        self._wait_at(self._before)
        time.sleep(self.slowness)
        cursor = connection.run(sql, values)
        self.commits += 1
        self._wait_at(self._after)
        return cursor

    def _wait_at(self, gate: threading.Event) -> None:
        if not gate.is_set():
            self._reached.set()
            assert gate.wait(30)


class _Connection(sqlite3.Connection):
    """Asks its disk before every statement."""

    disk: FakeDisk

    def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
        return self.disk.execute(self, sql, values)

    def run(self, sql: str, values: Any) -> sqlite3.Cursor:
        return super().execute(sql, values)


def states(path: object) -> dict[str, str]:
    """Read the state of every reference, as another program would see it now."""
    connection = look(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT reference, state FROM entries"))
    finally:
        connection.close()
