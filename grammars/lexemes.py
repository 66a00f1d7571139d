"""The byte automaton of all strings, as a dense table int16 [states, 256] with DEAD where a byte leads nowhere.

State BODY is between code points, CLOSED after the closing quote; the others are inside an escape or a UTF-8 sequence.
Only well-formed UTF-8 is accepted (no overlong form, no surrogate, nothing above U+10FFFF), and one escape spelling
per code point (spelling.py). How many code points there may be is a counter beside the state.

Every state reaches the accepting one over the vocabulary's spellable bytes: the table is trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from specdec.grammars.walk import DEAD, Table

BODY = 0
CLOSED = 1
_ESCAPE, _U, _U0, _U00, _U000, _U001, _TAIL1, _TAIL2, _E0, _ED, _TAIL3, _F0, _F4 = range(2, 15)
_NUM_STRING_STATES = 15


_CONTINUATION = range(0x80, 0xC0)


def string_table(spellable: frozenset[int]) -> Table:
    """The automaton of string bodies that uses no byte but the spellable ones."""
    edges: list[tuple[int, Iterable[int], int]] = [
        (BODY, (byte for byte in range(0x20, 0x80) if byte not in b'"\\'), BODY),
        (BODY, b'"', CLOSED),
        (BODY, b"\\", _ESCAPE),
        (_ESCAPE, b'"\\bfnrt', BODY),
        (_ESCAPE, b"u", _U),
        (_U, b"0", _U0),
        (_U0, b"0", _U00),
        (_U00, b"0", _U000),
        (_U00, b"1", _U001),
        # U+0008, 9, A, C and D have shorter escapes.
        (_U000, b"01234567bef", BODY),
        (_U001, b"0123456789abcdef", BODY),
        (BODY, range(0xC2, 0xE0), _TAIL1),
        (BODY, [0xE0], _E0),
        (BODY, [*range(0xE1, 0xED), 0xEE, 0xEF], _TAIL2),
        (BODY, [0xED], _ED),
        (BODY, [0xF0], _F0),
        (BODY, range(0xF1, 0xF4), _TAIL3),
        (BODY, [0xF4], _F4),
        (_TAIL1, _CONTINUATION, BODY),
        (_TAIL2, _CONTINUATION, _TAIL1),
        (_TAIL3, _CONTINUATION, _TAIL2),
        (_E0, range(0xA0, 0xC0), _TAIL1),
        (_ED, range(0x80, 0xA0), _TAIL1),
        (_F0, range(0x90, 0xC0), _TAIL2),
        (_F4, range(0x80, 0x90), _TAIL2),
    ]
    return _trimmed(_NUM_STRING_STATES, edges, spellable, accepting={CLOSED})


def _trimmed(
    num_states: int, edges: list[tuple[int, Iterable[int], int]], spellable: frozenset[int], accepting: set[int]
) -> Table:
    """The table of the edges over spellable bytes between states from which an accepting one can be reached."""
    kept = [(source, byte, target) for source, bytes_, target in edges for byte in bytes_ if byte in spellable]
    live = set(accepting)
    grown = True
    while grown:
        reached = {source for source, _, target in kept if target in live}
        grown = not reached <= live
        live |= reached
    table = np.full((num_states, 256), DEAD, np.int16)
    for source, byte, target in kept:
        if target in live:
            table[source, byte] = target
    return table
