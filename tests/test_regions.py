"""National phone numbers to E.164."""

from __future__ import annotations

import sys

import pytest
from conftest import NUMBER

from smsid_async import ConfigurationError, ValidationError
from smsid_async.bulk import Region

READ = [
    "07700900123",
    "07700 900123",
    "(07700) 900-123",
    " 07700.900.123 ",
    "+447700900123",
    "+44 7700 900123",
    "0044 7700 900123",
    "+44 (0) 7700 900123",
    "７７００９００１２３",  # noqa: RUF001 - digits of full width
]


@pytest.mark.parametrize("written", READ)
def test_a_number_as_people_write_it(written: str) -> None:
    assert Region("GB")(written) == NUMBER


def test_an_international_number_keeps_its_country() -> None:
    assert Region("US")("+44 7700 900123") == NUMBER


REFUSED = [
    "",
    "none",
    "+",
    "07700",
    "900123",  # possible within one town only
    "077009001234567",
    "07700 900123 ext. 5",
    "+999 7700 900123",
    "0" * 300,
]


@pytest.mark.parametrize("written", REFUSED)
def test_what_is_no_number_is_refused_without_showing_it(written: str) -> None:
    with pytest.raises(ValidationError, match="is not a phone number of GB, nor one") as caught:
        Region("GB")(written)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "900123" not in str(caught.value)
    assert len(written) < 5 or written not in str(caught.value)


@pytest.mark.parametrize("code", ["", "gb", "UK", "XX", "GBR", "44", "001"])
def test_no_such_region(code: str) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no region '{code}'; give an ISO 3166"):
        Region(code)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'smsid-async\[phonenumbers\]'"):
        Region("GB")


def test_two_of_one_country_are_the_same() -> None:
    assert Region("GB") == Region("GB") != Region("IE")
    assert repr(Region("GB")) == "Region(code='GB')"  # it is part of what a file is known by
