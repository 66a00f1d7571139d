"""PerSequence: a value for each sequence in flight, without a hold on the sequence."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from specdec.sequence import Sequence

T = TypeVar("T")


class PerSequence(Generic[T]):
    """What `make` made of a sequence when it was first asked for; it goes when the sequence does."""

    def __init__(self, make: Callable[[Sequence], T]) -> None:
        self._make = make
        # By identity, which is looked up in a tenth of the time of a WeakKeyDictionary.
        self._values: dict[int, T] = {}
        self._references: dict[int, weakref.ref[Sequence]] = {}
        self.forgotten: list[T] = []
        """Values whose sequences are gone; whoever has something to free takes them out."""

    def __getitem__(self, sequence: Sequence) -> T:
        key = id(sequence)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make(sequence)
            self._references[key] = weakref.ref(sequence, lambda _: self._forget(key))
        return value

    def __len__(self) -> int:
        return len(self._values)

    def _forget(self, key: int) -> None:
        # Before the sequence's memory, and so its identity, can be another's.
        del self._references[key]
        self.forgotten.append(self._values.pop(key))
