"""A mask of a body that takes any text is a plain body's with other ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import GrammarCompiler
from specdec.grammars.free_depths import MAX_FREE_DEPTH, distances, free_depths
from specdec.grammars.patterns import pattern_language
from specdec.grammars.strings import StringTerm

PATTERNS = ["a", "^a", "\\d{2}-\\d{2}", "^[^x]*$", "(ab|ba)+", "é", "\\n", "^(?:[^a]|a[^b])*$", "[^a]$"]


def automata(vocabulary):
    compiler = GrammarCompiler(vocabulary)
    for pattern in PATTERNS:
        grammar = compiler.compile_json_schema({"type": "string", "pattern": pattern})
        state = grammar.advance_bytes(grammar.initial_state, b'"')
        found = grammar._automaton.value_rules.of(state.position.goals, None).text_automaton
        assert found is not None
        yield compiler._runtime.bodies, found


@pytest.mark.parametrize("vocabulary", [small_vocabulary, merged_vocabulary])
def test_a_free_walk_is_the_walk_of_all_tokens(vocabulary):
    num_free = 0
    root = np.zeros(1, np.int32)
    for bodies, automaton in automata(vocabulary()):
        for state in np.flatnonzero(automaton.is_boundary).tolist():
            free_words = np.zeros(vocabulary().num_words, np.uint32)
            free = bodies._walk_free(automaton, state, free_words)
            if free is None:
                continue
            num_free += 1
            words = np.zeros_like(free_words)
            ends = bodies._walk_terms(automaton, root, state, 0, words)
            assert (free_words == words).all()
            assert sorted(free) == sorted(ends)
    assert num_free > 10


def test_a_kept_walk_is_the_walk_again():
    vocabulary = small_vocabulary()
    for bodies, automaton in automata(vocabulary):
        first, second = np.zeros((2, vocabulary.num_words), np.uint32)
        ends = bodies.walk_terms(automaton, bodies.root, automaton.start, 0, first)
        assert bodies.walk_terms(automaton, bodies.root, automaton.start, 0, second) == ends
        assert (first == second).all()


def spellings(table, plain, state, limit):
    """Naively: the bytes that both take from here, until one takes what the other does not."""
    reached = {(state, 0)}
    for depth in range(limit):
        following = set()
        for at, inner in reached:
            for byte in range(256):
                target, after = int(table[at, byte]), int(plain[inner, byte])
                if after == 1:
                    continue
                if (target < 0) != (after < 0):
                    return depth
                if target >= 0:
                    following.add((target, after))
        if following <= reached:
            return MAX_FREE_DEPTH
        reached = following
    return limit


def test_free_depths_are_the_distance_to_a_difference():
    found = set()
    for bodies, automaton in automata(small_vocabulary()):
        for state in np.flatnonzero(automaton.is_boundary).tolist():
            expected = spellings(automaton.table, bodies.table, state, 40)
            assert automaton.free_depths[state] == expected
            found.add(expected)
    assert {0, MAX_FREE_DEPTH} <= found


def test_a_counter_is_free_while_it_is_far_from_its_limit():
    compiler = GrammarCompiler(small_vocabulary())
    language = pattern_language("^[^]{0,9}$").inner
    automaton = compiler._lexicon.text_automaton((StringTerm(language),))
    depths = free_depths(automaton.table, compiler._lexicon.plain_table, automaton.is_boundary)
    assert sorted(set(depths[automaton.is_boundary == 1].tolist())) == list(range(10))


@given(
    num_nodes=st.integers(1, 12),
    data=st.data(),
)
def test_distances_are_shortest_paths(num_nodes, data):
    edges = data.draw(st.lists(st.tuples(st.integers(0, num_nodes - 1), st.integers(0, num_nodes - 1)), max_size=40))
    differs = np.array(data.draw(st.lists(st.integers(0, 1), min_size=num_nodes, max_size=num_nodes)), np.uint8)
    expected = [0 if each else 99 for each in differs]
    for _ in range(num_nodes):
        for source, target in edges:
            expected[source] = min(expected[source], expected[target] + 1)
    sources, targets = (np.array([edge[side] for edge in edges], np.int32) for side in (0, 1))
    assert distances(differs, sources, targets, 99).tolist() == [min(each, 99) for each in expected]
