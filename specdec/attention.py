"""AttentionBackend: new keys and values into the pool, then every query over its sequence's blocks.

T packed tokens, B sequences of a group, Q queries a sequence, L context tokens, S tokens a block, M blocks a
sequence, H_q query heads, H key-value heads, G = H_q / H, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.gather_buffer import GatherBuffer
from specdec.query_tiles import QueryTiles

INVARIANT_TILE_QUERIES = 16
INVARIANT_SPLIT_KEYS = 128

# Up to here a sequence's queries are padded into a batch with others; beyond, it is computed alone.
_MAX_BATCHED_QUERIES = 16
# Up to here heads are folded into queries. The library takes 32 rows of a head at a time and as long for fewer: with 33
# queries, the longest draft that pays with its token, 99 folded rows took two thirds of the time of 9 heads' 33.
_MAX_FOLDED_QUERIES = 40
# A batch is closed when the next, longer sequence would pad the shortest one by more than this factor and slack.
_MAX_PADDING_FACTOR = 1.5
_PADDING_SLACK_BLOCKS = 8
# What another call costs, in blocks read for one query: on two Zen 5 cores 3 ms, over 30 layers, and 0.02 ms a block.
_CALL_COST = 200


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive new tokens of one sequence, with the blocks that hold its KV."""

    token_ids: Sequence[int]
    start_position: int
    block_table: Sequence[int]
    num_logits: int
    """Logits are wanted for the last `num_logits` of these tokens."""

    @property
    def context_len(self) -> int:
        return self.start_position + len(self.token_ids)


Plan = TypeVar("Plan")


class AttentionBackend(Protocol[Plan]):
    """Causal attention over the paged pool; a Plan is what all layers of one forward pass share."""

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> Plan:
        """Index tensors and masks; `num_groups` is G, `dtype` the queries'."""
        ...

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: tuple[Tensor, Tensor],
        plan: Plan,
        *scales: Tensor,
    ) -> Tensor:
        """query [T, H_q, D], key and value [T, H, D], one layer's (keys, values) [N, S, H, D] -> [T, H_q, D].

        Writes key and value into their slots, then attends. `scales`, fp32 [H] each, are those of keys and of
        values where the cache is of fp8, else there are none.
        """
        ...


