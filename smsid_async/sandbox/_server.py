"""Serving an ASGI application on a loopback port with uvicorn, inside the running event loop.

`uvicorn.Server.serve()` is not used: it installs signal handlers, wakes ten times a second, logs,
and waits at its end for clients with open connections. Its `startup()` alone does what is needed.
"""

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["Listener"]

_HOST = "127.0.0.1"
_LOGGER = "smsid_async.sandbox"


class Listener:
    """One listening socket and the connections that came in through it."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._log = _own_logger()

    async def start(self, app: ASGIApp, port: int) -> str:
        """Listen on `port` (0: any free one) and return the origin, `http://127.0.0.1:PORT`.

        Raises:
            OSError: The port is taken.
        """
        listening = _bind(port)
        self._log.disabled = False
        try:
            self._server = await _serve(app, listening, self._log)
        except BaseException:
            listening.close()
            raise
        return f"http://{_HOST}:{listening.getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening and drop every connection, even with a request under way."""
        server, self._server = self._server, None
        if server is None:
            return
        self._log.disabled = True  # a request ended below is no news
        for listening in server.servers:
            listening.close()
        for _ in range(3):  # passes of the loop until a connection just accepted is known
            await asyncio.sleep(0)
        connections, tasks = server.server_state.connections, server.server_state.tasks
        while connections or tasks:
            for connection in list(connections):
                connection.transport.abort()
            for task in list(tasks):
                task.cancel()
            await asyncio.sleep(0)


def _bind(port: int) -> socket.socket:
    # Without the protocol's number asyncio does not set TCP_NODELAY: 40 ms for each answer.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        reuse = os.name == "posix"  # elsewhere the option lets others take the port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        listening.bind((_HOST, port))
    except OSError:
        listening.close()
        raise
    return listening


def _own_logger() -> logging.Logger:
    """Make a logger for one listener, which tells of a crash in the app but of no bad request."""
    logger = logging.Logger(_LOGGER, logging.ERROR)  # noqa: LOG001 - registered, it would be shared
    logger.parent = logging.getLogger(_LOGGER)
    return logger


async def _serve(app: ASGIApp, listening: socket.socket, log: logging.Logger) -> uvicorn.Server:
    async def until_stopped(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # only `stop()` cancels these tasks
            await app(scope, receive, send)

    def protocol(**options: object) -> asyncio.Protocol:
        made: Any = AutoHTTPProtocol(**options)
        made.logger, made.access_log = log, False
        return cast("asyncio.Protocol", made)

    config = uvicorn.Config(
        until_stopped,
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,  # and `access_log` untouched: both change loggers of the whole process
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listening])
    return server
