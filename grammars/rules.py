"""Rules: what the automaton reads at run time. One rule per goal, children by the number of their rule.

Everything in a rule is satisfiable. Keys are spelt with their closing quote.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.grammars.values import LengthRange

FORBIDDEN = -1
"""In place of a rule's number: no value is allowed there."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectRule:
    """An object: declared keys in order, then others.

    From position p in the declared keys, key j >= p may come next iff no required key lies between, that is
    iff j <= next_required[p]; other keys and the closing brace iff none is left, next_required[p] == len(keys).
    """

    keys: tuple[bytes, ...]
    values: tuple[int, ...]
    """The rule of each key's value, or FORBIDDEN."""
    required: tuple[bool, ...]
    additional: int
    """The rule of other keys' values, or FORBIDDEN."""
    positions: dict[bytes, int] = field(init=False)
    next_required: tuple[int, ...] = field(init=False)
    next_allowed: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", {key: position for position, key in enumerate(self.keys)})
        object.__setattr__(self, "next_required", _next(self.required))
        object.__setattr__(self, "next_allowed", _next(tuple(value != FORBIDDEN for value in self.values)))

    def may_close(self, position: int) -> bool:
        return self.next_required[position] == len(self.keys)

    def may_continue(self, position: int) -> bool:
        """Whether another key can come."""
        return self.next_allowed[position] < len(self.keys) or self.takes_free_keys(position)

    def takes_free_keys(self, position: int) -> bool:
        return self.additional != FORBIDDEN and self.may_close(position)

    def candidates(self, position: int) -> list[bytes]:
        """The declared keys that may come next."""
        end = min(self.next_required[position] + 1, len(self.keys))
        return [self.keys[j] for j in range(position, end) if self.values[j] != FORBIDDEN]

    def after_key(self, position: int, key: bytes) -> tuple[int, int] | None:
        """(next position, rule of the value) after a key that the object does not have yet; None if not allowed."""
        declared = self.positions.get(key)
        if declared is None:
            return (len(self.keys), self.additional) if self.takes_free_keys(position) else None
        if position <= declared <= self.next_required[position] and self.values[declared] != FORBIDDEN:
            return declared + 1, self.values[declared]
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRule:
    """An array: the first items by `prefix`, the rest by `items`."""

    prefix: tuple[int, ...]
    items: int
    min_items: int
    max_items: int | None

    def may_close(self, num_items: int) -> bool:
        return num_items >= self.min_items

    def may_continue(self, num_items: int) -> bool:
        return self.max_items is None or num_items < self.max_items

    def item(self, index: int) -> int:
        return self.prefix[index] if index < len(self.prefix) else self.items

    @property
    def saturation(self) -> int:
        """A number of items from which on more of them change nothing."""
        return max(self.min_items, len(self.prefix), 0 if self.max_items is None else self.max_items)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """The values of one goal, spelt."""

    literals: tuple[bytes, ...]
    """null, true, false and single numbers."""
    integers: bool
    numbers: bool
    strings: tuple[bytes, ...]
    """Single strings, with the closing quote."""
    lengths: tuple[LengthRange, ...]
    objects: tuple[ObjectRule, ...]
    arrays: tuple[ArrayRule, ...]


def _next(flags: tuple[bool, ...]) -> tuple[int, ...]:
    """For each position up to len(flags) the first one from there on whose flag is set, or len(flags)."""
    following = [len(flags)]
    for position in range(len(flags) - 1, -1, -1):
        following.append(position if flags[position] else following[-1])
    return tuple(reversed(following))
