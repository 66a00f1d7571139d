"""Whole engines under rejection and block verification, and with synthetic acceptance: valid, counted, repeatable."""

import pytest

from specdec import Engine, EngineConfig, SamplingParams, SpeculativeConfig, SpeculativeParams, Verification

PROMPTS = ["The quick brown fox. The quick brown", "a b c a b c a b", '{"name": "Ada"}', "x"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["one", "two"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine_of(tiny_model_folder, tiny_draft_folder):
    built = {}

    def get(**speculative):
        key = str(speculative)
        if key not in built:
            built[key] = Engine(
                EngineConfig(
                    model=str(tiny_model_folder),
                    exact=True,
                    max_model_len=256,
                    num_kv_blocks=60,
                    max_num_seqs=8,
                    check_outputs=True,
                    num_compile_workers=0,
                    speculative=SpeculativeConfig(**({"model": str(tiny_draft_folder)} | speculative)),
                )
            )
        return built[key]

    return get


def params_of(**changes):
    return [
        SamplingParams(**({"max_tokens": 40, "temperature": 1.0, "seed": i} | changes)) for i in range(len(PROMPTS))
    ]


def tokens(outputs):
    return [choice.token_ids for output in outputs for choice in output.choices]


def assert_counts_add_up(stats):
    assert stats.num_kv_blocks_in_use == 0
    assert stats.num_output_check_failures == 0
    counts = stats.speculation
    assert counts.num_draft_tokens > 0
    assert counts.num_draft_tokens == (
        counts.num_accepted_tokens + counts.num_rejected_tokens + counts.num_discarded_tokens
    )


SOME = [{}, {"frequency_penalty": 0.5, "logprobs": 2}]
OTHERS = [{"top_p": 0.8, "top_k": 30}, {"n": 2}]


@pytest.mark.parametrize(
    ("verification", "mask_drafts", "samplings"),
    [
        # Any verification and any sampling meet, and either with masked drafts and with others.
        (Verification.COUPLED, True, SOME),
        (Verification.COUPLED, False, OTHERS),
        (Verification.REJECTION, True, OTHERS),
        (Verification.REJECTION, False, SOME),
        (Verification.BLOCK, True, SOME),
        (Verification.BLOCK, False, OTHERS),
    ],
)
def test_every_verification_gives_valid_answers_and_the_same_ones_again(
    engine_of, verification, mask_drafts, samplings
):
    engine = engine_of(num_speculative_tokens=4, verification=verification, mask_drafts=mask_drafts)
    for sampling in samplings:
        first = engine.generate(PROMPTS, params_of(**sampling), output_type=SCHEMA)
        # In another batch, one by one.
        again = [
            engine.generate(prompt, params, output_type=SCHEMA)[0]
            for prompt, params in zip(PROMPTS, params_of(**sampling), strict=True)
        ]
        if verification is Verification.COUPLED:
            assert tokens(first) == tokens(again)
        assert all(choice.finish_reason == "stop" for output in (*first, *again) for choice in output.choices)
    assert_counts_add_up(engine.stats())


@pytest.mark.parametrize("verification", [Verification.REJECTION, Verification.BLOCK])
def test_greedy_answers_are_the_plain_ones_whatever_the_verification(engine_of, verification):
    engine = engine_of(num_speculative_tokens=4)
    params = params_of(temperature=0.0)
    plain = engine.generate(PROMPTS, params, speculative=SpeculativeParams(enabled=False))
    drafted = engine.generate(PROMPTS, params, speculative=SpeculativeParams(verification=verification))
    assert tokens(plain) == tokens(drafted)


@pytest.mark.parametrize("verification", list(Verification))
def test_without_drafts_every_verification_draws_the_plain_tokens(engine_of, verification):
    engine = engine_of(num_speculative_tokens=4)
    off = SpeculativeParams(num_speculative_tokens=0, verification=verification)
    before = engine.stats().speculation.num_draft_tokens
    plain = engine.generate(PROMPTS, params_of(), speculative=SpeculativeParams(enabled=False))
    assert tokens(engine.generate(PROMPTS, params_of(), speculative=off)) == tokens(plain)
    assert engine.stats().speculation.num_draft_tokens == before


def test_synthetic_drafts_are_accepted_at_their_rates(engine_of):
    rates = (0.9, 0.6, 0.2)
    engine = engine_of(
        method="synthetic", model=None, synthetic_acceptance_rates=rates, num_speculative_tokens=len(rates)
    )
    params = [SamplingParams(max_tokens=200, temperature=1.0, seed=i, ignore_eos=True) for i in range(8)]
    engine.generate(["x"] * 8, params)
    counts = engine.stats().speculation
    assert set(counts.by_proposer) == {"synthetic"}
    for rate, accepted, drafted in zip(
        rates, counts.num_accepted_per_position, counts.num_drafted_per_position, strict=True
    ):
        # Four standard deviations, and what the target happens to draw as well.
        assert abs(accepted / drafted - rate) < 4 * (rate * (1 - rate) / drafted) ** 0.5 + 0.02


@pytest.mark.parametrize("has_draft_model", [False, True])
def test_synthetic_answers_satisfy_their_schema(engine_of, tiny_draft_folder, has_draft_model):
    engine = engine_of(
        method="synthetic+draft_model" if has_draft_model else "synthetic",
        model=str(tiny_draft_folder) if has_draft_model else None,
        synthetic_acceptance_rates=(0.9, 0.8),
        num_speculative_tokens=2,
    )
    outputs = engine.generate(PROMPTS, params_of(), output_type=SCHEMA)
    assert all(choice.finish_reason == "stop" for output in outputs for choice in output.choices)
    assert_counts_add_up(engine.stats())
