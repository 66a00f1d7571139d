"""SuffixTree: how often every run of up to `max_depth` tokens occurred in some texts, and what followed it."""

from __future__ import annotations

from typing import NamedTuple


class Node:
    """The end of an edge: a run of tokens, and how often it occurred.

    The run is spelled by the latest occurrence, so that no node keeps an older text alive. Every run along the edge
    occurred as often.
    """

    __slots__ = ("children", "count", "depth", "favourite", "start", "text")

    def __init__(self, text: list[int], start: int, depth: int) -> None:
        self.text = text
        self.start = start
        self.depth = depth
        """Tokens of the run, which is text[start : start + depth]."""
        self.count = 1
        self.children: dict[int, Node] | None = None
        """By the first token of their edges; None for none."""
        self.favourite: Node | None = None
        """The child of the highest count, the lowest token among equals; None where it was not looked for."""


class Continuation(NamedTuple):
    """What most often followed a run of tokens."""

    token_ids: list[int]
    score: float
    """The sum of the tokens' probabilities: the share of the run's occurrences that went on up to and with each."""
    prob: float
    """The last of these."""


NOTHING = Continuation([], 0.0, 1.0)


def favourite(node: Node) -> Node | None:
    """The child that occurred most often, of the lowest token among equals; None for a leaf."""
    children = node.children
    if node.favourite is None and children is not None:
        node.favourite = children[min(children, key=lambda token_id: (-children[token_id].count, token_id))]
    return node.favourite


def step(node: Node, depth: int, token_id: int) -> Node | None:
    """From the run of `depth` tokens that ends at a node or above it, to the node of that run with one more token."""
    if depth < node.depth:
        return node if node.text[node.start + depth] == token_id else None
    return None if node.children is None else node.children.get(token_id)


class SuffixTree:
    """A compressed trie of the windows of up to `max_depth` tokens that begin at each position of its texts.

    A node stands where runs part or a window ends, so that there are at most two a window, and a tree is the same
    whatever was added to and removed from it in between. Texts must be removed in the order in which they were added,
    and may only grow at their ends.
    """

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self.root = Node([], 0, 0)
        self.root.count = 0
        self.num_nodes = 0
        """Besides the root."""

    def insert(self, text: list[int], start: int) -> None:
        """Count the window of `text` that begins at `start`."""
        node = self.root
        node.count += 1
        depth = 0
        end = min(self.max_depth, len(text) - start)
        while depth < end:
            token_id = text[start + depth]
            children = node.children
            if children is None:
                node.children = {token_id: self._leaf(text, start, end)}
                node.favourite = node.children[token_id]
                return
            child = children.get(token_id)
            if child is None:
                child = children[token_id] = self._leaf(text, start, end)
            else:
                reach = min(child.depth, end)
                if child.text[child.start + depth : child.start + reach] != text[start + depth : start + reach]:
                    other, offset = child.text, child.start
                    reach = depth + 1
                    while other[offset + reach] == text[start + reach]:
                        reach += 1
                if reach < child.depth:
                    child = self._split(node, token_id, reach)
                child.count += 1
                child.text = text
                child.start = start
            favourite = node.favourite
            if (
                favourite is not None
                and favourite is not child
                and (
                    child.count > favourite.count
                    or (child.count == favourite.count and token_id < favourite.text[favourite.start + depth])
                )
            ):
                node.favourite = child
            node = child
            depth = child.depth

    def remove(self, text: list[int], start: int) -> None:
        """Undo `insert` of the same window."""
        node = self.root
        node.count -= 1
        above: Node | None = None
        depth = 0
        end = min(self.max_depth, len(text) - start)
        while depth < end:
            token_id = text[start + depth]
            assert node.children is not None, "the window was inserted"
            child = node.children[token_id]
            child.count -= 1
            if node.favourite is child:
                node.favourite = None
            if child.count == 0:
                # Below it is nothing but what is left of this window: an only leaf would have been merged with it.
                assert child.children is None, "every node below was passed by no window but this"
                del node.children[token_id]
                self.num_nodes -= 1
                if not node.children:
                    node.children = None
                break
            above, node, depth = node, child, child.depth
        if above is not None and node.children is not None and len(node.children) == 1:
            (child,) = node.children.values()
            if child.count == node.count:
                assert above.children is not None, "it is above"
                above.children[node.text[node.start + above.depth]] = child
                if above.favourite is node:
                    above.favourite = child
                self.num_nodes -= 1

    def longest(self, tail: list[int], num_known: int = 0) -> int:
        """The length of the longest run that ends `tail` and occurred; one of num_known tokens did, here or elsewhere.

        What ends a run that occurred must have occurred too, where it has more than num_known tokens.
        """
        num_tokens = len(tail)
        if num_known == num_tokens or self._find(tail, 0) is not None:
            return num_tokens
        found, missed = num_known, num_known + 1
        while missed < num_tokens and self._find(tail, num_tokens - missed) is not None:
            found, missed = missed, min(2 * missed, num_tokens)
        while missed - found > 1:
            middle = (found + missed) // 2
            if self._find(tail, num_tokens - middle) is not None:
                found = middle
            else:
                missed = middle
        return found

    def follow(self, run: list[int], max_tokens: int, min_prob: float) -> Continuation:
        """What followed a run most often, token by token."""
        node = self._find(run, 0)
        if node is None:
            return NOTHING
        token_ids: list[int] = []
        total = count = node.count
        score = 0.0
        depth = len(run)
        while len(token_ids) < max_tokens:
            if depth == node.depth:
                child = favourite(node)
                if child is None or child.count < min_prob * total:
                    break
                node = child
                count = node.count
            num_tokens = min(node.depth - depth, max_tokens - len(token_ids))
            token_ids += node.text[node.start + depth : node.start + depth + num_tokens]
            score += num_tokens * count / total
            depth += num_tokens
        return Continuation(token_ids, score, count / total)

    def find(self, run: list[int]) -> Node | None:
        """The node at or above which a run ends; None where it did not occur."""
        return self._find(run, 0)

    def _find(self, tokens: list[int], first: int) -> Node | None:
        """The node at or above which the run tokens[first:] ends; None where it did not occur."""
        node = self.root
        depth = 0
        num_tokens = len(tokens) - first
        while depth < num_tokens:
            if node.children is None:
                return None
            child = node.children.get(tokens[first + depth])
            if child is None:
                return None
            node = child
            depth = child.depth
        # Only the first token of each edge was looked at; the node spells all of them.
        if node.text[node.start : node.start + num_tokens] != (tokens[first:] if first else tokens):
            return None
        return node

    def _leaf(self, text: list[int], start: int, depth: int) -> Node:
        self.num_nodes += 1
        return Node(text, start, depth)

    def _split(self, parent: Node, token_id: int, depth: int) -> Node:
        """Put a node on the edge to a child, at `depth`."""
        assert parent.children is not None, "the child is one"
        child = parent.children[token_id]
        upper = self._leaf(child.text, child.start, depth)
        upper.count = child.count
        upper.children = {child.text[child.start + depth]: child}
        upper.favourite = child
        parent.children[token_id] = upper
        if parent.favourite is child:
            parent.favourite = upper
        return upper
