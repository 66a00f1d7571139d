"""The byte automata of strings and numbers, as dense tables int16 [states, 256] with DEAD where a byte leads nowhere.

Strings: state BODY is between code points, CLOSED after the closing quote; the others are inside an escape or a
UTF-8 sequence. Only well-formed UTF-8 is accepted (no overlong form, no surrogate, nothing above U+10FFFF), and
one escape spelling per code point (spelling.py). How many code points there may be is a counter beside the state.

Numbers: at most 15 significant digits with a fraction or an exponent, 18 in an integer, two in an exponent, so
that no number is ever too long, infinite, or changed by a double. An integer has no fraction and no exponent, and
zero is not spelt "-0".

Every state of both reaches an accepting one over the vocabulary's spellable bytes: the tables are trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.walk import DEAD, Table

BODY = 0
CLOSED = 1
_ESCAPE, _U, _U0, _U00, _U000, _U001, _TAIL1, _TAIL2, _E0, _ED, _TAIL3, _F0, _F4 = range(2, 15)
_NUM_STRING_STATES = 15

MAX_INTEGER_DIGITS = 18
MAX_SIGNIFICANT_DIGITS = 15

_DIGITS = b"0123456789"
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


class NumberAutomaton:
    """A number's table and, per state, whether the bytes so far are a number and whether they are an integer."""

    START = 0

    def __init__(self, spellable: frozenset[int], *, integers_only: bool) -> None:
        names: list[tuple[str, int]] = [("start", 0)]
        edges: list[tuple[int, Iterable[int], int]] = []

        def state(name: str, num_digits: int = 0) -> int:
            if (name, num_digits) not in names:
                names.append((name, num_digits))
            return names.index((name, num_digits))

        edges += [(state(sign), b"123456789", state("integer", 1)) for sign in ("start", "minus")]
        edges += [(state("start"), b"-", state("minus")), (state("start"), b"0", state("zero"))]
        for digits in range(1, MAX_INTEGER_DIGITS):
            edges.append((state("integer", digits), _DIGITS, state("integer", digits + 1)))
        if not integers_only:
            edges.append((state("minus"), b"0", state("minus zero")))
            edges += [(state(zero), b".", state("point")) for zero in ("zero", "minus zero")]
            for digits in range(1, MAX_SIGNIFICANT_DIGITS):
                edges.append((state("integer", digits), b".", state("point", digits)))
            for digits in range(MAX_SIGNIFICANT_DIGITS):
                edges.append((state("point", digits), _DIGITS, state("fraction", digits + 1)))
                edges.append((state("fraction", digits), _DIGITS, state("fraction", digits + 1)))
            for digits in range(1, MAX_SIGNIFICANT_DIGITS + 1):
                edges += [(state(part, digits), b"e", state("e")) for part in ("integer", "fraction")]
            edges += [
                (state("e"), b"+-", state("e sign")),
                (state("e"), _DIGITS, state("exponent", 1)),
                (state("e sign"), _DIGITS, state("exponent", 1)),
                (state("exponent", 1), _DIGITS, state("exponent", 2)),
            ]
        self.is_integer: NDArray[np.uint8] = np.array([name in {"zero", "integer"} for name, _ in names], np.uint8)
        self.is_number: NDArray[np.uint8] = np.array(
            [name in {"zero", "integer", "fraction", "exponent"} for name, _ in names], np.uint8
        )
        self.table = _trimmed(len(names), edges, spellable, set(np.flatnonzero(self.is_number).tolist()))
        self.steps: list[list[int]] = self.table.tolist()
        """The table as lists, which Python indexes faster."""
        self.is_final = [all(target == DEAD for target in row) for row in self.steps]


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
