"""The fault matrix: what the world does to one call, and what must come of it.

Each row runs on real sockets: the call meets its fault, the world heals, and the same
client must then complete ordinary sends. What the client says, tells its hooks, logs or
warns of meanwhile is searched for the key, the secret, the number and the text.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import json
import logging
import os
import pickle
import socket
import ssl
import struct
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import attrs
import httpx
import trustme
from httpx_aiohttp import AiohttpTransport
from wire import SENT, RawServer, answer, hang, ok, raw

from smsid_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    InvalidResponseError,
    NotSentError,
    OutcomeUnknownError,
    RateBudget,
    RetryPolicy,
    ServerError,
    SMSIDClient,
    SMSIDError,
    TransportError,
)
from smsid_async.hooks import AttemptFinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from wire import Arrival, Script

    from smsid_async.hooks import Event

    Door = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    MakeWorld = Callable[[tuple[Script, ...]], AbstractAsyncContextManager["World"]]

KEY = "key-canary-5f3a9c"
SECRET = "secret-canary-81b2d7"
NUMBER = "+447700900987"
TEXT = "text-canary-c04e66"
CANARIES = (KEY, SECRET, NUMBER.removeprefix("+44"), TEXT)

AFTERWARDS = 20  # ordinary sends after each fault
QUICK = RetryPolicy(backoff=0.001, max_backoff=0.001)
SHORT = 0.25  # seconds for an attempt that hangs
LONGEST = 10.0  # seconds for a row
PLACES = 3  # connections, fewer than a call has attempts: one lost at each of them is missed


# -- the world -----------------------------------------------------------------


class Server(RawServer):
    """A raw server that may speak TLS, listen late, and keep its door shut.

    Args:
        scripts: As for `RawServer`.
        door: Takes each connection in place of the scripts, until the server heals.
        tls: Speaks TLS by this.
        listening: Whether it listens from the start.
    """

    def __init__(
        self,
        *scripts: Script,
        door: Door | None = None,
        tls: ssl.SSLContext | None = None,
        listening: bool = True,
    ) -> None:
        super().__init__(*scripts)
        self.door = door
        self._tls = tls
        self._listening = listening
        self._tasks: set[asyncio.Task[Any]] = set()
        # By its full name: asyncio sets TCP_NODELAY on those only.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        origin = "http://127.0.0.1" if self._tls is None else "https://localhost"
        return f"{origin}:{self.port}/api/v1"

    async def __aenter__(self) -> Self:
        if self._listening:
            await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        if self._listening:
            await super().__aexit__(*exc)
        self._socket.close()

    async def listen(self) -> None:
        self._listening = True
        self._server = await asyncio.start_server(self._serve, sock=self._socket, ssl=self._tls)

    async def heal(self) -> None:
        self.door = None
        self._scripts[:] = [good]
        if not self._listening:
            await self.listen()

    def hang_up(self, *, hard: bool) -> None:
        """Close every connection, as a server does with idle ones."""
        for writer in self._writers:
            close_hard(writer) if hard else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # at the server's end
            if self.door is None:
                await super()._serve(reader, writer)
            else:
                await self._at_the_door(self.door, reader, writer)

    async def _at_the_door(
        self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await door(reader, writer)
        writer.close()


class Proxy(Server):
    """A raw proxy that answers each CONNECT by `refusal`, or leads to one port.

    Args:
        leads_to: The port at its other end.
        refusal: Answers instead, until the proxy heals.
        listening: Whether it listens from the start.
    """

    def __init__(
        self, leads_to: int, *, refusal: Script | None = None, listening: bool = True
    ) -> None:
        super().__init__(*([refusal] if refusal else []), listening=listening)
        self.leads_to = leads_to
        self.door = None if refusal else self._tunnel

    async def heal(self) -> None:
        await super().heal()
        self.door = self._tunnel

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.leads_to)
        self._writers.add(other_writer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        close_hard(writer)
    writer.close()


def close_hard(writer: asyncio.StreamWriter) -> None:
    """Send a reset, which a plain abort does only while unread bytes wait."""
    if not writer.is_closing():
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@attrs.define
class World:
    """What one row's client meets.

    Attributes:
        server: Its ledger counts.
        url: Where the client believes the API to be.
        healers: Mend the world.
        http_client: The caller's own, if any.
        avoided: A server that must see no connection.
    """

    server: Server
    url: str
    healers: list[Callable[[], Awaitable[object]]]
    http_client: httpx.AsyncClient | None = None
    avoided: Server | None = None

    async def heal(self) -> None:
        for healer in self.healers:
            await healer()


def plain(
    *,
    door: Door | None = None,
    listening: bool = True,
    http_client: Callable[[], httpx.AsyncClient] | None = None,
) -> MakeWorld:
    """Plain HTTP on loopback, with a client of ours or of the caller's."""

    @contextlib.asynccontextmanager
    async def world(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
        given = None if http_client is None else http_client()
        async with Server(*scripts, good, door=door, listening=listening) as server:

            async def heal() -> None:
                if given is not None and not given.is_closed:
                    given.event_hooks = {}

            yield World(server, server.url, [heal, server.heal], given)
            if given is not None:
                await given.aclose()

    return world


def direct_tls(
    host: str, *, http_client: Callable[[ssl.SSLContext], httpx.AsyncClient]
) -> MakeWorld:
    """TLS on loopback, with a client of the caller's that trusts the test's authority."""

    @contextlib.asynccontextmanager
    async def world(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
        trust = ssl.create_default_context()
        authority().configure_trust(trust)
        tls = identity(host)

        async def heal() -> None:
            authority().issue_cert("localhost").configure_cert(tls)

        async with Server(*scripts, good, tls=tls) as server, http_client(trust) as given:
            yield World(server, server.url, [heal, server.heal], given)

    return world


def tunnelled(
    *,
    refusal: Script | None = None,
    listening: bool = True,
    first: Callable[[], Server] | None = None,
) -> MakeWorld:
    """TLS through a proxy, with a client of ours and the settings of the environment.

    Args:
        refusal: What the proxy answers to a CONNECT, until it heals.
        listening: Whether the proxy listens from the start.
        first: Makes the server that the proxy leads to, until it heals.
    """

    @contextlib.asynccontextmanager
    async def world(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                Server(*scripts, good, tls=identity("sms.test"))
            )
            wrong = server if first is None else await stack.enter_async_context(first())
            proxy = await stack.enter_async_context(
                Proxy(wrong.port, refusal=refusal, listening=listening)
            )
            stack.enter_context(_environment(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}"))

            async def lead_right() -> None:
                proxy.leads_to = server.port

            healers = [server.heal, proxy.heal, lead_right]
            yield World(server, "https://sms.test/api/v1", healers)

    return world


@contextlib.asynccontextmanager
async def nameless(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
    """A host name that nobody knows, until it is mended."""
    look_up = socket.getaddrinfo

    def look_up_here(host: str, *rest: Any, **more: Any) -> Any:
        return look_up("127.0.0.1" if "invalid" in str(host) else host, *rest, **more)

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_environment())
        server = await stack.enter_async_context(
            Server(*scripts, good, tls=identity("sms.invalid"))
        )

        async def heal() -> None:
            stack.enter_context(mock.patch("socket.getaddrinfo", look_up_here))

        yield World(server, f"https://sms.invalid:{server.port}/api/v1", [heal])


def black_hole(*, http_client: Callable[[], httpx.AsyncClient] | None = None) -> MakeWorld:
    """A listener whose queue is full: connecting hangs."""

    @contextlib.asynccontextmanager
    async def world(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
        given = None if http_client is None else http_client()
        server = Server(*scripts, good, listening=False)
        async with server:
            server._socket.listen(0)
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", server.port))

            async def heal() -> None:
                for filler in fillers:
                    filler.close()

            yield World(server, server.url, [heal, server.heal], given)
            await heal()
            if given is not None:
                await given.aclose()

    return world


def redirecting(status: int, **client_options: Any) -> MakeWorld:
    """A server that sends the client to another origin, which must see nothing."""

    @contextlib.asynccontextmanager
    async def world(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
        async with Server(good) as elsewhere:
            there = answer(status, b"", f"Location: {elsewhere.url}/sms/send")
            async with Server(there, good) as server:
                given = httpx.AsyncClient(**client_options) if client_options else None
                yield World(server, server.url, [server.heal], given, elsewhere)
                if given is not None:
                    await given.aclose()

    return world


@contextlib.asynccontextmanager
async def proxied_loopback(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
    """Every proxy variable is set, and the API is on this machine."""
    async with Server(*scripts, good) as server, Proxy(server.port) as proxy:
        there = f"http://127.0.0.1:{proxy.port}"
        with _environment(HTTP_PROXY=there, HTTPS_PROXY=there, ALL_PROXY=there, http_proxy=there):
            yield World(server, server.url, [server.heal], None, proxy)


@contextlib.asynccontextmanager
async def busy_pool(scripts: tuple[Script, ...]) -> AsyncIterator[World]:
    """A caller's client whose only connection is in use."""
    limits = httpx.Limits(max_connections=1)
    async with Server(*scripts, good) as server, httpx.AsyncClient(limits=limits) as given:
        server._scripts.insert(0, raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", close=False))
        busy = await given.send(given.build_request("GET", server.url), stream=True)
        yield World(server, server.url, [busy.aclose, server.heal], given)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    with authority().cert_pem.tempfile() as path:
        with mock.patch.dict(os.environ, {"SSL_CERT_FILE": path, **variables}):
            yield


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def identity(host: str, signer: trustme.CA | None = None, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (signer or authority()).issue_cert(host, **options).configure_cert(context)
    return context


# -- scripts and doors ---------------------------------------------------------


async def good(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """Answer as the API does; the message ID tells which text it belongs to."""
    if arrival.line.startswith("GET"):
        await answer(200, ok({"balance": "9.96"}))(arrival, writer)
    else:
        number = json.loads(arrival.body)["message"].removeprefix(TEXT).strip()
        await answer(200, ok({"status": "success", "message_id": f"M{number}"}))(arrival, writer)


async def rst(_: object, writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    close_hard(writer)


def after(head: bytes, end: Script | None = None) -> Script:
    """Write these bytes, give them time to be read, then end as another script does."""

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        await asyncio.sleep(0.02)
        await (end or raw(b""))(arrival, writer)

    return script


def drip(data: bytes, pause: float = 0.01) -> Script:
    """Write one byte at a time."""

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(pause)

    return script


def flood(piece: bytes) -> Script:
    """Write the same bytes for ever."""

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(piece * 100)
            await writer.drain()
            await asyncio.sleep(0)

    return script


def sequence(*scripts: Script) -> Script:
    """Do one after the other."""

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        for each in scripts:
            await each(arrival, writer)

    return script


def slowly(seconds: float) -> Script:
    """Answer well, after a while."""

    async def script(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await good(arrival, writer)

    return script


async def echo(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """Write the request's body back as if it were an answer."""
    await raw(arrival.body + b"\r\n\r\n")(arrival, writer)


async def repeat_it_back(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """Refuse, with all that was sent in the reason."""
    words = f"{arrival.body.decode()} {arrival.headers['x-api-key']} {SECRET}"
    await answer(400, envelope(400, words))(arrival, writer)


def door(what: Script, *, read: int | bytes = 0) -> Door:
    """Read so many bytes or up to these bytes, then do as the script says."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(read, bytes):
            await reader.readuntil(read)
        else:
            await reader.readexactly(read)
        await what(None, writer)  # type: ignore[arg-type]

    return take


def envelope(code: int, text: str = "No") -> dict[str, object]:
    return {"meta": {"code": code, "text": text}}


def head(*headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode()


def chunked(data: bytes) -> bytes:
    return head("Transfer-Encoding: chunked") + data


WELL = json.dumps(SENT).encode()
FORGED = json.dumps(ok({"status": "success", "message_id": "FORGED"})).encode()
FORGED_ANSWER = head(f"Content-Length: {len(FORGED)}") + FORGED
WHOLE = head(f"Content-Length: {len(WELL)}") + WELL


def padded(size: int) -> bytes:
    """A good answer of so many bytes."""
    length = size - len(head("Content-Length: 00000"))
    return head(f"Content-Length: {length:05}") + WELL.ljust(length)


def two_records(first: bytes, second: bytes) -> Script:
    """Answer in a TLS record, and send another with it, in one piece."""

    async def script(_: Arrival, writer: asyncio.StreamWriter) -> None:
        tls = writer.transport._ssl_protocol  # type: ignore[attr-defined]
        tls._sslobj.write(first)
        tls._sslobj.write(second)
        tls._transport.write(tls._outgoing.read())

    return script


async def bad_header(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    """Send the body and the key back where a header should stand."""
    key = arrival.headers["x-api-key"].encode()
    writer.write(b"HTTP/1.1 200 OK\r\n" + arrival.body + b" " + key + b"\r\nX\x00: 1\r\n\r\n")
    writer.close()


# -- rows ----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Row:
    """One fault, and what must come of it.

    Attributes:
        name: What happens.
        scripts: How the server answers, one request after the other, then well.
        world: Everything else that the client meets.
        error: The error's exact class, None for success.
        maybe_sent: What the error must say.
        posts: Requests that the server counted.
        refused: Those of them that were answered 429, so that nothing happened.
        attempts: How often the client tried.
        read: Whether the call is `balance`, and no send.
        warm: Whether a send has gone well on the connection.
        strike: What happens at the last moment before the call.
        attempt_timeout: Seconds for each attempt of the call.
        fresh: Whether the sends afterwards need a new client, since this one is closed.
        pure: Whether the request must hold nothing of the caller's HTTP client.
        told_by: Who repeats the server's bytes although we do not: other packages' logs.
    """

    name: str
    scripts: tuple[Script, ...] = ()
    world: MakeWorld = attrs.field(factory=plain)
    error: type[SMSIDError] | None = None
    maybe_sent: bool = attrs.field(
        default=attrs.Factory(lambda row: row.error is OutcomeUnknownError, takes_self=True)
    )
    posts: int = 1
    refused: int = 0
    attempts: int = 1
    read: bool = False
    warm: bool = False
    strike: Callable[[World, SMSIDClient], Awaitable[None]] | None = None
    attempt_timeout: float = 5.0
    fresh: bool = False
    pure: bool = False
    told_by: tuple[str, ...] = ()


def unknown(name: str, *scripts: Script, **more: Any) -> Row:
    """A write that left, and no trustworthy answer came."""
    return Row(**({"name": name, "scripts": scripts, "error": OutcomeUnknownError} | more))


def never_left(name: str, **more: Any) -> Row:
    """A write that never left, and was tried again."""
    return Row(**({"name": name, "error": NotSentError, "posts": 0, "attempts": 4} | more))


def hanging(name: str, *scripts: Script, **more: Any) -> Row:
    """A write whose answer does not come in time."""
    return unknown(name, *scripts, attempt_timeout=SHORT, **more)


def fine(name: str, *scripts: Script, **more: Any) -> Row:
    """A call that goes well all the same."""
    return Row(name=name, scripts=scripts, **more)


def refused_first(name: str, *scripts: Script, **more: Any) -> Row:
    """A write that was refused by 429, and then went well."""
    count = len(scripts)
    return Row(
        **({"name": name, "scripts": scripts, "posts": count + 1, "refused": count} | more)
        | {"attempts": count + 1}
    )


def wrong_server(door_: Door | None = None, tls: Callable[[], ssl.SSLContext] | None = None) -> Any:
    """Make the maker of a server at which no TLS connection succeeds."""
    return lambda: Server(good, door=door_, tls=None if tls is None else tls())


def bad_certificate(name: str, tls: Callable[[], ssl.SSLContext]) -> Row:
    return never_left(name, world=tunnelled(first=wrong_server(tls=tls)), attempts=1)


async def close_idle(world: World, _: SMSIDClient) -> None:
    world.server.hang_up(hard=False)


async def reset_idle(world: World, _: SMSIDClient) -> None:
    world.server.hang_up(hard=True)


async def close_and_wait(world: World, _: SMSIDClient) -> None:
    world.server.hang_up(hard=False)
    await asyncio.sleep(0.05)  # TLS says goodbye first, and a proxy passes it on


async def close_client(_: World, client: SMSIDClient) -> None:
    await client.aclose()


async def close_theirs(world: World, _: SMSIDClient) -> None:
    assert world.http_client is not None
    await world.http_client.aclose()


async def fail_in_a_hook(_: object) -> None:
    raise LookupError("a fault of the caller's own")


def theirs(**options: Any) -> Callable[[], httpx.AsyncClient]:
    return lambda: httpx.AsyncClient(**options)


def over_aiohttp() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AiohttpTransport())


def retrying_transport() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=3))


def secure(trust: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=trust)


OVER_TLS = direct_tls("localhost", http_client=secure)
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
SLOW_DOWN = answer(429, envelope(429), "Retry-After: 0")
UNAVAILABLE = answer(503, b"")

CONNECTING = [
    never_left("refused", world=plain(listening=False)),
    never_left("DNS failure", world=nameless),
    never_left("SYN black hole", world=black_hole(), attempt_timeout=SHORT),
    never_left("pool exhausted", world=busy_pool, attempt_timeout=SHORT),
    Row(
        name="closed client",
        strike=close_client,
        error=ConfigurationError,
        posts=0,
        attempts=0,
        fresh=True,
    ),
    Row(
        name="closed client of the caller's",
        world=plain(http_client=theirs()),
        strike=close_theirs,
        error=ConfigurationError,
        posts=0,
        attempts=0,
        fresh=True,
    ),
]

SECURING = [
    never_left("TLS hang", world=tunnelled(first=wrong_server(door(hang))), attempt_timeout=SHORT),
    never_left("TLS reset at once", world=tunnelled(first=wrong_server(door(rst)))),
    never_left(
        "TLS reset in the handshake", world=tunnelled(first=wrong_server(door(rst, read=6)))
    ),
    never_left(
        "TLS closed in the handshake", world=tunnelled(first=wrong_server(door(raw(b""), read=6)))
    ),
    never_left(
        "TLS garbage",
        world=tunnelled(first=wrong_server(door(raw(b"HTTP/1.1 400 No\r\n\r\n"), read=6))),
    ),
    bad_certificate(
        "certificate of an unknown authority", lambda: identity("sms.test", trustme.CA())
    ),
    bad_certificate("certificate of another host", lambda: identity("other.test")),
    bad_certificate(
        "certificate that has expired", lambda: identity("sms.test", not_after=LONG_AGO)
    ),
    fine("TLS through a proxy", world=tunnelled()),
    unknown("TLS, reset after the body was read", rst, world=tunnelled()),
    unknown("TLS, closed after the body was read", raw(b""), world=tunnelled()),
    unknown("TLS, closed within the body", after(WHOLE[:-9]), world=tunnelled()),
    hanging("TLS, hang", hang, world=tunnelled()),
    fine("TLS, idle connection closed", world=OVER_TLS, warm=True, strike=close_and_wait),
    fine("TLS, idle connection reset", world=OVER_TLS, warm=True, strike=reset_idle),
    fine("TLS, idle tunnel closed", world=tunnelled(), warm=True, strike=close_and_wait),
    fine("TLS with a client of the caller's", world=OVER_TLS),
    unknown(
        "TLS with a client of the caller's, reset",
        rst,
        world=OVER_TLS,
    ),
    never_left(
        "TLS with a client of the caller's, bad certificate",
        world=direct_tls("other.test", http_client=secure),
        attempts=1,
    ),
]

PROXIES = [
    *(
        never_left(f"CONNECT answered {status}", world=tunnelled(refusal=answer(status, b"")))
        for status in (403, 407, 502)
    ),
    never_left("CONNECT hangs", world=tunnelled(refusal=hang), attempt_timeout=SHORT),
    never_left("CONNECT is reset", world=tunnelled(refusal=rst)),
    never_left("CONNECT is closed", world=tunnelled(refusal=raw(b""))),
    never_left(
        "CONNECT answered with garbage", world=tunnelled(refusal=raw(b"\x00garbage\r\n\r\n"))
    ),
    never_left("proxy unreachable", world=tunnelled(listening=False)),
    fine("proxies set, base URL on loopback", world=proxied_loopback),
]

BREAKING = [
    unknown("reset before anything was read", world=plain(door=door(rst)), posts=0),
    unknown(
        "reset before the body was read", world=plain(door=door(rst, read=b"\r\n\r\n")), posts=0
    ),
    unknown("reset while the body arrived", world=plain(door=door(rst, read=300)), posts=0),
    unknown("reset after the body was read", rst),
    unknown("close before reading", world=plain(door=door(raw(b""))), posts=0),
    unknown("close after the head", world=plain(door=door(raw(b""), read=b"\r\n\r\n")), posts=0),
    unknown("close without an answer", raw(b"")),
    unknown("close within the status line", after(b"HTTP/1.1 2")),
    unknown("close after the status line", after(b"HTTP/1.1 200 OK\r\n")),
    unknown("close within the headers", after(b"HTTP/1.1 200 OK\r\nContent-Le")),
    unknown("close after the headers", after(head("Content-Length: 80"))),
    unknown("close within the body", after(WHOLE[:-9])),
    unknown("close within a chunk", after(chunked(b"50\r\n{"))),
    unknown("close before the last chunk", after(chunked(b"%x\r\n%s\r\n" % (len(WELL), WELL)))),
    unknown("reset within the headers", after(b"HTTP/1.1 200 OK\r\nContent-Le", rst)),
    unknown("reset within the body", after(WHOLE[:-9], rst)),
    fine("close after the answer", raw(WHOLE)),
    fine("answer that ends with the connection", raw(head("Connection: close") + WELL)),
    fine("answer of HTTP/1.0", raw(b"HTTP/1.0 200 OK\r\n\r\n" + WELL)),
    unknown("answer of HTTP/2 in the clear", raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    fine("idle connection closed", warm=True, strike=close_idle),
    fine("idle connection reset", warm=True, strike=reset_idle),
    unknown("kept connection closed at the next request", good, raw(b""), warm=True),
    unknown("kept connection reset at the next request", good, rst, warm=True),
]

HOSTILE = [
    hanging("hang", hang),
    hanging("partial status line, then hang", sequence(raw(b"HTTP/1.1 2", close=False), hang)),
    hanging("partial headers, then hang", sequence(raw(head()[:-2], close=False), hang)),
    hanging("headers, then hang", sequence(raw(head("Content-Length: 9"), close=False), hang)),
    hanging("drip of headers", drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)),
    hanging(
        "drip of a body", sequence(raw(head("Content-Length: 999"), close=False), drip(b" " * 999))
    ),
    hanging("drip of chunks", sequence(raw(chunked(b""), close=False), drip(b"1\r\n \r\n" * 999))),
    fine("drip that ends in time", drip(WHOLE, pause=0.0)),
    unknown("garbage", raw(b"\x00\xff\x00 not HTTP at all\r\n\r\n")),
    unknown("the request's body comes back", echo, told_by=("log of httpcore.http11",)),
    unknown("huge headers", raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000)),
    unknown("many headers", raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000)),
    unknown("header without a name", raw(head(": x", "Content-Length: 0"))),
    unknown(
        "a zero byte in a header", raw(b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n")
    ),
    fine(
        "100 Continue, then the answer", raw(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, close=False)
    ),
    fine(
        "100 Continue 10,000 times",
        sequence(raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, close=False), good),
    ),
    fine(
        "103 Early Hints",
        raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + WHOLE, close=False),
    ),
    hanging("100 Continue for ever", flood(b"HTTP/1.1 100 Continue\r\n\r\n")),
    unknown("101 Switching Protocols", raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")),
    unknown("Content-Length of text", raw(head("Content-Length: many") + WELL)),
    unknown("Content-Length below nothing", raw(head("Content-Length: -1") + WELL)),
    unknown(
        "two differing Content-Lengths", raw(head("Content-Length: 1", "Content-Length: 2") + WELL)
    ),
    unknown("Content-Length too small", raw(head("Content-Length: 9") + WELL, close=False)),
    unknown("Content-Length too large", raw(head("Content-Length: 999") + WELL)),
    fine("more than Content-Length", raw(WHOLE + b"more", close=False)),
    fine("a forged answer after the answer", raw(WHOLE + FORGED_ANSWER, close=False)),
    fine(
        "a forged answer soon after the answer",
        sequence(raw(WHOLE, close=False), drip(FORGED_ANSWER, 0.0)),
    ),
    fine("a forged answer after 65,536 bytes", raw(padded(65_536) + FORGED_ANSWER, close=False)),
    fine(
        "a forged answer in a TLS record of its own",
        two_records(WHOLE, FORGED_ANSWER),
        world=tunnelled(),
    ),
    fine(
        "a forged answer in a TLS record, a caller's client",
        two_records(WHOLE, FORGED_ANSWER),
        world=OVER_TLS,
    ),
    unknown("a body after 204", raw(b"HTTP/1.1 204 No\r\n\r\n" + FORGED_ANSWER, close=False)),
    unknown("a body of more than 1 MiB", answer(200, b" " * (1 << 20) + WELL)),
    hanging(
        "a body without an end", sequence(raw(head("Connection: close"), close=False), flood(b" "))
    ),
    unknown("chunk of no size", raw(chunked(b"ZZ\r\n"), close=False)),
    unknown("chunk of a negative size", raw(chunked(b"-5\r\nhello\r\n"), close=False)),
    unknown("chunk of a huge size", raw(chunked(b"f" * 30 + b"\r\n"), close=False)),
    unknown("chunk without its end", raw(chunked(b"1\r\n{X0\r\n\r\n"), close=False)),
    unknown("compressed", answer(200, b"\x1f\x8b\x08", "Content-Encoding: gzip")),
    unknown("unknown transfer coding", raw(head("Transfer-Encoding: gzip") + WELL)),
]

ANSWERS = [
    unknown("500", answer(500, envelope(500))),
    unknown("502 with a page", answer(502, b"<html>Bad gateway</html>")),
    unknown("503", UNAVAILABLE),
    unknown("504", answer(504, b"")),
    unknown("200 with a page", answer(200, b"<html>Welcome to the hotel's network</html>")),
    unknown("200 empty", answer(200, b"")),
    unknown("200 with another code", answer(200, envelope(400))),
    unknown("200 with a body of deep nesting", answer(200, b"[" * 100_000)),
    unknown("201", answer(201, SENT)),
    unknown("204", raw(b"HTTP/1.1 204 No Content\r\n\r\n", close=False)),
    unknown("403 with a page", answer(403, b"<html>Forbidden</html>")),
    Row(name="400", scripts=(answer(400, envelope(400)),), error=BadRequestError),
    Row(name="400 that repeats the request", scripts=(repeat_it_back,), error=BadRequestError),
    Row(name="401", scripts=(answer(401, envelope(401)),), error=AuthenticationError),
    Row(name="403", scripts=(answer(403, envelope(403)),), error=APIError),
    Row(name="422", scripts=(answer(422, envelope(422)),), error=BadRequestError),
    refused_first("429", SLOW_DOWN),
    refused_first("429 three times", SLOW_DOWN, SLOW_DOWN, SLOW_DOWN),
    refused_first("429 with a page", answer(429, b"<html>Slow down</html>")),
    refused_first("429, truncated", raw(b"HTTP/1.1 429 No\r\nContent-Length: 500\r\n\r\n{")),
    refused_first(
        "429 of broken chunks", raw(b"HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")
    ),
    refused_first(
        "429, reset within the body", after(b"HTTP/1.1 429 No\r\nContent-Length: 500\r\n\r\n{", rst)
    ),
    refused_first(
        "429 whose body hangs",
        sequence(raw(b"HTTP/1.1 429 No\r\nContent-Length: 500\r\n\r\n{", close=False), hang),
        attempt_timeout=SHORT,
    ),
    unknown("429, then reset", SLOW_DOWN, rst, posts=2, refused=1, attempts=2),
    unknown("429, then 503", SLOW_DOWN, UNAVAILABLE, posts=2, refused=1, attempts=2),
    *(
        unknown(f"{status} to another origin", world=redirecting(status))
        for status in (301, 302, 303, 307, 308)
    ),
]

THEIRS = [
    *(
        unknown(
            f"{status}, a client that follows", world=redirecting(status, follow_redirects=True)
        )
        for status in (302, 307, 308)
    ),
    fine(
        "a client with headers, parameters, cookies, authentication and a base URL",
        world=plain(
            http_client=theirs(
                headers={"X-Api-Key": "other", "X-Theirs": "1"},
                params={"theirs": "1"},
                cookies={"theirs": "1"},
                auth=("user", "theirs"),
                base_url="http://127.0.0.1:1/theirs",
            )
        ),
        pure=True,
    ),
    unknown(
        "a client whose request hook raises",
        world=plain(http_client=theirs(event_hooks={"request": [fail_in_a_hook]})),
        posts=0,
    ),
    unknown(
        "a client whose response hook raises",
        good,
        world=plain(http_client=theirs(event_hooks={"response": [fail_in_a_hook]})),
    ),
    fine(
        "a client with a timeout of 0.1 s",
        slowly(0.3),
        world=plain(http_client=theirs(timeout=0.1)),
    ),
    hanging(
        "a client without a timeout, hang", hang, world=plain(http_client=theirs(timeout=None))
    ),
    never_left("a client of httpx, refused", world=plain(listening=False, http_client=theirs())),
    unknown("a transport that retries, reset", rst, world=plain(http_client=retrying_transport)),
    unknown(
        "a transport that retries, 503", UNAVAILABLE, world=plain(http_client=retrying_transport)
    ),
    never_left(
        "a transport that retries, refused",
        world=plain(listening=False, http_client=retrying_transport),
        attempt_timeout=SHORT,
    ),
    fine("aiohttp", world=plain(http_client=over_aiohttp)),
    unknown("aiohttp, the request's body comes back", echo, world=plain(http_client=over_aiohttp)),
    unknown("aiohttp, the key comes back", bad_header, world=plain(http_client=over_aiohttp)),
    unknown("aiohttp, reset after the body was read", rst, world=plain(http_client=over_aiohttp)),
    unknown(
        "aiohttp, kept connection closed",
        good,
        raw(b""),
        warm=True,
        world=plain(http_client=over_aiohttp),
    ),
    unknown(
        "aiohttp, close within the body", after(WHOLE[:-9]), world=plain(http_client=over_aiohttp)
    ),
    hanging("aiohttp, hang", hang, world=plain(http_client=over_aiohttp)),
    unknown("aiohttp, refused", world=plain(listening=False, http_client=over_aiohttp), posts=0),
    hanging("aiohttp, SYN black hole", world=black_hole(http_client=over_aiohttp), posts=0),
]


def read_once(name: str, script: Script) -> Row:
    return Row(name=f"read: {name}, then well", scripts=(script,), posts=2, attempts=2, read=True)


def read_in_vain(name: str, error: type[SMSIDError], **more: Any) -> Row:
    return Row(
        **(
            {"name": f"read: {name}", "error": error, "posts": 4, "attempts": 4, "read": True}
            | more
        )
    )


READS = [
    read_once("reset", rst),
    read_once("close without an answer", raw(b"")),
    read_once("close within the body", after(head("Content-Length: 99") + b"{")),
    read_once("garbage", raw(b"\x00\xff garbage\r\n\r\n")),
    read_once("503", UNAVAILABLE),
    read_in_vain("reset", TransportError, scripts=(rst,) * 4),
    read_in_vain("503", ServerError, scripts=(UNAVAILABLE,) * 4),
    read_in_vain("hang", TransportError, scripts=(hang,) * 4, attempt_timeout=SHORT),
    read_in_vain("refused", NotSentError, world=plain(listening=False), posts=0),
    read_in_vain(
        "200 with a page",
        InvalidResponseError,
        scripts=(answer(200, b"<html>"),),
        posts=1,
        attempts=1,
    ),
    read_in_vain(
        "401", AuthenticationError, scripts=(answer(401, envelope(401)),), posts=1, attempts=1
    ),
    read_in_vain(
        "aiohttp, 503",
        ServerError,
        scripts=(UNAVAILABLE,) * 4,
        world=plain(http_client=over_aiohttp),
    ),
]

ROWS = [*CONNECTING, *SECURING, *PROXIES, *BREAKING, *HOSTILE, *ANSWERS, *THEIRS, *READS]


# -- the run -------------------------------------------------------------------


@attrs.define(kw_only=True)
class Result:
    """What came of a row."""

    error: SMSIDError | None
    posts: int
    attempts: int
    afterwards: int
    late: int
    avoided: int
    leaks: list[str] = attrs.field(factory=list)


async def run(row: Row) -> Result:
    """Run one row: the fault, then the ordinary sends, all under watch."""
    async with asyncio.timeout(LONGEST):
        with Watch() as watch:
            async with row.world(row.scripts) as world:
                result = await _meet(row, world, watch)
        result.leaks = watch.leaks(result.error)
    return result


async def _meet(row: Row, world: World, watch: Watch) -> Result:
    async with open_client(world, watch) as client:
        if row.warm:
            await client.sms.send(NUMBER, TEXT)
        counted, told = len(world.server.ledger), watch.attempts
        if row.strike is not None:
            await row.strike(world, client)
        with watch.debugging():
            error = await _call(row, client)
        attempts = watch.attempts - told
        called = world.server.ledger[counted:]
        if row.pure:
            check_pure(called)
        await world.heal()
        counted = len(world.server.ledger)
        if row.fresh:
            async with open_client(attrs.evolve(world, http_client=None), watch) as another:
                afterwards = await send_afterwards(another)
        else:
            afterwards = await send_afterwards(client)
    return Result(
        error=error,
        posts=len(called),
        attempts=attempts,
        afterwards=afterwards,
        late=len(world.server.ledger) - counted - afterwards,
        avoided=0 if world.avoided is None else world.avoided.connections,
    )


def open_client(world: World, watch: Watch, **options: Any) -> SMSIDClient:
    settings: dict[str, Any] = {
        "base_url": world.url,
        "budget": RateBudget.unlimited(max_in_flight=PLACES),
        "retry": QUICK,
        "attempt_timeout": 3.0,
        "http_client": world.http_client,
        "hooks": [watch.events.append],
    }
    return SMSIDClient(KEY, SECRET, **(settings | options))


async def _call(row: Row, client: SMSIDClient) -> SMSIDError | None:
    limit = row.attempt_timeout
    try:
        if row.read:
            await client.balance(attempt_timeout=limit)
        else:
            receipt = await client.sms.send(NUMBER, TEXT, attempt_timeout=limit)
            assert receipt.message_id in ("M", "M1")
    except SMSIDError as error:
        return error
    return None


async def send_afterwards(client: SMSIDClient, count: int = AFTERWARDS) -> int:
    """Send so many, half of them one after the other, half at once; return how many went well."""

    async def send(number: int) -> bool:
        receipt = await client.sms.send(NUMBER, f"{TEXT} {number}")
        return receipt.message_id == f"M{number}"  # the answer to this very message

    half = count // 2
    in_turn = [await send(number) for number in range(half)]
    at_once = await asyncio.gather(*(send(number) for number in range(half, count)))
    return sum(in_turn) + sum(at_once)


def check_pure(arrivals: list[Arrival]) -> None:
    """Check that nothing of the caller's HTTP client went into our requests."""
    for arrival in arrivals:
        assert "theirs" not in f"{arrival.line} {arrival.headers}".lower()
        assert arrival.headers["x-api-key"] == KEY
        assert "authorization" not in arrival.headers


def problems(row: Row, result: Result) -> list[str]:
    """Say what is wrong with a row's result; nothing, if all is well."""
    error = result.error
    seen = {
        "error": None if error is None else type(error),
        "maybe_sent": error is not None and error.maybe_sent,
        "posts": result.posts,
        "attempts": result.attempts,
        "sends afterwards": result.afterwards,
        "posts that came late": result.late,
        "duplicates": duplicates(row, result),
        "connections to be avoided": result.avoided,
        "leaks": [place for place in result.leaks if place not in row.told_by],
    }
    wanted = {
        "error": row.error,
        "maybe_sent": row.maybe_sent,
        "posts": row.posts,
        "attempts": row.attempts,
        "sends afterwards": AFTERWARDS,
        "posts that came late": 0,
        "duplicates": 0,
        "connections to be avoided": 0,
        "leaks": [],
    }
    return [
        f"{name}: {seen[name]}, not {wanted[name]}" for name in seen if seen[name] != wanted[name]
    ]


def duplicates(row: Row, result: Result) -> int:
    """How often a write was posted again, though an earlier post was not refused."""
    return 0 if row.read else max(0, result.posts - row.refused - 1) + result.late


class Watch:
    """Keeps all that anybody is told during a row: log records, warnings, hook events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._records: list[logging.LogRecord] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        root = logging.getLogger()
        handler = logging.Handler()
        handler.emit = self._records.append  # type: ignore[method-assign]
        self._stack.callback(root.setLevel, root.level)
        self._stack.enter_context(mock.patch.object(root, "handlers", [handler]))
        root.setLevel(logging.DEBUG)
        self._warnings = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def debugging(self) -> Iterator[None]:
        """Let the event loop log every step that it takes, with what it is given."""
        loop = asyncio.get_running_loop()
        usual = loop.slow_callback_duration
        loop.set_debug(True)
        loop.slow_callback_duration = 0.0
        try:
            yield
        finally:
            loop.set_debug(False)
            loop.slow_callback_duration = usual

    @property
    def attempts(self) -> int:
        return sum(isinstance(event, AttemptFinished) for event in self.events)

    def leaks(self, error: BaseException | None) -> list[str]:
        """Say where something private was shown."""
        shown = [("event", repr(event)) for event in self.events]
        shown += [("warning", str(warning)) for warning in self._warnings]
        for record in self._records:
            text = f"{logging.Formatter().format(record)} {record.args!r} {record.exc_info!r}"
            shown.append((f"log of {record.name}", text))
        if error is not None:
            shown += _faces(error)
        return sorted({place for place, text in shown if any(each in text for each in CANARIES)})


def _faces(error: BaseException) -> list[tuple[str, str]]:
    return [
        ("repr", repr(error)),
        ("str", str(error)),
        ("traceback", "".join(traceback.format_exception(error))),
        ("pickle", pickle.dumps(error).decode("latin-1")),
    ]
