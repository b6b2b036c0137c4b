"""Robust rules with known answers, the extrapolation, and what breaks a rule."""

import doctest

import jax
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from experiments.theory import estimator
from experiments.theory.estimator import breakdown, comparison, estimates, moments

TINY = estimator.PRESETS["tiny"]


def test_geometric_median_is_where_the_directions_balance():
    values = np.random.default_rng(0).exponential(size=(7, 20, 3))
    away = values - estimates.geometric_median(values)
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    inside = (distance > 1e-3).all(axis=0)[:, 0]  # elsewhere it is one of the workers
    assert inside.sum() > 10
    pull = np.linalg.norm((away / distance).sum(axis=0), axis=-1)
    assert pull[inside].max() < 1e-6
    assert pull[~inside].max(initial=0) <= 2


def test_geometric_median_at_a_worker():
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.1]])[:, None]
    np.testing.assert_allclose(estimates.geometric_median(corners), 0, atol=1e-3)
    most = np.array([[5.0, 5.0]] * 3 + [[0.0, 1.0]] * 2)[:, None]
    np.testing.assert_allclose(estimates.geometric_median(most), 5.0, atol=1e-6)
    np.testing.assert_allclose(estimates.geometric_median(most[:3]), 5.0)


def test_trimmed_mean_leaves_out_the_share():
    values = np.random.default_rng(1).normal(size=(11, 4, 2))
    expected = np.sort(values, axis=0)[2:-2].mean(axis=0)
    np.testing.assert_allclose(estimates.trimmed_mean(values, 0.2), expected)


def test_the_extrapolation_shares_its_draws():
    """Equal workers at 0: m_2b = 2 m_b, so (4 m_2b - m_b) / 3 = 7/3 m_b."""
    rows = np.zeros((5, 8), np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    near = estimates.perturbed_medians("gaussian", rows, 2.0, keys)
    far = estimates.richardson("gaussian", rows, 2.0, keys)
    np.testing.assert_allclose(far, 7 / 3 * near, rtol=1e-5)


def test_error_of_an_average_at_its_best_scale():
    curve = {"squared_bias": np.array([4.0, 1.0]), "variance": np.array([0.0, 8.0])}
    assert moments.averaged_rmse(curve, 1) == pytest.approx(2)
    assert moments.averaged_rmse(curve, 8) == pytest.approx(np.sqrt(2))


def test_breakdown_is_the_first_number_that_carries_away():
    limit = np.sqrt(TINY.hostile_value)
    assert breakdown.breakdown(TINY, np.array([0, 1, 2 * limit, 0, 0])) == 2
    assert breakdown.breakdown(TINY, np.ones(5)) == 5


def test_dots_meet_the_exact_moments_and_wrong_ones_are_noticed(monkeypatch):
    values = estimator.workers(TINY)
    exact = moments.moments_by_scale(TINY, values)

    def claim():
        names = (moments.NOISY, moments.RICHARDSON)
        dots = {
            f"{name}, simulated": moments.simulated(TINY, values, name)
            for name in names
        }
        return comparison.simulation_claim(TINY, exact, dots).holds

    assert claim() is True
    medians = estimates.perturbed_medians

    def too_noisy(law, values, scale, keys):
        return medians(law, values, 1.3 * scale, keys)

    monkeypatch.setattr(estimates, "perturbed_medians", too_noisy)
    assert claim() is False


def test_an_even_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="`num_workers` must be odd"):
        estimator.Config(num_workers=4)


def test_docstring_examples():
    assert doctest.testmod(estimates) == doctest.TestResults(failed=0, attempted=2)
