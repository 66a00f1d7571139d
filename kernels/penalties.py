"""Penalties: logit bias, then penalties of tokens that occurred, then tokens forbidden for now; in place.

Of row r, which stands after some draft tokens of its sequence, with counts[v] = how often v is in the output or among
these, and seen where it is there or in the prompt:

    x = logits[r, v] + bias[v]                                                  where v has a bias
    x = x / repetition if x > 0 else x * repetition                             where v was seen
    x = x - (counts[v] * frequency + presence)                                  where counts[v] > 0
    x = -inf                                                                    where v is forbidden

in fp32, each operation rounded. R rows, B sequences, of which a row names one. What a sequence has of tokens is listed
once and not once a row, each token at most once, in token_ids[starts[b]] and the sizes[b] - 1 places after it: the
lists of all sequences lie anywhere in one memory, so that each of them may grow. A host appends to them as tokens
come, and the draft's tokens are counted here. A mask may come before or after: what is -inf stays so.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

_MIN_DRAFTS: Final = 8
"""Draft tokens that a kernel has room for, at least, so that there are few kernels to compile."""
_DTYPES: Final = {
    "draft_ids": torch.int64,
    "values": torch.float32,
    "repetition": torch.float32,
    "frequency": torch.float32,
    "presence": torch.float32,
}
"""Of what is not int32."""


class PenalisedRows(NamedTuple):
    """Which sequence a row is of, and the draft tokens that it stands after: draft_ids[draft_starts[r]] and on."""

    sequences: torch.Tensor
    """[R] int32"""
    draft_starts: torch.Tensor
    """[R] int32"""
    num_preceding: torch.Tensor
    """[R] int32, how many draft tokens"""
    draft_ids: torch.Tensor
    """[D] int64"""


class SeenTokens(NamedTuple):
    """The tokens of each sequence's prompt and output, and its penalties; 1, 0 and 0 are none."""

    starts: torch.Tensor
    """[B] int32"""
    sizes: torch.Tensor
    """[B] int32"""
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
    """[B] int32"""
    sizes: torch.Tensor
    """[B] int32"""
    token_ids: torch.Tensor
    """[E] int32"""
    values: torch.Tensor
    """[E] float32"""


class ForbiddenTokens(NamedTuple):
    """Tokens that cannot come yet: what ends an answer, before it has min_tokens."""

    starts: torch.Tensor
    """[B] int32"""
    sizes: torch.Tensor
    """[B] int32"""
    token_ids: torch.Tensor
    """[E] int32"""
    num_missing: torch.Tensor
    """[B] int32: rows after fewer draft tokens than this forbid them"""


def apply_penalties_reference(
    logits: torch.Tensor,
    rows: PenalisedRows,
    *,
    seen: SeenTokens | None = None,
    bias: LogitBias | None = None,
    forbidden: ForbiddenTokens | None = None,
) -> None:
    """The specification, and the CPU path; arguments as in apply_penalties."""
    row_numbers = zip(*(each.tolist() for each in rows[:3]), strict=True)
    for row, (sequence, draft_start, num_preceding) in zip(logits, row_numbers, strict=True):
        if bias is not None:
            own = _slice(bias, sequence)
            row[bias.token_ids[own].long()] += bias.values[own]
        if seen is not None:
            own = _slice(seen, sequence)
            counts = dict(zip(seen.token_ids[own].tolist(), seen.output_counts[own].tolist(), strict=True))
            for token_id in rows.draft_ids[draft_start : draft_start + num_preceding].tolist():
                counts[token_id] = counts.get(token_id, 0) + 1
            _penalise(row, counts, seen.repetition[sequence], seen.frequency[sequence], seen.presence[sequence])
        if forbidden is not None and num_preceding < int(forbidden.num_missing[sequence]):
            row[forbidden.token_ids[_slice(forbidden, sequence)].long()] = -math.inf


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


