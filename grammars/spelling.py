"""The one text of a JSON value that a grammar can produce where the value is known in advance.

Compact, keys in the order given, and one escape spelling per code point: the two-character escape where JSON has
one, \\u00xx for the other control characters, the character itself for everything else. It is what
json.dumps(value, ensure_ascii=False, separators=(",", ":")) writes. One spelling per code point makes equality of
strings and of keys equality of bytes.
"""

from __future__ import annotations

import json


def spell_string(value: str) -> bytes | None:
    """The string with its closing quote, without the opening one; None for a lone surrogate, which no text has."""
    try:
        return json.dumps(value, ensure_ascii=False)[1:].encode()
    except UnicodeEncodeError:
        return None


def spell_number(value: float) -> bytes:
    """The number as Python's json module writes it: 1.0 keeps its fraction, 1 has none."""
    return json.dumps(value).encode()
