"""TextSet: the single texts that may stand at one place (an enum, the keys that are not free), and their goals."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from specdec.grammars.node_steps import Nodes
from specdec.grammars.walk import Kernels


class TextSet:
    """Sorted byte strings, each with the goals it meets."""

    def __init__(self, texts: Iterable[tuple[bytes, int]]) -> None:
        goals: dict[bytes, set[int]] = {}
        for text, goal in texts:
            goals.setdefault(text, set()).add(goal)
        self.texts = sorted(goals)
        self._built: tuple[NDArray[np.uint8], Nodes, Nodes] | None = None
        self._lengths: NDArray[np.int64] | None = None
        self._goals = {text: frozenset(members) for text, members in goals.items()}

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __contains__(self, text: bytes) -> bool:
        return text in self._goals

    def goals(self, text: bytes | None) -> frozenset[int]:
        """The goals that the whole text meets."""
        return self._goals.get(text, frozenset()) if text is not None else frozenset()

    def begins(self, prefix: bytes) -> bool:
        """Whether some text starts with the prefix."""
        index = bisect_left(self.texts, prefix)
        return index < len(self.texts) and self.texts[index].startswith(prefix)

    def continues(self, prefix: bytes) -> bool:
        """Whether some text starts with the prefix and is longer."""
        index = bisect_left(self.texts, prefix)
        if index < len(self.texts) and self.texts[index] == prefix:
            index += 1
        return index < len(self.texts) and self.texts[index].startswith(prefix)

    def starting(self, prefix: bytes) -> list[bytes]:
        """The texts that start with the prefix."""
        return self.texts[slice(*self._range(prefix))]

    def longest_rest(self, prefix: bytes) -> int:
        """The most bytes by which a text that starts with the prefix is longer; 0 where none does."""
        begin, end = self._range(prefix)
        if begin == end:
            return 0
        if self._lengths is None:
            self._lengths = np.array([len(text) for text in self.texts], np.int64)
        return int(self._lengths[begin:end].max()) - len(prefix)

    def _range(self, prefix: bytes) -> tuple[int, int]:
        begin = bisect_left(self.texts, prefix)
        # No text holds this byte, which is above all of them.
        return begin, bisect_left(self.texts, prefix + b"\xff", begin)

    def following(self, prefix: bytes) -> bytes:
        """The bytes after the prefix in those texts that start with it and are longer, each once."""
        found = bytearray()
        index = bisect_left(self.texts, prefix)
        while index < len(self.texts) and self.texts[index].startswith(prefix):
            text = self.texts[index]
            if len(text) == len(prefix):
                index += 1
                continue
            found.append(text[len(prefix)])
            # All texts that go on alike are passed over at once.
            index = self._range(text[: len(prefix) + 1])[1]
        return bytes(found)

    def trie(self, kernels: Kernels) -> tuple[NDArray[np.uint8], Nodes, Nodes]:
        """(bytes, skips, starts), as walk.py defines them."""
        if self._built is None:
            offsets = np.array([0, *accumulate(map(len, self.texts))], np.int64)
            data = np.frombuffer(bytearray().join(self.texts), np.uint8)
            self._built = kernels.build_trie(data, offsets)
        return self._built
