"""The law of the median of independent noise against slow oracles and simulation."""

import itertools
import math
import os

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise, relative

LAWS = ("gaussian", "laplace", "logistic", "uniform")
# A script run with 10 million draws: JAXMEDIAN_THEORY_DRAWS=10000000 pytest ...
DRAWS = int(os.environ.get("JAXMEDIAN_THEORY_DRAWS", "100000"))


def numpy_noise(law, rng, shape):
    """Draws unit-variance noise with NumPy's own samplers."""
    if law == "gaussian":
        return rng.standard_normal(shape)
    if law == "laplace":
        return rng.laplace(scale=math.sqrt(0.5), size=shape)
    if law == "logistic":
        return rng.logistic(scale=math.sqrt(3) / math.pi, size=shape)
    return rng.uniform(-math.sqrt(3), math.sqrt(3), shape)


def asymmetric(num_workers, seed):
    """Draws skewed values, so that a sign error cannot hide."""
    return np.random.default_rng(seed).gamma(0.7, size=num_workers) * 3 - 1


def smooth_pieces(law, values, scale):
    """Returns the ends of the noise and its kinks, for slow quadrature."""
    noise = Noise(law, 1.0)
    reach = noise._law.bound if law == "uniform" else 40.0
    ends = [min(values) - reach * scale, max(values) + reach * scale]
    kinks = [u + scale * k for u in values for k in noise._law.kinks]
    pieces = np.linspace(*ends, 400)
    return np.unique(np.concatenate([pieces, kinks]))


def integral(function, points):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = 0.5 * np.diff(points)[:, None]
    x = 0.5 * (points[1:] + points[:-1])[:, None] + half * nodes
    return float((function(x) * half * weights).sum())


# --- brute force ----------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [0.2, 1.3, 8.0])
def test_three_workers_by_the_density_written_out(law, scale):
    values, noise = (-1.0, 0.4, 3.0), Noise(law, scale)

    def density(x):
        cdf = [noise.cdf((x - u) / scale) for u in values]
        pdf = [noise.pdf((x - u) / scale) / scale for u in values]
        return sum(
            pdf[i] * (cdf[j] * (1 - cdf[k]) + cdf[k] * (1 - cdf[j]))
            for i, j, k in [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
        )

    points = smooth_pieces(law, values, scale)
    mean = integral(lambda x: x * density(x), points)
    variance = integral(lambda x: (x - mean) ** 2 * density(x), points)
    found = theory.median_moments(values, noise)
    assert found == pytest.approx((mean, variance), rel=1e-10)
    t = np.linspace(-2, 4, 7)
    assert theory.median_density(values, noise, t) == pytest.approx(density(t))


def joint_by_subsets(noise, values, x, y):
    """Computes P(A <= x, B > y) by summing over who is among the lower half."""
    m, scale = len(values) // 2, noise.scale
    total = 0.0
    for lower in itertools.combinations(range(len(values)), m):
        term = 1.0
        for i, u in enumerate(values):
            is_low = i in lower
            z = (x - u) / scale if is_low else (u - y) / scale
            term = term * noise.cdf(z)
        total = total + term
    return total


@pytest.mark.parametrize("law", ["gaussian", "logistic"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_variance_of_the_midpoint_by_a_plain_double_integral(law, scale):
    # Var = (E A^2 + E B^2) / 2 - E(B - A)^2 / 4 - mean^2, E(B - A)^2 = 2 int int_{x<y}.
    values, noise = (-1.0, -0.4, 0.7, 3.0), Noise(law, scale)
    reach = (9 if law == "gaussian" else 17) * scale
    nodes, weights = np.polynomial.legendre.leggauss(300)
    low, high = min(values) - reach, max(values) + reach
    x = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    inner = 0.5 * (high - x)[:, None]  # y from x to the upper end
    y = x[:, None] + inner * (1 + nodes)
    joint = joint_by_subsets(noise, values, x[:, None], y)
    squared_gap = 2 * (
        weights * (0.5 * (high - low)) @ (joint * inner * weights).sum(1)
    )
    moments = [
        theory.median_moments(values, noise, even) for even in ("lower", "upper")
    ]
    mean = 0.5 * (moments[0][0] + moments[1][0])
    second = [variance + centre**2 for centre, variance in moments]
    variance = 0.5 * sum(second) - 0.25 * squared_gap - mean**2
    found = theory.median_moments(values, noise)
    assert found == pytest.approx((mean, variance), rel=1e-8)


@pytest.mark.parametrize("num_workers", [2, 4, 10, 50])
@pytest.mark.parametrize("rule", ["midpoint", "lower", "upper"])
def test_equal_values_and_uniform_noise_are_order_statistics(num_workers, rule):
    # U_(r) of M uniforms on (0, 1) is Beta(r, M - r + 1), Cov(U_(r), U_(s)) known.
    m, size = num_workers // 2, num_workers + 1

    def covariance(r, s):
        return r * (size - s) / (size**2 * (size + 1))

    ranks = {"midpoint": (m, m + 1), "lower": (m,), "upper": (m + 1,)}[rule]
    mean = np.mean([r / size for r in ranks])
    variance = np.mean([covariance(min(r, s), max(r, s)) for r in ranks for s in ranks])
    width = 2 * math.sqrt(3)
    found = theory.median_moments([1.0] * num_workers, Noise("uniform", 1.0), rule)
    expected = 1 + width * (mean - 0.5), width**2 * variance
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [1e-3, 0.7, 50.0])
def test_one_and_two_workers_are_plain_averages(law, scale):
    noise = Noise(law, scale)
    assert theory.median_moments([3.0], noise) == pytest.approx((3.0, scale**2))
    found = theory.median_moments([3.0, -1.0], noise)
    assert found == pytest.approx((1.0, scale**2 / 2), rel=1e-9)


# --- exact properties -----------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 10, 11])
@pytest.mark.parametrize("ratio", [1e-3, 0.03, 1.0, 40.0, 1e4, 1e6])
def test_no_bias_for_symmetric_values(law, num_workers, ratio):
    half = asymmetric(num_workers // 2, 3)
    values = 0.3 + np.concatenate([half, -half, np.zeros(num_workers % 2)])
    spread = np.ptp(values) or 1.0
    scale = ratio * spread
    noise = Noise(law, scale)
    assert abs(theory.median_bias(values, noise)) <= 1e-12 * (spread + scale)
    mean, _ = theory.median_moments(values, noise)
    assert mean == pytest.approx(0.3, abs=1e-12 * (spread + scale))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 4, 7])
def test_moving_and_stretching_values_and_noise(law, num_workers):
    values = asymmetric(num_workers, 5)
    mean, variance = theory.median_moments(values, Noise(law, 0.8))
    found = theory.median_moments(1e3 - 0.01 * values, Noise(law, 0.008))
    assert found == pytest.approx((1e3 - 0.01 * mean, 1e-4 * variance), rel=1e-9)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 4, 5, 8, 101])
