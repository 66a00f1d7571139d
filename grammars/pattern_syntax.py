"""What a pattern says, whatever dialect it was written in: five kinds of node, over sets of code points.

`^`, `$` and `\\b` are looks: nothing before, nothing after, a word character on one side only.
"""

from __future__ import annotations

import msgspec

from specdec.grammars.pattern_sets import EVERY_CODE_POINT, Ranges


class Characters(msgspec.Struct, frozen=True, cache_hash=True):
    """One code point of a set."""

    ranges: Ranges


class Concatenation(msgspec.Struct, frozen=True, cache_hash=True):
    """The parts in turn."""

    parts: tuple[Node, ...]


class Alternation(msgspec.Struct, frozen=True, cache_hash=True):
    """One of the branches."""

    branches: tuple[Node, ...]


class Repetition(msgspec.Struct, frozen=True, cache_hash=True):
    """The item at least `minimum` and at most `maximum` times; None is no bound."""

    item: Node
    minimum: int
    maximum: int | None


class Look(msgspec.Struct, frozen=True, cache_hash=True):
    """Nothing itself, where the item matches from here on (or up to here, if not is_ahead), or where it does not."""

    item: Node
    is_ahead: bool
    is_negative: bool


Node = Characters | Concatenation | Alternation | Repetition | Look

ANY = Characters(EVERY_CODE_POINT)
ANY_STRING = Repetition(ANY, 0, None)
START = Look(ANY, is_ahead=False, is_negative=True)
END = Look(ANY, is_ahead=True, is_negative=True)


def word_boundary(word: Ranges, *, is_negative: bool) -> Node:
    """Where exactly one side is a word character, or where both or neither are."""
    item = Characters(word)
    return Alternation(
        tuple(
            Concatenation(
                (
                    Look(item, is_ahead=False, is_negative=not is_after_word),
                    Look(item, is_ahead=True, is_negative=is_after_word != is_negative),
                )
            )
            for is_after_word in (True, False)
        )
    )


def sequence(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))


def choice(branches: list[Node]) -> Node:
    return branches[0] if len(branches) == 1 else Alternation(tuple(branches))
