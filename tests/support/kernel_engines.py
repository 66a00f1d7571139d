"""Engines that run by the kernels, wherever their tensors are, and what they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from specdec import Engine, EngineConfig, SamplingParams, SpeculativeConfig, build
from specdec.backend import KernelBackend
from specdec.kernels.dispatch import INTERPRETED
from specdec.proposers import build as proposers_build
from specdec.request import CompletionOutput
from specdec.speculative import SpeculativeParams, Verification
from specdec.step_time import StepTime

# In the interpreter a token takes a tenth of a second.
NUM_TOKENS = 5 if INTERPRETED else 10
PROMPTS = ["a b c a b c a b c", "x"] if INTERPRETED else ["The quick brown fox jumps over", "a b c a b c a b c", "x"]
_KIND = {"enum": ["one", "two"]}
_SIZES = {"type": "array", "items": {"type": "integer"}}
SCHEMA = {
    "type": "object",
    "properties": {"kind": _KIND} if INTERPRETED else {"kind": _KIND, "sizes": _SIZES},
    "required": ["kind"] if INTERPRETED else ["kind", "sizes"],
    "additionalProperties": False,
}


def params_of(**changes: object) -> list[SamplingParams]:
    """One a prompt."""
    return [
        SamplingParams(**({"max_tokens": NUM_TOKENS, "seed": 1000 + i, "temperature": 0.8} | changes))
        for i in range(len(PROMPTS))
    ]


SAMPLINGS = {
    "greedy": params_of(temperature=0.0),
    "sampled": params_of(),
    "truncated": params_of(top_k=40, top_p=0.9, min_p=0.01),
    "penalised": params_of(frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2),
    "biased": params_of(logit_bias={5: 4.0, 60: -3.0}, min_tokens=NUM_TOKENS - 2),
    "several explained": params_of(n=2, logprobs=3),
    "under a schema": params_of(max_tokens=40),
    "greedy under a schema": params_of(max_tokens=40, temperature=0.0),
}
SPECULATIONS = {"none": SpeculativeParams(enabled=False)} | {
    str(each): SpeculativeParams(verification=each) for each in Verification
}
CASES = [(sampling, speculation) for sampling in SAMPLINGS for speculation in SPECULATIONS]
if INTERPRETED:
    CASES = [
        ("greedy", "none"),
        ("several explained", "none"),
        ("penalised", "coupled"),
        ("under a schema", "coupled"),
        ("truncated", "rejection"),
        ("biased", "block"),
    ]


@contextmanager
def kernels_on(device: torch.device, *, compiles: bool = False) -> Iterator[None]:
    """Engines that are built within run by the kernels on the device: on a CPU by their references, or interpreted.

    There nothing is compiled; the passes that would have it compiled, a second for each engine, are run if `compiles`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(build, "_device", lambda _: device)
            patch.setattr(build, "backend_of", KernelBackend)
            patch.setattr(KernelBackend, "compiles", compiles)
        if INTERPRETED:
            # Measuring would take minutes, and the drafts' lengths are fixed.
            patch.setattr(proposers_build, "measure_step_time", lambda *_, **__: StepTime([(1, 0.1), (64, 6.4)]))
        yield


def kernel_engine(device: torch.device, config: EngineConfig) -> Engine:
    """On a CPU or on a GPU."""
    with kernels_on(device):
        return Engine(config)


def config_of(target: Path, draft: Path, **changes: object) -> EngineConfig:
    """With a draft model, and so short a context that it is soon measured how long passes take."""
    config = {
        "model": str(target),
        "dtype": "float32",
        "max_model_len": 80,
        "num_kv_blocks": 60,
        "max_num_seqs": 8,
        # Passes of up to so many tokens are captured with every engine; test_pass_graphs.py has larger ones.
        "max_num_batched_tokens": 64,
        "speculative": SpeculativeConfig(
            method="draft_model+grammar+ngram", model=str(draft), num_speculative_tokens=3
        ),
        "check_outputs": True,
        # Processes would be started with every engine, and what they compile is the same.
        "num_compile_workers": 0,
        # Captures would take minutes there.
        "enforce_eager": INTERPRETED,
    }
    return EngineConfig(**(config | changes))


def answers(engine: Engine, sampling: str, speculation: str) -> list[CompletionOutput]:
    """Of all prompts, by the names of SAMPLINGS and SPECULATIONS."""
    schema = SCHEMA if "schema" in sampling else None
    params = SAMPLINGS[sampling]
    outputs = engine.generate(PROMPTS, params, output_type=schema, speculative=SPECULATIONS[speculation])
    assert engine.stats().num_kv_blocks_in_use == 0
    return [choice for output in outputs for choice in output.choices]


def assert_alike(
    ours: list[CompletionOutput], theirs: list[CompletionOutput], *, device: torch.device, speculation: str
) -> None:
    """Tokens, ends and log-probabilities of what is drawn on the device and elsewhere, or there in another way.

    By a rule tokens are drawn at borders between all of them, where a last bit of the logits may show on a GPU: the law
    is kept, not each token.
    """
    differing = [own.token_ids != other.token_ids for own, other in zip(ours, theirs, strict=True)]
    assert sum(differing) <= (device.type == "cuda" and speculation in {"rejection", "block"})
    for own, other, is_other in zip(ours, theirs, differing, strict=True):
        if is_other:
            continue
        assert own.finish_reason == other.finish_reason
        for logprob, expected in zip(own.logprobs or (), other.logprobs or (), strict=True):
            assert logprob.token_id == expected.token_id
            assert logprob.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [each.token_id for each in logprob.top] == [each.token_id for each in expected.top]
