"""The ops that hold drafts against the target: verify_coupled and verify_by_rule.

R rows, V vocabulary, D rows of draft probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from specdec.evals.bench_kernel_cell import (
    CHECK_VOCABULARIES,
    KernelCell,
    KernelOp,
    KernelSetting,
    difference,
    first_difference,
)
from specdec.evals.bench_kernel_logits import NUM_CHECKED_SEQUENCES, LogitsStep, batches_of, cell_of
from specdec.evals.bench_work import Work
from specdec.kernels.sample import sample_reference
from specdec.kernels.verify_by_rule import verify_by_rule, verify_by_rule_reference
from specdec.kernels.verify_coupled import verify_coupled, verify_coupled_reference

_RULES: Final[tuple[Literal["rejection", "block"], ...]] = ("rejection", "block")


def _check_coupled(setting: KernelSetting) -> str | None:
    step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, CHECK_VOCABULARIES[0])
    target_ids, accepted, emitted = step.empty_ids()
    _, due_accepted, due_emitted = step.empty_ids()
    draft_ids = step.agreeing_ids()
    sample_reference(step.logits, step.keys, step.temperatures, target_ids, num_token_ids=step.logits.shape[1])
    verify_coupled(target_ids, draft_ids, step.row_starts, accepted, emitted, max_num_rows=step.max_num_rows)
    verify_coupled_reference(target_ids, draft_ids, step.row_starts, due_accepted, due_emitted)
    return first_difference(
        [difference("accepted tokens", accepted, due_accepted), difference("emitted ids", emitted, due_emitted)]
    )


def _coupled_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int) -> Callable[[], object]:
        step = LogitsStep.of(setting, batch, CHECK_VOCABULARIES[0])
        target_ids, accepted, emitted = step.empty_ids()
        draft_ids = target_ids.copy_(step.draft_ids).clone()
        return lambda: verify_coupled(
            target_ids, draft_ids, step.row_starts, accepted, emitted, max_num_rows=step.max_num_rows
        )

    return [cell_of(setting, prepare, batch, coupled_work(num, batch)) for batch, num in batches_of(setting)]


def coupled_work(num_rows: int, batch: int) -> Work:
    return Work(24 * num_rows + 8 * batch)


def _rule_arguments(step: LogitsStep, uniforms: tuple[float, float]) -> list[Tensor]:
    """Of verify_by_rule, for drafts drawn from probabilities [D, V] near those of the target, [R, V]."""
    num_rows = step.num_rows
    target_probs = step.logits.softmax(dim=1)
    draft_probs = (step.logits * 0.9).softmax(dim=1)
    low, high = uniforms
    generator = torch.Generator(step.logits.device).manual_seed(3)
    accepting, recovering = (
        torch.rand(num_rows, generator=generator, device=step.logits.device, dtype=torch.float64) * (high - low) + low
        for _ in range(2)
    )
    draft_rows = torch.arange(num_rows, dtype=torch.int32, device=step.logits.device)
    target_ids = step.draft_ids.flip(0).contiguous()
    return [target_probs, draft_probs, draft_rows, step.draft_ids, target_ids, accepting, recovering, step.row_starts]


def _check_rule(setting: KernelSetting) -> str | None:
    found = []
    for vocab_size in CHECK_VOCABULARIES:
        step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, vocab_size)
        arguments = _rule_arguments(step, (0.01, 0.99))
        for rule in _RULES:
            _, accepted, emitted = step.empty_ids()
            _, due_accepted, due_emitted = step.empty_ids()
            verify_by_rule(*arguments, accepted, emitted, rule=rule, max_num_rows=step.max_num_rows)
            verify_by_rule_reference(*arguments, due_accepted, due_emitted, rule=rule)
            what = f"by {rule}, of {vocab_size} tokens"
            found += [
                difference(f"accepted tokens {what}", accepted, due_accepted),
                difference(f"emitted ids {what}", emitted, due_emitted),
            ]
    return first_difference(found)


def _rule_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int) -> Callable[[], object]:
        step = LogitsStep.of(setting, batch, setting.vocab_size)
        # The same probabilities on both sides: every draft is walked to its end.
        target_probs, _, *others = _rule_arguments(step, (0.01, 0.99))
        _, accepted, emitted = step.empty_ids()
        draft_probs = target_probs.clone()
        return lambda: verify_by_rule(
            target_probs, draft_probs, *others, accepted, emitted, rule="rejection", max_num_rows=step.max_num_rows
        )

    cells = []
    for batch, num_rows in batches_of(setting):
        work = Work(2 * 4 * (num_rows - batch) * setting.vocab_size + 44 * num_rows)
        cells.append(cell_of(setting, prepare, batch, work, "rejection, all accepted"))
    return cells


VERIFICATION_OPS: Final = (
    KernelOp("verify_coupled", _check_coupled, _coupled_cells, None),
    KernelOp("verify_by_rule", _check_rule, _rule_cells, None),
)
