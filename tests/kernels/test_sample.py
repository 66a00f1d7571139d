"""sample draws the tokens that its definition, and the engine's own sampler, draw."""

import math
from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels.dispatch import INTERPRETED
from specdec.kernels.gumbel import gumbel
from specdec.kernels.sample import sample
from specdec.kernels.sample_reference import sample_reference
from specdec.kernels.token_groups import NOBODY
from specdec.kernels.token_mask import apply_token_mask_reference
from specdec.sampler import draw

MODES = {
    "plain": {},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "one": {"top_k": 1},
    "off": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
}


def random_logits(num_rows, vocab_size, seed=0, spread=3.0):
    """In steps of 1/4, so that many are equal, with a tenth forbidden."""
    generator = torch.Generator().manual_seed(seed)
    logits = (4.0 * spread * torch.randn(num_rows, vocab_size, generator=generator)).round() / 4.0
    forbidden = torch.rand(num_rows, vocab_size, generator=generator) < 0.1
    forbidden[:, 0] = False
    return logits.masked_fill(forbidden, -math.inf)


def random_keys(num_rows, seed=0):
    return torch.randint(0, 2**32, (num_rows, 2), generator=torch.Generator().manual_seed(seed))


def options_of(num_rows, device, *, top_k=None, top_p=None, min_p=None):
    def column(value, dtype):
        return None if value is None else torch.full((num_rows,), value, dtype=dtype, device=device)

    return {
        "top_k": column(top_k, torch.int32),
        "top_p": column(top_p, torch.float64),
        "min_p": column(min_p, torch.float64),
    }


def drawn(function, logits, keys, temperatures, device, *, num_token_ids=None, **options):
    output = torch.full((logits.shape[0],), 2**40, device=device)
    function(
        logits.to(device),
        keys.to(device),
        torch.as_tensor(temperatures, dtype=torch.float32, device=device),
        output,
        num_token_ids=logits.shape[1] if num_token_ids is None else num_token_ids,
        **options,
    )
    return output.tolist()


def by_the_engine(logits, keys, temperatures, *, top_k=None, top_p=None, min_p=None):
    """What specdec.sampler draws of logits that are shaped up to temperature."""
    rows = [
        SimpleNamespace(
            sequence=SimpleNamespace(
                params=SimpleNamespace(
                    temperature=temperature,
                    top_k=0 if top_k is None else int(top_k[i]),
                    top_p=1.0 if top_p is None else float(top_p[i]),
                    min_p=0.0 if min_p is None else float(min_p[i]),
                )
            ),
            noise_key=MethodType(lambda row, _: row.key, SimpleNamespace(key=tuple(keys[i].tolist()))),
        )
        for i, temperature in enumerate(temperatures)
    ]
    shaped = logits / torch.tensor([temperature or 1.0 for temperature in temperatures])[:, None]
    tokens = draw(shaped, rows, range(len(rows)))
    return [tokens[i] for i in range(len(rows))]


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("vocab_size", [1, 17, 127])
def test_the_tokens_are_the_engine_s_own(vocab_size, mode, device):
    temperatures = [0.0, 0.7]
    logits, keys = random_logits(2, vocab_size, seed=vocab_size), random_keys(2)
    options = options_of(2, device, **MODES[mode])
    expected = by_the_engine(logits, keys, temperatures, **options)
    assert drawn(sample_reference, logits, keys, temperatures, "cpu", **options_of(2, "cpu", **MODES[mode])) == expected
    assert drawn(sample, logits, keys, temperatures, device, **options) == expected


@pytest.mark.parametrize(
    ("vocab_size", "mode"),
    [
        *((5000, mode) for mode in MODES),
        *((vocab_size, mode) for vocab_size in (32001, 49152, 151936) for mode in ("plain", "all")),
        (32001, "top_p"),
        # Here half of the tokens are kept, so that the interpreter takes ten seconds.
        pytest.param(151936, "top_p", marks=pytest.mark.slow),
    ],
)
def test_large_vocabularies_are_drawn_from_alike(vocab_size, mode, device):
    logits, keys = random_logits(1, vocab_size, seed=1), random_keys(1, seed=1)
    options = options_of(1, device, **MODES[mode])
    assert drawn(sample, logits, keys, [1.5], device, **options) == by_the_engine(logits, keys, [1.5], **options)


