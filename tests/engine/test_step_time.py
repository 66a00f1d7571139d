"""StepTime: linear between what was measured, never less for more tokens, and moved by every pass."""

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec import Engine, EngineConfig
from specdec.attention import Span
from specdec.step_time import StepTime, measure_step_time

MEASURED = [(1, 0.020), (4, 0.021), (16, 0.030), (64, 0.078)]


@pytest.mark.parametrize(
    ("num_tokens", "seconds"),
    [(1, 0.020), (4, 0.021), (10, 0.0255), (16, 0.030), (40, 0.054), (64, 0.078), (128, 0.142)],
)
def test_time_is_linear_between_and_beyond_the_measurements(num_tokens, seconds):
    assert StepTime(MEASURED).seconds(num_tokens) == pytest.approx(seconds)


@given(
    st.lists(st.floats(1e-4, 1.0), min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(1, 100), st.floats(1e-4, 1.0))),
)
def test_more_tokens_never_take_less(seconds, passes):
    model = StepTime([(n, s) for (n, _), s in zip(MEASURED, seconds, strict=True)])
    for num_tokens, taken in passes:
        model.observe(num_tokens, taken)
    times = [model.seconds(n) for n in range(1, 100)]
    assert times == sorted(times)
    assert times[0] > 0


def test_passes_move_the_estimate_to_what_they_take():
    model = StepTime(MEASURED)
    for _ in range(200):
        model.observe(16, 0.045)
    assert model.seconds(16) == pytest.approx(0.045, rel=0.02)
    # The machine is slower at all of them, until they are met themselves.
    assert model.seconds(64) > 0.078


def test_one_pass_that_met_something_else_changes_little():
    model = StepTime(MEASURED)
    model.observe(16, 10.0)
    assert model.seconds(16) < 0.034


def test_a_copy_learns_by_itself():
    model = StepTime(MEASURED)
    other = model.copy()
    for _ in range(200):
        other.observe(16, 0.060)
    assert (model.seconds(16), other.seconds(16)) == pytest.approx((0.030, 0.060), rel=0.05)


def test_scaling_moves_all_sizes_alike():
    model = StepTime(MEASURED)
    for _ in range(50):
        model.scale(0.1)
    assert [model.seconds(n) / s for n, s in MEASURED] == pytest.approx([1.01**50] * 4)


@pytest.mark.parametrize(
    ("num_blocks", "block_size", "max_model_len"), [(200, 16, 512), (200, 16, 64), (4, 4, 512), (2, 1, 512), (9, 1, 2)]
)
@pytest.mark.parametrize("max_rows", [64, 1])
def test_a_model_is_timed_in_a_pool_and_a_context_of_any_size(
    tiny_model_folder, num_blocks, block_size, max_model_len, max_rows
):
    sizes = {"num_kv_blocks": num_blocks, "block_size": block_size, "max_model_len": max_model_len}
    config = EngineConfig(model=str(tiny_model_folder), num_compile_workers=0, **sizes)
    with contextlib.closing(Engine(config)) as engine:
        timed = measure_step_time(
            engine.runner,
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            max_tokens=100,
            max_rows=max_rows,
        )
        assert 0 < timed.seconds(1) <= timed.seconds(64)


class Noting:
    """A runner of a GPU, which has passes noted and not run."""

    device = torch.device("cuda")

    def __init__(self):
        self.spans: list[Span] = []

    def forward(self, spans):
        self.spans += spans

    def wait(self):
        pass


@pytest.mark.parametrize(
    ("num_blocks", "max_model_len", "max_tokens", "expected"),
    [(400, 8192, 2048, 2048), (400, 700, 2048, 512), (400, 8192, 300, 256)],
)
def test_on_a_gpu_passes_as_large_as_a_step_are_timed(num_blocks, max_model_len, max_tokens, expected):
    """Up to 64 tokens take as long as one there, which says nothing of a prompt's thousands."""
    runner = Noting()
    measure_step_time(
        runner, num_blocks=num_blocks, block_size=16, max_model_len=max_model_len, max_tokens=max_tokens, max_rows=65
    )
    assert max(len(span.token_ids) for span in runner.spans) == expected
    for span in runner.spans:
        assert span.num_logits <= min(65, len(span.token_ids))
        assert span.context_len <= min(max_model_len, 16 * num_blocks)
        assert len(span.block_table) * 16 >= span.context_len
        assert max(span.block_table) < num_blocks
