"""Verify, coupled: of each sequence's draft the tokens that the target drew as well, then one token of its own.

    num_accepted[b] = how many i in a row, from 0, have draft_ids[first + i] == target_ids[first + i]
    output_ids[first + i] = target_ids[first + i]      for i <= num_accepted[b], with first = row_starts[b]

R rows, B sequences. A sequence has a row a draft token and one more: row i stands after its first i draft tokens,
draft_ids[first + i] is the token that was drafted there, target_ids[first + i] what the target drew. The last row's
draft id is nobody's. The token after the accepted ones is recovered where a draft token was rejected, and a bonus where
all were accepted.
"""

from __future__ import annotations

import itertools

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.draft_rows import check_rows, tile_of_rows


def verify_coupled_reference(
    target_ids: torch.Tensor,
    draft_ids: torch.Tensor,
    row_starts: torch.Tensor,
    num_accepted: torch.Tensor,
    output_ids: torch.Tensor,
) -> None:
    """The specification, and the CPU path; arguments as in verify_coupled."""
    starts = row_starts.tolist()
    for sequence, (first, end) in enumerate(itertools.pairwise(starts)):
        accepted = 0
        while accepted < end - first - 1 and draft_ids[first + accepted] == target_ids[first + accepted]:
            accepted += 1
        num_accepted[sequence] = accepted
        emitted = slice(first, min(first + accepted + 1, end))
        output_ids[emitted] = target_ids[emitted]


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _verify_coupled_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        target_ids_ptr,
        draft_ids_ptr,
        row_starts_ptr,
        num_accepted_ptr,
        output_ids_ptr,
        TILE: tl.constexpr,
    ):
        """One program walks one sequence's draft."""
        sequence = tl.program_id(0)
        first = tl.load(row_starts_ptr + sequence).to(tl.int64)
        num_rows = tl.load(row_starts_ptr + sequence + 1).to(tl.int64) - first
        row = tl.arange(0, TILE)
        inside = row < num_rows
        target_id = tl.load(target_ids_ptr + first + row, mask=inside, other=0)
        draft_id = tl.load(draft_ids_ptr + first + row, mask=inside, other=0)
        # The last row ends every draft, whatever stands in its place.
        ends = (target_id != draft_id) | (row >= num_rows - 1)
        accepted = tl.min(tl.where(ends, row, TILE), axis=0)
        tl.store(num_accepted_ptr + sequence, accepted)
        tl.store(output_ids_ptr + first + row, target_id, mask=inside & (row <= accepted))


def verify_coupled(
    target_ids: torch.Tensor,
    draft_ids: torch.Tensor,
    row_starts: torch.Tensor,
    num_accepted: torch.Tensor,
    output_ids: torch.Tensor,
    *,
    max_num_rows: int,
) -> None:
    """Accept each sequence's draft as far as the target drew it, into num_accepted and output_ids.

    target_ids, draft_ids, output_ids: [R] int64. row_starts: [B + 1] int32, ascending from 0: sequence b's rows are
    row_starts[b] up to row_starts[b + 1], of which it may have none; it then accepts 0. num_accepted: [B] int32.
    Places of output_ids after a sequence's last token stay as they are. max_num_rows: of any sequence, so that nothing
    waits for the device; that it is, is the caller's to know. Raises ValueError for other shapes, dtypes, devices,
    strides or numbers.
    """
    num_sequences = check_rows(
        row_starts,
        max_num_rows,
        of_rows={"target_ids": target_ids, "draft_ids": draft_ids, "output_ids": output_ids},
        of_sequences={"num_accepted": num_accepted},
    )
    if num_sequences == 0:
        return
    if not runs_in_triton(target_ids):
        verify_coupled_reference(target_ids, draft_ids, row_starts, num_accepted, output_ids)
        return
    with torch.cuda.device_of(target_ids):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _verify_coupled_kernel[(num_sequences,)](
            target_ids,
            draft_ids,
            row_starts,
            num_accepted,
            output_ids,
            TILE=tile_of_rows(max_num_rows),
        )
