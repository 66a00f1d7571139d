"""The items that a token begins after one that it ended, where the items of an array must differ.

What such a token ended is unlike all that occurred, but where it ends is where its text is known: it begins with what
was written before the walk, and the tokens that lead to one place end many. They are followed together, byte by byte,
as far as the next item cannot be the one before it. Where they lead does not depend on that one, and is kept: it is the
same for all masks inside an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from specdec.grammars.automaton import Automaton
from specdec.grammars.bounded_cache import BoundedCache
from specdec.grammars.frames import ArrayFrame
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.stacks import Config, Stack


class NextPlace(NamedTuple):
    """Where tokens end after a comma."""

    group: NodeGroup
    config: Config
    """As if the item before the comma were unlike any other."""
    since_comma: bytes
    item: bytes | None
    """What is written of the present item; None where none is begun or waited for."""
    ended: bytes | None
    """The item that the last byte ended, with that byte."""
    can_differ: bool
    """Whether the present item can become one that did not occur, whichever was the one before the comma."""


class NextItems:
    """Of one grammar's automaton; what is kept changes no result."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._known: BoundedCache[tuple[Config, NodeGroup], list[NextPlace]] = BoundedCache(192)

    def follow(
        self, waiting: Config, group: NodeGroup, before: bytes
    ) -> Iterator[tuple[NextPlace, bool, NodeGroup | None]]:
        """The places below the nodes, at which an item is waited for after one that is longer than `before`.

        With each comes whether the tokens that end there are allowed, whatever the item before; if not, that depends on
        each of them. Where it also does for the tokens that go on from them, their nodes come last. A token in no place
        is not allowed.
        """
        places = self._known.get((waiting, group))
        if places is None:
            places = list(self._places(waiting, group))
            self._known.put((waiting, group), places)
        undecided: list[bytes] = []
        for place in places:
            item = place.item
            if undecided and place.since_comma.startswith(tuple(undecided)):
                continue
            if any(
                one is not None and len(one) > len(before) and one.startswith(before) for one in (item, place.ended)
            ):
                # It may be the item before.
                undecided.append(place.since_comma)
                yield place, False, place.group
                continue
            is_unlike = place.can_differ or item is None or not before.startswith(item)
            yield place, is_unlike or self._automaton.can_differ_from_another(place.config, before), None

    def _places(self, waiting: Config, group: NodeGroup) -> Iterator[NextPlace]:
        """Those nearer to the comma before those beyond them."""
        around = waiting[1]
        assert around is not None, "items are in an array"
        pending: list[tuple[Config, NodeGroup, bytes, bytes | None]] = [(waiting, group, b"", None)]
        while pending:
            config, nodes, text, longer = pending.pop()
            item = _present_item(config[1], around.depth)
            can_differ = item is not None and self._automaton.can_differ_from_any(config)
            yield NextPlace(nodes, config, text, item, None if item == longer else longer, can_differ)
            stack = config[1]
            possible = self._automaton.possible_bytes(config) if stack is not None and stack.is_remembered else None
            for byte in nodes.following_bytes():
                if possible is None or byte in possible:
                    after = self._automaton.feed(config, bytes((byte,)))
                    children = nodes.step(byte)
                    if after is not None and children is not None:
                        added = bytes((byte,))
                        pending.append((after, children, text + added, None if item is None else item + added))


def _present_item(stack: Stack | None, depth: int) -> bytes | None:
    """What is written of the item of the array at the depth; None where it is between items, or complete."""
    while stack is not None and stack.depth > depth:
        stack = stack.below
    if stack is None or stack.depth < depth or not isinstance(stack.frame, ArrayFrame) or stack.frame.seen is None:
        return None
    return stack.frame.text
