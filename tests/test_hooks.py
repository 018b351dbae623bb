"""The events that observers are told."""

import inspect

import attrs
import pytest

from smsid_async import hooks
from smsid_async.budget import Priority
from smsid_async.hooks import AttemptFinished
from smsid_async.models import Outcome

EVENT = AttemptFinished(
    method="POST",
    path="/sms/send",
    attempt=1,
    priority=Priority.BULK,
    waited=0.25,
    duration=0.5,
    status_code=200,
    outcome=Outcome.SENT,
    error=None,
)


def test_an_event_holds_what_happened_and_nothing_private():
    assert {field.name for field in attrs.fields(AttemptFinished)} == {
        "method",
        "path",
        "attempt",
        "priority",
        "waited",
        "duration",
        "status_code",
        "outcome",
        "error",
    }


def test_an_event_is_frozen_and_takes_no_new_attribute():
    for name in [*attrs.asdict(EVENT), "to"]:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(EVENT, name, None)


def test_an_event_is_a_value():
    assert attrs.evolve(EVENT) == EVENT
    assert hash(attrs.evolve(EVENT)) == hash(EVENT)
    assert attrs.evolve(EVENT, attempt=2) != EVENT


def test_every_field_of_an_event_stands_in_its_docstring():
    for name in attrs.asdict(EVENT):
        assert f"\n    {name}: " in inspect.getdoc(AttemptFinished)


def test_the_module_exports_the_event_and_the_protocol():
    assert sorted(hooks.__all__) == hooks.__all__
    assert {"AttemptFinished", "Event", "Hook"} <= set(hooks.__all__)
    for name in hooks.__all__:
        assert hasattr(hooks, name)


def test_any_callable_that_takes_one_event_is_a_hook():
    seen = []
    hook: hooks.Hook = seen.append
    hook(EVENT)
    assert seen == [EVENT]
    assert hooks.Hook.__call__(hook, EVENT) is None
