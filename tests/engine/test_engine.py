"""What a Python user of the engine sees, and what is refused before it starts."""

from enum import Enum

import msgspec
import pytest
import torch

from specdec import (
    Choice,
    ConfigError,
    ContextLengthError,
    Engine,
    EngineConfig,
    FinishReason,
    JsonSchema,
    Regex,
    Request,
    RequestError,
    SamplingParams,
    SchemaError,
    SchemaOptions,
    SpeculativeConfig,
    SpeculativeParams,
)
from specdec.attention import Span
from specdec.linear import PlainLinear, RowInvariantLinear
from specdec.prediction_index import PredictionIndex

POOL_TOKENS = 30 * 16


@pytest.fixture(scope="module")
def engine(tiny_model_folder):
    return Engine(EngineConfig(model=str(tiny_model_folder), max_model_len=256, num_kv_blocks=30, check_outputs=True))


def request(engine, text="hello there", *, request_id="r", constraint=None, **params):
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(engine.tokenizer.encode(text)),
        sampling_params=SamplingParams(**params),
        constraint=constraint,
    )


def test_prompts_may_be_text_tokens_or_messages(engine):
    params = SamplingParams(temperature=0.0, max_tokens=4, seed=1)
    text = engine.generate("hello", params)[0]
    ids = engine.generate(engine.tokenizer.encode("hello", add_special_tokens=True), params)[0]
    assert ids.choices == text.choices
    messages = [{"role": "user", "content": "hello"}]
    chat = engine.generate([messages, messages], params)
    assert chat[0].choices == chat[1].choices
    assert chat[0].prompt_token_ids == tuple(engine.tokenizer.encode_chat(messages))


def test_a_seed_makes_answers_repeat_and_one_is_reported_where_none_was_given(engine):
    params = SamplingParams(temperature=1.0, max_tokens=12)
    first = engine.generate("hello", params)[0].choices[0]
    again = engine.generate("hello", SamplingParams(temperature=1.0, max_tokens=12, seed=first.seed))[0].choices[0]
    assert again.token_ids == first.token_ids
    assert engine.generate("hello", params)[0].choices[0].seed != first.seed


def test_choices_of_one_request_differ_and_share_the_prompt(engine):
    text = "the prompt that all of them share " * 4
    hits_before = engine.stats().prefix_cache_hits
    output = engine.generate(text, SamplingParams(n=3, max_tokens=8, seed=5))[0]
    assert len({choice.token_ids for choice in output.choices}) == 3
    full_blocks = (len(output.prompt_token_ids) - 1) // 16
    assert engine.stats().prefix_cache_hits - hits_before >= 2 * full_blocks * 16
    assert engine.generate(text, SamplingParams(max_tokens=1))[0].num_cached_tokens == full_blocks * 16


def test_log_probabilities_are_the_log_softmax_of_the_raw_target_logits(engine):
    params = SamplingParams(temperature=0.7, top_k=5, frequency_penalty=1.0, max_tokens=6, seed=1, logprobs=4)
    output = engine.generate("hello", params)[0]
    choice = output.choices[0]
    tokens = [*output.prompt_token_ids, *choice.token_ids]
    logits = engine.runner.forward([Span(tokens, 0, list(range(20, 30)), len(tokens))])
    for i, entry in enumerate(choice.logprobs):
        expected = torch.log_softmax(logits[len(output.prompt_token_ids) + i - 1], dim=-1)
        assert entry.token_id == choice.token_ids[i]
        # fp32 logits of another batch shape.
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-4)
        assert [top.token_id for top in entry.top] == expected.topk(4).indices.tolist()


