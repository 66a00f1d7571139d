"""Speculation never changes what is generated: token for token, whoever drafts."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec import Engine, EngineConfig, Request, SamplingParams, SpeculativeConfig
from specdec.grammars import JsonSchema

PROMPTS = [
    "The quick brown fox jumps over the lazy dog. The quick brown",
    "hello hello hello hello",
    "a b c a b c a b c",
    '{"name": "Ada", "age": 36}',
    "x",
    "The quick brown fox jumps over the lazy dog. The slow red",
]
SCHEMA = (
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["one", "two"]}, '
    '"sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}}, '
    '"required": ["name", "kind", "sizes"], "additionalProperties": false}'
)
ROOMY = {}
PREEMPTING = {"num_kv_blocks": 18, "max_num_seqs": 8}
CHUNKED = {"max_num_batched_tokens": 16, "max_num_seqs": 8}
UNCACHED = {"enable_prefix_caching": False, "block_size": 5}


NAMES = ["grammar", "prediction", "suffix", "ngram", "self", "other", "unmasked", "chain", "all", "adaptive"]
POOLS = {"roomy": ROOMY, "preempting": PREEMPTING, "chunked": CHUNKED, "odd": UNCACHED}


def speculations(target, draft):
    return {
        "grammar": SpeculativeConfig(method="grammar", num_speculative_tokens=6),
        "prediction": SpeculativeConfig(method="prediction", num_speculative_tokens=6),
        "suffix": SpeculativeConfig(method="suffix", num_speculative_tokens=5),
        "ngram": SpeculativeConfig(method="ngram", prompt_lookup_min=1, num_speculative_tokens=5),
        "self": SpeculativeConfig(method="draft_model", model=str(target), num_speculative_tokens=3),
        "other": SpeculativeConfig(method="draft_model", model=str(draft), num_speculative_tokens=4),
        "unmasked": SpeculativeConfig(
            method="draft_model", model=str(draft), num_speculative_tokens=4, mask_drafts=False
        ),
        "chain": SpeculativeConfig(num_speculative_tokens=7),
        "all": SpeculativeConfig(model=str(draft), num_speculative_tokens=5),
        # As many as pay, which depends on the machine.
        "adaptive": SpeculativeConfig(model=str(draft)),
    }


@pytest.fixture(scope="module")
def engine_of(tiny_model_folder, tiny_draft_folder):
    """Engines by (who drafts, dtype, pool settings), built once."""
    built = {}

    def get(name, dtype="float32", **pool):
        key = (name, dtype, tuple(pool.items()))
        if key not in built:
            speculative = speculations(tiny_model_folder, tiny_draft_folder).get(name)
            built[key] = Engine(
                EngineConfig(
                    model=str(tiny_model_folder),
                    dtype=dtype,
                    exact=True,
                    max_model_len=256,
                    speculative=speculative,
                    check_outputs=True,
                    num_compile_workers=0,
                    **({"num_kv_blocks": 200} | pool),
                )
            )
        return built[key]

    return get


def answers(engine, params, schema=None, prompts=PROMPTS, prediction=""):
    outputs = engine.generate(prompts, params, output_type=schema, prediction=prediction)
    stats = engine.stats()
    assert stats.num_kv_blocks_in_use == 0
    for speculation in (stats.speculation, *stats.speculation.by_proposer.values()):
        assert speculation.num_draft_tokens == (
            speculation.num_accepted_tokens + speculation.num_rejected_tokens + speculation.num_discarded_tokens
        )
    return [
        [
            (choice.token_ids, choice.text, choice.finish_reason, choice.stop_reason, choice.logprobs, choice.seed)
            for choice in output.choices
        ]
        for output in outputs
    ]


def params_of(**changes):
    return [
        SamplingParams(**({"max_tokens": 30, "seed": 1000 + i, "temperature": 0.9} | changes))
        for i in range(len(PROMPTS))
    ]


SAMPLINGS = {
    "greedy": params_of(temperature=0.0),
    "sampled": params_of(temperature=0.8),
    "hot": params_of(temperature=1.3),
    "truncated": params_of(top_k=40, top_p=0.9, min_p=0.01),
    "penalised": params_of(frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2),
    "biased": params_of(logit_bias={5: 4.0, 60: -3.0}, min_tokens=8),
    "several": params_of(n=3, logprobs=3),
    "stopping": params_of(stop=("e", "th"), min_tokens=3),
    "stop token": params_of(stop_token_ids=tuple(range(100, 160))),
    "endless": params_of(temperature=0.0, ignore_eos=True, max_tokens=60),
}


SCHEMA_SAMPLINGS = {
    f"under a schema at {temperature}": params_of(temperature=temperature, max_tokens=60)
    for temperature in (0.0, 0.8, 1.3)
}


def everywhere(samplings):
    """Who drafts, in which pool, with which samplings.

    Every proposer always, in the pool that asks most of it, and a chain of all in every pool: the chain there with all
    samplings, the others with every second one, so that each sampling meets half of them. The rest where there is time.
    """
    for number, name in enumerate(NAMES):
        some = list(samplings)[number % 2 :: 2]
        rest = [sampling for sampling in samplings if sampling not in some]
        for pool_name, pool in POOLS.items():
            if pool is PREEMPTING and name == "all":
                yield pytest.param(name, pool, list(samplings), id=f"{name}-{pool_name}")
            elif pool is PREEMPTING or name == "all":
                yield pytest.param(name, pool, some, id=f"{name}-{pool_name}")
                yield pytest.param(name, pool, rest, id=f"{name}-{pool_name}-rest", marks=pytest.mark.slow)
            else:
                yield pytest.param(name, pool, list(samplings), id=f"{name}-{pool_name}", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def plain_answers_of(engine_of):
    """By name of the sampling, worked out once."""
    made = {}

    def get(sampling):
        if sampling not in made:
            if sampling in SCHEMA_SAMPLINGS:
                made[sampling] = answers(engine_of("none"), SCHEMA_SAMPLINGS[sampling], SCHEMA)
            else:
                made[sampling] = answers(engine_of("none"), SAMPLINGS[sampling])
        return made[sampling]

    return get


@pytest.mark.parametrize(("name", "pool", "samplings"), list(everywhere(SAMPLINGS)))
def test_speculative_output_equals_plain_output(engine_of, plain_answers_of, name, pool, samplings):
    speculative = engine_of(name, **pool)
    preempted_before = speculative.stats().num_preemptions
    for sampling in samplings:
        expected = plain_answers_of(sampling)
        # Right in some of its places for one of the prompts.
        prediction = expected[0][0][1][:20] + " and " + expected[1][0][1]
        assert answers(speculative, SAMPLINGS[sampling], prediction=prediction) == expected, sampling
    if pool is PREEMPTING:
        assert speculative.stats().num_preemptions > preempted_before


@pytest.mark.parametrize(("name", "pool", "samplings"), list(everywhere(SCHEMA_SAMPLINGS)))
def test_speculative_output_equals_plain_output_under_a_schema(engine_of, plain_answers_of, name, pool, samplings):
    speculative = engine_of(name, **pool)
    drafted_before = speculative.stats().speculation.num_draft_tokens
    for sampling in samplings:
        params, prediction = SCHEMA_SAMPLINGS[sampling], '{"name":"the","kind":"one","sizes":[1,2]}'
        assert answers(speculative, params, SCHEMA, prediction=prediction) == plain_answers_of(sampling), sampling
    if name != "adaptive":
        assert speculative.stats().speculation.num_draft_tokens > drafted_before


@pytest.mark.parametrize("name", ["ngram", "self", "other", "all"])
def test_speculative_output_equals_plain_output_in_bfloat16(engine_of, name):
    plain, speculative = engine_of("none", "bfloat16"), engine_of(name, "bfloat16")
    for sampling in ("greedy", "sampled", "penalised"):
        assert answers(speculative, SAMPLINGS[sampling]) == answers(plain, SAMPLINGS[sampling]), sampling


def test_the_target_as_its_own_draft_is_never_rejected(engine_of):
    engine = engine_of("self", **CHUNKED)
    for schema in (None, SCHEMA):
        answers(engine, params_of(temperature=1.0), schema)
    # Other tests may have given this engine predictions, which are often wrong.
    speculation = engine.stats().speculation.by_proposer["draft_model"]
    assert speculation.num_accepted_tokens > 100
    assert speculation.num_rejected_tokens == 0


def test_a_batch_answers_as_each_request_alone_does(engine_of):
    engine = engine_of("none")
    params = params_of(temperature=0.9)
    alone = [answers(engine, [each], prompts=[prompt])[0] for prompt, each in zip(PROMPTS, params, strict=True)]
    assert answers(engine, params) == alone


@pytest.mark.slow
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_requests_that_join_and_leave_change_no_other(engine_of, data):
    """Requests arrive between steps and some are aborted; the others answer as they do alone."""
    name = data.draw(st.sampled_from(["none", "ngram", "self", "other"]))
    engine, plain = engine_of(name, **PREEMPTING), engine_of("none")
    order = data.draw(st.permutations(range(len(PROMPTS))))
    aborted = data.draw(st.sets(st.sampled_from(range(len(PROMPTS))), max_size=3))
    constrained = data.draw(st.sets(st.sampled_from(range(len(PROMPTS)))))
    gaps = data.draw(st.lists(st.integers(0, 5), min_size=len(order), max_size=len(order)))
    texts = {str(i): [] for i in order}

    def step():
        for delta in engine.step():
            texts[delta.request_id].append(delta.text)

    for i, gap in zip(order, gaps, strict=True):
        engine.add_request(
            Request(
                request_id=str(i),
                prompt_token_ids=tuple(engine.tokenizer.encode(PROMPTS[i])),
                sampling_params=params_of()[i],
                constraint=JsonSchema(schema=SCHEMA) if i in constrained else None,
            )
        )
        for _ in range(gap):
            step()
    for i in aborted:
        engine.abort_request(str(i))
    while engine.has_unfinished_requests():
        step()
    assert engine.stats().num_kv_blocks_in_use == 0
    for i in set(order) - aborted:
        ids = plain.tokenizer.encode(PROMPTS[i])
        (expected,) = plain.generate([ids], [params_of()[i]], output_type=SCHEMA if i in constrained else None)
        assert "".join(texts[str(i)]) == expected.text
