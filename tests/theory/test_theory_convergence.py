"""Bounds, schedules and rest points, on quadratics where everything is known."""

import math

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise, relative

LAWS = ("gaussian", "laplace", "logistic", "uniform")
MINIMISERS = np.array([1.0, 2.0, 10.0])
MEAN = MINIMISERS.mean()
D = 0.5 * MEAN**2  # f(0) - min f for f(x) = mean_i (x - a_i)^2 / 2, so L = 1


# --- noisy medianSGD is an AR(1) process ----------------------------------------------


def test_median_sgd_path_against_simulation():
    noise, delta, steps, runs = Noise("logistic", 4.0), 0.1, 25, 40_000
    rng = np.random.default_rng(0)
    x = np.zeros(runs)
    for _ in range(steps):
        xi = rng.logistic(scale=math.sqrt(3) / math.pi, size=(runs, 3))
        x -= delta * np.median(x[:, None] - MINIMISERS + 4.0 * xi, axis=1)
    mean, deviation = theory.median_sgd_path(MINIMISERS, noise, delta, 0.0, steps)
    assert abs(x.mean() - mean) < 5 * deviation / math.sqrt(runs)
    assert x.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * runs) * 1.5)


def test_median_sgd_path_at_its_ends():
    noise = Noise("gaussian", 5.0)
    mean, variance = theory.median_moments(MINIMISERS, noise)
    assert theory.median_sgd_path(MINIMISERS, noise, 0.3, 7.0, 0) == (7.0, 0.0)
    one = theory.median_sgd_path(MINIMISERS, noise, 0.3, 7.0, 1)
    expected = 7 + 0.3 * (mean - 7), 0.3 * math.sqrt(variance)
    assert one == pytest.approx(expected, rel=1e-12)
    rest = theory.median_sgd_path(MINIMISERS, noise, 0.3, 7.0)
    assert rest == pytest.approx((mean, math.sqrt(0.3 * variance / 1.7)), rel=1e-12)
    with pytest.raises(ValueError, match="below 2"):
        theory.median_sgd_path(MINIMISERS, noise, 2.0, 0.0)
    with pytest.raises(ValueError, match="`num_steps` must be a whole number or inf"):
        theory.median_sgd_path(MINIMISERS, noise, 1.5, 0.0, 10.5)
    with pytest.raises(TypeError, match="`num_steps` must be a number; got 'x'"):
        theory.median_sgd_path(MINIMISERS, noise, 1.5, 0.0, "x")
    with pytest.raises(ValueError, match="`start` must hold finite numbers; got nan"):
        theory.median_sgd_path(MINIMISERS, noise, 0.5, float("nan"))
    with pytest.raises(ValueError, match=r"`start` must be a number or have the shape"):
        theory.median_sgd_path(MINIMISERS, noise, 0.5, np.zeros(3))


# --- noisy signSGD rests where the vote is balanced -----------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("values", [MINIMISERS, np.array([0.0, 0.3, 2.0, 7.0])])
def test_votes_balance_at_the_rest_point(law, coupling, values):
    for scale in (0.5, 4.0):
        noise = Noise(law, scale, coupling)
        x = theory.rest_point(values, noise)
        vote = theory.vote_probability(x - values, noise)
        assert vote.plus == pytest.approx(vote.minus, abs=1e-11)
        right = theory.vote_probability(x + 0.3 * scale - values, noise)
        assert right.plus >= right.minus


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("scale", [1e7, 1e9, 1e12, 1e15, 1e30])
def test_votes_rest_at_the_mean_under_noise_that_is_huge(law, coupling, scale):
    """Also where rounding leaves nothing of the pull, about the range over b."""
    x = theory.rest_point(MINIMISERS, Noise(law, scale, coupling))
    assert x == pytest.approx(MEAN, rel=1e-5)


