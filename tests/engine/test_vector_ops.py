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
    numbers = [60.0, -60.0, 88.0, -88.0, 1000.0, -1000.0, 0.0, -0.0, torch.inf, torch.nan]
    gate = torch.tensor([numbers], dtype=dtype)
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


@pytest.mark.parametrize(("num_rows", "row_size", "asked"), [(1, 100_000, 1), (40, 1000, 1), (70, 1000, 3)])
def test_all_threads_are_asked_where_there_is_work_for_them_and_else_none(
    num_rows, row_size, asked, num_threads, monkeypatch
):
    counts = []
    monkeypatch.setattr(MachineCode, "run", lambda self, name, job, *, num_threads: counts.append(num_threads))
    num_threads(3)
    ops, x = VectorOps(), torch.ones(num_rows, row_size)
    ops.rms_norm(x, torch.ones(row_size), EPS)
    ops.add_rms_norm(x, x, torch.ones(row_size), EPS)
    ops.silu_mul(x)
    tables = torch.ones(100, 1, 10)
    ops.rotate(x.view(num_rows, -1, 10), ops.rotation(torch.arange(num_rows), tables, tables))
    assert counts == [asked] * 4


@pytest.mark.parametrize("threads", [2, 5])
def test_heads_are_rotated_once_by_however_many_threads(threads, num_threads):
    heads = numbers(300, 12, 64, dtype=torch.bfloat16, seed=1)
    positions = torch.arange(300) * 7 % 90
    angles = torch.rand(90, 1, 32, generator=torch.Generator().manual_seed(2)) * 7
    cos, sin = torch.cat([angles.cos()] * 2, dim=2), torch.cat([-angles.sin(), angles.sin()], dim=2)
    ops = VectorOps()
    rotation = ops.rotation(positions, cos.bfloat16(), sin.bfloat16())
    num_threads(1)
    alone = ops.rotate(heads.clone(), rotation)
    num_threads(threads)
    assert torch.equal(ops.rotate(heads.clone(), rotation), alone)
    one = [
        ops.rotate(heads[i : i + 1].clone(), rotation._replace(positions=rotation.positions[i : i + 1]))
        for i in range(300)
    ]
    assert torch.equal(torch.cat(one), alone)


def test_positions_that_the_tables_do_not_have_are_refused():
    ops, tables = VectorOps(), torch.ones(8, 1, 4)
    for positions in ([0, 8], [-1]):
        with pytest.raises(IndexError, match="the tables have 8"):
            ops.rotation(torch.tensor(positions), tables, tables)


@pytest.mark.parametrize("size", [20, 33])
def test_what_is_added_may_lie_otherwise_than_what_it_is_added_to(size):
    """A product's output is a view of a wider one where its features are no multiple of a panel's."""
    ops, weight = VectorOps(), numbers(size, dtype=torch.bfloat16, seed=1)
    x = numbers(7, size, dtype=torch.bfloat16, seed=2)
    wide = numbers(7, 3 * size, dtype=torch.bfloat16, seed=3)
    for one, other in ((x, wide[:, :size]), (wide[:, size : 2 * size], x)):
        given = ops.add_rms_norm(one, other, weight, EPS)
        expected = ops.add_rms_norm(one.contiguous(), other.contiguous(), weight, EPS)
        assert torch.equal(given[0], expected[0])
        assert torch.equal(given[1], expected[1])
        assert torch.equal(given[0], one + other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_nothing_behind_a_row_is_read_or_written(dtype, size):
    """What lies there is no number, and stays."""
    ops, weight = VectorOps(), numbers(size, dtype=dtype, seed=1)
    x, gates = (torch.full((4, width + 40), torch.nan, dtype=dtype) for width in (size, 2 * size))
    x[:, :size], gates[:, : 2 * size] = numbers(4, size, dtype=dtype, seed=2), numbers(4, 2 * size, dtype=dtype, seed=3)
    sums, normed = ops.add_rms_norm(x[:, :size], x[:, :size], weight, EPS)
    for given in (ops.rms_norm(x[:, :size], weight, EPS), sums, normed, ops.silu_mul(gates[:, : 2 * size])):
        assert bool(given.isfinite().all())
    assert bool(x[:, size:].isnan().all())


def test_no_rows_are_no_rows():
    ops = VectorOps()
    assert ops.rms_norm(torch.ones(0, 8), torch.ones(8), EPS).shape == (0, 8)
    assert ops.silu_mul(torch.ones(0, 8)).shape == (0, 4)
