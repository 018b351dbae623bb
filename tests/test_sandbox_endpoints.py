"""The sandbox's API, called through its ASGI application on a clock that the test moves."""

import asyncio
import hashlib
import hmac
import json
import time
from collections import Counter
from decimal import Decimal

import httpx
import pytest

from smsid_async.sandbox import FAILING_SUFFIX, Sandbox
from smsid_async.sandbox._sandbox import loop_time

TO = "+447700900123"
SEND, STATUS, BALANCE = "/sms/send", "/sms/status", "/balance"
OTP_SEND, OTP_VERIFY = "/otp/send", "/otp/verify"
MISSING = object()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Api:
    """A sandbox, its clock and an HTTP client on it."""

    def __init__(self, **options):
        self.clock = options.setdefault("clock", Clock())
        self.sandbox = Sandbox(**options)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.sandbox.app), base_url="http://sandbox/api/v1"
        )

    async def call(self, path, body=None, *, key="test", sign=None, method=None):
        headers = {"X-Api-Key": key, "X-Api-Sign": sign}
        return await self.http.request(
            method or ("GET" if path == BALANCE else "POST"),
            path,
            headers={name: value for name, value in headers.items() if value is not None},
            content=body if isinstance(body, bytes | None) else json.dumps(body).encode(),
        )

    async def data(self, path, body=None, **options):
        answer = await self.call(path, body, **options)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document.keys() == {"meta", "data"}
        assert document["meta"] == {"code": 200, "text": "OK"}
        return document["data"]

    async def error(self, path, body=None, **options):
        answer = await self.call(path, body, **options)
        code = answer.status_code
        assert answer.json() == {"meta": {"code": code, "text": answer.json()["meta"]["text"]}}
        assert answer.headers["content-type"] == "application/json"
        return code, answer.json()["meta"]["text"]


def message(text="Hello", to=TO, **fields):
    return {"to": to, "message": text, **fields}


def signature(body, secret="s3cret"):
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def test_a_message_is_accepted_and_charged():
    api = Api()
    data = await api.data(SEND, message(sender_id="SMSID"))
    assert data == {
        "status": "success",
        "message_id": data["message_id"],
        "cost": "0.0400",
        "remaining_balance": "99.9600",
    }
    (kept,) = api.sandbox.messages
    assert (kept.message_id, kept.to, kept.text) == (data["message_id"], TO, "Hello")
    assert (kept.sender_id, kept.segments, kept.cost) == ("SMSID", 1, Decimal("0.0400"))
    assert (kept.at, kept.key) == (1000.0, "test")
    assert await api.data(BALANCE) == {"balance": "99.9600"}


async def test_message_ids_are_unique_and_long():
    api = Api(limit=None)
    ids = {(await api.data(SEND, message()))["message_id"] for _ in range(200)}
    assert len(ids) == 200
    assert min(map(len, ids)) >= 32


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a" * 160, 1),
        ("a" * 161, 2),
        ("a" * 306, 2),
        ("a" * 307, 3),
        ("€" * 80, 1),
        ("€" * 80 + "a", 2),
        ("a" * 152 + "€" + "a" * 152, 3),  # the escape pair is not divided: 152, 153, 1
        ("£é@ Δ_\n", 1),
        ("ж" * 70, 1),
        ("ж" * 71, 2),
        ("ж" * 134, 2),
        ("ж" * 135, 3),
        ("😀" * 35, 1),
        ("😀" * 36, 2),
        ("😀" * 67, 3),  # 33 pairs a part
        ("a" * 1600, 11),
    ],
)
async def test_the_cost_goes_by_segments(text, segments):
    api = Api()
    data = await api.data(SEND, message(text))
    assert data["cost"] == f"{segments * Decimal('0.04'):.4f}"
    assert api.sandbox.messages[0].segments == segments


@pytest.mark.parametrize("path", [SEND, STATUS, BALANCE, OTP_SEND, OTP_VERIFY])
@pytest.mark.parametrize("key", [None, "", "wrong", "tes", "test2", "ключ".encode()])
async def test_a_wrong_key_is_401_and_not_counted(path, key):
    api = Api(limit=1)
    for _ in range(3):
        assert await api.error(path, b"not json", key=key) == (401, "Missing or invalid API key")
    assert api.sandbox.statistics().counted == 0
    assert await api.data(BALANCE)


def bodies(*names):
    good = {"to": TO, "message": "Hello", "message_id": "x", "code": "123456"}
    return {name: good[name] for name in names}


REQUIRED = [
    (SEND, bodies("to", "message")),
    (STATUS, bodies("message_id")),
    (OTP_SEND, bodies("to")),
    (OTP_VERIFY, bodies("to", "code")),
]


