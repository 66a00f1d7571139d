"""BlockPool: block ids, reference counts and prefix hashes; allocation and nothing else.

A block is an id; its bytes are the arena's business (kv_cache.py). A block is *free* when no sequence refers to it.
A free block may still be *cached*: it keeps its prefix hash until it is allocated again, oldest first.

Invariants, for every state between two calls:
    num_free + (blocks with ref_count > 0) == num_blocks
    a hash maps to one block, and that block's block_hash is the hash
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ROOT_HASH = b""


@dataclass(slots=True)
class Block:
    """One block of the arena."""

    block_id: int
    ref_count: int = 0
    block_hash: bytes | None = None
    """Digest of the tokens up to this block's end, set once its target KV is written and verified."""
    draft_ready: bool = False
    """Whether the draft model's KV of all its tokens is written too."""


class BlockPool:
    """The one allocator for target and draft."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        # Insertion order is the order of reuse: the block freed longest ago goes first.
        self._free: dict[int, None] = dict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._enable_prefix_caching = enable_prefix_caching

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks with a prefix hash, in use or free."""
        return len(self._cached)

    def __getitem__(self, block_id: int) -> Block:
        return self._blocks[block_id]

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take blocks, each with one reference; None, and nothing taken, when too few are free."""
        if num_blocks > len(self._free):
            return None
        block_ids = []
        for _ in range(num_blocks):
            block_id = next(iter(self._free))
            del self._free[block_id]
            block = self._blocks[block_id]
            self._forget(block)
            block.ref_count = 1
            block_ids.append(block_id)
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each cached or used block."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop a reference to each block of a sequence's table.

        The table's tail is freed first, so that the blocks reused soonest are those deepest in a prefix, which the
        fewest later prompts can share.
        """
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} is released more often than it was taken"
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Make a full, verified block findable; a hash that another block already has is left with it."""
        if not self._enable_prefix_caching or block_hash in self._cached:
            return
        block = self._blocks[block_id]
        assert block.ref_count > 0, "a block is registered by a sequence that holds it"
        assert block.block_hash is None, "a registered block's tokens never change"
        block.block_hash = block_hash
        self._cached[block_hash] = block_id

    def match_prefix(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix; no reference is taken."""
        block_ids = []
        for block_hash in block_hashes:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def _forget(self, block: Block) -> None:
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = None
        block.draft_ready = False


def hash_block(parent_hash: bytes, token_ids: Sequence[int], *, salt: str = "", adapter_id: str = "") -> bytes:
    """SHA-256 over the parent's digest, the block's token ids and, in the first block, salt and adapter."""
    digest = hashlib.sha256(parent_hash)
    if parent_hash == ROOT_HASH:
        for part in (salt, adapter_id):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    digest.update(b"".join(token_id.to_bytes(4, "little") for token_id in token_ids))
    return digest.digest()
