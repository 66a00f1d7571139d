"""Rules: what the automaton reads at run time. One rule per goal, children by the number of their rule.

Everything in a rule is satisfiable. Keys are spelt with their closing quote. A *choice* for a key's value or an item is
(claims, rule): a value of the rule meets the claims, a bit set of what the object or array still has to show (a
witness, an item that must be contained).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from specdec.grammars.languages import Language
from specdec.grammars.numbers import NumberSet
from specdec.grammars.strings import StringTerm

if TYPE_CHECKING:
    from specdec.grammars.any_order import AnyOrderRule

Choice = tuple[int, int]
Choices = tuple[Choice, ...]

UNLIMITED = 2**62
"""More keys or items than any text has."""


@dataclass(frozen=True, slots=True, eq=False)
class FreeKeys:
    """Keys that are not declared, infinitely many of them."""

    language: Language | None
    """None is every key but the declared ones."""
    choices: Choices


def last_run(key: bytes) -> int:
    """How many times in a row a key's last byte comes at its end, the quote aside."""
    body = key[:-1]
    return len(body) - len(body.rstrip(body[-1:]))


@dataclass(slots=True, eq=False)
class ObjectRule:
    """An object: declared keys in order, then others.

    From position p in the declared keys, key j >= p may come next iff no required key lies between, that is
    iff j <= next_required[p]; other keys and the closing brace iff none is left, next_required[p] == len(keys).
    `pending` is the bit set of witnesses that no key has shown yet, `num_keys` is only counted as far as it matters.
    """

    keys: tuple[bytes, ...]
    choices: tuple[Choices, ...]
    """Of each key's value; none where the key must not occur."""
    required: tuple[bool, ...]
    free: tuple[FreeKeys, ...]
    min_properties: int = 0
    max_properties: int | None = None
    num_witnesses: int = 0
    positions: dict[bytes, int] = field(init=False)
    next_required: tuple[int, ...] = field(init=False)
    next_allowed: tuple[int, ...] = field(init=False)
    is_plain: bool = field(init=False)
    """Neither counted nor in need of witnesses: whatever may come can be completed."""
    most_counted: int = field(init=False)
    longest_key: int = field(init=False)
    """In bytes."""
    longest_run: int = field(init=False)
    """Of one byte, at the end of a key."""
    _needs: list[dict[int, tuple[int, int]]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.positions = {key: position for position, key in enumerate(self.keys)}
        self.next_required = _next(self.required)
        self.next_allowed = _next(tuple(bool(choices) for choices in self.choices))
        self.is_plain = not (self.min_properties or self.max_properties is not None or self.num_witnesses)
        self.longest_key = max(map(len, self.keys), default=0)
        self.longest_run = max(map(last_run, self.keys), default=0)
        self.most_counted = max(self.min_properties, self.max_properties or 0)

    @property
    def all_witnesses(self) -> int:
        return (1 << self.num_witnesses) - 1

    def may_close(self, position: int, num_keys: int = 0, pending: int = 0) -> bool:
        return self.next_required[position] == len(self.keys) and not pending and num_keys >= self.min_properties

    def may_continue(self, position: int, num_keys: int = 0, pending: int = 0) -> bool:
        """Whether another key can come."""
        if self.is_plain:
            return self.next_allowed[position] < len(self.keys) or self.takes_free_keys(position)
        return bool(self.candidates(position, num_keys, pending)) or self.takes_free_keys(position, num_keys, pending)

    def takes_free_keys(self, position: int, num_keys: int = 0, pending: int = 0) -> bool:
        if not self.free or self.next_required[position] != len(self.keys):
            return False
        return self.is_plain or any(
            self.can_finish(len(self.keys), num_keys + 1, pending & ~claims)
            for free in self.free
            for claims, _ in free.choices
        )

    def candidates(self, position: int, num_keys: int = 0, pending: int = 0) -> list[bytes]:
        """The declared keys that may come next."""
        end = min(self.next_required[position] + 1, len(self.keys))
        return [
            self.keys[j]
            for j in range(position, end)
            if self.choices[j]
            and (
                self.is_plain
                or any(self.can_finish(j + 1, num_keys + 1, pending & ~claims) for claims, _ in self.choices[j])
            )
        ]

    def after_declared(
        self, position: int, num_keys: int, pending: int, declared: int
    ) -> list[tuple[int, int, int, int]]:
        """Each (position, num_keys, pending, rule of the value) after a declared key; none where it is not allowed."""
        if not position <= declared <= self.next_required[position]:
            return []
        return self._after(declared + 1, num_keys, pending, self.choices[declared])

    def after_free(self, position: int, num_keys: int, pending: int, index: int) -> list[tuple[int, int, int, int]]:
        """The same after a key of `free[index]` that the object does not have yet."""
        if self.next_required[position] != len(self.keys):
            return []
        return self._after(len(self.keys), num_keys, pending, self.free[index].choices)

    def _after(self, position: int, num_keys: int, pending: int, choices: Choices) -> list[tuple[int, int, int, int]]:
        if self.is_plain:
            return [(position, 0, 0, rule) for _, rule in choices]
        after = [(num_keys + 1, pending & ~claims, rule) for claims, rule in choices]
        return [
            (position, min(num, self.most_counted), left, rule)
            for num, left, rule in after
            if self.can_finish(position, num, left)
        ]

    def can_finish(self, position: int, num_keys: int, pending: int) -> bool:
        """Whether keys from a position on can make the object whole."""
        if self.is_plain:
            return True
        if self._needs is None:
            self._needs = self._find_needs()
        need = self._needs[position].get(pending)
        if need is None or (self.max_properties is not None and num_keys + need[0] > self.max_properties):
            return False
        return num_keys + need[1] >= self.min_properties

    def _find_needs(self) -> list[dict[int, tuple[int, int]]]:
        """For each position and each set of pending witnesses the fewest and the most keys that can still come."""
        last: dict[int, tuple[int, int]] = {0: (0, UNLIMITED if self.free else 0)}
        free_claims = {claims for free in self.free for claims, _ in free.choices}
        frontier = {0}
        for num in range(1, self.num_witnesses + 1):
            frontier = {covered | claims for covered in frontier for claims in free_claims}
            for pending in range(1 << self.num_witnesses):
                if pending not in last and any(not pending & ~covered for covered in frontier):
                    last[pending] = (num, UNLIMITED)
        needs = [last]
        for position in range(len(self.keys) - 1, -1, -1):
            following = needs[-1]
            need: dict[int, tuple[int, int]] = {} if self.required[position] else dict(following)
            for claims, _ in self.choices[position]:
                for pending in range(1 << self.num_witnesses):
                    taken = following.get(pending & ~claims)
                    if taken is not None:
                        low, high = need.get(pending, (UNLIMITED, 0))
                        need[pending] = min(low, 1 + taken[0]), max(high, min(UNLIMITED, 1 + taken[1]))
            needs.append(need)
        return list(reversed(needs))


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """How many items from `start` on must be claimed for one thing."""

    minimum: int
    maximum: int | None
    start: int = 0


@dataclass(slots=True, eq=False)
class ArrayRule:
    """An array: the first items by `prefix`, the rest by `items`; bit i of a claim is an item for `counts[i]`."""

    prefix: tuple[Choices, ...]
    items: Choices
    min_items: int
    max_items: int | None
    counts: tuple[Count, ...] = ()
    is_unique: bool = False
    _finishes: dict[tuple[int, tuple[int, ...]], bool] = field(init=False, default_factory=dict)

    def choices(self, index: int) -> Choices:
        return self.prefix[index] if index < len(self.prefix) else self.items

    def may_close(self, num_items: int, counted: tuple[int, ...] = ()) -> bool:
        return num_items >= self.min_items and all(
            done >= count.minimum for done, count in zip(counted, self.counts, strict=True)
        )

    def after_item(self, num_items: int, counted: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """Each (rule of the item, counts with it) that an item at this index can have."""
        if self.max_items is not None and num_items >= self.max_items:
            return []
        if not self.counts:
            return [(rule, ()) for _, rule in self.choices(num_items)]
        after = [(rule, self._claimed(counted, claims)) for claims, rule in self.choices(num_items)]
        return [(rule, claimed) for rule, claimed in after if self.can_finish(num_items + 1, claimed)]

    @property
    def saturation(self) -> int:
        """A number of items from which on more of them change nothing."""
        return max(self.min_items, len(self.prefix), 0 if self.max_items is None else self.max_items)

    @property
    def none_counted(self) -> tuple[int, ...]:
        return (0,) * len(self.counts)

    def can_finish(self, num_items: int, counted: tuple[int, ...]) -> bool:
        """Whether items from here on can make the array whole."""
        if not self.counts:
            return True
        # Beyond the prefix, only the distance to the bounds matters.
        key = (num_items, counted)
        if key not in self._finishes:
            if len(self._finishes) > 100_000:
                self._finishes.clear()
            self._finishes[key] = self._can_finish(num_items, counted)
        return self._finishes[key]

    def _can_finish(self, num_items: int, counted: tuple[int, ...]) -> bool:
        reached = {counted}
        for index in range(num_items, max(num_items, len(self.prefix)) + 1):
            if any(self._is_over(done) for done in reached):
                reached = {done for done in reached if not self._is_over(done)}
            if not reached or (self.max_items is not None and index > self.max_items):
                return False
            if any(self.may_close(index, done) for done in reached):
                return True
            if index < len(self.prefix):
                reached = {self._claimed(done, claims) for done in reached for claims, _ in self.prefix[index]}
        index = max(num_items, len(self.prefix))
        return any(self._can_finish_by_tail(index, done) for done in reached)

    def _can_finish_by_tail(self, num_items: int, counted: tuple[int, ...]) -> bool:
        slots = UNLIMITED if self.max_items is None else self.max_items - num_items
        wanted = max(0, self.min_items - num_items)
        missing = tuple(max(0, count.minimum - done) for done, count in zip(counted, self.counts, strict=True))
        left = tuple(
            UNLIMITED if count.maximum is None else count.maximum - done
            for done, count in zip(counted, self.counts, strict=True)
        )
        claims = tuple(sorted({one for one, _ in self.items}))
        fewest = _fewest_items(missing, left, claims)
        if fewest is None or fewest > slots:
            return False
        if wanted <= fewest:
            return True
        if wanted > slots:
            return False
        # Items beyond those that were needed: some claim nothing that is bounded, or the bounds leave room.
        if any(all(left[i] == UNLIMITED for i in range(len(left)) if one >> i & 1) for one in claims):
            return True
        return len(left) == 1 and wanted <= left[0] and bool(claims)

    def _claimed(self, counted: tuple[int, ...], claims: int) -> tuple[int, ...]:
        return tuple(
            min(done + (claims >> i & 1), count.minimum if count.maximum is None else count.maximum + 1)
            for i, (done, count) in enumerate(zip(counted, self.counts, strict=True))
        )

    def _is_over(self, counted: tuple[int, ...]) -> bool:
        return any(
            count.maximum is not None and done > count.maximum for done, count in zip(counted, self.counts, strict=True)
        )


@functools.lru_cache(maxsize=4096)
def _fewest_items(missing: tuple[int, ...], left: tuple[int, ...], claims: tuple[int, ...]) -> int | None:
    """The fewest items that make up for what is missing without claiming more than is left; None where none do."""
    if not any(missing):
        return 0
    if len(missing) == 1:
        return missing[0] if 1 in claims and missing[0] <= left[0] else None
    # Breadth first over what is missing; compiling bounds how much can be.
    reached, num = {(missing, left)}, 0
    seen = set(reached)
    while reached:
        num += 1
        following = set()
        for lacking, room in reached:
            for one in claims:
                bits = [one >> i & 1 for i in range(len(lacking))]
                if not one or any(bit and not space for bit, space in zip(bits, room, strict=True)):
                    continue
                after = (
                    tuple(max(0, lack - bit) for lack, bit in zip(lacking, bits, strict=True)),
                    tuple(space if space == UNLIMITED else space - bit for space, bit in zip(room, bits, strict=True)),
                )
                if not any(after[0]):
                    return num
                if after not in seen:
                    seen.add(after)
                    following.add(after)
        reached = following
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """The values of one goal, spelt."""

    literals: tuple[bytes, ...]
    """null, true, false and single numbers."""
    numbers: NumberSet | None
    """Numbers by their automaton."""
    strings: tuple[bytes, ...]
    """Single strings, with the closing quote."""
    terms: tuple[StringTerm, ...]
    objects: tuple[ObjectRule, ...]
    """In schema order, which is how keys come wherever texts are compared."""
    arrays: tuple[ArrayRule, ...]
    any_order: tuple[AnyOrderRule, ...] = ()
    """Of each object where its keys may come in every order, else none."""


def _next(flags: tuple[bool, ...]) -> tuple[int, ...]:
    """For each position up to len(flags) the first one from there on whose flag is set, or len(flags)."""
    following = [len(flags)]
    for position in range(len(flags) - 1, -1, -1):
        following.append(position if flags[position] else following[-1])
    return tuple(reversed(following))


def renumbered(rule: Rule, first: int) -> Rule:
    """The rule where those that it names come after `first` others."""
    renamed = replace(
        rule,
        objects=tuple(
            replace(
                one,
                choices=tuple(_renumbered(choices, first) for choices in one.choices),
                free=tuple(replace(free, choices=_renumbered(free.choices, first)) for free in one.free),
            )
            for one in rule.objects
        ),
        arrays=tuple(
            replace(
                one,
                prefix=tuple(_renumbered(choices, first) for choices in one.prefix),
                items=_renumbered(one.items, first),
            )
            for one in rule.arrays
        ),
    )
    return replace(
        renamed,
        any_order=tuple(
            replace(one, ordered=ordered) for one, ordered in zip(rule.any_order, renamed.objects, strict=False)
        ),
    )


def _renumbered(choices: Choices, first: int) -> Choices:
    return tuple((claims, number + first) for claims, number in choices)
