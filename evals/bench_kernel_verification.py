"""The ops that hold drafts against the target: verify_coupled and verify_by_rule.

R rows, V vocabulary, D rows of draft probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from specdec.kernels.sample_reference import sample_reference
from specdec.kernels.verify_by_rule import verify_by_rule, verify_by_rule_reference
from specdec.kernels.verify_coupled import verify_coupled, verify_coupled_reference

_Rule = Literal["rejection", "block"]
_RULES: Final[tuple[_Rule, ...]] = ("rejection", "block")


def _check_coupled(setting: KernelSetting) -> str | None:
    step = LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, CHECK_VOCABULARIES[0])
    target_ids, accepted, emitted = step.empty_ids()
    _, due_accepted, due_emitted = step.empty_ids()
    sample_reference(step.logits, step.keys, step.temperatures, target_ids, num_token_ids=step.logits.shape[1])
    draft_ids = step.agreeing_ids(target_ids)
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


@dataclass(frozen=True, slots=True)
class _RuleStep:
    """Drafts with the probabilities that they are verified by, target's [R, V] and draft's [D, V]."""

    step: LogitsStep
    target_probs: Tensor
    draft_probs: Tensor
    draft_rows: Tensor
    """int32 [R]"""
    target_ids: Tensor
    """int64 [R]"""
    accepting: Tensor
    """fp64 [R]"""
    recovering: Tensor
    """fp64 [R]"""

    @classmethod
    def of(cls, step: LogitsStep, *, sharpness: float) -> _RuleStep:
        """The draft's logits are the target's times the sharpness: with 1 all drafts are accepted by rejection."""
        device = step.logits.device
        generator = torch.Generator(device).manual_seed(3)
        accepting, recovering = (
            torch.rand(step.num_rows, generator=generator, device=device, dtype=torch.float64) * 0.98 + 0.01
            for _ in range(2)
        )
        return cls(
            step=step,
            target_probs=step.logits.softmax(dim=1),
            draft_probs=(step.logits * sharpness).softmax(dim=1),
            draft_rows=torch.arange(step.num_rows, dtype=torch.int32, device=device),
            target_ids=step.draft_ids.flip(0).contiguous(),
            accepting=accepting,
            recovering=recovering,
        )

    def verify(self, accepted: Tensor, emitted: Tensor, rule: _Rule) -> None:
        verify_by_rule(
            self.target_probs,
            self.draft_probs,
            self.draft_rows,
            self.step.draft_ids,
            self.target_ids,
            self.accepting,
            self.recovering,
            self.step.row_starts,
            accepted,
            emitted,
            rule=rule,
            max_num_rows=self.step.max_num_rows,
        )

    def verify_by_reference(self, accepted: Tensor, emitted: Tensor, rule: _Rule) -> None:
        verify_by_rule_reference(
            self.target_probs,
            self.draft_probs,
            self.draft_rows,
            self.step.draft_ids,
            self.target_ids,
            self.accepting,
            self.recovering,
            self.step.row_starts,
            accepted,
            emitted,
            rule=rule,
        )


def _check_rule(setting: KernelSetting) -> str | None:
    found = []
    for vocab_size in CHECK_VOCABULARIES:
        rule_step = _RuleStep.of(LogitsStep.of(setting, NUM_CHECKED_SEQUENCES, vocab_size), sharpness=0.9)
        for rule in _RULES:
            _, accepted, emitted = rule_step.step.empty_ids()
            _, due_accepted, due_emitted = rule_step.step.empty_ids()
            rule_step.verify(accepted, emitted, rule)
            rule_step.verify_by_reference(due_accepted, due_emitted, rule)
            what = f"by {rule}, of {vocab_size} tokens"
            found += [
                difference(f"accepted tokens {what}", accepted, due_accepted),
                difference(f"emitted ids {what}", emitted, due_emitted),
            ]
    return first_difference(found)


def _rule_cells(setting: KernelSetting) -> list[KernelCell]:
    def prepare(batch: int) -> Callable[[], object]:
        # The same probabilities on both sides: every draft is walked to its end.
        rule_step = _RuleStep.of(LogitsStep.of(setting, batch, setting.vocab_size), sharpness=1.0)
        _, accepted, emitted = rule_step.step.empty_ids()
        return lambda: rule_step.verify(accepted, emitted, "rejection")

    cells = []
    for batch, num_rows in batches_of(setting):
        work = Work(2 * 4 * (num_rows - batch) * setting.vocab_size + 44 * num_rows)
        cells.append(cell_of(setting, prepare, batch, work, "rejection, all accepted"))
    return cells


VERIFICATION_OPS: Final = (
    KernelOp("verify_coupled", _check_coupled, _coupled_cells, None),
    KernelOp("verify_by_rule", _check_rule, _rule_cells, None),
)