@pytest.mark.parametrize(
    ("path", "body", "name"), [(path, body, name) for path, body in REQUIRED for name in body]
)
@pytest.mark.parametrize("value", [MISSING, None, 447700900123, 1.5, True, [TO], {}, "\ud83d"])
async def test_a_missing_or_wrong_typed_field_is_400(path, body, name, value):
    api = Api()
    body = {**body, name: value}
    if value is MISSING:
        del body[name]
    code, text = await api.error(path, body)
    assert code == 400
    assert text.startswith(f"The {name} field ")
    assert await api.data(BALANCE) == {"balance": "100.0000"}
    assert api.sandbox.messages == []


@pytest.mark.parametrize("path", [SEND, OTP_SEND, OTP_VERIFY])
@pytest.mark.parametrize(
    "to",
    [
        "",
        "447700900123",
        "07700900123",
        "+07700900123",
        "+44 7700 900123",
        "+44770090012x",
        "+447700900123\n",
        "+4477009001234567",
        "+٤٤٧٧٠٠٩٠٠١٢٣",
    ],
)
async def test_a_bad_number_is_400(path, to):
    code, text = await Api().error(path, {"to": to, "message": "Hello", "code": "123456"})
    assert (code, text) == (400, "The to field must be a number in international format")


@pytest.mark.parametrize("text", ["", "a" * 1601, "😀" * 1601])
async def test_a_message_of_a_wrong_length_is_400(text):
    error = (400, "The message field must be 1 to 1600 characters")
    assert await Api().error(SEND, message(text)) == error


@pytest.mark.parametrize("sender", ["", "A", "A" * 12])
async def test_a_sender_of_a_wrong_length_is_400(sender):
    error = (400, "The sender_id field must be 2 to 11 characters")
    assert await Api().error(SEND, message(sender_id=sender)) == error
    assert await Api(senders=None).error(SEND, message(sender_id=sender)) == error


async def test_senders_are_approved_or_not():
    api = Api(senders=("Shop", "Post"))
    assert await api.error(SEND, message(sender_id="SMSID")) == (400, "Sender ID not approved")
    assert (await api.data(SEND, message()))["remaining_balance"] == "99.9600"
    await api.data(SEND, message(sender_id="Post"))
    assert [kept.sender_id for kept in api.sandbox.messages] == ["Shop", "Post"]


