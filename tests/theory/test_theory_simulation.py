"""The simulators against the exact laws, and their standard errors."""

import jax
import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise

LAWS = ("gaussian", "laplace", "logistic", "uniform")
VALUES = np.array([[1.0, -2.0], [2.0, 0.1], [10.0, 0.2], [-1.0, 9.0]])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("even", ["midpoint", "upper"])
def test_simulated_medians(law, coupling, even):
    noise = Noise(law, 3.0, coupling)
    mean, variance = theory.median_moments(VALUES, noise, even)
    found = theory.simulate_median(VALUES, noise, 7, 100_000, even)
    assert (np.abs(found.mean - mean) < 5 * found.standard_errors.mean).all()
    assert (
        np.abs(found.variance - variance) < 5 * found.standard_errors.variance
    ).all()
    assert found.standard_errors.mean == pytest.approx(
        np.sqrt(variance / 1e5), rel=0.02
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_simulated_votes(law, coupling):
    noise = Noise(law, 3.0, coupling)
    exact = theory.vote_probability(VALUES, noise)
    found = theory.simulate_vote(VALUES, noise, 7, 100_000)
    for estimate, p, error in zip(found[:3], exact, found[3], strict=True):
        assert (np.abs(estimate - p) <= 5 * error).all()
    assert found.plus + found.minus + found.tie == pytest.approx(np.ones(2))


def test_standard_errors_are_honest():
    """Over 200 seeds, the errors of mean and variance have the reported deviation."""
    noise, draws = Noise("laplace", 2.0), 400
    runs = [
        theory.simulate_median(VALUES[:, 0], noise, seed, draws) for seed in range(200)
    ]
    mean, variance = theory.median_moments(VALUES[:, 0], noise)
    scores = [(run.mean - mean) / run.standard_errors.mean for run in runs]
    assert np.std(scores) == pytest.approx(1.0, abs=0.25)  # 5 sigma of 1 / sqrt(400)
    scores = [(run.variance - variance) / run.standard_errors.variance for run in runs]
    assert np.std(scores) == pytest.approx(1.0, abs=0.35)


def test_the_key_decides():
    noise = Noise("gaussian", 1.0)
    first = theory.simulate_median([1.0, 2.0, 4.0], noise, 3, 100)
    assert first == theory.simulate_median(
        [1.0, 2.0, 4.0], noise, jax.random.key(3), 100
    )
    assert first.mean != theory.simulate_median([1.0, 2.0, 4.0], noise, 4, 100).mean
    theory.simulate_vote([1.0, 2.0], Noise("uniform", 1.0, "systematic"), 0, 10)


def test_without_noise_there_is_nothing_to_simulate():
    found = theory.simulate_median([1.0, 2.0, 4.0], Noise("gaussian", 0.0), 0, 10)
    assert found == (2.0, 0.0, (0.0, 0.0))
    vote = theory.simulate_vote([1.0, -2.0, -4.0], Noise("gaussian", 0.0), 0, 10)
    assert vote == (0.0, 1.0, 0.0, (0.0, 0.0, 0.0))


def test_many_draws_come_in_blocks():
    values = np.arange(300.0).reshape(3, 100)
    found = theory.simulate_median(values, Noise("uniform", 1.0), 0, 4_000)
    spread = (found.mean - values[1]) / found.standard_errors.mean
    assert np.abs(spread).max() < 5


def test_what_the_simulators_refuse():
    with pytest.raises(ValueError, match="`draws` must be at least 2"):
        theory.simulate_median([1.0], Noise("gaussian", 1.0), 0, 1)
    with pytest.raises(TypeError, match="`draws` must be an integer"):
        theory.simulate_vote([1.0], Noise("gaussian", 1.0), 0, 1e5)
