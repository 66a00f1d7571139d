"""Sample, written out: the specification of the kernel in sample.py, where its definition is, and the CPU path."""

from __future__ import annotations

import math

import torch

from specdec.kernels.gumbel import gumbel
from specdec.kernels.token_groups import MIN_TEMPERATURE
from specdec.kernels.token_mask import apply_token_mask_reference


def sample_reference(
    logits: torch.Tensor,
    keys: torch.Tensor,
    temperatures: torch.Tensor,
    output: torch.Tensor,
    *,
    num_token_ids: int,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
    mask_rows: torch.Tensor | None = None,
    mask_row_ids: torch.Tensor | None = None,
    is_constrained: torch.Tensor | None = None,
) -> None:
    """Arguments as in sample; one row at a time, with all noise, all of it sorted."""
    if mask_rows is not None and mask_row_ids is not None and is_constrained is not None:
        logits = logits.clone()
        constrained = (is_constrained & (temperatures >= 0.0)).nonzero().flatten()
        apply_token_mask_reference(logits, mask_rows, mask_row_ids[constrained], constrained)
    token_ids = torch.arange(num_token_ids, device=logits.device)
    for row in range(logits.shape[0]):
        temperature = float(temperatures[row])
        if temperature < 0.0:
            output[row] = 0
            continue
        shaped = logits[row, :num_token_ids].nan_to_num(-math.inf, math.inf, -math.inf)
        if temperature > 0.0:
            shaped = shaped / torch.tensor(max(temperature, MIN_TEMPERATURE), device=logits.device)
            kept = _kept(
                shaped,
                num_token_ids if top_k is None or int(top_k[row]) == 0 else int(top_k[row]),
                1.0 if top_p is None else float(top_p[row]),
                0.0 if min_p is None else float(min_p[row]),
            )
            noise = gumbel((int(keys[row, 0]), int(keys[row, 1])), token_ids)
            shaped = (shaped + noise).masked_fill(~kept, -math.inf)
        output[row] = shaped.argmax()


def _kept(shaped: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """bool [V], of shaped fp32 [V]."""
    values, order = shaped.sort(descending=True, stable=True)
    weights = (values.double() - values[0]).exp()
    is_kept = torch.arange(len(values), device=values.device) < top_k
    cumulative = (weights * is_kept).cumsum(dim=0)
    if top_p < 1.0:
        # The first token at which the sum reaches top_p is the last one kept.
        num_below = (cumulative < top_p * cumulative[-1]).sum()
        is_kept[num_below + 1 :] = False
    is_kept &= weights >= min_p
    return torch.zeros_like(is_kept).scatter_(0, order, is_kept)
