"""Measured gaps and descents against outcomes drawn by hand."""

import numpy as np
import pytest

import jaxmedian as jm
from experiments.theory import gap_in_training as experiment

NOISE = jm.noise.Noise("gaussian", 0.7)
STEPS, M, C = 40, 5, 30


@pytest.fixture(scope="module")
def gradients():
    return np.random.default_rng(0).normal(size=(STEPS, M, C)) ** 3


def outcomes(gradients, rule):
    """Medians, or votes, of one noisy draw a step and coordinate."""
    noisy = gradients + 0.7 * np.random.default_rng(1).normal(size=gradients.shape)
    if rule == "median":
        return np.median(noisy, axis=1)
    return np.sign(np.sign(noisy).sum(axis=1))


@pytest.mark.parametrize("rule", ["median", "vote"])
def test_outcomes_of_the_same_law_agree_with_the_prediction(gradients, rule):
    predict = getattr(experiment, f"_predict_{rule}")(NOISE)
    curve = experiment._compare(gradients, outcomes(gradients, rule), predict)
    average = experiment._average({"step": np.arange(STEPS)} | curve)
    claims = experiment._claims({f"{rule}, b": average})
    assert [claim.holds for claim in claims] == [True, True]


@pytest.mark.parametrize("rule", ["median", "vote"])
def test_outcomes_of_another_law_do_not(gradients, rule):
    wrong = jm.noise.Noise("gaussian", 0.2)
    predict = getattr(experiment, f"_predict_{rule}")(wrong)
    curve = experiment._compare(gradients, outcomes(gradients, rule), predict)
    average = experiment._average({"step": np.arange(STEPS)} | curve)
    claims = experiment._claims({f"{rule}, b": average})
    assert False in [claim.holds for claim in claims]


def test_the_median_curve_is_the_relative_gap(gradients):
    found = experiment._predict_median(NOISE)(gradients[0])
    mean = gradients[0].mean(axis=0)
    expected = np.asarray(jm.theory.median_moments(gradients[0], NOISE)[0])
    gap = np.linalg.norm(expected - mean) / np.linalg.norm(mean)
    np.testing.assert_allclose(found.weights @ found.expected, gap)


def test_the_vote_curve_is_the_relative_descent():
    u = np.array([[-1.0, 2.0, 1.0], [-2.0, 1.0, 0.5], [4.0, 0.0, -3.0]])
    found = experiment._predict_vote(jm.noise.gaussian(0.0))(u)  # votes -1, 1, 1
    mean = u.mean(axis=0)
    np.testing.assert_allclose(
        found.weights @ found.expected,
        (-mean[0] + mean[1] + mean[2]) / np.abs(mean).sum(),
    )
    np.testing.assert_array_equal(found.variance, 0)


@pytest.mark.parametrize("number", [5, 10, 27])
def test_the_error_of_a_block_is_that_of_its_own_length(number):
    draws = np.random.default_rng(0).normal(size=(4000, number))
    spread = np.std([experiment._blocks(row) for row in draws], axis=0)
    errors = experiment._block_errors(np.ones(number))
    np.testing.assert_allclose(errors, spread, rtol=0.05)