def test_the_two_ways_to_the_bias_meet(law, num_workers):
    """At max|e| = 0.02 (0.5) quadrature gives way to the expansion of `large_noise`."""
    values = asymmetric(num_workers, 7)
    far = np.abs(values - values.mean()).max()
    edge = far / (0.5 if law == "uniform" else 0.02)
    below, above = (
        theory.median_bias(values, Noise(law, edge * (1 + side * 1e-7)))
        for side in (-1, 1)
    )
    assert below == pytest.approx(above, rel=2e-6, abs=1e-15 * edge)


@pytest.mark.parametrize("law", LAWS)
def test_tiny_noise_leaves_the_median(law):
    values = [5.0, -1.0, 2.0, 2.5, 40.0]
    mean, variance = theory.median_moments(values, Noise(law, 1e-3))
    assert mean == pytest.approx(2.5, rel=1e-12)
    assert variance == pytest.approx(1e-6, rel=1e-9)
    mean, variance = theory.median_moments([0.0, 1e9, 3.0, -1e9], Noise(law, 1e-3))
    assert (mean, variance) == pytest.approx((1.5, 0.5e-6), rel=1e-9)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize(
    ("even", "middle"), [("midpoint", 1.5), ("lower", 1.0), ("upper", 2.0)]
)
def test_scale_zero_is_the_noise_free_rule(coupling, even, middle):
    values, noise = [2.0, 1.0, -5.0, 9.0], Noise("laplace", 0.0, coupling)
    assert theory.median_moments(values, noise, even) == (middle, 0.0)
    assert theory.median_bias(values, noise, even) == middle - 1.75
    if even != "midpoint":
        steps = theory.median_cdf(values, noise, [middle - 1e-9, middle], even)
        assert steps.tolist() == [0.0, 1.0]
    assert theory.vote_probability([0.0, -2.0, 0.0], noise) == (0.0, 1.0, 0.0)
    assert theory.vote_probability([0.0, -2.0, 2.0], noise) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("even", ["midpoint", "lower", "upper"])
def test_many_coordinates_are_each_coordinate(law, even):
    values = np.stack([asymmetric(6, seed) for seed in range(4)], axis=1)
    noise = Noise(law, 0.9)
    mean, variance = theory.median_moments(values.reshape(6, 2, 2), noise, even)
    bias = theory.median_bias(values, noise, even)
    vote = theory.vote_probability(values, noise)
    assert mean.shape == variance.shape == (2, 2)
    for c in range(4):
        one = theory.median_moments(values[:, c], noise, even)
        assert (mean.ravel()[c], variance.ravel()[c]) == pytest.approx(one, rel=1e-11)
        assert bias[c] == pytest.approx(one[0] - values[:, c].mean(), rel=1e-9)
        assert vote.plus[c] == theory.vote_probability(values[:, c], noise).plus
    assert all(isinstance(part, float) for part in one)


