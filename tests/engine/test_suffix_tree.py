"""The suffix tree against counting by scans, and that removing undoes inserting."""

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specdec.proposers.suffix_tree import SuffixTree, favourite, step

texts = st.lists(st.integers(1, 3), max_size=12)


def windows(texts, max_depth):
    return [tuple(text[start : start + max_depth]) for text in texts for start in range(len(text))]


def counted(texts, max_depth):
    """How often each run occurred, by definition."""
    counts = Counter()
    for window in windows(texts, max_depth):
        counts.update(window[:length] for length in range(1, len(window) + 1))
    return counts


def runs(tree):
    """The count of every run in a tree, read along its edges; checks on the way what holds for each node."""
    counts = {}
    num_nodes = 0
    stack = [(tree.root, ())]
    while stack:
        node, run = stack.pop()
        assert node.children != {}
        children = node.children or {}
        assert (node.favourite is None) or node.favourite in children.values()
        for token_id, child in children.items():
            num_nodes += 1
            spelled = tuple(child.text[child.start : child.start + child.depth])
            assert spelled[: len(run)] == run
            assert spelled[len(run)] == token_id
            assert len(run) < len(spelled) <= tree.max_depth
            for length in range(len(run) + 1, len(spelled) + 1):
                counts[spelled[:length]] = child.count
            stack.append((child, spelled))
        if node is not tree.root and len(children) == 1:
            assert node.count > next(iter(children.values())).count, "a node stands where runs part or end"
    assert num_nodes == tree.num_nodes
    return counts


def tree_of(texts, max_depth):
    tree = SuffixTree(max_depth)
    for text in texts:
        for start in range(len(text)):
            tree.insert(text, start)
    return tree


def followed_by_scan(texts, run, max_depth, max_tokens, min_prob):
    counts = counted(texts, max_depth)
    total = counts[tuple(run)]
    token_ids, score, prob = [], 0.0, 1.0
    while len(token_ids) < max_tokens:
        count, token_id = min((-counts[(*run, *token_ids, token_id)], token_id) for token_id in range(1, 4))
        if count == 0 or -count < min_prob * total:
            break
        token_ids.append(token_id)
        prob = -count / total
        score += prob
    return token_ids, score, prob


class TreeMachine(RuleBasedStateMachine):
    """Answers come and go, first in, first out, as in a bounded cache."""

    @initialize(max_depth=st.integers(1, 5))
    def build(self, max_depth):
        self.tree = SuffixTree(max_depth)
        self.texts = deque()

    @rule(text=texts)
    def add(self, text):
        self.texts.append(text)
        for start in range(len(text)):
            self.tree.insert(text, start)

    @precondition(lambda self: self.texts)
    @rule()
    def remove_oldest(self):
        text = self.texts.popleft()
        for start in range(len(text)):
            self.tree.remove(text, start)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), max_tokens=st.integers(1, 5), min_prob=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def follow(self, data, max_tokens, min_prob):
        text = data.draw(st.sampled_from(list(self.texts)))
        start = data.draw(st.integers(0, len(text)))
        run = text[start : start + data.draw(st.integers(1, self.tree.max_depth))]
        if not run:
            return
        found = self.tree.follow(run, max_tokens, min_prob)
        token_ids, score, prob = followed_by_scan(self.texts, run, self.tree.max_depth, max_tokens, min_prob)
        assert found.token_ids == token_ids
        assert found.score == pytest.approx(score)
        assert found.prob == pytest.approx(prob)

    @invariant()
    def every_run_is_counted(self):
        assert runs(self.tree) == counted(self.texts, self.tree.max_depth)
        assert self.tree.root.count == sum(map(len, self.texts))

    @invariant()
    def the_tree_is_the_one_built_from_what_is_left(self):
        assert self.tree.num_nodes == tree_of(self.texts, self.tree.max_depth).num_nodes
        assert self.tree.num_nodes <= 2 * sum(map(len, self.texts))

    @invariant()
    def no_removed_text_is_kept_alive(self):
        alive = {id(text) for text in self.texts}
        stack = list((self.tree.root.children or {}).values())
        while stack:
            node = stack.pop()
            assert id(node.text) in alive
            stack += (node.children or {}).values()


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestTree = TreeMachine.TestCase


@given(texts=st.lists(texts, max_size=3), tail=texts, max_depth=st.integers(1, 12))
def test_the_longest_run_that_ends_a_tail_is_found(texts, tail, max_depth):
    tail = tail[-max_depth:]
    counts = counted(texts, max_depth)
    expected = max((n for n in range(1, len(tail) + 1) if tuple(tail[-n:]) in counts), default=0)
    tree = tree_of(texts, max_depth)
    for num_known in range(expected + 1):
        assert tree.longest(tail, num_known) == expected


@given(texts=st.lists(texts, max_size=3), max_depth=st.integers(1, 5), data=st.data())
def test_steps_lead_through_every_run_and_nowhere_else(texts, max_depth, data):
    tree = tree_of(texts, max_depth)
    counts = counted(texts, max_depth)
    run = tuple(data.draw(st.lists(st.integers(1, 3), max_size=max_depth)))
    node = tree.root
    for depth, token_id in enumerate(run):
        node = step(node, depth, token_id)
        assert (node is not None) == (run[: depth + 1] in counts)
        if node is None:
            return
        assert node.count == counts[run[: depth + 1]]


def test_equals_go_by_token_whatever_came_first():
    for text in ([1, 9, 1, 8, 1, 7], [1, 7, 1, 8, 1, 9], [1, 8, 1, 7, 1, 9]):
        tree = tree_of([text], 4)
        assert tree.follow([1], 1, 0.0).token_ids == [7]
        tree.insert([1, 9], 0)
        assert tree.follow([1], 1, 0.0).token_ids == [9]


def test_a_favourite_that_loses_an_occurrence_is_looked_for_again():
    old, new = [1, 9], [1, 8, 1, 9, 1, 8]
    tree = tree_of([old, new], 4)
    node = tree.find([1])
    assert favourite(node).text[favourite(node).start + 1] == 8
    tree.insert(old, 0)
    assert tree.follow([1], 1, 0.0).token_ids == [9]
    tree.remove(old, 0)
    assert tree.follow([1], 1, 0.0).token_ids == [8]


def test_a_copied_text_needs_no_nodes_of_its_own():
    text = list(range(1, 500))
    once, twice = tree_of([text], 24).num_nodes, tree_of([text, list(text)], 24).num_nodes
    assert once == twice == len(text)
