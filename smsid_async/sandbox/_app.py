"""The HTTP side: a plain ASGI application over the state."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from smsid_async.sandbox._fields import Fields
from smsid_async.sandbox._records import RefusedError, SandboxRequest
from smsid_async.sandbox._state import Account, State

__all__ = ["BASE_PATH", "App"]

BASE_PATH = "/api/v1"

_Data = dict[str, Any]
_Handler = Callable[[State, Account, bytes, float], _Data]


class App:
    """The API as an ASGI application.

    Args:
        state: What the API remembers.
        clock: Returns the present moment in seconds.
        latency: Returns the seconds that a request takes from its arrival until it is counted,
            carried out and answered (in no time).
    """

    def __init__(
        self, state: State, clock: Callable[[], float], latency: Callable[[], float]
    ) -> None:
        self._state = state
        self._clock = clock
        self._latency = latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; one whose body does not arrive in full is dropped."""
        if scope["type"] != "http":
            raise RuntimeError(f"the sandbox speaks HTTP only, not {scope['type']}")
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        # From here on the request takes effect, whether or not the client still waits for it.
        delay = self._latency()
        if delay > 0:
            await asyncio.sleep(delay)
        response = self._respond(request, body)
        await response(scope, receive, send)

    def _respond(self, request: Request, body: bytes) -> JSONResponse:
        now = self._clock()
        key = request.headers.get("x-api-key", "")
        counted = False
        try:
            handler = _route(request.method, request.scope["path"])
            account = self._state.authenticate(key)
            self._state.count(account, now)
            counted = True
            self._state.check_signature(body, request.headers.get("x-api-sign", ""))
            data = handler(self._state, account, body, now)
        except RefusedError as refused:
            code, text = refused.code, refused.text
            content: _Data = {"meta": {"code": code, "text": text}}
            response = JSONResponse(content, code, refused.headers)
        else:
            code, text = 200, "OK"
            response = JSONResponse({"meta": {"code": code, "text": text}, "data": data})
        self._state.record(
            SandboxRequest(
                at=now,
                method=request.method,
                path=request.scope["path"],
                status=code,
                text=text,
                counted=counted,
                key=key,
            )
        )
        return response


def _send_sms(state: State, account: Account, body: bytes, now: float) -> _Data:
    fields = Fields(body)
    message = state.send(account, fields.number(), fields.message(), fields.sender_id(), now)
    return {
        "status": "success",
        "message_id": message.message_id,
        "cost": f"{message.cost:.4f}",
        "remaining_balance": f"{account.balance:.4f}",
    }


def _sms_status(state: State, account: Account, body: bytes, now: float) -> _Data:
    message_id = Fields(body).string("message_id")
    return {"message_id": message_id, "status": state.status(account, message_id, now)}


def _balance(_state: State, account: Account, _body: bytes, _now: float) -> _Data:
    return {"balance": f"{account.balance:.4f}"}


def _send_otp(state: State, account: Account, body: bytes, now: float) -> _Data:
    number = Fields(body).number()
    state.send_code(account, number, now)
    return {"status": "sent", "to": number}


def _verify_otp(state: State, account: Account, body: bytes, now: float) -> _Data:
    fields = Fields(body)
    state.verify(account, fields.number(), fields.string("code"), now)
    return {"status": "verified", "verified": True}


_ROUTES: dict[str, tuple[str, _Handler]] = {
    f"{BASE_PATH}/sms/send": ("POST", _send_sms),
    f"{BASE_PATH}/sms/status": ("POST", _sms_status),
    f"{BASE_PATH}/balance": ("GET", _balance),
    f"{BASE_PATH}/otp/send": ("POST", _send_otp),
    f"{BASE_PATH}/otp/verify": ("POST", _verify_otp),
}


def _route(method: str, path: str) -> _Handler:
    if path not in _ROUTES:
        raise RefusedError(404, "Not found")
    allowed, handler = _ROUTES[path]
    if method != allowed:
        raise RefusedError(405, "Method not allowed", {"Allow": allowed})
    return handler
