"""In how many segments a text is sent, and so charged: GSM 03.38 or UCS-2."""

__all__ = ["count_segments"]

_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION = frozenset("\f^{}\\[~]|€")  # each takes an escape before it: two units


def count_segments(text: str) -> int:
    """Return the number of segments of `text`: 160/153 GSM units each, else 70/67 UCS-2 units."""
    characters = set(text)
    if characters <= _BASIC:
        return 1 if len(text) <= 160 else -(-len(text) // 153)
    if characters <= _BASIC | _EXTENSION:
        return _pack([2 if character in _EXTENSION else 1 for character in text], 160, 153)
    return _pack([2 if ord(character) > 0xFFFF else 1 for character in text], 70, 67)


def _pack(widths: list[int], single: int, part: int) -> int:
    """Fill parts with characters of one or two units, never dividing a character."""
    if sum(widths) <= single:
        return 1
    segments, room = 1, part
    for width in widths:
        if width > room:
            segments, room = segments + 1, part
        room -= width
    return segments