def test_rest_points_without_a_pull_and_without_noise():
    values = [0.0, 1.0, 10.0, 12.0]  # two against two anywhere between 1 and 10
    assert theory.rest_point(values, Noise("uniform", 0.1)) == pytest.approx(5.5)
    for rule in ("vote", "median"):
        assert theory.rest_point(MINIMISERS, Noise("gaussian", 0.0), rule) == 2.0
    assert theory.rest_point(values, Noise("gaussian", 0.0)) == 5.5


def test_rest_point_of_the_median_rule_and_of_many_coordinates():
    noise = Noise("laplace", 3.0)
    both = np.stack([MINIMISERS, -MINIMISERS], axis=1)
    mean, _ = theory.median_moments(both, noise)
    assert np.array_equal(theory.rest_point(both, noise, "median"), mean)
    votes = theory.rest_point(both, noise)
    assert votes[0] == pytest.approx(-votes[1], rel=1e-12)
    assert 2 < votes[0] < MEAN
    with pytest.raises(ValueError, match="`rule` must be one of vote, median"):
        theory.rest_point(both, noise, "mean")


# --- bounds ---------------------------------------------------------------------------


def squared_gradients(noise, delta, steps):
    """Computes mean_t E|f'(x_t)|^2 of noisy medianSGD from x_0 = 0, exactly."""
    mean, variance = theory.median_moments(MINIMISERS, noise)
    kept = (1 - delta) ** np.arange(steps)
    spread = delta * variance * (1 - kept**2) / (2 - delta)
    return float(((mean * (1 - kept) - MEAN) ** 2 + spread).mean())


@pytest.mark.parametrize("delta", [0.9, 0.1, 0.01])
@pytest.mark.parametrize("scale", [0.0, 2.0, 20.0])
def test_theorem2_holds_on_quadratics(delta, scale):
    noise = Noise("gaussian", scale)
    mean, variance = theory.median_moments(MINIMISERS, noise)
    left = squared_gradients(noise, delta, 500)
    right = theory.theorem2_bound(
        delta, 500, 1, 1.0, D, math.sqrt(variance), (mean - MEAN) ** 2
    )
    assert left <= right
    assert right <= 30 * left + 1e-12  # and is no empty statement


def test_theorem1_holds_on_quadratics():
    steps = 2_000
    delta = math.sqrt(D / steps)
    x, total = 0.0, 0.0
    for _ in range(steps):
        total += abs(x - MEAN)
        x -= delta * np.sign(np.sign(x - MINIMISERS).sum())
    gap = MEAN - 2.0  # the median's bias, wherever x is
    assert total / steps <= theory.theorem1_bound(steps, 1, 1.0, D, 0.0, gap)
    assert theory.theorem1_bound(400, 4, 2.0, 8.0, 0.5, 0.25) == pytest.approx(
        1.5 * math.sqrt(4 * 2 * 8 / 400) + 2 * 4 * 0.5 + 2 * 0.25
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("num_workers", [3, 5, 11])
def test_the_bias_and_deviation_inside_theorem6(law, ratio, num_workers):
    """|bias| <= min(R, M h(0) R^2 / (2 b)) and sd <= b sigma + R / 2."""
    rng = np.random.default_rng(num_workers)
    values = np.stack(
        [rng.gamma(0.3, size=num_workers), rng.normal(size=num_workers)], 1
    )
    values /= np.ptp(values, axis=0)  # R = 1
    noise = Noise(law, ratio)
    bias = np.abs(theory.median_bias(values, noise)).max()
    peak = float(noise.pdf(0.0))
    assert bias <= min(1.0, num_workers * peak / (2 * ratio))
    _, variance = theory.median_moments(values, noise)
    sigma = math.sqrt(theory.limit_variance(law, num_workers))
    assert math.sqrt(variance.max()) <= ratio * sigma + 0.5


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("delta", "scale"), [(0.01, 10.0), (1e-3, 60.0)])
def test_theorem6_holds_on_quadratics(law, delta, scale):
    noise = Noise(law, scale)
    left = squared_gradients(noise, delta, 10_000)
    right = theory.theorem6_bound(delta, 10_000, 1, 1.0, D, noise, 3, 9.0)
    assert left <= right


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [25.0, 60.0])
def test_the_vote_inside_theorem5(law, scale):
    """E[vote] is within 2 A / b^2 of that of equal values, at every gradient."""
    noise, width, m = Noise(law, scale), 9.0, 3
    steepest = {
        "gaussian": 0.2419707245,
        "laplace": 1.0,
        "logistic": 0.3165,
        "uniform": 0,
    }
    a = m * width**2 * (steepest[law] + m * float(noise.pdf(0.0)) ** 2) / 8
    x = (
        np.linspace(-2 * scale, 2 * scale, 201)
        if law != "uniform"
        else np.linspace(-scale, scale, 201)
    )
    shifted = x + (MINIMISERS - MEAN)[:, None]
    vote = theory.vote_probability(shifted, noise)
    equal = theory.vote_probability(np.broadcast_to(x, shifted.shape), noise)
    difference = (vote.plus - vote.minus) - (equal.plus - equal.minus)
    assert np.abs(difference).max() <= 2 * a / scale**2


