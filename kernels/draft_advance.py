"""Draft advance: what a draft model's next pass is over, once it has drawn a token for each sequence, without the host.

    i = num_drawn[b]         drawn[i, b] = token_ids[b]         num_drawn[b] = i + 1

Of a sequence that goes on, with i + 1 < num_tokens[b], the token is what the pass feeds:

    positions[b] += 1        context_lens[b] += 1               row_keys[b] = keys[i + 1, b]
    slot_mapping[b] = block_tables[b, positions[b] // block_size] * block_size + positions[b] % block_size

Any other is nobody's from here on: it has position and context 0, NO_SLOT, temperature NOBODY, and a grammar that is
not known. query_starts[b] = min(b, G), for G that go on: those come first, as num_tokens never ascends.

B sequences, S positions that there is room for, M blocks of a table. A sequence goes no further than S.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.token_groups import NOBODY

NO_SLOT: Final = -1
"""Below 0, where `kv_store` writes nothing."""


class DraftRows(NamedTuple):
    """Tensors at fixed places, which a captured graph brings from one position to the next."""

    token_ids: torch.Tensor
    """[B] int64, as they were drawn last"""
    num_tokens: torch.Tensor
    """[B] int32, what each is to draw, in descending order; 0 for nobody"""
    num_drawn: torch.Tensor
    """[B] int32, what each had drawn before the last: all alike"""
    drawn: torch.Tensor
    """[S, B] int64"""
    keys: torch.Tensor
    """[S, B, 2] int64, the words of each position's noise key"""
    row_keys: torch.Tensor
    """[B, 2] int64, those of the next position"""
    temperatures: torch.Tensor
    """[B] float32"""
    is_known: torch.Tensor
    """[B] bool, as in grammar_advance"""
    positions: torch.Tensor
    """[B] int64, of the token that was fed last"""
    context_lens: torch.Tensor
    """[B] int32, that one included"""
    query_starts: torch.Tensor
    """[B + 1] int32"""
    slot_mapping: torch.Tensor
    """[B] int64"""
    block_tables: torch.Tensor
    """[B, M] int32, contiguous along M, with a block for every position that is to be fed"""


