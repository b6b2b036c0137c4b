"""Systematic noise: exact counts, exact medians, and the exactly unbiased regime."""

import itertools
import math

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.theory.numerics.systematic import at_least

LAWS = ("gaussian", "laplace", "logistic", "uniform")


def asymmetric(num_workers, seed):
    return np.random.default_rng(seed).gamma(0.7, size=num_workers) * 3 - 1.3


def noisy_values(values, noise, permutation, num_points):
    """Follows V over the midpoints of a grid, [num_points, M]."""
    position = (np.arange(num_points)[:, None] + 0.5) / num_points
    slots = np.asarray(permutation) / len(values)
    return values + noise.scale * noise.quantile((position + slots) % 1.0)


# --- votes and distribution functions -------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 6])
def test_the_formula_over_all_permutations_is_their_average(law, num_workers):
    for scale in (0.2, 1.0, 6.0):
        values = asymmetric(num_workers, num_workers)
        noise = Noise(law, scale, "systematic")
        votes = [
            theory.vote_probability(values, noise, permutation=permutation)
            for permutation in itertools.permutations(range(num_workers))
        ]
        found = theory.vote_probability(values, noise)
        assert found == pytest.approx(np.mean(votes, axis=0), abs=1e-13)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 6, 11, 40])
def test_arcs_by_walking_around_the_circle(law, num_workers):
    values = asymmetric(num_workers, 2)
    noise = Noise(law, 1.3, "systematic")
    permutation = np.random.default_rng(0).permutation(num_workers)
    points = 200_003
    tally = np.sign(noisy_values(values, noise, permutation, points)).sum(axis=1)
    walked = [(tally > 0).mean(), (tally < 0).mean(), (tally == 0).mean()]
    found = theory.vote_probability(values, noise, permutation=permutation)
    # Each of the 2 M ends of arcs moves at most one grid point to the wrong side.
    assert found == pytest.approx(walked, abs=2 * num_workers / points)
    assert sum(found) == pytest.approx(1.0, abs=1e-12)


def test_arcs_that_cover_the_whole_circle_or_nothing():
    noise = Noise("uniform", 1.0, "systematic")
    for values, vote in (([9.0, -9.0, 9.0], (1, 0, 0)), ([9.0, -9.0], (0, 0, 1))):
        permutation = np.arange(len(values))
        found = theory.vote_probability(values, noise, permutation=permutation)
        assert found == vote
        assert theory.vote_probability(values, noise) == vote


def test_the_votes_of_a_skewed_majority():
    """PAPER.md, sharper 7: noise sharpens a right vote, and a wrong one too."""
    values = np.array([1.0] * 10 + [-0.05] * 91)  # ten of 101 workers hold the mean
    for law, independent, systematic in (
        ("gaussian", 0.630, 0.858),
        ("uniform", 0.633, 0.885),
    ):
        scale = 3 * values.std()
        plus = theory.vote_probability(values, Noise(law, scale)).plus
        assert plus == pytest.approx(independent, abs=1e-3)
        plus = theory.vote_probability(values, Noise(law, scale, "systematic")).plus
        assert plus == pytest.approx(systematic, abs=1e-3)
    values = np.array([-0.1] * 9 + [1.0] * 2)
    scale = 0.3 * values.std()
    assert theory.vote_probability(values, Noise("gaussian", scale)).plus == (
        pytest.approx(0.108, abs=5e-4)
    )
    wrong = theory.vote_probability(values, Noise("gaussian", scale, "systematic"))
    assert wrong.plus < 5e-4


def test_the_expected_count_does_not_depend_on_the_coupling():
    values, law = asymmetric(5, 9), "logistic"
    noise = Noise(law, 0.8, "systematic")
    counts = [at_least(noise.cdf(values / 0.8), k) for k in range(1, 6)]
    assert sum(counts) == pytest.approx(noise.cdf(values / 0.8).sum(), rel=1e-13)


@pytest.mark.parametrize("num_workers", [31, 201])
def test_many_workers_vote_exactly(num_workers):
    values = asymmetric(num_workers, 1)
    noise = Noise("gaussian", 2.5, "systematic")
    found = theory.vote_probability(values, noise)
    simulated = theory.simulate_vote(values, noise, 3, 20_000)
    assert abs(found.plus - simulated.plus) < 5 * simulated.standard_errors[0]
    assert sum(found) == pytest.approx(1.0, abs=1e-12)


def test_the_cdf_is_exact_for_many_workers():
    values, noise = asymmetric(9, 4), Noise("laplace", 1.0, "systematic")
    t = float(np.median(values)) + 0.2
    below = theory.median_cdf(values, noise, t)
    assert below == theory.vote_probability(values - t, noise).minus
    draws = 20_000
    votes = theory.simulate_vote(values - t, noise, 1, draws)
    assert abs(below - votes.minus) < 5 * votes.standard_errors[1]


