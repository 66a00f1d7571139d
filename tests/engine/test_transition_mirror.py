"""What the device knows of grammars is what the host knows, or is not there: the rows, the budgets, the states."""

import functools
import gc
import random

import numpy as np
import pytest
import torch

from specdec.grammars import BudgetedGrammar, GrammarCompiler, Vocabulary
from specdec.kernels.grammar_advance import FALLBACK_ROW, grammar_advance
from specdec.transition_mirror import TransitionMirror

EOS = 0
SCHEMAS = (
    {"type": "array", "items": {"enum": ["ada", "bob", 12]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}}},
    {"type": "array", "items": {"enum": ["x", "y", "zz", "w"]}, "uniqueItems": True, "minItems": 2},
    {
        "anyOf": [
            {"type": "string", "pattern": "^[a-c]{2,6}$"},
            {"type": "object", "additionalProperties": {"const": 1}},
        ]
    },
)


def new_compiler():
    letters = [bytes([byte]) for byte in range(0x20, 0x7F)]
    words = [b'["', b'","', b'"b', b'ada"', b"12,", b'"]', b"[[", b"]]", b'":', b"true", b"],["]
    return GrammarCompiler(Vocabulary([None, *letters, *words], [EOS]))


@functools.cache
def compiler():
    return new_compiler()


def allowed_ids(words):
    return np.flatnonzero(np.unpackbits(np.asarray(words).view(np.uint8), bitorder="little")).tolist()


class Walkers:
    """Texts that are written side by side, a stretch of tokens at a time: by the host, and as the device follows."""

    def __init__(self, compiler, mirror, device):
        self.table = compiler.mask_table
        self.mirror = mirror
        self.device = device
        self.num_followed = self.num_lost = 0

    def stretch(self, texts, num_tokens, rng):
        """`texts` are (budgeted grammar, state); the states afterwards, of those that have not ended."""
        starts = [state for _, state in texts]
        first_rows = [grammar.mask_row(state) for grammar, state in texts]
        numbers = self.mirror.number([state.state for state in starts])
        table, mask_rows = self.mirror.on_device(first_rows)
        batch = {
            "states": torch.tensor(numbers, dtype=torch.int32, device=self.device),
            "remaining": torch.tensor([each.remaining for each in starts], dtype=torch.int32, device=self.device),
            "is_known": torch.ones(len(texts), dtype=torch.bool, device=self.device),
            "mask_row_ids": torch.tensor(first_rows, device=self.device),
        }
        states = list(starts)
        taken = [[] for _ in texts]
        for _ in range(num_tokens):
            known = batch["is_known"].tolist()
            row_ids = batch["mask_row_ids"].tolist()
            for i, (grammar, _) in enumerate(texts):
                words = mask_rows[row_ids[i]].cpu().numpy().view(np.uint32)
                if not known[i]:
                    assert row_ids[i] == FALLBACK_ROW
                    assert allowed_ids(words) == [EOS]
                    continue
                # The claim: what is known is exactly the host's mask there, budget and all.
                host = self.table.rows[grammar.mask_row(states[i])]
                assert words.tolist() == host.tolist()
                allowed = allowed_ids(words)
                # Few at each place, so that the same are met again.
                token_id = rng.choice(allowed[:2] + allowed[-2:])
                successor = grammar.advance(states[i], token_id)
                assert successor is not None
                taken[i].append((states[i], token_id, successor))
                states[i] = successor
            drawn = [tokens[-1][1] if known[i] else EOS for i, tokens in enumerate(taken)]
            grammar_advance(token_ids=torch.tensor(drawn, device=self.device), table=table, **batch)
            self.num_followed += int(batch["is_known"].sum())
        for i, (grammar, start) in enumerate(texts):
            num_advances = start.remaining - int(batch["remaining"][i])
            self.num_lost += num_advances < num_tokens
            for before, token_id, after in taken[i][num_advances : num_advances + 1]:
                self.mirror.put(grammar.grammar, before.state, token_id, after.state)
        going = zip(texts, states, strict=True)
        return [(grammar, state) for (grammar, _), state in going if not grammar.only_eos(state)]


