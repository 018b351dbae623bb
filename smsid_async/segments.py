"""How many SMS segments a text takes: GSM 03.38 or UCS-2 arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Segments", "count_segments"]

_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = frozenset("\f^{}\\[~]|€")  # each sent as an escape and one more unit
_GSM = _BASIC | _EXTENSION

_GSM_UNITS = (160, 153)  # alone, and beside the header that joins several
_UCS2_UNITS = (70, 67)
_LAST_OF_BASIC_PLANE = 0xFFFF


@attrs.frozen
class Segments:
    """What a text takes on the air.

    Attributes:
        encoding: `"GSM-7"` or `"UCS-2"`.
        units: Septets (GSM-7) or 16-bit code units (UCS-2) of the whole text.
        segments: Messages that the network carries, and that are charged.
        units_per_segment: Room in each: 160 or 70 for one, 153 or 67 for several.
    """

    encoding: str
    units: int
    segments: int
    units_per_segment: int


def count_segments(text: str) -> Segments:
    """Count the segments of a text.

    Args:
        text: The message text. One character outside GSM 03.38 makes it UCS-2.

    Returns:
        The encoding, units and segments. An escape pair or a surrogate pair is
        never split between two segments, so a long text may take one more than
        its units alone would need.
    """
    wide: Callable[[str], bool]
    if _GSM.issuperset(text):
        doubles = sum(map(text.count, _EXTENSION))
        wide, encoding, room = _is_extension, "GSM-7", _GSM_UNITS
    else:
        doubles = sum(map(_is_surrogate_pair, text))
        wide, encoding, room = _is_surrogate_pair, "UCS-2", _UCS2_UNITS
    units = len(text) + doubles
    alone, joined = room
    if units <= alone:
        return Segments(encoding, units, min(units, 1), alone)
    if not doubles:
        return Segments(encoding, units, -(-units // joined), joined)
    sizes = (2 if wide(character) else 1 for character in text)
    return Segments(encoding, units, _packed(sizes, joined), joined)


def _is_extension(character: str) -> bool:
    return character in _EXTENSION


def _is_surrogate_pair(character: str) -> bool:
    return ord(character) > _LAST_OF_BASIC_PLANE


def _packed(sizes: Iterable[int], room: int) -> int:
    """Fill segments in order, moving what does not fit whole to the next."""
    segments, used = 1, 0
    for size in sizes:
        if used + size > room:
            segments, used = segments + 1, 0
        used += size
    return segments
