"""A raw server for answers that no well-behaved one gives, with a ledger of what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Self

from smsid_async.hooks import AttemptFinished, SlotGranted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smsid_async import Priority
    from smsid_async.hooks import Event, Hook

    Script = Callable[["Arrival", asyncio.StreamWriter], Awaitable[None]]


class Arrival:
    """One request as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body
        self.line = head.split(b"\r\n", 1)[0].decode("latin-1")
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (
                line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line
            )
        }


class RawServer:
    """Answers each request by the next script; the last one serves all further requests.

    `ledger` holds every request whose body was read whole.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.ledger: list[Arrival] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/api/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                arrival = Arrival(head.rstrip(b"\r\n"), await reader.readexactly(length))
                self.ledger.append(arrival)
                script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
                await script(arrival, writer)
        writer.close()


def answer(
    status: int, body: bytes | dict[str, object], *headers: str, reason: str = "Any"
) -> Script:
    """Answer properly, with a Content-Length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(content)}", *headers]

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    return script


def raw(data: bytes, *, close: bool = True) -> Script:
    """Write these bytes, then close the connection cleanly if asked to."""

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return script


async def reset(_: Arrival, writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    writer.transport.abort()


async def hang(_: Arrival, writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def ok(data: dict[str, object]) -> dict[str, object]:
    """The documented envelope of a success."""
    return {"meta": {"code": 200, "text": "OK"}, "data": data}


SENT = ok({"status": "success", "message_id": "M1", "cost": "0.0400", "remaining_balance": "9.96"})


def only_ends(events: list[AttemptFinished]) -> Hook:
    """Make a hook that keeps the ends of attempts."""

    def hook(event: Event) -> None:
        if isinstance(event, AttemptFinished):
            events.append(event)

    return hook


def lanes_into(lanes: list[Priority]) -> Hook:
    """Make a hook that keeps the lane of each grant."""

    def hook(event: Event) -> None:
        if isinstance(event, SlotGranted):
            lanes.append(event.priority)

    return hook
