"""What an answer says, however hostile it is."""

import json
import time
from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsid_async._envelope import MAX_BODY, Answer, api_error, plain_success, read_answer
from smsid_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    InvalidResponseError,
    OTPVerificationError,
    RateLimitError,
    SenderNotApprovedError,
    ServerError,
)

TO = "+447700900123"
TEXT = "Your parcel waits at number 17"
CODE = "904417"
KEY = "canary-key-0f9d"
relaxed = settings(deadline=None)


def body(code=200, text="OK", **fields):
    return json.dumps({"meta": {"code": code, "text": text}, **fields}).encode()


def error_for(status, text="no", *, verifying=False, retry_after=None, private=()):
    answer = read_answer(status, body(status, text))
    return api_error(answer, verifying=verifying, retry_after=retry_after, private=private)


def elapsed(function, *arguments, **options):
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


# -- documented answers --------------------------------------------------------------

DOCUMENTED = [
    {
        "status": "success",
        "message_id": "Dcshuhod0PMAAAFQ...",
        "cost": "0.0400",
        "remaining_balance": "95.6000",
    },
    {"balance": "95.6000"},
    {"status": "sent", "to": TO},
    {"status": "verified", "verified": True},
    {"status": "delivered"},
]


@pytest.mark.parametrize("data", DOCUMENTED, ids="-".join)
def test_every_documented_success_is_read_as_it_is(data):
    answer = read_answer(200, body(data=data))
    assert answer == Answer(
        200, 200, "OK", data, {"meta": {"code": 200, "text": "OK"}, "data": data}
    )
    assert plain_success(answer) == data
    assert not answer.refused


@pytest.mark.parametrize("status", [400, 401, 422, 429])
def test_every_documented_error_is_read_as_it_is(status):
    answer = read_answer(status, body(status, "Insufficient balance"))
    assert (answer.code, answer.text, answer.fault) == (status, "Insufficient balance", None)
    assert answer.data is None
    assert answer.refused


def test_an_answer_is_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Answer(200).code = 200


def test_unknown_fields_pass_anywhere():
    wire = {"meta": {"code": 200, "text": "OK", "id": [1]}, "data": {"a": None}, "links": {}}
    answer = read_answer(200, json.dumps(wire).encode())
    assert (answer.fault, answer.raw) == (None, wire)
    assert plain_success(answer) == {"a": None}


def test_a_text_in_meta_may_be_absent():
    answer = read_answer(200, b'{"meta": {"code": 200}, "data": {}}')
    assert (answer.text, answer.fault) == ("", None)
    assert plain_success(answer) == {}


def test_fractions_are_decimals_and_whole_numbers_are_ints():
    answer = read_answer(200, b'{"meta":{"code":200},"data":{"a":0.10,"b":7,"c":1e2}}')
    assert repr(answer.data) == "{'a': Decimal('0.10'), 'b': 7, 'c': Decimal('1E+2')}"


# -- what is not a plain success ------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wire", "said"),
    [
        (200, body(400), "HTTP 200, but its `meta.code` is 400"),
        (200, body(201, data={}), "HTTP 200, but its `meta.code` is 201"),
        (200, body(), "HTTP 200, but it has no `data` object"),
        (200, body(data=None), "HTTP 200, but it has no `data` object"),
        (200, body(data=[]), "HTTP 200, but it has no `data` object"),
        (200, body(data="x"), "HTTP 200, but it has no `data` object"),
        (200, b"", "HTTP 200, but it is not the API's JSON"),
        (200, b"{}", "HTTP 200, but it has no `meta` object"),
        (201, body(201, data={}), "(HTTP 201)"),
        (204, b"", "HTTP 204: it is not the API's JSON"),
        (302, b"<html>", "HTTP 302: it is not the API's JSON"),
        (404, body(404), "(HTTP 404)"),
        (500, body(200, data={}), "(HTTP 500)"),
    ],
)
def test_anything_but_200_with_code_200_and_data_is_no_success(status, wire, said):
    with pytest.raises(InvalidResponseError) as caught:
        plain_success(read_answer(status, wire))
    assert said in str(caught.value)
    assert "base_url" in str(caught.value)


