"""Derivatives of the moments against differences."""

from dataclasses import replace

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise

CASES = [
    (1, "midpoint", "independent"),
    (2, "midpoint", "independent"),
    (3, "midpoint", "independent"),
    (4, "midpoint", "independent"),
    (4, "upper", "independent"),
    (9, "midpoint", "independent"),
    (10, "midpoint", "independent"),
    (3, "midpoint", "systematic"),
    (4, "midpoint", "systematic"),
]


def assert_gradient_is_that_of_differences(values, noise, even):
    step = 1e-4

    def moments(u, scale):
        return np.array(theory.median_moments(u, replace(noise, scale=scale), even))

    found = theory.median_moments_gradient(values, noise, even)
    scale = noise.scale
    for i in range(len(values)):
        move = step * np.eye(len(values))[i]
        change = moments(values + move, scale) - moments(values - move, scale)
        slopes = found.mean_by_values[i], found.variance_by_values[i]
        assert slopes == pytest.approx(change / (2 * step), abs=1e-6)
    change = moments(values, scale + step) - moments(values, scale - step)
    slopes = found.mean_by_scale, found.variance_by_scale
    assert slopes == pytest.approx(change / (2 * step), abs=1e-6)
    assert found.mean_by_values.sum() == pytest.approx(1.0, abs=1e-12)
    assert found.variance_by_values.sum() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("law", ["gaussian", "laplace", "logistic", "uniform"])
@pytest.mark.parametrize(("num_workers", "even", "coupling"), CASES)
def test_gradient_by_differences(law, num_workers, even, coupling):
    values = np.random.default_rng(num_workers).gamma(0.7, size=num_workers) * 3
    assert_gradient_is_that_of_differences(values, Noise(law, 1.2, coupling), even)


@pytest.mark.parametrize("even", ["midpoint", "lower"])
@pytest.mark.parametrize("num_workers", [6, 10])
def test_gradient_where_the_noise_alone_orders_the_workers(num_workers, even):
    """Also of more workers than permutations are listed for."""
    values = np.random.default_rng(1).gamma(0.7, size=num_workers)
    scale = 2 * theory.unbiased_scale(values)
    noise = Noise("gaussian", scale, "systematic")
    assert_gradient_is_that_of_differences(values, noise, even)


def test_gradient_keeps_the_shape_of_the_values():
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    noise = Noise("logistic", 0.5)
    found = theory.median_moments_gradient(values, noise)
    assert found.mean_by_values.shape == values.shape
    assert found.variance_by_scale.shape == (2, 3)
    one = theory.median_moments_gradient(values[:, 1, 2], noise)
    assert found.variance_by_values[:, 1, 2] == pytest.approx(one.variance_by_values)
    assert isinstance(one.mean_by_scale, float)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("values", [[1.0, 2.0, 10.0], [1.0, 2.0, 10.0, 11.5]])
def test_small_scales_do_not_cancel(values, coupling):
    """b dE/db = E - sum u_i dE/du_i, a difference of numbers of the size of u."""
    for scale in (1e-300, 1e-16, 1e-6):  # the median stays where it is
        noise = Noise("gaussian", scale, coupling)
        by_scale = theory.median_moments_gradient(values, noise).mean_by_scale
        assert abs(by_scale) < 1e-15
    # Two workers share the median: the larger noise of two, E = 1 / sqrt(pi), is in it.
    lifted = theory.median_moments_gradient(
        [0.0, 0.0, 1.0], Noise("gaussian", 1e-9, "independent")
    )
    assert lifted.mean_by_scale == pytest.approx(1 / np.sqrt(np.pi), rel=1e-13)


def test_gradient_needs_noise():
    with pytest.raises(ValueError, match=r"must be > 0.*not differentiable"):
        theory.median_moments_gradient([1.0, 2.0, 3.0], Noise("gaussian", 0.0))
