"""Sets of code points as sorted, disjoint, non-adjacent ranges, ends included, without surrogates."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

Ranges = tuple[tuple[int, int], ...]

_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


def as_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The union of the ranges, in whatever order, less the surrogates."""
    merged: list[tuple[int, int]] = []
    first, last = _SURROGATES
    pieces = [
        piece
        for low, high in ranges
        for piece in ((low, min(high, first - 1)), (max(low, last + 1), high))
        if piece[0] <= piece[1]
    ]
    for low, high in sorted(pieces):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def of_characters(characters: str) -> Ranges:
    return as_ranges((ord(character), ord(character)) for character in characters)


def complement(ranges: Ranges) -> Ranges:
    starts = [0, *(high + 1 for _, high in ranges)]
    ends = [*(low - 1 for low, _ in ranges), _MAX_CODE_POINT]
    return as_ranges((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


EVERY_CODE_POINT = as_ranges([(0, _MAX_CODE_POINT)])
DIGIT = of_characters("0123456789")
WORD = as_ranges([*DIGIT, (0x41, 0x5A), (0x61, 0x7A), (0x5F, 0x5F)])
SPACE = as_ranges(
    [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
     (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)  # fmt: skip
NOT_LINE_END = complement(of_characters("\n\r\u2028\u2029"))

_LONG_CATEGORIES = {
    "Cased_Letter": "LC", "Close_Punctuation": "Pe", "Connector_Punctuation": "Pc", "Control": "Cc", "cntrl": "Cc",
    "Currency_Symbol": "Sc", "Dash_Punctuation": "Pd", "Decimal_Number": "Nd", "digit": "Nd", "Enclosing_Mark": "Me",
    "Final_Punctuation": "Pf", "Format": "Cf", "Initial_Punctuation": "Pi", "Letter": "L", "Letter_Number": "Nl",
    "Line_Separator": "Zl", "Lowercase_Letter": "Ll", "Mark": "M", "Combining_Mark": "M", "Math_Symbol": "Sm",
    "Modifier_Letter": "Lm", "Modifier_Symbol": "Sk", "Nonspacing_Mark": "Mn", "Number": "N",
    "Open_Punctuation": "Ps", "Other": "C", "Other_Letter": "Lo", "Other_Number": "No", "Other_Punctuation": "Po",
    "Other_Symbol": "So", "Paragraph_Separator": "Zp", "Private_Use": "Co", "Punctuation": "P", "punct": "P",
    "Separator": "Z", "Space_Separator": "Zs", "Spacing_Mark": "Mc", "Surrogate": "Cs", "Symbol": "S",
    "Titlecase_Letter": "Lt", "Unassigned": "Cn", "Uppercase_Letter": "Lu",
}  # fmt: skip

_BINARY_PROPERTIES: dict[str, Callable[[str], bool]] = {
    "Lowercase": str.islower,
    "Lower": str.islower,
    "Uppercase": str.isupper,
    "Upper": str.isupper,
    "XID_Start": lambda c: c != "_" and c.isidentifier(),
    "XIDS": lambda c: c != "_" and c.isidentifier(),
    "XID_Continue": lambda c: ("a" + c).isidentifier(),
    "XIDC": lambda c: ("a" + c).isidentifier(),
}
_WHITE_SPACE = as_ranges([*(span for span in SPACE if span[0] != 0xFEFF), (0x85, 0x85)])
_HEXADECIMAL = as_ranges([*DIGIT, (0x41, 0x46), (0x61, 0x66)])
_FIXED_PROPERTIES: dict[str, Ranges] = {
    "Any": EVERY_CODE_POINT,
    "ASCII": ((0, 0x7F),),
    "ASCII_Hex_Digit": _HEXADECIMAL,
    "AHex": _HEXADECIMAL,
    "White_Space": _WHITE_SPACE,
    "space": _WHITE_SPACE,
}


@functools.cache
def python_class(escape: str) -> Ranges:
    """What an escape such as \\w, or `.`, matches in Python's re: found out by asking it."""
    everything = "".join(map(chr, range(_MAX_CODE_POINT + 1)))
    return as_ranges((match.start(), match.end() - 1) for match in re.finditer(f"(?:{escape})+", everything))


@functools.cache
def property_set(name: str) -> Ranges | None:
    """The set of ECMA-262's \\p{name}, as this Python's Unicode has it; None where it is not known here."""
    key, equals, value = name.partition("=")
    if equals:
        return _category_set(value) if key in {"gc", "General_Category"} else None
    if name in _FIXED_PROPERTIES:
        return _FIXED_PROPERTIES[name]
    if name == "Assigned":
        return complement(_category_set("Cn") or ())
    if name in _BINARY_PROPERTIES:
        holds = _BINARY_PROPERTIES[name]
        return as_ranges((point, point) for point in range(_MAX_CODE_POINT + 1) if holds(chr(point)))
    return _category_set(name)


def _category_set(name: str) -> Ranges | None:
    short = _LONG_CATEGORIES.get(name, name)
    names = {"Lu", "Ll", "Lt"} if short == "LC" else {one for one in _categories() if short in {one, one[0]}}
    if not names and short != "Cs":
        return None
    return as_ranges(span for one in names for span in _categories()[one])


@functools.cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = {}
    start, current = 0, unicodedata.category("\0")
    for point in range(1, _MAX_CODE_POINT + 1):
        category = unicodedata.category(chr(point))
        if category != current:
            spans.setdefault(current, []).append((start, point - 1))
            start, current = point, category
    spans.setdefault(current, []).append((start, _MAX_CODE_POINT))
    return spans
