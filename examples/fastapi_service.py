"""A FastAPI service: one client for the process, one-time codes, and 503 when the budget is full.

pip install 'smsid-async' fastapi uvicorn
SMSID_API_KEY=... uvicorn fastapi_service:app
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from smsid_async import BudgetTimeoutError, OutcomeUnknownError, SMSIDClient, ValidationError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with SMSIDClient(max_wait=5) as client:
        app.state.sms = client
        yield


app = FastAPI(lifespan=lifespan)


class Code(BaseModel):
    to: str
    code: str


class Notice(BaseModel):
    to: str
    text: str


@app.post("/login-codes/{number}", status_code=202)
async def send_code(number: str, request: Request) -> dict[str, str]:
    client: SMSIDClient = request.app.state.sms
    receipt = await client.otp.send(number)
    return {"status": receipt.status}


@app.post("/logins")
async def log_in(code: Code, request: Request) -> dict[str, bool]:
    client: SMSIDClient = request.app.state.sms
    return {"verified": await client.otp.check(code.to, code.code)}


@app.post("/notices", status_code=202)
async def notify(notice: Notice, request: Request) -> dict[str, str]:
    client: SMSIDClient = request.app.state.sms
    receipt = await client.sms.send(notice.to, notice.text)
    return {"message_id": receipt.message_id}


@app.exception_handler(BudgetTimeoutError)
async def busy(_: Request, error: BudgetTimeoutError) -> JSONResponse:
    headers = {"Retry-After": str(ceil(error.retry_after or 1))}
    return JSONResponse({"detail": "busy, nothing was sent"}, 503, headers)


@app.exception_handler(ValidationError)
async def wrong(_: Request, error: ValidationError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(OutcomeUnknownError)
async def in_doubt(_: Request, __: OutcomeUnknownError) -> JSONResponse:
    return JSONResponse({"detail": "it may have been sent; do not send it again blindly"}, 502)