@pytest.mark.parametrize("law", LAWS)
def test_theorem5_holds_on_quadratics(law):
    noise, delta, steps, runs = Noise(law, 25.0), 0.05, 4_000, 50
    sigma = math.sqrt(theory.limit_variance(law, 3))
    grid = np.linspace(-20, 30, 20_001)
    vote = theory.vote_probability(grid - MINIMISERS[:, None], noise)
    rng = np.random.default_rng(0)
    x, total = np.zeros(runs), 0.0
    for _ in range(steps):
        gradient = np.abs(x - MEAN)
        large = gradient >= 2 / math.sqrt(3) * 25.0 * sigma
        total += np.where(large, 25.0 * gradient, gradient**2).mean()
        plus = np.interp(x, grid, vote.plus)
        x -= delta * np.where(rng.uniform(size=runs) < plus, 1.0, -1.0)
    right = theory.theorem5_bound(delta, steps, 1, 1.0, D, noise, 3, 9.0)
    assert total / steps <= right
    with pytest.raises(ValueError, match="must be > 0 and >= "):
        theory.theorem5_bound(delta, steps, 1, 1.0, D, Noise(law, 2.0), 3, 9.0)


def test_the_bounds_are_the_formulas_of_their_docstrings():
    delta, steps, d, smooth, gap, b, m, width = 1e-3, 10**5, 7, 2.0, 3.0, 40.0, 3, 5.0
    noise = Noise("gaussian", b)
    sigma = math.sqrt(theory.limit_variance("gaussian", m))
    peak, steepest = 1 / math.sqrt(2 * math.pi), math.exp(-0.5) / math.sqrt(2 * math.pi)
    a = m * width**2 * (steepest + m * peak**2) / 8
    left = min(1.0, 2 * sigma / math.sqrt(3))
    right = (
        2 * math.sqrt(3) * sigma * b * (gap / (steps * delta) + smooth * delta * d / 2)
    )
    right += 12 * d * sigma**2 * a**2 / b**2
    found = theory.theorem5_bound(delta, steps, d, smooth, gap, noise, m, width)
    assert found == pytest.approx(right / left, rel=1e-12)
    right = (
        2 * gap / (steps * delta) + smooth * delta * d * (b * sigma + width / 2) ** 2
    )
    right += d * (m * peak * width**2 / (2 * b)) ** 2
    found = theory.theorem6_bound(delta, steps, d, smooth, gap, noise, m, width)
    assert found == pytest.approx(right, rel=1e-12)
    tiny = Noise("gaussian", 1e-3)  # here |bias| <= R is the better bound
    found = theory.theorem6_bound(delta, steps, d, smooth, gap, tiny, m, width)
    right = 2 * gap / (steps * delta) + d * width**2
    right += smooth * delta * d * (1e-3 * sigma + width / 2) ** 2
    assert found == pytest.approx(right, rel=1e-12)


