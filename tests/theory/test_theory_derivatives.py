"""Derivatives of the densities: closed forms, and interpolation for a new law."""

import math

import numpy as np
import pytest

from jaxmedian.noise.laws import GAUSSIAN, LAPLACE, LAWS, LOGISTIC, UNIFORM
from jaxmedian.theory.numerics.derivatives import derivatives, steepest_slope

Z = np.array([0.0, 0.3, 1.0, 2.5, 6.0])


def by_hand(law):
    """h' to h'''' at Z, each written out."""
    h = law.pdf(Z)
    if law is GAUSSIAN:
        polynomials = [-Z, Z**2 - 1, 3 * Z - Z**3, Z**4 - 6 * Z**2 + 3]
        return [h * polynomial for polynomial in polynomials]
    if law is LAPLACE:
        return [h * (-math.sqrt(2)) ** j for j in (1, 2, 3, 4)]
    if law is UNIFORM:
        return [0 * Z] * 4
    c = math.pi / math.sqrt(3)  # h = c / 4 sech^2(y), y = c z / 2
    t = np.tanh(c * Z / 2)
    return [
        -c * t * h,
        c**2 * h * (3 * t**2 - 1) / 2,
        c**3 * h * t * (2 - 3 * t**2),
        c**4 * h * (15 * t**4 - 15 * t**2 + 2) / 2,
    ]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_derivatives_of_a_row_are_those_by_hand(law):
    z = np.where(law.bound < Z, 1.2, Z)
    found = derivatives(law, z, 4)
    assert found[0] == pytest.approx(law.pdf(z), rel=1e-15)
    expected = by_hand(law)
    for derivative, wanted in zip(found[1:], expected, strict=True):
        assert derivative == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("law", [GAUSSIAN, LOGISTIC], ids=["gaussian", "logistic"])
def test_interpolation_is_as_good_as_a_row(law):
    found = derivatives(law._replace(derivatives=None), Z, 6)
    wanted = derivatives(law, Z, 6)
    for order, tolerance in enumerate((1e-14, 1e-13, 2e-12, 1e-10, 3e-9, 1e-7, 1e-5)):
        size = np.abs(wanted).max(axis=0)  # of all orders, at each point
        assert (np.abs(found[order] - wanted[order]) <= tolerance * size).all()


def test_interpolation_refuses_kinks():
    with pytest.raises(ValueError, match="'laplace' has kinks"):
        derivatives(LAPLACE._replace(derivatives=None), Z, 2)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (GAUSSIAN, math.exp(-0.5) / math.sqrt(2 * math.pi)),
        (LAPLACE, 1.0),
        (LOGISTIC, math.pi**2 / (18 * math.sqrt(3))),
        (UNIFORM, 0.0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_steepest_slope(law, expected):
    assert steepest_slope(law) == pytest.approx(expected, rel=1e-14)
