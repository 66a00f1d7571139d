"""The items that a token begins after one that it ended, where the items of an array must differ.

What such a token ended is unlike all that occurred, but where it ends is where its text is known: it begins with what
was written before the walk, and the tokens that lead to one place end many. They are followed together, byte by byte,
as far as the next item cannot be the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from specdec.grammars.automaton import Automaton
from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.stacks import Config, Stack


class NextItem(NamedTuple):
    """Where tokens end inside the next item, or beyond it."""

    group: NodeGroup
    config: Config | None
    """None where whether the tokens are allowed, and all that go on from theirs, depends on each of them."""
    text: bytes
    """Since the comma."""
    is_sure: bool
    """Whether the tokens that end here are allowed, whatever the item before it; if not, it depends on each of them."""


def next_items(automaton: Automaton, waiting: Config, group: NodeGroup, before: bytes) -> Iterator[NextItem]:
    """Every place below the nodes, at which an item is waited for after one that begins with `before`.

    A token below a node that is in none of them is not allowed.
    """
    around = waiting[1]
    assert around is not None, "items are in an array"
    pending = [(waiting, group, b"")]
    while pending:
        config, nodes, text = pending.pop()
        is_like_before = len(text) > len(before) and text.startswith(before)
        if is_like_before or not _is_first(config[1], around.depth, text):
            yield NextItem(nodes, None, text, is_sure=False)
            continue
        may_become = before.startswith(text)
        yield NextItem(nodes, config, text, not may_become or automaton.can_differ_from_another(config, before))
        possible = automaton.possible_bytes(config) if config[1] is not None and config[1].is_remembered else None
        for byte in sorted(nodes.following_bytes()):
            if possible is None or byte in possible:
                after = automaton.feed(config, bytes((byte,)))
                children = nodes.step(byte)
                if after is not None and children is not None:
                    pending.append((after, children, text + bytes((byte,))))


def _is_first(stack: Stack | None, depth: int, text: bytes) -> bool:
    """Whether the array of the depth is complete, or waits for what follows its next item, or is inside that item."""
    while stack is not None and stack.depth > depth:
        stack = stack.below
    return stack is None or stack.depth < depth or stack.frame.text == text  # type: ignore[union-attr]
