"""Every example runs, against the sandbox."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from conftest import NUMBER

from smsid_async import BudgetTimeoutError
from smsid_async.sandbox import Sandbox

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSID_API_KEY", "test")
    monkeypatch.setenv("SMSID_BASE_URL", sandbox.url)


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"fastapi_service", "aiohttp_service", "bulk_script", "task_queue"}


@pytest.mark.usefixtures("environment")
async def test_fastapi_service(sandbox: Sandbox) -> None:
    example = load("fastapi_service")
    app = example.app
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://app"
        ) as user,
    ):
        sent = await user.post(f"/login-codes/{NUMBER}")
        assert (sent.status_code, sent.json()) == (202, {"status": "sent"})
        code = {"to": NUMBER, "code": sandbox.otp_code(NUMBER)}
        assert (await user.post("/logins", json=code)).json() == {"verified": True}
        assert (await user.post("/logins", json=code)).json() == {"verified": False}

        notice = await user.post("/notices", json={"to": NUMBER, "text": "Hello"})
        assert notice.json() == {"message_id": sandbox.messages[0].message_id}
        wrong = await user.post("/notices", json={"to": "0770", "text": "Hello"})
        assert wrong.status_code == 422
        assert "E.164" in wrong.json()["detail"]

    busy = await example.busy(None, BudgetTimeoutError("full", retry_after=7.2))
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "8")


@pytest.mark.usefixtures("environment")
async def test_aiohttp_service(sandbox: Sandbox) -> None:
    from aiohttp.test_utils import TestClient, TestServer

    async with TestClient(TestServer(load("aiohttp_service").make_app())) as user:
        sent = await user.post("/texts", json={"to": NUMBER, "text": "Hello"})
        assert sent.status == 202
        assert (await sent.json())["message_id"] == sandbox.messages[0].message_id
        wrong = await user.post("/texts", json={"to": NUMBER, "text": ""})
        assert wrong.status == 422


@pytest.mark.usefixtures("environment")
async def test_bulk_script(sandbox: Sandbox, tmp_path: Path) -> None:
    example, journal = load("bulk_script"), tmp_path / "reminders.journal"
    assert (await example.main(5, journal)).sent == 5
    assert (await example.main(7, journal)).sent == 7
    assert len({message.to for message in sandbox.messages}) == len(sandbox.messages) == 7


@pytest.mark.usefixtures("environment")
async def test_task_queue(sandbox: Sandbox, tmp_path: Path) -> None:
    example = load("task_queue")
    task = example.Task("order-17", NUMBER, "It has shipped")
    receipts = await example.main([task, task], tmp_path / "sms.db")
    receipts += await example.main([task], tmp_path / "sms.db")
    assert receipts == [sandbox.messages[0].message_id] * 3
    assert len(sandbox.messages) == 1
