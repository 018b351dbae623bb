"""The values: what passes, what is refused, and what they show."""

import pickle
from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsid_async.errors import InvalidResponseError, OTPVerificationError, ValidationError
from smsid_async.models import (
    Balance,
    DeliveryStatus,
    Message,
    MessageStatus,
    OTPReceipt,
    OTPVerification,
    Outcome,
    SendReceipt,
    SendResult,
    check_code,
    check_message_id,
    check_number,
    check_sender,
    check_text,
    mask_number,
)

TO = "+447700900123"
TEXT = "a private text"
OTHER = {"more": 1, "fields": [None], "pass": {"deep": True}}

NOT_TEXTS = [None, 1, Decimal("1.5"), True, [], {}]
NOT_STRINGS = [None, 7, 1.5, True, b"bytes", ["a"], object()]

AMOUNTS = [
    ("1,234.5000", Decimal("1234.5000")),
    ("12,345,678", Decimal(12345678)),
    ("0.0400", Decimal("0.0400")),
    ("95.6000", Decimal("95.6000")),
    ("-3.5", Decimal("-3.5")),
    ("+3", Decimal(3)),
    ("0", Decimal(0)),
    ("9" * 18, Decimal("9" * 18)),
    ("1." + "0" * 18, Decimal(1)),
    (95, Decimal(95)),
    (0, Decimal(0)),
    (-1, Decimal(-1)),
    (10**18 - 1, Decimal(10**18 - 1)),
    (Decimal("95.60"), Decimal("95.60")),
    (Decimal("1E+2"), Decimal(100)),
    (Decimal("0.0"), Decimal(0)),
]
HOSTILE_AMOUNTS = [
    "NaN",
    "nan",
    "sNaN",
    "Infinity",
    "-inf",
    "1e999999",
    "1e2",
    "\uff11\uff12",  # full-width digits
    "\u0661\u0662",  # Arabic-Indic digits
    "1_000",
    "1,00.00",
    "1000,00",
    ",100",
    "1,000,",
    "1.",
    ".5",
    "--1",
    "+",
    "0x10",
    "",
    " 1",
    "1 ",
    "1\n",
    "1\x00",
    "9" * 19,
    "1." + "0" * 19,
    True,
    False,
    10**18,
    -(10**18),
    10**5000,
    1.5,
    float("nan"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("-Infinity"),
    Decimal("1e999999"),
    Decimal("1e18"),
    Decimal("1e-31"),
    [],
    {},
    ["1"],
]
MONEY_FIELDS = [
    (SendReceipt, "cost", "cost"),
    (SendReceipt, "remaining_balance", "remaining_balance"),
    (Balance, "balance", "amount"),
]
money_fields = pytest.mark.parametrize(("kind", "field", "attribute"), MONEY_FIELDS)
relaxed = settings(deadline=None)


def anything_from_json():
    scalars = st.none() | st.booleans() | st.integers() | st.decimals() | st.text(max_size=8)
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=6,
    )


def examples():
    """One value of each class, with a private number, text and raw in it."""
    raw = {"to": TO, "message": TEXT}
    message = Message(TO, TEXT, "SMSID", "order-17")
    receipt = SendReceipt("id-1", "success", Decimal("0.04"), None, raw)
    return [
        message,
        receipt,
        MessageStatus("id-1", DeliveryStatus.SENT, raw),
        OTPReceipt("sent", TO, raw),
        OTPVerification("verified", True, raw),
        Balance(Decimal("95.6"), raw),
        SendResult(3, message, Outcome.SENT, receipt),
    ]


every_value = pytest.mark.parametrize("value", examples(), ids=lambda value: type(value).__name__)
with_raw = pytest.mark.parametrize(
    "value",
    [value for value in examples() if hasattr(value, "raw")],
    ids=lambda value: type(value).__name__,
)


# -- what all values have in common ---------------------------------------------


