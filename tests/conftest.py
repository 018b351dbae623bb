"""Fixtures that several test modules share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smsid_async import RateBudget, SMSIDClient
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# looptime asks for the current loop before every test, plain ones too; unless one was
# set, even to None, the policy makes a loop then that nobody closes.
asyncio.set_event_loop(None)

NUMBER = "+447700900123"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "API_SECRET", "BASE_URL", "SENDER_ID"):
        monkeypatch.delenv(f"SMSID_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(limit=None) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[SMSIDClient]:
    async with SMSIDClient("test", base_url=sandbox.url, budget=RateBudget.unlimited()) as opened:
        yield opened