async def test_any_valid_sender_may_be_approved():
    api = Api(senders=None)
    await api.data(SEND, message(sender_id="Whoever"))
    await api.data(SEND, message())
    assert [kept.sender_id for kept in api.sandbox.messages] == ["Whoever", "SMSID"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The body must be valid JSON"),
        (b"{", "The body must be valid JSON"),
        (b"\xff{}", "The body must be valid JSON"),
        ("{}".encode("utf-16"), "The body must be valid JSON"),
        (b'{"to": NaN}', "The body must be valid JSON"),
        (b'{"to": ' + b"9" * 5000 + b"}", "The body must be valid JSON"),
        (b"[" * 100_000, "The body must be valid JSON"),
        (b'["to"]', "The body must be a JSON object"),
        (b"null", "The body must be a JSON object"),
        (b"to=1&message=2", "The body must be valid JSON"),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("path", [SEND, STATUS, OTP_SEND, OTP_VERIFY])
async def test_what_is_no_json_object_is_400(path, body, text):
    assert await Api().error(path, body) == (400, text)


async def test_too_low_a_balance_charges_and_stores_nothing():
    api = Api(balance="0.1000", price="0.0400")
    await api.data(SEND, message())
    assert await api.error(SEND, message("a" * 161)) == (400, "Insufficient balance")
    assert await api.data(BALANCE) == {"balance": "0.0600"}
    assert (await api.data(SEND, message()))["remaining_balance"] == "0.0200"
    assert await api.error(SEND, message()) == (400, "Insufficient balance")
    assert len(api.sandbox.messages) == 2
    assert api.sandbox.statistics().charged == Decimal("0.0800")


async def test_the_last_credit_can_be_spent():
    api = Api(balance="0.04")
    assert (await api.data(SEND, message()))["remaining_balance"] == "0.0000"


async def test_codes_cost_what_the_test_says():
    assert (await Api(balance=0).data(OTP_SEND, {"to": TO}))["status"] == "sent"
    api = Api(balance="0.05", otp_price="0.03")
    await api.data(OTP_SEND, {"to": TO})
    code = api.sandbox.otp_code(TO)
    assert await api.error(OTP_SEND, {"to": TO}) == (400, "Insufficient balance")
    assert await api.data(BALANCE) == {"balance": "0.0200"}
    assert api.sandbox.otp_code(TO) == code


async def test_a_status_progresses_with_time():
    api = Api(delivery=(1.0, 3.0))
    failing = TO[:-3] + FAILING_SUFFIX
    ids = [(await api.data(SEND, message(to=to)))["message_id"] for to in (TO, failing)]
    seen = []
    for now in (1000.0, 1000.9, 1001.0, 1002.9, 1003.0, 9999.0):
        api.clock.now = now
        answers = [await api.data(STATUS, {"message_id": each}) for each in ids]
        assert [answer["message_id"] for answer in answers] == ids
        assert all(answer.keys() == {"message_id", "status"} for answer in answers)
        seen.append(tuple(answer["status"] for answer in answers))
    assert seen == [
        ("queued", "queued"),
        ("queued", "queued"),
        ("sent", "sent"),
        ("sent", "sent"),
        ("delivered", "failed"),
        ("delivered", "failed"),
    ]


async def test_an_unknown_message_id_is_400():
    api = Api(api_key=None)
    mine = (await api.data(SEND, message(), key="mine"))["message_id"]
    assert await api.data(STATUS, {"message_id": mine}, key="mine")
    for message_id, key in [("nothing", "mine"), ("", "mine"), (mine, "another")]:
        error = await api.error(STATUS, {"message_id": message_id}, key=key)
        assert error == (400, "Unknown message_id")


async def test_a_code_verifies_once():
    api = Api()
    assert await api.data(OTP_SEND, {"to": TO}) == {"status": "sent", "to": TO}
    code = api.sandbox.otp_code(TO)
    assert len(code) == 6
    assert code.isascii()
    assert code.isdigit()
    wrong = f"{(int(code) + 1) % 10**6:06d}"
    refused = (422, "Invalid or expired code")
    assert await api.error(OTP_VERIFY, {"to": TO, "code": wrong}) == refused
    assert await api.error(OTP_VERIFY, {"to": "+447700900124", "code": code}) == refused
    assert await api.error(OTP_VERIFY, {"to": TO, "code": ""}) == refused
    data = await api.data(OTP_VERIFY, {"to": TO, "code": code})
    assert data == {"status": "verified", "verified": True}
    assert await api.error(OTP_VERIFY, {"to": TO, "code": code}) == refused
    assert api.sandbox.messages == []


async def test_a_code_expires():
    api = Api(otp_ttl=300.0)
    for age, status in [(299.9, 200), (300.0, 422)]:
        await api.data(OTP_SEND, {"to": TO})
        api.clock.now += age
        answer = await api.call(OTP_VERIFY, {"to": TO, "code": api.sandbox.otp_code(TO)})
        assert answer.status_code == status


async def test_a_new_code_voids_the_one_before(monkeypatch):
    codes = iter([111111, 222222])
    monkeypatch.setattr("secrets.randbelow", lambda _: next(codes))
    api = Api()
    await api.data(OTP_SEND, {"to": TO})
    await api.data(OTP_SEND, {"to": TO})
    assert api.sandbox.otp_code(TO) == "222222"
    assert (await api.call(OTP_VERIFY, {"to": TO, "code": "111111"})).status_code == 422
    assert (await api.call(OTP_VERIFY, {"to": TO, "code": "222222"})).status_code == 200


async def test_a_code_belongs_to_the_key_that_sent_it():
    api = Api(api_key=None)
    await api.data(OTP_SEND, {"to": TO}, key="mine")
    body = {"to": TO, "code": api.sandbox.otp_code(TO)}
    assert (await api.call(OTP_VERIFY, body, key="another")).status_code == 422
    assert (await api.call(OTP_VERIFY, body, key="mine")).status_code == 200


async def test_a_code_never_sent_cannot_be_read():
    with pytest.raises(LookupError) as caught:
        Sandbox().otp_code(TO)
    assert "900123" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SEND, json.dumps(message("Grüße, 世界 😀"), ensure_ascii=False).encode()),
        (SEND, b'{ "message":"Hello",\n "to":"+447700900123" }'),
        (OTP_SEND, b'{"to":"+447700900123"}'),
        (BALANCE, b""),
        (BALANCE, None),
    ],
)
async def test_a_request_signed_over_its_raw_body_passes(path, body):
    api = Api(api_secret="s3cret")
    await api.data(path, body, sign=signature(body or b""))


