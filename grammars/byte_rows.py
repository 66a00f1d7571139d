"""ByteRows: transitions over code points, opened into transitions over the bytes that spell them.

Rows that lead to the same targets by the same bytes are one, so that ranges of code points share their continuation
bytes. Surrogates have no UTF-8 and are left out.
"""

from __future__ import annotations

from collections.abc import Callable

_BLOCKS = ((0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
"""Code points of two, three (but for surrogates) and four bytes."""


class ByteRows:
    """The rows of a byte automaton, each from a byte to the number of another row."""

    def __init__(
        self, spellable: frozenset[int], spell_ascii: Callable[[int], bytes], *, num_reserved: int = 0
    ) -> None:
        """No byte is used but the spellable ones. The first rows are reserved, and stay empty."""
        self.rows: list[dict[int, int]] = [{} for _ in range(num_reserved)]
        self.leaves: dict[int, set[int]] = {}
        """Of each row inside a code point, the rows that the code point may lead to."""
        self._spellable = spellable
        self._spell_ascii = spell_ascii
        self._inner: dict[tuple[tuple[int, int], ...], int] = {}
        self._whole: dict[tuple[int, int], int | None] = {}
        """The row from which any that many continuation bytes lead to a target."""

    def add(self) -> int:
        """A new row between code points."""
        self.rows.append({})
        return len(self.rows) - 1

    def open(self, row: int, ranges: dict[int, list[tuple[int, int]]]) -> None:
        """Give a row its transitions: for each target the disjoint ranges of code points that lead to it."""
        trie: dict[int, object] = {}
        for target, members in ranges.items():
            for low, high in members:
                self._add_ascii(trie, low, min(high, 0x7F), target)
                for first, last in _BLOCKS:
                    begin, end = max(low, first), min(high, last)
                    if begin <= end:
                        self._add_range(trie, chr(begin).encode(), chr(end).encode(), target)
        for byte, child in trie.items():
            reached = self._close(child)
            if reached is not None and byte in self._spellable:
                self.rows[row][byte] = reached

    def _add_ascii(self, trie: dict[int, object], low: int, high: int, target: int) -> None:
        for point in range(low, high + 1):
            node = trie
            spelling = self._spell_ascii(point)
            for byte in spelling[:-1]:
                inner = node.setdefault(byte, {})
                assert isinstance(inner, dict)
                node = inner
            node[spelling[-1]] = target

    def _add_range(self, node: dict[int, object], low: bytes, high: bytes, target: int) -> None:
        """UTF-8 sequences of one length from low to high; at most four bytes deep."""
        if len(low) == 1:
            for byte in range(low[0], high[0] + 1):
                node[byte] = target
            return
        lowest, highest = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
        for byte in range(low[0], high[0] + 1):
            rest_low = low[1:] if byte == low[0] else lowest
            rest_high = high[1:] if byte == high[0] else highest
            if rest_low == lowest and rest_high == highest and byte not in node:
                node[byte] = (len(low) - 1, target)
                continue
            inner = node.get(byte)
            if not isinstance(inner, dict):
                assert inner is None, "ranges are disjoint"
                inner = node[byte] = {}
            self._add_range(inner, rest_low, rest_high, target)

    def _close(self, child: object) -> int | None:
        """The row of a node of the trie; None where the vocabulary cannot spell what is below it."""
        if isinstance(child, int):
            return child
        if isinstance(child, tuple):
            if child not in self._whole:
                num_left, target = child
                below = target if num_left == 1 else (num_left - 1, target)
                self._whole[child] = self._close(dict.fromkeys(range(0x80, 0xC0), below))
            return self._whole[child]
        assert isinstance(child, dict)
        members = []
        leaves: set[int] = set()
        known: dict[object, int | None] = {}
        for byte in sorted(child):
            below = child[byte]
            key = id(below) if isinstance(below, dict) else below
            if key not in known:
                known[key] = self._close(below)
            reached = known[key]
            if reached is not None and byte in self._spellable:
                members.append((byte, reached))
                leaves |= self.leaves.get(reached, {reached})
        if not members:
            return None
        content = tuple(members)
        row = self._inner.get(content)
        if row is None:
            row = self._inner[content] = len(self.rows)
            self.rows.append(dict(members))
            self.leaves[row] = leaves
        return row
