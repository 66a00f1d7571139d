"""The logits of all passes lie in one place, and only an owner who asks for it shares it."""

import pytest
import torch

from specdec import Engine, EngineConfig, SamplingParams
from specdec.attention import Span
from specdec.logits_buffer import LogitsBuffer


def test_rows_lie_where_they_lay_until_there_are_more_than_ever():
    buffer = LogitsBuffer(torch.device("cpu"))
    first = buffer.rows(5, 100)
    assert first.shape == (5, 100)
    assert first.dtype is torch.float32
    assert buffer.rows(64, 100).data_ptr() == first.data_ptr()
    more = buffer.rows(65, 100)
    assert more.shape == (65, 100)
    assert buffer.rows(3, 100).data_ptr() == buffer.rows(128, 100).data_ptr() == more.data_ptr()
    assert buffer.rows(3, 200).shape == (3, 200)
    assert buffer.rows(0, 200).shape == (0, 200)


@pytest.mark.parametrize("exact", [False, True])
def test_logits_are_the_same_in_a_buffer_and_many_at_once(tiny_untied_folder, exact):
    config = EngineConfig(
        model=str(tiny_untied_folder), dtype="float32", max_model_len=256, exact=exact, num_compile_workers=0
    )
    runner = Engine(config).runner
    tokens = [7 * i % 400 for i in range(150)]
    plain = runner.forward([Span(tokens, 0, list(range(10)), 150)])
    buffer = LogitsBuffer(torch.device("cpu"))
    held = runner.forward([Span(tokens, 0, list(range(10)), 150)], buffer)
    assert torch.equal(plain, held)
    others = runner.forward([Span(tokens, 0, list(range(10)), 3)], buffer)
    assert others.data_ptr() == held.data_ptr()
    tolerance = 0 if exact else 1e-4
    torch.testing.assert_close(others, plain[-3:], atol=tolerance, rtol=tolerance)


def test_an_engines_passes_take_no_new_memory_for_logits(tiny_model_folder, monkeypatch):
    engine = Engine(
        EngineConfig(model=str(tiny_model_folder), max_model_len=256, num_kv_blocks=60, num_compile_workers=0)
    )
    places = []
    forward = engine.runner.forward

    def watched(*given):
        logits = forward(*given)
        places.append(logits.data_ptr())
        return logits

    monkeypatch.setattr(engine.runner, "forward", watched)
    engine.generate(["hello there", "and", "another"], SamplingParams(max_tokens=20, ignore_eos=True))
    assert len(places) >= 10
    assert len(set(places)) == 1


def test_what_is_reserved_is_where_all_rows_lie():
    buffer = LogitsBuffer(torch.device("cpu"))
    buffer.reserve(100, 50)
    place = buffer.rows(1, 50).data_ptr()
    assert buffer.rows(100, 50).data_ptr() == place


def test_what_a_pass_took_can_be_reserved_outside_inference_mode():
    buffer = LogitsBuffer(torch.device("cpu"))
    with torch.inference_mode():
        place = buffer.rows(1, 50).data_ptr()
    buffer.reserve(64, 50)
    assert buffer.rows(64, 50).data_ptr() == place
    assert not buffer.rows(64, 50).any()


def test_an_engine_has_the_logits_of_a_token_and_two_drafts_a_sequence_from_the_start(tiny_model_folder):
    sizes = {"max_model_len": 256, "num_kv_blocks": 60, "max_num_seqs": 50}
    engine = Engine(EngineConfig(model=str(tiny_model_folder), num_compile_workers=0, **sizes))
    vocab_size = engine.runner.model.config.vocab_size
    place = engine._logits.rows(1, vocab_size).data_ptr()
    assert engine._logits.rows(150, vocab_size).data_ptr() == place
