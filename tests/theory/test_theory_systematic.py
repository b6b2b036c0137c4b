"""Systematic noise: exact counts, exact medians, and the exactly unbiased regime."""

import itertools
import math

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.theory.numerics.systematic import arc_counts, at_least

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


# --- the exact regime (sharper 8) -----------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 5])
def test_every_fixed_permutation_is_unbiased_beyond_a_finite_scale(law, num_workers):
    values = asymmetric(num_workers, 12)
    scale = theory.unbiased_scale(values, law)
    noise = Noise(law, scale, "systematic")
    mean, variance = theory.unbiased_median(values, noise)
    assert mean == pytest.approx(values.mean(), rel=1e-14)
    v = theory.limit_variance(law, num_workers, "systematic")
    assert variance == pytest.approx(values.var() + scale**2 * v, rel=1e-12)
    for permutation in itertools.permutations(range(num_workers)):
        found = theory.median_moments(values, noise, permutation=permutation)
        assert found == pytest.approx((mean, variance), rel=1e-10)
        walked = np.median(noisy_values(values, noise, permutation, 20_001), axis=1)
        assert walked.mean() == pytest.approx(mean, abs=1e-3 * scale)


def test_the_variance_within_the_central_range():
    assert theory.limit_variance("uniform", 7, "systematic") == pytest.approx(1 / 49)
    assert theory.limit_variance("gaussian", 1, "systematic") == pytest.approx(1.0)
    # Gaussian: Var(xi | |xi| < q) = 1 - 2 M q phi(q), q the quantile of 1/2 + 1/(2M).
    noise = Noise("gaussian", 1.0)
    q = noise.quantile(0.5 + 1 / 6)
    expected = 1 - 6 * q * noise.pdf(q)
    assert theory.limit_variance("gaussian", 3, "systematic") == pytest.approx(expected)


def mean_around_the_circle(values, noise, permutation):
    """Averages the median over V by its exact CDF, on a fine grid."""
    majority = len(values) // 2 + 1
    edge = 9.0 if noise.law != "uniform" else math.sqrt(3)
    low, high = values.min() - edge * noise.scale, values.max() + edge * noise.scale
    t = np.linspace(low, high, 20_001)
    below = [
        arc_counts(p, permutation)[majority:].sum()
        for p in noise.cdf((t[:, None] - values) / noise.scale)
    ]
    return high - np.trapezoid(below, t)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 7])
def test_the_mean_is_exact_from_half_that_scale_on(law, num_workers):
    """From there on for every permutation, and not before."""
    values = asymmetric(num_workers, 2)
    scale = theory.unbiased_scale(values, law, mean_only=True)
    assert scale <= 0.5 * theory.unbiased_scale(values, law) * (1 + 1e-12)
    permutation = np.random.default_rng(3).permutation(num_workers)
    noise = Noise(law, 1.001 * scale, "systematic")
    assert theory.median_bias(values, noise) == 0.0
    mean = mean_around_the_circle(values, noise, permutation)
    assert mean == pytest.approx(values.mean(), abs=1e-5 * scale)
    too_little = Noise(law, 0.6 * scale, "systematic")
    assert abs(theory.median_bias(values, too_little)) > 1e-3
    with pytest.raises(ValueError, match=r"only from .* on"):
        theory.unbiased_median(values, noise)


@pytest.mark.parametrize("num_workers", [11, 101])
def test_the_scale_of_an_exact_mean_does_not_grow_with_uniform_noise(num_workers):
    values = asymmetric(num_workers, 4)
    scale = theory.unbiased_scale(values, mean_only=True)
    width = np.ptp(values)
    expected = width / math.sqrt(3) * num_workers / (num_workers + 1)
    assert scale == pytest.approx(expected, rel=1e-12)
    permutation = np.random.default_rng(0).permutation(num_workers)
    biases = [
        np.median(
            noisy_values(
                values, Noise("uniform", factor * scale), permutation, 100_003
            ),
            axis=1,
        ).mean()
        - values.mean()
        for factor in (0.5, 1.001)
    ]
    assert abs(biases[1]) < 1e-4 * scale < 5e-3 * scale < abs(biases[0])
    noise = Noise("uniform", 1.001 * scale, "systematic")
    # More workers than are enumerated, and b far below `unbiased_scale`.
    assert theory.median_bias(values, noise) == 0.0
    assert theory.rest_point(values, noise, "median") == values.mean()


