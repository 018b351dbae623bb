"""The journal's file: group commits off the event loop, faults of the disk, one process."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from full_disk import FakeDisk, look

from smsid_async import ConfigurationError, JournalUnavailableError, ValidationError
from smsid_async._sqlite import Store, leave, read_only, store_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    Work = Callable[[sqlite3.Connection], object]


def prepare(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS notes (word TEXT NOT NULL)")


def add(word: str) -> Work:
    return lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (word,)).rowcount


def count(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT count(*) FROM notes").fetchone()[0]


def words(path: Path) -> list[str]:
    connection = look(path)
    found = [word for (word,) in connection.execute("SELECT word FROM notes ORDER BY rowid")]
    connection.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    return FakeDisk().install(monkeypatch)


@pytest.fixture
async def store(path: Path, disk: FakeDisk) -> AsyncIterator[Store]:
    opened = store_at(path, prepare)
    await opened.submit(count)
    disk.commits = 0
    yield opened
    leave(opened)
    await asyncio.to_thread(opened.join)


# -- commits -------------------------------------------------------------------


async def test_work_is_durable_when_its_future_is_done(store: Store, path: Path) -> None:
    assert await store.submit(add("one")) == 1
    assert words(path) == ["one"]
    assert await store.submit(count) == 1


async def test_what_gathers_during_a_commit_is_the_next_commit(
    store: Store, disk: FakeDisk, path: Path
) -> None:
    with disk.held():
        first = store.submit(add("first"))
        await disk.reached()
        others = [store.submit(add(str(number))) for number in range(300)]
    await asyncio.gather(first, *others)
    assert disk.commits == 2
    assert words(path) == ["first", *map(str, range(300))]  # in the order it was asked for


async def test_a_commit_does_not_grow_without_end(store: Store, disk: FakeDisk) -> None:
    with disk.held():
        futures = [store.submit(add("first"))]
        await disk.reached()
        futures += [store.submit(add("more")) for _ in range(1000)]
    await asyncio.gather(*futures)
    assert disk.commits == 3


async def test_the_loop_goes_on_while_the_disk_does_not(store: Store, disk: FakeDisk) -> None:
    with disk.held():
        slow = store.submit(add("slow"))
        await disk.reached()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not slow.done()
        assert disk.commits == 0
    await slow


async def test_a_cancelled_wait_takes_nothing_back(
    store: Store, disk: FakeDisk, path: Path
) -> None:
    with disk.held():
        slow = store.submit(add("slow"))
        await disk.reached()
        slow.cancel()
    await store.submit(count)
    assert words(path) == ["slow"]


async def test_an_error_of_ours_is_the_result_of_its_own_work_only(
    store: Store, disk: FakeDisk, path: Path
) -> None:
    def refuse(_: sqlite3.Connection) -> None:
        raise ValidationError("no")

    with disk.held():
        first = store.submit(count)
        await disk.reached()
        results = [store.submit(work) for work in (add("a"), refuse, add("b"))]
    await first
    found = await asyncio.gather(*results, return_exceptions=True)
    assert [type(each) for each in found] == [int, ValidationError, int]
    assert words(path) == ["a", "b"]


async def test_a_value_that_the_file_cannot_hold_spoils_no_other_work(
    store: Store, path: Path
) -> None:
    for again in (False, True):
        with pytest.raises(JournalUnavailableError):
            await store.submit(add("\ud800"), again=again)
    await store.submit(add("good"))
    assert words(path) == ["good"]


def test_work_for_a_loop_that_was_closed_is_done_all_the_same(path: Path, disk: FakeDisk) -> None:
    shared = store_at(path, prepare)

    async def submit_and_go() -> None:
        with disk.held():
            shared.submit(add("left behind"))
            await disk.reached()

    asyncio.run(submit_and_go())
    assert asyncio.run(_done(shared, count)) == 1
    leave(shared)
    shared.join()


async def _done(store: Store, work: Work) -> object:
    return await store.submit(work)


def test_loops_of_several_threads_share_a_store(path: Path) -> None:
    shared = store_at(path, prepare)

    async def add_many(name: int) -> None:
        await asyncio.gather(*(shared.submit(add(f"{name}-{index}")) for index in range(50)))

    threads = [threading.Thread(target=asyncio.run, args=(add_many(name),)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(words(path))) == 200
    leave(shared)
    shared.join()


# -- faults --------------------------------------------------------------------

FAULTS = {
    "the commit": ("disk I/O error", "COMMIT"),
    "the begin": ("database is locked", "BEGIN"),
    "the write": ("database or disk is full", "INSERT"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_is_told_and_leaves_nothing_behind(
    store: Store, disk: FakeDisk, path: Path, fault: tuple[str, str]
) -> None:
    with disk.broken(*fault):
        with pytest.raises(JournalUnavailableError, match=fault[0]) as caught:
            await store.submit(add("lost"))
    assert not caught.value.maybe_sent
    await store.submit(add("kept"))
    assert words(path) == ["kept"]


async def test_all_who_share_a_failed_commit_are_told(store: Store, disk: FakeDisk) -> None:
    with disk.held():
        first = store.submit(count)
        await disk.reached()
        others = [store.submit(add(str(number))) for number in range(5)]
        disk.fault = "disk I/O error"
    found = await asyncio.gather(first, *others, return_exceptions=True)
    disk.fault = None
    assert {type(error) for error in found[1:]} == {JournalUnavailableError}
    assert len({id(error) for error in found[1:]}) == 5  # a traceback is written into each
    assert await store.submit(count) == 0


async def test_what_has_happened_already_is_written_with_the_next_commit(
    store: Store, disk: FakeDisk, path: Path
) -> None:
    with disk.broken():
        for word, again in (("one", True), ("not again", False), ("two", True)):
            with pytest.raises(JournalUnavailableError):
                await store.submit(add(word), again=again)
    await store.submit(add("three"))
    assert words(path) == ["one", "two", "three"]


async def test_what_has_happened_already_is_written_at_the_end(path: Path, disk: FakeDisk) -> None:
    store = store_at(path, prepare)
    with disk.broken():
        with pytest.raises(JournalUnavailableError):
            await store.submit(add("outcome"), again=True)
    leave(store)
    await asyncio.to_thread(store.join)
    assert words(path) == ["outcome"]


async def test_a_file_that_may_not_grow_is_full_until_it_may(path: Path) -> None:
    store = store_at(path, prepare)
    pages = await store.submit(lambda file: file.execute("PRAGMA page_count").fetchone()[0])
    await store.submit(lambda file: file.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(JournalUnavailableError, match="database or disk is full"):
        await store.submit(add("x" * 100_000))
    await store.submit(lambda file: file.execute("PRAGMA max_page_count = 100000").fetchone())
    assert await store.submit(add("x" * 100_000)) == 1
    leave(store)
    await asyncio.to_thread(store.join)


async def test_a_file_that_cannot_be_opened_refuses_all_its_work(tmp_path: Path) -> None:
    store = store_at(tmp_path / "missing" / "notes.db", prepare)
    for _ in range(2):
        with pytest.raises(JournalUnavailableError, match="No such file"):
            await store.submit(count)
    assert not store.usable
    leave(store)
    await asyncio.to_thread(store.join)


async def test_a_file_that_could_not_be_opened_is_tried_anew(tmp_path: Path) -> None:
    path = tmp_path / "later" / "notes.db"
    broken = store_at(path, prepare)
    with pytest.raises(JournalUnavailableError):
        await broken.submit(count)
    path.parent.mkdir()
    works = store_at(path, prepare)
    assert await works.submit(count) == 0
    for store in (broken, works):
        assert leave(store)
        await asyncio.to_thread(store.join)


GONE: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("moved.db")),
    "replaced": lambda path: (
        path.with_name("new.db").write_bytes(path.read_bytes())
        and path.with_name("new.db").replace(path)
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody do that")
@pytest.mark.parametrize("change", GONE.values(), ids=GONE.keys())
async def test_nothing_is_written_to_a_file_that_is_not_there_any_more(
    store: Store, path: Path, change: Callable[[Path], object]
) -> None:
    change(path)
    with pytest.raises(JournalUnavailableError):
        await store.submit(add("lost"))


# -- the file ------------------------------------------------------------------


async def test_only_its_owner_may_read_it(store: Store, path: Path) -> None:
    await store.submit(add("one"))
    names = {each.name for each in path.parent.iterdir()}
    assert names == {"notes.db", "notes.db-wal", "notes.db-shm", "notes.db.lock"}
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


async def test_a_commit_is_on_the_disk_and_not_only_with_the_kernel(store: Store) -> None:
    def settings(file: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous")
        return [file.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await store.submit(settings) == ["wal", 2]


async def test_it_can_be_read_while_it_is_written(store: Store, path: Path) -> None:
    await store.submit(add("one"))
    reader = read_only(path)
    assert count(reader) == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO notes VALUES ('no')")
    reader.close()
    await store.submit(add("two"))


def test_a_file_that_is_not_there_cannot_be_read(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_only(path)
    assert not path.exists()


# -- one process at a time -----------------------------------------------------


async def test_all_who_name_a_file_share_its_store(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    first, second = store_at(path, prepare), store_at(link, prepare)
    assert first is second
    assert not leave(first)
    assert await second.submit(count) == 0
    assert leave(second)
    await asyncio.to_thread(second.join)
    third = store_at(path, prepare)
    assert third is not first
    assert leave(third)
    await asyncio.to_thread(third.join)


HOLD = """
import asyncio, pathlib, sys
from smsid_async._sqlite import store_at