@pytest.mark.parametrize("status", range(100, 600))
def test_refused_means_429_or_another_4xx_in_the_envelope_with_its_own_code(status):
    with_envelope = read_answer(status, body(status))
    assert with_envelope.refused is (400 <= status < 500)
    for bare in (b"", b"<html>", b"{}", body("no"), body(status + 1), body(200, data={})):
        assert read_answer(status, bare).refused is (status == 429)


# -- hostile bodies -------------------------------------------------------------------

DEEP = 100_000
ENVELOPE = b'{"meta":{"code":200,"text":"OK"},"data":{"x":%s}}'
HOSTILE = {
    "empty": b"",
    "space": b" \n",
    "HTML": b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
    "text": b"OK",
    "bad UTF-8": ENVELOPE % b'"\xff\xfe"',
    "cut UTF-8": ENVELOPE % b'"\xf0\x9f"',
    "overlong UTF-8": ENVELOPE % b'"\xc0\xaf"',
    "encoded surrogate": ENVELOPE % b'"\xed\xa0\x80"',
    "BOM": b"\xef\xbb\xbf" + body(data={}),
    "UTF-16": body(data={}).decode().encode("utf-16"),
    "UTF-16-LE": body(data={}).decode().encode("utf-16-le"),
    "UTF-32": body(data={}).decode().encode("utf-32"),
    "a long integer": ENVELOPE % (b"9" * 5000),
    "a long negative integer": ENVELOPE % (b"-" + b"9" * 5000),
    "an integer of a megabyte": ENVELOPE % (b"9" * (MAX_BODY - 100)),
    "deep arrays": b"[" * DEEP,
    "deep closed arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep closed objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep mixture": b'[{"a":' * DEEP,
    "deep inside": ENVELOPE % (b"[" * 1000 + b"]" * 1000),
    "deep behind closing brackets": b"]" * DEEP + b"[" * DEEP,
    "deep behind a text": b'["]]]]]]]]' + b"]" * DEEP + b'",' + b"[" * DEEP,
    "deep behind an escaped quote": b'["\\"' + b"]" * DEEP + b'",' + b"[" * DEEP,
    "NaN": ENVELOPE % b"NaN",
    "Infinity": ENVELOPE % b"Infinity",
    "-Infinity": ENVELOPE % b"-Infinity",
    "huge exponent": ENVELOPE % b"1e99999999999999999999",
    "tiny exponent": ENVELOPE % b"-1.5e-99999999999999999999",
    "duplicate code": b'{"meta":{"code":400,"code":200},"data":{}}',
    "duplicate verdict": ENVELOPE % b'{"verified":false,"verified":true}',
    "duplicate data": b'{"meta":{"code":200},"data":{},"data":{}}',
    "duplicate in a list": ENVELOPE % b'[{"a":1,"\\u0061":1}]',
    "null": b"null",
    "true": b"true",
    "number": b"200",
    "string": b'"OK"',
    "array": b"[" + body(data={}) + b"]",
    "cut": body(data={"a": 1})[:-1],
    "cut text": b'{"meta":{"code":200,"text":"O',
    "two documents": body(data={}) * 2,
    "rubbish behind": body(data={}) + b"x",
    "NUL behind": body(data={}) + b"\x00",
    "single quotes": b"{'meta':{'code':200},'data':{}}",
    "comment": body(data={}) + b"// done",
    "trailing comma": b'{"meta":{"code":200},"data":{},}',
    "control character in a text": ENVELOPE % b'"a\nb"',
    "leading zero": ENVELOPE % b"007",
    "plus": ENVELOPE % b"+1",
    "hex": ENVELOPE % b"0x10",
    "full-width digit": ENVELOPE % "\uff11".encode(),
    "Arabic-Indic digit": ENVELOPE % "1\u0661".encode(),
    "bare dot": ENVELOPE % b"1.",
    "no meta": b'{"data":{}}',
    "null meta": b'{"meta":null}',
    "list meta": b'{"meta":[]}',
    "text meta": b'{"meta":"200"}',
    "no code": b'{"meta":{}}',
    "null code": b'{"meta":{"code":null}}',
    "text code": b'{"meta":{"code":"200"}}',
    "true code": b'{"meta":{"code":true}}',
    "fraction code": b'{"meta":{"code":200.0}}',
    "null text": b'{"meta":{"code":200,"text":null}}',
    "number text": b'{"meta":{"code":200,"text":1}}',
    "list text": b'{"meta":{"code":200,"text":[]}}',
}


