"""Verify, by a rule: keep as much of each draft as the probabilities of target and draft allow, then one token more.

Row i of a sequence's K + 1 stands after its first i draft tokens. With t and q what target and draft draw from there, x
the draft token there, u a uniform number of the row's own, and weight[0] = 1:

    residual[v] = max(0, weight[i] * t[v] - q[v])      mass = sum of residual
    rejection   accepted = u * q[x] < t[x]             leaves = not accepted and mass > 0
                weight[i + 1] = 1 if accepted else 0   (Leviathan et al. 2023, algorithm 1)
    block       leaves = u * (mass + 1 - weight[i]) < mass
                weight[i + 1] = min(1, weight[i] * t[x] / q[x])        (Sun et al. 2024, algorithm 2)

Rows are walked while the weight is above 0. Row K, without a draft token, is left with the target's own token where
u < weight[K]. The last row i that is left counts: the first i draft tokens are accepted, and the token after them is
drawn from its residual by inversion, the first v at which the residual's sum over ids up to v passes recovered * mass.
A draft of which no row is left is rejected whole, and the token is the target's own at row 0.

R rows, B sequences, V vocabulary, D rows of draft probabilities. Sums are in fp64; their order shows in the last bits.
"""

from __future__ import annotations

import itertools
from typing import Final, Literal

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.draft_rows import check_rows, tile_of_rows

_TILE: Final = 2048
"""Probabilities that a program looks at in one go."""


