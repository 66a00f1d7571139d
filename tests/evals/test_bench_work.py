"""What a pass has to move and multiply is what the model's own tensors say."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from specdec.attention import Span, TorchAttention
from specdec.evals.bench_engine_cost import decode_work, ideal_gain, mean_acceptance_length, prefill_work
from specdec.evals.bench_engine_model import RandomWeights
from specdec.evals.bench_shapes import SHAPES
from specdec.evals.bench_work import (
    Attended,
    Work,
    attention_work,
    kv_bytes_per_token,
    num_layer_weights,
    pass_work,
    weight_bytes,
)
from specdec.kv_cache import allocate_arena
from specdec.linear import PlainLinear
from specdec.model_runner import ModelRunner
from specdec.models.llama import LlamaModel

CPU = torch.device("cpu")


def model_of(name, device=CPU):
    return LlamaModel(SHAPES[name], method=PlainLinear(), max_model_len=64, dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_the_model_but_for_an_embedding_that_is_no_head(name):
    model = model_of(name, torch.device("meta"))
    own = sum(slot.numel() for slot in model.weight_slots().values())
    embedding = 0 if SHAPES[name].tie_word_embeddings else model.embedding.numel()
    assert weight_bytes(SHAPES[name], 2) == 2 * (own - embedding)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3-8b", 8.03), ("smollm2-135m", 0.1345), ("smollm2-1.7b", 1.711)]
)
def test_shapes_have_the_size_that_their_names_say(name, billions):
    own = sum(slot.numel() for slot in model_of(name, torch.device("meta")).weight_slots().values())
    assert own / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(("draft", "target"), [("llama-3-0.5b", "llama-3-8b"), ("smollm2-8m", "smollm2-135m")])
def test_drafts_have_a_sixteenth_of_their_targets_and_their_vocabulary(draft, target):
    sizes = [weight_bytes(SHAPES[name], 1) for name in (draft, target)]
    assert sizes[0] / sizes[1] == pytest.approx(1 / 16, rel=0.15)
    assert SHAPES[draft].vocab_size == SHAPES[target].vocab_size


@pytest.mark.parametrize(("num_queries", "context_len"), [(1, 1), (1, 9), (5, 5), (3, 10)])
def test_scores_are_the_keys_that_each_query_sees(num_queries, context_len):
    first = context_len - num_queries
    seen = sum(key <= position for position in range(first, context_len) for key in range(context_len))
    assert Attended(num_queries, context_len).num_scores == seen


def test_attention_reads_contexts_and_queries_and_writes_outputs():
    shape = SHAPES["llama-3-8b"]
    work = attention_work(shape, 2, [Attended(1, 4096)] * 64)
    keys_and_values, queries_and_outputs = 64 * 4096 * 2 * 8 * 128 * 2, 64 * 2 * 32 * 128 * 2
    assert work.num_bytes == keys_and_values + queries_and_outputs
    assert work.num_flops == 2 * 2 * 64 * 4096 * 32 * 128


def test_products_of_a_pass_are_those_that_torch_counts():
    shape = SHAPES["tiny"]
    model = LlamaModel(shape, method=PlainLinear(), max_model_len=64, dtype=torch.float32, device=CPU)
    RandomWeights(0)(None, model.weight_slots())
    model.finish_loading()
    cache = allocate_arena([model.kv_shape], num_blocks=8, block_size=16, device=CPU)[0]
    runner = ModelRunner(model, cache, TorchAttention())
    spans = [Span([1] * 5, 0, [0], num_logits=1), Span([2] * 3, 8, [1], num_logits=3)]
    with FlopCounterMode(display=False) as counter:
        runner.forward(spans)
    counted = counter.get_flop_counts()["Global"]
    products = sum(num for name, num in counted.items() if "attention" not in str(name) and "bmm" not in str(name))
    attended = [Attended(5, 5), Attended(3, 11)]
    scores = 4 * sum(each.num_scores for each in attended) * shape.num_hidden_layers * 4 * 16
    assert pass_work(shape, 4, attended, num_logits=4).num_flops - scores == products
    assert products == 2 * 8 * shape.num_hidden_layers * num_layer_weights(shape) + 2 * 4 * 512 * 64


def test_keys_and_values_of_a_token_are_those_of_the_pool():
    assert (
        kv_bytes_per_token(SHAPES["smollm2-135m"], 2)
        == model_of("smollm2-135m", torch.device("meta")).kv_shape.bytes_per_token
    )


def test_a_cache_of_fp8_is_half_of_16_bits_and_weights_stay():
    shape, spans = SHAPES["tiny"], [Attended(1, 10), Attended(3, 20)]
    whole, half = (pass_work(shape, 2, spans, num_logits=2, kv_itemsize=size) for size in (None, 1))
    assert whole.num_bytes - half.num_bytes == (30 + 4) * kv_bytes_per_token(shape, 1)
    assert whole.num_flops == half.num_flops
    for work in (
        functools.partial(decode_work, shape, SHAPES["tiny-draft"], 2, [10], 2),
        functools.partial(prefill_work, shape, 2, 10),
    ):
        assert work().num_bytes > work(kv_itemsize=1).num_bytes > work().num_bytes // 2


def test_a_step_with_drafts_is_one_pass_of_the_target_and_one_of_the_draft_for_each():
    target, draft = SHAPES["tiny"], SHAPES["tiny-draft"]
    plain = decode_work(target, draft, 4, [10, 20], 0)
    assert plain == pass_work(target, 4, [Attended(1, 10), Attended(1, 20)], num_logits=2)
    spans = [Attended(3, 12), Attended(3, 22)]
    expected = pass_work(target, 4, spans, num_logits=6)
    for i in range(2):
        expected += pass_work(draft, 4, [Attended(1, 10 + i), Attended(1, 20 + i)], num_logits=2)
    assert decode_work(target, draft, 4, [10, 20], 2) == expected
    assert decode_work(target, None, 4, [10, 20], 2) == pass_work(target, 4, spans, num_logits=6)


def test_a_prompt_needs_the_logits_of_its_last_token_alone():
    shape = SHAPES["tiny"]
    assert prefill_work(shape, 4, 7) == pass_work(shape, 4, [Attended(7, 7)], num_logits=1)


def test_the_ideal_gain_is_what_passes_alone_would_give():
    assert mean_acceptance_length((0.7, 0.4, 0.25, 0.15), 4) == pytest.approx(2.5)
    assert mean_acceptance_length((0.7, 0.4), 1) == pytest.approx(1.7)
    # A draft that costs a sixteenth and is drawn four times, a verification that costs what a plain pass does.
    assert ideal_gain(acceptance_length=2.5, plain_ms=8.0, verify_ms=8.0, draft_ms=4 * 0.5) == pytest.approx(2.0)


def test_work_adds_up():
    assert Work(1, 2) + Work(3, 4) == Work(4, 6)
