"""The finite scales of systematic noise: exact at them, biased below, no rounding."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS as ROWS
from jaxmedian.theory.numerics.systematic_median import middle_workers

LAWS = ("gaussian", "laplace", "logistic", "uniform")


# --- in whole numbers: no rounding, every permutation ---------------------------------


def permutations(num_workers):
    """All of them up to rotations, over which V averages anyway."""
    for rest in itertools.permutations(range(1, num_workers)):
        yield (0, *rest)


def exact_vote(values, width, permutation):
    """E[vote] and E[vote^2] of noise uniform on +-width / 2, as fractions.

    Worker i votes + while V is on an arc of length 1/2 + u_i / width.
    """
    num_workers = len(values)
    arcs = [
        (
            (Fraction(1, 2) - u / width - Fraction(slot, num_workers)) % 1,
            min(max(Fraction(1, 2) + u / width, Fraction(0)), Fraction(1)),
        )
        for u, slot in zip(values, permutation, strict=True)
    ]
    cuts = sorted({0, 1, *(a for a, _ in arcs), *((a + n) % 1 for a, n in arcs)})
    first = second = Fraction(0)
    for low, high in itertools.pairwise(cuts):
        v = (low + high) / 2
        tally = sum(1 if (v - a) % 1 < length else -1 for a, length in arcs)
        sign = (tally > 0) - (tally < 0)
        first += sign * (high - low)
        second += sign * sign * (high - low)
    return first, second


def exact_median(values, width, permutation):
    """E[midpoint median] of noise uniform on +-width / 2, as a fraction.

    V = (j + s) / M moves all noises at one speed, so the order stays within each j.
    """
    num_workers = len(values)
    total = Fraction(0)
    for j in range(num_workers):
        heights = sorted(
            u + width * Fraction((slot + j) % num_workers, num_workers)
            for u, slot in zip(values, permutation, strict=True)
        )
        total += (heights[(num_workers - 1) // 2] + heights[num_workers // 2]) / 2
    return total / num_workers + width * (Fraction(1, 2 * num_workers) - Fraction(1, 2))


INTEGERS = {
    2: [3, -7],
    3: [1, 2, -10],
    4: [1, 2, 10, -4],
    5: [3, -1, -2, 9, 0],
    6: [7, -1, -2, 4, 4, -3],
}


@pytest.mark.parametrize("num_workers", INTEGERS)
def test_votes_in_whole_numbers(num_workers):
    """Even M: from half of the odd threshold on; at 95 % some permutation is biased."""
    values = [Fraction(u) for u in INTEGERS[num_workers]]
    largest, mean = max(map(abs, values)), sum(values) / num_workers
    spread = sum(map(abs, values)) / num_workers
    step = 1 if num_workers % 2 else 2
    threshold = 2 * num_workers * largest / step  # of the width 2 sqrt(3) b
    for permutation in permutations(num_workers):
        for factor in (Fraction(1), Fraction(7, 3)):
            first, second = exact_vote(values, factor * threshold, permutation)
            assert first == mean / (factor * largest)
            if num_workers % 2:
                assert second == 1
            else:
                assert second <= spread / (factor * largest)
    below = Fraction(19, 20)
    errors = [
        exact_vote(values, below * threshold, permutation)[0] - mean / (below * largest)
        for permutation in permutations(num_workers)
    ]
    assert max(map(abs, errors)) > Fraction(1, 250)
    found = theory.unbiased_scale(INTEGERS[num_workers], "uniform", "vote")
    assert found == pytest.approx(float(threshold) / (2 * math.sqrt(3)), rel=1e-15)


@pytest.mark.parametrize("num_workers", INTEGERS)
def test_medians_in_whole_numbers(num_workers):
    """Per coordinate, at the scale of `unbiased_scale(..., mean_only=True)`."""
    column = np.array(INTEGERS[num_workers])
    values = np.stack([column, -3 * column, column**2, 0 * column + 5], axis=1)
    scales = theory.unbiased_scale(values, mean_only=True)
    assert scales.shape == (4,)
    widths = []
    for j in range(4):
        u = [Fraction(int(value)) for value in values[:, j]]
        span = max(u) - min(u)
        # b = M range / (sqrt(3) (M + 1)), or range / sqrt(3) for even M
        share = Fraction(num_workers, num_workers + 1) if num_workers % 2 else 1
        widths.append(2 * span * share if num_workers > 2 else Fraction(0))
        for permutation in permutations(num_workers):
            mean = exact_median(u, widths[-1], permutation)
            assert mean == sum(u) / num_workers
            further = exact_median(u, 3 * widths[-1], permutation)
            assert further == mean
    expected = [float(width) / (2 * math.sqrt(3)) for width in widths]
    assert scales == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("num_workers", [10, 11, 20])
def test_the_scale_of_many_workers_per_coordinate(num_workers):
    values = np.random.default_rng(0).normal(size=(num_workers, 3, 2))
    scales = theory.unbiased_scale(values, mean_only=True)
    share = num_workers / (num_workers + 1) if num_workers % 2 else 1.0
    assert scales == pytest.approx(np.ptp(values, axis=0) * share / math.sqrt(3))
    u = [Fraction(int(value)) for value in np.round(1e3 * values[:, 0, 0])]
    share = Fraction(num_workers, num_workers + 1) if num_workers % 2 else 1
    width = 2 * share * (max(u) - min(u))
    for seed in range(5):
        permutation = np.random.default_rng(seed).permutation(num_workers).tolist()
        assert exact_median(u, width, permutation) == sum(u) / num_workers


# --- four laws: exact at the thresholds, not below ------------------------------------


def biases(law, values, scale):
    """E[median] - mean for every permutation, by quadrature between crossings."""
    ranks = theory.arguments.middle_ranks(len(values), "midpoint")
    noise_free = np.median(values)
    found = []
    for permutation in permutations(len(values)):
        mean = 0.0
        for middle in middle_workers(ROWS[law], values, scale, ranks, permutation):
            mean += float((middle.weight * middle.height.mean(axis=2)).sum())
        found.append(noise_free + scale * mean - values.mean())
    return np.array(found)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 4, 5, 6])
def test_the_thresholds_of_medians_are_tight(law, num_workers):
    values = np.array(INTEGERS[num_workers], np.float64)
    values /= np.ptp(values)
    scale = theory.unbiased_scale(values, law, mean_only=True)
    assert abs(biases(law, values, scale)).max() < 2e-15
    assert abs(biases(law, values, 0.95 * scale)).max() > 1e-4


@pytest.mark.parametrize("law", ["gaussian", "laplace", "logistic"])
def test_an_unbiased_vote_needs_the_uniform_law(law):
    """With another one the tally's expectation is no longer linear in the values."""
    values = np.array([0.9, 0.1, -1.0, 0.4, 0.2, -0.1, 0.3])
    row = ROWS[law]
    scale = 7 * float(row.pdf(0.0)) * 2  # neighbouring noises at least 2 Q apart
    vote = theory.vote_probability(values, Noise(law, scale, "systematic"))
    found = vote.plus - vote.minus
    assert found == pytest.approx((2 * row.cdf(values / scale) - 1).sum(), rel=1e-12)
    linear = 2 * float(row.pdf(0.0)) / scale * values.sum()
    assert abs(found / linear - 1) > 1e-3
