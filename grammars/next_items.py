"""The items that a token begins after one that it ended, where the items of an array must differ.

What such a token ended is unlike all that occurred, but where it ends is where its text is known: it begins with what
was written before the walk, and the tokens that lead to one place end many. They are followed together, byte by byte,
as far as the next item cannot be the one before it. Where they lead does not depend on that one, and is kept: it is the
same for all masks inside an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.positions import Literal
from specdec.grammars.stacks import Config, Stack

_MAX_BYTES = 4 * 2**20
_PLACE_BYTES = 500
"""Of one place, roughly."""


@dataclass(slots=True, eq=False)
class NextPlace:
    """Where tokens end after a comma."""

    group: NodeGroup
    config: Config
    """As if the item before the comma were unlike any other."""
    since_comma: bytes
    item: bytes | None
    """What is written of the present item; None where none is begun or waited for."""
    ended: tuple[bytes, ...]
    """The items since the comma."""
    can_differ: bool | None = None
    """Whether the present item can become one that did not occur, whichever was the one before the comma.

    None where nobody asked.
    """

    def may_repeat(self, before: bytes) -> bool:
        """Whether an item is the one before the comma, or can become it, where that one began like this."""
        items = self.ended if self.item is None else (self.item, *self.ended)
        return any(len(one) > len(before) and one.startswith(before) for one in items)

    def repeats(self, before: bytes) -> bool:
        """The same, where this is all of the item before the comma."""
        return before in self.ended or (self.item is not None and before.startswith(self.item))


class NextItems:
    """Of one grammar's automaton; what is kept changes no result."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._known: BoundedCache[tuple[Config, NodeGroup], list[NextPlace]] = BoundedCache(
            192, max_bytes=_MAX_BYTES, num_bytes_of=lambda places: _PLACE_BYTES * len(places)
        )

    def follow(self, waiting: Config, group: NodeGroup) -> list[NextPlace]:
        """The places below the nodes, at which an item is waited for. A token that ends in none is not allowed."""
        if not group.is_kept:
            return list(self._places(waiting, group))
        places = self._known.get((waiting, group))
        if places is None:
            places = list(self._places(waiting, group))
            self._known.put((waiting, group), places)
        return places

    def is_sure(self, place: NextPlace, before: bytes) -> bool:
        """Whether the tokens that end at the place are allowed, whatever the item before the comma.

        That one is longer than `before`, which it begins with, and `place.repeats` it not.
        """
        if place.item is None or not before.startswith(place.item):
            return True
        if place.can_differ is None:
            place.can_differ = self._automaton.can_differ_from_any(place.config)
        return place.can_differ or self._automaton.can_differ_from_another(place.config, before)

    def _places(self, waiting: Config, group: NodeGroup) -> Iterator[NextPlace]:
        """Those nearer to the comma before those beyond them."""
        around = waiting[1]
        assert around is not None, "items are in an array"
        pending: list[tuple[Config, NodeGroup, bytes, tuple[bytes, ...]]] = [(waiting, group, b"", ())]
        while pending:
            config, nodes, text, ended = pending.pop()
            item = _present_item(config[1], around.depth)
            yield NextPlace(nodes, config, text, item, ended)
            stack = config[1]
            possible = self._automaton.possible_bytes(config) if stack is not None and stack.is_remembered else None
            for byte in nodes.following_bytes():
                if possible is None or byte in possible:
                    after = self._automaton.feed(config, bytes((byte,)))
                    children = nodes.step(byte)
                    if after is None or children is None:
                        continue
                    added = bytes((byte,))
                    now_ended = ended
                    if item is not None and _present_item(after[1], around.depth) != item + added:
                        # What ends a number is no part of it.
                        is_beyond = isinstance(config[0], Literal) and stack is not None and stack.depth == around.depth
                        now_ended = (*ended, item if is_beyond else item + added)
                    pending.append((after, children, text + added, now_ended))


def _present_item(stack: Stack | None, depth: int) -> bytes | None:
    """What is written of the item of the array at the depth; None where it is between items, or complete."""
    while stack is not None and stack.depth > depth:
        stack = stack.below
    if stack is None or stack.depth < depth or not isinstance(stack.frame, ArrayFrame) or stack.frame.seen is None:
        return None
    return stack.frame.text
