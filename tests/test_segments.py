"""Segments, against a slow reference that puts every unit in its place."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smsid_async.segments import Segments, count_segments

# GSM 03.38, one row of sixteen after another; position 0x1B is the escape.
TABLE = (
    "@£$¥èéùìòÇ\nØø\rÅå"
    "Δ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ"
    " !\"#¤%&'()*+,-./"
    "0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNO"
    "PQRSTUVWXYZÄÖÑÜ§"
    "¿abcdefghijklmno"
    "pqrstuvwxyzäöñüà"
)
ESCAPE = 0x1B
EXTENSION_TABLE = {
    "\f": 0x0A,
    "^": 0x14,
    "{": 0x28,
    "}": 0x29,
    "\\": 0x2F,
    "[": 0x3C,
    "~": 0x3D,
    "]": 0x3E,
    "|": 0x40,
    "€": 0x65,
}
SEPTETS = {character: (at,) for at, character in enumerate(TABLE) if at != ESCAPE} | {
    character: (ESCAPE, at) for character, at in EXTENSION_TABLE.items()
}
BASIC = [character for character in SEPTETS if len(SEPTETS[character]) == 1]
EXTENDED = list(EXTENSION_TABLE)

gsm_texts = st.text(st.sampled_from([*"ab\n", *BASIC, *EXTENDED * 4]), max_size=400)
wide_texts = st.text(
    st.sampled_from("abЖ字😀🇬👍\u200d€") | st.characters(exclude_categories=["Cs"]), max_size=200
)
relaxed = settings(deadline=None)


def split_gsm(text):
    """Split into lists of septets, never between an escape and what it escapes."""
    parts = [[]]
    for character in text:
        units = SEPTETS[character]
        if len(parts[-1]) + len(units) > 153:
            parts.append([])
        parts[-1].extend(units)
    return parts


def split_ucs2(text):
    """Split UTF-16 code units at 67, one earlier where that is inside a pair."""
    raw = text.encode("utf-16-be")
    units = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2)]
    parts = []
    while units:
        size = min(67, len(units))
        if size < len(units) and 0xD800 <= units[size - 1] <= 0xDBFF:
            size -= 1
        parts.append(units[:size])
        units = units[size:]
    return parts


def reference(text):
    if all(character in SEPTETS for character in text):
        encoding, parts, alone, joined = "GSM-7", split_gsm(text), 160, 153
    else:
        encoding, parts, alone, joined = "UCS-2", split_ucs2(text), 70, 67
    units = sum(map(len, parts))
    if units <= alone:
        return Segments(encoding, units, 1 if units else 0, alone)
    return Segments(encoding, units, len(parts), joined)


def counted(text):
    result = count_segments(text)
    return (result.encoding, result.units, result.segments, result.units_per_segment)


def test_the_alphabet_has_127_characters_and_10_more_behind_the_escape():
    assert len(BASIC) == len(set(TABLE)) - 1 == 127
    assert len(EXTENDED) == 10


@pytest.mark.parametrize("character", BASIC, ids=ascii)
def test_every_basic_character_takes_one_septet(character):
    assert counted(character) == ("GSM-7", 1, 1, 160)


@pytest.mark.parametrize("character", EXTENDED, ids=ascii)
def test_every_extension_character_takes_two_septets(character):
    assert counted(character) == ("GSM-7", 2, 1, 160)


def test_every_other_character_of_the_basic_plane_needs_ucs2():
    for code in range(0x10000):
        character = chr(code)
        if 0xD800 <= code <= 0xDFFF:
            continue
        expected = "GSM-7" if character in SEPTETS else "UCS-2"
        assert count_segments(character).encoding == expected, hex(code)


@pytest.mark.parametrize("character", ["`", "ç", "\x1b", "\t", "\u2019", "Ж", "字", "á"], ids=ascii)
def test_a_character_that_looks_common_but_is_not_in_gsm_needs_ucs2(character):
    assert counted(character) == ("UCS-2", 1, 1, 70)
    assert counted("a" * 69 + character) == ("UCS-2", 70, 1, 70)


@pytest.mark.parametrize("character", ["😀", "\U00010000", "\U0010ffff"], ids=ascii)
def test_a_character_beyond_the_basic_plane_takes_two_units(character):
    assert counted(character) == ("UCS-2", 2, 1, 70)


def test_the_last_character_of_the_basic_plane_takes_one_unit():
    assert counted("\uffff") == ("UCS-2", 1, 1, 70)


def test_an_empty_text_takes_no_segment():
    assert counted("") == ("GSM-7", 0, 0, 160)


@pytest.mark.parametrize(
    ("length", "segments", "room"),
    [
        (1, 1, 160),
        (153, 1, 160),
        (160, 1, 160),
        (161, 2, 153),
        (306, 2, 153),
        (307, 3, 153),
        (459, 3, 153),
        (460, 4, 153),
        (1600, 11, 153),
    ],
)
def test_plain_gsm_texts_are_split_at_the_documented_lengths(length, segments, room):
    assert counted("a" * length) == ("GSM-7", length, segments, room)


@pytest.mark.parametrize(
    ("length", "segments", "room"),
    [
        (1, 1, 70),
        (67, 1, 70),
        (70, 1, 70),
        (71, 2, 67),
        (134, 2, 67),
        (135, 3, 67),
        (201, 3, 67),
        (202, 4, 67),
        (1600, 24, 67),
    ],
)
def test_plain_ucs2_texts_are_split_at_the_documented_lengths(length, segments, room):
    assert counted("Ж" * length) == ("UCS-2", length, segments, room)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("€" * 80, ("GSM-7", 160, 1, 160)),
        ("€" * 81, ("GSM-7", 162, 2, 153)),
        ("€" * 76 + "a" + "€" * 77, ("GSM-7", 307, 3, 153)),
        ("€" * 152, ("GSM-7", 304, 2, 153)),
        ("€" * 153, ("GSM-7", 306, 3, 153)),  # 306 septets would fit two, but for the pairs
        ("a" * 152 + "€" + "a" * 151, ("GSM-7", 305, 2, 153)),
        ("a" * 152 + "€" + "a" * 152, ("GSM-7", 306, 3, 153)),
        ("a" * 151 + "€" + "a" * 153, ("GSM-7", 306, 2, 153)),
        ("a" * 158 + "€", ("GSM-7", 160, 1, 160)),
        ("a" * 159 + "€", ("GSM-7", 161, 2, 153)),
    ],
)
def test_an_extension_character_is_never_split(text, expected):
    assert counted(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("😀" * 35, ("UCS-2", 70, 1, 70)),
        ("😀" * 36, ("UCS-2", 72, 2, 67)),
        ("😀" * 66, ("UCS-2", 132, 2, 67)),
        ("😀" * 67, ("UCS-2", 134, 3, 67)),  # 134 units would fit two, but for the pairs
        ("Ж" * 66 + "😀" + "Ж" * 65, ("UCS-2", 133, 2, 67)),
        ("Ж" * 66 + "😀" + "Ж" * 66, ("UCS-2", 134, 3, 67)),
        ("Ж" * 65 + "😀" + "Ж" * 67, ("UCS-2", 134, 2, 67)),
        ("Ж" * 69 + "😀", ("UCS-2", 71, 2, 67)),
    ],
)
def test_a_surrogate_pair_is_never_split(text, expected):
    assert counted(text) == expected


def test_an_extension_character_in_a_ucs2_text_takes_one_unit():
    assert counted("Ж" + "€" * 69) == ("UCS-2", 70, 1, 70)


@relaxed
@given(gsm_texts)
@example("€" * 153)
@example("a" * 152 + "€" + "a" * 152)
def test_gsm_texts_agree_with_the_reference(text):
    assert count_segments(text) == reference(text)


@relaxed
@given(wide_texts)
@example("😀" * 67)
@example("Ж" * 66 + "😀" + "Ж" * 66)
def test_all_texts_agree_with_the_reference(text):
    assert count_segments(text) == reference(text)


@relaxed
@given(wide_texts | gsm_texts, st.integers(1, 6))
def test_long_texts_agree_with_the_reference(text, times):
    assert count_segments(text * times) == reference(text * times)


@relaxed
@given(wide_texts | gsm_texts, wide_texts | gsm_texts)
def test_a_longer_text_never_takes_less(start, end):
    assert count_segments(start + end).segments >= count_segments(start).segments
