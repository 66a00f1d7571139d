"""Logits against transformers, in fp32: in one go, in chunks, and token by token."""

import pytest
import torch
import transformers

from specdec.attention import Span
from specdec.build import build_runtime
from specdec.config import EngineConfig
from specdec.linear import PackedLinear, PlainLinear

TEXT = (
    "Speculative decoding drafts a few tokens with something cheap and lets the model check them in one pass. "
    'A schema says what an answer may be: {"type": "object", "properties": {"name": {"type": "string"}}}. '
    "def add(a, b):\n    return a + b\n\nNaïve café, 東京, 12 345.67 and an emoji: 🙂. "
) * 16
NUM_STEPS = 40


def compare(folder, lengths, chunks):
    """The largest differences to transformers' eager attention, beside those of its own sdpa: (length, own, ours)."""
    runtime = build_runtime(EngineConfig(model=str(folder), dtype="float32", max_model_len=1024, num_kv_blocks=64))
    forward = runtime.runner.forward
    peers = {}
    for kind in ("eager", "sdpa"):
        peers[kind] = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=kind
        )
    token_ids = runtime.tokenizer.encode(TEXT)
    blocks = list(range(64))
    for length in lengths:
        prompt = token_ids[:length]
        assert len(prompt) == length
        with torch.no_grad():
            eager, sdpa = (peers[kind](torch.tensor([prompt])).logits[0] for kind in ("eager", "sdpa"))
        ways = [forward([Span(prompt, 0, blocks, length)])]
        pieces, start = [], 0
        for chunk in chunks:
            end = min(start + chunk, length)
            if end > start:
                pieces.append(forward([Span(prompt[start:end], start, blocks, end - start)]))
            start = end
        ways.append(torch.cat(pieces))
        first = max(0, length - NUM_STEPS)
        if first:
            forward([Span(prompt[:first], 0, blocks, 1)])
        steps = [forward([Span([prompt[i]], i, blocks, 1)]) for i in range(first, length)]
        ways.append(torch.cat(steps))
        own = float((eager - sdpa).abs().max())
        ours = [float((way - eager[length - len(way) :]).abs().max()) for way in ways]
        yield length, own, ours


@pytest.mark.model
def test_the_default_model_is_as_close_to_transformers_as_its_own_kernels_are_to_each_other(default_model_folder):
    """Largest differences over the run: one of a short prompt is a matter of luck, for either side."""
    results = list(compare(default_model_folder, (1, 17, 900), (5, 100, 16, 1, 400, 900)))
    for length, own, ours in results:
        print(f"{length} tokens: eager against sdpa {own:.1e}; whole, chunked, stepwise {ours}")
    largest = max(max(ours) for _, _, ours in results)
    assert largest <= 2 * max(own for _, own, _ in results)
    assert largest <= 1e-3


@pytest.mark.parametrize("fixture", ["tiny_model_folder", "tiny_untied_folder"])
def test_tiny_models_agree_with_transformers(fixture, request):
    """Tied, and untied with biases, llama3 rope, shards and a padded head."""
    folder = request.getfixturevalue(fixture)
    for _, own, ours in compare(folder, (1, 17, 200), (5, 100, 16, 1, 400)):
        # The floor is some ulp of logits below 16: processors add up in different orders.
        assert max(ours) <= max(2 * own, 4e-5)


@pytest.mark.parametrize("fixture", ["tiny_model_folder", "tiny_untied_folder"])
def test_rows_that_fill_products_up_change_no_other(fixture, request, monkeypatch):
    config = EngineConfig(model=str(request.getfixturevalue(fixture)), dtype="float32", max_model_len=256)
    runtime = build_runtime(config)
    prompt = runtime.tokenizer.encode(TEXT)[:40]
    others = [3, 5, 8, 13]
    spans = [
        Span(prompt[:37], 0, [0, 1, 2], 4),
        Span(others, 0, [3], 0),
        Span(prompt[37:], 37, [0, 1, 2], 2),
    ]
    plain = runtime.runner.forward(spans)
    monkeypatch.setattr(PlainLinear, "padded_rows", lambda _, num_rows: -(-num_rows // 7) * 7)
    filled = runtime.runner.forward(spans)
    assert filled.shape == plain.shape
    torch.testing.assert_close(filled, plain, atol=1e-5, rtol=1e-5)


def test_packed_products_have_few_shapes_and_few_rows_that_are_nobodys():
    method = PackedLinear()
    sizes = {num_rows: method.padded_rows(num_rows) for num_rows in range(1025)}
    assert all(num_rows <= size <= 1.5 * num_rows for num_rows, size in sizes.items())
    assert all(size == num_rows for num_rows, size in sizes.items() if num_rows <= 16), "decoding pays for none"
    assert len(set(sizes.values())) < 160