def draft_advance_reference(rows: DraftRows, *, block_size: int) -> None:
    """The specification, and the CPU path; arguments as in draft_advance."""
    num_positions, num_sequences = rows.drawn.shape
    every = torch.arange(num_sequences + 1, device=rows.drawn.device)
    has_room = rows.num_drawn < num_positions
    rows.drawn[rows.num_drawn[has_room].long(), every[:-1][has_room]] = rows.token_ids[has_room]
    rows.num_drawn.add_(1)
    goes_on = rows.num_drawn < rows.num_tokens.clamp(max=num_positions)
    rows.positions.copy_(torch.where(goes_on, rows.positions + 1, 0))
    rows.context_lens.copy_(torch.where(goes_on, rows.context_lens + 1, 0))
    rows.slot_mapping.fill_(NO_SLOT)
    rows.temperatures[~goes_on] = NOBODY
    rows.is_known.logical_and_(goes_on)
    going = goes_on.nonzero().flatten()
    positions = rows.positions[going]
    block_ids = rows.block_tables[going, positions // block_size].long()
    rows.slot_mapping[going] = block_ids * block_size + positions % block_size
    rows.row_keys[going] = rows.keys[rows.num_drawn[going].long(), going]
    rows.query_starts.copy_(every.clamp(max=len(going)))


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    _NO_SLOT: Final = tl.constexpr(NO_SLOT)
    _NOBODY: Final = tl.constexpr(NOBODY)

    # Sizes are no reason to compile it once more. Triton ships no types.
    @triton.jit(do_not_specialize=["num_sequences", "num_positions", "table_stride"])  # type: ignore[untyped-decorator]
    def _draft_advance_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        token_ids_ptr,
        num_tokens_ptr,
        num_drawn_ptr,
        drawn_ptr,
        keys_ptr,
        row_keys_ptr,
        temperatures_ptr,
        is_known_ptr,
        positions_ptr,
        context_lens_ptr,
        query_starts_ptr,
        slot_mapping_ptr,
        block_tables_ptr,
        num_sequences,
        num_positions,
        table_stride,
        block_size,
        TILE: tl.constexpr,
    ):
        """One program has all sequences, as it counts those that go on; each is read and written by one thread."""
        sequence = tl.arange(0, TILE)
        inside = sequence < num_sequences
        num_drawn = tl.load(num_drawn_ptr + sequence, mask=inside, other=0)
        token_id = tl.load(token_ids_ptr + sequence, mask=inside, other=0)
        place = num_drawn.to(tl.int64) * num_sequences + sequence
        tl.store(drawn_ptr + place, token_id, mask=inside & (num_drawn < num_positions))
        tl.store(num_drawn_ptr + sequence, num_drawn + 1, mask=inside)
        num_tokens = tl.load(num_tokens_ptr + sequence, mask=inside, other=0)
        limit = tl.minimum(num_tokens, num_positions)
        goes_on = inside & (num_drawn + 1 < limit)
        has_ended = inside & (num_drawn + 1 >= limit)

        position = tl.load(positions_ptr + sequence, mask=goes_on, other=-1) + 1
        context_len = tl.load(context_lens_ptr + sequence, mask=goes_on, other=-1) + 1
        table_ptr = block_tables_ptr + sequence.to(tl.int64) * table_stride
        block_id = tl.load(table_ptr + position // block_size, mask=goes_on, other=0).to(tl.int64)
        slot = tl.where(goes_on, block_id * block_size + position % block_size, _NO_SLOT)
        tl.store(positions_ptr + sequence, position, mask=inside)
        tl.store(context_lens_ptr + sequence, context_len, mask=inside)
        tl.store(slot_mapping_ptr + sequence, slot, mask=inside)

        key_ptr = keys_ptr + 2 * (place + num_sequences)
        own_key_ptr = row_keys_ptr + 2 * sequence
        tl.store(own_key_ptr, tl.load(key_ptr, mask=goes_on, other=0), mask=goes_on)
        tl.store(own_key_ptr + 1, tl.load(key_ptr + 1, mask=goes_on, other=0), mask=goes_on)
        tl.store(temperatures_ptr + sequence, tl.full((TILE,), _NOBODY, tl.float32), mask=has_ended)
        tl.store(is_known_ptr + sequence, goes_on, mask=has_ended)

        num_going = tl.sum(goes_on.to(tl.int32), axis=0)
        tl.store(query_starts_ptr + sequence, tl.minimum(sequence, num_going), mask=sequence <= num_sequences)


def draft_advance(rows: DraftRows, *, block_size: int) -> None:
    """Bring the rows to the next position, in place; shapes and dtypes as DraftRows says.

    That num_tokens never ascends, num_drawn is one number, and tables have the blocks, is the caller's to know. Raises
    ValueError for other shapes, dtypes, devices, strides or numbers.
    """
    _check(rows, block_size)
    num_positions, num_sequences = rows.drawn.shape
    if num_sequences == 0:
        return
    if not runs_in_triton(rows.drawn):
        draft_advance_reference(rows, block_size=block_size)
        return
    tile = max(64, triton.next_power_of_2(num_sequences + 1))
    with torch.cuda.device_of(rows.drawn):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _draft_advance_kernel[(1,)](
            *rows,
            num_sequences,
            num_positions,
            rows.block_tables.stride(0),
            block_size,
            TILE=tile,
            # Fewer threads than the tile has places: one that read a place once more might find it written.
            num_warps=min(8, tile // 64),
        )


def _check(rows: DraftRows, block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be 1 or more")
    if rows.drawn.ndim != 2 or rows.block_tables.ndim != 2:
        raise ValueError(
            f"drawn and block_tables must be [S, B] and [B, M]; "
            f"they are {list(rows.drawn.shape)} and {list(rows.block_tables.shape)}"
        )
    num_positions, num_sequences = rows.drawn.shape
    one_each = (num_sequences,)
    expected = {
        "token_ids": (one_each, torch.int64),
        "num_tokens": (one_each, torch.int32),
        "num_drawn": (one_each, torch.int32),
        "drawn": ((num_positions, num_sequences), torch.int64),
        "keys": ((num_positions, num_sequences, 2), torch.int64),
        "row_keys": ((num_sequences, 2), torch.int64),
        "temperatures": (one_each, torch.float32),
        "is_known": (one_each, torch.bool),
        "positions": (one_each, torch.int64),
        "context_lens": (one_each, torch.int32),
        "query_starts": ((num_sequences + 1,), torch.int32),
        "slot_mapping": (one_each, torch.int64),
        "block_tables": ((num_sequences, rows.block_tables.shape[1]), torch.int32),
    }
    for (name, (shape, dtype)), tensor in zip(expected.items(), rows, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} must be {list(shape)} {dtype}; it is {list(tensor.shape)} {tensor.dtype}")
        if tensor.device != rows.drawn.device:
            raise ValueError(f"{name} is on {tensor.device}, drawn on {rows.drawn.device}; they must be on one device")
        is_whole = tensor.is_contiguous() if name != "block_tables" else tensor.shape[1] < 2 or tensor.stride(1) == 1
        if not is_whole:
            raise ValueError(f"{name} must be contiguous along its last axis; its strides are {tensor.stride()}")