@pytest.mark.parametrize("path", [SEND, STATUS, BALANCE, OTP_SEND, OTP_VERIFY])
async def test_a_wrong_signature_is_401_and_counted(path):
    api = Api(api_secret="s3cret")
    body = None if path == BALANCE else b'{"to":"+447700900123"}'
    good = signature(body or b"")
    wrong = [
        None,
        "",
        good.upper(),
        good[:-1],
        " " + good + "0",
        signature(body or b"", "another"),
        signature((body or b"") + b"\n"),
        signature(json.dumps(json.loads(body or b"{}")).encode()),
        "é",
    ]
    for sign in wrong:
        error = await api.error(path, body, sign=sign if sign != "é" else sign.encode())
        assert error == (401, "Missing or invalid signature")
    assert api.sandbox.statistics().counted == len(wrong)


async def test_without_a_secret_a_signature_is_not_looked_at():
    await Api().data(BALANCE, sign="anything")


async def test_the_order_of_checks():
    api = Api(limit=1, api_secret="s3cret")
    assert (await api.error(SEND, b"{", key="wrong"))[0] == 401
    assert await api.error(SEND, b"{") == (401, "Missing or invalid signature")
    assert (await api.error(SEND, b"{"))[0] == 429
    api.clock.now += 60
    assert (await api.error(SEND, b"{", sign=signature(b"{")))[0] == 400


@pytest.mark.parametrize("path", ["/", "/sms", "/sms/send/", "/balances", "/../balance"])
async def test_an_unknown_path_is_404(path):
    api = Api()
    assert await api.error(path, {}) == (404, "Not found")
    assert [request.counted for request in api.sandbox.requests] == [False]


@pytest.mark.parametrize("path", [SEND, STATUS, BALANCE, OTP_SEND, OTP_VERIFY])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_a_wrong_method_is_405(path, method):
    api = Api()
    right = "GET" if path == BALANCE else "POST"
    answer = await api.call(path, b"{}", method=method)
    assert (answer.status_code == 405) == (method != right)
    if method != right:
        assert answer.headers["allow"] == right
        if method != "HEAD":
            assert answer.json() == {"meta": {"code": 405, "text": "Method not allowed"}}


@pytest.mark.parametrize("window", ["sliding", "fixed", "aligned", "bucket"])
async def test_the_limit_answers_429_and_says_when_to_come_back(window):
    api = Api(limit=3, period=60.0, window=window)
    api.clock.now = 1020.0  # a multiple of the period
    for _ in range(3):
        await api.data(BALANCE)
    api.clock.now += 0.5
    for _ in range(5):  # a refusal does not count
        answer = await api.call(BALANCE)
        assert answer.status_code == 429
        assert answer.json() == {"meta": {"code": 429, "text": "Rate limit exceeded"}}
    wait = answer.headers["retry-after"]
    assert wait == ("20" if window == "bucket" else "60")  # 19.5 and 59.5 rounded up
    api.clock.now += int(wait)
    await api.data(BALANCE)
    assert api.sandbox.refused == 5
    assert api.sandbox.statistics().counted == 4


async def test_refused_sends_change_nothing():
    api = Api(limit=1)
    await api.data(SEND, message())
    assert (await api.error(SEND, message()))[0] == 429
    assert len(api.sandbox.messages) == 1
    api.clock.now += 60
    assert await api.data(BALANCE) == {"balance": "99.9600"}


async def test_each_key_has_its_own_window_and_balance():
    api = Api(api_key=None, limit=2, balance=1)
    for key in ("one", "two"):
        await api.data(SEND, message(), key=key)
        assert await api.data(BALANCE, key=key) == {"balance": "0.9600"}
        assert (await api.error(BALANCE, key=key))[0] == 429
    assert (await api.error(BALANCE, key=""))[0] == 401
    assert api.sandbox.largest_count() == 2
    assert Counter(kept.key for kept in api.sandbox.messages) == {"one": 1, "two": 1}


async def test_no_limit():
    api = Api(limit=None)
    for _ in range(300):
        await api.data(BALANCE)
    assert api.sandbox.largest_count() == 300


async def test_every_request_is_logged():
    api = Api(limit=2)
    await api.data(SEND, message())
    await api.error(BALANCE, key="wrong")
    api.clock.now = 1001.5
    await api.error(STATUS, {"message_id": "x"})
    await api.error(OTP_SEND, {"to": TO})
    await api.error("/nowhere")
    rows = [
        (each.at, each.method, each.path.removeprefix("/api/v1"), each.status, each.counted)
        for each in api.sandbox.requests
    ]
    assert rows == [
        (1000.0, "POST", SEND, 200, True),
        (1000.0, "GET", BALANCE, 401, False),
        (1001.5, "POST", STATUS, 400, True),
        (1001.5, "POST", OTP_SEND, 429, False),
        (1001.5, "POST", "/nowhere", 404, False),
    ]
    assert api.sandbox.requests[2].text == "Unknown message_id"
    assert api.sandbox.requests[1].key == "wrong"
    counts = api.sandbox.statistics()
    assert (counts.requests, counts.counted, counts.refused) == (5, 2, 1)
    assert (counts.messages, counts.segments, counts.codes) == (1, 1, 0)


