"""The block pool against a naive model of it."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from specdec.block_pool import ROOT_HASH, BlockPool, hash_block

NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    """Tables of blocks, as sequences hold them."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tables = []
        self.hash_of = {}
        self.num_hashes = 0

    @rule(num_blocks=st.integers(0, 5))
    def allocate(self, num_blocks):
        num_free = self.pool.num_free
        block_ids = self.pool.allocate(num_blocks)
        if num_blocks > num_free:
            assert block_ids is None
            assert self.pool.num_free == num_free
            return
        held = {block_id for table in self.tables for block_id in table}
        assert len(set(block_ids)) == num_blocks
        assert not held & set(block_ids)
        for block_id in block_ids:
            self.hash_of.pop(block_id, None)
            assert not self.pool[block_id].draft_ready
        self.tables.append(block_ids)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def register(self, data):
        block_id = data.draw(st.sampled_from([b for table in self.tables for b in table]))
        if block_id in self.hash_of:
            return
        self.num_hashes += 1
        self.hash_of[block_id] = b"%d" % self.num_hashes
        self.pool.register(block_id, self.hash_of[block_id])
        self.pool[block_id].draft_ready = True

    @precondition(lambda self: self.hash_of)
    @rule(data=st.data())
    def match_and_share(self, data):
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.hash_of)), max_size=3, unique=True))
        found = self.pool.match_prefix(
            [*(self.hash_of[b] for b in chosen), b"unknown", self.hash_of[chosen[0]]] if chosen else []
        )
        assert found == chosen
        self.pool.share(found)
        self.tables.append(found)

    @invariant()
    def references_and_free_blocks_add_up(self):
        references = Counter(block_id for table in self.tables for block_id in table)
        assert all(self.pool[block_id].ref_count == references[block_id] for block_id in range(NUM_BLOCKS))
        assert self.pool.num_free == NUM_BLOCKS - len(references)
        assert self.pool.num_in_use == len(references)

    @invariant()
    def each_hash_finds_its_block(self):
        assert self.pool.num_cached == len(self.hash_of)
        for block_id, block_hash in self.hash_of.items():
            assert self.pool.match_prefix([block_hash]) == [block_id]


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_block_freed_longest_ago_is_reused_first():
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.release(second)
    pool.release(first)
    assert pool.allocate(4) == [second[1], second[0], first[1], first[0]]


def test_a_hash_covers_parent_tokens_salt_and_adapter():
    hashes = {
        hash_block(ROOT_HASH, [1, 2]),
        hash_block(ROOT_HASH, [2, 1]),
        hash_block(ROOT_HASH, [1, 2], salt="a"),
        hash_block(ROOT_HASH, [1, 2], adapter_id="a"),
        hash_block(ROOT_HASH, [1, 2], salt="a", adapter_id="b"),
        hash_block(ROOT_HASH, [1, 2], salt="ab"),
        hash_block(hash_block(ROOT_HASH, [1, 2]), [1, 2]),
    }
    assert len(hashes) == 7


def test_without_prefix_caching_nothing_is_found():
    pool = BlockPool(2, enable_prefix_caching=False)
    (block_id,) = pool.allocate(1)
    pool.register(block_id, b"hash")
    assert pool.match_prefix([b"hash"]) == []
