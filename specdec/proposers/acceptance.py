"""AcceptanceEstimates: how likely a draft token is to be accepted, given that all before it were.

Each source is estimated by itself: all sequences together, which start from a prior, and each sequence, which starts
from all of them. Older observations count less and less. What is not drafted is not observed: an estimate is then drawn
back slowly to where it started, so that a source which did badly is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import Final
from weakref import WeakKeyDictionary

from specdec.proposers.base import Source
from specdec.sequence import Sequence

_PRIORS: Final = {
    "grammar": (0.7, 0.9),
    "prediction": (0.2, 0.6, 0.85, 0.96, 0.99),
    "suffix": (0.15, 0.3, 0.4, 0.55, 0.75, 0.95),
    "ngram": (0.15, 0.15, 0.3, 0.4, 0.5, 0.6, 0.6, 0.7, 0.8),
    "draft_model": (0.6,),
    "synthetic": (0.7,),
}
"""By proposer and confidence; those of drafters that look tokens up are what they were right in, on text and code."""
_PRIOR_WEIGHT: Final = 6.0
"""Observations that a prior counts as."""
_SHARED_WEIGHT: Final = 4.0
"""Observations that all sequences together count as for one."""
_SHARED_DECAY: Final = 0.995
_OWN_DECAY: Final = 0.95
_UNTRIED_DECAY: Final = 0.98


class _Tally:
    """Decayed counts."""

    __slots__ = ("accepted", "tried")

    def __init__(self) -> None:
        self.accepted = 0.0
        self.tried = 0.0

    def add(self, *, is_accepted: bool, decay: float) -> None:
        self.tried = self.tried * decay + 1.0
        self.accepted = self.accepted * decay + is_accepted

    def fade(self, decay: float) -> None:
        self.tried *= decay
        self.accepted *= decay

    def rate(self, start: float, weight: float) -> float:
        return (self.accepted + weight * start) / (self.tried + weight)


class AcceptanceEstimates:
    """Learns from every verified draft."""

    def __init__(self) -> None:
        self._shared: dict[Source, _Tally] = {}
        self._own: WeakKeyDictionary[Sequence, dict[Source, _Tally]] = WeakKeyDictionary()

    def probability(self, sequence: Sequence, source: Source) -> float:
        """That a token by this source is accepted, once all before it are."""
        shared = self._shared.get(source)
        start = _PRIORS[source.proposer][source.confidence]
        if shared is not None:
            start = shared.rate(start, _PRIOR_WEIGHT)
        own = self._own.get(sequence)
        tally = None if own is None else own.get(source)
        return start if tally is None else tally.rate(start, _SHARED_WEIGHT)

    def observe(self, sequence: Sequence, sources: AbstractSequence[Source], num_accepted: int) -> None:
        """A draft of which the first num_accepted tokens were accepted, and the next, if there is one, was not."""
        own = self._own.setdefault(sequence, {})
        for i, source in enumerate(sources[: num_accepted + 1]):
            is_accepted = i < num_accepted
            self._shared.setdefault(source, _Tally()).add(is_accepted=is_accepted, decay=_SHARED_DECAY)
            own.setdefault(source, _Tally()).add(is_accepted=is_accepted, decay=_OWN_DECAY)

    def skip(self, sequence: Sequence, source: Source) -> None:
        """This source had a token to offer next, which was not tried."""
        own = self._own.get(sequence)
        if own is not None and source in own:
            own[source].fade(_UNTRIED_DECAY)
        if source in self._shared:
            self._shared[source].fade(_SHARED_DECAY)
