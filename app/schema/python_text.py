r"""Text and numbers of Python 3.14, in every version of Python; pure.

Home Assistant 2026.11 runs on Python 3.14 and writes what `str` and `float` return there. Both
depend on the version of Unicode: `str` of a list escapes characters that are not assigned yet, and
`float` and `\d` accept only assigned digits. Python 3.11 has Unicode 14, 3.14 has 16, and 3.15
has 17. Characters that were assigned in Unicode 14 have not changed in this respect.

In a Python with a newer Unicode `tests/unit/test_python_text.py` fails and shows what is missing.
"""

from __future__ import annotations

import re
import sys

_UNICODE_15_AND_16 = """
897 cf3 ece 1b4e-1b4f 1b7f 1c89-1c8a 2427-2429 2ffc-2fff 31e4-31e5 31ef a7cb-a7cd a7da-a7dc
105c0-105f3 10d40-10d65 10d69-10d85 10d8e-10d8f 10ec2-10ec4 10efc-10eff 1123f-11241
11380-11389 1138b 1138e 11390-113b5 113b7-113c0 113c2 113c5 113c7-113ca 113cc-113d5
113d7-113d8 113e1-113e2 116d0-116e3 11b00-11b09 11bc0-11be1 11bf0-11bf9 11f00-11f10
11f12-11f3a 11f3e-11f5a 1342f 13440-13455 13460-143fa 16100-16139 16d40-16d79 18cff 1b132
1b155 1cc00-1ccf9 1cd00-1ceb3 1d2c0-1d2d3 1df25-1df2a 1e030-1e06d 1e08f 1e4d0-1e4f9
1e5d0-1e5fa 1e5ff 1f6dc 1f774-1f776 1f77b-1f77f 1f7d9 1f8b2-1f8bb 1f8c0-1f8c1 1fa75-1fa77
1fa87-1fa89 1fa8f 1faad-1faaf 1fabb-1fabf 1fac6 1face-1facf 1fada-1fadc 1fadf 1fae8-1fae9
1faf7-1faf8 1fbcb-1fbef 2b739 2ebf0-2ee5d 31350-323af
"""
_UNICODE_17 = """
88f c5c cdc 1acf-1add 1ae0-1aeb 20c1 2b96 a7ce-a7cf a7d2 a7d4 a7f1 fbc3-fbd2 fd90-fd91
fdc8-fdce 10940-10959 10ec5-10ec7 10ed0-10ed8 10efa-10efb 11b60-11b67 11db0-11ddb 11de0-11de9
16ea0-16eb8 16ebb-16ed3 16ff2-16ff6 187f8-187ff 18d09-18d1e 18d80-18df2 1ccfa-1ccfc
1ceba-1ced0 1cee0-1cef0 1e6c0-1e6de 1e6e0-1e6f5 1e6fe-1e6ff 1f6d8 1f777-1f77a 1f8d0-1f8d8
1fa54-1fa57 1fa8a 1fa8e 1fac8 1facd 1faea 1faef 1fbfa 2b73a-2b73f 2cea2-2cead 323b0-33479
"""
_ZEROS_OF_15_AND_16 = (
    0x10D40, 0x116D0, 0x116DA, 0x11BF0, 0x11F50, 0x16130, 0x16D70, 0x1CCF0, 0x1E4F0, 0x1E5F1
)  # fmt: skip
_ZERO_OF_17 = 0x11DE0


def text_of(value: object) -> str:
    """Return `str(value)` of a JSON value."""
    text = str(value)
    return repr_of_3_14(text) if isinstance(value, list | dict) else text


def repr_of_3_14(text: str) -> str:
    """Return what Python 3.14 makes of a list or dict for which this version makes `text`."""
    if "\\" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if sys.version_info >= (3, 15) and not text.isascii():
        text = _TOO_NEW.sub(lambda char: ascii(char[0])[1:-1], text)
    return text


def with_digits_of_3_14(text: str) -> str:
    """Return text in which exactly the digits of Python 3.14 are digits of this version."""
    return text if text.isascii() else _DIGIT.sub(lambda digit: _DIGITS[digit[0]], text)


def _unescaped(escape: re.Match[str]) -> str:
    char = chr(int(escape[1] or escape[2] or "0", 16))
    return char if _NEW.match(char) else escape[0]


def _any_of(ranges: str) -> re.Pattern[str]:
    """Compile a character class of hexadecimal code points and ranges."""
    bounds = [part.partition("-") for part in ranges.split()]
    pairs = [(chr(int(first, 16)), chr(int(last or first, 16))) for first, _, last in bounds]
    return re.compile(f"[{''.join(f'{first}-{last}' for first, last in pairs)}]")


_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|.)")
_NEW = _any_of(_UNICODE_15_AND_16)
_TOO_NEW = _any_of(_UNICODE_17)
_DIGITS = {chr(zero + n): str(n) for zero in _ZEROS_OF_15_AND_16 for n in range(10)}
_DIGITS |= {chr(_ZERO_OF_17 + n): "x" for n in range(10)}
_DIGIT = _any_of(" ".join(f"{zero:x}-{zero + 9:x}" for zero in (*_ZEROS_OF_15_AND_16, _ZERO_OF_17)))
