"""LogitsStep: random logits of drafts under verification, and all that the ops after a pass need beside them.

R rows of logits, V vocabulary, W words of a mask row, B sequences of K drafts and one row more each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from specdec.evals.bench_device import Launch
from specdec.evals.bench_kernel_cell import KernelCell, KernelSetting
from specdec.evals.bench_work import Work

ALLOWED_SHARE: Final = 1 / 32
"""Of a vocabulary, by a mask: most tokens are forbidden."""
NUM_CHECKED_SEQUENCES: Final = 3
_TEMPERATURE: Final = 0.8


@dataclass(frozen=True, slots=True)
class LogitsStep:
    """The logits of B sequences with K drafts each, and all that is needed to make tokens of them."""

    logits: Tensor
    """fp32 [R, V]"""
    mask_rows: Tensor
    """int32 [R, W]"""
    row_ids: Tensor
    """int64 [R]"""
    keys: Tensor
    """int64 [R, 2]"""
    temperatures: Tensor
    """fp32 [R]"""
    draft_ids: Tensor
    """int64 [R]"""
    row_starts: Tensor
    """int32 [B + 1]"""
    max_num_rows: int

    @classmethod
    def of(cls, setting: KernelSetting, num_sequences: int, vocab_size: int) -> LogitsStep:
        device, max_num_rows = setting.device, setting.num_drafts + 1
        num_rows = num_sequences * max_num_rows
        generator = torch.Generator(device).manual_seed(1)
        logits = torch.randn(num_rows, vocab_size, generator=generator, device=device).mul_(3.0)
        return cls(
            logits=logits,
            mask_rows=_mask_rows(num_rows, vocab_size, device),
            row_ids=torch.arange(num_rows, device=device).flip(0),
            keys=torch.randint(2**32, (num_rows, 2), generator=generator, device=device),
            temperatures=torch.full((num_rows,), _TEMPERATURE, device=device),
            draft_ids=torch.randint(vocab_size, (num_rows,), generator=generator, device=device),
            row_starts=torch.arange(0, num_rows + 1, max_num_rows, dtype=torch.int32, device=device),
            max_num_rows=max_num_rows,
        )

    @property
    def num_rows(self) -> int:
        return self.logits.shape[0]

    def empty_ids(self) -> tuple[Tensor, Tensor, Tensor]:
        """Drawn ids int64 [R], accepted tokens int32 [B], emitted ids int64 [R]: numbers that no op writes."""
        ids = self.draft_ids
        return (
            torch.full_like(ids, -7),
            torch.full((self.row_starts.shape[0] - 1,), -7, dtype=torch.int32, device=ids.device),
            torch.full_like(ids, -7),
        )

    def agreeing_ids(self, target_ids: Tensor) -> Tensor:
        """Drafts int64 [R] of which the target drew the first ones: none in the first sequence, one in the next."""
        row = torch.arange(self.num_rows, device=target_ids.device)
        is_agreeing = row % self.max_num_rows < row // self.max_num_rows
        return torch.where(is_agreeing, target_ids, (target_ids + 1) % self.logits.shape[1])


def _mask_rows(num_rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """int32 [N, W]: each token is allowed with the same chance, and the last one always."""
    num_words = -(-vocab_size // 32)
    words = torch.zeros(num_rows, num_words, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(2)
    for bit in range(32):
        is_allowed = torch.rand(num_rows, num_words, generator=generator, device=device) < ALLOWED_SHARE
        words |= is_allowed.long() << bit
    words[:, (vocab_size - 1) // 32] |= 1 << ((vocab_size - 1) % 32)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def batches_of(setting: KernelSetting) -> list[tuple[int, int]]:
    """Batches, each with its rows of logits."""
    return [(batch, batch * (setting.num_drafts + 1)) for batch in setting.batches]


def cell_of(
    setting: KernelSetting,
    prepare: Callable[[int], Callable[[], object]],
    batch: int,
    work: Work,
    what: str = "",
    launch: Launch = Launch.AS_GRAPH,
) -> KernelCell:
    num_rows = batch * (setting.num_drafts + 1)
    # Four of the size of the logits, made of them or on the way to them.
    label = ", ".join(part for part in (f"batch {batch}, rows {num_rows}", what) if part)
    return KernelCell(label, work, 16 * num_rows * setting.vocab_size, lambda: prepare(batch), launch)
