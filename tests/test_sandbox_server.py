"""The sandbox on its socket: connections, start and stop, and what it leaves alone."""

import ast
import asyncio
import contextlib
import gc
import importlib
import json
import logging
import math
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import smsid_async.sandbox
from smsid_async.sandbox import Sandbox

KEY = {"X-Api-Key": "test"}
BODY = {"to": "+447700900123", "message": "Hello"}


@contextlib.asynccontextmanager
async def http_on(sandbox):
    async with httpx.AsyncClient(base_url=sandbox.url, headers=KEY, trust_env=False) as http:
        yield http


def raw(method, path, body=b""):
    head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: test\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def connect(sandbox):
    parts = urlsplit(sandbox.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.startswith(b"content-length")
    )
    return json.loads(await reader.readexactly(length))


async def dropped(reader):
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_a_real_client_sends_over_a_real_socket():
    async with Sandbox() as sandbox, http_on(sandbox) as http:
        parts = urlsplit(sandbox.url)
        assert (parts.scheme, parts.hostname, parts.path) == ("http", "127.0.0.1", "/api/v1")
        sent = await http.post("/sms/send", json=BODY)
        assert sent.json()["data"]["message_id"] == sandbox.messages[0].message_id
        refused = await http.get("/balance", headers={"X-Api-Key": "wrong"})
        assert (refused.status_code, refused.json()["meta"]["code"]) == (401, 401)
        assert [each.status for each in sandbox.requests] == [200, 401]
        assert repr(sandbox) == f"<Sandbox {sandbox.url}: 2 requests, 1 messages>"


async def test_many_requests_at_once_are_all_answered():
    async with Sandbox(limit=150) as sandbox, http_on(sandbox) as http:
        calls = (http.post("/sms/send", json=BODY) for _ in range(80))
        statuses = [each.status_code for each in await asyncio.gather(*calls)]
        assert statuses == [200] * 80
        assert len({each.message_id for each in sandbox.messages}) == 80
        assert sandbox.largest_count() == 80


async def test_a_connection_is_kept_alive_and_dropped_at_the_end():
    async with Sandbox() as sandbox:
        reader, writer = await connect(sandbox)
        for n in range(1, 4):
            writer.write(raw("POST", "/sms/send", json.dumps(BODY).encode()))
            assert (await answer(reader))["meta"] == {"code": 200, "text": "OK"}
            assert len(sandbox.messages) == n
        writer.write(raw("GET", "/balance") + raw("GET", "/balance"))  # pipelined
        assert await answer(reader) == await answer(reader)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 1.0
    assert await dropped(reader)
    writer.close()


async def test_small_answers_are_not_held_back():
    async with Sandbox() as sandbox:
        _, writer = await connect(sandbox)
        writer.write(raw("GET", "/balance"))
        while not sandbox.requests:
            await asyncio.sleep(0)
        (connection,) = sandbox._listener._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /api/v1/sms/send HTT",
        raw("POST", "/sms/send", json.dumps(BODY).encode())[:-5],
        raw("POST", "/sms/send", json.dumps(BODY).encode()),
        raw("GET", "/balance") * 3,
    ],
    ids=["nothing", "half a head", "half a body", "a request", "three requests"],
)
@pytest.mark.parametrize("passes", [0, 1, 20], ids=["unread", "reading", "waiting"])
async def test_it_stops_at_once_whatever_is_under_way(sent, passes, caplog):
    caplog.set_level(logging.DEBUG)
    async with Sandbox(latency=math.inf) as sandbox:
        reader, writer = await connect(sandbox)
        writer.write(sent)
        for _ in range(passes):
            await asyncio.sleep(0)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 1.0
    assert await dropped(reader)
    writer.close()
    await asyncio.sleep(0)
    assert sandbox.requests == []
    assert [each for each in caplog.records if each.name != "asyncio"] == []
    assert len(asyncio.all_tasks()) == 1
    gc.collect()  # a socket or transport forgotten would warn


async def test_a_connection_just_made_is_dropped_too():
    async with Sandbox() as sandbox:
        port = urlsplit(sandbox.url).port
        with socket.create_connection(("127.0.0.1", port)) as late:
            late.setblocking(False)
            await sandbox.__aexit__(None, None, None)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(late, 1) == b""