@dataclass(frozen=True, slots=True)
class SlotIndex:
    """Where the new tokens' KV goes."""

    block_ids: Tensor
    """int64 [T]"""
    offsets: Tensor
    """int64 [T]"""

    @classmethod
    def of(cls, spans: Sequence[Span], block_size: int) -> SlotIndex:
        block_ids: list[int] = []
        offsets: list[int] = []
        for span in spans:
            for position in range(span.start_position, span.context_len):
                block_ids.append(span.block_table[position // block_size])
                offsets.append(position % block_size)
        return cls(torch.tensor(block_ids), torch.tensor(offsets))

    def store(self, key: Tensor, value: Tensor, cache: tuple[Tensor, Tensor]) -> None:
        keys, values = cache
        keys.index_put_((self.block_ids, self.offsets), key)
        values.index_put_((self.block_ids, self.offsets), value)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences attended in one padded call."""

    rows: slice | Tensor
    """Their queries among the T packed ones: a slice when they lie together, else int64 [B * Q]."""
    padded: Tensor | None
    """int64: where each query goes among B * Q padded ones; None when none is padded."""
    num_sequences: int
    num_queries: int
    block_table: Tensor
    """int64 [B * M]"""
    mask: Tensor | None
    """Additive, [B, 1, Q * G, L] when heads are folded into queries, [1, 1, Q, L] when not; None is plain causal, or
    tiles."""
    fold_heads: bool
    tiles: QueryTiles | None
    """Of a single sequence whose queries are attended tile after tile."""


@dataclass(frozen=True, slots=True)
class TorchPlan:
    slots: SlotIndex
    groups: list[_Group]


class TorchAttention:
    """Gathers each sequence's blocks and calls torch's scaled_dot_product_attention.

    For CPUs that multiply bfloat16 themselves, and those that RowAttention has no code for.

    Decoding and verification fold the G query heads of a key-value head into the queries, so that the library sees
    plain multi-head attention and no key is copied per query head. Longer spans go tile after tile where the processor
    multiplies in bfloat16 (query_tiles.py).
    """

    def __init__(self) -> None:
        self._keys, self._values = GatherBuffer(), GatherBuffer()

    def reserve(self, num_blocks: int, cache: tuple[Tensor, Tensor]) -> None:
        """Take the memory that so many blocks of one layer's (keys, values) are gathered in."""
        for buffer, part in zip((self._keys, self._values), cache, strict=True):
            buffer.reserve(num_blocks * part[0].nbytes, part.device)

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> TorchPlan:
        starts = [0]
        for span in spans:
            starts.append(starts[-1] + len(span.token_ids))
        groups = [
            self._group(members, spans, starts, block_size, num_groups, dtype)
            for members in _similar_spans(spans, block_size)
        ]
        return TorchPlan(SlotIndex.of(spans, block_size), groups)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: tuple[Tensor, Tensor],
        plan: TorchPlan,
        *scales: Tensor,
    ) -> Tensor:
        assert not scales, "its caches hold numbers as they are"
        plan.slots.store(key, value, cache)
        if len(plan.groups) == 1 and plan.groups[0].padded is None and isinstance(plan.groups[0].rows, slice):
            return self._attend(query, cache, plan.groups[0])
        output = torch.empty_like(query)
        for group in plan.groups:
            output[group.rows] = self._attend(query[group.rows], cache, group)
        return output

    @staticmethod
    def _group(
        members: list[int],
        spans: Sequence[Span],
        starts: list[int],
        block_size: int,
        num_groups: int,
        dtype: torch.dtype,
    ) -> _Group:
        chosen = [spans[i] for i in members]
        lengths = [len(span.token_ids) for span in chosen]
        num_queries = max(lengths)
        num_blocks = max(math.ceil(span.context_len / block_size) for span in chosen)
        block_table = torch.zeros(len(chosen), num_blocks, dtype=torch.int64)
        query_positions = torch.zeros(len(chosen), num_queries, dtype=torch.int64)
        for i, span in enumerate(chosen):
            used = math.ceil(span.context_len / block_size)
            block_table[i, :used] = torch.tensor(span.block_table[:used])
            query_positions[i, : lengths[i]] = torch.arange(span.start_position, span.context_len)
        rows: slice | Tensor
        if members == list(range(members[0], members[0] + len(members))):
            rows = slice(starts[members[0]], starts[members[-1] + 1])
        else:
            rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in members])
        padded = None
        if min(lengths) < num_queries:
            padded = torch.cat([torch.arange(n) + i * num_queries for i, n in enumerate(lengths)])
        fold_heads = num_queries <= _MAX_FOLDED_QUERIES
        mask, tiles = None, None
        if not fold_heads and QueryTiles.supports(dtype):
            tiles = QueryTiles(num_queries=num_queries, first_position=chosen[0].start_position, num_groups=num_groups)
        elif fold_heads or chosen[0].start_position > 0:
            allowed = torch.arange(num_blocks * block_size) <= query_positions[:, :, None]
            mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -math.inf)
            mask = mask.repeat_interleave(num_groups, dim=1)[:, None] if fold_heads else mask[:, None]
        return _Group(rows, padded, len(chosen), num_queries, block_table.flatten(), mask, fold_heads, tiles)

    def _attend(self, query: Tensor, cache: tuple[Tensor, Tensor], group: _Group) -> Tensor:
        num_sequences, num_queries = group.num_sequences, group.num_queries
        num_query_heads, head_size = query.shape[1:]
        num_heads = cache[0].shape[2]
        num_groups = num_query_heads // num_heads
        # Both of shape B, H, L, D.
        keys, values = (
            buffer.gather(part, group.block_table).view(num_sequences, -1, num_heads, head_size).transpose(1, 2)
            for buffer, part in zip((self._keys, self._values), cache, strict=True)
        )
        if group.tiles is not None:
            return group.tiles.attend(query, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        if group.padded is not None:
            spread = query.new_zeros(num_sequences * num_queries, num_query_heads, head_size)
            spread[group.padded] = query
            query = spread
        if group.fold_heads:
            folded = (
                query.view(num_sequences, num_queries, num_heads, num_groups, head_size)
                .permute(0, 2, 1, 3, 4)
                .reshape(num_sequences, num_heads, num_queries * num_groups, head_size)
            )
            attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=group.mask)
            output = (
                attended.view(num_sequences, num_heads, num_queries, num_groups, head_size)
                .permute(0, 2, 1, 3, 4)
                .reshape(num_sequences * num_queries, num_query_heads, head_size)
            )
        else:
            context = keys.shape[2] if group.mask is not None else num_queries
            attended = F.scaled_dot_product_attention(
                query.view(1, num_queries, num_query_heads, head_size).transpose(1, 2),
                keys[:, :, :context].repeat_interleave(num_groups, dim=1),
                values[:, :, :context].repeat_interleave(num_groups, dim=1),
                attn_mask=group.mask,
                is_causal=group.mask is None,
            )
            output = attended.transpose(1, 2).reshape(num_queries, num_query_heads, head_size)
        return output if group.padded is None else output[group.padded]


