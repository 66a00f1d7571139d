"""Groups of nodes that are kept find what others find, and what the trie's definition says."""

from __future__ import annotations

import random

import numpy as np
from vocabularies import merged_vocabulary

from specdec.grammars.node_groups import NodeGroup
from specdec.grammars.node_steps import ends_of_nodes, enter_nodes, first_bits, set_bits, step_nodes


def _set(words: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


def test_walks_of_kept_groups_are_walks_of_others() -> None:
    v = merged_vocabulary()
    root = NodeGroup(v, [0], is_kept=True)
    texts = [text for text in map(v.token_bytes, range(v.size)) if text]
    num_compared = 0
    for seed in range(300):
        rng = random.Random(seed)
        path = rng.choice(texts)[: rng.randint(1, 5)]
        kept: NodeGroup | None = root
        other: NodeGroup | None = NodeGroup(v, [0])
        for end, byte in enumerate(path, start=1):
            assert kept is not None
            assert other is not None
            kept, other = kept.step(byte), other.step(byte)
            assert kept is not None
            assert other is not None
            words, expected = np.zeros((2, v.num_words), np.uint32)
            inner, has_ended = kept.enter(words)
            other, other_has_ended = other.enter(expected)
            ended = [token_id for token_id in range(v.size) if v.token_bytes(token_id) == path[:end]]
            assert _set(words) == _set(expected) == ended
            assert has_ended == other_has_ended == bool(ended)
            assert inner.nodes.tolist() == other.nodes.tolist()
            assert bool(len(inner)) == any(text.startswith(path[:end]) and len(text) > end for text in texts)
            kept = inner
            num_compared += 1
            if not len(inner):
                break
    assert num_compared > 300
    assert root.step(path[0]) is root.step(path[0])


def test_compiled_functions_are_the_plain_ones() -> None:
    v = merged_vocabulary()
    trie = v.trie_skips, v.trie_starts, v.token_ids
    for seed in range(50):
        rng = random.Random(seed)
        nodes = np.array(sorted(rng.sample(range(len(v.trie_bytes)), rng.randint(0, 30))), np.int32)
        plain_words, words = np.zeros((2, v.num_words), np.uint32)
        plain, num_plain = enter_nodes(nodes, *trie, plain_words)
        inner, num_ended = v.kernels.enter_nodes(nodes, *trie, words)
        assert np.array_equal(plain, inner)
        assert np.array_equal(plain_words, words)
        assert num_plain == num_ended
        for one, other in zip(ends_of_nodes(nodes, *trie), v.kernels.ends_of_nodes(nodes, *trie), strict=True):
            assert np.array_equal(one, other)
        _, token_ids = ends_of_nodes(nodes, *trie)
        for bits in (set_bits, v.kernels.set_bits):
            marked = np.zeros(v.num_words, np.uint32)
            bits(token_ids, marked)
            assert np.array_equal(marked, words)
        for limit in (0, 1, 5, 1000):
            for first in (first_bits, v.kernels.first_bits):
                assert first(words, limit).tolist() == _set(words)[:limit]
        byte = rng.randrange(256)
        steps = step_nodes(nodes, byte, v.trie_bytes, v.trie_skips)
        assert np.array_equal(steps, v.kernels.step_nodes(nodes, byte, v.trie_bytes, v.trie_skips))
