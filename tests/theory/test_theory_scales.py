"""The best noise scale, against a plain search, and the better coupling."""

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise
from jaxmedian.theory import scales
from jaxmedian.theory.numerics import drafts


def skewed(num_workers, coordinates, seed):
    rng = np.random.default_rng(seed)
    return rng.gamma(0.5, size=(num_workers, coordinates)) - 0.3


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize(
    ("law", "rule"), [("gaussian", "median"), ("uniform", "vote"), ("laplace", "vote")]
)
def test_no_scale_on_a_fine_grid_is_better(coupling, law, rule):
    values = skewed(5, 3, 0)
    mean = values.mean(axis=0)
    best = getattr(theory.best_scale(values, law, rule), coupling)

    def achieved(scale):
        noise = Noise(law, float(scale), coupling)
        if rule == "vote":
            vote = theory.vote_probability(values, noise)
            return -np.where(mean > 0, vote.plus, vote.minus).mean()
        centre, variance = theory.median_moments(values, noise)
        return ((centre - mean) ** 2 + variance).mean()

    sign = -1 if rule == "vote" else 1
    assert achieved(best.scale) == pytest.approx(sign * best.value, rel=1e-12)
    others = [achieved(scale) for scale in np.geomspace(1e-3, 30, 60)]
    assert sign * best.value <= min([*others, achieved(0.0)]) + 2e-4


MIXED_SIZES = {
    "descent": [[-1.0] * 9 + [10.0] * 2] * 9 + [[4e4, -4e4] * 5 + [0.1]],
    "vote": [[-1e-6] * 9 + [1e-5] * 2] * 9 + [[1.0] * 10 + [2.0]],
    "median": [[-1e-6] * 9 + [1e-5] * 2] * 9 + [[-10.0] * 5 + [0.0] + [10.0] * 5],
}


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("rule", list(MIXED_SIZES))
def test_small_coordinates_beside_a_large_one(rule, coupling):
    """The best b is far below a thousandth of the largest spread."""
    values = np.array(MIXED_SIZES[rule]).T
    mean = values.mean(axis=0)
    best = getattr(theory.best_scale(values, "gaussian", rule), coupling)

    def achieved(scale):
        noise = Noise("gaussian", float(scale), coupling)
        if rule == "median":
            found = drafts.Draws(values, "gaussian", coupling)
            return found.errors(float(scale), mean, "midpoint")
        vote = theory.vote_probability(values, noise)
        if rule == "vote":
            return -np.where(mean > 0, vote.plus, vote.minus).mean()
        return -mean @ (vote.plus - vote.minus) / np.abs(mean).sum()

    sign = 1 if rule == "median" else -1
    others = [achieved(scale) for scale in np.geomspace(1e-7, 1e2, 60)]
    assert best.scale < 1e-3 * np.ptp(values, axis=0).max()
    assert sign * best.value <= min(others) + 0.01 * abs(min(others))


def test_the_better_coupling_is_reported():
    values = [-0.1] * 9 + [1.0] * 2  # the noise-free vote is wrong
    best = theory.best_scale(values, "gaussian", "vote")
    assert best.coupling == "systematic"
    assert (best.scale, best.value) == best.systematic
    assert best.value > best.independent.value + 0.05
    # A vote that is right without noise needs none.
    with pytest.warns(UserWarning, match="in 1 of 1 coordinates all workers agree"):
        best = theory.best_scale([1.0, 2.0, 10.0], "gaussian", "vote")
    assert (best.scale, best.coupling, best.value) == (0.0, "independent", 1.0)


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
def test_leaving_out_hopeless_scales_changes_nothing(law):
    """The bound that spares the midpoint's double integrals, against a full search."""
    values = skewed(4, 3, 2)
    mean = values.mean(axis=0)
    best = theory.best_scale(values, law).independent

    def error(scale):
        centre, variance = theory.median_moments(values, Noise(law, float(scale)))
        return ((centre - mean) ** 2 + variance).mean()

    assert error(best.scale) == pytest.approx(best.value, rel=1e-12)
    errors = [error(scale) for scale in np.geomspace(1e-3, 30, 120)]
    assert best.value <= min([*errors, error(0.0)]) * (1 + 1e-6)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_descent_weighs_coordinates_by_their_mean(coupling):
    """The drop of f(x) = mean_i f_i(x) along a small vote step, over all its signs."""
    values = skewed(4, 2, 3)  # an even M: ties move nothing
    mean = values.mean(axis=0)
    best = getattr(theory.best_scale(values, "laplace", "descent"), coupling)

    def descent(scale):
        laws = theory.vote_probability(values, Noise("laplace", scale, coupling))
        drop = 0.0
        for j in range(2):
            for sign, law in zip((1, -1, 0), laws, strict=True):
                drop += law[j] * mean[j] * sign
        return drop / np.abs(mean).sum()

    assert descent(best.scale) == pytest.approx(best.value, rel=1e-12)
    others = [descent(float(scale)) for scale in np.geomspace(1e-3, 30, 80)]
    assert best.value >= max([*others, descent(0.0)]) - 2e-4


