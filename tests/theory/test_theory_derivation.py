"""The ten lines of the package's derivation of the O(1/b^2) bias, one by one.

Gaussian noise and five workers: T(p) = 10 p^3 - 15 p^4 + 6 p^5.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

import jaxmedian as jm

M, N = 5, 2
T = np.polynomial.Polynomial([0, 0, 0, 10, -15, 6])
E = np.array([-0.5, -0.3, -0.2, 0.1, 0.9])  # sums to zero
Z = np.array([-2.0, -0.7, 0.0, 0.4, 1.5])
H, DENSITY = scipy.stats.norm.cdf, scipy.stats.norm.pdf


def first(z):
    return -z * DENSITY(z)


def second(z):
    return (z * z - 1) * DENSITY(z)


def c(k, z):
    return T.deriv(k)(H(z)) * math.factorial(M - k) / math.factorial(M)


def elementary(k, delta):
    rows = itertools.combinations(delta, k)
    return sum(np.prod(row, axis=0) for row in rows)


def shifts(e, z):
    return H(z - e[:, None]) - H(z)


def integral(function):
    """Trapezoids: for analytic functions that vanish at both ends all digits."""
    z = np.linspace(-12, 12, 4801)
    return np.trapezoid(function(z), z)


def test_the_expansion_of_the_distribution_function_is_exact():
    delta = shifts(E, Z)
    expanded = T(H(Z)) + sum(c(k, Z) * elementary(k, delta) for k in range(1, M + 1))
    exact = jm.theory.median_cdf(E[:, None], jm.noise.gaussian(1.0), Z)
    np.testing.assert_allclose(expanded, exact, rtol=1e-12)


def test_second_and_third_orders_of_the_symmetric_polynomials():
    h, slope, curvature = DENSITY(Z), first(Z), second(Z)
    small = 0.01
    m2, m3 = (E**2).sum(), (E**3).sum()
    second_order = {1: m2 * slope / 2, 2: -m2 * h**2 / 2, 3: 0 * h}
    third_order = {1: -m3 * curvature / 6, 2: m3 * h * slope / 2, 3: -m3 * h**3 / 3}
    for k in (1, 2, 3):
        plus, minus = (elementary(k, shifts(s * small * E, Z)) for s in (1, -1))
        even, odd = (plus + minus) / 2, (plus - minus) / 2
        np.testing.assert_allclose(even / small**2, second_order[k], atol=3e-4)
        np.testing.assert_allclose(odd / small**3, third_order[k], atol=3e-4)


def test_integration_by_parts():
    common = integral(lambda z: c(2, z) * DENSITY(z) * first(z))
    from_first = integral(lambda z: c(1, z) * second(z))
    from_third = integral(lambda z: c(3, z) * DENSITY(z) ** 3)
    assert from_first == pytest.approx(-(M - 1) * common, rel=1e-12)
    assert from_third == pytest.approx(-2 / (M - 2) * common, rel=1e-12)
    total = from_first / 6 - common / 2 + from_third / 3
    assert total == pytest.approx(-(M**2) / (6 * (M - 2)) * common, rel=1e-12)
    kappa = jm.theory.bias_coefficient("gaussian", M)
    assert -M * total == pytest.approx(kappa, rel=1e-12)


def test_others_leave_the_decision_to_one_worker():
    p = H(Z)
    decisive = scipy.stats.binom.pmf(N, M - 1, p)
    np.testing.assert_allclose(T.deriv()(p) / M, decisive, rtol=1e-12)
    slope = (T.deriv() / M).deriv()(p)
    np.testing.assert_allclose(c(2, Z), slope / (M - 1), rtol=1e-12, atol=1e-15)


def test_the_second_order_integrates_to_zero_and_the_third_is_the_bias():
    def orders(z):
        m2 = (E**2).sum()
        return c(1, z) * m2 * first(z) / 2 - c(2, z) * m2 * DENSITY(z) ** 2 / 2

    assert abs(integral(orders)) < 1e-14
    kappa, scale = jm.theory.bias_coefficient("gaussian", M), 1000.0
    bias = jm.theory.median_bias(E, jm.noise.gaussian(scale))
    assert bias == pytest.approx(-kappa * np.mean(E**3) / scale**2, rel=1e-5)


def test_the_text_is_markdown_of_ten_steps():
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    kinds = [token.type for token in parser.parse(jm.theory.__doc__)]
    assert kinds.count("list_item_open") == 10
    assert kinds.count("ordered_list_open") == kinds.count("table_open") == 1
    assert kinds.count("fence") == 1
    assert "blockquote_open" not in kinds
    assert "code_block" not in kinds
