"""A campaign whose process is killed again and again, and what the server's ledger says."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import attrs

from smsid_async.bulk import JobSummary, summarise
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

PLACES = 50  # requests that the command lets be under way
LATENCY = (0.0, 0.05)  # seconds that the server takes to answer
EARLY = 0.15  # of the kills come before a message is sent
STARTING = 0.8  # seconds
LONGEST = 60.0  # seconds that one run may take
INTENTS = "SELECT row FROM entries WHERE state = 'intent'"
MAIN = "from smsid_async.cli import main; main()"


@attrs.define
class Toll:
    """What a campaign came to."""

    messages: int
    kills: int = 0
    doubts: list[int] = attrs.Factory(list)  # intents that each kill left
    in_doubt: set[int] = attrs.field(factory=set, repr=False)
    doubles: int = 0
    damaged: int = 0
    lost: int = 0  # told as sent, and not in the ledger
    unreported: int = 0  # rows without an outcome
    summary: JobSummary | None = None
    exit_code: int | None = None

    @property
    def unknown(self) -> int:
        return 0 if self.summary is None else self.summary.unknown

    @property
    def faults(self) -> dict[str, object]:
        found: dict[str, object] = {
            "messages that came twice": self.doubles,
            "messages that are lost": self.lost,
            "rows without an outcome": self.unreported,
            "damaged journals": self.damaged,
            "more in doubt than in flight": [n for n in self.doubts if n > PLACES],
            "doubts that no kill explains": self.unknown > sum(self.doubts),
            "a wrong exit code": self.exit_code != (3 if self.unknown else 0),
        }
        return {name: what for name, what in found.items() if what}


async def campaign(
    folder: Path, *, messages: int, kills: int, seed: int, mutation: str = ""
) -> Toll:
    """Send a file with `smsid bulk run`, killed up to `kills` times, and once to its end.

    Args:
        folder: For the file and its journal.
        messages: Rows of the file.
        kills: At the most; it may be done sooner.
        seed: Of when it is killed.
        mutation: Python code that breaks the package in the command's process.
    """
    draw = random.Random(seed)
    toll = Toll(messages)
    file, journal = folder / "list.csv", folder / "list.journal"
    rows = "".join(f"+4477009{number:05d},Text {number}\n" for number in range(messages))
    file.write_text("to,message\n" + rows)
    async with Sandbox(
        limit=None, latency=lambda: draw.uniform(*LATENCY), balance=10**6
    ) as sandbox:
        command = _command(file, journal, mutation)
        while toll.kills < kills and (done := len(sandbox.messages)) < messages:
            share = (messages - done) // (kills - toll.kills + 1)
            target = done + draw.randrange(max(1, share - PLACES))  # the rest is in flight then
            if not await _run_until_killed(command, sandbox, target, draw):
                break
            toll.kills += 1
            if journal.exists():
                _look(journal, toll)
        toll.exit_code = await _run_to_its_end(command, sandbox)
        _count(journal, sandbox, toll)
    return toll


def _command(file: Path, journal: Path, mutation: str) -> list[str]:
    code = f"{mutation}\n{MAIN}"
    run = ["bulk", "run", str(file), "--journal", str(journal)]
    return [sys.executable, "-c", code, "--budget", "1000000/1", *run]


async def _start(command: list[str], sandbox: Sandbox) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        env={"SMSID_API_KEY": "test", "SMSID_BASE_URL": sandbox.url},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def _run_until_killed(
    command: list[str], sandbox: Sandbox, target: int, draw: random.Random
) -> bool:
    """Kill a run, mostly once the ledger has `target` messages; False if it ended before."""
    process = await _start(command, sandbox)
    ended = asyncio.ensure_future(process.communicate())
    if draw.random() < EARLY:  # while it starts, opens its journal or reads its file
        await asyncio.wait([ended], timeout=draw.uniform(0, STARTING))
    else:
        while len(sandbox.messages) <= target and not ended.done():
            await asyncio.wait([ended], timeout=0.002)
        await asyncio.wait([ended], timeout=draw.uniform(0, LATENCY[1]))
    if ended.done():
        return False
    process.send_signal(signal.SIGKILL)
    await ended
    return True


async def _run_to_its_end(command: list[str], sandbox: Sandbox) -> int | None:
    process = await _start(command, sandbox)
    _, errors = await asyncio.wait_for(process.communicate(), LONGEST)
    assert b"Traceback" not in errors, errors.decode()
    return process.returncode


def _look(journal: Path, toll: Toll) -> None:
    """Note what a kill left behind."""
    with closing(sqlite3.connect(journal)) as file:
        (verdict,) = file.execute("PRAGMA integrity_check").fetchone()
        toll.damaged += verdict != "ok"
        (tables,) = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables:
            left = {row for (row,) in file.execute(INTENTS)}
            toll.doubts.append(len(left - toll.in_doubt))
            toll.in_doubt |= left


def _count(journal: Path, sandbox: Sandbox, toll: Toll) -> None:
    ledger = Counter(message.text for message in sandbox.messages)
    toll.doubles = sum(times > 1 for times in ledger.values())
    toll.summary = summarise(journal)
    with closing(sqlite3.connect(journal)) as file:
        states = dict(file.execute("SELECT row, state FROM entries").fetchall())
    assert len(states) == toll.messages
    toll.unreported = sum(state not in ("sent", "unknown") for state in states.values())
    toll.lost = sum(
        state == "sent" and f"Text {row}" not in ledger for row, state in states.items()
    )