@pytest.mark.parametrize("wire", HOSTILE.values(), ids=list(HOSTILE))
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_hostile_body_is_a_fault_and_raises_nothing(status, wire):
    answer = read_answer(status, wire)
    assert answer.fault
    assert answer.fault.startswith(("it ", "its "))
    assert answer.code is None
    assert answer.data is None
    assert not answer.refused
    with pytest.raises(InvalidResponseError):
        plain_success(answer)


def test_the_body_of_a_fault_is_kept_if_it_is_an_object():
    assert read_answer(200, b'{"a":1}').raw == {"a": 1}
    assert read_answer(200, b"[1]").raw is None


@pytest.mark.parametrize("brackets", [b"[", b"{", b"]}", b"[{" * 3])
def test_brackets_inside_a_text_are_no_nesting(brackets):
    for escape in (b"", rb"\"", rb"\\"):
        text = escape + brackets * 10_000
        answer = read_answer(200, ENVELOPE % (b'"' + text + b'"'))
        assert answer.fault is None
        assert answer.data == {"x": json.loads(b'"' + text + b'"')}


@pytest.mark.parametrize(("depth", "fine"), [(30, True), (31, False), (500, False)])
def test_32_levels_are_read_and_33_are_not(depth, fine):
    inner = b"[" * depth + b"]" * depth  # two levels of the envelope are around it
    assert (read_answer(200, ENVELOPE % inner).fault is None) is fine


def test_many_brackets_side_by_side_are_no_nesting():
    answer = read_answer(200, ENVELOPE % (b"[" + b"[],{}," * 5000 + b"0]"))
    assert answer.fault is None


