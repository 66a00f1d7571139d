r"""Regular expressions: a regular part of what both ECMA-262 (Unicode mode) and Python's `re` compile.

Groups nest MAX_NESTING deep, look-ahead holds none. Left out, for one of the two refuses it or the set would not be
regular: back-references, named groups, look-behind, property escapes, repeated assertions, bare braces, "[" and
doubled operators in classes, ranges other than between two digits, two capital or two small letters, and pairs of
counts with the same number of tens.
"""

from __future__ import annotations

import string

from specdec.grammars.format_addresses import HEX
from specdec.grammars.format_syntax import FormatSyntax

MAX_NESTING = 2

_SYNTAX_CHARACTER = r"[\^$\\.*+?()[\]{}|/]"
# A code point of four digits that is no surrogate.
_HEX_ESCAPE = f"(?:x{HEX}{{2}}|u(?:[0-9A-CEFa-cef]{HEX}{{3}}|[Dd][0-7]{HEX}{{2}}))"
_ESCAPE = rf"\\(?:[dDwWsStnrfv]|{_SYNTAX_CHARACTER}|{_HEX_ESCAPE})"


def _ascending(alphabet: str, between: str) -> str:
    """Source of two characters of the alphabet in its order, with the text between."""
    return "|".join(f"{low}{between}[{low}-{alphabet[-1]}]" for low in alphabet)


_RANGE = "|".join(_ascending(a, "-") for a in (string.digits, string.ascii_uppercase, string.ascii_lowercase))
# "&&", "~~" and "||" are reserved by `re`; "^" is one only at the start.
_CLASS_CHARACTER = r"[^\\\[\]^\-&~|]"
_OPERATOR = r"[&~|]"
_CLASS_ITEM = rf"(?:{_RANGE}|{_CLASS_CHARACTER}|{_ESCAPE}|\\-)"
_CLASS = rf"\[\^?-?(?:{_CLASS_ITEM}|{_OPERATOR}{_CLASS_ITEM})+{_OPERATOR}?-?\]"

_TWO_COUNTS = "|".join(
    [
        "0,[0-9]",
        _ascending(string.digits[1:], ","),
        "[0-9],[1-9][0-9]{1,2}",
        "[1-9][0-9],[1-9][0-9]{2}",
        *(f"{tens}[0-9],[{tens + 1}-9][0-9]" for tens in range(1, 9)),
    ]
)
_QUANTIFIER = rf"(?:[*+?]|\{{(?:[0-9]|[1-9][0-9]{{1,2}}),?\}}|\{{(?:{_TWO_COUNTS})\}})\??"
_ATOM = rf"(?:[^\^$\\.*+?()[\]{{}}|]|\.|{_ESCAPE}|{_CLASS})"


def _expression(group: str = "") -> str:
    """Source of alternatives of quantified atoms and groups, and of assertions."""
    return rf"(?:(?:{_ATOM}{group})(?:{_QUANTIFIER})?|\(\?[=!]{_LOOK}\)|\^|\$|\\[bB]|\|)*"


_LOOK = f"(?:{_ATOM}(?:{_QUANTIFIER})?|[|])*"
_REGEX = _expression()
for _ in range(MAX_NESTING):
    _REGEX = _expression(rf"|\((?:\?:)?{_REGEX}\)")

# Which strings `re` compiles is no regular set.
REGEX_FORMATS = {"regex": FormatSyntax(inner=_REGEX)}
