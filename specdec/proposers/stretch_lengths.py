"""StretchLengths: how many tokens a draft model draws in a row before others are asked what follows.

To ask takes a wait for the device; not to ask loses the passes behind a token that others would have gone on from for
nothing, or that led where the device does not know the mask. So a token is drawn ahead while it is likelier than not
that it will be of use.
"""

from __future__ import annotations

import math
from typing import Final
from weakref import WeakKeyDictionary

from specdec.sequence import Sequence
from specdec.speculative import MAX_DRAFT_TOKENS

_LEAST_CHANCE: Final = 0.5
"""That a token is of use: to wait takes about as long as a small model's pass."""
_DECAY: Final = 0.9
"""Of what was seen of a sequence, with every token that its draft model drew."""
_OVERALL_DECAY: Final = 0.99
"""The same, of all sequences together, which a new one begins with."""


class StretchLengths:
    """Learns for each sequence, while others are asked. Drafts are the same whatever it says (draft_model.py)."""

    def __init__(self) -> None:
        self._overall = 1.0
        self._chances: WeakKeyDictionary[Sequence, float] = WeakKeyDictionary()

    def num_tokens(self, sequence: Sequence) -> int:
        """1 or more."""
        chance = self._chances.get(sequence, self._overall)
        if chance <= _LEAST_CHANCE:
            return 1
        if chance**MAX_DRAFT_TOKENS >= _LEAST_CHANCE:
            return MAX_DRAFT_TOKENS
        return 1 + int(math.log(_LEAST_CHANCE) / math.log(chance))

    def observe(self, sequence: Sequence, *, went_on: bool) -> None:
        """Behind a token that the model drew, the next it drew without the host was of use, or would have been."""
        self._chances[sequence] = _DECAY * self._chances.get(sequence, self._overall) + (1.0 - _DECAY) * went_on
        self._overall = _OVERALL_DECAY * self._overall + (1.0 - _OVERALL_DECAY) * went_on
