"""The blocks of layer after layer lie in one place, which grows to what the largest group needs and no further."""

import torch

from specdec import Engine, EngineConfig, SamplingParams
from specdec.gather_buffer import GatherBuffer
from specdec.row_attention import RowAttention


def pool_of(num_blocks: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Strided by whole blocks, as the arena's views are."""
    return torch.randn(num_blocks, 2, 16, 3, 8).to(dtype)[:, 1]


def test_what_is_gathered_is_what_index_select_gives() -> None:
    buffer = GatherBuffer()
    for dtype in (torch.float32, torch.bfloat16):
        pool = pool_of(40, dtype)
        for num_blocks in (1, 17, 40, 3):
            block_ids = torch.randint(0, 40, (num_blocks,))
            assert torch.equal(buffer.gather(pool, block_ids), pool.index_select(0, block_ids))


def test_one_place_serves_groups_of_every_size() -> None:
    buffer = GatherBuffer()
    pool = pool_of(64)
    largest = buffer.gather(pool, torch.arange(64))
    place, num_bytes = largest.data_ptr(), buffer.num_bytes
    for num_blocks in (1, 5, 63, 64, 2):
        assert buffer.gather(pool, torch.arange(num_blocks)).data_ptr() == place
    assert buffer.num_bytes == num_bytes >= largest.nbytes


def test_more_than_it_may_keep_is_kept_by_nobody() -> None:
    buffer = GatherBuffer()
    pool = torch.zeros(1, 1024, 16, 64)
    kept = buffer.gather(pool, torch.zeros(2, dtype=torch.int64))
    num_bytes = buffer.num_bytes
    huge = buffer.gather(pool, torch.zeros(17, dtype=torch.int64))
    assert huge.nbytes == 17 * 4 * 2**20
    assert huge.data_ptr() != kept.data_ptr()
    assert buffer.num_bytes == num_bytes


def test_what_is_reserved_serves_every_group_that_fits() -> None:
    buffer = GatherBuffer()
    pool = pool_of(64)
    buffer.reserve(64 * pool[0].nbytes, pool.device)
    num_bytes = buffer.num_bytes
    places = {buffer.gather(pool, torch.arange(num_blocks)).data_ptr() for num_blocks in (1, 64, 7)}
    assert len(places) == 1
    assert buffer.num_bytes == num_bytes >= 64 * pool[0].nbytes


def test_no_more_is_reserved_than_is_kept() -> None:
    buffer = GatherBuffer()
    buffer.reserve(2**40, torch.device("cpu"))
    assert buffer.num_bytes == 64 * 2**20


def test_an_engine_has_what_its_sequences_gather_from_the_start(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(RowAttention, "runs_here", staticmethod(lambda: False))
    reserved = []
    reserve = GatherBuffer.reserve

    def watched(buffer: GatherBuffer, num_bytes: int, device: torch.device) -> None:
        reserve(buffer, num_bytes, device)
        reserved.append((buffer, num_bytes))

    monkeypatch.setattr(GatherBuffer, "reserve", watched)
    sizes = {"max_model_len": 256, "num_kv_blocks": 8192, "max_num_seqs": 512}
    config = EngineConfig(model=str(tiny_model_folder), num_compile_workers=0, **sizes)
    engine = Engine(config)
    pool = engine.runner.model.kv_shape
    block_bytes = config.block_size * pool.num_kv_heads * pool.head_size * pool.dtype.itemsize
    # 512 sequences of 256 tokens, in blocks of 16: one place for keys and one for values.
    assert [num_bytes for _, num_bytes in reserved] == 2 * [512 * 16 * block_bytes]
    held = [buffer.num_bytes for buffer, _ in reserved]
    assert min(held) >= 512 * 16 * block_bytes
    engine.generate(["hello there", "and", "another"], SamplingParams(max_tokens=20, ignore_eos=True))
    assert [buffer.num_bytes for buffer, _ in reserved] == held
