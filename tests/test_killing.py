"""Killed at any moment and run again: no message goes out twice, none is lost unreported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from killing import campaign

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.heavy

NO_INTENT = """
from smsid_async import _entries, journal
async def nothing(self, claim): pass
journal.SQLiteJournal.intend = nothing
"""
TOO_EARLY = """
from smsid_async import SendReceipt, Outcome
from smsid_async.journal import SQLiteJournal
intend = SQLiteJournal.intend
async def too_early(self, claim):
    await intend(self, claim)
    import asyncio
    receipt = SendReceipt("M1", "success", None, None)
    await self.run(lambda file: _entries.record(
        file, claim.reference, Outcome.SENT,
        token=claim.token, receipt=receipt, why="", now=0.0))
    await asyncio.sleep(0.2)  # a kill mostly comes while it has not left yet
from smsid_async import _entries
SQLiteJournal.intend = too_early
"""


@pytest.mark.parametrize(
    ("kills", "messages"), [(20, 3_000), pytest.param(500, 70_000, marks=pytest.mark.long)]
)
async def test_a_campaign_survives_being_killed(kills: int, messages: int, tmp_path: Path) -> None:
    toll = await campaign(tmp_path, messages=messages, kills=kills, seed=kills)
    print(f"{toll.kills} kills, {toll.messages} messages, {toll.unknown} unknown: {toll}")
    assert toll.faults == {}
    assert toll.kills >= 0.9 * kills
    assert toll.unknown == sum(toll.doubts) > 0


async def test_without_the_intent_messages_come_twice(tmp_path: Path) -> None:
    toll = await campaign(tmp_path, messages=300, kills=4, seed=1, mutation=NO_INTENT)
    assert toll.doubles > 0


async def test_with_the_outcome_before_the_answer_messages_are_lost(tmp_path: Path) -> None:
    toll = await campaign(tmp_path, messages=300, kills=6, seed=1, mutation=TOO_EARLY)
    assert toll.lost > 0
