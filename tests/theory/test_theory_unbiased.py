"""Unbiased medians and votes beyond a finite scale, in theory and in the kernels."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm
from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.theory.numerics.systematic import arc_counts

LAWS = ("gaussian", "laplace", "logistic", "uniform")


def asymmetric(num_workers, seed):
    return np.random.default_rng(seed).gamma(0.7, size=num_workers) * 3 - 1.3


def noisy_values(values, noise, permutation, num_points):
    """Follows V over the midpoints of a grid, [num_points, M]."""
    position = (np.arange(num_points)[:, None] + 0.5) / num_points
    slots = np.asarray(permutation) / len(values)
    return values + noise.scale * noise.quantile((position + slots) % 1.0)


# --- the kernels ----------------------------------------------------------------------


def step_means(aggregator, rows, num_steps, groups=1, **extra):
    """Averages the aggregate of equal columns, [num_steps, groups of them]."""

    @jax.jit
    def run(state):
        def step(state, _):
            out, state = aggregator.update(rows, state, **extra)
            return state, out.reshape(groups, -1).mean(axis=1)

        return jax.lax.scan(step, state, None, length=num_steps)[1]

    return np.asarray(run(aggregator.init(jnp.zeros(rows.shape[1:]))), np.float64)


def columns(values, d=512):
    return jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None], (len(values), d))


@pytest.mark.parametrize("ties", ["zero", "random"])
@pytest.mark.parametrize("num_workers", [4, 10])
def test_the_vote_of_an_even_number_follows_the_mean(num_workers, ties):
    """E[vote] = mean / max|u| at half of the scale that odd numbers need."""
    values = np.linspace(-0.4, 1.0, num_workers) ** 3
    scale = theory.unbiased_scale(values, "uniform", "vote")
    noise = jm.noise.uniform(scale, "systematic")
    found = step_means(jm.majority_vote(noise, 0, ties=ties), columns(values), 2000)
    # Every permutation is unbiased and coordinates have V of their own: variance <= 1.
    error = 1 / math.sqrt(2000 * 512)
    expected = values.mean() / abs(values).max()
    assert abs(found.mean() - expected) < 5 * error < 0.1 * expected
    half = theory.unbiased_vote(values, noise)
    assert half == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_workers", [4, 5])
def test_each_coordinate_at_its_own_scale(num_workers):
    """`noise.unbiased` adds the b_j of `unbiased_scale`, and E[median] is the mean."""
    values = np.random.default_rng(1).gamma(0.5, size=(num_workers, 3)) * [0.01, 1, 40]
    rows = jnp.asarray(np.repeat(values, 256, axis=1), jnp.float32)
    aggregator = jm.coordinate_median(jm.noise.unbiased(), 0)
    found = step_means(aggregator, rows, 2000, groups=3).mean(axis=0)
    scales = theory.unbiased_scale(values, mean_only=True)
    for j, scale in enumerate(scales):
        noise = Noise("uniform", float(scale), "systematic")
        mean, variance = theory.median_moments(values[:, j], noise)
        assert mean == pytest.approx(values[:, j].mean(), rel=1e-14)
        error = math.sqrt(variance / (2000 * 256))
        noise_free = np.median(values[:, j])
        assert abs(found[j] - mean) < 5 * error < 0.2 * abs(noise_free - mean)


@pytest.mark.parametrize("present", [11, 10, 9, 8])
def test_the_number_present_sets_the_parity(present):
    """n mean / (sqrt(3) b) times 1, 1/2, 1, 1/2 for 11, 10, 9, 8 workers and one b."""
    values = np.linspace(-0.4, 1.0, 11) ** 3
    scale = theory.unbiased_scale(values, "uniform", "vote")
    noise = jm.noise.uniform(scale, "systematic")
    mask = np.arange(11) >= 11 - present
    found = step_means(
        jm.majority_vote(noise, 0), columns(values), 2000, worker_mask=jnp.asarray(mask)
    )
    tally = values[mask].sum() / (math.sqrt(3) * scale)
    expected = tally if present % 2 else tally / 2
    assert theory.unbiased_vote(values[mask], noise) == pytest.approx(expected)
    assert abs(found.mean() - expected) < 5 / math.sqrt(2000 * 512) < 0.1 * expected


def test_scaled_gradients_follow_the_weighted_mean():
    """w_i M / sum(w) g_i in place of weights: E[vote] is the weighted mean's."""
    values = np.array([1.0, -0.8, -0.8, -0.8, -0.8])
    weights = np.array([5.0, 2, 2, 2, 2])
    scaled = values * weights * 5 / weights.sum()
    noise = jm.noise.uniform(
        theory.unbiased_scale(scaled, "uniform", "vote"), "systematic"
    )
    found = step_means(jm.majority_vote(noise, 0), columns(scaled), 2000)
    weighted_mean = np.average(values, weights=weights)  # -1.4 / 13
    expected = weighted_mean / abs(scaled).max()
    assert theory.unbiased_vote(scaled, noise) == pytest.approx(expected)
    assert abs(found.mean() - expected) < 5 / math.sqrt(2000 * 512) < 0.1 * -expected
    median = step_means(jm.coordinate_median(noise, 1), columns(scaled), 2000)
    _, variance = theory.median_moments(scaled, noise)
    error = math.sqrt(variance / (2000 * 512))
    assert abs(median.mean() - weighted_mean) < 5 * error < 0.1 * -weighted_mean


# --- moments beyond the thresholds ----------------------------------------------------


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


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 6])
def test_every_fixed_permutation_votes_without_bias(num_workers):
    values = asymmetric(num_workers, 15)
    smallest = theory.unbiased_scale(values, "uniform", "vote")
    odd_threshold = num_workers * abs(values).max() / math.sqrt(3)
    halves = 1 if num_workers % 2 else 2
    assert smallest == pytest.approx(odd_threshold / halves, rel=1e-15)
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


@pytest.mark.parametrize("values", [[3.0], [0.0, 1.0]])
def test_one_worker_and_the_midpoint_of_two_are_exact_from_zero_on(values):
    """E = mean(u) and Var = b^2 Var(midpoint of the noise), by all permutations."""
    assert theory.unbiased_scale(values) == 0
    noise = Noise("uniform", 0.1, "systematic")
    mean, variance = theory.unbiased_median(values, noise)
    each = [
        theory.median_moments(values, noise, permutation=permutation)
        for permutation in itertools.permutations(range(len(values)))
    ]
    assert mean == np.mean(values) == pytest.approx(np.mean([e[0] for e in each]))
    assert variance == pytest.approx(np.mean([e[1] for e in each]), rel=1e-12)
    assert variance == pytest.approx(0.01 / len(values) ** 2, rel=1e-12)


def test_what_the_exact_regime_refuses():
    values = [1.0, 2.0, 10.0]
    with pytest.raises(ValueError, match="must be systematic"):
        theory.unbiased_median(values, Noise("uniform", 100.0))
    with pytest.raises(ValueError, match="'uniform' for an exactly unbiased vote"):
        theory.unbiased_scale(values, "gaussian", "vote")
    with pytest.raises(ValueError, match=r"`permutation` must hold each of 0\.\.2"):
        theory.vote_probability(
            values, Noise("uniform", 1.0, "systematic"), permutation=[0, 0, 2]
        )
    with pytest.raises(ValueError, match="this noise is independent"):
        theory.median_moments(values, Noise("uniform", 1.0), permutation=[0, 1, 2])
