"""Sample: one token a row, by mask, temperature, top-k, top-p, min-p and keyed Gumbel noise; no softmax is stored.

    shaped[v] = logits[r, v] / temperature[r]            -inf where bit v of the row's mask is clear
    output[r] = argmax over the kept v of shaped[v] + gumbel(keys[r], v)         at temperature 0: of logits[r, v]

R rows, V vocabulary, of which ids below num_token_ids are tokens. With tokens in descending order of shaped, equal
ones in ascending order of id, and weights[v] = exp(shaped[v] - max shaped): top-k keeps the first top_k tokens;
top-p of these the first whose weights sum to top_p of all of theirs; min-p of these those with weights of min_p or
more. Ties of the maximum go to the lowest id. A NaN counts as -inf, and a row of nothing else gives id 0. So does a row
that is nobody's, with a temperature below 0, and its logits are not read.

The logits are read once. Of each 32 tokens that pass writes one number, what the best of them can come to: the highest
logit, or the highest sum with a bound of the noise where nothing is cut. Few groups can then hold the winner, or what
the cuts are decided by, and only these are read again. There the winner is drawn first, and asked afterwards whether
it is kept: what comes before it in the order above, by number and weight, says so. If not, what comes before it is
drawn from. Of the groups that stay unread, top-p needs the sum of weights: it is known to 2 ** -17, and where that
much decides a row is summed exactly. The noise, and the sums that noise is added to, have the same bits on every
device; of the weights' sums, in fp64, the order of summation shows in the last bits, which decide only where top_p
falls on a border within 1e-15.
"""

from __future__ import annotations

from typing import Final

import torch

from specdec.kernels.dispatch import TRITON_RUNS_HERE, runs_in_triton
from specdec.kernels.sample_reference import sample_reference
from specdec.kernels.token_groups import GROUP

_TILE_GROUPS: Final = 128
"""Groups that one program of the pass over all logits looks at."""