def test_a_relative_scale_is_resolved_on_the_values():
    values = np.array([[1.0, -8.0], [2.0, 0.5], [10.0, 4.0]])  # max|.|: 8, 2, 10
    for statistic, scale in (("max", 5.0), ("median", 4.0)):
        found = theory.median_moments(
            values, Noise("gaussian", relative(0.5, statistic))
        )
        expected = theory.median_moments(values, Noise("gaussian", scale))
        assert np.array_equal(found, expected)


# --- CDF and density ------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize(("num_workers", "even"), [(5, "midpoint"), (6, "upper")])
def test_the_density_is_the_slope_of_the_cdf(law, coupling, num_workers, even):
    values, noise = asymmetric(num_workers, 11), Noise(law, 0.6, coupling)
    t = np.median(values) + np.array([-0.6123, -0.1271, 0.0519, 0.2331, 0.4442])
    density = theory.median_density(values, noise, t, even)
    ahead, behind = (
        theory.median_cdf(values, noise, t + side * 1e-6, even) for side in (1, -1)
    )
    assert density == pytest.approx((ahead - behind) / 2e-6, abs=1e-7)
    assert (density >= 0).all()
    assert density.max() > 0.1


def test_thresholds_broadcast_against_coordinates():
    values, noise = (
        np.stack([asymmetric(3, 1), asymmetric(3, 2)], 1),
        Noise("logistic", 1),
    )
    grid = np.array([[-1.0], [0.0], [2.0]])
    found = theory.median_cdf(values, noise, grid)
    assert found.shape == (3, 2)
    assert found[2, 1] == theory.median_cdf(values[:, 1], noise, 2.0)
    assert theory.median_density(values, noise, grid).shape == (3, 2)


# --- simulation -----------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 4, 5, 10, 11, 101])
def test_agreement_with_simulation(law, num_workers):
    rng = np.random.default_rng(num_workers)
    values, scale = asymmetric(num_workers, num_workers + 1), 1.1
    sums, votes = np.zeros(4), np.zeros(2)
    mean, variance = theory.median_moments(values, Noise(law, scale))
    block = max(1, min(DRAWS, 10**7 // num_workers))
    for start in range(0, DRAWS, block):
        shape = (min(block, DRAWS - start), num_workers)
        noisy = values + scale * numpy_noise(law, rng, shape)
        centred = np.median(noisy, axis=1) - mean
        sums += [(centred**power).sum() for power in (1, 2, 3, 4)]
        tally = np.sign(noisy).sum(axis=1)
        votes += [(tally > 0).sum(), (tally == 0).sum()]
    m1, m2, _, m4 = sums / DRAWS
    assert abs(m1) < 5 * math.sqrt(variance / DRAWS)
    assert abs(m2 - variance) < 5 * math.sqrt((m4 - variance**2) / DRAWS)
    plus, _, tie = theory.vote_probability(values, Noise(law, scale))
    for found, p in zip(votes / DRAWS, (plus, tie), strict=True):
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / DRAWS)


def test_a_thousand_workers():
    values = asymmetric(1001, 0)
    mean, variance = theory.median_moments(values, Noise("gaussian", 1.5))
    # The median of many is near the solution of mean_i H((x - u_i) / b) = 1/2, and its
    # variance near sum_i p_i (1 - p_i) / (sum_i h_i)^2.
    noise = Noise("gaussian", 1.0)
    p = noise.cdf((mean - values) / 1.5)
    slope = noise.pdf((mean - values) / 1.5).sum() / 1.5
    assert p.mean() == pytest.approx(0.5, abs=1e-3)
    assert variance == pytest.approx((p * (1 - p)).sum() / slope**2, rel=5e-3)


def test_two_hundred_workers_have_a_midpoint_and_more_are_refused():
    values, noise = asymmetric(200, 0), Noise("gaussian", 1.0)
    lower, middle, upper = (
        theory.median_moments(values, noise, even)
        for even in ("lower", "midpoint", "upper")
    )
    assert middle[0] == pytest.approx(0.5 * (lower[0] + upper[0]), rel=1e-12)
    # Var((A + B) / 2) = (V_A + V_B) / 2 - Var(B - A) / 4, and the gap is about
    # exponential with mean E(B - A).
    expected = 0.5 * (lower[1] + upper[1]) - 0.25 * (upper[0] - lower[0]) ** 2
    assert middle[1] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match=r"202 workers.*up to 200.*simulate_median"):
        theory.median_moments(np.zeros(202), noise)
    assert theory.median_bias(np.arange(202.0) ** 2, noise) < 0
