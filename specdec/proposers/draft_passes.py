"""DraftPasses: how a draft model's tokens are drawn, which differs by where the model runs: one a call, or several.

R logits rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from specdec.attention import Span
from specdec.faults import find_fault
from specdec.model_runner import ModelRunner
from specdec.proposers.base import Draft, DraftDistribution
from specdec.sampler import DraftSampler, SamplingRow
from specdec.sequence import Sequence

DrawnToken: TypeAlias = tuple[int, DraftDistribution | None]
"""With what it was drawn from, as DraftSampler says."""


class FollowedTokens(NamedTuple):
    """Of those that a draft model drew under grammars, and that were to be followed there without the host."""

    num_known: int = 0
    """Behind these another was drawn."""
    num_lacking: int = 0
    """Where they lead was not known where the model runs."""
    num_guarded: int = 0
    """There the mask depends on how many tokens are left, which only the host knows."""


class Stretch(NamedTuple):
    """Tokens that a draft model draws in a row for one draft."""

    draft: Draft
    num_tokens: int
    """1 or more."""
    row: SamplingRow
    """Of the first of them."""
    span: Span
    """What the model has not computed of the text and the draft."""


class DrawnStretch(NamedTuple):
    """What came of one."""

    tokens: list[DrawnToken]
    """As many as were asked for, or fewer, but one at least."""
    is_lost: bool = False
    """Whether it was not known where the model runs how to go on behind the last."""


class DrawingStretches(NamedTuple):
    """Stretches that are being drawn where the model runs."""

    drawn_ids: Tensor
    """int64 [D] there, of any id behind the last token of a stretch that ends early"""
    places: AbstractSequence[AbstractSequence[int]]
    """Of each stretch's tokens in drawn_ids, as many as were asked for."""
    has_arrived: Callable[[], bool]
    """Whether `wait` has nothing to wait for."""
    wait: Callable[[], list[DrawnStretch]]
    """Once, before anything else is drawn; not for what the device was asked for since. Raises SequenceFaultError."""


class DraftPasses(Protocol):
    """One draft model."""

    followed: FollowedTokens
    """So far."""

    @property
    def num_graphs(self) -> int:
        """Sizes and kinds of its loop, of several tokens with a call, that are replayed."""
        ...

    def max_tokens(self, sequence: Sequence) -> int:
        """The longest stretch that can be drawn for the sequence."""
        ...

    def draw(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> list[DrawnStretch]:
        """What comes of each stretch; also computes the silent spans.

        The tokens of a stretch after the first are masked, as the first is, where its draft is. Passes for silent spans
        alone are waited for. Raises SequenceFaultError.
        """
        ...

    def launch(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> DrawingStretches | None:
        """The same without waiting; None, and nothing is drawn, where that cannot be. Raises SequenceFaultError."""
        ...


class SinglePasses:
    """A pass and a token a draft with every call: the CPU path."""

    num_graphs = 0

    def __init__(self, runner: ModelRunner, sampler: DraftSampler) -> None:
        self.followed = FollowedTokens()
        self._runner = runner
        self._sampler = sampler
        self.logits = runner.logits

    def max_tokens(self, sequence: Sequence) -> int:
        del sequence
        return 1

    def draw(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> list[DrawnStretch]:
        logits = self._runner.forward([*(stretch.span for stretch in stretches), *silent], self.logits)
        if not stretches:
            # Whoever asks is going to time the pass.
            self._runner.wait()
            return []
        return [DrawnStretch([drawn]) for drawn in self.sample(logits, stretches)]

    def launch(self, stretches: AbstractSequence[Stretch], silent: AbstractSequence[Span]) -> None:
        """Never: what is drawn is on the host."""

    def sample(self, logits: Tensor, stretches: AbstractSequence[Stretch]) -> list[DrawnToken]:
        """The first token of each, of logits fp32 [R, V], overwritten, which their spans gave."""
        try:
            return self._sampler.sample_drafts(logits, [stretch.row for stretch in stretches])
        except Exception:
            self.find_fault(stretches)
            raise

    def find_fault(self, stretches: AbstractSequence[Stretch]) -> None:
        """Draw for each by itself; raises SequenceFaultError for the first that fails so."""
        logits = self._runner.forward([stretch.span for stretch in stretches], self.logits)
        draws = (
            (stretch.row.sequence, partial(self._sampler.sample_drafts, logits[i : i + 1], [stretch.row]))
            for i, stretch in enumerate(stretches)
        )
        find_fault("draft", draws)
