"""The one text of a string that a grammar can produce where it is known in advance.

One escape spelling per code point: the two-character escape where JSON has
one, \\u00xx for the other control characters, the character itself for everything else. It is what
json.dumps(value, ensure_ascii=False) writes. One spelling per code point makes equality of
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
