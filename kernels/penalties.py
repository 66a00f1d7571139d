"""Penalties: logit bias, then penalties of tokens that occurred, then tokens forbidden for now; in place.

Of row r after the first i draft tokens of its sequence, with counts[v] = how often v is in the output or among these,
and seen where it is there or in the prompt:

    x = logits[r, v] + bias[v]                                                  where v has a bias
    x = x / repetition if x > 0 else x * repetition                             where v was seen
    x = x - (counts[v] * frequency + presence)                                  where counts[v] > 0
    x = -inf                                                                    where v is forbidden in row i

in fp32, each operation rounded. R rows, B sequences, with rows as in verify_coupled: row i of a sequence stands after
its first i draft tokens. What a sequence has of tokens is listed once and not once a row: tokens[starts[b]] up to
tokens[starts[b + 1]], each token at most once. A host appends to these lists as tokens come, and the draft's tokens
are counted here. A mask may come before or after: what is -inf stays so.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.draft_rows import check_rows


class SeenTokens(NamedTuple):
    """The tokens of each sequence's prompt and output, and its penalties; 1, 0 and 0 are none."""

    starts: torch.Tensor
    """[B + 1] int32"""
    token_ids: torch.Tensor
    """[E] int32"""
    output_counts: torch.Tensor
    """[E] int32, 0 for a token of the prompt alone"""
    repetition: torch.Tensor
    """[B] float32"""
    frequency: torch.Tensor
    """[B] float32"""
    presence: torch.Tensor
    """[B] float32"""


class LogitBias(NamedTuple):
    """What is added to tokens, in each row of a sequence."""

    starts: torch.Tensor
    """[B + 1] int32"""
    token_ids: torch.Tensor
    """[E] int32"""
    values: torch.Tensor
    """[E] float32"""


class ForbiddenTokens(NamedTuple):
    """Tokens that cannot come in a sequence's first rows: what ends an answer, before it has min_tokens."""

    starts: torch.Tensor
    """[B + 1] int32"""
    token_ids: torch.Tensor
    """[E] int32"""
    num_rows: torch.Tensor
    """[B] int32, how many rows they are forbidden in"""


def apply_penalties_reference(
    logits: torch.Tensor,
    row_starts: torch.Tensor,
    draft_ids: torch.Tensor,
    *,
    seen: SeenTokens | None = None,
    bias: LogitBias | None = None,
    forbidden: ForbiddenTokens | None = None,
) -> None:
    """The specification, and the CPU path; arguments as in apply_penalties."""
    for sequence, (first, end) in enumerate(itertools.pairwise(row_starts.tolist())):
        for i in range(end - first):
            row, drafted = logits[first + i], draft_ids[first : first + i].tolist()
            if bias is not None:
                own = _slice(bias.starts, sequence)
                row[bias.token_ids[own].long()] += bias.values[own]
            if seen is not None:
                own = _slice(seen.starts, sequence)
                counts = dict(zip(seen.token_ids[own].tolist(), seen.output_counts[own].tolist(), strict=True))
                for token_id in drafted:
                    counts[token_id] = counts.get(token_id, 0) + 1
                _penalise(row, counts, seen.repetition[sequence], seen.frequency[sequence], seen.presence[sequence])
            if forbidden is not None and i < int(forbidden.num_rows[sequence]):
                row[forbidden.token_ids[_slice(forbidden.starts, sequence)].long()] = -math.inf


