"""The sampler against sampling written out: full softmax, full noise, nothing skipped."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_out_sampling import (
    EOS,
    NUM_TOKEN_IDS,
    VOCAB_SIZE,
    Masks,
    params_strategy,
    probs_written_out,
    row_of,
    sample_written_out,
    token_lists,
)

from specdec import sampler as sampler_module
from specdec.errors import RequestError
from specdec.request import SamplingParams
from specdec.sampler import Sampler, distributions, draw_from
from specdec.speculative import PLAIN, SpeculationPlan, Verification

REJECTION = SpeculationPlan(verification=Verification.REJECTION)


@pytest.fixture(params=["together", "one by one"])
def rows_drawn(request, monkeypatch):
    """Rows of few likely tokens draw together, others alone, and both with as many at a time as there is room for."""
    if request.param == "one by one":
        monkeypatch.setattr(sampler_module, "_MANY_SURVIVORS", 0)
        monkeypatch.setattr(sampler_module, "_CHUNK_LOGITS", 2 * VOCAB_SIZE)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
@pytest.mark.usefixtures("rows_drawn")
def test_every_row_draws_what_sampling_written_out_draws(data):
    num_rows = data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator) * data.draw(st.sampled_from([0.1, 3.0, 15.0]))
    if data.draw(st.booleans()):
        logits = logits.round()
    allowed = [set(data.draw(st.sets(st.integers(0, NUM_TOKEN_IDS - 1), min_size=1))) - {EOS, 7, 8} or {11}]
    rows = []
    for _ in range(num_rows):
        masked = data.draw(st.booleans())
        token_ids = [1, *data.draw(token_lists)]
        rows.append(
            row_of(
                data.draw(params_strategy),
                token_ids,
                num_prompt_tokens=1,
                drafts=tuple(data.draw(token_lists)),
                mask_row=0 if masked else None,
                choice_index=data.draw(st.integers(0, 3)),
            )
        )
    expected = [
        sample_written_out(logits[i], row, allowed[0] if row.mask_row == 0 else None) for i, row in enumerate(rows)
    ]
    assert Sampler(Masks(allowed), NUM_TOKEN_IDS).sample(logits.clone(), rows) == expected


def test_draws_follow_the_softmax():
    """Chi-square over 9 tokens, 8 degrees of freedom: 40 is exceeded once in 300,000."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.full((VOCAB_SIZE,), -math.inf)
    logits[:9] = torch.randn(9, generator=generator)
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    counts = np.zeros(9)
    num_draws = 4000
    for seed in range(num_draws):
        (token_id,) = sampler.sample(logits[None].clone(), [row_of(SamplingParams(temperature=0.7, seed=seed))])
        counts[token_id] += 1
    expected = (logits[:9].double() / 0.7).softmax(0).numpy() * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 40


def test_a_padded_id_is_never_drawn_however_likely():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, NUM_TOKEN_IDS:] = 1e9
    for temperature in (0.0, 1.0):
        (token_id,) = Sampler(Masks([{0}]), NUM_TOKEN_IDS).sample(
            logits.clone(), [row_of(SamplingParams(temperature=temperature, seed=1))]
        )
        assert token_id < NUM_TOKEN_IDS


def test_no_extreme_of_the_parameters_draws_what_the_mask_forbids():
    allowed = {3, 40, 90}
    sampler = Sampler(Masks([allowed]), NUM_TOKEN_IDS)
    context = tuple(range(0, NUM_TOKEN_IDS, 2))
    for temperature, repetition_penalty, cut in itertools.product(
        (0.0, 1e-300, 1.0, 100.0), (0.01, 100.0), ({"top_p": 1e-300}, {"top_k": 1}, {"min_p": 1.0}, {})
    ):
        params = SamplingParams(
            temperature=temperature, repetition_penalty=repetition_penalty, seed=1, frequency_penalty=-2.0,
            logit_bias={3: 100.0, 40: 100.0, 90: -100.0, 50: 100.0}, **cut,
        )  # fmt: skip
        logits = 1e3 * torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
        (token_id,) = sampler.sample(logits, [row_of(params, context, mask_row=0)])
        assert token_id in allowed
        assert not logits.isnan().any()
        assert logits.amax() < torch.inf


