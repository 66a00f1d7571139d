"""grammar_advance follows a grammar as the host does, where it was told how, and says where it was not."""

import functools
import random

import pytest
import torch

from specdec.grammars import GrammarCompiler, Vocabulary
from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.grammar_advance import (
    FALLBACK_ROW,
    NEVER,
    TransitionTable,
    grammar_advance,
    grammar_advance_reference,
    key_of,
)
from specdec.kernels.sample import sample

EOS = 0
SCHEMA = {"type": "array", "items": {"enum": ["ada", "bob", 12]}, "minItems": 1, "maxItems": 3}


@functools.cache
def compiler():
    letters = [bytes([byte]) for byte in range(0x20, 0x7F)]
    words = [b'["', b'","', b'"b', b'ada"', b"12,", b'"]', b"12]"]
    return GrammarCompiler(Vocabulary([None, *letters, *words], [EOS]))


@functools.cache
def all_transitions():
    """Every state of the grammar, in the order found, and every transition by state number and token id."""
    grammar = compiler().compile_json_schema(SCHEMA)
    states = {grammar.initial_state: 0}
    transitions = {}
    for state in (todo := [grammar.initial_state]):
        for token_id in range(compiler().vocabulary.size):
            after = grammar.advance(state, token_id)
            if after is None:
                continue
            if after not in states:
                states[after] = len(states)
                todo.append(after)
            transitions[states[state], token_id] = states[after]
    return grammar, list(states), transitions


def table_of(transitions, num_buckets, device):
    grammar, states, _ = all_transitions()
    table = TransitionTable.empty(num_buckets, len(states))
    for (state, token_id), successor in transitions.items():
        table.put(state, token_id, successor)
    table.mask_rows.copy_(torch.tensor([grammar.mask_row(state) for state in states]))
    table.least_remaining.zero_()
    return TransitionTable(*(tensor.to(device) for tensor in table))


def started(num_sequences, device):
    """Sequences in the first state, which are known, with a budget of 100 tokens each."""
    grammar, _, _ = all_transitions()
    return {
        "states": torch.zeros(num_sequences, dtype=torch.int32, device=device),
        "remaining": torch.full((num_sequences,), 100, dtype=torch.int32, device=device),
        "is_known": torch.ones(num_sequences, dtype=torch.bool, device=device),
        "mask_row_ids": torch.full((num_sequences,), grammar.mask_row(grammar.initial_state), device=device),
    }


@pytest.mark.parametrize("function", [grammar_advance, grammar_advance_reference])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_states_and_rows_are_the_host_s(share, function, device):
    """70 random texts in step, more than a program takes; lost at a transition that was left out of the table."""
    grammar, states, transitions = all_transitions()
    rng = random.Random(3)
    known = {key: successor for key, successor in transitions.items() if rng.random() < share}
    table = table_of(known, 256, device)
    # As many buckets as keep everything.
    assert int((table.keys >= 0).sum()) == len(known)
    batch = started(70, device)
    numbers = [0] * 70
    is_known = [True] * 70
    num_advances = [0] * 70
    for _ in range(25):
        token_ids = [rng.choice([token for state, token in transitions if state == number]) for number in numbers]
        function(token_ids=torch.tensor(token_ids, device=device), table=table, **batch)
        for i, token_id in enumerate(token_ids):
            if is_known[i]:
                is_known[i] = (numbers[i], token_id) in known
                num_advances[i] += is_known[i]
                numbers[i] = known.get((numbers[i], token_id), numbers[i])
        assert batch["states"].tolist() == numbers
        assert batch["is_known"].tolist() == is_known
        expected = [grammar.mask_row(states[numbers[i]]) if is_known[i] else FALLBACK_ROW for i in range(70)]
        assert batch["mask_row_ids"].tolist() == expected
        assert batch["remaining"].tolist() == [100 - count for count in num_advances]
    assert all(is_known) == (share == 1.0)


