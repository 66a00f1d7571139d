"""The lists on the device are what counting each sequence anew would give, whatever came and went before."""

import gc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_out_sampling import EOS, NUM_TOKEN_IDS, sequence_of, token_lists

from specdec import token_lists as token_lists_module
from specdec.device_tensors import named_on_device
from specdec.per_sequence import PerSequence
from specdec.request import SamplingParams
from specdec.token_lists import TokenLists

CPU = torch.device("cpu")
PARAMS = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(frequency_penalty=0.5, presence_penalty=-0.25, logit_bias={3: 1.5, 60: -2.0}),
    SamplingParams(logit_bias={5: 0.1}, min_tokens=6, stop_token_ids=(7, 8)),
    SamplingParams(presence_penalty=1.0, min_tokens=3),
]


def bring_up_to_date(lists, sequences):
    """What was sent, and the tables of these sequences."""
    given_parts = lists.parts(sequences)
    given_tensors = named_on_device(CPU, given_parts)
    lists.write(given_tensors)
    return given_parts, lists.tables(given_tensors, len(sequences))


def entries(table, i, values):
    start, size = int(table.starts[i]), int(table.sizes[i])
    pairs = zip(table.token_ids[start : start + size].tolist(), values[start : start + size].tolist(), strict=True)
    every = list(pairs)
    assert len(every) == len(dict(every)), "each token is listed once"
    return dict(every)


def check(tables, sequences):
    seen, bias, forbidden = tables
    for i, sequence in enumerate(sequences):
        params = sequence.params
        counts = Counter(sequence.output_token_ids)
        penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        expected_counts = {token: counts[token] for token in sequence.token_ids}
        if penalties == (1.0, 0.0, 0.0):
            expected_counts = {}
        assert entries(seen, i, seen.output_counts) == expected_counts
        own = (float(seen.repetition[i]), float(seen.frequency[i]), float(seen.presence[i]))
        assert own == tuple(float(np.float32(each)) for each in penalties)
        expected_biases = {token_id: float(np.float32(value)) for token_id, value in params.logit_bias.items()}
        assert entries(bias, i, bias.values) == expected_biases
        ends = {EOS, *params.stop_token_ids} if params.min_tokens else set()
        assert set(entries(forbidden, i, forbidden.token_ids)) == ends
        assert int(forbidden.num_missing[i]) == max(0, params.min_tokens - sequence.num_output_tokens)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lists_are_what_counting_anew_gives(data, monkeypatch):
    """In any order of sequences, some of which sit steps out, leave, or come with output already."""
    monkeypatch.setattr(token_lists_module, "_MIN_PLACES", 128)
    monkeypatch.setattr(token_lists_module, "_MIN_AREA", 4)
    lists = TokenLists(CPU)
    sequences = []
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 3))):
            prompt, output = [1, *data.draw(token_lists)], data.draw(token_lists)
            params = data.draw(st.sampled_from(PARAMS))
            sequences.append(sequence_of(params, prompt + output, num_prompt_tokens=len(prompt)))
        if sequences and data.draw(st.booleans()):
            sequences.pop(data.draw(st.integers(0, len(sequences) - 1)))
        batch = data.draw(st.permutations(sequences))[: data.draw(st.integers(0, len(sequences)))]
        if not batch:
            continue
        if data.draw(st.booleans()):
            # A step that fails before anything is written.
            lists.parts(batch)
        check(bring_up_to_date(lists, batch)[1], batch)
        for sequence in batch:
            sequence.token_ids += data.draw(token_lists)


def penalised_sequence(num_tokens, seed=0):
    generator = np.random.default_rng(seed)
    token_ids = generator.integers(0, 150_000, num_tokens).tolist()
    return sequence_of(SamplingParams(frequency_penalty=0.5), token_ids, num_prompt_tokens=num_tokens // 2)


def test_a_step_sends_what_its_tokens_changed():
    lists = TokenLists(CPU)
    sequences = [penalised_sequence(3000, seed) for seed in range(4)]
    bring_up_to_date(lists, sequences)
    for token_ids in ([7, 8, 7], [8], []):
        for sequence in sequences[1:]:
            sequence.token_ids += token_ids
        parts, tables = bring_up_to_date(lists, sequences)
        assert len(parts["places"][1] if "places" in parts else []) == 3 * len(set(token_ids))
        check(tables, sequences)


def test_a_list_that_outgrows_its_area_is_sent_once_more():
    lists = TokenLists(CPU)
    sequence = penalised_sequence(40)
    num_sent = 0
    for token_id in range(NUM_TOKEN_IDS, NUM_TOKEN_IDS + 5000):
        sequence.token_ids.append(token_id)
        parts, tables = bring_up_to_date(lists, [sequence])
        num_sent += len(parts["places"][1])
    check(tables, [sequence])
    assert num_sent < 3 * 5000


def test_a_list_that_outgrows_its_area_leaves_its_neighbours_alone():
    lists = TokenLists(CPU)
    first, second = sequences = [penalised_sequence(40, seed) for seed in range(2)]
    bring_up_to_date(lists, sequences)
    for token_id in range(150_000, 150_040):
        first.token_ids.append(token_id)
        bring_up_to_date(lists, [first])
        check(bring_up_to_date(lists, [second])[1], [second])
    check(bring_up_to_date(lists, sequences)[1], sequences)


def test_what_was_listed_is_still_there_in_a_larger_memory(monkeypatch):
    monkeypatch.setattr(token_lists_module, "_MIN_PLACES", 128)
    lists = TokenLists(CPU)
    sequences = [penalised_sequence(40, seed) for seed in range(6)]
    for count in range(1, 7):
        check(bring_up_to_date(lists, sequences[:count])[1], sequences[:count])
    assert lists.num_places > 2 * 128


def test_areas_of_sequences_that_are_gone_are_taken_again():
    lists = TokenLists(CPU)
    for i in range(100):
        sequences = [penalised_sequence(2000, seed) for seed in range(i, i + 8)]
        check(bring_up_to_date(lists, sequences)[1], sequences)
    # 2,000 tokens and as much again, of two generations.
    assert lists.num_places <= 2 * 8 * 4096


def test_a_value_is_made_once_and_goes_with_its_sequence():
    values = PerSequence(lambda sequence: [sequence.seed])
    first, second = (sequence_of(SamplingParams(seed=seed)) for seed in (3, 4))
    assert values[first] == [3]
    assert values[first] is values[first]
    assert values[second] == [4]
    assert len(values) == 2
    del first
    gc.collect()
    assert len(values) == 1
    assert values.forgotten == [[3]]
    assert values[second] == [4]


def test_tokens_that_are_taken_back_are_noticed():
    lists = TokenLists(CPU)
    sequence = penalised_sequence(40)
    bring_up_to_date(lists, [sequence])
    sequence.token_ids.pop()
    with pytest.raises(AssertionError, match="taken back"):
        lists.parts([sequence])
