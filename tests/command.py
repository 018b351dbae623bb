"""What the tests of the command share: sandboxes in threads, runs, interrupts, files."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

from typer.testing import CliRunner

from smsid_async.cli import _app
from smsid_async.sandbox import Sandbox

# Else looptime makes an event loop for each of these tests, and nobody closes it.
asyncio.set_event_loop(None)

TO = "+447700900456"
FAILING = "+447700900999"
FAST = ("--budget", "1000/1")


@contextlib.contextmanager
def serving(**options):
    """Run a sandbox in a thread of its own, for commands that have their own event loop."""
    ready, sandbox = threading.Event(), Sandbox(**{"limit": None, **options})
    ending = {}

    async def serve():
        ending["loop"], ending["event"] = asyncio.get_running_loop(), asyncio.Event()
        async with sandbox:
            ending["url"] = sandbox.url
            ready.set()
            await ending["event"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield sandbox
    finally:
        ending["loop"].call_soon_threadsafe(ending["event"].set)
        thread.join()


def invoke(sandbox, *arguments, key="test", private=True):
    """Run the command; what it writes shows no number unless it must."""
    environment = {
        "SMSID_BASE_URL": sandbox.url if sandbox else None,
        "SMSID_API_KEY": key,
        "SMSID_ACCOUNT": "test",
    }
    result = CliRunner(env=environment).invoke(_app.app, arguments, catch_exceptions=False)
    assert "Traceback" not in result.output
    assert not private or TO not in result.output
    return result


def records(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def write_list(folder, rows, header="to,message", name="list.csv"):
    """Write a CSV file of so many rows, or of these rows."""
    if isinstance(rows, int):
        rows = [f"{TO},Message {number}" for number in range(rows)]
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@contextlib.contextmanager
def answering(answer):
    """Serve one raw answer to each request, then close the connection."""

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()

        class Server:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1"

        try:
            yield Server
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def interrupt_when(condition):
    """Press Ctrl-C as soon as something is so."""

    def wait():
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


class Latency:
    """So many seconds for each request, and how many have arrived."""

    def __init__(self, seconds):
        self.seconds, self.arrived = seconds, 0

    def __call__(self):
        self.arrived += 1
        return self.seconds
