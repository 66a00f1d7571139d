"""apply_penalties does to logits what the engine's sampler does, for all rows of all sequences at once."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.penalties import (
    ForbiddenTokens,
    LogitBias,
    PenalisedRows,
    SeenTokens,
    apply_penalties,
    apply_penalties_reference,
)
from specdec.sampler import Sampler


def sequence(
    prompt,
    output,
    drafts=(),
    *,
    repetition=1.0,
    frequency=0.0,
    presence=0.0,
    bias=None,
    min_tokens=0,
    stop_token_ids=(),
    eos_token_ids=(),
):
    params = SimpleNamespace(
        temperature=1.0,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias or {},
        min_tokens=min_tokens,
        stop_token_ids=frozenset(stop_token_ids),
    )
    return SimpleNamespace(
        params=params,
        token_ids=[*prompt, *output],
        output_token_ids=list(output),
        num_output_tokens=len(output),
        eos_token_ids=frozenset(eos_token_ids),
        drafts=list(drafts),
    )


def by_the_engine(logits, sequences):
    """logits fp32 [R, V] -> as specdec.sampler shapes them at temperature 1."""
    rows = [
        SimpleNamespace(sequence=each, preceding_draft_ids=each.drafts[:i], mask_row=None)
        for each in sequences
        for i in range(len(each.drafts) + 1)
    ]
    shaped = logits.clone()
    Sampler(None, logits.shape[1]).shape(shaped, rows)
    return shaped


def rows_of(sequences, device, order=None):
    """Of each sequence a row after none of its draft tokens, after one, and so on; in this order, if it is given."""
    starts = list(itertools.accumulate((len(each.drafts) + 1 for each in sequences), initial=0))
    # What stands after a sequence's drafts is nobody's.
    draft_ids = [token_id for each in sequences for token_id in (*each.drafts, 2**40)]
    rows = [(b, starts[b], i) for b, each in enumerate(sequences) for i in range(len(each.drafts) + 1)]
    columns = zip(*(rows if order is None else [rows[i] for i in order]), strict=True)
    numbers = [torch.tensor(column, dtype=torch.int32, device=device) for column in columns]
    return PenalisedRows(*numbers, torch.tensor(draft_ids, dtype=torch.int64, device=device))


def packed(lists, device, **dtypes):
    """Lists of tuples, one list a sequence -> starts, sizes, and one tensor a place in the tuples.

    The last sequence's list comes first, and between lists are places of nobody's.
    """
    nobodys = [(2**30,) * len(dtypes)] * 3
    starts, entries = [], [*nobodys]
    for each in reversed(lists):
        starts.insert(0, len(entries))
        entries += [*each, *nobodys]
    columns = zip(*entries, strict=True)
    return {
        "starts": torch.tensor(starts, dtype=torch.int32, device=device),
        "sizes": torch.tensor([len(each) for each in lists], dtype=torch.int32, device=device),
    } | {
        name: torch.tensor(column, dtype=dtype, device=device)
        for (name, dtype), column in zip(dtypes.items(), columns, strict=True)
    }


def lists_of(sequences, device):
    seen, bias, forbidden = [], [], []
    for each in sequences:
        counts = Counter(each.output_token_ids)
        seen.append([(token_id, counts[token_id]) for token_id in dict.fromkeys(each.token_ids)])
        bias.append(list(each.params.logit_bias.items()))
        forbidden.append([(token_id,) for token_id in each.eos_token_ids | each.params.stop_token_ids])

    def column(name):
        return torch.tensor(
            [getattr(each.params, f"{name}_penalty") for each in sequences], dtype=torch.float32, device=device
        )

    num_missing = [max(0, each.params.min_tokens - each.num_output_tokens) for each in sequences]
    return {
        "seen": SeenTokens(
            **packed(seen, device, token_ids=torch.int32, output_counts=torch.int32),
            repetition=column("repetition"),
            frequency=column("frequency"),
            presence=column("presence"),
        ),
        "bias": LogitBias(**packed(bias, device, token_ids=torch.int32, values=torch.float32)),
        "forbidden": ForbiddenTokens(
            **packed(forbidden, device, token_ids=torch.int32),
            num_missing=torch.tensor(num_missing, dtype=torch.int32, device=device),
        ),
    }


def shaped(function, logits, sequences, device, **lists):
    edited = logits.to(device, copy=True)
    more = {}
    if function is apply_penalties:
        more = {"max_num_preceding": max((len(each.drafts) for each in sequences), default=0)}
    function(edited, rows_of(sequences, device), **more, **lists)
    return edited.cpu()


def check(logits, sequences, device):
    expected = by_the_engine(logits, sequences)
    assert torch.equal(
        shaped(apply_penalties_reference, logits, sequences, "cpu", **lists_of(sequences, "cpu")), expected
    )
    assert torch.equal(shaped(apply_penalties, logits, sequences, device, **lists_of(sequences, device)), expected)
    return expected


def random_logits(num_rows, vocab_size, seed=0):
    """Of either sign, a tenth forbidden before."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5.0 * torch.randn(num_rows, vocab_size, generator=generator)
    return logits.masked_fill(torch.rand(num_rows, vocab_size, generator=generator) < 0.1, -math.inf)