@pytest.mark.parametrize("function", [grammar_advance, grammar_advance_reference])
def test_a_state_that_takes_more_for_granted_than_is_left_is_not_known(function, device):
    """Of three budgets: one token too few, just enough, and none for a state whose row is not known."""
    _, _, transitions = all_transitions()
    table = table_of(transitions, 256, device)
    (state, token_id), successor = next(iter(transitions.items()))
    batch = started(3, device)
    batch["states"].fill_(state)
    batch["remaining"].copy_(torch.tensor([8, 9, 10]))
    table.least_remaining[successor] = 8
    function(token_ids=torch.full((3,), token_id, device=device), table=table, **batch)
    assert batch["is_known"].tolist() == [False, True, True]
    assert batch["remaining"].tolist() == [8, 8, 9]
    assert batch["states"].tolist() == [state, successor, successor]
    assert batch["mask_row_ids"].tolist() == [FALLBACK_ROW, *[int(table.mask_rows[successor])] * 2]
    table.least_remaining[successor] = NEVER
    batch = started(1, device) | {"states": torch.full((1,), state, dtype=torch.int32, device=device)}
    batch["remaining"].fill_(NEVER)
    function(token_ids=torch.full((1,), token_id, device=device), table=table, **batch)
    assert batch["is_known"].tolist() == [False]


def test_a_draft_under_a_grammar_needs_no_host(device):
    """Drawn from random logits, masked by the row of each state: texts that the grammar accepts, to their end."""
    grammar, _, transitions = all_transitions()
    vocabulary = compiler().vocabulary
    table = table_of(transitions, 256, device)
    mask_rows = torch.from_numpy(compiler().mask_table.rows.view("int32")[:256].copy()).to(device)
    num_sequences = 2 if INTERPRETED else 50
    batch = started(num_sequences, device)
    generator = torch.Generator().manual_seed(0)
    texts = [[] for _ in range(num_sequences)]
    drawn = torch.empty(num_sequences, dtype=torch.int64, device=device)
    for _ in range(30):
        sample(
            torch.randn(num_sequences, vocabulary.size, generator=generator).to(device),
            torch.randint(2**32, (num_sequences, 2), generator=generator).to(device),
            torch.ones(num_sequences, device=device),
            drawn,
            num_token_ids=vocabulary.size,
            mask_rows=mask_rows,
            mask_row_ids=batch["mask_row_ids"],
            is_constrained=torch.ones(num_sequences, dtype=torch.bool, device=device),
        )
        grammar_advance(token_ids=drawn, table=table, **batch)
        for text, token_id in zip(texts, drawn.tolist(), strict=True):
            text.append(token_id)
    assert batch["remaining"].tolist() == [70] * num_sequences
    assert bool(batch["is_known"].all())
    for text in texts:
        state = grammar.initial_state
        for token_id in text:
            state = grammar.advance(state, token_id)
            assert state is not None
        assert grammar.is_terminated(state)


def test_sequences_without_a_grammar_stay_as_they_are(device):
    _, _, transitions = all_transitions()
    # What a place without a state and a token would be taken for.
    table = table_of(transitions | {(0, 0): 1}, 256, device)
    first = next(token_id for state, token_id in transitions if state == 0)
    token_ids = torch.tensor([first, first, 2**31 - 1, first, first], device=device)
    whole = started(5, device)
    whole["is_known"] = torch.tensor([False, True, False, True, True], device=device)
    whole["mask_row_ids"][0] = 99
    others = {name: tensor[3:].clone() for name, tensor in whole.items()}
    batch = {name: tensor[:3] for name, tensor in whole.items()}
    grammar_advance(token_ids=token_ids[:3], table=table, **batch)
    assert batch["states"].tolist() == [0, transitions[0, first], 0]
    assert batch["is_known"].tolist() == [False, True, False]
    assert batch["mask_row_ids"].tolist()[0] == 99
    assert batch["remaining"].tolist() == [100, 99, 100]
    assert all(torch.equal(tensor[3:], others[name]) for name, tensor in whole.items()), "who stands behind them"


