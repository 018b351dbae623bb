"""The error tree, its promises and its pickles."""

import builtins
import copy
import pickle
import re

import pytest

from smsid_async import errors
from smsid_async.errors import (
    APIError,
    BudgetTimeoutError,
    DeliveryTimeoutError,
    OutcomeUnknownError,
    SMSIDError,
)
from smsid_async.models import DeliveryStatus, MessageStatus

TO = "+447700900123"
TREE = {
    "SMSIDError": ("Exception",),
    "ConfigurationError": ("SMSIDError", "ValueError"),
    "ValidationError": ("SMSIDError", "ValueError"),
    "BudgetTimeoutError": ("SMSIDError", "TimeoutError"),
    "BudgetUnavailableError": ("SMSIDError",),
    "DuplicateReferenceError": ("SMSIDError",),
    "APIError": ("SMSIDError",),
    "BadRequestError": ("APIError",),
    "InsufficientBalanceError": ("BadRequestError",),
    "SenderNotApprovedError": ("BadRequestError",),
    "AuthenticationError": ("APIError",),
    "OTPVerificationError": ("APIError",),
    "RateLimitError": ("APIError",),
    "ServerError": ("APIError",),
    "TransportError": ("SMSIDError",),
    "NotSentError": ("TransportError",),
    "JournalUnavailableError": ("NotSentError",),
    "OutcomeUnknownError": ("TransportError",),
    "InvalidResponseError": ("SMSIDError",),
    "DeliveryTimeoutError": ("SMSIDError", "TimeoutError"),
}
CLASSES = [getattr(errors, name) for name in TREE]
API_CLASSES = [kind for kind in CLASSES if issubclass(kind, APIError)]
TAKE_MAYBE_SENT = [kind for kind in CLASSES if kind is not DeliveryTimeoutError]

every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
api_class = pytest.mark.parametrize("kind", API_CLASSES, ids=lambda kind: kind.__name__)
protocols = pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))


def example(kind):
    """An error of this class with every attribute set to something of its own."""
    if issubclass(kind, APIError):
        return kind(
            "no",
            status_code=418,
            code=419,
            text="said",
            retry_after=1.5,
            raw={"to": TO},
            maybe_sent=True,
        )
    if kind is BudgetTimeoutError:
        return kind("no", retry_after=2.5, maybe_sent=True)
    if kind is DeliveryTimeoutError:
        return kind("no", last=MessageStatus("id", DeliveryStatus.SENT))
    return kind("no", maybe_sent=True)


def without_raw(error):
    return {name: None if name == "raw" else value for name, value in vars(error).items()}


def drawn_tree(docstring):
    """Read the tree that the docstring draws: a name and its parent, and what is beside it."""
    path = []
    for line in docstring.splitlines():
        match = re.fullmatch(r" {4}([│├└─ ]*)(\w+Error)(?: +\(also (\w+)\))?", line)
        if match:
            depth, name, beside = len(match[1]) // 4, match[2], match[3]
            del path[depth:]
            yield name, (path[-1] if path else "Exception", *([beside] if beside else []))
            path.append(name)


def test_the_tree_is_the_one_in_the_design():
    found = {
        name: tuple(base.__name__ for base in kind.__bases__)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    assert found == TREE


def test_the_docstring_draws_the_tree_that_the_classes_have():
    assert dict(drawn_tree(errors.__doc__)) == TREE


def test_all_names_every_error_and_nothing_else():
    assert sorted(errors.__all__) == errors.__all__
    assert set(errors.__all__) == set(TREE)


@every_class
def test_every_error_has_a_sentence_about_itself(kind):
    assert kind.__dict__["__doc__"].strip().endswith((".", "`"))


@every_class
def test_maybe_sent_is_false_for_all_but_an_unknown_outcome(kind):
    assert kind.maybe_sent is (kind is OutcomeUnknownError)
    assert kind("no").maybe_sent is (kind is OutcomeUnknownError)


@pytest.mark.parametrize("kind", TAKE_MAYBE_SENT, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("said", [True, False])
def test_maybe_sent_can_be_said_for_one_error_alone(kind, said):
    assert kind("no", maybe_sent=said).maybe_sent is said
    assert kind.maybe_sent is (kind is OutcomeUnknownError)


def test_a_delivery_timeout_cannot_be_told_that_it_may_have_sent():
    with pytest.raises(TypeError):
        DeliveryTimeoutError("no", maybe_sent=True)


@every_class
def test_an_error_needs_no_argument_and_shows_its_message_only(kind):
    assert str(kind()) == ""
    assert str(example(kind)) == "no"
    assert TO not in repr(example(kind))
    assert example(kind).args == ("no",)


@api_class
def test_an_api_error_without_details_has_none(kind):
    error = kind("no")
    details = (error.status_code, error.code, error.text, error.retry_after, error.raw)
    assert details == (0, None, "", None, None)


@api_class
def test_an_api_error_carries_what_the_api_said(kind):
    error = example(kind)
    details = (error.status_code, error.code, error.text, error.retry_after, error.raw)
    assert details == (418, 419, "said", 1.5, {"to": TO})


def test_a_budget_timeout_tells_when_to_come_back():
    assert BudgetTimeoutError("no").retry_after is None
    assert BudgetTimeoutError("no", retry_after=2.5).retry_after == 2.5


def test_a_delivery_timeout_tells_the_last_status():
    last = MessageStatus("id", DeliveryStatus.QUEUED)
    assert DeliveryTimeoutError("no").last is None
    assert DeliveryTimeoutError("no", last=last).last is last


@every_class
@protocols
def test_a_pickled_error_comes_back_as_it_was_but_for_raw(kind, protocol):
    error = example(kind)
    pickled = pickle.dumps(error, protocol)
    back = pickle.loads(pickled)
    assert type(back) is kind
    assert (back.args, str(back)) == (error.args, str(error))
    assert back.maybe_sent is error.maybe_sent
    assert vars(back) == without_raw(error)
    assert TO[1:].encode() not in pickled


@every_class
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copied_error_comes_back_as_it_was_but_for_raw(kind, copied):
    error = example(kind)
    back = copied(error)
    assert type(back) is kind
    assert back is not error
    assert vars(back) == without_raw(error)


@every_class
def test_every_error_is_caught_by_the_base_and_by_the_built_in_beside_it(kind):
    for base in TREE[kind.__name__]:
        with pytest.raises(getattr(errors, base, None) or getattr(builtins, base)):
            raise kind("no")
    with pytest.raises(SMSIDError):
        raise kind("no")
