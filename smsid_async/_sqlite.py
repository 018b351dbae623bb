"""One SQLite file, one writer thread: durable work in group commits, off the event loop.

All work is done by one connection in one thread, in the order it was asked for. What
gathers while a commit waits for the disk is the next commit. A lock beside the file
keeps a second process out; within a process all who name the same file share a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import queue
import sqlite3
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from smsid_async._claims import Claims
from smsid_async.errors import ConfigurationError, JournalUnavailableError, SMSIDError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Store", "leave", "read_only", "store_at"]

_T = TypeVar("_T")

_MOST_AT_ONCE = 512  # pieces of work in one commit
_BUSY = 5.0  # seconds to wait for a reader of another process that is in the way

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a commit is on the disk, not only with the kernel
)


@attrs.frozen(eq=False)
class _Job:
    """One piece of work, and who waits for it."""

    work: Callable[[sqlite3.Connection], Any]
    again: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Store:
    """An SQLite file that this process alone works on.

    Attributes:
        claims: Which references of it calls of this process hold.
        users: How many share it.
        broken: Whether the file could not be opened, so that nothing can be done.

    Args:
        path: The file; made if there is none, for its owner's eyes only.
        prepare: Is called with the connection when the file has been opened, in the
            store's thread; makes the tables.
        after: The store that had the file before, and is being closed.
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        *,
        after: Store | None = None,
    ) -> None:
        self.path = path
        self.closed = False
        self._gate = threading.RLock()  # a journal may be collected, and leave, in between
        self._after = after
        self.claims = Claims()
        self.users = 0
        self.broken = False
        self._process = os.getpid()
        self._inode = 0
        self._prepare = prepare
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unwritten: list[Callable[[sqlite3.Connection], Any]] = []
        self._thread = threading.Thread(target=self._live, name="smsid journal", daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[sqlite3.Connection], _T], *, again: bool = False
    ) -> asyncio.Future[_T]:
        """Do some work on the file and commit it.

        Args:
            work: Called with the connection, in the store's thread.
            again: Whether to do it with the next commit if this one fails: it tells
                what has happened already.

        Returns:
            A future of its result, done once that is durable. It raises
            `JournalUnavailableError` if the file cannot be written, and
            `ConfigurationError` if it cannot be used at all. Cancelling it takes
            nothing back.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        with self._gate:
            if not self.closed:
                self._jobs.put(_Job(work, again, loop, future))
                return future
        future.set_exception(JournalUnavailableError("the journal was closed meanwhile"))
        return future

    @property
    def usable(self) -> bool:
        """Whether its thread works here: the file was opened, and not in a parent process."""
        return not (self.broken or self.closed) and self._process == os.getpid()

    def close(self) -> None:
        """Let the thread finish what it has been given, close the file and end."""
        with self._gate:
            self.closed = True
            self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    # -- in the thread ---------------------------------------------------------

    def _live(self) -> None:
        if self._after is not None and self._after.closed:
            self._after.join()
        self._after = None
        self._serve()
        _forget(self)

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                connection = self._open(stack)
            except SMSIDError as error:
                stack.close()  # the next store may have better luck
                self._refuse_all(error)
                return
            while (batch := self._next_batch()) is not None:
                self._do(connection, batch)
            if self._unwritten:
                self._do(connection, [])

    def _open(self, stack: contextlib.ExitStack) -> sqlite3.Connection:
        with _told(self.path):
            stack.enter_context(_lock(self.path))
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = stack.enter_context(
                contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None))
            )
            self._inode = self.path.stat().st_ino
            self._prepare(connection)  # first, so that no other program's file is changed
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            return connection

    def _next_batch(self) -> list[_Job] | None:
        """Wait for work, and take with it all that has gathered; None at the end."""
        job = self._jobs.get()
        if job is None:
            return None
        batch = [job]
        with contextlib.suppress(queue.Empty):
            while len(batch) < _MOST_AT_ONCE:
                job = self._jobs.get_nowait()
                if job is None:
                    self._jobs.put(None)
                    break
                batch.append(job)
        return batch

    def _do(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        unwritten, self._unwritten = self._unwritten, []
        try:
            with _told(self.path), _transaction(connection):
                self._check_in_place()
                for work in unwritten:
                    _outcome_of(work, connection)
                results = [_outcome_of(job.work, connection) for job in batch]
        except SMSIDError as error:
            self._unwritten = [*unwritten, *(job.work for job in batch if job.again)]
            results = [(None, _again(error)) for _ in batch]
        _deliver(list(zip(batch, results, strict=True)))

    def _check_in_place(self) -> None:
        """Refuse to write into a file that has gone: nobody would find it again."""
        if self.path.stat().st_ino != self._inode:
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place")

    def _refuse_all(self, error: SMSIDError) -> None:
        self.broken = True
        while (batch := self._next_batch()) is not None:
            _deliver([(job, (None, _again(error))) for job in batch])


def _outcome_of(
    work: Callable[[sqlite3.Connection], Any], connection: sqlite3.Connection
) -> tuple[Any, SMSIDError | None]:
    """Do one job; only a fault of the file ends the transaction and with it the others."""
    try:
        return work(connection), None
    except SMSIDError as error:
        return None, error
    except (sqlite3.Error, OSError):
        raise
    except Exception as exc:  # noqa: BLE001 - a value that SQLite cannot hold, say
        return None, JournalUnavailableError(f"the journal cannot hold this ({type(exc).__name__})")


def _again(error: SMSIDError) -> SMSIDError:
    """Return the same error anew, for each who is to raise it."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied


def _deliver(results: list[tuple[_Job, tuple[Any, SMSIDError | None]]]) -> None:
    """Tell each loop the results of its jobs, with one call into it."""
    for loop in {job.loop for job, _ in results}:
        own = [(job.future, *result) for job, result in results if job.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, own)


def _settle(results: list[tuple[asyncio.Future[Any], Any, SMSIDError | None]]) -> None:
    for future, result, error in results:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # it may be rolled back already
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into a sentence; the thread must live on."""
    try:
        yield
    except SMSIDError:
        raise
    except Exception as exc:
        raise JournalUnavailableError(
            f"the journal {path} cannot be written ({_reason(exc)}), so this was not sent; "
            "mend the disk or the file's permissions, or name another journal"
        ) from exc


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) if isinstance(exc, sqlite3.Error) else type(exc).__name__


# -- one process at a time -------------------------------------------------------


_locks: set[int] = set()  # their open files


def _leave_locks_to_parent() -> None:  # pragma: no cover - runs in forks, unmeasured
    """Close them in a forked child, which would else keep them when its parent has ended."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no forks
    os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes out for as long as this one lives, or until the end."""
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    _locks.add(descriptor)
    try:
        _lock_file(descriptor, path)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _lock_file(descriptor: int, path: Path) -> None:
    try:
        if sys.platform == "win32":  # pragma: no cover - only Windows takes this branch
            import msvcrt  # noqa: PLC0415

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - not on Windows

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as exc:
        owner = os.read(descriptor, 20).decode(errors="replace") or "unknown"
        raise ConfigurationError(
            f"the journal {path} is in use by another process (its ID: {owner}); "
            "one process at a time can send from a journal"
        ) from exc


_stores: dict[str, Store] = {}
_stores_lock = threading.RLock()  # a journal may be collected while we hold it


def store_at(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> Store:
    """Return this process's store for a file; all who ask for it share it.

    A fork asks anew, and finds the file locked by its parent.
    """
    key = os.path.realpath(path)
    with _stores_lock:
        store = _stores.get(key)
        if store is None or not store.usable:
            store = _stores[key] = Store(Path(key), prepare, after=store)
        store.users += 1
        return store


def leave(store: Store) -> bool:
    """Stop using a store; the last one to leave closes it, and is told so."""
    with _stores_lock:
        store.users -= 1
        if store.users:
            return False
    store.close()
    return True


def _forget(store: Store) -> None:
    with _stores_lock:
        for key in [key for key, value in _stores.items() if value is store]:
            del _stores[key]


def read_only(path: Path) -> sqlite3.Connection:
    """Open a file for reading only, beside whoever writes it.

    Raises:
        ConfigurationError: It is not there, or cannot be read.
    """
    path = Path(os.path.realpath(path))  # beside it stands the write-ahead log
    # Where nobody writes, reading must leave no files of its own behind.
    at_rest = "" if Path(f"{path}-wal").exists() else "&immutable=1"
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro{at_rest}"
        return sqlite3.connect(uri, uri=True, timeout=_BUSY)
    except sqlite3.Error as exc:
        raise ConfigurationError(f"the journal {path} cannot be read ({exc})") from exc