def verify_by_rule_reference(
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    draft_rows: torch.Tensor,
    draft_ids: torch.Tensor,
    target_ids: torch.Tensor,
    accepting: torch.Tensor,
    recovering: torch.Tensor,
    row_starts: torch.Tensor,
    num_accepted: torch.Tensor,
    output_ids: torch.Tensor,
    *,
    rule: Literal["rejection", "block"],
) -> None:
    """The specification, and the CPU path; arguments as in verify_by_rule."""
    starts = row_starts.tolist()
    for sequence, (first, end) in enumerate(itertools.pairwise(starts)):
        num_accepted[sequence] = 0
        if first == end:
            continue
        weight, accepted, left, last_id = 1.0, 0, None, int(target_ids[first])
        for row in range(first, end - 1):
            if weight <= 0.0:
                break
            token_id, uniform = int(draft_ids[row]), float(accepting[row])
            target = target_probs[row].double()
            draft = torch.zeros_like(target)
            if draft_rows[row] < 0:
                draft[token_id] = 1.0
            else:
                draft += draft_probs[draft_rows[row]]
            residual = (weight * target - draft).clamp_(min=0.0)
            mass, target_prob, draft_prob = float(residual.sum()), float(target[token_id]), float(draft[token_id])
            if rule == "rejection":
                is_accepted = uniform * draft_prob < target_prob
                leaves, weight = not is_accepted and mass > 0.0, 1.0 if is_accepted else 0.0
            else:
                leaves = uniform * (mass + 1.0 - weight) < mass
                weight = min(1.0, weight * target_prob / draft_prob)
            if leaves:
                accepted, left = row - first, residual
        if float(accepting[end - 1]) < weight:
            accepted, left, last_id = end - 1 - first, None, int(target_ids[end - 1])
        if left is not None:
            sums = left.cumsum(dim=0)
            num_below = int((sums <= float(recovering[first + accepted]) * sums[-1]).sum())
            # A product that rounding has lifted to the sum itself: the last id with a residual is the one.
            last_id = min(num_below, int(left.nonzero()[-1]))
        num_accepted[sequence] = accepted
        output_ids[first : first + accepted] = draft_ids[first : first + accepted]
        output_ids[first + accepted] = last_id


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit
    def _residual(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        target_ptr, draft_ptr, is_certain, draft_id, weight, token_id, vocab_size
    ):
        """A tile of what a row has left, fp64."""
        inside = token_id < vocab_size
        target = tl.load(target_ptr + token_id, mask=inside, other=0.0).to(tl.float64)
        draft = tl.load(draft_ptr + token_id, mask=inside & (is_certain == 0), other=0.0).to(tl.float64)
        draft = tl.where((is_certain == 1) & (token_id == draft_id), 1.0, draft)
        return tl.maximum(weight * target - draft, 0.0)

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _verify_by_rule_kernel(  # type: ignore[no-untyped-def]
        target_probs_ptr,
        draft_probs_ptr,
        draft_rows_ptr,
        draft_ids_ptr,
        target_ids_ptr,
        accepting_ptr,
        recovering_ptr,
        row_starts_ptr,
        num_accepted_ptr,
        output_ids_ptr,
        target_row_stride,
        draft_row_stride,
        vocab_size,
        IS_BLOCK: tl.constexpr,
        TILE: tl.constexpr,
        ROWS_TILE: tl.constexpr,
    ):
        """One program walks one sequence's draft."""
        sequence = tl.program_id(0)
        first = tl.load(row_starts_ptr + sequence).to(tl.int64)
        num_drafted = tl.load(row_starts_ptr + sequence + 1).to(tl.int64) - first - 1
        if num_drafted >= 0:
            weight = tl.full((), 1.0, tl.float64)
            accepted = num_drafted * 0
            left_weight = tl.full((), 0.0, tl.float64)
            left_mass = tl.full((), 0.0, tl.float64)
            last_id = tl.load(target_ids_ptr + first)
            i = num_drafted * 0
            while (i < num_drafted) & (weight > 0.0):
                row = first + i
                draft_id = tl.load(draft_ids_ptr + row)
                uniform = tl.load(accepting_ptr + row)
                draft_row = tl.load(draft_rows_ptr + row).to(tl.int64)
                is_certain = (draft_row < 0).to(tl.int32)
                target_ptr = target_probs_ptr + row * target_row_stride
                draft_ptr = draft_probs_ptr + tl.maximum(draft_row, 0) * draft_row_stride
                sums = tl.zeros((TILE,), tl.float64)
                for start in range(0, vocab_size, TILE):
                    token_id = start + tl.arange(0, TILE)
                    sums += _residual(target_ptr, draft_ptr, is_certain, draft_id, weight, token_id, vocab_size)
                mass = tl.sum(sums, axis=0)
                target_prob = tl.load(target_ptr + draft_id).to(tl.float64)
                draft_prob = tl.load(draft_ptr + draft_id, mask=is_certain == 0, other=1.0).to(tl.float64)
                if IS_BLOCK:
                    leaves = uniform * (mass + 1.0 - weight) < mass
                    next_weight = tl.minimum(1.0, weight * target_prob / draft_prob)
                else:
                    is_accepted = uniform * draft_prob < target_prob
                    leaves = (is_accepted == 0) & (mass > 0.0)
                    next_weight = tl.where(is_accepted, 1.0, 0.0).to(tl.float64)
                accepted = tl.where(leaves, i, accepted)
                left_weight = tl.where(leaves, weight, left_weight)
                left_mass = tl.where(leaves, mass, left_mass)
                weight = next_weight
                i += 1
            if tl.load(accepting_ptr + first + num_drafted) < weight:
                accepted = num_drafted
                left_mass = tl.full((), 0.0, tl.float64)
                last_id = tl.load(target_ids_ptr + first + num_drafted)
            if left_mass > 0.0:
                row = first + accepted
                draft_id = tl.load(draft_ids_ptr + row)
                draft_row = tl.load(draft_rows_ptr + row).to(tl.int64)
                is_certain = (draft_row < 0).to(tl.int32)
                target_ptr = target_probs_ptr + row * target_row_stride
                draft_ptr = draft_probs_ptr + tl.maximum(draft_row, 0) * draft_row_stride
                threshold = tl.load(recovering_ptr + row) * left_mass
                before = tl.full((), 0.0, tl.float64)
                num_below = tl.full((), 0, tl.int64)
                # Sums in another order may end below the threshold: the last id with a residual is then the one.
                last_possible = tl.full((), 0, tl.int64)
                for start in range(0, vocab_size, TILE):
                    token_id = start + tl.arange(0, TILE)
                    residual = _residual(target_ptr, draft_ptr, is_certain, draft_id, left_weight, token_id, vocab_size)
                    cumulative = before + tl.cumsum(residual, axis=0)
                    is_below = (cumulative <= threshold) & (token_id < vocab_size)
                    num_below += tl.sum(is_below.to(tl.int64), axis=0)
                    possible = tl.max(tl.where(residual > 0.0, token_id, 0), axis=0).to(tl.int64)
                    last_possible = tl.maximum(last_possible, possible)
                    before += tl.sum(residual, axis=0)
                last_id = tl.minimum(num_below, last_possible)
            tl.store(num_accepted_ptr + sequence, accepted.to(tl.int32))
            row = tl.arange(0, ROWS_TILE)
            draft_ids = tl.load(draft_ids_ptr + first + row, mask=row < accepted, other=0)
            tl.store(output_ids_ptr + first + row, tl.where(row == accepted, last_id, draft_ids), mask=row <= accepted)
        else:
            tl.store(num_accepted_ptr + sequence, 0)


