"""Sample: one token a row, by temperature, top-k, top-p, min-p and keyed Gumbel noise; no softmax is stored.

    shaped[v] = logits[r, v] / temperature[r]
    output[r] = argmax over the kept v of shaped[v] + gumbel(keys[r], v)         at temperature 0: of logits[r, v]

R rows, V vocabulary, of which ids below num_token_ids are tokens. With tokens in descending order of shaped, equal
ones in ascending order of id, and weights[v] = exp(shaped[v] - max shaped): top-k keeps the first top_k tokens;
top-p of these the first whose weights sum to top_p of all of theirs; min-p of these those with weights of min_p or
more. Ties of the maximum go to the lowest id. A NaN counts as -inf, and a row of nothing else gives id 0.

What is kept is everything before a border in that order. The border is found without sorting, by bisection over the
32 bits of its logit: each step is a pass of count or sum over the row. Rows that keep everything are spared it. The
noise, and the sums that noise is added to, have the same bits on every device; of the weights' sums, in fp64, the
order of summation shows in the last bits, which decide only where top_p falls on a border within 1e-15.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.gumbel import gumbel

_MIN_TEMPERATURE: Final = 1e-30
"""Logits over less could overflow. So little already leaves nothing but the highest logits, and lots among equals."""
_TILE: Final = 4096
"""Logits that one Triton program looks at in one go."""


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
) -> None:
    """The specification, and the CPU path; arguments as in sample."""
    token_ids = torch.arange(num_token_ids, device=logits.device)
    for row in range(logits.shape[0]):
        shaped = logits[row, :num_token_ids].nan_to_num(-math.inf, math.inf, -math.inf)
        temperature = float(temperatures[row])
        if temperature > 0.0:
            shaped = shaped / torch.tensor(max(temperature, _MIN_TEMPERATURE), device=logits.device)
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


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    from specdec.kernels.gumbel import gumbel_of

    _LEAST_DIVISOR: Final = tl.constexpr(_MIN_TEMPERATURE)

    @triton.jit
    def _shaped(logits_ptr, temperature, token_id, num_token_ids):  # type: ignore[no-untyped-def]
        """A tile of a row over its temperature, -inf beyond the tokens; of the two zeros one is left."""
        logits = tl.load(logits_ptr + token_id, mask=token_id < num_token_ids, other=float("-inf"))
        logits = tl.where(logits == logits, logits, float("-inf"))  # noqa: PLR0124  # a NaN is not itself
        divisor = tl.where(temperature == 0.0, 1.0, tl.maximum(temperature, _LEAST_DIVISOR))
        shaped = tl.div_rn(logits, tl.zeros_like(logits) + divisor)
        return tl.where(shaped == 0.0, 0.0, shaped)

    @triton.jit
    def _order(value):  # type: ignore[no-untyped-def]
        """fp32 to int32, in the same order."""
        bits = value.to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    @triton.jit
    def _weight(value, maximum):  # type: ignore[no-untyped-def]
        """fp64; `maximum` is finite."""
        return tl.exp(value.to(tl.float64) - maximum.to(tl.float64))

    @triton.jit  # type: ignore[untyped-decorator]
    def _above(logits_ptr, temperature, num_token_ids, maximum, border, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
        """How many of a row's tokens are ordered at `border` or above, and the sum of their weights."""
        count = tl.zeros((TILE,), tl.int32)
        mass = tl.zeros((TILE,), tl.float64)
        for start in range(0, num_token_ids, TILE):
            token_id = start + tl.arange(0, TILE)
            shaped = _shaped(logits_ptr, temperature, token_id, num_token_ids)
            is_above = (token_id < num_token_ids) & (_order(shaped) >= border)
            count += is_above.to(tl.int32)
            mass += tl.where(is_above, _weight(shaped, maximum), 0.0)
        return tl.sum(count, axis=0), tl.sum(mass, axis=0)

    @triton.jit  # type: ignore[untyped-decorator]
    def _border_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        temperatures_ptr,
        top_k_ptr,
        top_p_ptr,
        min_p_ptr,
        border_ptr,
        border_id_ptr,
        logits_row_stride,
        num_token_ids,
        HAS_TOP_K: tl.constexpr,
        HAS_TOP_P: tl.constexpr,
        HAS_MIN_P: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program finds one row's border: the lowest kept place in the order of logits, and its last kept id."""
        LOWEST: tl.constexpr = -(2**31)
        row = tl.program_id(0).to(tl.int64)
        logits_ptr += row * logits_row_stride
        temperature = tl.load(temperatures_ptr + row)
        num_all = tl.full((), 0, tl.int32) + num_token_ids
        top_k = num_all
        if HAS_TOP_K:
            top_k = tl.load(top_k_ptr + row)
            top_k = tl.where((top_k == 0) | (top_k > num_all), num_all, top_k)
        top_p = tl.full((), 1.0, tl.float64)
        if HAS_TOP_P:
            top_p = tl.load(top_p_ptr + row)
        min_p = tl.full((), 0.0, tl.float64)
        if HAS_MIN_P:
            min_p = tl.load(min_p_ptr + row)
        # Kept is what is ordered above the border, and at the border the first num_ties ids.
        border = tl.full((), LOWEST, tl.int64)
        num_ties = num_all
        if (temperature > 0.0) & ((top_k < num_token_ids) | (top_p < 1.0) | (min_p > 0.0)):
            highest = tl.full((TILE,), float("-inf"), tl.float32)
            for start in range(0, num_token_ids, TILE):
                token_id = start + tl.arange(0, TILE)
                highest = tl.maximum(highest, _shaped(logits_ptr, temperature, token_id, num_token_ids))
            maximum = tl.max(highest, axis=0)
            maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
            ceiling = _order(maximum).to(tl.int64)

            if top_k < num_token_ids:
                high = ceiling
                while border < high:
                    middle = (border + high + 1) >> 1
                    count, mass = _above(logits_ptr, temperature, num_token_ids, maximum, middle.to(tl.int32), TILE)
                    border = tl.where(count >= top_k, middle, border)
                    high = tl.where(count >= top_k, high, middle - 1)
                count, mass = _above(logits_ptr, temperature, num_token_ids, maximum, (border + 1).to(tl.int32), TILE)
                num_ties = top_k - count

            if top_p < 1.0:
                count, mass = _above(logits_ptr, temperature, num_token_ids, maximum, (border + 1).to(tl.int32), TILE)
                border_weight = _weight(_value(border), maximum)
                wanted = top_p * (mass + tl.where(border_weight > 0.0, num_ties * border_weight, 0.0))
                if mass >= wanted:
                    # What is above top-k's border suffices: all of its own ties are kept, if no top-p cut them.
                    high = ceiling
                    border += 1
                    while border < high:
                        middle = (border + high + 1) >> 1
                        count, mass = _above(logits_ptr, temperature, num_token_ids, maximum, middle.to(tl.int32), TILE)
                        border = tl.where(mass >= wanted, middle, border)
                        high = tl.where(mass >= wanted, high, middle - 1)
                    count, mass = _above(
                        logits_ptr, temperature, num_token_ids, maximum, (border + 1).to(tl.int32), TILE
                    )
                    num_ties = num_all
                    border_weight = _weight(_value(border), maximum)
                # The fewest ties with which the sum reaches what is wanted.
                if border_weight > 0.0:
                    needed = tl.ceil((wanted - mass) / border_weight)
                    needed += tl.where(mass + needed * border_weight < wanted, 1.0, 0.0)
                    needed -= tl.where(mass + (needed - 1.0) * border_weight >= wanted, 1.0, 0.0)
                    needed = tl.minimum(tl.maximum(needed, 1.0), num_all * 1.0)
                    num_ties = tl.minimum(num_ties, needed.to(tl.int32))

            if min_p > 0.0:
                low = tl.full((), LOWEST, tl.int64)
                high = ceiling
                while low < high:
                    middle = (low + high) >> 1
                    suffices = _weight(_value(middle), maximum) >= min_p
                    high = tl.where(suffices, middle, high)
                    low = tl.where(suffices, low, middle + 1)
                if low > border:
                    border = low
                    num_ties = num_all

        border_id = num_all
        if num_ties < num_token_ids:
            num_seen = num_all * 0
            for start in range(0, num_token_ids, TILE):
                token_id = start + tl.arange(0, TILE)
                shaped = _shaped(logits_ptr, temperature, token_id, num_token_ids)
                is_tie = ((token_id < num_token_ids) & (_order(shaped) == border.to(tl.int32))).to(tl.int32)
                rank = num_seen + tl.cumsum(is_tie, axis=0)
                own = tl.where((is_tie == 1) & (rank == num_ties), token_id, num_token_ids)
                border_id = tl.minimum(border_id, tl.min(own, axis=0))
                num_seen += tl.sum(is_tie, axis=0)
        tl.store(border_ptr + row, border.to(tl.int32))
        tl.store(border_id_ptr + row, border_id)

    @triton.jit
    def _value(order):  # type: ignore[no-untyped-def]
        """What is ordered so, of int64; a place of NaNs, below -inf, has -inf."""
        bits = order.to(tl.int32)
        value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        return tl.where(value == value, value, float("-inf"))  # noqa: PLR0124

    @triton.jit  # type: ignore[untyped-decorator]
    def _draw_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        keys_ptr,
        temperatures_ptr,
        border_ptr,
        border_id_ptr,
        best_ptr,
        best_id_ptr,
        logits_row_stride,
        num_token_ids,
        HAS_BORDER: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program draws from one tile of one row."""
        row = tl.program_id(0).to(tl.int64)
        tile = tl.program_id(1)
        token_id = tile * TILE + tl.arange(0, TILE)
        temperature = tl.load(temperatures_ptr + row)
        perturbed = _shaped(logits_ptr + row * logits_row_stride, temperature, token_id, num_token_ids)
        if temperature > 0.0:
            if HAS_BORDER:
                border = tl.load(border_ptr + row)
                border_id = tl.load(border_id_ptr + row)
                order = _order(perturbed)
                kept = (order > border) | ((order == border) & (token_id <= border_id))
                perturbed = tl.where(kept, perturbed, float("-inf"))
            first, second = tl.load(keys_ptr + 2 * row).to(tl.uint32), tl.load(keys_ptr + 2 * row + 1).to(tl.uint32)
            perturbed += gumbel_of(first, second, token_id.to(tl.uint32))
        best = tl.max(perturbed, axis=0)
        best_id = tl.min(tl.where(perturbed == best, token_id, num_token_ids), axis=0)
        place = row * tl.num_programs(1) + tile
        tl.store(best_ptr + place, best)
        tl.store(best_id_ptr + place, best_id)

    @triton.jit  # type: ignore[untyped-decorator]
    def _best_kernel(best_ptr, best_id_ptr, output_ptr, num_tiles, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
        """One program takes the best of one row's tiles."""
        row = tl.program_id(0).to(tl.int64)
        tile = tl.arange(0, TILE)
        inside = tile < num_tiles
        best = tl.load(best_ptr + row * num_tiles + tile, mask=inside, other=float("-inf"))
        best_id = tl.load(best_id_ptr + row * num_tiles + tile, mask=inside, other=2**31 - 1)
        tl.store(output_ptr + row, tl.min(tl.where(best == tl.max(best, axis=0), best_id, 2**31 - 1), axis=0))


