"""Derivatives of the moments against differences."""

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


@pytest.mark.parametrize("law", ["gaussian", "laplace", "logistic", "uniform"])
@pytest.mark.parametrize(("num_workers", "even", "coupling"), CASES)
def test_gradient_by_differences(law, num_workers, even, coupling):
    values = np.random.default_rng(num_workers).gamma(0.7, size=num_workers) * 3
    scale, step = 1.2, 1e-4

    def moments(u, b):
        return np.array(theory.median_moments(u, Noise(law, b, coupling), even))

    found = theory.median_moments_gradient(values, Noise(law, scale, coupling), even)
    for i in range(num_workers):
        move = step * np.eye(num_workers)[i]
        change = moments(values + move, scale) - moments(values - move, scale)
        slopes = found.mean_by_values[i], found.variance_by_values[i]
        assert slopes == pytest.approx(change / (2 * step), abs=1e-6)
    change = moments(values, scale + step) - moments(values, scale - step)
    slopes = found.mean_by_scale, found.variance_by_scale
    assert slopes == pytest.approx(change / (2 * step), abs=1e-6)
    assert found.mean_by_values.sum() == pytest.approx(1.0, abs=1e-12)
    assert found.variance_by_values.sum() == pytest.approx(0.0, abs=1e-10)


def test_gradient_keeps_the_shape_of_the_values():
    values = np.random.default_rng(0).normal(size=(5, 2, 3))
    noise = Noise("logistic", 0.5)
    found = theory.median_moments_gradient(values, noise)
    assert found.mean_by_values.shape == values.shape
    assert found.variance_by_scale.shape == (2, 3)
    one = theory.median_moments_gradient(values[:, 1, 2], noise)
    assert found.variance_by_values[:, 1, 2] == pytest.approx(one.variance_by_values)
    assert isinstance(one.mean_by_scale, float)


def test_gradient_needs_noise():
    with pytest.raises(ValueError, match=r"must be > 0.*not differentiable"):
        theory.median_moments_gradient([1.0, 2.0, 3.0], Noise("gaussian", 0.0))
