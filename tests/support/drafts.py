"""Sequences and drafts as a drafter sees them, without an engine."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

from specdec.prediction_index import PredictionIndex
from specdec.proposers.base import Draft, Source
from specdec.request import SamplingParams
from specdec.sequence import Sequence


def sequence_of(
    token_ids: AbstractSequence[int],
    *,
    num_prompt_tokens: int = 1,
    prediction: AbstractSequence[int] = (),
    cache_salt: str = "",
) -> Sequence:
    return Sequence(
        request_id="r",
        choice_index=0,
        params=SamplingParams(),
        seed=0,
        max_tokens=10_000,
        eos_token_ids=frozenset(),
        num_prompt_tokens=num_prompt_tokens,
        token_ids=list(token_ids),
        detokenizer=None,  # type: ignore[arg-type]  # drafters read no text
        cache_salt=cache_salt,
        prediction=PredictionIndex(prediction) if prediction else None,
    )


def draft_of(sequence: Sequence, token_ids: AbstractSequence[int] = (), *, num_free: int) -> Draft:
    """A draft of these tokens, with slots for more."""
    draft = Draft.of(sequence, len(token_ids) + num_free)
    for token_id in token_ids:
        assert draft.push(token_id, Source("grammar"))
    return draft
