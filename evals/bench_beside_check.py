"""Whether two sides of a bench compute the same: logits of one prompt, and answers that the model itself would give.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from specdec.attention import Span
from specdec.engine import Engine
from specdec.evals.bench_engine_check import MAX_DIFFERENCE, NUM_TOKENS

_MARGIN: Final = 4.0
"""How many times the limit of logits a token may lie below the highest: about as far as one of V differs more than
the mean."""


# Any, here and below: transformers ships no types that strict checking accepts.
@torch.inference_mode()
def difference_of_logits(engine: Engine, model: Any) -> tuple[float, str | None]:
    """Root mean square, to that of the logits, over one prompt; and what is wrong with it, or None.

    Uses the first blocks of the pool, which must be nobody's.
    """
    description = engine.describe()
    token_ids = [1 + 7 * i % (engine.tokenizer.vocab_size - 1) for i in range(NUM_TOKENS)]
    table = range(-(-NUM_TOKENS // description.block_size))
    own = engine.runner.forward([Span(token_ids, 0, table, num_logits=NUM_TOKENS)]).float()
    other = _logits(model, token_ids, NUM_TOKENS)
    difference = float((own - other).square().mean().sqrt() / other.square().mean().sqrt())
    limit = MAX_DIFFERENCE[description.dtype]
    # Written so that NaN is no difference that passes.
    if not difference <= limit:
        return difference, (
            f"logits differ from those of transformers by {difference:.2g} of their size; {limit:g} is the limit in "
            f"{description.dtype}"
        )
    return difference, None


@torch.inference_mode()
def fault_of_answers(model: Any, answered: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str | None:
    """Where a prompt's answer has a token that transformers' own logits, after all before it, make no near winner."""
    for prompt, answer in answered:
        logits = _logits(model, [*prompt, *answer[:-1]], len(answer))
        chosen = logits[torch.arange(len(answer)), torch.tensor(answer)]
        # Of each token, how far below the highest it lies.
        gaps = logits.amax(dim=1) - chosen
        dtype = str(model.dtype).removeprefix("torch.")
        limit = _MARGIN * MAX_DIFFERENCE[dtype] * float(logits.square().mean().sqrt())
        for position, gap in enumerate(gaps.tolist()):
            if not gap <= limit:
                return (
                    f"token {position} of an answer lies {gap:.3g} below the likeliest by transformers' logits; "
                    f"{limit:.3g} is the limit in {dtype}"
                )
    return None


def _logits(model: Any, token_ids: Sequence[int], num_logits: int) -> Tensor:
    """fp32 [num_logits, V]: of the last tokens."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=num_logits).logits[0]
    return logits.float()