async def main():
    await store_at(pathlib.Path(sys.argv[1]), lambda file: None).submit(lambda file: None)
    print("ready", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def other_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


ENDS: dict[str, Callable[[subprocess.Popen[bytes]], object]] = {
    "ended": lambda process: process.communicate(),
    "killed": lambda process: process.kill(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
async def test_a_second_process_is_refused_until_the_first_has_ended(
    path: Path, other_process: subprocess.Popen[bytes], end: Callable[..., object]
) -> None:
    refused = store_at(path, prepare)
    with pytest.raises(ConfigurationError, match=f"another process .*{other_process.pid}"):
        await refused.submit(count)
    end(other_process)
    other_process.wait()
    works = store_at(path, prepare)
    assert await works.submit(count) == 0
    for store in (refused, works):
        leave(store)
        await asyncio.to_thread(store.join)


FORK = """
import asyncio, os, pathlib, sys
from smsid_async import ConfigurationError
from smsid_async._sqlite import leave, store_at

path = pathlib.Path(sys.argv[1])
prepare = lambda file: file.execute("CREATE TABLE IF NOT EXISTS notes (word TEXT)")
work = lambda file: file.execute("INSERT INTO notes VALUES ('one')").rowcount

async def use(store):
    return await store.submit(work)

parent = store_at(path, prepare)
asyncio.run(use(parent))
if (child := os.fork()) == 0:
    try:
        assert not parent.usable
        asyncio.run(use(store_at(path, prepare)))
    except ConfigurationError as error:
        os._exit(7 if str(os.getppid()) in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert asyncio.run(use(parent)) == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_is_refused_and_its_parent_goes_on(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, path],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert words(path) == ["one", "one"]


ORPHAN = """
import asyncio, os, pathlib, sys
from smsid_async._sqlite import store_at

async def use(store):
    return await store.submit(lambda file: None)

asyncio.run(use(store_at(pathlib.Path(sys.argv[1]), lambda file: None)))
if os.fork() == 0:
    sys.stdin.read()  # outlives its parent
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_forked_child_does_not_keep_its_parents_file(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ORPHAN, path],
        stdin=subprocess.PIPE,
    ) as parent:
        assert parent.wait(60) == 0
        store = store_at(path, lambda _: None)
        assert await store.submit(lambda _: 1) == 1
        assert leave(store)
        store.join()


LIMITED = """
import asyncio, pathlib, resource, signal, sys
from smsid_async import JournalUnavailableError
from smsid_async._sqlite import store_at

path = pathlib.Path(sys.argv[1])
prepare = lambda file: file.execute("CREATE TABLE IF NOT EXISTS notes (word TEXT)")
add = lambda size: lambda file: file.execute("INSERT INTO notes VALUES (?)", ("x" * size,)).rowcount

async def main():
    store = store_at(path, prepare)
    assert await store.submit(add(1)) == 1
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        await store.submit(add(1_000_000))
    except JournalUnavailableError as error:
        assert "so this was not sent" in str(error)
    else:
        raise SystemExit("the limit did not hold")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert await store.submit(add(2)) == 1

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on files here")
def test_a_write_that_the_kernel_refuses_is_told_and_passes(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(map(len, words(path))) == [1, 2]
    connection = look(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_a_store_that_was_closed_refuses_work_and_nobody_hangs(path: Path) -> None:
    store = store_at(path, lambda _: None)
    assert leave(store)
    with pytest.raises(JournalUnavailableError, match="was closed meanwhile"):
        await store.submit(lambda _: None)
    store.join()


async def test_a_symbolic_link_is_the_same_file(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    store = store_at(path, lambda file: file.execute("CREATE TABLE IF NOT EXISTS t (x)"))
    assert store_at(link, lambda _: None) is store
    await store.submit(lambda file: file.execute("INSERT INTO t VALUES (1)").rowcount)
    reading = read_only(link)
    assert reading.execute("SELECT x FROM t").fetchall() == [(1,)]  # still in the log only
    reading.close()
    assert not leave(store)
    assert leave(store)
    store.join()
    store = store_at(link, lambda _: None)
    await store.submit(lambda _: None)
    assert (tmp_path / f"{path.name}.lock").exists()
    assert not (tmp_path / "link.db.lock").exists()
    assert leave(store)
    store.join()