def test_a_full_bucket_loses_one_for_a_new_one(device):
    table = TransitionTable.empty(1, 40)
    table.mask_rows.copy_(torch.arange(40) + 100)
    table.least_remaining.zero_()
    put = set()
    for token_id in range(30):
        bucket, lost = table.put(7, 151_000 + token_id, token_id)
        assert bucket == 0
        assert (lost is None) == (token_id < 8)
        put = (put - {lost}) | {key_of(7, 151_000 + token_id)}
    assert table.put(7, 151_029, 39) == (0, None)
    kept = {
        int(key) & 0xFFFFFFFF: int(successor) for key, successor in zip(table.keys[0], table.successors[0], strict=True)
    }
    assert {key_of(7, token_id) for token_id in kept} == put
    assert len(kept) == 8
    assert kept[151_029] == 39
    placed = TransitionTable(*(tensor.to(device) for tensor in table))
    batch = {
        "states": torch.full((30,), 7, dtype=torch.int32, device=device),
        "remaining": torch.full((30,), 1, dtype=torch.int32, device=device),
        "is_known": torch.ones(30, dtype=torch.bool, device=device),
        "mask_row_ids": torch.full((30,), 2**40, device=device),
    }
    token_ids = [151_000 + i for i in range(30)]
    grammar_advance(token_ids=torch.tensor(token_ids, device=device), table=placed, **batch)
    assert batch["states"].tolist() == [kept.get(token_id, 7) for token_id in token_ids]
    assert batch["mask_row_ids"].tolist() == [kept[each] + 100 if each in kept else FALLBACK_ROW for each in token_ids]
    assert sum(batch["remaining"].tolist()) == 22


def test_no_sequences_are_no_work(device):
    grammar_advance(
        token_ids=torch.zeros(0, dtype=torch.int64, device=device),
        table=TransitionTable.empty(2, 1, device),
        **started(0, device),
    )


def test_buckets_are_a_power_of_2():
    with pytest.raises(ValueError, match="num_buckets is 3; it must be a power of 2"):
        TransitionTable.empty(3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(2, dtype=torch.int64)}, r"states must be \[2\] torch.int32"),
        ({"token_ids": torch.zeros(3, dtype=torch.int64)}, r"token_ids must be \[2\] torch.int64"),
        ({"is_known": torch.zeros(2)}, r"is_known must be \[2\] torch.bool"),
        ({"mask_row_ids": torch.zeros(4, dtype=torch.int64)[::2]}, r"mask_row_ids must be \[2\] torch.int64, contig"),
        ({"remaining": torch.zeros(2, dtype=torch.int64)}, r"remaining must be \[2\] torch.int32"),
        ({"table": {"keys": torch.zeros(2, 4, dtype=torch.int64)}}, r"table.keys must be \[2, 8\] torch.int64"),
        ({"table": {"least_remaining": torch.zeros(1)}}, r"table.least_remaining must be \[1\] torch.int32"),
        ({"table": {"keys": torch.zeros(3, 8, dtype=torch.int64)}}, "table.keys has 3 buckets"),
        ({"table": {"mask_rows": torch.zeros(1, dtype=torch.int64, device="meta")}}, "table.mask_rows is on meta"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    good = {
        "states": torch.zeros(2, dtype=torch.int32),
        "token_ids": torch.zeros(2, dtype=torch.int64),
        "is_known": torch.zeros(2, dtype=torch.bool),
        "mask_row_ids": torch.zeros(2, dtype=torch.int64),
        "remaining": torch.zeros(2, dtype=torch.int32),
        "table": TransitionTable.empty(2, 1),
    }
    for name, value in change.items():
        good[name] = good[name]._replace(**value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        grammar_advance(**good)
