"""The antisymmetric mass is that of the exact expansion, and of direct integration."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.theory import density, power_laws

TINY = density.PRESETS["tiny"]
VALUES = (1.0, 2.0, 10.0)


def third_order(z):
    """Third order of the Gaussian F in e for three workers, over m_3 = sum e_i^3.

    Median of three: T(p) = 3 p^2 - 2 p^3, so c_1 = 2 p (1 - p), c_2 = 1 - 2 p, c_3 =
    -2.
    """
    h, p = scipy.stats.norm.pdf(z), scipy.stats.norm.cdf(z)
    first, second = -z * h, (z * z - 1) * h
    by_c1 = -2 * p * (1 - p) * second / 6
    return by_c1 + (1 - 2 * p) * h * first / 2 + 2 * h**3 / 3


@pytest.mark.parametrize("scale", [300.0, 3000.0])
def test_large_noise_gives_the_mass_of_the_third_order(scale):
    e = (np.array(VALUES) - np.mean(VALUES)) / scale
    z = np.linspace(0, 12, 100_001)
    total = 2 * (e**3).sum() * third_order(z)  # F(z) + F(-z) - 1
    expected = np.abs(np.diff(total)).sum()
    found = density.antisymmetric_mass(VALUES, jm.noise.gaussian(scale))
    assert found == pytest.approx(expected, rel=5 * (e**2).max())


@pytest.mark.parametrize("law", density.LAWS)
def test_the_mass_is_the_integral_of_the_antisymmetric_part(law):
    noise = jm.noise.Noise(law, 6.0)
    x = np.linspace(0, 90, 900_001)
    columns, mean = np.array(VALUES)[:, None], np.mean(VALUES)
    right = jm.theory.median_density(columns, noise, mean + x)
    left = jm.theory.median_density(columns, noise, mean - x)
    expected = np.trapezoid(np.abs(right - left), x)
    assert density.antisymmetric_mass(VALUES, noise) == pytest.approx(
        expected, rel=1e-4
    )


def test_the_mass_lies_between_symmetric_and_disjoint():
    noise = jm.noise.gaussian(1.0)
    assert density.antisymmetric_mass((-3.0, 0.0, 3.0), noise) < 1e-13
    apart = density.antisymmetric_mass(VALUES, jm.noise.gaussian(0.01))
    assert apart == pytest.approx(1.0)


def test_distance_of_laws_is_that_of_kolmogorov():
    sample = np.sort(np.random.default_rng(0).normal(size=500))
    exact = scipy.stats.norm.cdf(sample)
    expected = scipy.stats.kstest(sample, "norm").statistic
    assert density.distance_of_laws(exact) == pytest.approx(expected)


def test_every_claim_holds_far_out_and_the_orders_fail_near():
    assert [claim.holds for claim in density.run(TINY).claims] == [True] * 3
    near = dataclasses.replace(TINY, greatest_scale=1.0)
    assert [claim.holds for claim in density.run(near).claims] == [False, False, True]


def test_draws_of_another_law_are_noticed(monkeypatch):
    draw = power_laws._draw

    def too_noisy(law, rows, scale, key):
        return draw(law, rows, 1.2 * scale, key)

    monkeypatch.setattr(power_laws, "_draw", too_noisy)
    assert density.run(TINY).claims[-1].holds is False
