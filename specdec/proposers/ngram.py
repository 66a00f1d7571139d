"""NgramProposer: what followed the last few tokens when they last occurred (prompt lookup, Saxena 2023)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from specdec.batch import Batch
from specdec.proposers.base import NO_PROPOSAL, Proposal
from specdec.sequence import Sequence


class _NgramIndex:
    """Where each n-gram of one sequence last ended, for n in [min_n, max_n]; grows with the sequence."""

    __slots__ = ("_ends", "_max_n", "_min_n", "_num_indexed")

    def __init__(self, min_n: int, max_n: int) -> None:
        self._min_n = min_n
        self._max_n = max_n
        self._num_indexed = 0
        self._ends: dict[tuple[int, ...], int] = {}

    def lookup(self, token_ids: list[int], num_tokens: int) -> list[int]:
        """Up to `num_tokens` tokens that followed the longest n-gram which ends the sequence and occurred before.

        A continuation that reaches the end of the sequence goes on in what it has copied, so that a repeated phrase
        is continued at any length.
        """
        # The n-grams that end at the last token are looked up, not indexed: nothing has followed them yet.
        for end in range(self._num_indexed + 1, len(token_ids)):
            for n in range(self._min_n, min(self._max_n, end) + 1):
                self._ends[tuple(token_ids[end - n : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)
        for n in range(min(self._max_n, len(token_ids)), self._min_n - 1, -1):
            end_of_match = self._ends.get(tuple(token_ids[-n:]))
            if end_of_match is not None:
                period = len(token_ids) - end_of_match
                copied = token_ids[end_of_match : end_of_match + num_tokens]
                while len(copied) < num_tokens:
                    copied.append(copied[len(copied) - period])
                return copied
        return []


class NgramProposer:
    """Needs no model; drafts end where the grammar forbids the next token."""

    name = "ngram"

    def __init__(self, *, prompt_lookup_min: int, prompt_lookup_max: int) -> None:
        self._min_n = prompt_lookup_min
        self._max_n = prompt_lookup_max
        self._indexes: WeakKeyDictionary[Sequence, _NgramIndex] = WeakKeyDictionary()
        self.num_drafts_cut_by_grammar = 0

    def propose(self, batch: Batch) -> list[Proposal]:
        return [
            self._propose(scheduled.sequence, scheduled.num_draft_slots)
            if scheduled.num_draft_slots > 0
            else NO_PROPOSAL
            for scheduled in batch.scheduled
        ]

    def _propose(self, sequence: Sequence, num_tokens: int) -> Proposal:
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _NgramIndex(self._min_n, self._max_n)
        token_ids = index.lookup(sequence.token_ids, num_tokens)
        if sequence.grammar is None:
            return Proposal(token_ids)
        state = sequence.grammar_state
        for i, token_id in enumerate(token_ids):
            assert state is not None, "only allowed tokens are walked"
            if sequence.grammar.is_terminated(state):
                return Proposal(token_ids[:i])
            state = sequence.grammar.advance(state, token_id)
            if state is None:
                self.num_drafts_cut_by_grammar += 1
                return Proposal(token_ids[:i])
        return Proposal(token_ids)