@pytest.mark.parametrize("vocab_size", [17, 127, 32001, 151936])
def test_every_logit_is_the_engine_s(vocab_size, device):
    generator = torch.Generator().manual_seed(vocab_size)

    def tokens(number):
        return torch.randint(vocab_size, (number,), generator=generator).tolist()

    output = tokens(40)
    sequences = [
        sequence(tokens(1300), output, [*output[:2], *tokens(2)], repetition=1.3, frequency=0.7, presence=0.31),
        sequence(tokens(5), [], bias={0: -100.0, vocab_size - 1: 3.3}),
        sequence([3], [4, 4], [4, 5, 5], frequency=-1.1, min_tokens=4, eos_token_ids={0, 2}, stop_token_ids={9, 2}),
        sequence(tokens(3), tokens(9), tokens(1), repetition=0.6, bias={5: 0.1, 4: -7.0}, presence=-2.0),
    ]
    expected = check(random_logits(12, vocab_size), sequences, device)
    assert [bool(row[[0, 2, 9]].isneginf().all()) for row in expected[6:10]] == [True, True, False, False]


tokens_of_nine = st.lists(st.integers(0, 8), max_size=6)


@settings(max_examples=15 if INTERPRETED else 150, deadline=None)
@given(
    sequences=st.lists(
        st.builds(
            sequence,
            st.lists(st.integers(0, 8), min_size=1, max_size=6),
            tokens_of_nine,
            tokens_of_nine,
            repetition=st.sampled_from([1.0, 0.01, 1.7]),
            frequency=st.sampled_from([0.0, -2.0, 0.3]),
            presence=st.sampled_from([0.0, 1.9, -0.7]),
            bias=st.dictionaries(st.integers(0, 8), st.floats(-100.0, 100.0)),
            min_tokens=st.integers(0, 12),
            eos_token_ids=st.sets(st.integers(0, 8), max_size=2),
            stop_token_ids=st.sets(st.integers(0, 8), max_size=2),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**16),
)
def test_any_sequences_are_edited_as_the_engine_edits_them(sequences, seed):
    """On the CPU or in the interpreter, wherever this runs. Draft tokens recur, in the lists and among themselves."""
    num_rows = sum(len(each.drafts) + 1 for each in sequences)
    check(random_logits(num_rows, 9, seed), sequences, "cpu")


def test_a_mask_may_come_before_or_after(device):
    sequences = [sequence([1, 2], [2, 3], [3, 8], repetition=1.4, frequency=0.5, presence=0.2, bias={1: 9.0, 2: -3.0})]
    logits = random_logits(3, 9, seed=5).clamp(min=-30.0)
    masked = torch.zeros(3, 9, dtype=torch.bool)
    masked[:, [1, 3, 8]] = True
    before = check(logits.masked_fill(masked, -math.inf), sequences, device)
    assert torch.equal(before, check(logits, sequences, device).masked_fill(masked, -math.inf))


@pytest.mark.parametrize("names", [(), ("seen",), ("bias",), ("forbidden",), ("bias", "seen")])
def test_lists_that_are_not_given_change_nothing(names, device):
    everything = {"repetition": 2.0, "frequency": 0.5, "bias": {2: 7.0}, "min_tokens": 9, "eos_token_ids": {1, 2}}
    logits = random_logits(3, 9)
    lists = lists_of([sequence([1, 2], [2], [2, 4], **everything)], device)
    kept = {
        "seen": ("repetition", "frequency"),
        "bias": ("bias",),
        "forbidden": ("min_tokens", "eos_token_ids"),
    }
    options = {option: everything[option] for name in names for option in kept[name]}
    expected = by_the_engine(logits, [sequence([1, 2], [2], [2, 4], **options)])
    given_lists = {name: lists[name] for name in names}
    own = [sequence([1, 2], [2], [2, 4])]
    assert torch.equal(shaped(apply_penalties, logits, own, device, **given_lists), expected)


def test_rows_may_be_of_any_sequence_after_any_of_its_drafts(device):
    sequences = [
        sequence([1, 2], [2, 3], [3, 8, 4], repetition=1.4, frequency=0.5, bias={1: 9.0}),
        sequence([4], [4], [4, 5], presence=0.3, min_tokens=2, eos_token_ids={6}),
    ]
    logits = random_logits(7, 9, seed=6)
    expected = by_the_engine(logits, sequences)
    order = [6, 3, 0, 3]
    edited = logits[order].to(device)
    rows = rows_of(sequences, device, order)
    apply_penalties(edited, rows, max_num_preceding=3, **lists_of(sequences, device))
    assert torch.equal(edited.cpu(), expected[order])


@pytest.mark.gpu
def test_edits_of_the_same_logits_wait_for_each_other():
    """Each token is biased by one thread, penalised by another and perhaps forbidden by a third, over and over."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    vocab_size = 4096
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(vocab_size, generator=generator).tolist() for _ in range(3)]
    bias = {token_id: 1.0 + 0.25 * (token_id % 9) for token_id in orders[0]}
    drafts = [*orders[1][-3:], *orders[0][:5]]
    own = sequence(orders[1][:2000], orders[1][2000:-3], drafts, repetition=1.7, frequency=0.3, bias=bias)
    own.params.min_tokens, own.params.stop_token_ids = 2**20, frozenset(orders[2][:700])
    logits = random_logits(len(drafts) + 1, vocab_size, seed=9)
    expected = by_the_engine(logits, [own])
    lists = lists_of([own], "cuda")
    rows = rows_of([own], "cuda")
    for _ in range(100):
        edited = logits.to("cuda", copy=True)
        apply_penalties(edited, rows, max_num_preceding=len(drafts), **lists)
        assert torch.equal(edited.cpu(), expected)


def test_only_the_rows_of_a_strided_view_are_edited(device):
    """Sequence 1 has no rows, and what stands beside the logits is NaN before and after."""
    wide = torch.full((2, 20), math.nan, device=device)
    wide[:, :9] = 1.0
    sequences = [sequence([1], []), sequence([5], []), sequence([2], [2], presence=0.5)]
    rows = rows_of(sequences, device, order=[0, 2])
    apply_penalties(wide[:, :9], rows, max_num_preceding=0, **lists_of(sequences, device))
    expected = torch.ones(2, 9)
    expected[1, 2] = 0.5
    assert torch.equal(wide[:, :9].cpu(), expected)
    assert bool(wide[:, 9:].isnan().all())


def test_no_rows_are_no_work(device):
    sequences = [sequence([1], [2], presence=0.5)]
    none = PenalisedRows(*(each[:0] for each in rows_of(sequences, device)))
    apply_penalties(torch.zeros(0, 9, device=device), none, max_num_preceding=0, **lists_of(sequences, device))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 9)}, r"rows.sequences must be \[3\] torch.int32"),
        ({"logits": torch.zeros(2, 9, dtype=torch.float16)}, r"logits must be \[R, V\] float32"),
        ({"logits": torch.zeros(9, 2).T}, "logits must be contiguous along the last axis"),
        ({"logits": torch.zeros(2, 9, device="meta")}, "rows.sequences is on cpu, logits on meta"),
        ({"rows": {"draft_ids": torch.zeros(2, dtype=torch.int32)}}, r"rows.draft_ids must be \[2\] torch.int64"),
        ({"rows": {"draft_starts": torch.zeros(2)}}, r"rows.draft_starts must be \[2\] torch.int32"),
        ({"max_num_preceding": -1}, "max_num_preceding is -1"),
        ({"seen": {"token_ids": torch.zeros(7)}}, r"seen.token_ids must be \[7\] torch.int32"),
        ({"seen": {"output_counts": torch.zeros(2, dtype=torch.int32)}}, r"seen.output_counts must be \[7\]"),
        ({"seen": {"repetition": torch.ones(2)}}, r"seen.repetition must be \[1\] torch.float32"),
        ({"bias": {"starts": torch.zeros(2, dtype=torch.int32)}}, r"bias.starts must be \[1\] torch.int32"),
        ({"bias": {"values": torch.zeros(7, device="meta")}}, "bias.values is on meta, logits on cpu"),
        ({"forbidden": {"num_missing": torch.zeros(1)}}, r"forbidden.num_missing must be \[1\] torch.int32"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    sequences = [sequence([1], [], [2], bias={3: 1.0}, eos_token_ids={0}, min_tokens=1)]
    good = {
        "logits": torch.zeros(2, 9),
        "rows": rows_of(sequences, "cpu"),
        "max_num_preceding": 1,
        **lists_of(sequences, "cpu"),
    }
    for name, value in change.items():
        good[name] = good[name]._replace(**value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        apply_penalties(**good)
