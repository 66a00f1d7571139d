"""A check at start that `exact` holds on this host: a token's logits do not depend on what is computed beside it.

Forms that a library computes rely on its choosing the order of summation by shape alone. That is how the known ones
work, not what they promise; so the promise is tested here, on the model's own shapes, before it is given.
"""

from __future__ import annotations

import torch

from specdec.attention import Span
from specdec.errors import ConfigError
from specdec.model_runner import ModelRunner

_NUM_TOKENS = 37
"""More than two tiles of rows, and no multiple of one."""
_CHUNKS = (1, 5, 16, 2, 13)


def check_row_invariance(runner: ModelRunner, *, num_blocks: int, block_size: int, max_model_len: int) -> None:
    """Compare a prompt in one eager go with the same prompt in chunks, each beside other tokens, bit for bit.

    Writes to the first blocks of the pool, before any sequence has them. Raises ConfigError where the bits differ.
    """
    num_tokens = min(_NUM_TOKENS, num_blocks * block_size // 2, max_model_len)
    blocks_each = -(-num_tokens // block_size)
    own = list(range(blocks_each))
    other = list(range(blocks_each, min(2 * blocks_each, num_blocks)))
    vocab_size = runner.model.config.vocab_size
    token_ids = [(7919 * i + 11) % vocab_size for i in range(num_tokens)]
    whole = runner.forward_eagerly([Span(token_ids, 0, own, num_logits=num_tokens)])
    pieces = []
    start = 0
    for chunk in _CHUNKS:
        end = min(start + chunk, num_tokens)
        if end == start:
            break
        beside = Span(token_ids[: min(3, len(other) * block_size)], 0, other, num_logits=0)
        span = Span(token_ids[start:end], start, own, num_logits=end - start)
        pieces.append(runner.forward([beside, span] if other and chunk % 2 else [span]))
        start = end
    if not torch.equal(torch.cat(pieces), whole[:start]):
        is_cpu = runner.device.type == "cpu"
        place, otherwise = (
            ("host", "another --dtype or thread count") if is_cpu else ("device", "another --dtype or device")
        )
        if runner.num_graphs:
            place, otherwise = "device under capture", "--enforce-eager"
        threads = f", {torch.get_num_threads()} threads" if is_cpu else ""
        raise ConfigError(
            f"exact arithmetic was asked for, but the math library of this {place} gives a row other bits in another "
            f"batch ({runner.model.dtype}{threads}); use {otherwise}, or leave --exact off",
            flag="--exact",
        )
