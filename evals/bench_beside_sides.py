"""The sides of `bench engine --beside`: the engine, and the ways through transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from specdec.engine import Engine
from specdec.evals.continuous_peer import ContinuousPeer
from specdec.evals.driver import drive
from specdec.evals.peer import TransformersPeer
from specdec.request import Request, SamplingParams
from specdec.speculative import SpeculativeParams

Answers = list[list[int]]


class Side(Protocol):
    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> tuple[Answers, float]:
        """The new tokens of each prompt, drawn greedily, and the seconds it took."""
        ...


class EngineSide:
    """All requests at once, without drafts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> tuple[Answers, float]:
        params = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
        requests = [
            Request(
                request_id=f"beside-{i}",
                prompt_token_ids=tuple(prompt),
                sampling_params=params,
                speculative=SpeculativeParams(enabled=False),
            )
            for i, prompt in enumerate(prompts)
        ]
        run = drive(self._engine, requests, concurrency=len(requests))
        return [list(output.choices[0].token_ids) for output in run.outputs], run.seconds


# Any: transformers ships no types that strict checking accepts.
def _generate(model: Any, **_: int) -> TransformersPeer:
    return TransformersPeer(model)


def _static(model: Any, **_: int) -> TransformersPeer:
    return TransformersPeer(model, has_static_cache=True)


def _continuous(model: Any, **sizes: int) -> ContinuousPeer:
    return ContinuousPeer(model, **sizes, may_choose=True)


def _continuous_sdpa(model: Any, **sizes: int) -> ContinuousPeer:
    return ContinuousPeer(model, **sizes, may_choose=False)


WAYS: Final[dict[str, Callable[..., TransformersPeer | ContinuousPeer]]] = {
    "generate": _generate,
    "static": _static,
    "continuous": _continuous,
    "continuous-sdpa": _continuous_sdpa,
}
"""Each takes the model, batch, model_len and max_batch_tokens."""
