"""Token groups: rows of logits by 32 tokens each, which are one word of a mask row and one line of a cache.

What `sample` reads of a row once it knows which groups matter. A row is a tuple of pointers and numbers, `row_of`; an
order is a logit's place among all fp32 numbers, an integer.
"""

from __future__ import annotations

from typing import Final

from specdec.kernels.dispatch import TRITON_RUNS_HERE

GROUP: Final = 32
"""Tokens in a group."""
MIN_TEMPERATURE: Final = 1e-30
"""Logits over less could overflow. So little already leaves nothing but the highest logits, and lots among equals."""
NOBODY: Final = -1.0
"""The temperature of a row that fills a batch up: it has no tokens, so that none of its logits is read."""

if TRITON_RUNS_HERE:
    import triton
    import triton.language as tl

    _GROUP: Final = tl.constexpr(GROUP)
    _LEAST_DIVISOR: Final = tl.constexpr(MIN_TEMPERATURE)
    _ABOVE: Final = tl.constexpr(1.0 + 2.0**-20)
    _BELOW: Final = tl.constexpr(1.0 - 2.0**-20)
    ORDER_OF_NOTHING: Final = tl.constexpr(-(2**31) + 2**23 - 1)
    """The order of -inf: what is kept is above it."""
    CHUNK: Final = tl.constexpr(1024)
    """Logits that a pass over chosen groups looks at in one go."""
    NUM_BORDERS: Final = tl.constexpr(8)
    """Orders that a pass tries at once: a search over 32 bits takes 11 passes at most, and mostly 3."""

    @triton.jit  # type: ignore[untyped-decorator]  # triton ships no types
    def row_of(  # type: ignore[no-untyped-def]  # noqa: ANN201  # pointers have no Python types
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
        HAS_MASK: tl.constexpr,
    ):
        """Where one row's logits, temperature and mask are, and how many tokens it has: none if it is nobody's."""
        mask_ptr = logits_ptr
        is_constrained = row < 0
        if HAS_MASK:
            mask_ptr = mask_rows_ptr + tl.load(mask_row_ids_ptr + row).to(tl.int64) * mask_row_stride
            is_constrained = tl.load(is_constrained_ptr + row) != 0
        temperature = tl.load(temperatures_ptr + row)
        own_tokens = tl.where(temperature < 0.0, 0, num_token_ids)
        return logits_ptr + row * logits_row_stride, mask_ptr, temperature, is_constrained, own_tokens, num_words

    @triton.jit  # type: ignore[untyped-decorator]
    def raw_logits(source, group, lane, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Logits, fp32: -inf for NaN and where there is no token or a forbidden one."""
        logits_ptr, mask_ptr, _temperature, is_constrained, num_token_ids, num_words = source
        token_id = group * _GROUP + lane
        is_allowed = token_id < num_token_ids
        if HAS_MASK:
            # Of an unconstrained row no word is read; nothing beyond a mask's words is allowed.
            word = tl.load(mask_ptr + group, mask=is_constrained & (group < num_words), other=0)
            is_allowed &= (((word >> lane) & 1) != 0) | (is_constrained == 0)
        logits = tl.load(logits_ptr + token_id, mask=is_allowed, other=float("-inf"))
        return tl.where(logits == logits, logits, float("-inf"))  # noqa: PLR0124  # a NaN is not itself

    @triton.jit
    def divisor_of(source):  # type: ignore[no-untyped-def]  # noqa: ANN201
        temperature = source[2]
        return tl.where(temperature == 0.0, 1.0, tl.maximum(temperature, _LEAST_DIVISOR))

    @triton.jit
    def shaped_of(source, logits):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Raw logits over the temperature, with one zero. It keeps their order: the highest stays the highest."""
        shaped = tl.div_rn(logits, tl.zeros_like(logits) + divisor_of(source))
        return tl.where(shaped == 0.0, 0.0, shaped)

    @triton.jit
    def shaped_from_above(source, logits):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """No less than `shaped_of`, by a product: a quotient that is rounded takes three times as many instructions.

        The inverse, which may be wrong by 2 ** -22, is moved by more than that in the direction that a logit's sign
        asks for; rounding keeps the order of what is rounded.
        """
        inverse = 1.0 / divisor_of(source)
        return logits * tl.where(logits > 0.0, inverse * _ABOVE, inverse * _BELOW)

    @triton.jit  # type: ignore[untyped-decorator]
    def shaped_logits(source, group, lane, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Logits over the temperature, fp32: -inf for NaN and where there is no token or a forbidden one; one zero."""
        return shaped_of(source, raw_logits(source, group, lane, HAS_MASK))

    @triton.jit
    def order_of(value):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """fp32 to int32, in the same order."""
        bits = value.to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    @triton.jit
    def weight_of(value, maximum):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """fp64; `maximum` is finite."""
        return tl.exp(value.to(tl.float64) - maximum.to(tl.float64))

    @triton.jit
    def weight_of_order(order, maximum):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """The weight of what has this order, of int64."""
        bits = order.to(tl.int32)
        return weight_of((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True), maximum)

    @triton.jit
    def chosen_tokens(chosen_ptr, num_chosen, num_token_ids, start):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Groups and lanes of a chunk of the chosen groups' tokens, from `start` on, ids ascending."""
        place = start + tl.arange(0, CHUNK)
        beyond = (num_token_ids + _GROUP - 1) // _GROUP
        group = tl.load(chosen_ptr + place // _GROUP, mask=place < num_chosen * _GROUP, other=beyond)
        return group, place % _GROUP

    @triton.jit  # type: ignore[untyped-decorator]
    def mass_before(  # type: ignore[no-untyped-def]  # noqa: ANN201
        source,
        chosen_ptr,
        num_chosen,
        maximum,
        order,
        token_id,
        HAS_MASK: tl.constexpr,
        WITH_MASS: tl.constexpr,
    ):
        """How many of the chosen groups' tokens have a higher order, or this one and a lower id; their weights."""
        count = tl.zeros((CHUNK,), tl.int32)
        mass = tl.zeros((CHUNK,), tl.float64)
        for start in range(0, num_chosen * _GROUP, CHUNK):
            group, lane = chosen_tokens(chosen_ptr, num_chosen, source[4], start)
            shaped = shaped_logits(source, group, lane, HAS_MASK)
            own = order_of(shaped)
            is_before = (own > order) | ((own == order) & (group * _GROUP + lane < token_id))
            count += is_before.to(tl.int32)
            if WITH_MASS:
                mass += tl.where(is_before, weight_of(shaped, maximum), 0.0)
        return tl.sum(count, axis=0), tl.sum(mass, axis=0)

    @triton.jit  # type: ignore[untyped-decorator]
    def counts_above(source, chosen_ptr, num_chosen, borders, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """How many of the chosen groups' tokens are ordered at each border or above."""
        counts = tl.zeros((NUM_BORDERS,), tl.int32)
        for start in range(0, num_chosen * _GROUP, CHUNK):
            group, lane = chosen_tokens(chosen_ptr, num_chosen, source[4], start)
            order = order_of(shaped_logits(source, group, lane, HAS_MASK))
            counts += tl.sum((order[:, None] >= borders[None, :]).to(tl.int32), axis=0)
        return counts

    @triton.jit  # type: ignore[untyped-decorator]
    def highest_order(source, chosen_ptr, num_chosen, limit, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """The highest order at `limit` or below among the chosen groups' tokens; int64."""
        highest = tl.full((CHUNK,), ORDER_OF_NOTHING, tl.int64)
        for start in range(0, num_chosen * _GROUP, CHUNK):
            group, lane = chosen_tokens(chosen_ptr, num_chosen, source[4], start)
            order = order_of(shaped_logits(source, group, lane, HAS_MASK)).to(tl.int64)
            highest = tl.maximum(highest, tl.where(order <= limit, order, highest))
        return tl.max(highest, axis=0)

    @triton.jit  # type: ignore[untyped-decorator]
    def kth_order(source, chosen_ptr, num_chosen, low, high, count_low, k, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """The order of the k-th highest of the chosen groups' tokens; int64.

        From `low`, where count_low tokens, k or more, come to it, to `high`, the highest order of all. Ends as soon as
        one token is left between the two.
        """
        count_high = count_low * 0
        while (low < high) & (count_low - count_high > 1):
            step = (high - low + NUM_BORDERS - 1) // NUM_BORDERS
            borders = tl.minimum(low + step * (1 + tl.arange(0, NUM_BORDERS)), high).to(tl.int32)
            counts = counts_above(source, chosen_ptr, num_chosen, borders, HAS_MASK)
            reached = counts >= k
            num_reached = tl.sum(reached.to(tl.int32), axis=0)
            count_low = tl.min(tl.where(reached, counts, count_low), axis=0)
            count_high = tl.max(tl.where(reached, count_high, counts), axis=0)
            next_low = tl.minimum(low + num_reached * step, high)
            high = tl.minimum(high, low + (num_reached + 1) * step - 1)
            low = next_low
        if low < high:
            low = highest_order(source, chosen_ptr, num_chosen, high, HAS_MASK)
        return low

    @triton.jit  # type: ignore[untyped-decorator]
    def whole_mass(source, maximum, HAS_MASK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """The sum of all of the row's weights."""
        mass = tl.zeros((CHUNK,), tl.float64)
        for start in range(0, source[4], CHUNK):
            token_id = start + tl.arange(0, CHUNK)
            shaped = shaped_logits(source, token_id // _GROUP, token_id % _GROUP, HAS_MASK)
            mass += weight_of(shaped, maximum)
        return tl.sum(mass, axis=0)
