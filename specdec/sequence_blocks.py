"""SequenceBlocks: what a sequence holds of the pool: blocks taken for its tokens, shared by prefix, and given back."""

from __future__ import annotations

import math
from array import array

from specdec.block_pool import BlockPool
from specdec.faults import attributed_to
from specdec.sequence import Sequence


class SequenceBlocks:
    """Every change of a block table; the scheduler decides when."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size

    def num_lacking(self, sequence: Sequence, num_new_tokens: int) -> int:
        """Blocks that its table is short of for that many tokens after those computed."""
        needed = math.ceil((sequence.num_computed_tokens + num_new_tokens) / self._block_size)
        return max(0, needed - len(sequence.block_table))

    def reserve(self, sequence: Sequence, num_new_tokens: int) -> bool:
        """Extend the block table to hold that many tokens after those computed; False, and nothing, without blocks."""
        block_ids = self._pool.allocate(self.num_lacking(sequence, num_new_tokens))
        if block_ids is None:
            return False
        sequence.block_table.extend(block_ids)
        return True

    def fits(self, sequence: Sequence, num_new_tokens: int) -> bool:
        """Whether `reserve` would succeed."""
        return self.num_lacking(sequence, num_new_tokens) <= self._pool.num_free

    def attach_prefix(self, sequence: Sequence) -> None:
        """Take the cached blocks of the sequence's own prefix; the last token is always left to compute."""
        num_full_blocks = (sequence.num_tokens - 1) // self._block_size
        with attributed_to(sequence, "schedule"):
            hashes = sequence.hashes(num_full_blocks, self._block_size)
        block_ids = self._pool.match_prefix(hashes)
        self._pool.share(block_ids)
        sequence.block_table = array("i", block_ids)
        sequence.num_registered_blocks = len(block_ids)
        sequence.num_computed_tokens = len(block_ids) * self._block_size
        num_ready = 0
        while num_ready < len(block_ids) and self._pool[block_ids[num_ready]].draft_ready:
            num_ready += 1
        sequence.num_draft_ready_blocks = num_ready
        sequence.num_draft_computed_tokens = num_ready * self._block_size

    def register(self, sequence: Sequence) -> None:
        """Publish full blocks of verified tokens whose target KV is written, and flag those the draft wrote too."""
        num_full = sequence.num_computed_tokens // self._block_size
        if num_full > sequence.num_registered_blocks:
            with attributed_to(sequence, "commit"):
                hashes = sequence.hashes(num_full, self._block_size)
            for i in range(sequence.num_registered_blocks, num_full):
                self._pool.register(sequence.block_table[i], hashes[i])
            sequence.num_registered_blocks = num_full
        num_ready = sequence.num_draft_computed_tokens // self._block_size
        for i in range(sequence.num_draft_ready_blocks, num_ready):
            self._pool[sequence.block_table[i]].draft_ready = True
        sequence.num_draft_ready_blocks = max(sequence.num_draft_ready_blocks, num_ready)

    def trim(self, sequence: Sequence, num_ahead: int = 0) -> None:
        """Give back the blocks past the computed tokens and that many more.

        They were reserved for drafts that were not accepted, or ahead for nothing.
        """
        needed = math.ceil((sequence.num_computed_tokens + num_ahead) / self._block_size)
        if len(sequence.block_table) > needed:
            self._pool.release(sequence.block_table[needed:])
            del sequence.block_table[needed:]

    def drop(self, sequence: Sequence) -> None:
        """Give back all; what is findable of them stays so until it is reused."""
        self._pool.release(sequence.drop_blocks())