def _slice(lists: SeenTokens | LogitBias | ForbiddenTokens, sequence: int) -> slice:
    start = int(lists.starts[sequence])
    return slice(start, start + int(lists.sizes[sequence]))


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
        sequences_ptr,
        draft_starts_ptr,
        num_preceding_ptr,
        draft_ids_ptr,
        seen_starts_ptr,
        seen_sizes_ptr,
        seen_ids_ptr,
        output_counts_ptr,
        repetition_ptr,
        frequency_ptr,
        presence_ptr,
        bias_starts_ptr,
        bias_sizes_ptr,
        bias_ids_ptr,
        bias_values_ptr,
        forbidden_starts_ptr,
        forbidden_sizes_ptr,
        forbidden_ids_ptr,
        num_missing_ptr,
        logits_row_stride,
        HAS_SEEN: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        HAS_FORBIDDEN: tl.constexpr,
        NUM_DRAFTS: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program edits one row. Between edits of what may be the same logit, its threads wait for each other."""
        row = tl.program_id(0).to(tl.int64)
        sequence = tl.load(sequences_ptr + row)
        num_preceding = tl.load(num_preceding_ptr + row)
        row_ptr = logits_ptr + row * logits_row_stride
        if HAS_BIAS:
            first = tl.load(bias_starts_ptr + sequence)
            end = first + tl.load(bias_sizes_ptr + sequence)
            for start in range(first, end, TILE):
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
            is_draft = draft < num_preceding
            draft_ids_ptr += tl.load(draft_starts_ptr + row)
            draft_id = tl.load(draft_ids_ptr + draft, mask=is_draft, other=-1).to(tl.int32)
            num_listed = tl.zeros((NUM_DRAFTS,), tl.int32)
            first = tl.load(seen_starts_ptr + sequence)
            end = first + tl.load(seen_sizes_ptr + sequence)
            for start in range(first, end, TILE):
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
            other = tl.load(draft_ids_ptr + draft, mask=is_draft, other=-2).to(tl.int32)
            is_same = draft_id[:, None] == other[None, :]
            comes_earlier = tl.sum((is_same & (draft[None, :] < draft[:, None])).to(tl.int32), axis=1) > 0
            is_listed = num_listed > 0
            is_new = is_draft & (is_listed == 0) & (comes_earlier == 0)
            logit = tl.load(row_ptr + draft_id, mask=is_new, other=0.0)
            count = tl.sum(is_same.to(tl.int32), axis=1)
            tl.store(row_ptr + draft_id, _penalised(logit, count, repetition, frequency, presence), mask=is_new)
            tl.debug_barrier()
        if HAS_FORBIDDEN:
            first = tl.load(forbidden_starts_ptr + sequence)
            size = tl.load(forbidden_sizes_ptr + sequence)
            end = first + tl.where(num_preceding < tl.load(num_missing_ptr + sequence), size, 0)
            for start in range(first, end, TILE):
                place = start + tl.arange(0, TILE)
                token_id = tl.load(forbidden_ids_ptr + place, mask=place < end, other=0)
                tl.store(row_ptr + token_id, tl.full((TILE,), float("-inf"), tl.float32), mask=place < end)


def apply_penalties(
    logits: torch.Tensor,
    rows: PenalisedRows,
    *,
    max_num_preceding: int,
    seen: SeenTokens | None = None,
    bias: LogitBias | None = None,
    forbidden: ForbiddenTokens | None = None,
) -> None:
    """Edit the logits of tokens that are biased, were seen or are forbidden, in place; None is none of any sequence.

    logits: [R, V] float32, any stride from row to row. max_num_preceding: draft tokens before any row, so that nothing
    waits for the device. That it is, that ids, starts and sizes are in range, and tokens listed once a sequence, is the
    caller's to know. Raises ValueError for other shapes, dtypes, devices, strides or numbers.
    """
    _check(logits, rows, max_num_preceding, {"seen": seen, "bias": bias, "forbidden": forbidden})
    if logits.shape[0] == 0 or (seen is None and bias is None and forbidden is None):
        return
    if not runs_in_triton(logits):
        apply_penalties_reference(logits, rows, seen=seen, bias=bias, forbidden=forbidden)
        return
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _penalties_kernel[(logits.shape[0],)](
            logits,
            *rows,
            *(seen or [None] * 7),
            *(bias or [None] * 4),
            *(forbidden or [None] * 4),
            logits.stride(0),
            HAS_SEEN=seen is not None,
            HAS_BIAS=bias is not None,
            HAS_FORBIDDEN=forbidden is not None,
            NUM_DRAFTS=triton.next_power_of_2(max(_MIN_DRAFTS, max_num_preceding)),
            TILE=512,
            enable_fp_fusion=False,
        )


def _check(
    logits: torch.Tensor,
    rows: PenalisedRows,
    max_num_preceding: int,
    given: dict[str, SeenTokens | LogitBias | ForbiddenTokens | None],
) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits must be [R, V] float32; they are {list(logits.shape)} {logits.dtype}")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits must be contiguous along the last axis; their strides are {logits.stride()}")
    if max_num_preceding < 0:
        raise ValueError(f"max_num_preceding is {max_num_preceding}; it must be 0 or more")
    _check_tensors(logits, "rows", rows, of_one="draft_ids", length=logits.shape[0])
    num_sequences: int | None = None
    for owner, lists in given.items():
        if lists is not None:
            num_sequences = lists.starts.numel() if num_sequences is None else num_sequences
            _check_tensors(logits, owner, lists, of_one="token_ids", length=num_sequences)


def _check_tensors(
    logits: torch.Tensor,
    owner: str,
    group: PenalisedRows | SeenTokens | LogitBias | ForbiddenTokens,
    *,
    of_one: str,
    length: int,
) -> None:
    """Each must be [length], but what is listed of tokens, which is as long as `of_one` of them."""
    tensors = group._asdict()
    num_entries = tensors[of_one].numel()
    for name, tensor in tensors.items():
        shape = (num_entries if name in {of_one, "output_counts", "values"} else length,)
        dtype = _DTYPES.get(name, torch.int32)
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{owner}.{name} must be {list(shape)} {dtype}, contiguous; "
                f"it is {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}"
            )
        if tensor.device != logits.device:
            raise ValueError(
                f"{owner}.{name} is on {tensor.device}, logits on {logits.device}; they must be on one device"
            )
