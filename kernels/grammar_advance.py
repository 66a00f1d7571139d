"""Grammar advance: the next state of each sequence's grammar, and its row of the mask table, without the host.

    states[b] = table[states[b], token_ids[b]]        mask_row_ids[b] = table.mask_rows[states[b]]

where the table has the transition, and of the tokens that the sequence's budget then leaves, remaining[b] less one, are
as many as the new state's row takes for granted. Where not, is_known[b] becomes False and mask_row_ids[b] FALLBACK_ROW.
A sequence that is not known, or has no grammar, stays as it is: its state is the last that the host can go on from, and
how many tokens led there, the difference of what remains says.

B sequences, N states of all grammars together, numbered by the host. A transition is in the bucket of its hash, in one
of 8 ways; a full bucket loses one for a new one. So the table has a fixed size and a lookup is one read of 64 bytes,
whatever was put in, and what it lacks is asked of the host.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton

FALLBACK_ROW: Final = 0
"""Of any mask table of ours, the row that allows end-of-sequence alone: an unknown state forbids everything else."""
_NUM_WAYS: Final = 8
NEVER: Final = 2**31 - 1
"""More tokens than any budget has."""
_NO_TRANSITION: Final = -1
"""A key that no state and token have."""


class TransitionTable(NamedTuple):
    """Tensors at fixed places, so that a captured graph reads what was put in since."""

    keys: torch.Tensor
    """[num_buckets, 8] int64: state << 32 | token id"""
    successors: torch.Tensor
    """[num_buckets, 8] int32"""
    mask_rows: torch.Tensor
    """[N] int64, the row of each state"""
    least_remaining: torch.Tensor
    """[N] int32, the fewest tokens of a budget with which that is its row; NEVER where it is not known to be"""

    @classmethod
    def empty(cls, num_buckets: int, num_states: int, device: torch.device | str = "cpu") -> TransitionTable:
        """ValueError unless num_buckets is a power of 2."""
        if num_buckets < 1 or num_buckets & (num_buckets - 1) or num_buckets > 2**28:
            raise ValueError(f"num_buckets is {num_buckets}; it must be a power of 2, up to 2 ** 28")
        return cls(
            torch.full((num_buckets, _NUM_WAYS), _NO_TRANSITION, dtype=torch.int64, device=device),
            torch.zeros(num_buckets, _NUM_WAYS, dtype=torch.int32, device=device),
            torch.full((num_states,), FALLBACK_ROW, dtype=torch.int64, device=device),
            torch.full((num_states,), NEVER, dtype=torch.int32, device=device),
        )

    def clear(self) -> None:
        """Forget all transitions."""
        self.keys.fill_(_NO_TRANSITION)

    def put(self, state: int, token_id: int, successor: int) -> Put:
        """Add or replace a transition, on the host's table."""
        hashed = _hash_32(state, token_id)
        bucket = hashed & (self.keys.shape[0] - 1)
        key = key_of(state, token_id)
        ways = self.keys[bucket].tolist()
        sought = key if key in ways else _NO_TRANSITION
        way = ways.index(sought) if sought in ways else hashed >> 29
        self.keys[bucket, way] = key
        self.successors[bucket, way] = successor
        lost = ways[way]
        return Put(bucket, None if lost in (key, _NO_TRANSITION) else lost)


class Put(NamedTuple):
    """What became of a transition that was put into a table."""

    bucket: int
    """Where it is: to be copied to the device's table."""
    lost: int | None
    """The key of one that had to go for it."""


def key_of(state: int, token_id: int) -> int:
    """What a table knows a transition by."""
    return state << 32 | token_id


def grammar_advance_reference(
    states: torch.Tensor,
    token_ids: torch.Tensor,
    remaining: torch.Tensor,
    is_known: torch.Tensor,
    mask_row_ids: torch.Tensor,
    table: TransitionTable,
) -> None:
    """The specification, and the CPU path; arguments as in grammar_advance."""
    for sequence in is_known.nonzero().flatten().tolist():
        state, token_id = int(states[sequence]), int(token_ids[sequence])
        bucket = _hash_32(state, token_id) & (table.keys.shape[0] - 1)
        ways = table.keys[bucket].tolist()
        key = key_of(state, token_id)
        successor = int(table.successors[bucket, ways.index(key)]) if key in ways else None
        left = int(remaining[sequence]) - 1
        if successor is not None and left >= int(table.least_remaining[successor]):
            states[sequence] = successor
            remaining[sequence] = left
            mask_row_ids[sequence] = table.mask_rows[successor]
        else:
            is_known[sequence] = False
            mask_row_ids[sequence] = FALLBACK_ROW


