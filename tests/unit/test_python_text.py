"""Python 3.14's text of lists, and its digits, in this version of Python."""

from __future__ import annotations

import sys

import pytest

from app.schema.python_text import repr_of_3_14, text_of, with_digits_of_3_14
from tests.fakes import python_3_14

# Planes 4 to 13 are empty, and 15 and 16 are for private use.
_ALL = [chr(code) for code in (*range(0x40000), *range(0xE0000, 0xE1000))]


def test_a_list_with_any_character_is_written_as_by_python_3_14() -> None:
    """All planes that have characters."""
    differing = [char for char in _ALL if text_of([char]) != python_3_14.repr_of([char])]

    assert differing == []


def test_any_character_is_a_digit_exactly_if_it_is_one_in_python_3_14() -> None:
    """All planes that have characters."""
    values = [
        int(digit) if (digit := with_digits_of_3_14(char)).isdecimal() else None for char in _ALL
    ]

    assert values == [python_3_14.digit(char) for char in _ALL]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"['\U0001fa77', '\u0897']", "['\U0001fa77', '\u0897']"),
        (r"['\\U0001fa77', '\\\\u0897']", r"['\\U0001fa77', '\\\\u0897']"),
        (r"['\\\U0001fa77']", "['\\\\\U0001fa77']"),
        (r"['\ud83e', '\u2028', '\x85', '\U000e0001', '\n']",) * 2,
        (r"['\U0001fac8']",) * 2,  # not assigned in Unicode 16
    ],
    ids=["newer characters", "text that looks like one", "after a backslash", "others", "unknown"],
)
def test_only_the_escape_of_a_character_that_python_3_14_prints_is_undone(
    text: str, expected: str
) -> None:
    """Everything else in the text of a list remains."""
    assert repr_of_3_14(text) == expected


def test_the_text_of_a_string_is_the_string() -> None:
    """It holds no escapes, whatever it looks like."""
    assert text_of(r"\U0001fa77") == r"\U0001fa77"


def test_the_recording_agrees_with_unicode_as_far_as_this_python_knows_it() -> None:
    """Nothing that was assigned before Python 3.14 changed."""
    if sys.version_info >= (3, 15):
        pytest.skip("this Python knows more than 3.14")
    assert not [char for char in _ALL if char.isprintable() and not python_3_14.is_printable(char)]
