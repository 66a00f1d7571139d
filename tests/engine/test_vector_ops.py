"""A layer's norms, rotations and activations on a CPU: the definitions, and the same bits in any batch."""

import pytest
import torch
import torch.nn.functional as F

from specdec import vector_ops
from specdec.machine_code import MachineCode
from specdec.vector_ops import VectorOps

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="the code needs AVX2"
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Less than a register, a whole one, some and a rest, and a model's.
SIZES = [1, 7, 16, 37, 576]
EPS = 1e-5


@pytest.fixture(autouse=True, params=[8, 16])
def lanes(request, monkeypatch):
    """Registers of either size; where there are none so large, two take their place."""
    for code in (vector_ops._norm, vector_ops._rotate, vector_ops._silu):
        code.cache_clear()
    monkeypatch.setattr(vector_ops, "max_lanes", lambda: request.param)
    yield
    for code in (vector_ops._norm, vector_ops._rotate, vector_ops._silu):
        code.cache_clear()


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(*shape, dtype, seed, magnitude=1.0):
    return (magnitude * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_rounded(given, exact):
    """Rounded once, from fp32 that some operations have rounded."""
    finfo = torch.finfo(given.dtype)
    torch.testing.assert_close(given.double(), exact, rtol=1.01 * finfo.eps / 2 + 2e-6, atol=finfo.tiny)


def normed(x, weight):
    return x.double() / (x.double().square().mean(dim=1, keepdim=True) + EPS).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 50.0])
def test_a_norm_is_the_definition(dtype, size, magnitude):
    x, weight = numbers(5, size, dtype=dtype, seed=1, magnitude=magnitude), numbers(size, dtype=dtype, seed=2)
    y = VectorOps().rms_norm(x, weight, EPS)
    assert y.dtype is dtype
    assert_rounded(y, normed(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_added_is_rounded_and_then_normed(dtype, size):
    x, added = numbers(5, size, dtype=dtype, seed=1), numbers(5, size, dtype=dtype, seed=2)
    weight = numbers(size, dtype=dtype, seed=3)
    sums, y = VectorOps().add_rms_norm(x.clone(), added.clone(), weight, EPS)
    assert torch.equal(sums, x + added)
    assert_rounded(y, normed(x + added, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [2, 14, 16, 64, 74])
def test_heads_are_rotated_where_they_are_and_no_others(dtype, head_size):
    heads = numbers(7, 5, head_size, dtype=dtype, seed=1)
    positions = torch.tensor([0, 3, 4, 5, 19, 2, 2])
    angles = torch.rand(20, 1, head_size // 2, generator=torch.Generator().manual_seed(2)) * 7
    cos = torch.cat([angles.cos()] * 2, dim=2).to(dtype)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=2).to(dtype)
    x = heads[:, :3].double()
    first, second = x.chunk(2, dim=2)
    exact = x * cos[positions].double() + torch.cat([second, first], dim=2) * sin[positions].double()
    ops, others = VectorOps(), heads[:, 3:].clone()
    rotated = ops.rotate(heads[:, :3], ops.rotation(positions, cos, sin))
    torch.testing.assert_close(
        rotated.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6 + torch.finfo(dtype).tiny
    )
    assert torch.equal(heads[:, 3:], others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_an_activation_is_the_definition(dtype, size):
    gate_up = numbers(6, 2 * size, dtype=dtype, seed=1, magnitude=4.0)
    gate, up = gate_up.double().chunk(2, dim=1)
    assert_rounded(VectorOps().silu_mul(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_from_zero_are_open_or_shut(dtype):
    gate = torch.tensor([[60.0, -60.0, 88.0, -88.0, 1000.0, -1000.0, 0.0, -0.0, torch.inf, torch.nan]], dtype=dtype)
    given = VectorOps().silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))[0]
    assert torch.equal(given[[0, 2, 4, 6, 8]], gate[0, [0, 2, 4, 6, 8]])
    assert bool((given[[1, 3, 5, 7]].abs() <= 1e-20).all())
    assert given[9].isnan()


def test_what_is_no_number_stays_in_its_row():
    x = numbers(3, 40, dtype=torch.bfloat16, seed=1)
    x[1, 39] = torch.nan
    weight = torch.ones(40).bfloat16()
    y = VectorOps().rms_norm(x, weight, EPS)
    assert bool(y[1].isnan().all())
    assert bool(y[[0, 2]].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_is_the_same_in_any_batch_and_with_any_threads(dtype, threads, num_threads):
    size, ops = 296, VectorOps()
    x, added = numbers(400, 2 * size, dtype=dtype, seed=1), numbers(400, 2 * size, dtype=dtype, seed=2)
    weight = numbers(2 * size, dtype=dtype, seed=3)
    num_threads(1)

    def results(rows):
        return (
            ops.rms_norm(x[rows], weight, EPS),
            *ops.add_rms_norm(x[rows].clone(), added[rows].clone(), weight, EPS),
            ops.silu_mul(x[rows]),
        )

    whole = results(slice(None))
    num_threads(threads)
    for rows in (slice(0, 1), slice(3, 20), slice(17, 18), slice(0, 399)):
        for given, expected in zip(results(rows), whole, strict=True):
            assert torch.equal(given, expected[rows])


def test_rows_may_lie_apart_and_across():
    ops, weight = VectorOps(), numbers(24, dtype=torch.bfloat16, seed=1)
    wide = numbers(9, 100, dtype=torch.bfloat16, seed=2)
    for x in (
        wide[:, 7:31],
        wide[::2, :24],
        numbers(24, 9, dtype=torch.bfloat16, seed=3).T,
        wide[:1, :24].expand(5, 24),
    ):
        alone = x.clone(memory_format=torch.contiguous_format)
        assert torch.equal(ops.rms_norm(x, weight, EPS), ops.rms_norm(alone, weight, EPS))
        assert torch.equal(ops.silu_mul(x), ops.silu_mul(alone))
        for given, expected in zip(
            ops.add_rms_norm(x, x, weight, EPS), ops.add_rms_norm(alone, alone.clone(), weight, EPS), strict=True
        ):
            assert torch.equal(given, expected)


@pytest.mark.parametrize(("num_rows", "asked"), [(1, 1), (40, 2), (4000, 3)])
def test_threads_are_asked_where_there_is_work_for_them(num_rows, asked, num_threads, monkeypatch):
    counts = []
    monkeypatch.setattr(MachineCode, "run", lambda self, name, job, *, num_threads: counts.append(num_threads))
    num_threads(3)
    VectorOps().rms_norm(torch.ones(num_rows, 1000), torch.ones(1000), EPS)
    assert counts == [asked]


def test_no_rows_are_no_rows():
    ops = VectorOps()
    assert ops.rms_norm(torch.ones(0, 8), torch.ones(8), EPS).shape == (0, 8)
    assert ops.silu_mul(torch.ones(0, 8)).shape == (0, 4)