@pytest.mark.parametrize("spread", [pytest.param(0.05, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("options", [{"top_p": 0.95}, {"top_k": 3000, "top_p": 0.9}, {"top_k": 3000}, {"min_p": 0.3}])
@pytest.mark.parametrize("vocab_size", [9000, pytest.param(32001, marks=pytest.mark.slow)])
def test_what_is_kept_may_be_spread_over_every_group(vocab_size, options, spread, device):
    """Thousands of tokens of nearly one probability, in every group of the row."""
    generator = torch.Generator().manual_seed(7)
    logits, keys = spread * torch.randn(2, vocab_size, generator=generator), random_keys(2, seed=7)
    columns = options_of(2, device, **options)
    expected = by_the_engine(logits, keys, [1.0, 0.8], **columns)
    assert drawn(sample, logits, keys, [1.0, 0.8], device, **columns) == expected


@pytest.mark.parametrize("distance", [-1e-10, 1e-10, -1e-4, 1e-4])
def test_the_unread_tokens_count_exactly_where_they_decide(distance, device):
    """Between 11 and 12 of 20 likely tokens: by how little, only the sum over 6,000 unlikely ones in fp64 can say.

    The twelfth is drawn if it is kept, by a key that is chosen so.
    """
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 6000, generator=generator) - 9.0
    logits[0, 100:4100:200] = 5.0 - 0.1 * torch.arange(20)
    twelfth = 100 + 11 * 200
    weights = logits[0].double().exp()
    up_to_eleventh = weights[100 : twelfth - 199 : 200].sum()
    top_p = float(up_to_eleventh / weights.sum()) * (1.0 + distance)
    kept = torch.arange(100, twelfth + 1, 200)
    for seed in range(1000):
        keys = random_keys(1, seed=seed)
        if int((logits[0, kept] + gumbel((int(keys[0, 0]), int(keys[0, 1])), kept)).argmax()) == 11:
            break
    options = options_of(1, device, top_p=top_p)
    expected = by_the_engine(logits, keys, [1.0], **options)
    assert (expected == [twelfth]) == (distance > 0)
    assert drawn(sample, logits, keys, [1.0], device, **options) == expected


@settings(max_examples=8 if INTERPRETED else 100, deadline=None)
@given(
    vocab_size=st.sampled_from([33, 64, 700, 1025, 2500]),
    spread=st.sampled_from([0.01, 1.0, 6.0, 300.0]),
    step=st.sampled_from([0.0, 0.25]),
    top_k=st.sampled_from([0, 1, 5, 50, 1000]),
    top_p=st.sampled_from([1.0, 0.9999999, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_cuts_of_any_row_draw_the_engine_s_token(vocab_size, spread, step, top_k, top_p, min_p, seed):
    """On the CPU or in the interpreter, wherever this runs; equal logits where step is not 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, vocab_size, generator=generator)
    if step:
        logits = (logits / step).round() * step
    logits[:, 1:].masked_fill_(torch.rand(2, vocab_size - 1, generator=generator) < 0.3, -math.inf)
    keys = random_keys(2, seed=seed)
    options = options_of(2, "cpu", top_k=top_k, top_p=top_p, min_p=min_p)
    temperatures = [1.0, 0.3]
    assert drawn(sample, logits, keys, temperatures, "cpu", **options) == by_the_engine(
        logits, keys, temperatures, **options
    )


@pytest.mark.parametrize("mode", ["plain", "all", "top_p"])
@pytest.mark.parametrize("vocab_size", [1, 127, 5000])
def test_forbidden_tokens_are_never_drawn(vocab_size, mode, device):
    """Rows 0 and 2 are constrained, row 1 is not, row 3 allows one token, row 4 none."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits, keys = random_logits(5, vocab_size, seed=4), random_keys(5, seed=4)
    mask_rows = torch.randint(-(2**31), 2**31, (4, (vocab_size + 31) // 32 + 3), generator=generator).to(torch.int32)
    mask_rows[1:] = 0
    mask_rows[1, (vocab_size - 1) >> 5] = torch.tensor(1 << ((vocab_size - 1) & 31)).to(torch.int32)
    mask_rows[3] = mask_rows[0] | 1
    mask_rows[0, 0] |= 1
    logits[3, vocab_size - 1] = -20.0
    row_ids = torch.tensor([0, 99, 3, 1, 2])
    is_constrained = torch.tensor([True, False, True, True, True])
    masked = logits.clone()
    apply_token_mask_reference(masked, mask_rows, row_ids[is_constrained], is_constrained.nonzero().flatten())
    for temperature in (0.0, 1.3):
        expected = by_the_engine(masked[:4], keys[:4], [temperature] * 4, **options_of(4, "cpu", **MODES[mode]))
        for function, place in ((sample_reference, "cpu"), (sample, device)):
            tokens = drawn(
                function,
                logits,
                keys,
                [temperature] * 5,
                place,
                mask_rows=mask_rows[:, : (vocab_size + 31) // 32].to(place),
                mask_row_ids=row_ids.to(place),
                is_constrained=is_constrained.to(place),
                **options_of(5, place, **MODES[mode]),
            )
            assert tokens == [*expected, 0]
            assert tokens[3] == vocab_size - 1


def test_tokens_beyond_a_mask_s_words_are_forbidden(device):
    logits = torch.zeros(2, 100, device=device)
    logits[:, 64:] = 9.0
    mask_rows = torch.full((1, 5), -1, dtype=torch.int32, device=device)[:, :2]
    tokens = drawn(
        sample,
        logits,
        random_keys(2),
        [0.0, 1.0],
        device,
        mask_rows=mask_rows,
        mask_row_ids=torch.zeros(2, dtype=torch.int64, device=device),
        is_constrained=torch.ones(2, dtype=torch.bool, device=device),
    )
    assert tokens[0] == 0
    assert tokens[1] < 64


@pytest.mark.parametrize("mode", ["plain", "top_k", "top_p", "all"])
def test_nothing_is_read_that_was_not_written(mode, device, monkeypatch):
    """Every scratch tensor starts as NaN or as numbers far out of range, and so does what is behind it, and stays."""
    logits, keys = random_logits(3, 300, seed=8), random_keys(3, seed=8)
    logits[2] = -math.inf
    options = options_of(3, device, **MODES[mode])
    expected = by_the_engine(logits[:2], keys[:2], [1.0, 0.0], **options_of(2, "cpu", **MODES[mode]))

    behind = []

    def poisoned(*shape, dtype, device):
        size = math.prod(shape)
        memory = torch.full((size + 4096,), math.nan if dtype.is_floating_point else 2**29, dtype=dtype, device=device)
        behind.append(memory[size:])
        return memory[:size].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert drawn(sample, logits, keys, [1.0, 0.0, 1.0], device, **options) == [*expected, 0]
    assert all(bool((each.isnan() if each.is_floating_point() else each == 2**29).all()) for each in behind)


@settings(max_examples=10 if INTERPRETED else 100, deadline=None)
@given(
    levels=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    top_k=st.integers(0, 13),
    top_p=st.sampled_from([0.01, 0.3, 0.5, 0.75, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_ties_at_every_border_go_to_the_lowest_ids(levels, top_k, top_p, min_p, key):
    """On the CPU or in the interpreter, wherever this runs."""
    logits, keys = torch.tensor([levels]) * math.log(2.0), torch.tensor([key])
    options = options_of(1, "cpu", top_k=top_k, top_p=top_p, min_p=min_p)
    assert drawn(sample, logits, keys, [1.0], "cpu", **options) == by_the_engine(logits, keys, [1.0], **options)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.999}])
def test_of_equal_sums_the_lowest_id_wins_however_far_apart_they_are(options, device):
    """Two tokens that come to the same number with their noise; under top-p the groups between are read as well."""
    near, far = 5, 2900
    for seed in range(1000):
        keys = random_keys(1, seed=seed)
        noise = gumbel((int(keys[0, 0]), int(keys[0, 1])), torch.arange(3000))
        logits = torch.zeros(1, 3000)
        logits[0, near] = 12.0
        logits[0, far] = 12.0 + noise[near] - noise[far]
        sums = logits[0] + noise
        if sums[near] == sums[far] == sums.max() and abs(float(noise[near] - noise[far])) < 0.5:
            break
    columns = options_of(1, device, **options)
    assert by_the_engine(logits, keys, [1.0], **options_of(1, "cpu", **options)) == [near]
    assert drawn(sample, logits, keys, [1.0], device, **columns) == [near]


def test_what_is_kept_is_what_the_order_says(device):
    """Every kept token is drawn by some key, and no other: 8 equal logits, and 8 equal ones below."""
    num_rows = 3 if INTERPRETED else 300
    logits = torch.tensor([1.0] * 8 + [0.0] * 8).expand(num_rows, 16).contiguous()
    keys = random_keys(num_rows)
    for options, kept in (
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 11}, {*range(11)}),
        ({"top_p": 0.4}, {*range(5)}),
        ({"top_k": 10, "top_p": 0.5}, {*range(5)}),
        ({"min_p": 0.5}, {*range(8)}),
        ({"top_k": 12, "min_p": 0.3}, {*range(12)}),
    ):
        tokens = drawn(sample, logits, keys, [1.0] * num_rows, device, **options_of(num_rows, device, **options))
        # 3 draws, for which the interpreter has time, need not take all.
        assert set(tokens) <= kept if INTERPRETED else set(tokens) == kept, options


def test_weights_on_a_border_are_those_of_the_definition(device):
    """Of four equal tokens top-p of 1/2 keeps two, though the third is the winner; min-p of 1 keeps all of the best."""
    for seed in range(100):
        keys = random_keys(1, seed=seed)
        if int(gumbel((int(keys[0, 0]), int(keys[0, 1])), torch.arange(4)).argmax()) == 2:
            break
    for logits, options, kept in (
        (torch.zeros(1, 4), {"top_p": 0.5}, {0, 1}),
        (torch.tensor([[-1.0, 0.0, 0.0, 0.0]]), {"min_p": 1.0}, {2}),
    ):
        (token_id,) = drawn(sample, logits, keys, [1.0], device, **options_of(1, device, **options))
        assert token_id in kept


def test_each_row_has_settings_of_its_own(device):
    logits, keys = random_logits(6, 300, seed=3), random_keys(6, seed=3)
    options = {
        "top_k": torch.tensor([0, 1, 5, 0, 0, 9], dtype=torch.int32, device=device),
        "top_p": torch.tensor([1.0, 1.0, 0.5, 0.3, 1.0, 0.9], dtype=torch.float64, device=device),
        "min_p": torch.tensor([0.0, 0.0, 0.0, 0.1, 0.7, 0.0], dtype=torch.float64, device=device),
    }
    temperatures = [1.0, 0.5, 3.0, 1.0, 0.0, 1.0]
    assert drawn(sample, logits, keys, temperatures, device, **options) == by_the_engine(
        logits, keys, temperatures, **options
    )


@pytest.mark.parametrize("mode", ["plain", "all"])
@pytest.mark.parametrize("vocab_size", [5, 4097])
def test_ids_beyond_the_tokens_are_never_drawn(vocab_size, mode, device):
    logits = torch.full((4, vocab_size + 3), math.nan)
    logits[0, :vocab_size] = -math.inf
    logits[1, :vocab_size] = math.nan
    logits[2, :vocab_size] = -math.inf
    logits[2, vocab_size - 1] = -1e30
    logits[3, :vocab_size] = 0.0
    logits[:, vocab_size:] = 1e30
    options = options_of(4, device, **MODES[mode])
    for temperature in (0.0, 1.0):
        tokens = drawn(sample, logits, random_keys(4), [temperature] * 4, device, num_token_ids=vocab_size, **options)
        assert tokens[:3] == [0, 0, vocab_size - 1]
        assert 0 <= tokens[3] < vocab_size


@pytest.mark.parametrize("mode", ["plain", "top_p", "all"])
@pytest.mark.parametrize("vocab_size", [1, 4097])
def test_a_row_of_nobody_draws_the_first_id_whatever_its_logits_and_leaves_the_others_theirs(vocab_size, mode, device):
    logits, keys = random_logits(5, vocab_size, seed=4), random_keys(5, seed=4)
    logits[1], logits[3], logits[4] = math.nan, 1e30, -math.inf
    words = torch.full((1, vocab_size // 32 + 1), -1, dtype=torch.int32, device=device)
    is_constrained = torch.tensor([False, True, False, False, True], device=device)
    mask = {
        "mask_rows": words,
        "mask_row_ids": torch.zeros(5, dtype=torch.int64, device=device),
        "is_constrained": is_constrained,
    }
    temperatures = [0.7, NOBODY, 0.0, NOBODY, NOBODY]
    expected = by_the_engine(logits[[0, 2]], keys[[0, 2]], [0.7, 0.0], **options_of(2, "cpu", **MODES[mode]))
    for own in ({}, mask):
        drawn_ids = drawn(sample, logits, keys, temperatures, device, **options_of(5, device, **MODES[mode]), **own)
        assert drawn_ids == [expected[0], 0, expected[1], 0, 0]


def test_rows_may_be_a_view_of_wider_ones(device):
    wide = torch.full((3, 140), math.nan)
    wide[:, :127] = random_logits(3, 127)
    keys = random_keys(3)
    output = torch.full((3,), 2**40, device=device)
    sample(wide.to(device)[:, :127], keys.to(device), torch.ones(3, device=device), output, num_token_ids=127)
    assert output.tolist() == by_the_engine(wide[:, :127], keys, [1.0] * 3)


def test_no_rows_draw_nothing(device):
    assert drawn(sample, torch.zeros(0, 9), random_keys(0), [], device) == []


def test_tokens_are_drawn_by_their_probabilities(device):
    """Chi-square over 4 tokens, 3 degrees of freedom: 25 is exceeded once in 65,000."""
    num_rows = 40 if INTERPRETED else 3000
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    tokens = drawn(sample, probs.log().expand(num_rows, 4), random_keys(num_rows, seed=5), [1.0] * num_rows, device)
    counts = torch.bincount(torch.tensor(tokens), minlength=4)
    assert float(((counts - num_rows * probs) ** 2 / (num_rows * probs)).sum()) < 25


A_MASK = {
    "mask_rows": torch.zeros(1, 1, dtype=torch.int32),
    "mask_row_ids": torch.zeros(2, dtype=torch.int64),
    "is_constrained": torch.zeros(2, dtype=torch.bool),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(9)}, r"logits must be \[R, V\] float32"),
        ({"logits": torch.zeros(2, 9, dtype=torch.float16)}, r"logits must be \[R, V\] float32"),
        ({"logits": torch.zeros(9, 2).T}, "logits must be contiguous along the last axis"),
        ({"num_token_ids": 10}, "num_token_ids is 10; it must be between 1 and 9"),
        ({"num_token_ids": 0}, "num_token_ids is 0"),
        ({"keys": torch.zeros(2, 2, dtype=torch.int32)}, r"keys must be \[2, 2\] torch.int64"),
        ({"temperatures": torch.zeros(2, dtype=torch.float64)}, r"temperatures must be \[2\] torch.float32"),
        ({"output": torch.zeros(3, dtype=torch.int64)}, r"output must be \[2\] torch.int64"),
        ({"output": torch.zeros(4, dtype=torch.int64)[::2]}, "output must be contiguous"),
        ({"top_k": torch.zeros(2, dtype=torch.int64)}, r"top_k must be \[2\] torch.int32"),
        ({"top_p": torch.zeros(2)}, r"top_p must be \[2\] torch.float64"),
        ({"min_p": torch.zeros(2, dtype=torch.float64, device="meta")}, "min_p is on meta, logits on cpu"),
        ({"mask_rows": torch.zeros(1, 1, dtype=torch.int32)}, "mask_rows, mask_row_ids and is_constrained go together"),
        ({"mask_row_ids": torch.zeros(2, dtype=torch.int32)}, r"mask_row_ids must be \[2\] torch.int64"),
        ({"is_constrained": torch.zeros(2, dtype=torch.int32)}, r"is_constrained must be \[2\] torch.bool"),
        ({**A_MASK, "mask_rows": torch.zeros(1, 1)}, r"mask_rows must be \[N, W\] int32"),
        (
            {**A_MASK, "mask_rows": torch.zeros(1, 1, dtype=torch.int32, device="meta")},
            "mask_rows are on meta, logits on cpu",
        ),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(change, message):
    good = {
        "logits": torch.zeros(2, 9),
        "keys": torch.zeros(2, 2, dtype=torch.int64),
        "temperatures": torch.zeros(2),
        "output": torch.zeros(2, dtype=torch.int64),
        "num_token_ids": 9,
    }
    with pytest.raises(ValueError, match=message):
        sample(**(good | change))
