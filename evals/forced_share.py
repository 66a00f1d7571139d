"""Forced share: how many tokens of real texts a grammar alone knows, and so costs no draft model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from specdec.evals.mask_texts import TokenizedCase
from specdec.evals.schema_engine import CompileOptions, RefusedSchemaError, SpecdecEngine
from specdec.evals.vocabularies import EvalVocabulary, Splitter
from specdec.grammars import Grammar, GrammarCompiler, Vocabulary


class ForcedShare(msgspec.Struct, frozen=True, kw_only=True):
    """Over the first rendering of each text that its grammar takes, if any."""

    num_tokens: int
    num_forced: int
    """Those that a forced run named before they came."""
    num_runs: int
    num_wrong: int
    """Tokens of runs that the text did not have: it was split otherwise, as a model may split it."""

    @property
    def share(self) -> float | None:
        return self.num_forced / self.num_tokens if self.num_tokens else None


def forced_share(
    cases: Sequence[TokenizedCase],
    vocabulary: EvalVocabulary,
    splitter: Splitter,
    # Any: documents are whatever JSON holds.
    documents: Mapping[str, Any],
    on_case: Callable[[], None],
) -> ForcedShare:
    """Along each text: the run of a state, as far as the text has its tokens, and then the next token."""
    tokens = Vocabulary(vocabulary.token_bytes, vocabulary.eos_token_ids, vocabulary.size)
    compiler = GrammarCompiler(tokens, retokenizer=splitter.pre_tokens, max_cache_entries=1)
    engine = SpecdecEngine(documents, compiler=compiler)
    counts = [0, 0, 0, 0]
    for case in cases:
        options = CompileOptions(format=case.case.format, with_documents=case.case.refers_to_documents)
        try:
            grammar = engine.compile(case.schema_text, options).grammar
        except RefusedSchemaError:
            grammar = None
        for renderings in case.texts if grammar is not None else ():
            assert grammar is not None, "texts are walked over what compiled"
            taken = (count for token_ids in renderings if (count := _count(grammar, token_ids[:-1])) is not None)
            for i, number in enumerate(next(taken, ())):
                counts[i] += number
        on_case()
    num_tokens, num_forced, num_runs, num_wrong = counts
    return ForcedShare(num_tokens=num_tokens, num_forced=num_forced, num_runs=num_runs, num_wrong=num_wrong)


def _count(grammar: Grammar, token_ids: Sequence[int]) -> tuple[int, int, int, int] | None:
    """The text's tokens, those that were forced, runs, and tokens of runs that came otherwise; None where refused."""
    state = grammar.initial_state
    num_forced = num_runs = num_wrong = position = 0
    while position < len(token_ids):
        run = grammar.forced_tokens(state, token_ids[:position])
        num_same = 0
        while num_same < len(run) and token_ids[position + num_same : position + num_same + 1] == (run[num_same],):
            num_same += 1
        num_runs += bool(run)
        num_forced += num_same
        num_wrong += len(run) - num_same
        # The token after a run is the text's own, as it is where a draft ends.
        for token_id in token_ids[position : position + num_same + 1]:
            after = grammar.advance(state, token_id)
            if after is None:
                return None
            state = after
        position += num_same + 1
    return len(token_ids), num_forced, num_runs, num_wrong
