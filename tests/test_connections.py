"""The HTTP clients that we own: one connection each, lent, kept for a while, and closed."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from conftest import NUMBER
from test_http import OwnBudget
from wire import SENT, Arrival, RawServer, answer, ok, reset

from smsid_async import OutcomeUnknownError, RateBudget, SendReceipt, SMSIDClient
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


async def test_a_connection_with_more_on_it_is_lent_to_nobody_else() -> None:
    """Two calls over one connection of the caller's: the second waits for it in httpcore."""
    forged = answer(200, ok({"status": "success", "message_id": "FORGED"}))

    async def twice(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await answer(200, SENT)(arrival, writer)
        await forged(arrival, writer)

    async with (
        RawServer(twice, answer(200, SENT)) as server,
        httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as http_client,
        SMSIDClient(
            "test",
            base_url=server.url,
            budget=RateBudget.unlimited(),
            http_client=http_client,
        ) as client,
    ):
        receipts = await asyncio.gather(*(client.sms.send(NUMBER, "Hello") for _ in range(2)))
        assert [receipt.message_id for receipt in receipts] == ["M1", "M1"]
        assert len(server.ledger) == server.connections == 2


async def test_waiting_for_a_connection_takes_none_of_an_attempts_time() -> None:
    async def slow(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await answer(200, SENT)(arrival, writer)

    async with RawServer(slow) as server:
        budget = OwnBudget()
        async with SMSIDClient(
            "test", base_url=server.url, budget=budget, attempt_timeout=0.6
        ) as client:
            calls = (client.sms.send(NUMBER, "Hello") for _ in range(600))
            results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {SendReceipt}


@pytest.mark.parametrize("places", [None, "50", -1, 0, True])
async def test_a_budget_that_says_nonsense_about_its_places_works(places: object) -> None:
    budget = OwnBudget()
    budget.max_in_flight = places  # type: ignore[attr-defined]
    async with RawServer(answer(200, SENT)) as server:
        async with open_client(server.url, budget) as client:
            await client.sms.send(NUMBER, "Hello")


def test_a_client_of_a_loop_that_is_gone_is_not_said_to_be_open() -> None:
    loop = asyncio.new_event_loop()

    async def use() -> SMSIDClient:
        async with RawServer(answer(200, SENT)) as server:
            client = open_client(server.url)
            await client.sms.send(NUMBER, "Hello")
            return client

    client = loop.run_until_complete(use())
    assert client._pipeline.open_connections
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert not client._pipeline.open_connections