def test_descent_of_one_coordinate_is_the_excess_of_right_votes():
    values = [-0.1] * 9 + [1.0] * 2
    vote = theory.best_scale(values, "uniform", "vote")
    descent = theory.best_scale(values, "uniform", "descent")
    assert descent.scale == pytest.approx(vote.scale, rel=1e-2)
    assert descent.value == pytest.approx(2 * vote.value - 1, abs=1e-4)


def test_equal_and_symmetric_values_need_no_noise():
    with pytest.warns(UserWarning, match="answers b = 0"):
        assert theory.best_scale([3.0, 3.0, 3.0]).scale == 0.0
    with pytest.warns(UserWarning, match=r"Take `jaxmedian\.noise\.unbiased\(\)`"):
        found = theory.best_scale([-1.0, 0.0, 1.0])
    assert found.independent == (0.0, 0.0)
    with pytest.warns(UserWarning, match="answers b = 0"):  # as for 1, 1.2 and 1.6
        huge = theory.best_scale([1e308, 1.2e308, 1.6e308])  # 2**1024 is infinite
    assert (huge.scale, huge.value) == (0.0, np.inf)


def test_many_workers_and_a_simulated_coupling():
    values = skewed(11, 2, 1)
    best = theory.best_scale(values)
    noise = Noise("gaussian", best.systematic.scale, "systematic")
    mean, variance, errors = theory.simulate_median(values, noise, 5, 40_000)
    error = ((mean - values.mean(axis=0)) ** 2 + variance).mean()
    assert best.systematic.value == pytest.approx(error, rel=0.1)
    assert (errors.variance < 0.1 * variance).all()
    assert best.value == min(best.independent.value, best.systematic.value)


@pytest.mark.parametrize(("law", "even"), [("gaussian", "lower"), ("uniform", "upper")])
def test_the_simulated_error_is_that_of_all_permutations(law, even):
    values = skewed(6, 2, 4)  # enough workers for best_scale to simulate
    best = theory.best_scale(values, law, even=even).systematic
    noise = Noise(law, best.scale, "systematic")
    centre, variance = theory.median_moments(values, noise, even)
    error = ((centre - values.mean(axis=0)) ** 2 + variance).mean()
    # 65,536 draws: a squared Gaussian error varies by sqrt(2) of itself.
    assert best.value == pytest.approx(error, rel=5 * np.sqrt(2 / 2**15))


