"""Constants of large noise, and the orders in 1/b that they belong to."""

import math

import numpy as np
import pytest

from jaxmedian import theory
from jaxmedian.noise import Noise

LAWS = ("gaussian", "laplace", "logistic", "uniform")


@pytest.mark.parametrize(
    ("law", "integral"),
    [
        ("gaussian", 1 / (math.pi * math.sqrt(3))),
        ("laplace", 1 / 3),
        ("uniform", 1 / 6),
    ],
)
def test_coefficient_of_three_workers(law, integral):
    # kappa_M = M^3 J_n / (12 n (2 n - 1))
    found = theory.bias_coefficient(law, 3)
    assert found == pytest.approx(27 * integral / 12, rel=1e-12)


@pytest.mark.parametrize("law", ["gaussian", "logistic"])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_coefficient_by_the_formula_with_h_prime(law, n):
    # J_n = int T_1'(H) h h' dz, T_1(p) = C(2n, n) (p (1 - p))^n, on a fine grid
    noise, m = Noise(law, 1.0), 2 * n + 1
    z = np.linspace(-25, 25, 200_001)
    p, h = noise.cdf(z), noise.pdf(z)
    slope = math.comb(2 * n, n) * n * (p * (1 - p)) ** (n - 1) * (1 - 2 * p)
    integral = np.trapezoid(slope * h * np.gradient(h, z), z)
    found = theory.bias_coefficient(law, m)
    assert found == pytest.approx(m**3 * integral / (12 * n * (2 * n - 1)), rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_workers", [3, 4, 5, 6, 11, 12])
def test_the_bias_tends_to_its_leading_term(law, num_workers):
    values = np.random.default_rng(num_workers).gamma(0.5, size=num_workers)
    deviations = values - values.mean()
    kappa = theory.bias_coefficient(law, num_workers)
    scale = 1e5
    bias = theory.median_bias(values, Noise(law, scale))
    leading = -kappa * np.mean(deviations**3) / scale**2
    if law == "uniform" and num_workers >= 5:
        assert kappa == 0.0
        assert abs(bias) < 1e-3 * abs(deviations).max() ** 3 / scale**2
    else:
        assert bias == pytest.approx(leading, rel=1e-3)


@pytest.mark.parametrize(
    ("law", "num_workers", "order"),
    [
        ("gaussian", 3, 2),
        ("logistic", 4, 2),
        ("laplace", 5, 2),
        ("uniform", 3, 2),
        ("uniform", 5, 3),
        ("uniform", 7, 4),
        ("uniform", 6, 3),
    ],
)
def test_order_of_the_bias(law, num_workers, order):
    values = np.random.default_rng(1).gamma(0.5, size=num_workers)
    near, far = (theory.median_bias(values, Noise(law, b)) for b in (1e4, 1e5))
    assert math.log10(near / far) == pytest.approx(order, abs=2e-3)


@pytest.mark.parametrize(("law", "order"), [("gaussian", 3), ("laplace", 2)])
def test_antisymmetric_mass_of_the_density(law, order):
    """Sharper 3: O(1/b^3) for smooth laws; O(1/b^2) is tight where h has a kink."""
    values, mean = np.array([1.0, 2.0, 10.0]), 13 / 3

    def mass(scale):
        t = scale * np.linspace(1e-3, 6, 4001) ** 2 / 6
        ahead, behind = (
            theory.median_density(values, Noise(law, scale), mean + side * t)
            for side in (1, -1)
        )
        return np.trapezoid(np.abs(ahead - behind), t)

    slope = math.log10(mass(200.0) / mass(2000.0))
    assert slope == pytest.approx(order, abs=0.05)


def test_no_bias_for_one_and_two_workers():
    for law in LAWS:
        assert theory.bias_coefficient(law, 1) == theory.bias_coefficient(law, 2) == 0


@pytest.mark.parametrize("num_workers", [1, 3, 11, 101])
def test_limit_variance_of_uniform_noise(num_workers):
    found = theory.limit_variance("uniform", num_workers)
    assert found == pytest.approx(3 / (num_workers + 2), rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
@pytest.mark.parametrize("num_workers", [3, 4])
def test_the_variance_tends_to_its_limit(law, coupling, num_workers):
    values = np.arange(num_workers) ** 2.0
    _, variance = theory.median_moments(values, Noise(law, 1e5, coupling))
    limit = theory.limit_variance(law, num_workers, coupling)
    assert variance / 1e10 == pytest.approx(limit, rel=1e-3)


def test_what_the_constants_refuse():
    with pytest.raises(ValueError, match="`law_name` must be one of gaussian"):
        theory.bias_coefficient("cauchy", 3)
    with pytest.raises(ValueError, match="`num_workers` must be an integer >= 1"):
        theory.limit_variance("gaussian", 0)
    with pytest.raises(TypeError, match="`num_workers` must be an integer"):
        theory.bias_coefficient("gaussian", 3.0)
    with pytest.raises(ValueError, match="`coupling` must be one of"):
        theory.limit_variance("gaussian", 3, "shared")