def sample(
    logits: torch.Tensor,
    keys: torch.Tensor,
    temperatures: torch.Tensor,
    output: torch.Tensor,
    *,
    num_token_ids: int,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
) -> None:
    """Draw one token a row into output; no id is num_token_ids or above.

    logits: [R, V] float32, finite or -inf, masked and penalised, any stride from row to row. keys: [R, 2] int64, the
    words of each row's noise key. temperatures: [R] float32, 0 for the highest logit. output: [R] int64. top_k: [R]
    int32, 0 for all. top_p, min_p: [R] float64, 1 and 0 for all; None is all for every row. Raises ValueError for
    other shapes, dtypes, devices or strides.
    """
    _check(logits, num_token_ids, {"keys": keys}, torch.int64, 2)
    _check(logits, num_token_ids, {"temperatures": temperatures}, torch.float32)
    _check(logits, num_token_ids, {"output": output}, torch.int64)
    _check(logits, num_token_ids, {"top_k": top_k}, torch.int32)
    _check(logits, num_token_ids, {"top_p": top_p, "min_p": min_p}, torch.float64)
    num_rows = logits.shape[0]
    if num_rows == 0:
        return
    if not runs_in_triton(logits):
        sample_reference(
            logits, keys, temperatures, output, num_token_ids=num_token_ids, top_k=top_k, top_p=top_p, min_p=min_p
        )
        return
    num_tiles = triton.cdiv(num_token_ids, _TILE)
    best = torch.empty(num_rows, num_tiles, dtype=torch.float32, device=logits.device)
    best_id, border, border_id = (
        torch.empty(size, dtype=torch.int32, device=logits.device)
        for size in (num_rows * num_tiles, num_rows, num_rows)
    )
    has_border = not (top_k is None and top_p is None and min_p is None)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if has_border:
            _border_kernel[(num_rows,)](
                logits,
                temperatures,
                top_k,
                top_p,
                min_p,
                border,
                border_id,
                logits.stride(0),
                num_token_ids,
                HAS_TOP_K=top_k is not None,
                HAS_TOP_P=top_p is not None,
                HAS_MIN_P=min_p is not None,
                TILE=_TILE,
                num_warps=8,
            )
        _draw_kernel[(num_rows, num_tiles)](
            logits,
            keys,
            temperatures,
            border,
            border_id,
            best,
            best_id,
            logits.stride(0),
            num_token_ids,
            HAS_BORDER=has_border,
            TILE=_TILE,
            num_warps=8,
            # A product fused with a sum would round once, and the noise would have other bits.
            enable_fp_fusion=False,
        )
        _best_kernel[(num_rows,)](best, best_id, output, num_tiles, TILE=triton.next_power_of_2(num_tiles))


def _check(
    logits: torch.Tensor,
    num_token_ids: int,
    tensors: dict[str, torch.Tensor | None],
    dtype: torch.dtype,
    num_columns: int | None = None,
) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits must be [R, V] float32; they are {list(logits.shape)} {logits.dtype}")
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits must be contiguous along the last axis; their strides are {logits.stride()}")
    if not 1 <= num_token_ids <= logits.shape[1]:
        raise ValueError(f"num_token_ids is {num_token_ids}; it must be between 1 and {logits.shape[1]}, the logits'")
    shape = [logits.shape[0]] if num_columns is None else [logits.shape[0], num_columns]
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if list(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} must be {shape} {dtype}; it is {list(tensor.shape)} {tensor.dtype}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, logits on {logits.device}; they must be on one device")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
