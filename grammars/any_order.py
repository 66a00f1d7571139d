"""AnyOrderRule: an object whose keys come in every order, declared ones and others in any mixture.

It has the interface of rules.ObjectRule, but that what stands for the declared keys so far is the bit set of those that
have occurred: bit i is `keys[i]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from specdec.grammars.rules import UNLIMITED, Choices, FreeKeys, ObjectRule

_MAX_KNOWN = 10_000

Claims = frozenset[int]
"""The bit sets of witnesses that one key can be."""


@dataclass(slots=True, eq=False)
class AnyOrderRule:
    """The objects of `ordered`, with their keys in every order.

    A choice with more claims asks for more of the same value, so whoever can make some claims can make fewer. Hence,
    if the required keys and `fewest` others finish the object, so do any larger number of them that there are.
    """

    ordered: ObjectRule
    keys: tuple[bytes, ...] = field(init=False)
    choices: tuple[Choices, ...] = field(init=False)
    free: tuple[FreeKeys, ...] = field(init=False)
    positions: dict[bytes, int] = field(init=False)
    is_plain: bool = field(init=False)
    all_witnesses: int = field(init=False)
    _required: int = field(init=False, default=0)
    _optional: int = field(init=False, default=0)
    _required_by_claims: dict[Claims, int] = field(init=False, default_factory=dict)
    _optional_by_claims: dict[Claims, int] = field(init=False, default_factory=dict)
    """The bit sets of the keys that can be a witness, by which."""
    _fewest: dict[tuple[int, tuple[int, ...]], int | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        ordered = self.ordered
        self.keys, self.choices, self.free = ordered.keys, ordered.choices, ordered.free
        self.positions, self.is_plain, self.all_witnesses = ordered.positions, ordered.is_plain, ordered.all_witnesses
        for index, (choices, is_required) in enumerate(zip(self.choices, ordered.required, strict=True)):
            if is_required:
                self._required |= 1 << index
            elif choices:
                self._optional |= 1 << index
            claims = frozenset(claims for claims, _ in choices)
            if any(claims):
                of_kind = self._required_by_claims if is_required else self._optional_by_claims
                of_kind[claims] = of_kind.get(claims, 0) | 1 << index

    @property
    def min_properties(self) -> int:
        return self.ordered.min_properties

    @property
    def longest_key(self) -> int:
        return self.ordered.longest_key

    @property
    def longest_run(self) -> int:
        return self.ordered.longest_run

    @property
    def required(self) -> tuple[bool, ...]:
        return self.ordered.required

    def may_close(self, occurred: int, num_keys: int = 0, pending: int = 0) -> bool:
        return not self._required & ~occurred and not pending and num_keys >= self.ordered.min_properties

    def may_continue(self, occurred: int, num_keys: int = 0, pending: int = 0) -> bool:
        """Whether another key can come."""
        if self.takes_free_keys(occurred, num_keys, pending):
            return True
        return any(self._may_come(index, occurred, num_keys, pending) for index in range(len(self.keys)))

    def takes_free_keys(self, occurred: int, num_keys: int = 0, pending: int = 0) -> bool:
        return any(
            self.can_finish(occurred, num_keys + 1, pending & ~claims)
            for free in self.free
            for claims, _ in free.choices
        )

    def candidates(self, occurred: int, num_keys: int = 0, pending: int = 0) -> list[bytes]:
        """The declared keys that may come next."""
        return [key for index, key in enumerate(self.keys) if self._may_come(index, occurred, num_keys, pending)]

    def after_declared(
        self, occurred: int, num_keys: int, pending: int, declared: int
    ) -> list[tuple[int, int, int, int]]:
        """Each (keys that occurred, num_keys, pending, rule of the value) after a key; none where it is not allowed."""
        if occurred >> declared & 1:
            return []
        return self._after(occurred | 1 << declared, num_keys, pending, self.choices[declared])

    def after_free(self, occurred: int, num_keys: int, pending: int, index: int) -> list[tuple[int, int, int, int]]:
        """The same after a key of `free[index]` that the object does not have yet."""
        return self._after(occurred, num_keys, pending, self.free[index].choices)

    def can_finish(self, occurred: int, num_keys: int, pending: int) -> bool:
        """Whether keys that have not occurred can make the object whole."""
        if self.is_plain:
            return True
        if pending:
            num_others = self._fewest_others(occurred, pending)
            if num_others is None:
                return False
        else:
            num_others = 0
        num_required = (self._required & ~occurred).bit_count()
        most = self.ordered.max_properties
        if most is not None and num_keys + num_required + num_others > most:
            return False
        num_left = UNLIMITED if self.free else num_required + (self._optional & ~occurred).bit_count()
        return num_keys + num_left >= self.ordered.min_properties

    def _may_come(self, index: int, occurred: int, num_keys: int, pending: int) -> bool:
        if occurred >> index & 1 or not self.choices[index]:
            return False
        return self.is_plain or any(
            self.can_finish(occurred | 1 << index, num_keys + 1, pending & ~claims) for claims, _ in self.choices[index]
        )

    def _after(self, occurred: int, num_keys: int, pending: int, choices: Choices) -> list[tuple[int, int, int, int]]:
        if self.is_plain:
            return [(occurred, 0, 0, rule) for _, rule in choices]
        after = [(num_keys + 1, pending & ~claims, rule) for claims, rule in choices]
        return [
            (occurred, min(num, self.ordered.most_counted), left, rule)
            for num, left, rule in after
            if self.can_finish(occurred, num, left)
        ]

    def _fewest_others(self, occurred: int, pending: int) -> int | None:
        """The fewest keys beside those still required that show what is pending; None where none do.

        Keys of the same claims are alike, and of them no more matter than there are witnesses.
        """
        enough = self.all_witnesses.bit_count()
        left = tuple(
            min((keys & ~occurred).bit_count(), enough)
            for keys in (*self._required_by_claims.values(), *self._optional_by_claims.values())
        )
        known = (pending, left)
        if known not in self._fewest:
            if len(self._fewest) >= _MAX_KNOWN:
                self._fewest.clear()
            self._fewest[known] = self._find_fewest_others(pending, left)
        return self._fewest[known]

    def _find_fewest_others(self, pending: int, left: tuple[int, ...]) -> int | None:
        num_required = len(self._required_by_claims)
        lacking = {pending}
        for claims, num in zip(self._required_by_claims, left[:num_required], strict=True):
            for _ in range(num):
                lacking = _without(lacking, claims)
        # From what is still lacking to the fewest keys that lead to it.
        fewest = dict.fromkeys(lacking, 0)
        for claims, num in zip(self._optional_by_claims, left[num_required:], strict=True):
            for _ in range(num):
                for one, taken in list(fewest.items()):
                    for after in _without((one,), claims):
                        fewest[after] = min(fewest.get(after, UNLIMITED), taken + 1)
        free_claims = frozenset(claims for free in self.free for claims, _ in free.choices)
        for _ in range(pending.bit_count()):
            for one, taken in list(fewest.items()):
                for after in _without((one,), free_claims):
                    fewest[after] = min(fewest.get(after, UNLIMITED), taken + 1)
        return fewest.get(0)


KeyRule = ObjectRule | AnyOrderRule


def _without(lacking: Iterable[int], claims: Claims) -> set[int]:
    """What may be lacking after a key that can make the claims."""
    return {one & ~claim for one in lacking for claim in claims}
