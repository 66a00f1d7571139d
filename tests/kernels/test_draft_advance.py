"""draft_advance brings each draft to its next position, and leaves what is nobody's out of everything."""

import math
import random

import pytest
import torch

from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.draft_advance import NO_SLOT, DraftRows, draft_advance, draft_advance_reference
from specdec.kernels.token_groups import NOBODY

GARBAGE = 2**31 - 1
FUNCTIONS = [draft_advance, draft_advance_reference]
# Sequences, positions, blocks of a table, tokens a block: one, some, as many as a tile has places and more.
SHAPES = [(1, 1, 1, 1), (1, 3, 5, 1), (5, 4, 3, 4), (63, 3, 2, 16), (64, 3, 2, 16), (130, 5, 4, 3)]


def random_rows(rng, num_sequences, num_positions, num_blocks, block_size, *, num_nobodies=0):
    """As they are sent: with contexts that leave room for what is drawn, and garbage wherever nothing is said."""
    room = num_blocks * block_size
    num_tokens = sorted((rng.randint(1, min(num_positions, room)) for _ in range(num_sequences)), reverse=True)
    num_tokens[num_sequences - num_nobodies :] = [0] * num_nobodies
    contexts = [rng.randint(1, room - max(count - 1, 0)) for count in num_tokens]
    int32, int64 = {"dtype": torch.int32}, {"dtype": torch.int64}
    # A row of the tables of all passes: wider than the tables.
    tables = torch.full((num_sequences, num_blocks + 3), GARBAGE, **int32)
    for row, context, count in zip(tables, contexts, num_tokens, strict=True):
        num_own = -(-(context + count - 1) // block_size) if count else 0
        row[:num_own] = torch.tensor(rng.sample(range(10**6), num_own), **int32)
    return DraftRows(
        token_ids=torch.tensor([rng.randrange(150_000) for _ in range(num_sequences)], **int64),
        num_tokens=torch.tensor(num_tokens, **int32),
        num_drawn=torch.zeros(num_sequences, **int32),
        drawn=torch.full((num_positions, num_sequences), -7),
        keys=torch.tensor([rng.randrange(2**32) for _ in range(2 * num_positions * num_sequences)], **int64).view(
            num_positions, num_sequences, 2
        ),
        row_keys=torch.full((num_sequences, 2), GARBAGE),
        temperatures=torch.tensor([0.5 if count else math.nan for count in num_tokens]),
        is_known=torch.tensor([rng.random() < 0.7 for _ in range(num_sequences)], dtype=torch.bool),
        positions=torch.tensor(contexts, **int64) - 1,
        context_lens=torch.tensor(contexts, **int32),
        query_starts=torch.full((num_sequences + 1,), GARBAGE, **int32),
        slot_mapping=torch.full((num_sequences,), GARBAGE),
        block_tables=tables[:, :num_blocks],
    )


def on(rows, device):
    """There, with the tables' rows as far from each other as they were."""
    placed = [tensor.to(device, copy=True) for tensor in rows]
    wide = torch.full((rows.block_tables.shape[0], rows.block_tables.stride(0)), GARBAGE, dtype=torch.int32)
    wide[:, : rows.block_tables.shape[1]] = rows.block_tables
    return DraftRows(*placed)._replace(block_tables=wide.to(device)[:, : rows.block_tables.shape[1]])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_nobodies", [0, 1])
def test_every_turn_is_what_the_host_would_have_listed(shape, num_nobodies, function, device):
    num_sequences, num_positions, _, block_size = shape
    rng = random.Random(num_sequences + num_nobodies)
    rows = random_rows(rng, *shape, num_nobodies=num_nobodies)
    contexts, num_tokens, was_known = (each.tolist() for each in (rows.context_lens, rows.num_tokens, rows.is_known))
    placed = on(rows, device)
    drawn = []
    for turn in range(1, num_positions + 1):
        drawn.append([rng.randrange(150_000) for _ in range(num_sequences)])
        placed.token_ids.copy_(torch.tensor(drawn[-1]))
        function(placed, block_size=block_size)
        num_going = sum(count > turn for count in num_tokens)
        positions = [context + turn - 1 for context in contexts[:num_going]]
        num_ended = num_sequences - num_going
        assert placed.token_ids.tolist() == drawn[-1]
        assert placed.drawn.tolist() == drawn + [[-7] * num_sequences] * (num_positions - turn)
        assert placed.num_drawn.tolist() == [turn] * num_sequences
        assert placed.positions.tolist() == positions + [0] * num_ended
        assert placed.context_lens.tolist() == [position + 1 for position in positions] + [0] * num_ended
        assert placed.query_starts.tolist() == list(range(num_going)) + [num_going] * (num_ended + 1)
        slots = [
            int(rows.block_tables[i, position // block_size]) * block_size + position % block_size
            for i, position in enumerate(positions)
        ]
        assert placed.slot_mapping.tolist() == slots + [NO_SLOT] * num_ended
        assert placed.temperatures.tolist() == [0.5] * num_going + [NOBODY] * num_ended
        assert placed.is_known.tolist() == was_known[:num_going] + [False] * num_ended
        if num_going:
            assert torch.equal(placed.row_keys[:num_going].cpu(), rows.keys[turn, :num_going])
    # Whatever is only read.
    for name in ("num_tokens", "keys", "block_tables"):
        assert torch.equal(getattr(placed, name).cpu(), getattr(rows, name))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_beyond_the_last_position_nobody_goes_on_and_nothing_is_written(function, device):
    """As where a graph is run more often than there are positions, or was told of more tokens than have room."""
    rows = random_rows(random.Random(1), 3, 2, 4, 4)
    rows.num_tokens.fill_(9)
    rows.positions.fill_(0)
    rows.context_lens.fill_(1)
    memory = torch.full((6, 3), -7, device=device)
    placed = on(rows, device)._replace(drawn=memory[:2])
    for _ in range(5):
        function(placed, block_size=4)
    assert placed.drawn.tolist() == [rows.token_ids.tolist()] * 2
    assert memory[2:].tolist() == [[-7] * 3] * 4
    assert placed.num_drawn.tolist() == [5] * 3
    assert placed.query_starts.tolist() == [0] * 4
    assert placed.slot_mapping.tolist() == [NO_SLOT] * 3


def test_no_sequences_are_no_work(device):
    draft_advance(on(random_rows(random.Random(0), 0, 3, 2, 4), device), block_size=4)


def test_a_slot_far_away_is_not_cut_to_32_bits(device):
    rows = random_rows(random.Random(0), 1, 2, 1, 16)
    rows.num_tokens.fill_(2)
    rows.positions.fill_(2)
    rows.block_tables.fill_(2**31 - 1)
    placed = on(rows, device)
    draft_advance(placed, block_size=16)
    assert placed.slot_mapping.tolist() == [(2**31 - 1) * 16 + 3]


@pytest.mark.parametrize("name", DraftRows._fields)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(name):
    rows = random_rows(random.Random(0), 4, 3, 2, 4)
    tensor = getattr(rows, name)
    others = [
        tensor[None],
        tensor.to(torch.float64),
        tensor.to("meta"),
        tensor.new_zeros(*tensor.shape, 2)[..., 0],
    ]
    for other in others:
        with pytest.raises(ValueError, match=f"{name} .*must be|is on"):
            draft_advance(rows._replace(**{name: other}), block_size=4)


def test_a_block_has_at_least_a_token():
    with pytest.raises(ValueError, match="block_size is 0; it must be 1 or more"):
        draft_advance(random_rows(random.Random(0), 2, 2, 2, 4), block_size=0)


@pytest.mark.skipif(not INTERPRETED, reason="elsewhere this is the reference, or a GPU, which the first test has")
@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_is_its_reference_bit_for_bit(seed):
    rng = random.Random(seed)
    rows = random_rows(rng, 70, 4, 3, 4, num_nobodies=seed)
    ours, theirs = on(rows, "cpu"), on(rows, "cpu")
    for _ in range(5):
        draft_advance(ours, block_size=4)
        draft_advance_reference(theirs, block_size=4)
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=0.0, atol=0.0, equal_nan=True)
