"""An aiohttp service that sends texts with one client for the process.

pip install 'smsid-async' aiohttp
SMSID_API_KEY=... python aiohttp_service.py
"""

from collections.abc import AsyncIterator

from aiohttp import web

from smsid_async import SMSIDClient, SMSIDError, ValidationError

CLIENT = web.AppKey("client", SMSIDClient)


async def client_for_the_app(app: web.Application) -> AsyncIterator[None]:
    async with SMSIDClient() as client:
        app[CLIENT] = client
        yield


async def send(request: web.Request) -> web.Response:
    body = await request.json()
    try:
        receipt = await request.app[CLIENT].sms.send(body["to"], body["text"], timeout=20)
    except ValidationError as error:
        return web.json_response({"detail": str(error)}, status=422)
    except SMSIDError as error:
        return web.json_response({"detail": str(error), "maybe_sent": error.maybe_sent}, status=502)
    return web.json_response({"message_id": receipt.message_id}, status=202)


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(client_for_the_app)
    app.router.add_post("/texts", send)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1")