# --- medians --------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("even", ["midpoint", "lower", "upper"])
@pytest.mark.parametrize("num_workers", [2, 3, 4, 7, 12])
def test_median_of_one_permutation_by_walking_around_the_circle(law, even, num_workers):
    values = asymmetric(num_workers, 6)
    permutation = np.random.default_rng(1).permutation(num_workers)
    ranks = {
        "midpoint": [(num_workers - 1) // 2, num_workers // 2],
        "lower": [(num_workers - 1) // 2],
        "upper": [num_workers // 2],
    }[even]
    for scale in (0.3, 2.0):
        noise = Noise(law, scale, "systematic")
        noisy = np.sort(noisy_values(values, noise, permutation, 400_000), axis=1)
        medians = noisy[:, ranks].mean(axis=1)
        found = theory.median_moments(values, noise, even, permutation=permutation)
        expected = medians.mean(), medians.var()
        assert found == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [1, 3, 4, 5])
def test_median_moments_average_over_permutations(law, num_workers):
    values, noise = asymmetric(num_workers, 8), Noise(law, 0.7, "systematic")
    each = np.array(
        [
            theory.median_moments(values, noise, permutation=permutation)
            for permutation in itertools.permutations(range(num_workers))
        ]
    )
    mean = each[:, 0].mean()
    variance = each[:, 1].mean() + each[:, 0].var()
    found = theory.median_moments(values, noise)
    assert found == pytest.approx((mean, variance), rel=1e-11)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("num_workers", "even"), [(5, "midpoint"), (4, "lower")])
def test_moments_are_those_of_the_cdf(law, num_workers, even):
    """Two unrelated ways: between crossings, and hits on staircase boards."""
    values, noise = asymmetric(num_workers, 3), Noise(law, 0.5, "systematic")
    edge = 9.0 if law != "uniform" else math.sqrt(3)
    t = np.linspace(values.min() - edge, values.max() + edge, 8001)
    below = theory.median_cdf(values, noise, t, even)
    mean = t[-1] - np.trapezoid(below, t)
    mean_found, variance = theory.median_moments(values, noise, even)
    assert mean_found == pytest.approx(mean, abs=1e-5)
    tail = np.where(t > mean, 1 - below, below)
    second = 2 * np.trapezoid(np.abs(t - mean) * tail, t)
    assert variance == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("num_workers", [6, 8])
def test_medians_of_more_workers_against_simulation(num_workers):
    values, noise = asymmetric(num_workers, 5), Noise("uniform", 1.5, "systematic")
    mean, variance = theory.median_moments(values, noise)
    found = theory.simulate_median(values, noise, 0, 100_000)
    assert abs(mean - found.mean) < 5 * found.standard_errors.mean
    assert abs(variance - found.variance) < 5 * found.standard_errors.variance


def test_more_than_eight_workers_need_a_permutation_or_simulation():
    values, noise = asymmetric(9, 0), Noise("gaussian", 1.0, "systematic")
    with pytest.raises(ValueError, match=r"9 workers.*at most 8.*simulate_median"):
        theory.median_moments(values, noise)
    with pytest.raises(ValueError, match="simulate_median"):
        theory.median_bias(values, noise)
    with pytest.raises(ValueError, match="simulate_median"):
        theory.median_moments_gradient(values, noise)
    given = theory.median_moments(values, noise, permutation=np.arange(9))
    assert np.isfinite(given).all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("even", ["lower", "upper"])
def test_one_rank_of_many_workers_whom_the_noise_orders(law, even):
    """Each holds it for as long, so that every permutation has the law of all."""
    values = asymmetric(10, 3)
    noise = Noise(law, 1.01 * theory.unbiased_scale(values, law), "systematic")
    found = theory.median_moments(values, noise, even)
    for seed in range(3):
        permutation = np.random.default_rng(seed).permutation(10)
        one = theory.median_moments(values, noise, even, permutation=permutation)
        assert found == pytest.approx(one, rel=1e-11)
    drawn = theory.simulate_median(values, noise, 0, 40_000, even)
    assert abs(found[0] - drawn.mean) < 5 * drawn.standard_errors.mean
    assert abs(found[1] - drawn.variance) < 5 * drawn.standard_errors.variance


def test_systematic_noise_varies_less():
    """PAPER.md, sharper 7: a smaller sd, in the limit by M sqrt(3 / (M + 2))."""
    values = asymmetric(7, 2)
    scale = values.std()
    _, independent = theory.median_moments(values, Noise("gaussian", scale))
    _, systematic = theory.median_moments(
        values, Noise("gaussian", scale, "systematic")
    )
    assert 1.2 <= math.sqrt(independent / systematic) <= 3
    for m in (3, 11, 101):
        ratio = theory.limit_variance("uniform", m) / theory.limit_variance(
            "uniform", m, "systematic"
        )
        assert math.sqrt(ratio) == pytest.approx(m * math.sqrt(3 / (m + 2)), rel=1e-9)
