"""The cells of `law`: how tokens are drawn, drafted and verified, and which faults are planted."""

from __future__ import annotations

from typing import Literal

import msgspec

from specdec.request import SamplingParams
from specdec.speculative import Verification

DraftedBy = Literal["nobody", "draw", "chain", "pay"]
"""draw: every token from the draft's law. chain: the first is found, as the draft's likeliest, the others are drawn.
pay: the engine's proposer drafts, as many tokens as pay (law_lengths.py)."""
Fault = Literal[
    "forbidden drafts dropped",
    "draft and recovered draws share noise",
    "overlapping drafts share noise",
    "drawn drafts cut for what they led to",
]
"""The first: a draft drawn without the grammar ends before the first forbidden token, and the target draws there. The
third: a position's draft token is drawn with the same noise in every draft that reaches it. The last: whether a drawn
token is verified depends on the guesses that followed it."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One law of texts, held against samples of one kind of decoding."""

    name: str
    verification: Verification
    params: SamplingParams
    drafted_by: DraftedBy = "draw"
    vocab_size: int = 6
    num_tokens: int = 3
    """Length of every text."""
    num_drafts: int = 2
    num_sure: int = 0
    """Tokens that are all but certain after one of the lower half."""
    num_allowed: int | None = None
    """Tokens that the grammar allows after any text; None is no grammar."""
    mask_drafts: bool = True
    fault: Fault | None = None
    """With one, the texts must not have the law that they should have."""


_FREE = Cell(name="free", verification=Verification.COUPLED, params=SamplingParams())
_TRUNCATED = msgspec.structs.replace(
    _FREE,
    name="free, truncated, chain",
    params=SamplingParams(temperature=1.5, top_k=4, top_p=0.9, min_p=0.05),
    drafted_by="chain",
)
_CONSTRAINED = msgspec.structs.replace(_FREE, name="constrained", vocab_size=8, num_allowed=3)
_UNMASKED = msgspec.structs.replace(
    _FREE,
    name="constrained, drafts unmasked",
    params=SamplingParams(temperature=0.7),
    num_allowed=3,
    mask_drafts=False,
)
_PENALISED = msgspec.structs.replace(
    _FREE,
    name="constrained, penalties",
    params=SamplingParams(frequency_penalty=0.6, presence_penalty=0.3, repetition_penalty=1.3, logit_bias={2: 1.0}),
    num_allowed=3,
)
_PAYING = msgspec.structs.replace(
    _FREE, name="free, as long as pays", drafted_by="pay", num_tokens=4, num_drafts=3, num_sure=2
)


def all_cells() -> list[Cell]:
    """Plain decoding, every kind of verification over the same worlds, and the faults."""
    replace = msgspec.structs.replace
    by_rule = (_FREE, _TRUNCATED, _CONSTRAINED, _UNMASKED)
    return [
        replace(_FREE, name="free, no drafts", drafted_by="nobody"),
        _TRUNCATED,
        _CONSTRAINED,
        *(replace(world, verification=Verification.REJECTION) for world in (*by_rule, _PENALISED)),
        *(replace(world, verification=Verification.BLOCK) for world in by_rule),
        replace(_PAYING, verification=Verification.REJECTION),
        replace(_PAYING, verification=Verification.BLOCK),
        replace(
            _UNMASKED,
            verification=Verification.REJECTION,
            params=SamplingParams(),
            fault="forbidden drafts dropped",
        ),
        replace(
            _FREE,
            verification=Verification.REJECTION,
            num_tokens=2,
            num_drafts=1,
            fault="draft and recovered draws share noise",
        ),
        replace(
            _CONSTRAINED,
            verification=Verification.BLOCK,
            params=SamplingParams(temperature=2.0),
            vocab_size=6,
            num_allowed=2,
            fault="overlapping drafts share noise",
        ),
        replace(_PAYING, verification=Verification.REJECTION, fault="drawn drafts cut for what they led to"),
    ]