@pytest.mark.parametrize("penalty", [0.0, 1e-300, 1e-45, 0.009, 101.0])
def test_a_repetition_penalty_that_leaves_no_numbers_is_refused(penalty):
    with pytest.raises(RequestError) as refused:
        SamplingParams(repetition_penalty=penalty)
    assert refused.value.param == "repetition_penalty"


def test_greedy_ties_go_to_the_lowest_id():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [40, 41, 90]] = 5.0
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    assert sampler.sample(logits, [row_of(SamplingParams(temperature=0.0))]) == [40]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_drafts_come_with_the_probabilities_that_sampling_written_out_has(data):
    num_rows = data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator) * data.draw(st.sampled_from([0.1, 3.0, 15.0]))
    rows = [
        row_of(
            data.draw(params_strategy),
            [1, *data.draw(token_lists)],
            drafts=tuple(data.draw(token_lists)),
            plan=data.draw(st.sampled_from([PLAIN, REJECTION])),
        )
        for _ in range(num_rows)
    ]
    drafts = Sampler(Masks([{0}]), NUM_TOKEN_IDS).sample_drafts(logits.clone(), rows)
    for row, row_logits, (token_id, distribution) in zip(rows, logits, drafts, strict=True):
        if row.sequence.plan is PLAIN or row.sequence.params.temperature == 0.0:
            assert (token_id, distribution) == (sample_written_out(row_logits, row), None)
            continue
        probs = probs_written_out(row_logits, row)
        dense = np.zeros(VOCAB_SIZE)
        dense[distribution.token_ids] = distribution.probs
        np.testing.assert_allclose(dense, probs, rtol=1e-9, atol=1e-300)
        assert token_id in distribution.token_ids
        assert distribution.token_ids.tolist() == sorted(set(distribution.token_ids.tolist()))


def test_draft_tokens_follow_their_probabilities_and_neighbouring_drafts_are_independent():
    """Chi-square over 9 tokens, and over their pairs: 8 and 80 degrees of freedom."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.full((VOCAB_SIZE,), -math.inf)
    logits[:9] = torch.randn(9, generator=generator)
    num_draws = 4000
    rows = [row_of(SamplingParams(seed=seed), plan=REJECTION) for seed in range(num_draws)]
    # The same position, as the second token of a draft that began one earlier.
    earlier = [row_of(SamplingParams(seed=seed), (1, 5), drafts=(9,), plan=REJECTION) for seed in range(num_draws)]
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    drawn = sampler.sample_drafts(logits.repeat(2 * num_draws, 1), [*rows, *earlier])
    counts = np.zeros((9, 9))
    for (first, _), (second, _) in zip(drawn[:num_draws], drawn[num_draws:], strict=True):
        counts[first, second] += 1
    probs = logits[:9].double().softmax(0).numpy()
    assert ((counts.sum(1) - probs * num_draws) ** 2 / (probs * num_draws)).sum() < 40
    expected = np.outer(probs, probs) * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 160


def test_inversion_finds_every_token_of_some_weight_and_no_other():
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    least, most = 2.0**-53, 1.0 - 2.0**-53
    for total in (1.0, 3.0, 1e-300):
        for uniform, token_id in ((least, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (most, 4)):
            assert draw_from(weights * total, [uniform]) == [token_id]


@pytest.mark.parametrize("temperature", [1e-8, 1e-20, 1e-45])
def test_next_to_no_temperature_is_greedy(temperature):
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 10
    (best,) = Sampler(Masks([{0}]), NUM_TOKEN_IDS).sample(logits.clone(), [row_of(SamplingParams(temperature=0.0))])
    row = row_of(SamplingParams(temperature=temperature, seed=1), plan=REJECTION)
    sampler = Sampler(Masks([{0}]), NUM_TOKEN_IDS)
    assert sampler.sample(logits.clone(), [row]) == [best]
    sampler.shape(logits, [row])
    assert distributions(logits, [row])[0, best] == 1.0
