"""LaunchedDrafting: a draft model's loop, one kernel after the other, with the numbers of each pass from the host.

A loop draws a token for each of some sequences, feeds it and draws the next, until each has as many as it asked for.
Nothing waits for the device, which knows the tokens. This is what captured_drafting.py does by graphs, and what is done
where there are none.

T positions of a loop, B sequences, W columns, B or more; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.attention import Span
from specdec.device_tensors import Parts, named_on_device
from specdec.kernels.grammar_advance import grammar_advance
from specdec.kernels.sample import sample
from specdec.model_runner import ModelRunner
from specdec.transition_mirror import Transitions

CUTS: Final = ("top_k", "top_p", "min_p")
_ALIGNED_COLUMNS: Final = 8
"""At a multiple of which a position's numbers begin: Triton compiles a kernel once more for a less aligned pointer."""


class DrawnLoop(NamedTuple):
    """What came of a loop, until the next one."""

    earlier_ids: Tensor
    """int64 [T - 1, W]: of any id behind the last token of a sequence"""
    last_ids: Tensor
    """int64 [W]"""
    remaining: Tensor
    """int32 [B] or more: what each one's budget has left behind the tokens that could be followed in its grammar"""

    def joined(self) -> Tensor:
        """int64: all three in one piece, which one copy brings to the host."""
        return torch.cat((self.earlier_ids.flatten(), self.last_ids, self.remaining.long()))


DraftLoop: TypeAlias = Callable[[Tensor], DrawnLoop]
"""Runs a loop whose numbers were sent, once: from logits fp32 [B, V], which the draft model's pass has left."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """On the device, but for the spans."""

    spans: AbstractSequence[Span]
    num_tokens: AbstractSequence[int]
    keys: Tensor
    """int64 [T, W, 2]"""
    parts: dict[str, Tensor]
    """[B] each"""
    transitions: Transitions | None
    """None where there is no mask."""


class LaunchedDrafting:
    """Of a draft model's runner."""

    def __init__(self, runner: ModelRunner, *, num_token_ids: int) -> None:
        """Ids from num_token_ids on are padding."""
        self._runner = runner
        self._num_token_ids = num_token_ids

    def send(
        self,
        spans: AbstractSequence[Span],
        num_tokens: AbstractSequence[int],
        keys: NDArray[np.int64],
        parts: Parts,
        transitions: Transitions,
    ) -> DraftLoop:
        """Send a loop's numbers, in one copy, before the pass over the spans.

        A sequence draws its first token behind its span, and num_tokens in all, the most first. keys [T, B, 2] are of
        the noise. The parts, of B each, are what else `sample` and `grammar_advance` take, by their names: cuts where
        there are any, and `is_masked` for is_constrained. The transitions have the masks that they name.
        """
        keys = widened(keys, -(-len(spans) // _ALIGNED_COLUMNS) * _ALIGNED_COLUMNS)
        given = named_on_device(self._runner.device, parts | {"keys": (np.int64, keys.ravel())})
        known = transitions if any(parts["is_masked"][1]) else None
        return partial(self._run, _Sent(spans, num_tokens, given.pop("keys").view(keys.shape), given, known))

    def _run(self, loop: _Sent, logits: Tensor) -> DrawnLoop:
        given, transitions = loop.parts, loop.transitions
        num_positions, num_columns = loop.keys.shape[:2]
        drawn = torch.zeros(num_positions, num_columns, dtype=torch.int64, device=logits.device)
        mask = {}
        for position in range(num_positions):
            count = sum(num_tokens > position for num_tokens in loop.num_tokens)
            if position:
                before = drawn[position - 1, :count]
                if transitions is not None:
                    grammar_advance(
                        given["states"][:count],
                        before,
                        given["remaining"][:count],
                        given["is_known"][:count],
                        given["mask_row_ids"][:count],
                        transitions.table,
                    )
                spans = [_span_of_drawn(span, position) for span in loop.spans[:count]]
                logits = self._runner.forward_drawn(spans, before, self._runner.logits)
            if transitions is not None:
                mask = {
                    "mask_rows": transitions.mask_rows,
                    "mask_row_ids": given["mask_row_ids"][:count],
                    "is_constrained": given["is_masked"][:count],
                }
            sample(
                logits,
                loop.keys[position, :count],
                given["temperatures"][:count],
                drawn[position, :count],
                num_token_ids=self._num_token_ids,
                **{name: given[name][:count] for name in CUTS if name in given},
                **mask,
            )
        return DrawnLoop(drawn[:-1], drawn[-1], given["remaining"])


def widened(keys: NDArray[np.int64], num_columns: int) -> NDArray[np.int64]:
    """[T, B, 2] -> [T, num_columns, 2], with zeros behind."""
    num_positions, num_sequences = keys.shape[:2]
    wide = np.zeros((num_positions, num_columns, 2), dtype=np.int64)
    wide[:, :num_sequences] = keys
    return wide


def _span_of_drawn(span: Span, position: int) -> Span:
    """Of the token before this position of a loop behind the span: which it is, the device knows."""
    return Span((0,), span.context_len + position - 1, span.block_table, num_logits=1)