LARGE = {
    "quotes without an end": b"[" * 33 + b'"' + rb"\"" * (MAX_BODY // 2 - 100),
    "many quotes without an end": b'{"a":[' + b"[]," * 40 + b'"' + rb"\"" * (MAX_BODY // 2 - 100),
    "backslashes": b"[" * 33 + b'"' + b"\\" * (MAX_BODY - 101),
    "many texts": b"[" * 33 + b'"",' * (MAX_BODY // 3 - 100),
    "brackets": b"[" * MAX_BODY,
    "pairs": b"[" + b"[]," * (MAX_BODY // 3 - 100),
    "digits": ENVELOPE % (b"0." + b"3" * (MAX_BODY - 100)),
    "quotes": b'"' * MAX_BODY,
}


@pytest.mark.parametrize("wire", LARGE.values(), ids=list(LARGE))
def test_the_largest_body_is_read_without_holding_up_the_event_loop(wire):
    assert len(wire) <= MAX_BODY
    assert elapsed(read_answer, 200, wire) < 5.0  # minutes and hours if it were quadratic


@pytest.mark.parametrize(
    "words",
    ["no ", "low ", "insufficient ", "sender ", "unapproved ", "1 ", "1-----x", "+1 ", "12"],
)
def test_the_largest_error_text_is_classified_without_holding_up_the_event_loop(words):
    answer = Answer(400, 400, words * ((MAX_BODY - 100) // len(words)))
    assert elapsed(api_error, answer, verifying=False, retry_after=None, private=(TO,)) < 5.0


@settings(deadline=None, max_examples=300)
@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_bytes_are_read_and_none_raise(status, wire):
    answer = read_answer(status, wire)
    assert answer.status_code == status
    assert (answer.fault is None) is (answer.code is not None)


def anything_from_json():
    numbers = st.integers() | st.floats()
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(st.characters(codec=None), max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["meta", "data", "code", "text", "verified"]), inner, max_size=4
            )
        ),
        max_leaves=15,
    )


@settings(deadline=None, max_examples=300)
@given(st.integers(100, 599), anything_from_json())
def test_any_json_is_read_and_only_the_envelope_is_trusted(status, value):
    answer = read_answer(status, json.dumps(value).encode())
    meta = value.get("meta") if isinstance(value, dict) else None
    if answer.fault is None:
        assert answer.code == meta["code"]
        assert answer.text == meta.get("text", "")
        assert type(answer.code) is int
    else:
        assert answer.code is None
    error = api_error(answer, verifying=False, retry_after=None, private=())
    assert str(error).startswith(f"HTTP {status}, ")
    assert str(error).isprintable()


# -- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verifying", "kind"),
    [
        (400, False, BadRequestError),
        (400, True, BadRequestError),
        (401, False, AuthenticationError),
        (403, False, APIError),
        (404, False, APIError),
        (422, False, BadRequestError),
        (422, True, OTPVerificationError),
        (429, False, RateLimitError),
        (429, True, RateLimitError),
        (499, False, APIError),
        (500, False, ServerError),
        (502, True, ServerError),
        (503, False, ServerError),
        (599, False, ServerError),
    ],
)
def test_every_status_has_its_error(status, verifying, kind):
    error = error_for(status, "no reason", verifying=verifying, retry_after=2.5)
    assert type(error) is kind
    assert (error.status_code, error.code, error.text) == (status, status, "no reason")
    assert error.retry_after == 2.5
    assert error.raw == {"meta": {"code": status, "text": "no reason"}}
    assert error.maybe_sent is False


def test_an_error_without_an_envelope_has_no_details():
    error = api_error(read_answer(503, b"<html>"), verifying=False, retry_after=None, private=())
    assert (error.code, error.text, error.raw) == (None, "", None)
    assert str(error).startswith("HTTP 503, the API gave no reason; ")


@pytest.mark.parametrize(
    ("status", "text", "advice"),
    [
        (400, "Insufficient balance", "top up"),
        (400, "Sender ID not approved", "sender ID that is approved"),
        (401, "Invalid API key", "SMSID_API_KEY"),
        (429, "Rate limit exceeded", "another program"),
        (500, "Oops", "try again later"),
    ],
)
def test_a_sentence_says_what_the_api_said_and_what_to_do(status, text, advice):
    said = str(error_for(status, text))
    assert said.startswith(f"HTTP {status}, the API said: {text}; ")
    assert advice in said


def test_an_error_without_advice_ends_with_what_the_api_said():
    assert str(error_for(400, "`to` is required")) == "HTTP 400, the API said: `to` is required"


BALANCE_WORDS = [
    "Insufficient balance",
    "INSUFFICIENT BALANCE",
    "Insufficient  account balance",
    "insufficient credit",
    "Insufficient credits.",
    "Insufficient funds",
    "Insufficient prepaid balance for 3 segments",
    "You have insufficient balance to send this message from sender SMSID",
    "Not enough balance",
    "Not enough credits",
    "Low balance",
    "No credit left",
    "Your balance is too low",
    "Your balance is insufficient",
    "Account balance too low to send this message",
    "Credit exhausted",
    "Balance exhausted",
    "Your balance is not enough",
    "Insufficient\nbalance",
]
SENDER_WORDS = [
    "Sender ID not approved",
    "sender_id is not approved",
    "SENDER NOT APPROVED",
    "Unapproved sender",
    "Unapproved sender ID: SMSID",
    "The sender ID is not registered",
    "Unregistered sender id",
    "Sender ID is not authorised for this account",
    "Sender ID is not authorized",
    "This sender is not allowed",
    "sender_id is not permitted",
    "Sender ID pending approval",
    "Sender\nnot approved",
]
OTHER_WORDS = [
    "",
    "Validation error",
    "The to field is required.",
    "The message field is required.",
    "The message may not be greater than 1600 characters.",
    "Invalid phone number",
    "The sender id must be between 2 and 11 characters.",
    "No message",
    "Number not allowed",
    "Not allowed: your balance was not charged",
    "We do not allow this number; balance unchanged",
    "Below the least length; credits were not used",
    "Monthly quota exhausted",
    "Casino texts are not carried; balance unchanged",
]


@pytest.mark.parametrize("text", BALANCE_WORDS)
def test_words_about_the_balance_are_an_insufficient_balance(text):
    assert type(error_for(400, text)) is InsufficientBalanceError


@pytest.mark.parametrize("text", SENDER_WORDS)
def test_words_about_the_sender_are_a_sender_that_is_not_approved(text):
    assert type(error_for(400, text)) is SenderNotApprovedError


@pytest.mark.parametrize("text", OTHER_WORDS)
def test_other_words_are_a_bad_request(text):
    assert type(error_for(400, text)) is BadRequestError


@pytest.mark.parametrize("status", [401, 403, 422, 429, 500])
@pytest.mark.parametrize("text", [BALANCE_WORDS[0], SENDER_WORDS[0]])
def test_the_words_matter_for_a_400_only(status, text):
    kind = type(error_for(status, text))
    assert kind not in (InsufficientBalanceError, SenderNotApprovedError)


# -- masking --------------------------------------------------------------------------


def shown(error):
    return f"{error!s}\n{error!r}\n{error.text}\n{error.args}"


@pytest.mark.parametrize(
    "said",
    [
        TO,
        TO[1:],
        "00" + TO[1:],
        "0" + TO[3:],
        "+44 7700 900123",
        "+44-7700-900-123",
        "(+44) 7700.900.123",
        "07700 900123",
    ],
)
@pytest.mark.parametrize("private", [(), (TO, TEXT)], ids=["unknown", "known"])
def test_a_phone_number_in_any_form_is_masked(said, private):
    error = error_for(400, f"Invalid number {said}, sorry", private=private)
    assert "900123" not in shown(error)
    assert "900.123" not in shown(error)
    assert "900-123" not in shown(error)
    assert "***, sorry" in error.text


@pytest.mark.parametrize("private", [TO, TEXT, CODE, KEY, "4417", "abc"])
def test_what_the_call_sent_is_masked_wherever_it_stands(private):
    error = error_for(401, f"{private} is wrong: '{private}'", private=("x", private, ""))
    assert private not in shown(error)
    assert error.text == "*** is wrong: '***'"


@pytest.mark.parametrize("order", [1, -1])
def test_a_text_with_the_number_in_it_is_masked_as_a_whole(order):
    text = f"Meet me at {TO} tonight"
    error = error_for(400, f"bad text: {text}", private=(TO, text)[::order])
    assert error.text == "bad text: ***"


def test_what_is_too_short_to_be_private_stays():
    assert error_for(400, "a to be", private=("to", "a", "")).text == "a to be"


@pytest.mark.parametrize("said", ["HTTP 400", "code 12345", "1600 characters", "2 to 11", "v1.2.3"])
def test_short_numbers_stay(said):
    assert error_for(400, said).text == said


def test_six_digits_are_masked_even_if_nobody_knows_what_they_are():
    assert error_for(400, "not 904417 but 90441").text == "not *** but 90441"


def test_control_characters_become_spaces():
    said = "a\nb\r\nc\x00d\x1b[31me\u202ef\u2028g\ud800h\x7f"
    error = error_for(400, said)
    assert error.text == "a b  c d [31me f g h "
    assert str(error).isprintable()


def test_a_long_text_is_cut_after_masking():
    said = "x" * 295 + TO + "y" * 1000
    error = error_for(400, said, private=(TO,))
    assert error.text == "x" * 295 + "***" + "yy"


@relaxed
@given(
    st.text(st.characters(codec=None), max_size=40),
    st.text(st.characters(codec=None), max_size=40),
    st.sampled_from([TO, TEXT, CODE, KEY]),
)
def test_no_error_shows_what_is_private_in_whatever_company(before, after, private):
    error = error_for(400, before + private + after, private=(TO, TEXT, CODE, KEY))
    assert private not in shown(error)
    assert len(error.text) <= 300
    assert error.text.isprintable()


def test_money_in_a_fault_is_a_decimal_of_any_finite_size():
    answer = read_answer(200, ENVELOPE % b"1e999999")
    assert answer.data == {"x": Decimal("1e999999")}
