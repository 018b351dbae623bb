"""A bulk job of a million rows: memory, speed, and how soon a resumed run sends again.

    python benchmarks/million_rows.py [--rows 1000000] [--small 10000] [--send 20000]

(a) prepares a CSV of `--small` rows and one of `--rows`, each in a process of its own;
(b) sends `--send` rows to a lean server in another process, without a rate limit, with
the journal and without one;
(c) resumes the large job with all rows but the last one done;
(d) resumes it with none left.
For (c) the rows are called done by one UPDATE of the journal's file, unless `--send` is
`--rows`, when they have really been sent and the last one is called not sent.

Exits 1 if memory is not flat, a resumed run takes 5 s or more to its first send, or the
journal costs more than half of the speed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from smsid_async import RateBudget, SMSIDClient
from smsid_async.bulk import BulkJob, Row, Source

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FLAT = 1.2  # times the memory of the small job
SOON = 5.0  # seconds to the first send of a resumed run
HALF = 0.5  # of the speed without a journal


# -- the server ----------------------------------------------------------------


class Lean(asyncio.Protocol):
    """Answers every request with a success, and does nothing else."""

    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self._read) < end + 4 + length:
                return
            self._read = self._read[end + 4 + length :]
            Lean.answered += 1
            self._transport.write(success(Lean.answered))


def success(number: int) -> bytes:
    data = {"status": "success", "message_id": f"M{number}", "cost": "0.0400"}
    body = json.dumps({"meta": {"code": 200, "text": "OK"}, "data": data}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def serve(pipe: Connection) -> None:
    """Serve on a loopback port; say how much was answered whenever asked, None ends it."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Lean, "127.0.0.1", 0)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1")
        while await asyncio.to_thread(pipe.recv) is not None:
            pipe.send(Lean.answered)
        server.close()

    asyncio.run(main())


@attrs.frozen
class Server:
    """The server in its own process."""

    url: str
    pipe: Connection

    def answered(self) -> int:
        self.pipe.send("?")
        return self.pipe.recv()


@contextlib.contextmanager
def served() -> Iterator[Server]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    try:
        yield Server(ours.recv(), ours)
    finally:
        ours.send(None)
        process.join(10)
        process.kill()


# -- parts, each in a process of its own -----------------------------------------


async def prepare(client: SMSIDClient, path: str, journal: str) -> dict[str, float]:
    job = BulkJob(path, journal)
    began = time.perf_counter()
    prepared = await job.prepare(client)
    took = time.perf_counter() - began
    await job.aclose()
    return {"rows": prepared.to_send, "seconds": took}


async def send(client: SMSIDClient, path: str, journal: str) -> dict[str, float]:
    began, first, rows = time.perf_counter(), 0.0, 0
    async for _ in BulkJob(path, journal).run(client):
        rows += 1
        first = first or time.perf_counter() - began
    return {"rows": rows, "seconds": time.perf_counter() - began, "first": first}


async def send_plain(client: SMSIDClient, path: str, _: str) -> dict[str, float]:
    messages = (row.message for row in Source(path) if isinstance(row, Row))
    began, rows = time.perf_counter(), 0
    async for _result in client.sms.send_many(messages):
        rows += 1
    return {"rows": rows, "seconds": time.perf_counter() - began}


PARTS = {"prepare": prepare, "send": send, "send_plain": send_plain}


async def part(name: str, url: str, path: str, journal: str) -> dict[str, float]:
    async with SMSIDClient("test", base_url=url, budget=RateBudget.unlimited()) as client:
        found = await PARTS[name](client, path, journal)
    return found | {"peak": peak_memory()}


def peak_memory() -> float:
    """The most memory that this process has had, in MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def apart(name: str, *arguments: object) -> dict[str, float]:
    """Do one part in a fresh process."""
    command = [sys.executable, __file__, "--part", name, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


# -- the whole -------------------------------------------------------------------


def make(path: Path, rows: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["to", "message"])
        writer.writerows(
            (f"+447700900{row % 1000:03}", f"Hello, this is message {row}.") for row in range(rows)
        )
    return path


def call_done(journal: Path, rows: int, *, really: bool) -> None:
    """Make the journal look as after a run that sent all rows but the last."""
    done = (
        "UPDATE entries SET state = 'sent', message_id = 'M' || id, status = 'success', "
        "cost = '0.0400', process = 'earlier', intent_at = 1, ended_at = 1 WHERE row < ?"
    )
    undone = "UPDATE entries SET state = 'not_sent', message_id = NULL WHERE row = ?"
    with contextlib.closing(sqlite3.connect(journal)) as file, file:
        file.execute(undone if really else done, (rows - 1,))


def prepare_both(folder: Path, server: Server, given: argparse.Namespace) -> bool:
    print("(a) prepare         rows  seconds   rows/s  peak MB")
    peaks = []
    for rows in (given.small, given.rows):
        path = make(folder / f"{rows}.csv", rows)
        found = apart("prepare", server.url, path, folder / f"{rows}.journal")
        assert found["rows"] == rows
        peaks.append(found["peak"])
        speed = rows / found["seconds"]
        print(f"{rows:24,} {found['seconds']:8.2f} {speed:8,.0f} {found['peak']:8.1f}", flush=True)
    return not peaks[-1] > FLAT * peaks[0]


def send_both(folder: Path, server: Server, given: argparse.Namespace) -> bool:
    print("(b) send            rows  seconds   rows/s  peak MB")
    path = make(folder / "send.csv", given.send)
    speeds = []
    for name, words in (("send_plain", "without a journal"), ("send", "with the journal")):
        before = server.answered()
        found = apart(name, server.url, path, folder / "send.journal")
        assert found["rows"] == server.answered() - before == given.send
        speeds.append(given.send / found["seconds"])
        print(
            f"{words:17} {given.send:6,} {found['seconds']:8.2f} {speeds[-1]:8,.0f} "
            f"{found['peak']:8.1f}",
            flush=True,
        )
    print(f"with / without: {speeds[1] / speeds[0]:.2f}")
    return speeds[1] >= HALF * speeds[0]


def resume(folder: Path, server: Server, given: argparse.Namespace) -> bool:
    path, journal = folder / f"{given.rows}.csv", folder / f"{given.rows}.journal"
    really = given.send == given.rows
    how = "really been sent" if really else "been called done by an UPDATE of the journal's file"
    print(f"(c), (d) resume {given.rows:,} rows; all but the last have {how}")
    if really:
        path, journal = folder / "send.csv", folder / "send.journal"
    call_done(journal, given.rows, really=really)
    found = apart("send", server.url, path, journal)
    assert found["rows"] == 1
    print(f"(c) first send answered after {found['first']:.2f} s, peak {found['peak']:.1f} MB")
    none = apart("send", server.url, path, journal)
    assert none["rows"] == 0
    print(f"(d) nothing left: {none['seconds']:.2f} s, peak {none['peak']:.1f} MB")
    return found["first"] < SOON


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--send", type=int, default=20_000, help="rows for (b)")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(asyncio.run(part(*given.part))))
        return 0
    with tempfile.TemporaryDirectory() as folder, served() as server:
        checks = (prepare_both, send_both, resume)
        kept = [check(Path(folder), server, given) for check in checks]
    print("kept" if all(kept) else f"not kept: {kept}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
