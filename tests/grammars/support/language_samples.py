"""Words of a language: random ones, one per edge of its automaton, and changed ones that may have left it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random

from specdec.grammars.languages import MAX_CODE_POINT, Language


class WordSampler:
    """Draws words of a nonempty language: walks at random, then takes a shortest way to acceptance."""

    def __init__(self, language: Language, random: Random) -> None:
        self.language = language
        self.random = random
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        ends = [*language.boundaries[1:], MAX_CODE_POINT + 1]
        for low, after, column in zip(language.boundaries, ends, language.columns, strict=True):
            pieces = [(low, min(after, 0xD800) - 1), (max(low, 0xE000), after - 1)]
            self._ranges.setdefault(column, []).extend((a, b) for a, b in pieces if a <= b)
        self._edges = [
            [(c, int(t)) for c, t in enumerate(row) if language.is_live(int(t))] for row in language.rows.tolist()
        ]

    def word(self, max_length: int) -> str:
        """A random word, of at most max_length code points before it turns to the nearest end."""
        state, text = 0, ""
        for _ in range(self.random.randint(0, max_length)):
            if not self._edges[state]:
                break
            column, state = self.random.choice(self._edges[state])
            text += self._character(column)
        return text + self.ending(state)

    def longest_word(self) -> str:
        """A random one of the longest words of a language whose words have a longest."""
        state, text = 0, ""
        while left := self.language.max_rest(state):
            edges = [(c, t) for c, t in self._edges[state] if self.language.max_rest(t) == left - 1]
            column, state = self.random.choice(edges)
            text += self._character(column)
        return text

    def edge_words(self) -> Iterator[str]:
        """A shortest word through every edge between live states."""
        prefixes = {0: ""}
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for column, target in self._edges[state]:
                text = prefixes[state] + self._character(column)
                if target not in prefixes:
                    prefixes[target] = text
                    queue.append(target)
                yield text + self.ending(target)

    def ending(self, state: int) -> str:
        """A shortest way to acceptance."""
        text = ""
        while (left := self.language.min_rest(state)) > 0:
            column, state = self.random.choice(
                [(c, t) for c, t in self._edges[state] if self.language.min_rest(t) == left - 1]
            )
            text += self._character(column)
        return text

    def _character(self, column: int) -> str:
        low, high = self.random.choice(self._ranges[column])
        return chr(self.random.choice([low, high, self.random.randint(low, high)]))


ODD_CHARACTERS = (
    "\n\0 \t\r\x1c\x85\u2028\u00e9\u0130\u017f\u212a\u0660\u09ea\uff11\u00b2\u0303\u200d\uff0e\u3002"
    "\U0001d7cf\U00010300"
)
"""Characters that validators are known to confuse with others, or to overlook."""


def mutations(text: str, random: Random, count: int) -> Iterator[str]:
    """Texts one or two edits away, and the text with what often goes unnoticed at its ends."""
    yield from (text + "\n", "\n" + text, text + " ", text.upper(), text.lower(), text[:-1], text[1:])
    alphabet = [*ODD_CHARACTERS, *"0159afzAZ-+.,:;/?#@[]{}()%~_*|^$\\\"'&=!<>", *text[:40]]
    for _ in range(count):
        changed = text
        for _ in range(random.randint(1, 2)):
            at = random.randint(0, len(changed))
            cut = random.randint(0, 1) or at == len(changed)
            changed = changed[:at] + random.choice(["", *alphabet]) + changed[at + cut :]
        yield changed
