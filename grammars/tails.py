"""Tails: how a scalar that was begun ends soonest, in bytes."""

from __future__ import annotations

from collections.abc import Iterator

from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.lexemes import BODY, CLOSED
from specdec.grammars.lexicon import Lexicon
from specdec.grammars.numerals import NumeralAutomaton
from specdec.grammars.speller import Speller
from specdec.grammars.text_automaton import TextAutomaton
from specdec.grammars.walk import DEAD

_MAX_CODE_POINTS = 4096
"""No tail has more of them; a schema that asks for longer strings than this has no bounded answer here."""


class Tails:
    """Of one lexicon's automata, each worked out once."""

    def __init__(self, lexicon: Lexicon, speller: Speller) -> None:
        self._plain_steps = lexicon.plain_steps
        self._byte_order = speller.byte_order
        self._place_of_byte = {byte: place for place, byte in enumerate(speller.byte_order)}
        self._of_text: BoundedCache[tuple[TextAutomaton, int, int, int], bytes] = BoundedCache(8192)
        self._code_points: BoundedCache[tuple[TextAutomaton, int], tuple[tuple[bytes, int], ...]] = BoundedCache(8192)
        self._to_body = self._find_tails_to_body()
        self.longest_to_body = max(map(len, self._to_body))
        """The most bytes that it takes to complete a code point of a plain string."""

    def to_body(self, state: int) -> bytes:
        """The bytes that complete a code point of a plain string."""
        return self._to_body[state]

    @staticmethod
    def of_number(automaton: NumeralAutomaton, state: int) -> tuple[bytes, int]:
        """The bytes to the nearest state where a numeral may end, and that state."""
        following, _ = automaton.nearest_ends()
        tail = bytearray()
        while not automaton.accepting[state]:
            byte = following[state]
            tail.append(byte)
            state = automaton.steps[state][byte]
        return bytes(tail), state

    @staticmethod
    def longest_of_number(automaton: NumeralAutomaton) -> int:
        """The most bytes that it takes, from any state, to one where a numeral may end."""
        return automaton.nearest_ends()[1]

    def of_text(self, automaton: TextAutomaton, state: int, length: int, term: int) -> bytes | None:
        """The bytes to a shortest member of a term that goes on so, closing quote included.

        None where the term cannot accept any more, or the tail is too long.
        """
        if not automaton.is_live_for(term, state, length):
            return None
        key = (automaton, state, length, term)
        known = self._of_text.get(key)
        if known is None:
            found = self._find_text(automaton, state, length, term)
            if found is None:
                return None
            known = found
            self._of_text.put(key, known)
        return known

    def code_points(self, automaton: TextAutomaton, state: int) -> tuple[tuple[bytes, int], ...]:
        """(bytes, target) to each state between code points that the next one, or the rest of this one, leads to."""
        known = self._code_points.get((automaton, state))
        if known is None:
            known = tuple(_walk_code_points(automaton, state, self._byte_order))
            self._code_points.put((automaton, state), known)
        return known

    def _find_text(self, automaton: TextAutomaton, state: int, length: int, term: int) -> bytes | None:
        tail = bytearray()
        low = int(automaton.lows[term]) if automaton.is_counted else 0
        for _ in range(_MAX_CODE_POINTS):
            if term in automaton.accepts[state] and (not automaton.is_counted or length >= low):
                return bytes(tail) + b'"'
            begun = length + int(automaton.is_boundary[state])
            best: tuple[int, int, int, bytes, int] | None = None
            for data, target in self.code_points(automaton, state):
                if not automaton.is_live_for(term, target, begun):
                    continue
                left = int(automaton.shortest[term, target])
                # While more code points are asked for, all that leave room are alike.
                left = left if begun >= low else max(left, low - begun)
                # A pattern often allows digits and letters: digits are mostly spelt one by one.
                rank = (left, len(data), self._place_of_byte[data[0]], data, target)
                best = rank if best is None else min(best, rank)
            if best is None:
                return None
            tail += best[3]
            state, length = best[4], begun
        return None

    def _find_tails_to_body(self) -> list[bytes]:
        tails: dict[int, bytes] = {BODY: b""}
        grown = True
        while grown:
            grown = False
            for state, row in enumerate(self._plain_steps):
                if state in tails or state == CLOSED:
                    continue
                for byte, target in enumerate(row):
                    if target in tails:
                        tail = bytes((byte,)) + tails[target]
                        if state not in tails or len(tail) < len(tails[state]):
                            tails[state] = tail
                            grown = True
        return [tails.get(state, b"") for state in range(len(self._plain_steps))]


def _walk_code_points(automaton: TextAutomaton, state: int, byte_order: bytes) -> Iterator[tuple[bytes, int]]:
    pending = [(state, b"")]
    seen: set[int] = set()
    while pending:
        current, data = pending.pop(0)
        for byte in byte_order:
            target = automaton.steps[current][byte]
            if target in (DEAD, CLOSED) or target in seen:
                continue
            seen.add(target)
            if automaton.is_boundary[target]:
                yield data + bytes((byte,)), target
            else:
                pending.append((target, data + bytes((byte,))))