async def test_it_stops_when_the_block_is_cancelled():
    entered = asyncio.Event()
    sandbox = Sandbox()

    async def forever():
        async with sandbox:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await entered.wait()
    port = urlsplit(sandbox.url).port
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(OSError, match="onnect"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_two_sandboxes_at_once_know_nothing_of_each_other():
    async with (
        Sandbox() as one,
        Sandbox(api_secret="s3cret") as two,
        http_on(one) as to_one,
        http_on(two) as to_two,
    ):
        assert one.url != two.url
        assert (await to_one.post("/sms/send", json=BODY)).status_code == 200
        assert (await to_two.post("/sms/send", json=BODY)).status_code == 401
        assert (len(one.messages), len(two.messages)) == (1, 0)
        assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_the_same_object_starts_again_and_remembers():
    sandbox = Sandbox()
    for n in range(1, 4):
        with pytest.raises(RuntimeError, match="not running"):
            _ = sandbox.url
        async with sandbox, http_on(sandbox) as http:
            assert (await http.post("/sms/send", json=BODY)).status_code == 200
        assert len(sandbox.messages) == n
    assert "not running" in repr(sandbox)


def test_it_serves_one_event_loop_after_another():
    sandbox = Sandbox()

    async def once():
        async with sandbox, http_on(sandbox) as http:
            return (await http.get("/balance")).status_code

    assert [asyncio.run(once()) for _ in range(3)] == [200, 200, 200]


async def test_it_cannot_be_entered_twice():
    async with Sandbox() as sandbox, http_on(sandbox) as http:
        with pytest.raises(RuntimeError, match="running already"):
            await sandbox.__aenter__()
        assert (await http.get("/balance")).status_code == 200


async def test_a_fixed_port_is_free_again_at_once_and_told_when_taken():
    async with Sandbox() as first:
        port = urlsplit(first.url).port
        with pytest.raises(OSError, match="in use"):
            await Sandbox(port=port).__aenter__()
    again = Sandbox(port=port)
    for _ in range(3):
        async with again, http_on(again) as http:
            assert urlsplit(again.url).port == port
            assert (await http.get("/balance")).status_code == 200


async def test_a_start_that_fails_leaves_nothing_behind(monkeypatch):
    async def startup(*_, **__):
        raise OSError("no more sockets")

    sandbox = Sandbox()
    with monkeypatch.context() as patch:
        patch.setattr("uvicorn.Server.startup", startup)
        with pytest.raises(OSError, match="no more sockets"):
            await sandbox.__aenter__()
    gc.collect()  # the socket forgotten would warn
    async with sandbox, http_on(sandbox) as http:
        assert (await http.get("/balance")).status_code == 200


async def test_signals_and_other_loggers_are_left_alone(caplog):
    caplog.set_level(logging.DEBUG)
    names = ["uvicorn", "uvicorn.error", "uvicorn.access"]

    def settings():
        loggers = [logging.getLogger(name) for name in names]
        rows = [(each.level, each.propagate, each.handlers[:]) for each in loggers]
        return rows, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = settings()
    async with Sandbox() as sandbox, http_on(sandbox) as http:
        await http.get("/balance")
        reader, writer = await connect(sandbox)
        writer.write(b"no http at all\r\n\r\n")
        assert b"400" in await reader.readline()
        writer.close()
        assert settings() == before
    assert settings() == before
    assert [each for each in caplog.records if each.name.startswith(("uvicorn", "smsid"))] == []


async def test_a_crash_in_the_sandbox_itself_is_told(caplog):
    def crash():
        raise ZeroDivisionError

    async with Sandbox(latency=crash) as sandbox, http_on(sandbox) as http:
        assert (await http.get("/balance")).status_code == 500
    assert [each.name for each in caplog.records] == ["smsid_async.sandbox"]


@pytest.mark.looptime
async def test_virtual_time_drives_windows_and_statuses():
    loop = asyncio.get_running_loop()
    async with Sandbox(limit=2, period=60.0) as sandbox, http_on(sandbox) as http:
        sent = (await http.post("/sms/send", json=BODY)).json()["data"]
        assert (await http.get("/balance")).status_code == 200
        refused = await http.get("/balance")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
        await asyncio.sleep(60)
        status = await http.post("/sms/status", json={"message_id": sent["message_id"]})
        assert status.json()["data"]["status"] == "delivered"
        assert 60 <= sandbox.requests[-1].at == pytest.approx(loop.time(), abs=1)
        started = loop.time()
        await asyncio.sleep(3600)
        assert loop.time() - started == pytest.approx(3600, abs=1)


def run(code):
    command = [sys.executable, "-c", code]
    folder = Path(smsid_async.sandbox.__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_importing_the_package_does_not_import_the_sandbox():
    code = "import sys, smsid_async; sys.exit('smsid_async.sandbox' in sys.modules)"
    assert run(code).returncode == 0


def import_anew(monkeypatch, missing):
    """Import the sandbox as if for the first time, without the package `missing`."""
    for name in list(sys.modules):
        if name.startswith("smsid_async.sandbox"):
            monkeypatch.delitem(sys.modules, name)
        elif name == missing or name.startswith(f"{missing}."):
            monkeypatch.setitem(sys.modules, name, None)
    importlib.import_module("smsid_async.sandbox")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_extra_is_told_in_one_sentence(monkeypatch, missing):
    with pytest.raises(ImportError) as caught:
        import_anew(monkeypatch, missing)
    assert str(caught.value) == "The sandbox needs its extra: pip install 'smsid-async[sandbox]'"


def test_another_missing_module_is_not_taken_for_the_extra(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="attrs"):
        import_anew(monkeypatch, "attrs")


def test_it_shares_no_code_with_the_client():
    folder = Path(smsid_async.sandbox.__file__).parent
    imported = set()
    for module in folder.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported.update(name.name for name in node.names)
    ours = {name for name in imported if name.startswith("smsid_async")}
    assert all(name.startswith("smsid_async.sandbox") for name in ours)


def test_the_export_list_is_sorted_and_complete():
    names = smsid_async.sandbox.__all__
    assert names == sorted(names)
    public = {name for name in vars(smsid_async.sandbox) if not name.startswith("_")}
    assert public - set(names) == {"windows"}