def verify_by_rule(
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    draft_rows: torch.Tensor,
    draft_ids: torch.Tensor,
    target_ids: torch.Tensor,
    accepting: torch.Tensor,
    recovering: torch.Tensor,
    row_starts: torch.Tensor,
    num_accepted: torch.Tensor,
    output_ids: torch.Tensor,
    *,
    rule: Literal["rejection", "block"],
    max_num_rows: int,
) -> None:
    """Accept each sequence's draft by the rule, into num_accepted and output_ids; no id is V or above.

    target_probs: [R, V] and draft_probs: [D, V], float32 or float64 of one dtype, each row summing to 1, any stride
    from row to row. draft_rows: [R] int32, the row of draft_probs that the token at a row was drawn from; negative
    where no other could have been drafted. draft_ids, target_ids: [R] int64 below V, the token drafted at each row and
    the target's own there. accepting, recovering: [R] float64, uniform numbers between 0 and 1 and neither of them.
    row_starts: [B + 1] int32, ascending from 0: sequence b's rows are row_starts[b] up to row_starts[b + 1], of which
    it may have none; it then accepts 0. num_accepted: [B] int32. output_ids: [R] int64; places after a sequence's last
    token stay as they are. What stands at a sequence's last row in draft_rows, draft_ids and recovering is not looked
    at. max_num_rows: of any sequence, so that nothing waits for the device; that it is, and that ids and rows are in
    range, is the caller's to know. Raises ValueError for other shapes, dtypes, devices, strides or numbers.
    """
    num_sequences = check_rows(
        row_starts,
        max_num_rows,
        of_rows={"draft_ids": draft_ids, "target_ids": target_ids, "output_ids": output_ids},
        of_sequences={"num_accepted": num_accepted},
        of_uniforms={"accepting": accepting, "recovering": recovering},
    )
    _check_probs(target_probs, draft_probs, draft_rows, draft_ids)
    if rule not in ("rejection", "block"):
        raise ValueError(f"rule is {rule!r}; it must be 'rejection' or 'block'")
    if num_sequences == 0:
        return
    if not runs_in_triton(target_probs):
        verify_by_rule_reference(
            target_probs,
            draft_probs,
            draft_rows,
            draft_ids,
            target_ids,
            accepting,
            recovering,
            row_starts,
            num_accepted,
            output_ids,
            rule=rule,
        )
        return
    with torch.cuda.device_of(target_probs):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _verify_by_rule_kernel[(num_sequences,)](
            target_probs,
            draft_probs,
            draft_rows,
            draft_ids,
            target_ids,
            accepting,
            recovering,
            row_starts,
            num_accepted,
            output_ids,
            target_probs.stride(0),
            draft_probs.stride(0),
            target_probs.shape[1],
            IS_BLOCK=rule == "block",
            TILE=min(_TILE, triton.next_power_of_2(target_probs.shape[1])),
            ROWS_TILE=tile_of_rows(max_num_rows),
            num_warps=8,
        )


def _check_probs(
    target_probs: torch.Tensor, draft_probs: torch.Tensor, draft_rows: torch.Tensor, draft_ids: torch.Tensor
) -> None:
    num_rows = draft_ids.shape[0]
    if (
        target_probs.ndim != 2
        or target_probs.shape[0] != num_rows
        or target_probs.shape[1] < 1
        or target_probs.dtype not in (torch.float32, torch.float64)
    ):
        raise ValueError(
            f"target_probs must be [{num_rows}, V] float32 or float64; "
            f"they are {list(target_probs.shape)} {target_probs.dtype}"
        )
    if (
        draft_probs.ndim != 2
        or draft_probs.shape[1] != target_probs.shape[1]
        or draft_probs.dtype != target_probs.dtype
    ):
        raise ValueError(
            f"draft_probs must be [D, {target_probs.shape[1]}] {target_probs.dtype} as target_probs; "
            f"they are {list(draft_probs.shape)} {draft_probs.dtype}"
        )
    if draft_rows.shape != (num_rows,) or draft_rows.dtype != torch.int32 or not draft_rows.is_contiguous():
        raise ValueError(
            f"draft_rows must be [{num_rows}] int32, contiguous; it is {list(draft_rows.shape)} {draft_rows.dtype}"
        )
    for name, tensor in {"target_probs": target_probs, "draft_probs": draft_probs, "draft_rows": draft_rows}.items():
        if tensor.device != draft_ids.device:
            raise ValueError(
                f"{name} is on {tensor.device}, draft_ids on {draft_ids.device}; they must be on one device"
            )
        if tensor.ndim == 2 and tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along the last axis; their strides are {tensor.stride()}")