@pytest.mark.parametrize(
    ("num_buckets", "num_states", "max_rows"),
    [(1024, 4096, None), (1, 4096, None), (8, 24, None), (1024, 4096, 40), (2, 24, 40)],
    ids=["roomy", "one bucket", "few states", "few mask rows", "everything tight"],
)
def test_a_known_state_has_the_host_s_mask_whatever_the_budget(num_buckets, num_states, max_rows, device):
    compiler = new_compiler()
    if max_rows is not None:
        compiler.mask_table.max_rows = max_rows
    mirror = TransitionMirror(compiler.mask_table, device, num_buckets=num_buckets, num_states=num_states)
    walkers = Walkers(compiler, mirror, device)
    grammars = [compiler.compile_json_schema(schema) for schema in SCHEMAS]
    rng = random.Random(5)
    for _ in range(60):
        texts = []
        for grammar in rng.sample(grammars, 3):
            # From just enough to plenty.
            budgeted = BudgetedGrammar(grammar, grammar.minimum_tokens + rng.choice([0, 2, 20, 60, 200]))
            texts.append((budgeted, budgeted.initial_state))
        for _ in range(12):
            if texts:
                texts = walkers.stretch(texts, rng.randint(1, 5), rng)
    assert walkers.num_followed > (200 if num_buckets * num_states > 2**20 and max_rows is None else 20)
    assert walkers.num_lost > 0
    assert (compiler.mask_table.num_overwritten > 0) == (max_rows is not None)


def transitions_of(grammar, text):
    """(state, token, successor) along a text of single characters."""
    state = grammar.initial_state
    for byte in text:
        token_id = 1 + byte - 0x20
        successor = grammar.advance(state, token_id)
        yield state, token_id, successor
        state = successor


def follows(mirror, state, token_id, *, remaining=1000):
    """Whether the device knows where it leads."""
    [number] = mirror.number([state])
    table, _ = mirror.on_device([])
    known = torch.ones(1, dtype=torch.bool)
    grammar_advance(
        states=torch.tensor([number], dtype=torch.int32),
        token_ids=torch.tensor([token_id]),
        remaining=torch.tensor([remaining], dtype=torch.int32),
        is_known=known,
        mask_row_ids=torch.zeros(1, dtype=torch.int64),
        table=table,
    )
    return bool(known)


def test_a_transition_is_put_once():
    grammar = compiler().compile_json_schema(SCHEMAS[0])
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    taken = list(transitions_of(grammar, b'["ada",'))
    assert [mirror.put(grammar, *each) for each in taken] == [True] * 7
    assert [mirror.put(grammar, *each) for each in taken] == [False] * 7
    assert all(follows(mirror, state, token_id) for state, token_id, _ in taken)
    assert not follows(mirror, taken[0][0], taken[1][1])


def test_the_end_of_a_text_is_no_transition_that_lacks():
    grammar = compiler().compile_json_schema({"const": 7})
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    ((_, _, end),) = transitions_of(grammar, b"7")
    assert grammar.is_accepting(end)
    assert not mirror.put(grammar, end, EOS, grammar.advance(end, EOS))
    assert not follows(mirror, end, EOS)


def test_states_are_forgotten_with_their_grammar():
    own = GrammarCompiler(compiler().vocabulary, max_cache_entries=1)
    mirror = TransitionMirror(own.mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    grammar = own.compile_json_schema({"const": "abcd"})
    for each in transitions_of(grammar, b'"abcd"'):
        mirror.put(grammar, *each)
    del each
    assert len(mirror._numbers) == 7
    own.compile_json_schema({"const": "other"})
    del grammar
    gc.collect()
    assert len(mirror._numbers) == 0


def test_where_numbers_are_used_up_everything_begins_anew():
    grammar = compiler().compile_json_schema({"const": "abcdefghij"})
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=8)
    taken = list(transitions_of(grammar, b'"abcdefghij"'))
    for state, token_id, successor in taken:
        assert mirror.put(grammar, state, token_id, successor)
        assert follows(mirror, state, token_id)
        assert mirror._num_numbered <= 8
    assert not any(follows(mirror, state, token_id) for state, token_id, _ in taken[:4])


