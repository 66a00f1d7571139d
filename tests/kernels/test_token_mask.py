"""apply_token_mask equals its definition bit for bit, whatever the logits hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels.token_mask import apply_token_mask, apply_token_mask_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BITS_OF = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def equal_bits(left, right):
    return torch.equal(left.view(BITS_OF[left.dtype]), right.view(BITS_OF[right.dtype]))


def random_logits(shape, dtype, device, seed=0):
    """Normal numbers with NaN, both infinities and both zeros strewn among them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator)
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0])
    chosen = torch.randint(0, 40, tuple(shape), generator=generator)
    return torch.where(chosen < 5, special[chosen.clamp(max=4)], logits).to(device, dtype)


def random_mask_rows(num_rows, num_words, device, seed=0):
    """Sparse, dense and even rows, with an all-zeros and an all-ones one."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (4, num_rows, num_words), generator=generator)
    sparse, dense = words[0] & words[1] & words[2] & words[3], words[0] | words[1] | words[2] | words[3]
    mask_rows = torch.stack([words[0], sparse, dense])[torch.arange(num_rows) % 3, torch.arange(num_rows)]
    mask_rows[0], mask_rows[-1] = 0, -1
    return mask_rows.to(torch.int32).to(device)


def allowed_tokens(mask_row, vocab_size):
    """The definition, one token at a time, over Python integers."""
    words = [word & 0xFFFFFFFF for word in mask_row.tolist()]
    return [v >> 5 < len(words) and words[v >> 5] >> (v & 31) & 1 == 1 for v in range(vocab_size)]


@pytest.mark.parametrize("vocab_size", [1, 17, 31, 32, 33, 127, 4097])
def test_the_reference_is_the_definition(vocab_size):
    mask_rows = random_mask_rows(5, (vocab_size + 31) // 32, "cpu")
    logits = random_logits((3, vocab_size), torch.float32, "cpu")
    before = logits.clone()
    apply_token_mask_reference(logits, mask_rows, torch.tensor([3, 1]), torch.tensor([2, 0]))
    for row, row_id in ((2, 3), (0, 1)):
        allowed = torch.tensor(allowed_tokens(mask_rows[row_id], vocab_size))
        assert equal_bits(logits[row][allowed], before[row][allowed])
        assert bool(torch.isneginf(logits[row][~allowed]).all())
    assert equal_bits(logits[1], before[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 17, 127, 32001, 49152, 151936])
def test_every_logit_equals_the_reference(vocab_size, dtype, device):
    mask_rows = random_mask_rows(6, (vocab_size + 31) // 32, device)
    logits = random_logits((5, vocab_size), dtype, device)
    expected = logits.clone()
    row_ids = torch.tensor([5, 0, 2, 1, 2], device=device)

    apply_token_mask(logits, mask_rows, row_ids)
    apply_token_mask_reference(expected, mask_rows, row_ids)

    assert equal_bits(logits, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_constrained", [0, 1, 3])
def test_rows_that_are_not_named_stay_untouched(num_constrained, dtype, device):
    mask_rows = random_mask_rows(4, 5, device)
    logits = random_logits((6, 127), dtype, device)
    before = logits.clone()
    rows = torch.tensor([4, 1, 2], device=device)[:num_constrained]
    apply_token_mask(logits, mask_rows, torch.tensor([0, 1, 2], device=device)[:num_constrained], rows)
    for row in range(6):
        assert equal_bits(logits[row], before[row]) == (row not in rows.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_columns_of_a_strided_view_are_written(dtype, device):
    vocab_size = 100
    padded = torch.full((4, vocab_size + 29), float("nan"), dtype=dtype, device=device)
    logits = padded[:, :vocab_size]
    table = torch.full((6, 9), -1, dtype=torch.int32, device=device)
    mask_rows = table[1:3, :4]
    mask_rows.zero_()
    apply_token_mask(logits, mask_rows, torch.tensor([1, 0, 1, 0], device=device))
    assert bool(torch.isneginf(logits).all())
    assert bool(torch.isnan(padded[:, vocab_size:]).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab_size", "num_words"), [(200, 3), (96, 3), (97, 3), (200, 0), (40, 7)])
def test_tokens_beyond_the_mask_are_forbidden_and_bits_beyond_the_vocabulary_ignored(
    vocab_size, num_words, dtype, device
):
    mask_rows = torch.full((1, num_words + 9), -1, dtype=torch.int32, device=device)[:, :num_words]
    logits = random_logits((1, vocab_size), dtype, device)
    before = logits.clone()
    apply_token_mask(logits, mask_rows, torch.tensor([0], device=device))
    num_covered = min(vocab_size, 32 * num_words)
    assert equal_bits(logits[:, :num_covered], before[:, :num_covered])
    assert bool(torch.isneginf(logits[:, num_covered:]).all())


@pytest.mark.parametrize("shape", [(0, 17), (3, 0), (0, 0)])
def test_empty_logits_stay_empty(shape, device):
    logits = torch.empty(shape, device=device)
    apply_token_mask(
        logits,
        torch.zeros(2, 1, dtype=torch.int32, device=device),
        torch.zeros(shape[0], dtype=torch.int64, device=device),
    )
    assert logits.shape == shape


@given(
    vocab_size=st.integers(1, 300),
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=12),
    row_ids=st.lists(st.integers(0, 2), max_size=5),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_any_mask_on_any_rows_equals_the_reference(vocab_size, words, row_ids, dtype, data):
    mask_rows = torch.tensor([words, words[::-1], [~word for word in words]], dtype=torch.int32)
    num_rows = len(row_ids) + data.draw(st.integers(0, 2))
    order = data.draw(st.permutations(range(num_rows)))
    rows = torch.tensor(order[: len(row_ids)], dtype=torch.int64)
    logits = random_logits((num_rows, vocab_size), dtype, "cpu", seed=len(words))
    expected = logits.clone()
    row_id_tensor = torch.tensor(row_ids, dtype=torch.int64)
    apply_token_mask(logits, mask_rows, row_id_tensor, rows)
    apply_token_mask_reference(expected, mask_rows, row_id_tensor, rows)
    assert equal_bits(logits, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_addresses_beyond_31_bits_are_right(device, large_memory):
    num_rows, row_stride = 3, 2**30 + 64
    logits = torch.zeros((num_rows - 1) * row_stride + 64, dtype=torch.float16, device=device).as_strided(
        (num_rows, 64), (row_stride, 1)
    )
    mask_rows = torch.tensor([[1, 1]], dtype=torch.int32, device=device)
    apply_token_mask(
        logits, mask_rows, torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([2], device=device)
    )
    assert logits[2].isfinite().nonzero().flatten().tolist() == [0, 32]
    assert int(torch.count_nonzero(logits[:2])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"logits": torch.zeros(2, 8, dtype=torch.float64)},
            "logits must be .* float32, float16 or bfloat16",
        ),
        ({"logits": torch.zeros(8)}, r"logits must be \[R, V\]"),
        ({"logits": torch.zeros(8, 2).T}, "logits must be contiguous along the last axis"),
        ({"mask_rows": torch.zeros(3, 1, dtype=torch.int64)}, r"mask_rows must be \[N, W\] int32"),
        ({"mask_rows": torch.zeros(1, 3, dtype=torch.int32).expand(3, 3).T}, "mask_rows must be contiguous"),
        (
            {"mask_rows": torch.zeros(3, 1, dtype=torch.int32, device="meta")},
            "mask_rows are on meta, logits on cpu",
        ),
        ({"row_ids": torch.zeros(2, dtype=torch.int32)}, r"row_ids must be \[C\] int64"),
        ({"row_ids": torch.zeros(1, dtype=torch.int64)}, "1 row_ids for 2 logit rows"),
        ({"rows": torch.zeros(1, dtype=torch.int64)}, r"rows must be \[2\] int64"),
        ({"rows": torch.zeros(2, dtype=torch.bool)}, r"rows must be \[2\] int64"),
    ],
)
def test_a_tensor_of_another_shape_dtype_device_or_stride_is_refused(arguments, message):
    good = {
        "logits": torch.zeros(2, 8),
        "mask_rows": torch.zeros(3, 1, dtype=torch.int32),
        "row_ids": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        apply_token_mask(**(good | arguments))
