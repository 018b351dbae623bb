"""The HTTP clients that we own: one connection each, lent, kept for a while, and closed."""

from __future__ import annotations

import asyncio

import pytest
from conftest import NUMBER
from test_http import OwnBudget
from wire import SENT, Arrival, RawServer, answer, reset

from smsid_async import OutcomeUnknownError, RateBudget, SMSIDClient
from smsid_async._connections import Connections


def open_client(url: str, budget: object = None) -> SMSIDClient:
    return SMSIDClient("test", base_url=url, budget=budget or RateBudget.unlimited())  # type: ignore[arg-type]


def free(client: SMSIDClient) -> int:
    connections = client._pipeline._connections
    assert connections is not None
    return len(connections._free)


async def test_as_many_connections_as_sends_at_once_and_each_is_used_again() -> None:
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        for _ in range(3):
            await asyncio.gather(*(client.sms.send(NUMBER, "Hello") for _ in range(5)))
        assert free(client) == server.connections == 5


async def test_a_client_whose_exchange_broke_is_not_used_again() -> None:
    async with RawServer(reset, answer(200, SENT)) as server, open_client(server.url) as client:
        with pytest.raises(OutcomeUnknownError):
            await client.sms.send(NUMBER, "Hello")
        assert free(client) == 0
        await client.sms.send(NUMBER, "Hello")
        assert free(client) == 1


@pytest.mark.looptime
async def test_idle_connections_are_closed_before_the_server_does() -> None:
    async with RawServer(answer(200, SENT)) as server, open_client(server.url) as client:
        await asyncio.gather(*(client.sms.send(NUMBER, "Hello") for _ in range(5)))
        await asyncio.sleep(3)
        await client.sms.send(NUMBER, "Hello")
        assert free(client) == 1


async def test_no_cookie_is_kept() -> None:
    cookies = [f"Set-Cookie: name{number}=value; Path=/" for number in range(100)]
    async with RawServer(answer(200, SENT, *cookies)) as server:
        async with open_client(server.url) as client:
            await client.sms.send(NUMBER, "Hello")
            await client.sms.send(NUMBER, "Hello")
            connections = client._pipeline._connections
            assert connections is not None
            assert len(connections._free[0][0].cookies.jar) == 0
        assert "cookie" not in server.ledger[1].headers


async def test_a_budget_that_lets_everybody_go_still_opens_fifty_connections_at_most() -> None:
    gate = asyncio.Event()

    async def slow(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(200, SENT)(arrival, writer)

    async with RawServer(slow) as server:
        async with open_client(server.url, OwnBudget()) as client:
            calls = [asyncio.create_task(client.sms.send(NUMBER, "Hello")) for _ in range(60)]
            while len(server.ledger) < 50:
                await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            assert server.connections == 50
            gate.set()
            await asyncio.gather(*calls)
        assert server.connections == 50
        assert len(server.ledger) == 60


async def test_connections_of_another_loop_are_left_to_it() -> None:
    other = asyncio.new_event_loop()
    try:
        connections = Connections(other, places=1, loopback=True)
        await connections.aclose()
        assert not connections.over
    finally:
        other.close()
