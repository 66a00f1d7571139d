"""draft_rows: along every draft of a batch, the row that each of its states has by itself."""

from __future__ import annotations

import random

from vocabularies import small_vocabulary

from specdec.grammars import BudgetedGrammar, BudgetedState, DraftWalk, GrammarCompiler, draft_rows

_SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": [1, 12, "x"]}}, "required": ["a"]},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    {"type": "string", "maxLength": 4},
]


def _draft(compiler: GrammarCompiler, grammar: BudgetedGrammar, state: BudgetedState, rng: random.Random) -> list[int]:
    """Allowed tokens for the most part, and sometimes any token, or some after the end."""
    vocabulary = compiler.vocabulary
    token_ids: list[int] = []
    for _ in range(rng.randint(0, 8)):
        row = grammar.mask_row(state)
        allowed = [one for one in range(vocabulary.size) if compiler.mask_table.allows(row, one)]
        token_ids.append(rng.choice(allowed) if rng.random() < 0.9 else rng.randrange(vocabulary.size))
        following = None if grammar.is_terminated(state) else grammar.advance(state, token_ids[-1])
        if following is None:
            break
        state = following
    return token_ids + [rng.randrange(vocabulary.size) for _ in range(rng.randint(0, 2))]


def test_rows_of_many_drafts_are_those_of_their_states() -> None:
    compiler = GrammarCompiler(small_vocabulary())
    grammars = [BudgetedGrammar(compiler.compile_json_schema(schema), 40) for schema in _SCHEMAS]
    num_forbidden = num_ended = 0
    for seed in range(150):
        rng = random.Random(seed)
        walks = [
            DraftWalk(grammar, grammar.initial_state, _draft(compiler, grammar, grammar.initial_state, rng))
            for grammar in rng.choices(grammars, k=rng.randint(0, 5))
        ]
        rows = draft_rows(walks)
        assert [len(one) for one in rows] == [len(walk.token_ids) + 1 for walk in walks]
        for (grammar, before, token_ids), row_ids in zip(walks, rows, strict=True):
            state = before
            last = grammar.mask_row(state)
            assert row_ids[0] == last
            is_over = False
            for token_id, row in zip(token_ids, row_ids[1:], strict=True):
                if not is_over:
                    following = grammar.advance(state, token_id)
                    is_over = following is None or grammar.is_terminated(following)
                    num_forbidden += following is None
                    num_ended += following is not None and is_over
                    if following is not None and not is_over:
                        state, last = following, grammar.mask_row(following)
                assert row == last
    assert num_forbidden > 20
    assert num_ended > 20