def test_what_was_put_before_numbers_began_anew_is_put_again():
    """Though states and transitions then have the numbers that they had."""
    grammar = compiler().compile_json_schema({"const": "abc"})
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=6)
    taken = list(transitions_of(grammar, b'"abc'))
    for _ in range(2):
        for each in taken:
            assert mirror.put(grammar, *each)
        assert all(follows(mirror, state, token_id) for state, token_id, _ in taken)
        mirror.number([taken[0][0], taken[0][2]])
        assert mirror._num_numbered == 2


def test_a_state_that_came_again_as_another_object_is_followed_again():
    grammar = compiler().compile_json_schema({"const": "abc"})
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    first, second, *_ = transitions_of(grammar, b'"abc"')
    mirror.put(grammar, *first)
    mirror.put(grammar, *second)
    # As when nobody held it, and the grammar made it once more.
    del mirror._numbers[second[0]]
    assert mirror.put(grammar, *first)
    assert mirror.put(grammar, *second)
    batch = {
        "states": torch.tensor(mirror.number([first[0]]), dtype=torch.int32),
        "remaining": torch.tensor([1000], dtype=torch.int32),
        "is_known": torch.ones(1, dtype=torch.bool),
        "mask_row_ids": torch.zeros(1, dtype=torch.int64),
    }
    table, _ = mirror.on_device([])
    for _, token_id, successor in (first, second):
        grammar_advance(token_ids=torch.tensor([token_id]), table=table, **batch)
        assert batch["states"].tolist() == mirror.number([successor])
        assert batch["is_known"].tolist() == [True]


def test_near_its_budget_s_end_a_state_is_not_known():
    grammar = compiler().compile_json_schema(SCHEMAS[1])
    mirror = TransitionMirror(compiler().mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    state, token_id, successor = next(transitions_of(grammar, b"["))
    assert mirror.put(grammar, state, token_id, successor)
    unguarded_from = grammar.unguarded_from(successor)
    plenty = BudgetedGrammar(grammar, 1000)
    for remaining in range(grammar.minimum_tokens, unguarded_from + 5):
        budgeted = BudgetedGrammar(grammar, remaining)
        after = budgeted.advance(budgeted.initial_state, token_id)
        is_followed = follows(mirror, state, token_id, remaining=remaining)
        assert is_followed == (remaining - 2 >= unguarded_from)
        if is_followed:
            row = budgeted.mask_row(after)
            assert row == plenty.mask_row(plenty.advance(plenty.initial_state, token_id))
    guarded = BudgetedGrammar(grammar, grammar.minimum_tokens)
    assert guarded.mask_row(guarded.advance(guarded.initial_state, token_id)) != grammar.mask_row(successor)


def test_a_mask_that_was_overwritten_is_not_used_until_the_host_has_it_again():
    own = new_compiler()
    own.mask_table.max_rows = 4
    grammar = own.compile_json_schema({"enum": ["ab", "cd"]})
    mirror = TransitionMirror(own.mask_table, torch.device("cpu"), num_buckets=64, num_states=64)
    state, token_id, successor = next(transitions_of(grammar, b'"'))
    mirror.put(grammar, state, token_id, successor)
    assert follows(mirror, state, token_id)
    row = grammar.mask_row(successor)
    stamp = own.mask_table.stamps[row]
    for i in range(6):
        own.mask_table.intern(np.full_like(own.mask_table.rows[0], i + 3))
    assert own.mask_table.stamps[row] != stamp
    assert not follows(mirror, state, token_id)
    assert mirror.put(grammar, state, token_id, successor)
    assert follows(mirror, state, token_id)
    # All of its content goes with a row, for all states that have it.
    [number] = mirror.number([successor])
    table, mask_rows = mirror.on_device([])
    words = mask_rows[int(table.mask_rows[number])].numpy().view(np.uint32)
    assert words.tolist() == own.mask_table.rows[grammar.mask_row(successor)].tolist()