if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    from specdec.kernels.cuts import cuts_of, least_of_top_k, least_of_top_p
    from specdec.kernels.gumbel import gumbel_bound_of, gumbel_of, hash_of
    from specdec.kernels.token_groups import (
        CHUNK,
        ORDER_OF_NOTHING,
        chosen_tokens,
        kth_order,
        mass_before,
        order_of,
        raw_logits,
        row_of,
        shaped_from_above,
        shaped_logits,
        shaped_of,
        weight_of,
        weight_of_order,
        whole_mass,
    )

    _GROUP: Final = tl.constexpr(GROUP)
    _REST_ERROR: Final = tl.constexpr(2.0**-17)
    """More than the sum of the unread weights can be wrong by in fp32, relatively.

    Two exponentials are each wrong by 2 ** -22, and by 2 ** -23 for each unit of the argument: 40 units together, below
    which a weight is lost in the sum's last bits. Adding up 32 of them is wrong by less than 2 ** -21.
    """

    @triton.jit
    def _key_of(keys_ptr, row):  # type: ignore[no-untyped-def]
        return tl.load(keys_ptr + 2 * row).to(tl.uint32), tl.load(keys_ptr + 2 * row + 1).to(tl.uint32)

    @triton.jit  # type: ignore[untyped-decorator]
    def _summarise_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        keys_ptr,
        temperatures_ptr,
        top_k_ptr,
        top_p_ptr,
        min_p_ptr,
        mask_rows_ptr,
        mask_row_ids_ptr,
        is_constrained_ptr,
        top_ptr,
        mass_ptr,
        logits_row_stride,
        mask_row_stride,
        num_token_ids,
        num_words,
        num_groups,
        HAS_TOP_K: tl.constexpr,
        HAS_TOP_P: tl.constexpr,
        HAS_MIN_P: tl.constexpr,
        HAS_MASK: tl.constexpr,
        TILE_GROUPS: tl.constexpr,
    ):
        """One program reads one tile of one row and writes each group's top: what its best token can come to.

        For top-p over all tokens it also writes the sum of the group's weights, relative to its top.
        """
        row = tl.program_id(0).to(tl.int64)
        group = tl.program_id(1) * TILE_GROUPS + tl.arange(0, TILE_GROUPS)
        lane = tl.arange(0, _GROUP)
        source = row_of(
            logits_ptr,
            temperatures_ptr,
            mask_rows_ptr,
            mask_row_ids_ptr,
            is_constrained_ptr,
            logits_row_stride,
            mask_row_stride,
            num_token_ids,
            num_words,
            row,
            HAS_MASK,
        )
        top_k, top_p, _min_p, cuts = cuts_of(
            top_k_ptr, top_p_ptr, min_p_ptr, row, num_token_ids, HAS_TOP_K, HAS_TOP_P, HAS_MIN_P
        )
        logits = raw_logits(source, group[:, None], lane[None, :], HAS_MASK)
        top = tl.max(logits, axis=1)
        place = row * num_groups + group
        if source[2] > 0.0:
            if cuts:
                top = shaped_of(source, top)
                if HAS_TOP_P and (top_p < 1.0) & (top_k == num_token_ids):
                    shift = tl.where(top == float("-inf"), 0.0, top)
                    mass = tl.sum(tl.exp(shaped_of(source, logits) - shift[:, None]), axis=1)
                    tl.store(mass_ptr + place, mass, mask=group < num_groups)
            else:
                first_word, second_word = _key_of(keys_ptr, row)
                token_id = (group[:, None] * _GROUP + lane[None, :]).to(tl.uint32)
                bound = gumbel_bound_of(hash_of(first_word, second_word, token_id))
                top = tl.max(shaped_from_above(source, logits) + bound, axis=1)
        tl.store(top_ptr + place, top, mask=group < num_groups)

    @triton.jit  # type: ignore[untyped-decorator]
    def _choose_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        keys_ptr,
        temperatures_ptr,
        top_k_ptr,
        top_p_ptr,
        min_p_ptr,
        mask_rows_ptr,
        mask_row_ids_ptr,
        is_constrained_ptr,
        top_ptr,
        mass_ptr,
        chosen_ptr,
        num_chosen_ptr,
        maximum_ptr,
        least_ptr,
        rest_ptr,
        logits_row_stride,
        mask_row_stride,
        num_token_ids,
        num_words,
        num_groups,
        HAS_TOP_K: tl.constexpr,
        HAS_TOP_P: tl.constexpr,
        HAS_MIN_P: tl.constexpr,
        HAS_MASK: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One program lists the groups of one row that are to be read again, in ascending order.

        Where tokens are cut, these are all with a token ordered at `least` or above; they hold the border, or all that
        is kept if that is more than min-p leaves. `rest` is the sum of weights of all others.
        """
        row = tl.program_id(0).to(tl.int64)
        source = row_of(
            logits_ptr,
            temperatures_ptr,
            mask_rows_ptr,
            mask_row_ids_ptr,
            is_constrained_ptr,
            logits_row_stride,
            mask_row_stride,
            num_token_ids,
            num_words,
            row,
            HAS_MASK,
        )
        top_k, top_p, min_p, cuts = cuts_of(
            top_k_ptr, top_p_ptr, min_p_ptr, row, num_token_ids, HAS_TOP_K, HAS_TOP_P, HAS_MIN_P
        )
        group = tl.arange(0, TILE)
        top = tl.load(top_ptr + row * num_groups + group, mask=group < num_groups, other=float("-inf"))
        maximum = tl.max(top, axis=0)
        first = tl.min(tl.where(top == maximum, group, num_groups), axis=0)
        is_chosen = group == first
        if source[2] > 0.0:
            if cuts:
                # Without a finite maximum nothing is chosen, whatever comes of it.
                finite = tl.where(maximum == float("-inf"), 0.0, maximum)
                order = order_of(top)
                ceiling = order_of(finite).to(tl.int64)
                least = tl.full((), ORDER_OF_NOTHING + 1, tl.int64)
                if HAS_MIN_P and min_p > 0.0:
                    least = order_of((finite.to(tl.float64) + tl.log(min_p) - 1e-6).to(tl.float32)).to(tl.int64)
                if HAS_TOP_K and top_k < num_token_ids:
                    of_top_k = least_of_top_k(order, top_k, ceiling)
                    # Top-p counts the weights of all that top-k leaves, also of what min-p cuts.
                    least = tl.where(top_p < 1.0, of_top_k, tl.maximum(least, of_top_k))
                is_chosen = order >= least.to(tl.int32)
                if HAS_TOP_P and (top_p < 1.0) & (top_k == num_token_ids):
                    mass = tl.load(mass_ptr + row * num_groups + group, mask=group < num_groups, other=0.0)
                    least = tl.maximum(least, least_of_top_p(top, mass, finite, top_p))
                    is_chosen = order >= least.to(tl.int32)
                    unread = tl.where(is_chosen, 0.0, mass * tl.exp(top - finite))
                    tl.store(rest_ptr + row, tl.sum(unread.to(tl.float64), axis=0))
                tl.store(maximum_ptr + row, maximum)
                tl.store(least_ptr + row, least.to(tl.int32))
            else:
                # A group whose bound is below a sum that there is cannot win.
                lane = tl.arange(0, _GROUP)
                first_word, second_word = _key_of(keys_ptr, row)
                noise = gumbel_of(first_word, second_word, (first * _GROUP + lane).to(tl.uint32))
                best = tl.max(shaped_logits(source, first, lane, HAS_MASK) + noise, axis=0)
                is_chosen = top >= best
        is_chosen &= top > float("-inf")
        place = tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
        tl.store(chosen_ptr + row * num_groups + place, group, mask=is_chosen)
        tl.store(num_chosen_ptr + row, tl.sum(is_chosen.to(tl.int32), axis=0))

    @triton.jit  # type: ignore[untyped-decorator]
    def _draw_kernel(  # type: ignore[no-untyped-def]
        logits_ptr,
        keys_ptr,
        temperatures_ptr,
        top_k_ptr,
        top_p_ptr,
        min_p_ptr,
        mask_rows_ptr,
        mask_row_ids_ptr,
        is_constrained_ptr,
        chosen_ptr,
        num_chosen_ptr,
        maximum_ptr,
        least_ptr,
        rest_ptr,
        output_ptr,
        logits_row_stride,
        mask_row_stride,
        num_token_ids,
        num_words,
        num_groups,
        HAS_TOP_K: tl.constexpr,
        HAS_TOP_P: tl.constexpr,
        HAS_MIN_P: tl.constexpr,
        HAS_MASK: tl.constexpr,
    ):
        """One program draws from one row's chosen groups until what it draws is kept.

        A token is kept if fewer than top_k come before it, and if these do not already sum to what top-p asks for. If
        it is not, no token after it is: as it was drawn by its weight, half of what was left is gone then, on average.
        """
        row = tl.program_id(0).to(tl.int64)
        source = row_of(
            logits_ptr,
            temperatures_ptr,
            mask_rows_ptr,
            mask_row_ids_ptr,
            is_constrained_ptr,
            logits_row_stride,
            mask_row_stride,
            num_token_ids,
            num_words,
            row,
            HAS_MASK,
        )
        top_k, top_p, min_p, cuts = cuts_of(
            top_k_ptr, top_p_ptr, min_p_ptr, row, num_token_ids, HAS_TOP_K, HAS_TOP_P, HAS_MIN_P
        )
        temperature = source[2]
        chosen_ptr += row * num_groups
        num_chosen = tl.load(num_chosen_ptr + row)
        cuts = cuts & (temperature > 0.0) & (num_chosen > 0)
        maximum = tl.full((), 0.0, tl.float32)
        limit = tl.full((), ORDER_OF_NOTHING, tl.int32)
        total = tl.full((), 0.0, tl.float64)
        slack = total
        if cuts:
            maximum = tl.load(maximum_ptr + row)
            least = tl.load(least_ptr + row)
            limit = least - 1
            if HAS_TOP_P and top_p < 1.0:
                if top_k < num_token_ids:
                    # Of what top-k leaves.
                    count, total = mass_before(
                        source, chosen_ptr, num_chosen, maximum, least, num_token_ids, HAS_MASK, HAS_TOP_P
                    )
                    if count > top_k:
                        ceiling = order_of(maximum).to(tl.int64)
                        border = kth_order(
                            source, chosen_ptr, num_chosen, least.to(tl.int64), ceiling, count, top_k, HAS_MASK
                        ).to(tl.int32)
                        count, total = mass_before(
                            source, chosen_ptr, num_chosen, maximum, border, 0, HAS_MASK, HAS_TOP_P
                        )
                        total += (top_k - count) * weight_of_order(border, maximum)
                else:
                    count, total = mass_before(
                        source, chosen_ptr, num_chosen, maximum, ORDER_OF_NOTHING, 0, HAS_MASK, HAS_TOP_P
                    )
                    rest = tl.load(rest_ptr + row)
                    total += rest
                    slack = rest * _REST_ERROR

        best_id = tl.full((), 0, tl.int32)
        is_open = num_chosen > 0
        while is_open:
            # The winner of what comes before the last one, which was not kept, and hence nothing after it.
            limit_id = best_id
            best = tl.full((), float("-inf"), tl.float32)
            best_id = tl.full((), 0, tl.int32)
            best_order = limit
            for start in range(0, num_chosen * _GROUP, CHUNK):
                group, lane = chosen_tokens(chosen_ptr, num_chosen, num_token_ids, start)
                token_id = group * _GROUP + lane
                perturbed = shaped_logits(source, group, lane, HAS_MASK)
                order = order_of(perturbed)
                if cuts:
                    is_left = (order > limit) | ((order == limit) & (token_id < limit_id))
                    if HAS_MIN_P:
                        is_left &= weight_of(perturbed, maximum) >= min_p
                    perturbed = tl.where(is_left, perturbed, float("-inf"))
                if temperature > 0.0:
                    first_word, second_word = _key_of(keys_ptr, row)
                    perturbed += gumbel_of(first_word, second_word, token_id.to(tl.uint32))
                highest = tl.max(perturbed, axis=0)
                # Ids ascend from chunk to chunk: of equal ones the first stays.
                own_id = tl.min(tl.where(perturbed == highest, token_id, num_token_ids), axis=0)
                own_order = tl.max(tl.where(token_id == own_id, order, ORDER_OF_NOTHING), axis=0)
                is_better = highest > best
                best_id = tl.where(is_better, own_id, best_id)
                best_order = tl.where(is_better, own_order, best_order)
                best = tl.maximum(best, highest)
            limit = best_order
            is_open = num_chosen < 0
            if (HAS_TOP_K or HAS_TOP_P) and cuts & (best > float("-inf")):
                count, mass = mass_before(source, chosen_ptr, num_chosen, maximum, limit, best_id, HAS_MASK, HAS_TOP_P)
                is_open = count >= top_k
                if HAS_TOP_P and top_p < 1.0:
                    if (slack > 0.0) & (tl.abs(mass - top_p * total) <= slack):
                        total = whole_mass(source, maximum, HAS_MASK)
                        slack = slack * 0.0
                    # The first token is kept whatever it weighs.
                    is_open = is_open | ((mass >= top_p * total) & (count > 0))
        tl.store(output_ptr + row, best_id.to(tl.int64))


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
    mask_rows: torch.Tensor | None = None,
    mask_row_ids: torch.Tensor | None = None,
    is_constrained: torch.Tensor | None = None,
) -> None:
    """Draw one token a row into output; no id is num_token_ids or above.

    logits: [R, V] float32, finite or -inf, penalised, any stride from row to row; they stay as they are. keys: [R, 2]
    int64, the words of each row's noise key. temperatures: [R] float32, 0 for the highest logit, NOBODY of
    token_groups.py for a row that fills the batch up. output: [R] int64. top_k: [R] int32, 0 for all. top_p, min_p: [R]
    float64, 1 and 0 for all; None is all for every row. mask_rows: [N, W] int32 as in token_mask, any stride from row
    to row; mask_row_ids: [R] int64; is_constrained: [R] bool, where False every token is allowed and the row id counts
    for nothing. Either all three or none are given: None constrains no row. That ids are in range is the caller's to
    know. Raises ValueError for other shapes, dtypes, devices or strides.
    """
    _check(logits, num_token_ids, {"keys": keys}, torch.int64, 2)
    _check(logits, num_token_ids, {"temperatures": temperatures}, torch.float32)
    _check(logits, num_token_ids, {"output": output, "mask_row_ids": mask_row_ids}, torch.int64)
    _check(logits, num_token_ids, {"top_k": top_k}, torch.int32)
    _check(logits, num_token_ids, {"top_p": top_p, "min_p": min_p}, torch.float64)
    _check(logits, num_token_ids, {"is_constrained": is_constrained}, torch.bool)
    _check_mask(logits, mask_rows, mask_row_ids, is_constrained)
    num_rows = logits.shape[0]
    if num_rows == 0:
        return
    cuts = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    mask = {"mask_rows": mask_rows, "mask_row_ids": mask_row_ids, "is_constrained": is_constrained}
    if not runs_in_triton(logits):
        sample_reference(logits, keys, temperatures, output, num_token_ids=num_token_ids, **cuts, **mask)
        return
    num_groups = triton.cdiv(num_token_ids, GROUP)
    device = logits.device
    top, mass = (torch.empty(num_rows, num_groups, dtype=torch.float32, device=device) for _ in range(2))
    chosen = torch.empty(num_rows, num_groups, dtype=torch.int32, device=device)
    num_chosen, least = (torch.empty(num_rows, dtype=torch.int32, device=device) for _ in range(2))
    maximum = torch.empty(num_rows, dtype=torch.float32, device=device)
    rest = torch.empty(num_rows, dtype=torch.float64, device=device)
    row_arguments = (logits, keys, temperatures, *cuts.values(), *mask.values())
    sizes = (
        logits.stride(0),
        0 if mask_rows is None else mask_rows.stride(0),
        num_token_ids,
        0 if mask_rows is None else mask_rows.shape[1],
        num_groups,
    )
    options = {
        "HAS_TOP_K": top_k is not None,
        "HAS_TOP_P": top_p is not None,
        "HAS_MIN_P": min_p is not None,
        "HAS_MASK": mask_rows is not None,
        # A product fused with a sum would round once, and the noise would have other bits.
        "enable_fp_fusion": False,
    }
    tile = max(16, triton.next_power_of_2(num_groups))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _summarise_kernel[(num_rows, triton.cdiv(num_groups, _TILE_GROUPS))](
            *row_arguments, top, mass, *sizes, TILE_GROUPS=_TILE_GROUPS, num_warps=8, **options
        )
        _choose_kernel[(num_rows,)](
            *row_arguments,
            top,
            mass,
            chosen,
            num_chosen,
            maximum,
            least,
            rest,
            *sizes,
            TILE=tile,
            num_warps=min(32, max(4, tile // 1024)),
            **options,
        )
        _draw_kernel[(num_rows,)](
            *row_arguments, chosen, num_chosen, maximum, least, rest, output, *sizes, num_warps=8, **options
        )


def _check_mask(
    logits: torch.Tensor,
    mask_rows: torch.Tensor | None,
    mask_row_ids: torch.Tensor | None,
    is_constrained: torch.Tensor | None,
) -> None:
    given = [tensor is not None for tensor in (mask_rows, mask_row_ids, is_constrained)]
    if any(given) != all(given):
        raise ValueError("mask_rows, mask_row_ids and is_constrained go together: give all of them or none")
    if mask_rows is None:
        return
    if mask_rows.ndim != 2 or mask_rows.dtype != torch.int32 or (mask_rows.shape[1] > 1 and mask_rows.stride(1) != 1):
        raise ValueError(
            f"mask_rows must be [N, W] int32, contiguous along the last axis; "
            f"they are {list(mask_rows.shape)} {mask_rows.dtype}, strides {mask_rows.stride()}"
        )
    if mask_rows.device != logits.device:
        raise ValueError(f"mask_rows are on {mask_rows.device}, logits on {logits.device}; they must be on one device")


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