@every_value
def test_a_value_is_frozen_and_takes_no_new_attribute(value):
    for field in attrs.fields(type(value)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field.name, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.surprise = 1


@every_value
def test_no_repr_shows_a_number_a_text_or_the_raw_answer(value):
    shown = repr(value)
    assert shown.startswith(type(value).__name__ + "(")
    assert TO not in shown
    assert TO[1:-3] not in shown
    assert TEXT not in shown
    assert "raw" not in shown
    assert str(value) == shown


def test_a_repr_still_helps_to_tell_messages_apart():
    assert repr(Message(TO, TEXT, "SMSID", "order-17")) == (
        "Message(to=***123, text=<14 characters>, sender_id='SMSID', reference='order-17')"
    )


@pytest.mark.parametrize("odd", NOT_STRINGS)
def test_the_repr_of_a_message_made_of_nonsense_shows_none_of_it(odd):
    assert repr(Message(odd, odd)) == (
        "Message(to=***, text=<not a text>, sender_id=None, reference=None)"
    )


@with_raw
def test_raw_has_no_part_in_equality_or_hash(value):
    twin = attrs.evolve(value, raw={"something": "else"})
    assert twin == value
    assert hash(twin) == hash(value)
    assert twin.raw != value.raw


@with_raw
def test_raw_is_an_empty_dict_of_its_own_by_default(value):
    fields = {f.name: getattr(value, f.name) for f in attrs.fields(type(value)) if f.name != "raw"}
    one, two = type(value)(**fields), type(value)(**fields)
    assert one.raw == {}
    assert one.raw is not two.raw


@every_value
def test_a_value_survives_a_pickle(value):
    back = pickle.loads(pickle.dumps(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(TO, "***123"), (TO[:7], "***700"), (TO[:6], "***"), ("", "***"), (None, "***"), (447, "***")],
)
def test_a_masked_number_shows_three_digits_at_the_most(number, shown):
    assert mask_number(number) == shown


def test_the_words_of_the_enumerations_are_the_documented_ones():
    assert [str(word) for word in Outcome] == ["sent", "rejected", "not_sent", "unknown"]
    assert [str(word) for word in DeliveryStatus] == [
        "queued",
        "sent",
        "delivered",
        "failed",
        "unrecognised",
    ]


# -- answers ---------------------------------------------------------------------


def test_a_receipt_is_read_as_documented():
    data = {
        "status": "success",
        "message_id": "Dcshuhod0PMAAAFQ",
        "cost": "0.0400",
        "remaining_balance": "95.6000",
    }
    receipt = SendReceipt.from_wire(data)
    assert receipt == SendReceipt(
        "Dcshuhod0PMAAAFQ", "success", Decimal("0.0400"), Decimal("95.6000")
    )
    assert receipt.raw is data


def test_a_receipt_needs_a_message_id_only():
    assert SendReceipt.from_wire({"message_id": "id"}) == SendReceipt("id", "", None, None)


@pytest.mark.parametrize("odd", ["", *NOT_TEXTS])
def test_a_receipt_without_a_message_id_is_refused(odd):
    with pytest.raises(InvalidResponseError, match="message_id"):
        SendReceipt.from_wire({"status": "success", "message_id": odd})
    with pytest.raises(InvalidResponseError, match="message_id"):
        SendReceipt.from_wire({"status": "success"})


READERS = {
    "SendReceipt": (SendReceipt.from_wire, {"message_id": "id"}),
    "OTPReceipt": (lambda data: OTPReceipt.from_wire(data, to=TO), {}),
    "OTPVerification": (OTPVerification.from_wire, {"verified": True}),
    "Balance": (Balance.from_wire, {"balance": "1"}),
    "MessageStatus": (
        lambda data: MessageStatus.from_wire(data, message_id="id"),
        {"status": "sent"},
    ),
}
every_reader = pytest.mark.parametrize(("read", "least"), list(READERS.values()), ids=list(READERS))


@every_reader
def test_unknown_fields_pass_and_stay_in_raw(read, least):
    data = OTHER | least
    value = read(data)
    assert value == read(least)
    assert value.raw is data


@pytest.mark.parametrize("name", ["SendReceipt", "OTPReceipt", "OTPVerification"])
@pytest.mark.parametrize(("word", "read_as"), [("any word", "any word"), (None, ""), ("", "")])
def test_the_word_of_the_api_is_kept_and_need_not_be_there(name, word, read_as):
    read, least = READERS[name]
    assert read(least | {"status": word}).status == read_as
    assert read(least).status == ""


@pytest.mark.parametrize("name", ["SendReceipt", "OTPReceipt", "OTPVerification"])
@pytest.mark.parametrize("odd", [odd for odd in NOT_TEXTS if odd is not None])
def test_a_word_that_is_no_text_is_refused(name, odd):
    read, least = READERS[name]
    with pytest.raises(InvalidResponseError, match="status"):
        read(least | {"status": odd})


@money_fields
@pytest.mark.parametrize(("wire", "amount"), AMOUNTS)
def test_money_is_read_exactly(kind, field, attribute, wire, amount):
    value = getattr(kind.from_wire({"message_id": "id", field: wire}), attribute)
    assert type(value) is Decimal
    assert value == amount


def test_money_keeps_the_places_that_the_api_wrote():
    assert str(Balance.from_wire({"balance": "95.6000"}).amount) == "95.6000"


@money_fields
@pytest.mark.parametrize(
    "wire",
    HOSTILE_AMOUNTS,
    ids=lambda wire: ascii(wire)[:24] if not isinstance(wire, int) else f"int{wire.bit_length()}",
)
def test_hostile_money_is_refused(kind, field, attribute, wire):
    with pytest.raises(InvalidResponseError, match=field):
        kind.from_wire({"message_id": "id", field: wire})


@pytest.mark.parametrize("data", [{}, {"balance": None}, {"amount": "1"}])
def test_a_balance_without_an_amount_is_refused(data):
    with pytest.raises(InvalidResponseError, match="no `balance`"):
        Balance.from_wire(data)


@pytest.mark.parametrize("field", ["cost", "remaining_balance"])
def test_a_receipt_without_money_has_none(field):
    assert getattr(SendReceipt.from_wire({"message_id": "id", field: None}), field) is None
    assert getattr(SendReceipt.from_wire({"message_id": "id"}), field) is None


@relaxed
@given(anything_from_json())
def test_money_is_finite_or_refused_whatever_the_answer_holds(wire):
    try:
        amount = Balance.from_wire({"balance": wire}).amount
    except InvalidResponseError:
        return
    assert amount.is_finite()
    assert abs(amount) < 10**18


@relaxed
@given(
    data=st.dictionaries(
        st.sampled_from(["status", "message_id", "verified", "balance", "cost", "to", "state"]),
        anything_from_json(),
    )
)
def test_an_answer_is_read_or_refused_and_nothing_else_comes_out(data):
    for read, _ in READERS.values():
        try:
            value = read(data)
        except (InvalidResponseError, OTPVerificationError):
            continue
        assert value.raw is data


# -- statuses ---------------------------------------------------------------------


@pytest.mark.parametrize("word", ["queued", "sent", "delivered", "failed"])
@pytest.mark.parametrize("form", [str, str.upper, str.capitalize, " {} ".format])
def test_a_documented_status_is_known_in_any_case(word, form):
    status = MessageStatus.from_wire({"status": form(word)}, message_id="id")
    assert status.status is DeliveryStatus(word)
    assert status.message_id == "id"


@pytest.mark.parametrize(
    "word", ["expired", "UNDELIVERABLE", "deliver", "sent!", "unrecognised", " "]
)
def test_any_other_status_is_unrecognised_and_its_word_stays_in_raw(word):
    status = MessageStatus.from_wire({"status": word}, message_id="id")
    assert status.status is DeliveryStatus.UNRECOGNISED
    assert status.raw["status"] == word
    assert not status.is_final


@pytest.mark.parametrize("odd", ["", *NOT_TEXTS])
def test_a_status_that_is_no_word_is_refused(odd):
    with pytest.raises(InvalidResponseError, match="status"):
        MessageStatus.from_wire({"status": odd}, message_id="id")
    with pytest.raises(InvalidResponseError, match="status"):
        MessageStatus.from_wire({}, message_id="id")


def test_only_delivered_and_failed_are_final():
    final = {word for word in DeliveryStatus if word.is_final}
    assert final == {DeliveryStatus.DELIVERED, DeliveryStatus.FAILED}
    for word in DeliveryStatus:
        assert MessageStatus("id", word).is_final is word.is_final


@pytest.mark.parametrize("field", ["delivery_status", "message_status", "state"])
def test_a_field_that_says_delivery_wins_over_the_word_about_the_call(field):
    data = {"status": "success", field: "delivered"}
    status = MessageStatus.from_wire(data, message_id="id")
    assert status.status is DeliveryStatus.DELIVERED


@pytest.mark.parametrize("field", ["delivery_status", "message_status", "state"])
@pytest.mark.parametrize("odd", ["", *NOT_TEXTS])
def test_an_undocumented_field_without_a_word_does_not_hide_the_status(field, odd):
    status = MessageStatus.from_wire({"status": "delivered", field: odd}, message_id="id")
    assert status.status is DeliveryStatus.DELIVERED


def test_an_answer_that_names_the_message_asked_for_passes():
    status = MessageStatus.from_wire({"status": "sent", "message_id": "id"}, message_id="id")
    assert status.message_id == "id"


@pytest.mark.parametrize("other", ["another", "ID", "", None, 7])
def test_an_answer_about_another_message_is_refused(other):
    with pytest.raises(InvalidResponseError, match="another message"):
        MessageStatus.from_wire({"status": "sent", "message_id": other}, message_id="id")


# -- one-time codes ----------------------------------------------------------------


def test_a_one_time_code_receipt_names_the_number_asked_for():
    receipt = OTPReceipt.from_wire({"status": "sent", "to": "0770"}, to=TO)
    assert receipt == OTPReceipt("sent", TO)


def test_only_a_plain_true_verifies():
    verification = OTPVerification.from_wire({"status": "verified", "verified": True})
    assert verification == OTPVerification("verified", True)
    assert verification.verified is True


def test_a_plain_false_is_a_wrong_code_that_came_with_http_200():
    with pytest.raises(OTPVerificationError) as caught:
        OTPVerification.from_wire({"status": "verified", "verified": False})
    assert (caught.value.status_code, caught.value.code) == (200, 200)
    assert caught.value.maybe_sent is False


@pytest.mark.parametrize("odd", ["true", "True", "", 1, 0, Decimal(1), None, [True], {"a": True}])
def test_anything_else_in_verified_is_refused(odd):
    with pytest.raises(InvalidResponseError, match="verified: true"):
        OTPVerification.from_wire({"status": "verified", "verified": odd})


def test_a_status_verified_alone_does_not_verify():
    with pytest.raises(InvalidResponseError, match="verified: true"):
        OTPVerification.from_wire({"status": "verified"})


# -- what is checked before anything is sent ----------------------------------------


@pytest.mark.parametrize("number", [TO, TO[:8], TO + "000"], ids=["usual", "7 digits", "15 digits"])
def test_a_number_in_e164_passes_as_it_is(number):
    assert check_number(number) is number


@pytest.mark.parametrize(
    "number",
    [
        "",
        "+",
        TO[1:],
        "00" + TO[1:],
        "07700900123",
        TO[:7],
        TO + "0000",
        "+0" + TO[2:],
        "+44 7700 900123",
        "+44-7700-900123",
        "(+44)7700900123",
        " " + TO,
        TO + " ",
        TO + "\n",
        "\n" + TO,
        TO + "\x00",
        "\u202a" + TO,  # a direction mark, as copied from a chat
        "\uff0b" + TO[1:],  # a full-width plus
        "+" + "".join(chr(0xFF10 + int(digit)) for digit in TO[1:]),  # full-width digits
        "+" + "".join(chr(0x0660 + int(digit)) for digit in TO[1:]),  # Arabic-Indic digits
        "+44770090012²",
        "+44770090012x",
        "++" + TO[1:],
        *NOT_STRINGS,
    ],
    ids=ascii,
)
def test_a_number_in_any_other_form_is_refused_and_not_shown(number):
    with pytest.raises(ValidationError) as caught:
        check_number(number)
    said = str(caught.value)
    assert said.endswith("such as " + TO)
    assert "447700" not in said.removesuffix(TO)


@relaxed
@given(st.text(alphabet="+0123456789 ()-.\n\u0661\uff11", max_size=18))
def test_a_number_passes_only_as_plus_and_7_to_15_ascii_digits(number):
    digits = number[1:]
    good = (
        number[:1] == "+"
        and 7 <= len(digits) <= 15
        and all(digit in "0123456789" for digit in digits)
        and digits[0] != "0"
    )
    try:
        passed = check_number(number) == number
    except ValidationError:
        passed = False
    assert passed is good


@pytest.mark.parametrize("text", ["x", "x" * 1600, "é" * 1600, "😀" * 1600, "\n", "\x00", "0"])
def test_a_text_of_1_to_1600_characters_passes(text):
    assert check_text(text) is text


@pytest.mark.parametrize("text", ["", "x" * 1601, "😀" * 1601])
def test_a_text_of_another_length_is_refused(text):
    with pytest.raises(ValidationError, match="1 to 1600"):
        check_text(text)


@pytest.mark.parametrize("text", NOT_STRINGS)
def test_a_text_that_is_no_str_is_refused(text):
    with pytest.raises(ValidationError, match="not a str"):
        check_text(text)


@pytest.mark.parametrize("half", ["\ud83d", "\ude00\ud83d"])
def test_half_a_surrogate_pair_is_refused_and_the_text_is_nowhere_in_the_error(half):
    with pytest.raises(ValidationError, match="surrogate") as caught:
        check_text(TEXT + half)
    error = caught.value
    assert TEXT not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None


@relaxed
@given(st.text(st.characters(codec=None), max_size=5))
def test_a_text_that_passes_can_be_encoded(text):
    try:
        check_text(text)
    except ValidationError:
        assert not text or any("\ud800" <= character <= "\udfff" for character in text)
    else:
        assert text.encode().decode() == text


@pytest.mark.parametrize("sender", ["ab", "SMSID", "12345678901", "Café", "A B"])
def test_a_sender_of_2_to_11_printable_characters_passes(sender):
    assert check_sender(sender) is sender


@pytest.mark.parametrize("sender", ["", "a", "123456789012"])
def test_a_sender_of_another_length_is_refused(sender):
    with pytest.raises(ValidationError, match="2 to 11"):
        check_sender(sender)


@pytest.mark.parametrize("sender", ["a\n", "\x00b", "ab\x7f", "a\u202eb", "\ud83dx", "a\u2028b"])
def test_a_sender_with_control_characters_is_refused(sender):
    with pytest.raises(ValidationError, match="control"):
        check_sender(sender)


@pytest.mark.parametrize("sender", NOT_STRINGS)
def test_a_sender_that_is_no_str_is_refused(sender):
    with pytest.raises(ValidationError, match="not a str"):
        check_sender(sender)


@pytest.mark.parametrize("code", ["123456", "000000", "0", "ab-12", "12 34"])
def test_a_code_passes_as_it_is(code):
    assert check_code(code) is code


@pytest.mark.parametrize("code", ["", " ", "   ", "12\n", "\t", "1\x002", "\ud83d", "\u202e12"])
def test_an_empty_code_or_one_with_control_characters_is_refused_and_not_shown(code):
    with pytest.raises(ValidationError, match="empty or has control") as caught:
        check_code(code)
    assert "12" not in str(caught.value)


@pytest.mark.parametrize("code", [None, 123456, 12.5, True, b"123456", ["1"]])
def test_a_code_that_is_no_str_is_refused_and_not_shown(code):
    with pytest.raises(ValidationError, match="not a str") as caught:
        check_code(code)
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("message_id", ["id", "Dcshuhod0PMAAAFQ...", " a ", "é", "😀"])
def test_a_message_id_passes_as_it_is(message_id):
    assert check_message_id(message_id) is message_id


@pytest.mark.parametrize("message_id", ["", " ", "\n", *NOT_STRINGS])
def test_an_empty_message_id_is_refused(message_id):
    with pytest.raises(ValidationError, match="message ID"):
        check_message_id(message_id)


@pytest.mark.parametrize("message_id", ["\ud83d", "id\udc80"])
def test_a_message_id_that_cannot_be_encoded_is_refused(message_id):
    with pytest.raises(ValidationError, match="message ID") as caught:
        check_message_id(message_id)
    assert caught.value.__context__ is None
