"""Votes under a shared permutation, against brute force over permutations and V."""

import doctest
import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.theory import coupling
from experiments.theory.coupling import correlation, random_settings, regimes

TINY = coupling.PRESETS["tiny"]


def brute_force(values, noise, points):
    """Goes through all permutations and a grid of V: mean, variance, correlation."""
    num_workers = len(values)
    shared = (np.arange(points) + 0.5) / points
    given = []
    for order in itertools.permutations(range(num_workers)):
        uniforms = (shared[:, None] + np.array(order) / num_workers) % 1.0
        noisy = np.array(values) + noise.scale * noise.quantile(uniforms)
        given.append(np.sign(np.sign(noisy).sum(axis=1)).mean())
    mean = np.mean(given)
    return mean, 1 - mean**2, np.var(given) / (1 - mean**2)


@pytest.mark.parametrize("law", coupling.LAWS)
@pytest.mark.parametrize("scale", [0.8, 1.5])
def test_correlation_against_brute_force(law, scale):
    values = (2.0, -0.3, -0.6, -0.3, 0.9)
    noise = jm.noise.Noise(law, scale, "systematic")
    points = 4000
    expected = brute_force(values, noise, points)
    # A vote changes at most 2 M times as V grows, each time by 2 and up to one point
    # too early or too late: the mean is off by at most 4 M / points = .005.
    np.testing.assert_allclose(correlation.exact(values, noise), expected, atol=0.01)
    assert correlation.exact(values, noise).correlation == pytest.approx(
        expected[2], abs=2e-3
    )


def test_the_mean_over_seatings_is_the_mean_over_permutations():
    noise = jm.noise.gaussian(0.5, "systematic")
    vote = jm.theory.vote_probability(regimes.TWO_OF_11, noise)
    exact = correlation.exact(regimes.TWO_OF_11, noise)
    assert exact.mean == pytest.approx(vote.plus - vote.minus, abs=1e-13)
    assert exact.variance == pytest.approx(1 - exact.mean**2, abs=1e-13)


def test_seatings_are_all_different_orders():
    values = (3.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    found = list(correlation.seatings(values))
    orders = {order for order in itertools.permutations(values) if order[0] == 3.0}
    assert len(found) == 10  # 5! / (2! 3!)
    assert set(found) == orders


def test_too_many_seatings_are_refused():
    with pytest.raises(ValueError, match=r"`values` can be seated in 39916800"):
        next(correlation.seatings(np.arange(12.0)))


def test_numbers_of_the_sweet_spot_and_of_small_noise():
    ten = {
        law: regimes._right(regimes.TEN_OF_101, law, 3.0)
        for law in ("gaussian", "uniform")
    }
    np.testing.assert_allclose(ten["gaussian"], (0.630, 0.858), atol=1.5e-3)
    np.testing.assert_allclose(ten["uniform"], (0.634, 0.885), atol=1.5e-3)
    few = regimes._right(regimes.TWO_OF_11, "gaussian", 0.3)
    np.testing.assert_allclose(few, (0.108, 0.0), atol=5e-4)


def test_votes_with_noise_of_another_scale_are_noticed(monkeypatch):
    steps = correlation._steps

    def too_quiet(law, num_steps, rows, scale, key):
        return steps(law, num_steps, rows, 0.7 * scale, key)

    monkeypatch.setattr(correlation, "_steps", too_quiet)
    assert np.abs(coupling._simulated(TINY, "gaussian")["mean_off"]).max() > 5
    monkeypatch.undo()
    dots = coupling._simulated(TINY, "gaussian")
    assert (
        max(np.abs(dots["mean_off"]).max(), np.abs(dots["correlation_off"]).max()) < 5
    )


@pytest.mark.parametrize(
    "values", [(-1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 2.0, 3.0)]
)
def test_values_without_a_question_are_refused(values):
    with pytest.raises(ValueError, match="`values` needs"):
        coupling.Config(values=values)


def test_random_settings_vote_wrong_without_noise():
    settings = random_settings.draw(9, (3, 5, 7), seed=1)
    assert [len(values) for values in settings] == [3, 5, 7] * 3
    for values in settings:
        assert np.sign(values).sum() * values.mean() < 0
    score = random_settings._score([0.5, 0.5, 0.002, -0.3])
    assert score == random_settings.Score(wins=0.5, losses=0.25)


def test_docstring_examples():
    assert doctest.testmod(correlation) == doctest.TestResults(failed=0, attempted=1)