def _hash_32(state: int, token_id: int) -> int:
    """32 well mixed bits: a 32-bit finalizer of the two words' combination."""
    h = (state * 0x9E3779B1 + token_id) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    _WAYS: Final = tl.constexpr(_NUM_WAYS)
    _FALLBACK: Final = tl.constexpr(FALLBACK_ROW)

    # How many sequences there are is no reason to compile it once more, in the middle of a server's steps.
    @triton.jit(do_not_specialize=["num_sequences"])  # type: ignore[untyped-decorator]  # triton ships no types
    def _grammar_advance_kernel(  # type: ignore[no-untyped-def]  # pointers and constexprs have no Python types
        states_ptr,
        token_ids_ptr,
        remaining_ptr,
        is_known_ptr,
        mask_row_ids_ptr,
        keys_ptr,
        successors_ptr,
        mask_rows_ptr,
        least_remaining_ptr,
        num_sequences,
        num_buckets,
        TILE: tl.constexpr,
    ):
        """One program advances a tile of sequences."""
        sequence = tl.program_id(0) * TILE + tl.arange(0, TILE)
        inside = sequence < num_sequences
        was_known = tl.load(is_known_ptr + sequence, mask=inside, other=0) != 0
        state = tl.load(states_ptr + sequence, mask=was_known, other=0)
        token_id = tl.load(token_ids_ptr + sequence, mask=was_known, other=0)
        h = state.to(tl.uint32) * 0x9E3779B1 + token_id.to(tl.uint32)
        h = (h ^ (h >> 16)) * 0x7FEB352D
        h = (h ^ (h >> 15)) * 0x846CA68B
        h = h ^ (h >> 16)
        bucket = (h & (num_buckets - 1)).to(tl.int64)
        slot = bucket[:, None] * _WAYS + tl.arange(0, _WAYS)[None, :]
        key = (state.to(tl.int64) << 32) | token_id
        is_own = (tl.load(keys_ptr + slot) == key[:, None]) & was_known[:, None]
        # A key is in one way at most.
        successor = tl.sum(tl.load(successors_ptr + slot, mask=is_own, other=0), axis=1)
        has_transition = tl.sum(is_own.to(tl.int32), axis=1) > 0
        left = tl.load(remaining_ptr + sequence, mask=was_known, other=0) - 1
        least = tl.load(least_remaining_ptr + successor, mask=has_transition, other=0)
        is_known = has_transition & (left >= least)
        mask_row = tl.load(mask_rows_ptr + successor, mask=is_known, other=_FALLBACK)
        tl.store(states_ptr + sequence, successor, mask=is_known)
        tl.store(remaining_ptr + sequence, left, mask=is_known)
        tl.store(mask_row_ids_ptr + sequence, mask_row, mask=was_known)
        tl.store(is_known_ptr + sequence, is_known, mask=was_known)


def grammar_advance(
    states: torch.Tensor,
    token_ids: torch.Tensor,
    remaining: torch.Tensor,
    is_known: torch.Tensor,
    mask_row_ids: torch.Tensor,
    table: TransitionTable,
) -> None:
    """Advance the known states by their tokens, in place, with the mask rows that `sample` takes.

    states: [B] int32. token_ids: [B] int64, as they were drawn. remaining: [B] int32, the tokens that each one's budget
    has left. is_known: [B] bool, False for a sequence without a grammar. mask_row_ids: [B] int64. Raises ValueError for
    other shapes, dtypes, devices or strides.
    """
    _check(states, token_ids, remaining, is_known, mask_row_ids, table)
    num_sequences = states.shape[0]
    if num_sequences == 0:
        return
    if not runs_in_triton(states):
        grammar_advance_reference(states, token_ids, remaining, is_known, mask_row_ids, table)
        return
    tile = 64
    with torch.cuda.device_of(states):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _grammar_advance_kernel[(triton.cdiv(num_sequences, tile),)](
            states,
            token_ids,
            remaining,
            is_known,
            mask_row_ids,
            *table,
            num_sequences,
            table.keys.shape[0],
            TILE=tile,
            num_warps=2,
        )


def _check(
    states: torch.Tensor,
    token_ids: torch.Tensor,
    remaining: torch.Tensor,
    is_known: torch.Tensor,
    mask_row_ids: torch.Tensor,
    table: TransitionTable,
) -> None:
    num_sequences = states.shape[:1]
    num_buckets = table.keys.shape[0]
    if num_buckets < 1 or num_buckets & (num_buckets - 1):
        raise ValueError(f"table.keys has {num_buckets} buckets; they must be a power of 2")
    expected = (
        ("states", states, num_sequences, torch.int32),
        ("token_ids", token_ids, num_sequences, torch.int64),
        ("remaining", remaining, num_sequences, torch.int32),
        ("is_known", is_known, num_sequences, torch.bool),
        ("mask_row_ids", mask_row_ids, num_sequences, torch.int64),
        ("table.keys", table.keys, (num_buckets, _NUM_WAYS), torch.int64),
        ("table.successors", table.successors, (num_buckets, _NUM_WAYS), torch.int32),
        ("table.mask_rows", table.mask_rows, table.mask_rows.shape[:1], torch.int64),
        ("table.least_remaining", table.least_remaining, table.mask_rows.shape[:1], torch.int32),
    )
    for name, tensor, shape, dtype in expected:
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {list(shape)} {dtype}, contiguous; "
                f"it is {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}"
            )
        if tensor.device != states.device:
            raise ValueError(f"{name} is on {tensor.device}, states on {states.device}; they must be on one device")