def _penalise(
    row: torch.Tensor,
    counts: dict[int, int],
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    """Of logits fp32 [V] the tokens of `counts`, with how often they are in the output."""
    token_ids = torch.tensor(list(counts), dtype=torch.int64, device=row.device)
    times = torch.tensor(list(counts.values()), dtype=torch.float32, device=row.device)
    values = row[token_ids]
    values = torch.where(values > 0.0, values / repetition, values * repetition)
    row[token_ids] = torch.where(times > 0.0, values - (times * frequency + presence), values)


def _slice(starts: torch.Tensor, sequence: int) -> slice:
    return slice(int(starts[sequence]), int(starts[sequence + 1]))


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    @triton.jit
    def _penalised(logit, count, repetition, frequency, presence):  # type: ignore[no-untyped-def]
        """What a seen token's logit becomes; a launch with enable_fp_fusion=False rounds product and sum."""
        divided = tl.div_rn(logit, tl.zeros_like(logit) + repetition)
        logit = tl.where(logit > 0.0, divided, logit * repetition)
        return tl.where(count > 0, logit - (count.to(tl.float32) * frequency + presence), logit)

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def _penalties_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        logits_ptr,
        row_starts_ptr,
        draft_ids_ptr,
        seen_starts_ptr,
        seen_ids_ptr,
        output_counts_ptr,
        repetition_ptr,
        frequency_ptr,
        presence_ptr,
        bias_starts_ptr,
        bias_ids_ptr,
        bias_values_ptr,
        forbidden_starts_ptr,
        forbidden_ids_ptr,
        num_forbidden_rows_ptr,
        logits_row_stride,
        HAS_SEEN: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        HAS_FORBIDDEN: tl.constexpr,
        NUM_DRAFTS: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program edits one row. Between edits of what may be the same logit, its threads wait for each other."""
        sequence = tl.program_id(0)
        i = tl.program_id(1)
        first = tl.load(row_starts_ptr + sequence).to(tl.int64)
        if i >= tl.load(row_starts_ptr + sequence + 1) - first:
            return
        row_ptr = logits_ptr + (first + i) * logits_row_stride
        if HAS_BIAS:
            end = tl.load(bias_starts_ptr + sequence + 1)
            for start in range(tl.load(bias_starts_ptr + sequence), end, TILE):
                place = start + tl.arange(0, TILE)
                inside = place < end
                logit_ptr = row_ptr + tl.load(bias_ids_ptr + place, mask=inside, other=0)
                logit = tl.load(logit_ptr, mask=inside, other=0.0)
                tl.store(logit_ptr, logit + tl.load(bias_values_ptr + place, mask=inside, other=0.0), mask=inside)
            tl.debug_barrier()
        if HAS_SEEN:
            repetition = tl.load(repetition_ptr + sequence)
            frequency = tl.load(frequency_ptr + sequence)
            presence = tl.load(presence_ptr + sequence)
            draft = tl.arange(0, NUM_DRAFTS)
            is_draft = draft < i
            draft_id = tl.load(draft_ids_ptr + first + draft, mask=is_draft, other=-1).to(tl.int32)
            num_listed = tl.zeros((NUM_DRAFTS,), tl.int32)
            end = tl.load(seen_starts_ptr + sequence + 1)
            for start in range(tl.load(seen_starts_ptr + sequence), end, TILE):
                place = start + tl.arange(0, TILE)
                inside = place < end
                token_id = tl.load(seen_ids_ptr + place, mask=inside, other=0)
                is_drafted = ((token_id[:, None] == draft_id[None, :]) & inside[:, None]).to(tl.int32)
                num_listed += tl.sum(is_drafted, axis=0)
                count = tl.load(output_counts_ptr + place, mask=inside, other=0) + tl.sum(is_drafted, axis=1)
                logit = tl.load(row_ptr + token_id, mask=inside, other=0.0)
                penalised = _penalised(logit, count, repetition, frequency, presence)
                tl.store(row_ptr + token_id, penalised, mask=inside)
            # Draft tokens that are not in the list, where they come first. draft_id once more, along the other axis.
            other = tl.load(draft_ids_ptr + first + draft, mask=is_draft, other=-2).to(tl.int32)
            is_same = draft_id[:, None] == other[None, :]
            comes_earlier = tl.sum((is_same & (draft[None, :] < draft[:, None])).to(tl.int32), axis=1) > 0
            is_listed = num_listed > 0
            is_new = is_draft & (is_listed == 0) & (comes_earlier == 0)
            logit = tl.load(row_ptr + draft_id, mask=is_new, other=0.0)
            count = tl.sum(is_same.to(tl.int32), axis=1)
            tl.store(row_ptr + draft_id, _penalised(logit, count, repetition, frequency, presence), mask=is_new)
            tl.debug_barrier()
        if HAS_FORBIDDEN:
            end = tl.load(forbidden_starts_ptr + sequence + 1)
            end = tl.where(i < tl.load(num_forbidden_rows_ptr + sequence), end, 0)
            for start in range(tl.load(forbidden_starts_ptr + sequence), end, TILE):
                place = start + tl.arange(0, TILE)
                token_id = tl.load(forbidden_ids_ptr + place, mask=place < end, other=0)
                tl.store(row_ptr + token_id, tl.full((TILE,), float("-inf"), tl.float32), mask=place < end)


def apply_penalties(
    logits: torch.Tensor,
    row_starts: torch.Tensor,
    draft_ids: torch.Tensor,
    *,
    max_num_rows: int,
    seen: SeenTokens | None = None,
    bias: LogitBias | None = None,
    forbidden: ForbiddenTokens | None = None,
) -> None:
    """Edit the logits of tokens that are biased, were seen or are forbidden, in place; None is none of any sequence.

    logits: [R, V] float32, any stride from row to row. row_starts: [B + 1] int32, ascending from 0: sequence b's rows
    are row_starts[b] up to row_starts[b + 1], of which it may have none. draft_ids: [R] int64, what was drafted at
    each row; of a sequence's last row it is nobody's. max_num_rows: of any sequence, so that nothing waits for the
    device. That it is, that ids are in range and listed once a sequence, is the caller's to know. Raises ValueError for
    other shapes, dtypes, devices, strides or numbers.
    """
    num_sequences = check_rows(row_starts, max_num_rows, of_rows={"draft_ids": draft_ids}, of_sequences={})
    _check(logits, draft_ids, num_sequences, seen, bias, forbidden)
    if num_sequences == 0 or logits.shape[0] == 0:
        return
    if not runs_in_triton(logits):
        apply_penalties_reference(logits, row_starts, draft_ids, seen=seen, bias=bias, forbidden=forbidden)
        return
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _penalties_kernel[(num_sequences, max_num_rows)](
            logits,
            row_starts,
            draft_ids,
            *(seen or [None] * 6),
            *(bias or [None] * 3),
            *(forbidden or [None] * 3),
            logits.stride(0),
            HAS_SEEN=seen is not None,
            HAS_BIAS=bias is not None,
            HAS_FORBIDDEN=forbidden is not None,
            NUM_DRAFTS=triton.next_power_of_2(max_num_rows),
            TILE=512,
            enable_fp_fusion=False,
        )


def _check(
    logits: torch.Tensor,
    draft_ids: torch.Tensor,
    num_sequences: int,
    seen: SeenTokens | None,
    bias: LogitBias | None,
    forbidden: ForbiddenTokens | None,
) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32 or logits.shape[0] != draft_ids.shape[0]:
        raise ValueError(
            f"logits must be [{draft_ids.shape[0]}, V] float32; they are {list(logits.shape)} {logits.dtype}"
        )
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits must be contiguous along the last axis; their strides are {logits.stride()}")
    if draft_ids.device != logits.device:
        raise ValueError(f"draft_ids is on {draft_ids.device}, logits on {logits.device}; they must be on one device")
    for owner, lists in (("seen", seen), ("bias", bias), ("forbidden", forbidden)):
        if lists is None:
            continue
        num_entries = lists.token_ids.shape[0] if lists.token_ids.ndim == 1 else -1
        for name, tensor in lists._asdict().items():
            length = num_entries if name in {"token_ids", "output_counts", "values"} else num_sequences
            length += name == "starts"
            dtype = torch.float32 if name in {"values", "repetition", "frequency", "presence"} else torch.int32
            if tensor.shape != (length,) or tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"{owner}.{name} must be [{length}] {dtype}, contiguous; "
                    f"it is {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}"
                )
            if tensor.device != logits.device:
                raise ValueError(
                    f"{owner}.{name} is on {tensor.device}, logits on {logits.device}; they must be on one device"
                )
