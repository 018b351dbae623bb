"""The fault matrix as a table, and six of its rows beside Twilio's and Telnyx's async clients.

    pip install -e '.[dev]' twilio telnyx aiohttp-retry
    python benchmarks/faults.py [--rows WORDS] [--markdown]

Every row runs on real sockets, as in the tests. Prints for each the requests that the
server counted, the attempts, the error, its `maybe_sent`, and how many of 20 ordinary sends
by the same client went well afterwards. Without the two packages their part is left out.
Exits 1 if a row is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from faults import (
    AFTERWARDS,
    LONGEST,
    ROWS,
    SHORT,
    Server,
    Watch,
    World,
    duplicates,
    open_client,
    problems,
    run,
)
from wire import SENT, answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from faults import Result, Row
    from wire import Script

SIX = ("reset after the body was read", "close without an answer", "hang", "503")
SIX += ("200 with a page", "429")
NUMBER, SENDER = "+447700900123", "+447700900124"


def show(table: list[tuple[str, ...]], *, markdown: bool) -> None:
    """Print rows, the first of them a header, in columns."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip())
        if number == 0:
            rules = ["-" * width for width in widths]
            print(f"| {' | '.join(rules)} |" if markdown else "  ".join(rules))


# -- the matrix ----------------------------------------------------------------


def line(row: Row, result: Result) -> tuple[str, ...]:
    error = result.error
    return (
        row.name,
        f"{result.posts}" + (f" ({row.refused} refused)" if row.refused else ""),
        str(result.attempts),
        "-" if error is None else type(error).__name__,
        "-" if error is None else str(error.maybe_sent),
        f"{result.afterwards}/{AFTERWARDS}",
    )


async def matrix(words: str, *, markdown: bool) -> bool:
    rows = [row for row in ROWS if words in row.name]
    table = [("row", "counted", "attempts", "error", "maybe_sent", "sends afterwards")]
    posts = twice = 0
    wrong: list[str] = []
    for row in rows:
        try:
            result = await run(row)
        except Exception as error:  # noqa: BLE001 - the table shows every row
            table.append((row.name, "?", "?", type(error).__name__, "?", f"?/{AFTERWARDS}"))
            wrong.append(f"{row.name}: {type(error).__name__}: {error}")
            continue
        table.append(line(row, result))
        posts += 0 if row.read else result.posts
        twice += duplicates(row, result)
        wrong += [f"{row.name}: {problem}" for problem in problems(row, result)]
    show(table, markdown=markdown)
    print(f"\n{len(rows)} rows, {posts} POSTs counted, {twice} duplicates")
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return not wrong


# -- beside others -------------------------------------------------------------


async def ours(url: str) -> None:
    world = World(None, url, [])  # type: ignore[arg-type]  # only its URL is asked for
    async with open_client(world, Watch(), attempt_timeout=SHORT) as client:
        await client.sms.send(NUMBER, "Hello")


def twilio(**options: Any) -> Callable[[str], Awaitable[None]]:
    """Twilio's async client, with its own defaults or with these options."""

    async def send(url: str) -> None:
        from twilio.http.async_http_client import AsyncTwilioHttpClient  # noqa: PLC0415
        from twilio.rest import Client  # noqa: PLC0415

        class Redirected(AsyncTwilioHttpClient):
            """Replaces the host only: Twilio has no setting for it."""

            async def request(self, method: str, url_: str, *rest: Any, **more: Any) -> Any:
                here = url_.replace("https://api.twilio.com", url.removesuffix("/api/v1"))
                return await super().request(method, here, *rest, **more)

        async with Redirected(timeout=SHORT, **options) as http_client:
            client = Client("AC" + "0" * 32, "token", http_client=http_client)
            await client.messages.create_async(to=NUMBER, from_=SENDER, body="Hello")

    return send


async def telnyx(url: str) -> None:
    """Telnyx's client with its defaults, which are two retries."""
    from telnyx import AsyncTelnyx  # noqa: PLC0415 - all three may be absent

    async with AsyncTelnyx(api_key="key", base_url=url, timeout=SHORT) as client:
        await client.messages.send(to=NUMBER, from_=SENDER, text="Hello")


# What each API answers to a message that it accepts.
ACCEPTED: dict[str, Script] = {
    "smsid-async": answer(200, SENT),
    "Twilio": answer(201, {"sid": "SM1", "status": "queued"}, "Content-Type: application/json"),
    "Telnyx": answer(200, {"data": {"id": "M1"}}, "Content-Type: application/json"),
}

CLIENTS: dict[str, Callable[[str], Awaitable[None]]] = {
    "smsid-async": ours,
    "Twilio": twilio(),
    "Twilio, max_retries=3": twilio(max_retries=3),
    "Telnyx": telnyx,
}


async def post_once(row: Row, name: str) -> str:
    """Let one client send one message into a fault that lasts; a 429 ends with its row."""
    well = ACCEPTED[name.partition(",")[0]]
    scripts = (*row.scripts, well) if row.refused else row.scripts
    async with Server(*scripts) as server:
        try:
            async with asyncio.timeout(LONGEST):
                await CLIENTS[name](server.url)
            said = "success"
        except Exception as error:  # noqa: BLE001 - whatever they raise is the figure
            said = type(error).__name__
        return f"{len(server.ledger)}, {said}"


async def beside_others(*, markdown: bool) -> None:
    if not all(importlib.util.find_spec(name) for name in ("twilio", "telnyx", "aiohttp_retry")):
        print("\ntwilio, telnyx and aiohttp-retry are not installed: no comparison")
        return
    print("\nPOSTs that the server counted for one message, and what the caller was told:\n")
    table: list[tuple[str, ...]] = [("row", *CLIENTS)]
    for name in SIX:
        row = next(row for row in ROWS if row.name == name)
        table.append((name, *[await post_once(row, client) for client in CLIENTS]))
    show(table, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose names hold these words")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(handlers=[logging.NullHandler()])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)

    async def all_of_it() -> bool:
        well = await matrix(given.rows, markdown=given.markdown)
        await beside_others(markdown=given.markdown)
        return well

    raise SystemExit(0 if asyncio.run(all_of_it()) else 1)


if __name__ == "__main__":
    main()