@pytest.mark.parametrize(
    ("num_workers", "coordinates", "law", "rule", "f"),
    [
        (10, 40, "gaussian", "median", 0),
        (11, 40, "logistic", "median", 1),
        (26, 40, "gaussian", "median", 0),
        (31, 30, "uniform", "vote", 0),
        (26, 40, "gaussian", "descent", 2),
    ],
)
def test_a_drafted_search_finds_the_optimum(num_workers, coordinates, law, rule, f):
    """Against the exact objective on a grid: the value within 3 parts in a thousand."""
    values = skewed(num_workers, coordinates, 5)
    mean = values.mean(axis=0)
    best = theory.best_scale(values, law, rule, f=f)

    def achieved(scale, coupling):
        noise = Noise(law, float(scale), coupling)
        if rule == "median":
            return theory.hostile_median_error(values, noise, f).mean()
        vote = theory.hostile_vote(values, noise, f)
        if rule == "descent":
            return -(mean @ (vote.plus - vote.minus)) / np.abs(mean).sum()
        return -np.where(mean > 0, vote.plus, vote.minus).mean()

    for coupling in ("independent", "systematic"):
        if rule == "median" and coupling == "systematic":
            continue  # has no formula for so many workers
        found = getattr(best, coupling)
        value = found.value if rule == "median" else -found.value
        tolerance = 1e-3 if num_workers * coordinates > 1000 else 1e-12
        assert achieved(found.scale, coupling) == pytest.approx(value, rel=tolerance)
        factors = [0.7, 0.85, 0.95, 1.05, 1.2, 1.4]
        others = [achieved(factor * found.scale, coupling) for factor in factors]
        assert value <= min(others) + 3e-3 * abs(min(others))


@pytest.mark.parametrize("rule", ["median", "vote", "descent"])
@pytest.mark.parametrize("coordinates", [4, 30])
def test_huge_gradients_do_not_stall_the_search(rule, coordinates, monkeypatch):
    """A power of 2 changes nothing; a few huge coordinates add a few points."""
    values = skewed(5, coordinates, 6)
    best = theory.best_scale(values, "gaussian", rule)
    far = theory.best_scale(2.0**500 * values, "gaussian", rule)
    assert far.independent.scale == 2.0**500 * best.independent.scale
    if rule != "median":
        assert far.independent.value == best.independent.value
    calls = []
    search = scales.least

    def counted(objective, *arguments, **options):
        def count(scale):
            calls.append(scale)
            return objective(scale)

        return search(count, *arguments, **options)

    monkeypatch.setattr(scales, "least", counted)
    values[:, :2] *= 1e300
    best = theory.best_scale(values, "gaussian", rule)
    assert np.isfinite(best.scale)
    assert len(calls) <= 2 * (1 + 120 + 40)  # a grid of 15 orders, and the search


def test_draws_follow_the_exact_laws():
    values = skewed(5, 3, 7)
    mean = values.mean(axis=0)
    for coupling in ("independent", "systematic"):
        noise = Noise("laplace", 0.7, coupling)
        draws = drafts.Draws(values, "laplace", coupling)
        centre, variance = theory.median_moments(values, noise)
        exact = ((centre - mean) ** 2 + variance).mean()
        found = draws.errors(0.7, mean, "midpoint")
        # 65,536 draws of a squared error with at most 6 times its square as variance
        assert found == pytest.approx(exact, rel=5 * np.sqrt(6 / 2**16))
        plus, minus = draws.votes(0.7, np.ones(3))
        vote = theory.vote_probability(values, noise)
        error = 5 * np.sqrt(1 / (4 * 2**16 / 3))
        assert plus == pytest.approx(vote.plus, abs=error)
        assert minus == pytest.approx(vote.minus, abs=error)


def test_what_best_scale_refuses():
    with pytest.raises(ValueError, match="mean 0 in every coordinate"):
        theory.best_scale([-1.0, 1.0], rule="vote")
    assert np.mean([0.1, 0.2, -0.3]) != 0  # by rounding alone
    with pytest.raises(ValueError, match="mean 0 in every coordinate"):
        theory.best_scale([0.1, 0.2, -0.3], rule="vote")
    with pytest.raises(ValueError, match="`law` must be one of"):
        theory.best_scale([1.0, 2.0], "cauchy")
    with pytest.raises(ValueError, match="`rule` must be one of median, vote, descent"):
        theory.best_scale([1.0, 2.0], rule="mean")
    with pytest.raises(ValueError, match="`even` must be one of"):
        theory.best_scale([1.0, 2.0], even="middle")
