"""The keyed noise: a fair draw, a bounded range, the same bits in any company."""

import itertools
import math

import numpy as np
import torch

from specdec.kernels.gumbel import GUMBEL_RANGE, fixed_log, gumbel
from specdec.noise import Stream, noise_key, noise_keys, noise_state, uniform


def test_the_logarithm_is_right_over_every_exponent():
    generator = torch.Generator().manual_seed(0)
    mantissas = torch.cat(
        [torch.tensor([1.0, 1.4142135, 1.4142137, 1.9999999]), 1 + torch.rand(500, generator=generator)]
    )
    for exponent in range(-126, 128):
        x = mantissas * 2.0**exponent
        exact = torch.tensor([math.log(v) for v in x.double().tolist()], dtype=torch.float64)
        error = (fixed_log(x).double() - exact).abs()
        assert bool((error <= 2e-7 * exact.abs() + 6e-8).all()), exponent


def test_noise_stays_within_its_range_for_every_uniform():
    uniform = (torch.arange(2**23) + 0.5) * 2.0**-23
    noise = -fixed_log(-fixed_log(uniform))
    assert bool(noise.isfinite().all())
    assert float(noise.max() - noise.min()) < GUMBEL_RANGE


def test_the_uniforms_are_uniform_over_ids_positions_and_seeds():
    """Chi-square over 64 bins, 63 degrees of freedom: 120 is exceeded once in 100,000."""
    ids = torch.arange(200_000)
    samples = [gumbel(noise_key(7, 0, 3, Stream.TOKEN), ids)]
    samples.append(torch.cat([gumbel(noise_key(7, 0, p, Stream.TOKEN), ids[:10]) for p in range(5_000)]))
    samples.append(torch.cat([gumbel(noise_key(s, 1, 9, Stream.TOKEN), ids[:10]) for s in range(5_000)]))
    for noise in samples:
        uniform = torch.exp(-torch.exp(-noise.double()))
        counts = torch.histc(uniform, bins=64, min=0.0, max=1.0)
        expected = len(noise) / 64
        assert float(((counts - expected) ** 2 / expected).sum()) < 120


def test_neighbouring_keys_and_ids_are_uncorrelated():
    ids = torch.arange(20_000)
    base = gumbel(noise_key(1, 0, 0, Stream.TOKEN), ids)
    others = [
        gumbel(noise_key(2, 0, 0, Stream.TOKEN), ids),
        gumbel(noise_key(1, 1, 0, Stream.TOKEN), ids),
        gumbel(noise_key(1, 0, 1, Stream.TOKEN), ids),
        gumbel(noise_key(1, 0, 0, Stream.TOKEN), ids + 1),
        gumbel(noise_key(1, 0, 0, Stream.DRAFT), ids),
        gumbel(noise_key(1, 0, 0, Stream.TOKEN, draft_start=0), ids),
    ]
    for other in others:
        # The standard error of a correlation of 20,000 pairs is 0.007.
        assert abs(np.corrcoef(base.numpy(), other.numpy())[0, 1]) < 0.035


def test_a_token_has_the_same_noise_in_any_company():
    key = noise_key(2**63 - 1, 3, 4096, Stream.TOKEN)
    whole = gumbel(key, torch.arange(1_000))
    shuffled = torch.randperm(1_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gumbel(key, shuffled), whole[shuffled])
    assert torch.equal(gumbel(key, torch.tensor([999])), whole[999:])


def test_seeds_of_all_64_bits_and_signs_differ():
    seeds = [0, 1, -1, 2**32, 2**63 - 1, -(2**63)]
    assert len({noise_key(seed, 0, 0, Stream.TOKEN) for seed in seeds}) == len(seeds)


def test_keys_for_each_token_give_the_noise_of_each_key():
    keys = [noise_key(seed, 0, 5, Stream.TOKEN) for seed in range(50)]
    first, second = torch.tensor(keys).unbind(1)
    ids = torch.arange(50) * 7
    together = gumbel((first, second), ids)
    assert together.tolist() == [float(gumbel(key, ids[i : i + 1])) for i, key in enumerate(keys)]


def test_uniforms_lie_between_0_and_1_and_are_independent_between_streams_positions_and_drafts():
    """Chi-square over 8 x 8 bins, 63 degrees of freedom: 120 is exceeded once in 100,000."""
    assert uniform((0, 0)) == 2.0**-53
    assert uniform((2**32 - 1, 2**32 - 1)) == 1.0 - 2.0**-53
    num_draws = 20_000
    columns = [
        [uniform(noise_key(seed, 0, 5, Stream.ACCEPT, draft_start=5)) for seed in range(num_draws)],
        [uniform(noise_key(seed, 0, 5, Stream.ACCEPT, draft_start=4)) for seed in range(num_draws)],
        [uniform(noise_key(seed, 0, 5, Stream.DRAFT, draft_start=5)) for seed in range(num_draws)],
        [uniform(noise_key(seed, 0, 5, Stream.RECOVERED)) for seed in range(num_draws)],
        [uniform(noise_key(seed, 0, 6, Stream.ACCEPT, draft_start=5)) for seed in range(num_draws)],
    ]
    for first, second in itertools.combinations(columns, 2):
        counts = np.histogram2d(first, second, bins=8, range=((0, 1), (0, 1)))[0]
        expected = num_draws / 64
        assert ((counts - expected) ** 2 / expected).sum() < 120


def test_the_keys_of_many_draws_are_those_of_each():
    generator = np.random.default_rng(5)
    seeds = [*generator.integers(-(2**63), 2**63 - 1, 300).tolist(), 0, -1, 2**63 - 1, -(2**63)]
    choices = [i % 7 for i in range(len(seeds))]
    positions = np.array([*generator.integers(0, 2**20, len(seeds) - 2).tolist(), 0, 2**31])
    states = np.array([noise_state(*each) for each in zip(seeds, choices, strict=True)], np.uint64)
    for stream, count in itertools.product((Stream.TOKEN, Stream.RECOVERED), (1, 3, 8, 9, len(seeds))):
        # The last have the extremes.
        few = slice(len(seeds) - count, None)
        before = states.copy()
        keys = noise_keys(states[few], positions[few], stream)
        assert keys.dtype == np.int64
        assert [tuple(key) for key in keys.tolist()] == [
            noise_key(seed, choice, position, stream)
            for seed, choice, position in zip(seeds[few], choices[few], positions[few].tolist(), strict=True)
        ]
        assert np.array_equal(states, before)
    assert noise_keys(states[:0], positions[:0], Stream.TOKEN).shape == (0, 2)
