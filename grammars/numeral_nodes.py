"""The nodes of the automaton of a set's numerals, made from the leaves up so that equal ones are one."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.decimals import MAX_INTEGER_DIGITS, MAX_SIGNIFICANT_DIGITS, exact, numeral, plain, regular_numeral
from specdec.grammars.errors import LimitExceededError
from specdec.grammars.multiples import Condition
from specdec.grammars.numbers import NumberSet
from specdec.grammars.numeral_cells import Cell, Conditions, Grids, mirrored
from specdec.grammars.walk import DEAD, Table

_MAX_FINITE_VALUES = 64
_DIGITS = b"0123456789"

_Node: TypeAlias = tuple[bool, tuple[tuple[int, int], ...]]
"""Whether a numeral may end here, and the node that each byte leads to."""


class NumeralNodes:
    """Nodes from the leaves up, each made once for all prefixes whose cells are equal, and once for equal nodes.

    The methods that make nodes give None where no numeral follows, and call each other once per digit at most.
    """

    def __init__(self, numbers: NumberSet, spellable: frozenset[int], canonical: bool, max_states: int) -> None:
        self._numbers = numbers
        self._spellable = spellable
        self._is_canonical = canonical
        self._max_states = min(max_states, np.iinfo(np.int16).max)
        self._nodes: list[_Node] = []
        self._node_ids: dict[_Node, int] = {}
        self._integers: dict[tuple[Cell | None, ...], int | None] = {}
        self._stretches: dict[tuple[int, int, Condition, int], int | None] = {}
        self._fractions: dict[tuple[Cell, bool], int | None] = {}
        self._points: dict[Cell, int | None] = {}
        self._has_fractions = not (numbers & ~NumberSet.INTEGERS).is_empty()
        self._exponent = None
        if not canonical and (~numbers).is_empty():
            self._exponent = self._exponent_node()

    def tables(self) -> tuple[Table, NDArray[np.uint8]]:
        """The arrays of a NumeralAutomaton; one dead state where there are no numerals."""
        conditions = Conditions()
        positive = Grids(self._numbers, conditions)
        negative = Grids(mirrored(self._numbers), conditions)
        minus = self._node(False, [(ord("0"), self._zero(negative, False)), *self._first_digits(negative)])
        has_zero = self._numbers.holds(Fraction(0))
        edges = [(ord("-"), minus), (ord("0"), self._zero(positive, has_zero)), *self._first_digits(positive)]
        start = self._node(False, edges)
        for text in self._whole_numerals():
            start = self._with_text(start, text)
        return self._tables(start)

    def _node(self, accepts: bool, edges: Iterable[tuple[int, int | None]]) -> int | None:
        kept = tuple([(byte, to) for byte, to in edges if to is not None and byte in self._spellable])
        if not accepts and not kept:
            return None
        node = (accepts, kept)
        if node not in self._node_ids:
            check_states(len(self._nodes) + 1, self._max_states)
            self._node_ids[node] = len(self._nodes)
            self._nodes.append(node)
        return self._node_ids[node]

    def _first_digits(self, grids: Grids) -> list[tuple[int, int | None]]:
        return [(byte, self._integer(grids, byte - 0x30, 1)) for byte in b"123456789"]

    def _zero(self, grids: Grids, accepts: bool) -> int | None:
        point = self._point(grids, 0, MAX_SIGNIFICANT_DIGITS) if self._has_fractions else None
        return self._node(accepts, [(ord("."), point)])

    def _integer(self, grids: Grids, prefix: int, num_digits: int) -> int | None:
        """After the digits of an integer that is not 0."""
        stretch = grids.stretch(prefix, MAX_INTEGER_DIGITS - num_digits)
        if stretch is None:
            return self._integer_of_cells(grids, prefix, num_digits)
        key = (num_digits, *stretch)
        if key not in self._stretches:
            self._stretches[key] = self._integer_of_cells(grids, prefix, num_digits)
        return self._stretches[key]

    def _integer_of_cells(self, grids: Grids, prefix: int, num_digits: int) -> int | None:
        cells: list[Cell | None] = []
        for num_more in range(MAX_INTEGER_DIGITS - num_digits + 1):
            num_decimals = self._max_decimals(num_digits + num_more)
            cells.append(grids[num_decimals].cell(prefix, num_more + num_decimals))
        while cells and cells[-1] is None:
            cells.pop()
        key = tuple(cells)
        if not key:
            return None
        if key not in self._integers:
            edges: list[tuple[int, int | None]] = []
            num_decimals = self._max_decimals(num_digits)
            if num_decimals:
                edges.append((ord("."), self._point(grids, prefix, num_decimals)))
            if len(key) > 1:
                edges += [(byte, self._integer(grids, 10 * prefix + byte - 0x30, num_digits + 1)) for byte in _DIGITS]
            if num_digits <= MAX_SIGNIFICANT_DIGITS:
                edges.append((ord("e"), self._exponent))
            self._integers[key] = self._node(grids[0].holds(prefix), edges)
        return self._integers[key]

    def _max_decimals(self, num_digits: int) -> int:
        return max(MAX_SIGNIFICANT_DIGITS - num_digits, 0) if self._has_fractions else 0

    def _point(self, grids: Grids, prefix: int, num_decimals: int) -> int | None:
        """After the point that follows a prefix."""
        cell = grids[num_decimals].cell(prefix, num_decimals)
        if cell is None:
            return None
        if cell not in self._points:
            self._points[cell] = self._node(False, self._decimals(grids, prefix, num_decimals, num_decimals))
        return self._points[cell]

    def _decimals(self, grids: Grids, prefix: int, num_decimals: int, num_free: int) -> list[tuple[int, int | None]]:
        return [
            (byte, self._fraction(grids, 10 * prefix + byte - 0x30, num_decimals, num_free - 1)) for byte in _DIGITS
        ]

    def _fraction(self, grids: Grids, prefix: int, num_decimals: int, num_free: int) -> int | None:
        """After a digit of a fraction, the last of the prefix, of which num_free may follow."""
        grid = grids[num_decimals]
        cell = grid.cell(prefix, num_free)
        if cell is None:
            return None
        may_end = not self._is_canonical or prefix % 10 != 0
        if (cell, may_end) not in self._fractions:
            edges = self._decimals(grids, prefix, num_decimals, num_free) if num_free else []
            edges.append((ord("e"), self._exponent))
            self._fractions[cell, may_end] = self._node(may_end and grid.holds(prefix * 10**num_free), edges)
        return self._fractions[cell, may_end]

    def _exponent_node(self) -> int | None:
        last = self._node(True, [])
        digit = self._node(True, [(byte, last) for byte in _DIGITS])
        digits = [(byte, digit) for byte in _DIGITS]
        sign = self._node(False, digits)
        return self._node(False, [(ord("+"), sign), (ord("-"), sign), *digits])

    def _whole_numerals(self) -> list[bytes]:
        """The numerals of the single members that have no regular one."""
        points, includes, gaps = self._numbers.points, self._numbers.includes, self._numbers.gaps
        alone = [point for i, point in enumerate(points) if includes[i] and gaps[i] is False and gaps[i + 1] is False]
        members: list[int | Decimal] = [plain(point) for point in alone if regular_numeral(point) is None]
        few = self._numbers.finite_values(_MAX_FINITE_VALUES) or ()
        members += [value for value in few if regular_numeral(exact(value)) is None]
        texts = {text for value in members if (text := numeral(value)) is not None}
        return sorted(text.encode() for text in texts if self._spellable.issuperset(text.encode()))

    def _with_text(self, node_id: int | None, text: bytes) -> int | None:
        """A node like this one that accepts the text too."""
        path: list[dict[int, int | None]] = []
        accepts: list[bool] = []
        for byte in text:
            node = (False, ()) if node_id is None else self._nodes[node_id]
            accepts.append(node[0])
            path.append(dict(node[1]))
            node_id = path[-1].get(byte)
        result = self._node(True, () if node_id is None else self._nodes[node_id][1])
        for byte in reversed(text):
            edges = path.pop() | {byte: result}
            result = self._node(accepts.pop(), edges.items())
        return result

    def _tables(self, start: int | None) -> tuple[Table, NDArray[np.uint8]]:
        """The nodes that are reached, numbered breadth-first."""
        if start is None:
            return np.full((1, 256), DEAD, np.int16), np.zeros(1, np.uint8)
        states = {start: 0}
        order = [start]
        edges: list[tuple[int, int, int]] = []
        for node_id in order:
            for byte, target in self._nodes[node_id][1]:
                if target not in states:
                    states[target] = len(order)
                    order.append(target)
                edges.append((states[node_id], byte, states[target]))
        table = np.full((len(order), 256), DEAD, np.int16)
        for source, byte, state in edges:
            table[source, byte] = state
        return table, np.array([self._nodes[node_id][0] for node_id in order], np.uint8)


def check_states(num_states: int, max_states: int) -> None:
    if num_states > max_states:
        raise LimitExceededError(
            f"the numerals of a set of numbers need {num_states} states, over max_numeral_states={max_states}"
        )