def test_abort_frees_the_blocks_at_once_and_nothing_more_comes(engine):
    engine.add_request(request(engine, n=2, max_tokens=100, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert engine.stats().num_kv_blocks_in_use > 0
    engine.abort_request("r")
    assert engine.stats().num_kv_blocks_in_use == 0
    assert not engine.has_unfinished_requests()
    assert engine.step() == []
    engine.abort_request("unknown")


def test_an_id_in_flight_is_refused_and_free_again_afterwards(engine):
    engine.add_request(request(engine, max_tokens=2))
    with pytest.raises(RequestError, match="in flight"):
        engine.add_request(request(engine, max_tokens=2))
    while engine.has_unfinished_requests():
        engine.step()
    engine.add_request(request(engine, max_tokens=1))
    while engine.has_unfinished_requests():
        engine.step()


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def test_a_python_type_constrains_the_answer(engine):
    outputs = engine.generate(["a", "b", "c"], SamplingParams(max_tokens=40, seed=1), output_type=Colour)
    assert {output.text for output in outputs} <= {'"red"', '"blue"'}
    assert all(output.choices[0].finish_reason is FinishReason.STOP for output in outputs)


def test_options_are_read_with_the_schema(engine):
    params = SamplingParams(max_tokens=60, seed=1)
    options = SchemaOptions(format="annotation", documents={"urn:a": {"const": "h", "format": "uuid"}})
    [output] = engine.generate("a", params, output_type={"$ref": "urn:a"}, options=options)
    assert output.text == '"h"'
    assert "const" in output.enforcement.enforced
    assert engine.generate("a", SamplingParams(max_tokens=3))[0].enforcement is None
    with pytest.raises(RequestError, match="options") as refused:
        engine.generate("a", params, options=options)
    assert refused.value.param == "options"


JSON_OBJECT = JsonSchema(schema='{"type":"object"}')


@pytest.mark.parametrize(
    ("changes", "error", "param", "says"),
    [
        ({"max_tokens": 255}, ContextLengthError, "max_tokens", "256"),
        ({"logit_bias": {10**6: 1.0}}, RequestError, "logit_bias", "1000000"),
        ({"stop_token_ids": (-1,)}, RequestError, "stop_token_ids", "-1"),
        ({"constraint": JSON_OBJECT, "stop": ("x",)}, RequestError, "stop", "constraint"),
        ({"constraint": JSON_OBJECT, "stop_token_ids": (5,)}, RequestError, "stop_token_ids", "constraint"),
        ({"constraint": JSON_OBJECT, "ignore_eos": True}, RequestError, "ignore_eos", "constraint"),
        ({"constraint": JSON_OBJECT, "min_tokens": 1}, RequestError, "min_tokens", "constraint"),
        ({"constraint": JsonSchema(schema='{"format": "?"}')}, SchemaError, "schema", "format"),
        ({"constraint": JsonSchema(schema='{"type": 3}')}, SchemaError, "schema", "type"),
        ({"constraint": Regex(pattern="a"), "stop": ("x",)}, RequestError, "stop", "constraint"),
        ({"constraint": Choice(choices=("a",)), "min_tokens": 1}, RequestError, "min_tokens", "constraint"),
        ({"constraint": JsonSchema(schema="{")}, SchemaError, "schema", ""),
        ({"constraint": JsonSchema(schema="false")}, SchemaError, "schema", ""),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_field_and_limit(engine, changes, error, param, says):
    with pytest.raises(error) as caught:
        engine.prepare(request(engine, **changes))
    assert caught.value.param == param
    assert says in str(caught.value)


def test_the_longest_prompt_and_answer_that_fit_are_served_and_one_more_is_not(engine):
    ids = tuple([5] * 200)

    def fitting(max_tokens):
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return Request(request_id="long", prompt_token_ids=ids, sampling_params=params)

    engine.add_request(fitting(56))
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    assert sum(len(delta.token_ids) for delta in deltas) == 56
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(ContextLengthError):
        engine.prepare(fitting(57))
    with pytest.raises(RequestError, match="no tokens"):
        engine.prepare(Request(request_id="empty", prompt_token_ids=()))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.1},
        {"n": 0},
        {"max_tokens": 0},
        {"max_tokens": 3, "min_tokens": 4},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: float("inf")}},
        {"logprobs": 21},
        {"seed": 2**63},
        {"stop": ("",)},
    ],
)
def test_sampling_parameters_out_of_range_name_their_field(changes):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**changes)
    assert caught.value.param == list(changes)[-1]


def test_a_draft_with_another_vocabulary_is_refused(tiny_model_folder, tiny_sentencepiece_folder):
    speculative = SpeculativeConfig(method="draft_model", model=str(tiny_sentencepiece_folder))
    with pytest.raises(ConfigError, match="vocabulary"):
        Engine(EngineConfig(model=str(tiny_model_folder), speculative=speculative, max_model_len=64))


def test_exact_refuses_arithmetic_that_depends_on_the_batch(tiny_model_folder, monkeypatch):
    def depends_on_the_batch(self, x, weight, bias):
        return PlainLinear().apply(x, weight, bias) * (1 + 1e-6 * x.shape[0])

    monkeypatch.setattr(RowInvariantLinear, "apply", depends_on_the_batch)
    with pytest.raises(ConfigError, match="exact") as caught:
        Engine(EngineConfig(model=str(tiny_model_folder), exact=True, max_model_len=64))
    assert caught.value.flag == "--exact"


def test_json_object_mode_and_a_cut_answer(engine):
    engine.add_request(request(engine, constraint=JSON_OBJECT, max_tokens=3, seed=1))
    deltas = []
    while engine.has_unfinished_requests():
        deltas += engine.step()
    text = "".join(delta.text for delta in deltas)
    assert text.startswith("{")
    assert deltas[-1].finish_reason in {FinishReason.STOP, FinishReason.LENGTH}


def test_a_prediction_is_indexed_once_before_its_request_is_queued_and_may_fill_the_context(engine, monkeypatch):
    num_tokens = len(engine.tokenizer.encode(" one" * 100, add_special_tokens=False))
    longest = " one" * (100 * engine.max_model_len // num_tokens)
    predicting = msgspec.structs.replace(request(engine, n=2, max_tokens=4), prediction=longest)
    prepared = engine.prepare(predicting)
    assert engine.max_model_len - 3 < len(prepared.prediction.token_ids) <= engine.max_model_len
    built = []
    monkeypatch.setattr(PredictionIndex, "__init__", lambda *_: built.append(None))
    engine.add_request(prepared)
    assert {id(sequence.prediction) for sequence in engine.scheduler.waiting} == {id(prepared.prediction)}
    while engine.has_unfinished_requests():
        engine.step()
    assert not built
    with pytest.raises(ContextLengthError, match=r"25\d tokens.* 256 ") as caught:
        engine.prepare(msgspec.structs.replace(predicting, prediction=longest + " one"))
    assert caught.value.param == "prediction"


def test_a_prediction_that_nobody_follows_is_not_indexed(engine):
    plain = msgspec.structs.replace(
        request(engine), prediction="hello " * 1000, speculative=SpeculativeParams(enabled=False)
    )
    assert engine.prepare(plain).prediction is None
