"""The formats: for each name the set of strings, or the range of numbers, that have it.

An unknown name constrains nothing. Every language is compiled on first use and kept.
"""

from __future__ import annotations

import functools

import msgspec

from specdec.grammars.format_addresses import ADDRESS_FORMATS
from specdec.grammars.format_names import NAME_FORMATS
from specdec.grammars.format_references import REFERENCE_FORMATS
from specdec.grammars.format_regexes import REGEX_FORMATS
from specdec.grammars.format_syntax import FormatSyntax
from specdec.grammars.format_times import TIME_FORMATS
from specdec.grammars.languages import EVERYTHING, Language
from specdec.grammars.patterns import pattern_language


class NumberFormat(msgspec.Struct, frozen=True):
    """The finite numbers, or the integers, from minimum to maximum; None is no bound."""

    integers_only: bool = False
    minimum: int | None = None
    maximum: int | None = None


_SYNTAX: dict[str, FormatSyntax] = {
    **TIME_FORMATS,
    **ADDRESS_FORMATS,
    **NAME_FORMATS,
    **REFERENCE_FORMATS,
    **REGEX_FORMATS,
}
_NUMBERS = {
    "int32": NumberFormat(integers_only=True, minimum=-(2**31), maximum=2**31 - 1),
    "int64": NumberFormat(integers_only=True, minimum=-(2**63), maximum=2**63 - 1),
    "float": NumberFormat(),
    "double": NumberFormat(),
}

STRING_FORMATS = frozenset(_SYNTAX)
NUMBER_FORMATS = frozenset(_NUMBERS)
FORMATS = STRING_FORMATS | NUMBER_FORMATS


@functools.cache
def format_language(name: str) -> Language | None:
    """The strings that surely have the format, by definition and by the validators; None if it is not of strings."""
    syntax = _SYNTAX.get(name)
    if syntax is None:
        return None
    inner = _whole(syntax.inner)
    return inner if syntax.within is None else inner & pattern_language(syntax.within).inner


@functools.cache
def format_outer(name: str) -> Language | None:
    """A superset of the strings that any validator takes to have the format; None if it is not of strings."""
    syntax = _SYNTAX.get(name)
    if syntax is None:
        return None
    if syntax.is_exact:
        return format_language(name)
    return EVERYTHING if syntax.outer is None else _whole(syntax.outer)


def number_format(name: str) -> NumberFormat | None:
    """The numbers that have the format, None if it is not of numbers."""
    return _NUMBERS.get(name)


def _whole(source: str) -> Language:
    # "$" would not do: `re` lets it stand before a final newline.
    return pattern_language(rf"^(?:{source})(?![\s\S])").inner
