"""Cuts: where top-k, top-p and min-p end the tokens of a row, as far as the best token of each group says.

An order is a logit's place among all fp32 numbers (token_groups.py). A token whose order is below a border found here
is certainly cut; of the others some may be.
"""

from __future__ import annotations

from typing import Final

from specdec.kernels.dispatch import TRITON_RUNS_HERE
from specdec.kernels.token_groups import GROUP

if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    from specdec.kernels.token_groups import ORDER_OF_NOTHING, order_of

    _GROUP: Final = tl.constexpr(GROUP)

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def cuts_of(  # type: ignore[no-untyped-def]  # noqa: ANN201  # pointers and constexprs have no Python types
        top_k_ptr,
        top_p_ptr,
        min_p_ptr,
        row,
        num_token_ids,
        HAS_TOP_K: tl.constexpr,
        HAS_TOP_P: tl.constexpr,
        HAS_MIN_P: tl.constexpr,
    ):
        """A row's top_k, at most num_token_ids, top_p and min_p, and whether any of them cuts."""
        top_k = tl.full((), 0, tl.int32) + num_token_ids
        if HAS_TOP_K:
            given = tl.load(top_k_ptr + row)
            top_k = tl.where((given == 0) | (given > num_token_ids), num_token_ids, given)
        top_p = tl.full((), 1.0, tl.float64)
        if HAS_TOP_P:
            top_p = tl.load(top_p_ptr + row)
        min_p = tl.full((), 0.0, tl.float64)
        if HAS_MIN_P:
            min_p = tl.load(min_p_ptr + row)
        return top_k, top_p, min_p, (top_k < num_token_ids) | (top_p < 1.0) | (min_p > 0.0)

    @triton.jit
    def least_of_top_k(order, top_k, ceiling):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """An order that top_k tops or more have or exceed, if there are as many; int64. So do as many tokens."""
        low = tl.full((), ORDER_OF_NOTHING + 1, tl.int64)
        high = ceiling
        while low < high:
            middle = (low + high + 1) >> 1
            count = tl.sum((order >= middle.to(tl.int32)).to(tl.int32), axis=0)
            low = tl.where(count >= top_k, middle, low)
            # Twice as many groups as needed are read faster than told apart.
            high = tl.where(count >= top_k, tl.where(count <= 2 * top_k, middle, high), middle - 1)
        return low

    @triton.jit
    def least_of_top_p(top, mass, maximum, top_p):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """An order such that the weights of the tokens at or above it certainly sum to top_p of all; int64.

        In steps of a quarter below the maximum. Of a group that reaches so far, at least its top does, and at most all
        others do not: they leave its mass less 31 times the weight at that place.
        """
        NUM_STEPS: tl.constexpr = 256
        weight = tl.exp(top - maximum)
        mass *= weight
        # What fp32 may be wrong by is far less.
        wanted = top_p * tl.sum(mass.to(tl.float64), axis=0) * 1.000244140625
        low = tl.full((), 0, tl.int32)
        high = low + NUM_STEPS
        while low < high:
            middle = (low + high) >> 1
            value = maximum - 0.25 * middle.to(tl.float32)
            others = (_GROUP - 1) * tl.exp(value - maximum)
            certain = tl.sum(tl.where(top >= value, tl.maximum(weight, mass - others), 0.0), axis=0)
            high = tl.where(certain >= wanted, middle, high)
            low = tl.where(certain >= wanted, low, middle + 1)
        least = order_of(maximum - 0.25 * low.to(tl.float32)).to(tl.int64)
        return tl.where(low < NUM_STEPS, least, ORDER_OF_NOTHING + 1)
