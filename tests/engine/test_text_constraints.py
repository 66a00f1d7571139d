"""Constraints on texts outside JSON, end to end: sampled, checked, and reported."""

import re

import outlines.types
import pytest

from specdec import AfterMarker, Choice, EnforcementReport, Engine, EngineConfig, FinishReason, Regex, SamplingParams


@pytest.fixture(scope="module")
def engine(tiny_model_folder):
    sizes = {"max_model_len": 256, "num_kv_blocks": 30, "num_compile_workers": 0}
    return Engine(EngineConfig(model=str(tiny_model_folder), check_outputs=True, **sizes))


@pytest.mark.parametrize(
    ("output_type", "pattern"),
    [
        (re.compile("[ab]{2}"), "[ab]{2}"),
        (Regex(pattern="c|d"), "c|d"),
        (Choice(choices=("yes", "no")), "yes|no"),
        (outlines.types.Choice(["e", "f"]), "e|f"),
        (outlines.types.Regex("g{1,3}"), "g{1,3}"),
    ],
)
def test_every_output_type_constrains_the_answer_and_reports_what_was_enforced(engine, output_type, pattern):
    before = engine.stats()
    [output] = engine.generate("a", SamplingParams(max_tokens=60, seed=1), output_type=output_type)
    assert output.choices[0].finish_reason is FinishReason.STOP
    assert re.fullmatch(pattern, output.text)
    assert isinstance(output.enforcement, EnforcementReport)
    assert engine.stats().num_outputs_checked == before.num_outputs_checked + 1


def test_a_marker_that_is_a_special_token_is_part_of_the_answer(engine):
    constraint = AfterMarker(marker="<|im_start|>", then=Choice(choices=("yes", "no")))
    num_checked = engine.stats().num_outputs_checked
    for seed in range(20):
        params = SamplingParams(max_tokens=200, seed=seed, logit_bias={1: 5.0})
        choice = engine.generate("a", params, output_type=constraint)[0].choices[0]
        if choice.finish_reason is FinishReason.STOP:
            assert choice.text.rpartition("<|im_start|>")[2] in {"yes", "no"}
            assert 1 in choice.token_ids
    assert engine.stats().num_outputs_checked > num_checked
    assert engine.stats().num_output_check_failures == 0