def test_the_orders_of_theorems_5_and_6():
    """Along their schedules the bounds fall like T^{-1/4} and T^{-1/3}."""
    for bound, schedule, order in (
        (theory.theorem5_bound, theory.schedule_theorem5, 1 / 4),
        (theory.theorem6_bound, theory.schedule_theorem6, 1 / 3),
    ):
        rights = []
        for steps in (10**15, 10**18):
            b, delta = schedule(steps, 1)
            noise = Noise("gaussian", b)
            rights.append(bound(delta, steps, 1, 1.0, 1.0, noise, 3, 1.0))
        slope = math.log10(rights[0] / rights[1]) / 3
        assert slope == pytest.approx(order, abs=0.01)


def test_schedules():
    assert theory.schedule_theorem5(10**6, 100) == pytest.approx((100.0, 1e-4))
    assert theory.schedule_theorem6(10**4, 100) == pytest.approx((10.0, 1e-4))
    found = theory.schedule_sharper(10**8, 100)
    assert found == pytest.approx((10.0, 1e-6))
    found = theory.schedule_sharper(10**4, 100, "noisy_sign_sgd")
    assert found == pytest.approx((10.0, 1e-3))
    scale, learning_rate = found
    assert (found.scale, found.learning_rate) == (scale, learning_rate)
    with pytest.raises(ValueError, match="noisy_median_sgd, noisy_sign_sgd"):
        theory.schedule_sharper(10, 10, "sgd")
    with pytest.raises(ValueError, match="`num_steps`"):
        theory.schedule_theorem5(0, 10)
    with pytest.raises(TypeError, match="`num_coordinates`"):
        theory.schedule_theorem6(10, 1.5)


def test_rates_of_noisy_median_sgd():
    """Mean squared gradient: T^{-1/3} along Theorem 6, T^{-2/5} along the sharper."""
    steps = np.array([10**6, 10**8])
    for power, step_power, slope in ((1 / 6, 2 / 3, -0.334), (1 / 10, 3 / 5, -0.404)):
        results = []
        for count in steps:
            noise, delta = Noise("gaussian", 5 * count**power), count**-step_power
            mean, variance = theory.median_moments(MINIMISERS, noise)
            bias = theory.median_bias(MINIMISERS, noise)
            # Geometric sums of squared bias and variance, r = 1 - delta.
            r, t = 1 - delta, float(count)
            first, second = (1 - r**t) / delta, (1 - r ** (2 * t)) / (1 - r**2)
            squared = bias**2 * t - 2 * bias * mean * first + mean**2 * second
            squared += delta * variance / (2 - delta) * (t - second)
            results.append(squared / t)
        found = math.log(results[1] / results[0]) / math.log(steps[1] / steps[0])
        assert found == pytest.approx(slope, abs=0.012)


@pytest.mark.parametrize("bound", [theory.theorem5_bound, theory.theorem6_bound])
def test_what_the_noisy_bounds_refuse(bound):
    good = (1e-3, 100, 1, 1.0, 1.0, Noise("gaussian", 100.0), 3, 1.0)
    assert bound(*good) > 0

    def changed(position, value):
        return (*good[:position], value, *good[position + 1 :])

    for position, value, message in (
        (0, 0.0, "`learning_rate` must be finite and > 0"),
        (3, -1.0, "`smoothness`"),
        (5, Noise("gaussian", 100.0, "systematic"), "must be independent"),
        (5, Noise("gaussian", 0.0), "must be"),
        (5, Noise("gaussian", relative(0.1)), "`noise.scale` must be a number here"),
        (6, 4, "`num_workers` must be odd"),
        (7, math.nan, "`spread`"),
    ):
        with pytest.raises(ValueError, match=message):
            bound(*changed(position, value))
    with pytest.raises(TypeError, match="`initial_suboptimality` must be a number"):
        bound(*changed(4, "1"))


def test_theorem2_is_silent_beyond_one_over_l():
    with pytest.raises(ValueError, match=r"1 / smoothness = 0\.5"):
        theory.theorem2_bound(0.6, 10, 1, 2.0, 1.0, 0.0, 0.0)