@pytest.mark.parametrize("num_workers", [4, 6])
def test_the_midpoint_is_exact_beyond_the_same_scale(num_workers):
    values = asymmetric(num_workers, 13)
    noise = Noise("logistic", theory.unbiased_scale(values, "logistic"), "systematic")
    each = np.array(
        [
            theory.median_moments(values, noise, permutation=permutation)
            for permutation in itertools.permutations(range(num_workers))
        ]
    )
    assert each[:, 0] == pytest.approx(values.mean(), rel=1e-12)
    mean, variance = theory.unbiased_median(values, noise)
    assert (mean, variance) == pytest.approx(each.mean(axis=0), rel=1e-11)


def test_the_exact_regime_covers_any_number_of_workers():
    values = asymmetric(101, 14)
    scale = theory.unbiased_scale(values, "gaussian")
    noise = Noise("gaussian", scale, "systematic")
    mean, variance = theory.median_moments(values, noise)
    assert (mean, variance) == theory.unbiased_median(values, noise)
    found = theory.simulate_median(values, noise, 0, 20_000)
    assert abs(mean - found.mean) < 5 * found.standard_errors.mean
    assert abs(variance - found.variance) < 5 * found.standard_errors.variance


@pytest.mark.parametrize("num_workers", [1, 3, 5])
def test_every_fixed_permutation_votes_without_bias(num_workers):
    values = asymmetric(num_workers, 15)
    smallest = theory.unbiased_scale(values, "uniform", "vote")
    assert smallest == pytest.approx(num_workers * abs(values).max() / math.sqrt(3))
    for factor in (1.0, 2.5):
        noise = Noise("uniform", factor * smallest, "systematic")
        expected = theory.unbiased_vote(values, noise)
        mean_over_largest = values.mean() / abs(values).max()
        assert expected == pytest.approx(mean_over_largest / factor, rel=1e-12)
        for permutation in itertools.permutations(range(num_workers)):
            vote = theory.vote_probability(values, noise, permutation=permutation)
            assert vote.plus - vote.minus == pytest.approx(expected, abs=1e-13)
    with pytest.raises(ValueError, match="only from"):
        theory.unbiased_vote(values, Noise("uniform", 0.9 * smallest, "systematic"))


def test_the_dip_of_the_vote():
    """Between 3 sd and the exact regime the systematic vote does not see the mean."""
    values = np.concatenate([np.ones(3), np.zeros(28)])
    values = (values - values.mean()) / values.std()
    rest = {
        coupling: abs(theory.rest_point(values, Noise("uniform", 12.0, coupling)))
        for coupling in ("independent", "systematic")
    }
    assert rest["independent"] < 0.01
    assert 0.05 < rest["systematic"] < 0.16


def test_what_the_exact_regime_refuses():
    values = [1.0, 2.0, 10.0]
    with pytest.raises(ValueError, match="must be systematic"):
        theory.unbiased_median(values, Noise("uniform", 100.0))
    with pytest.raises(ValueError, match="'uniform' for an exactly unbiased vote"):
        theory.unbiased_scale(values, "gaussian", "vote")
    with pytest.raises(ValueError, match="odd number"):
        theory.unbiased_scale([1.0, 2.0], "uniform", "vote")
    with pytest.raises(ValueError, match=r"`permutation` must hold each of 0\.\.2"):
        theory.vote_probability(
            values, Noise("uniform", 1.0, "systematic"), permutation=[0, 0, 2]
        )
    with pytest.raises(ValueError, match="this noise is independent"):
        theory.median_moments(values, Noise("uniform", 1.0), permutation=[0, 1, 2])
