"""National phone numbers, such as `07700 900123`, to E.164; needs the extra `phonenumbers`."""

from __future__ import annotations

import attrs

from smsid_async.errors import ConfigurationError, ValidationError
from smsid_async.models import check_number, mask_number

__all__ = ["Region"]


@attrs.frozen
class Region:
    """Reads numbers as people of a country write them.

    Args:
        code: The country as ISO 3166 has it, such as `GB`.

    Raises:
        ConfigurationError: There is no such country, or the extra is missing.
    """

    code: str

    def __attrs_post_init__(self) -> None:
        try:
            import phonenumbers  # noqa: PLC0415 - its extra may be missing
        except ImportError as exc:
            raise ConfigurationError(
                "national numbers need the extra: pip install 'smsid-async[phonenumbers]'"
            ) from exc
        if self.code not in phonenumbers.SUPPORTED_REGIONS:
            raise ConfigurationError(
                f"there is no region {self.code!r}; give an ISO 3166 code such as GB"
            )

    def __call__(self, number: str) -> str:
        """Return the number in E.164, or raise `ValidationError`."""
        import phonenumbers  # noqa: PLC0415 - likewise

        try:
            parsed = phonenumbers.parse(number, self.code)
        except phonenumbers.NumberParseException:
            parsed = None
        possible = phonenumbers.ValidationResult.IS_POSSIBLE  # and not only within one town
        if (
            parsed is None
            or parsed.extension
            or phonenumbers.is_possible_number_with_reason(parsed) != possible
        ):
            raise ValidationError(
                f"{mask_number(number)} is not a phone number of {self.code}, nor one in E.164 form"
            ) from None
        return check_number(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