async def test_the_largest_count_is_over_half_open_spans():
    api = Api(limit=None, period=60.0)
    for now in (1000.0, 1030.0, 1060.0, 1089.0, 1090.0):
        api.clock.now = now
        await api.data(BALANCE)
    assert api.sandbox.largest_count() == 3  # 1030 <= t < 1090
    assert api.sandbox.largest_count(1.0) == 1
    assert api.sandbox.largest_count(90.5) == 5
    assert Sandbox().largest_count() == 0


async def test_keep_bounds_what_is_remembered_and_not_the_counts():
    api = Api(limit=None, keep=3)
    ids = [(await api.data(SEND, message(f"{n}")))["message_id"] for n in range(10)]
    assert [kept.text for kept in api.sandbox.messages] == ["7", "8", "9"]
    assert len(api.sandbox.requests) == 3
    assert api.sandbox.statistics().messages == 10
    assert api.sandbox.statistics().requests == 10
    assert await api.data(STATUS, {"message_id": ids[-1]})
    assert await api.error(STATUS, {"message_id": ids[0]}) == (400, "Unknown message_id")
    numbers = [f"+44770090010{n}" for n in range(5)]
    for to in numbers:
        await api.data(OTP_SEND, {"to": to})
    assert api.sandbox.otp_code(numbers[-1])
    with pytest.raises(LookupError):
        api.sandbox.otp_code(numbers[0])


async def test_nothing_private_is_shown():
    api = Api(api_key="private-key", api_secret="private-secret")
    body = json.dumps(message("private-text")).encode()
    await api.data(SEND, body, key="private-key", sign=signature(body, "private-secret"))
    shown = repr([api.sandbox, api.sandbox.messages, api.sandbox.requests])
    shown += repr([api.sandbox._state._settings, api.sandbox._state._accounts.values()])
    assert "private" not in shown
    assert "4477" not in shown
    assert "to='***123', text=<12 characters>" in shown
    with pytest.raises(AttributeError):
        api.sandbox.messages[0].to = "+447700900124"


async def test_lists_are_the_callers_own():
    api = Api()
    api.sandbox.requests.append(None)
    api.sandbox.messages.append(None)
    assert (api.sandbox.requests, api.sandbox.messages) == ([], [])


def test_the_clock_is_the_running_loops_else_the_monotonic_one():
    async def both():
        return loop_time(), asyncio.get_running_loop().time()

    shown, loops = asyncio.run(both())
    assert shown == pytest.approx(loops, abs=1)
    assert loop_time() == pytest.approx(time.monotonic(), abs=1)


@pytest.mark.looptime
async def test_a_request_counts_when_its_latency_is_over():
    api = Api(latency=5.0, clock=asyncio.get_running_loop().time)
    call = asyncio.create_task(api.data(BALANCE))
    await asyncio.sleep(4.9)
    assert api.sandbox.requests == []
    await call
    assert asyncio.get_running_loop().time() == pytest.approx(5.0)
    assert api.sandbox.requests[0].at == pytest.approx(5.0)


@pytest.mark.looptime
async def test_latency_may_be_drawn_for_each_request():
    drawn = iter([0.0, 7.0, -1.0])
    api = Api(latency=lambda: next(drawn))
    for _ in range(3):
        await api.data(BALANCE)
    assert list(drawn) == []
    assert asyncio.get_running_loop().time() == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"api_key": ""}, "api_key"),
        ({"api_secret": ""}, "api_key and api_secret"),
        ({"senders": ()}, "senders"),
        ({"keep": 0}, "keep"),
        ({"limit": 0}, "limit"),
        ({"period": -1.0}, "period"),
        ({"window": "weekly"}, "window"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        Sandbox(**options)


async def test_only_http_is_spoken():
    with pytest.raises(RuntimeError, match="lifespan"):
        await Sandbox().app({"type": "lifespan"}, None, None)


async def test_a_body_that_breaks_off_is_dropped():
    sandbox = Sandbox()

    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/api/v1/sms/send", "headers": []}
    await sandbox.app(scope, receive, None)
    assert sandbox.requests == []
