"""Tokens by their code points are what walks with bounds find."""

from __future__ import annotations

import numpy as np
import pytest
from vocabularies import merged_vocabulary, small_vocabulary

from specdec.grammars import Vocabulary
from specdec.grammars.body_lengths import BodyLengths, body_lengths, load_body_lengths
from specdec.grammars.lexemes import string_table

_TEXTS = ["é", "éa", "\\n\\", "\\u0001a", 'a"', 'aé"b', '""', "日本語", "日本", '語"', "😀😀", "aaaaaaaaaaaa"]


def _vocabularies() -> list[Vocabulary]:
    base = small_vocabulary()
    tokens: list[bytes | None] = [base.token_bytes(token_id) for token_id in range(base.size)]
    tokens += [text.encode() for text in _TEXTS] + ["日".encode()[:2], "é".encode()[1:], "語😀".encode()[:5]]
    return [base, merged_vocabulary(), Vocabulary(tokens, base.eos_token_ids)]


@pytest.mark.parametrize("vocabulary", _vocabularies(), ids=["small", "merged", "code points"])
def test_they_are_the_walk_with_the_same_bounds(vocabulary: Vocabulary) -> None:
    v, table = vocabulary, string_table(vocabulary.spellable_bytes)
    lengths = BodyLengths(v, table)
    for low in range(5):
        for high in range(15):
            words = np.zeros(v.num_words, np.uint32)
            closed = v.kernels.walk_string(
                np.zeros(1, np.int32), 0, low, high, table, v.trie_bytes, v.trie_skips, v.trie_starts, v.token_ids,
                words, v.max_token_bytes + 1,
            )  # fmt: skip
            found, found_closed = lengths.walk(low, high)
            assert np.array_equal(found, words), (low, high)
            assert np.array_equal(found_closed, closed), (low, high)


@pytest.mark.parametrize("vocabulary", _vocabularies(), ids=["small", "merged", "code points"])
def test_the_compiled_function_is_the_plain_one(vocabulary: Vocabulary) -> None:
    v, table = vocabulary, string_table(vocabulary.spellable_bytes)
    arguments = (table, v.trie_bytes, v.trie_skips, v.trie_starts, v.max_token_bytes + 1)
    for plain, compiled in zip(body_lengths(*arguments), load_body_lengths()(*arguments), strict=True):
        assert np.array_equal(plain, compiled)
