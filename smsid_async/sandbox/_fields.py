"""Reading a request's JSON body: each field is checked before anything is done with it."""

import json
import re
from typing import NoReturn

from smsid_async.sandbox._records import RefusedError

__all__ = ["Fields"]

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


class Fields:
    """The fields of a JSON object.

    Raises:
        RefusedError: 400, in the constructor or a method, for what is missing or wrong.
    """

    def __init__(self, body: bytes) -> None:
        try:
            fields = json.loads(body.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):  # bad UTF-8, JSON, huge number; too deeply nested
            raise RefusedError(400, "The body must be valid JSON") from None
        if not isinstance(fields, dict):
            raise RefusedError(400, "The body must be a JSON object")
        self._fields: dict[str, object] = fields

    def number(self) -> str:
        """Return `to`, a phone number in international format (E.164)."""
        number = self.string("to")
        if not _E164.fullmatch(number):
            raise RefusedError(400, "The to field must be a number in international format")
        return number

    def message(self) -> str:
        """Return `message`, a text of 1 to 1600 characters."""
        text = self.string("message")
        if not 1 <= len(text) <= 1600:
            raise RefusedError(400, "The message field must be 1 to 1600 characters")
        return text

    def sender_id(self) -> str | None:
        """Return `sender_id`, 2 to 11 characters; None if it was not given."""
        if "sender_id" not in self._fields:
            return None
        sender = self.string("sender_id")
        if not 2 <= len(sender) <= 11:
            raise RefusedError(400, "The sender_id field must be 2 to 11 characters")
        return sender

    def string(self, name: str) -> str:
        """Return a required field of type string."""
        if name not in self._fields:
            raise RefusedError(400, f"The {name} field is required")
        value = self._fields[name]
        if not isinstance(value, str):
            raise RefusedError(400, f"The {name} field must be a string")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise RefusedError(400, f"The {name} field must be valid Unicode") from None
        return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and the infinities are no JSON
