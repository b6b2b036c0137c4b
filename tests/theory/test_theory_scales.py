"""The best noise scale, against a plain search, and the better coupling."""

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise


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


def test_the_better_coupling_is_reported():
    values = [-0.1] * 9 + [1.0] * 2  # the noise-free vote is wrong
    best = theory.best_scale(values, "gaussian", "vote")
    assert best.coupling == "systematic"
    assert (best.scale, best.value) == best.systematic
    assert best.value > best.independent.value + 0.05
    # A vote that is right without noise needs none.
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
    assert theory.best_scale([3.0, 3.0, 3.0]).scale == 0.0
    assert theory.best_scale([-1.0, 0.0, 1.0]).independent == (0.0, 0.0)


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


def test_what_best_scale_refuses():
    with pytest.raises(ValueError, match="mean 0 in every coordinate"):
        theory.best_scale([-1.0, 1.0], rule="vote")
    with pytest.raises(ValueError, match="`law` must be one of"):
        theory.best_scale([1.0, 2.0], "cauchy")
    with pytest.raises(ValueError, match="`rule` must be one of median, vote, descent"):
        theory.best_scale([1.0, 2.0], rule="mean")
    with pytest.raises(ValueError, match="`even` must be one of"):
        theory.best_scale([1.0, 2.0], even="middle")
