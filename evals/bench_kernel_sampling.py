"""The ops from logits to tokens: token_mask, sample, and all that follows a pass, kernel by kernel.

R rows of logits, V vocabulary. As one replay of the engine's, what follows a pass is in bench_kernel_captured.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from specdec.evals.bench_device import Launch
from specdec.evals.bench_kernel_cell import (
    CHECK_VOCABULARIES,
    KernelCell,
    KernelOp,
    KernelSetting,
    difference,
    first_difference,
)
from specdec.evals.bench_kernel_logits import ALLOWED_SHARE, NUM_CHECKED_SEQUENCES, LogitsStep, batches_of, cell_of
from specdec.evals.bench_kernel_verification import coupled_work
from specdec.evals.bench_work import Work
from specdec.kernels.sample import sample
from specdec.kernels.sample_reference import sample_reference
from specdec.kernels.token_mask import apply_token_mask, apply_token_mask_reference
from specdec.kernels.verify_coupled import verify_coupled, verify_coupled_reference


def _mask_work(num_rows: int, vocab_size: int) -> Work:
    """The forbidden logits are written, none is read."""
    num_forbidden = round(num_rows * vocab_size * (1 - ALLOWED_SHARE))
    return Work(4 * num_forbidden + num_rows * (vocab_size // 8 + 8))


def _check_mask(setting: KernelSetting) -> str | None:
    found = []
    for vocab_size in CHECK_VOCABULARIES:
        step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, vocab_size)
        expected = step.logits.clone()
        apply_token_mask(step.logits, step.mask_rows, step.row_ids)
        apply_token_mask_reference(expected, step.mask_rows, step.row_ids)
        found.append(difference(f"logits of {vocab_size} tokens", step.logits, expected))
    return first_difference(found)


def _mask_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int) -> Callable[[], object]:
        step = LogitsStep.of(setting, batch, setting.vocab_size)
        return lambda: apply_token_mask(step.logits, step.mask_rows, step.row_ids)

    return [cell_of(setting, prepare, batch, _mask_work(num, setting.vocab_size)) for batch, num in batches_of(setting)]


def _borders(step: LogitsStep) -> dict[str, Tensor]:
    num_rows, device = step.num_rows, step.logits.device
    return {
        "top_k": torch.full((num_rows,), 50, dtype=torch.int32, device=device),
        "top_p": torch.full((num_rows,), 0.9, dtype=torch.float64, device=device),
        "min_p": torch.full((num_rows,), 0.01, dtype=torch.float64, device=device),
    }


def _check_sample(setting: KernelSetting) -> str | None:
    found = []
    for vocab_size in CHECK_VOCABULARIES:
        step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, vocab_size)
        step.temperatures[::2] = 0.0
        for what, borders in (("all tokens", {}), ("top-k, top-p and min-p", _borders(step))):
            actual, _, _ = step.empty_ids()
            expected, _, _ = step.empty_ids()
            # The last id is padding.
            sample(step.logits, step.keys, step.temperatures, actual, num_token_ids=vocab_size - 1, **borders)
            sample_reference(
                step.logits, step.keys, step.temperatures, expected, num_token_ids=vocab_size - 1, **borders
            )
            found.append(difference(f"ids drawn from {what} of {vocab_size}", actual, expected))
    return first_difference(found)


def _sample_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int, *, has_borders: bool) -> Callable[[], object]:
        step = LogitsStep.of(setting, batch, setting.vocab_size)
        output, _, _ = step.empty_ids()
        borders = _borders(step) if has_borders else {}
        return lambda: sample(
            step.logits, step.keys, step.temperatures, output, num_token_ids=setting.vocab_size, **borders
        )

    cells = []
    for batch, num_rows in batches_of(setting):
        # Each logit is read once, whoever reads it more often.
        work = Work(4 * num_rows * setting.vocab_size + 28 * num_rows)
        for has_borders, what in ((False, "all tokens"), (True, "top-k, top-p, min-p")):
            cells.append(cell_of(setting, functools.partial(prepare, has_borders=has_borders), batch, work, what))
    return cells


def masks_of(step: LogitsStep) -> dict[str, Tensor]:
    """As `sample` takes them: every row is constrained."""
    is_constrained = torch.ones(step.num_rows, dtype=torch.bool, device=step.logits.device)
    return {"mask_rows": step.mask_rows, "mask_row_ids": step.row_ids, "is_constrained": is_constrained}


def _after_pass(step: LogitsStep, masks: dict[str, Tensor], drawn: Tensor, accepted: Tensor, emitted: Tensor) -> None:
    """As the engine does: masks are read where tokens are drawn."""
    sample(step.logits, step.keys, step.temperatures, drawn, num_token_ids=step.logits.shape[1], **masks)
    verify_coupled(drawn, step.draft_ids, step.row_starts, accepted, emitted, max_num_rows=step.max_num_rows)


def check_after_pass(
    setting: KernelSetting, after_pass: Callable[[LogitsStep], tuple[Tensor, Tensor, Tensor]]
) -> str | None:
    """Of drafts that the target draws as well, some of them.

    `after_pass` gives the ids drawn int64 [R], accepted tokens int32 [B], and emitted ids int64 [R], behind a
    sequence's last token any.
    """
    found = []
    for vocab_size in CHECK_VOCABULARIES:
        step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, vocab_size)
        due_drawn, due_accepted, due_emitted = step.empty_ids()
        unwritten = due_emitted.clone()
        sample_reference(
            step.logits, step.keys, step.temperatures, due_drawn, num_token_ids=vocab_size, **masks_of(step)
        )
        step = dataclasses.replace(step, draft_ids=step.agreeing_ids(due_drawn))
        verify_coupled_reference(due_drawn, step.draft_ids, step.row_starts, due_accepted, due_emitted)
        drawn, accepted, emitted = after_pass(step)
        found += [
            difference(f"ids drawn under masks of {vocab_size}", drawn, due_drawn),
            difference(f"accepted tokens of {vocab_size}", accepted, due_accepted),
            difference(f"emitted ids of {vocab_size}", emitted.where(due_emitted != unwritten, unwritten), due_emitted),
        ]
    return first_difference(found)


def after_pass_work(setting: KernelSetting, batch: int, num_rows: int) -> Work:
    """Each logit and each bit of a mask are read once, though of forbidden logits few need be."""
    drawn = Work(num_rows * (4 * setting.vocab_size + setting.vocab_size // 8 + 37))
    return drawn + coupled_work(num_rows, batch)


def _check_kernel_by_kernel(setting: KernelSetting) -> str | None:
    def after_pass(step: LogitsStep) -> tuple[Tensor, Tensor, Tensor]:
        outputs = step.empty_ids()
        _after_pass(step, masks_of(step), *outputs)
        return outputs

    return check_after_pass(setting, after_pass)


def _after_pass_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int) -> Callable[[], object]:
        step = LogitsStep.of(setting, batch, setting.vocab_size)
        masks, outputs = masks_of(step), step.empty_ids()
        return lambda: _after_pass(step, masks, *outputs)

    return [
        cell_of(setting, prepare, batch, after_pass_work(setting, batch, num_rows), what, launch)
        for batch, num_rows in batches_of(setting)
        for what, launch in (("", Launch.AS_GRAPH), ("launched one by one", Launch.ONE_BY_ONE))
    ]


SAMPLING_OPS: Final = (
    KernelOp("token_mask", _check_mask, _mask_cells, "its own form of the same op"),
    KernelOp("sample", _check_sample, _sample_cells, None),
    KernelOp("mask_sample_verify", _check_kernel_by_kernel, _after_pass_cells, None),
)