@dataclass(frozen=True, slots=True)
class InvariantPlan:
    slots: SlotIndex
    tiles: list[list[_Split]]
    """Per tile of INVARIANT_TILE_QUERIES queries, the splits of keys that any of them sees."""


@dataclass(frozen=True, slots=True)
class _Split:
    block_ids: Tensor
    """int64 [R, K]"""
    offsets: Tensor
    """int64 [R, K]"""
    hidden: Tensor
    """bool [R, 1, 1, K]: keys after the query"""


class RowInvariantAttention:
    """Per query, with key splits at fixed positions, merged in order: the result depends on the query alone.

    R = INVARIANT_TILE_QUERIES, K = INVARIANT_SPLIT_KEYS. Every product is [R * H, G, D] x [R * H, D, K] in fp32, the
    last tile and split zero padded. A split that a query does not see leaves its running (maximum, sum, output) as it
    is, bit for bit, so it does not matter what longer queries share its tile.
    """

    def plan(self, spans: Sequence[Span], *, block_size: int, num_groups: int, dtype: torch.dtype) -> InvariantPlan:
        del num_groups, dtype
        queries = [
            (span.block_table, position) for span in spans for position in range(span.start_position, span.context_len)
        ]
        tiles = []
        for start in range(0, len(queries), INVARIANT_TILE_QUERIES):
            tile = queries[start : start + INVARIANT_TILE_QUERIES]
            positions = torch.zeros(INVARIANT_TILE_QUERIES, dtype=torch.int64)
            positions[: len(tile)] = torch.tensor([position for _, position in tile])
            last = int(positions.max())
            table = torch.zeros(INVARIANT_TILE_QUERIES, last // block_size + 1, dtype=torch.int64)
            for i, (block_table, position) in enumerate(tile):
                used = position // block_size + 1
                table[i, :used] = torch.tensor(block_table[:used])
            splits = []
            for first in range(0, last + 1, INVARIANT_SPLIT_KEYS):
                key_positions = torch.arange(first, first + INVARIANT_SPLIT_KEYS)
                columns = (key_positions // block_size).clamp(max=table.shape[1] - 1)
                splits.append(
                    _Split(
                        table[:, columns],
                        (key_positions % block_size).expand(INVARIANT_TILE_QUERIES, -1).contiguous(),
                        (key_positions > positions[:, None])[:, None, None, :],
                    )
                )
            tiles.append(splits)
        return InvariantPlan(SlotIndex.of(spans, block_size), tiles)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: tuple[Tensor, Tensor],
        plan: InvariantPlan,
        *scales: Tensor,
    ) -> Tensor:
        assert not scales, "its caches hold numbers as they are"
        plan.slots.store(key, value, cache)
        output = torch.empty_like(query)
        for i, splits in enumerate(plan.tiles):
            rows = slice(i * INVARIANT_TILE_QUERIES, (i + 1) * INVARIANT_TILE_QUERIES)
            output[rows] = self._attend(query[rows], cache, splits)
        return output

    @staticmethod
    def _attend(query: Tensor, cache: tuple[Tensor, Tensor], splits: list[_Split]) -> Tensor:
        num_rows, num_query_heads, head_size = query.shape
        num_heads = cache[0].shape[2]
        shape = (INVARIANT_TILE_QUERIES, num_heads, num_query_heads // num_heads, head_size)
        tile = torch.zeros(shape, dtype=torch.float32)
        tile[:num_rows] = query.view(num_rows, *shape[1:])
        tile *= head_size**-0.5
        # One maximum, one sum and one output a query and head: [R, H, G, 1] and [R, H, G, D].
        maximum = torch.full((*shape[:3], 1), -math.inf)
        total = torch.zeros(*shape[:3], 1)
        output = torch.zeros(shape)
        for split in splits:
            # [R, K, H, D] -> [R, H, K, D]
            keys, values = (part[split.block_ids, split.offsets].float().transpose(1, 2).contiguous() for part in cache)
            scores = torch.matmul(tile, keys.transpose(2, 3)).masked_fill_(split.hidden, -math.inf)
            new_maximum = torch.maximum(maximum, scores.amax(dim=-1, keepdim=True))
            weights = torch.exp(scores - new_maximum)
            scale = torch.exp(maximum - new_maximum)
            total = total * scale + weights.sum(dim=-1, keepdim=True)
            output = output * scale + torch.matmul(weights, values)
            maximum = new_maximum
        output /= total
        return output[:num_rows].view(num_rows, num_query_heads, head_size).to(query.dtype)


def _similar_spans(spans: Sequence[Span], block_size: int) -> list[list[int]]:
    """Indices of spans that are attended together: short ones of like context and length, long ones alone."""
    groups: list[list[int]] = []
    short = []
    for i, span in enumerate(spans):
        if len(span.token_ids) > _MAX_BATCHED_QUERIES:
            groups.append([i])
        else:
            short.append(i)
    short.sort(key=lambda i: spans[i].context_len)
    limit_blocks = 0.0
    alike: list[list[int]] = []
    for i in short:
        num_blocks = spans[i].context_len / block_size
        if num_blocks > limit_blocks:
            limit_blocks = num_blocks * _MAX_PADDING_FACTOR + _PADDING_SLACK_BLOCKS
            alike.append([])
        alike[-1].append(i)
    for members in alike:
        # The last one's context is the longest, to which all are padded.
        groups += _by_length(members, spans, math.ceil(spans[members[-1]].context_len / block_size))
    for group in groups:
        group.sort()
    return groups


def _by_length(members: list[int], spans: Sequence[Span], num_blocks: int) -> list[list[int]]:
    """The partition into runs of like length that costs least: calls, and blocks read for padded queries."""
    by_length: dict[int, list[int]] = {}
    for i in members:
        by_length.setdefault(len(spans[i].token_ids), []).append(i)
    lengths = sorted(by_length)
    # best[n]: the cost of the n shortest lengths, and where their last run begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        num_sequences = 0
        choices = []
        for start in range(end - 1, -1, -1):
            num_sequences += len(by_length[lengths[start]])
            choices.append((best[start][0] + _CALL_COST + num_sequences * lengths[end - 1] * num_blocks, start))
        best.append(min(choices))
    groups: list[list[int]] = []
    end = len(lengths)
    while end > 0:
        start = best[end][1]
        groups.append([i for length in lengths[start:end] for i in by_length[length]])
        end = start
    return groups
