"""Dispersion of each coordinate against NumPy, one coordinate at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import awkward

from jaxmedian.kernels import dispersion


def finite(column):
    return column[np.isfinite(column)]


def median_deviation(column):
    """Values that are not finite are infinitely far from the median."""
    ascending = np.sort(np.where(np.isnan(column), math.inf, column))
    low, high = ascending[(len(column) - 1) // 2], ascending[len(column) // 2]
    middle = low / 2 + high / 2
    away = [abs(g - middle) if math.isfinite(g) else math.inf for g in column]
    away = np.sort(away)
    return away[(len(away) - 1) // 2] / 2 + away[len(away) // 2] / 2


SLOW = {
    "mean_square": lambda column: np.mean(finite(column) ** 2),
    "standard_deviation": lambda column: np.std(finite(column)),
    "extent": lambda column: np.ptp(finite(column)),
    "median_deviation": median_deviation,
}


def columns_of(rows, mask):
    wide = np.asarray(rows, np.float64)
    return (wide if mask is None else wide[mask]).T


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("num_workers", [1, 2, 7, 20])
def test_dispersions_are_numpys(name, num_workers):
    rng = np.random.default_rng(num_workers)
    rows = (1e3 + rng.normal(size=(num_workers, 9))).astype(np.float32)
    of_rows = jax.jit(getattr(dispersion, name))
    masks = [None, np.arange(num_workers) % 3 != 1]
    for mask in masks:
        got = of_rows(rows, None if mask is None else jnp.asarray(mask))
        expected = [SLOW[name](column) for column in columns_of(rows, mask)]
        # A value of 1,000 is known to 6e-5, and so is its distance from another.
        np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1.3e-4)


@pytest.mark.parametrize("name", ["mean_square", "standard_deviation", "extent"])
def test_values_that_are_not_finite_are_left_out(name):
    rows = awkward(5, 30, nan=True)
    rows[:, 3] = math.nan
    got = np.asarray(jax.jit(getattr(dispersion, name))(rows, None))
    for value, column in zip(got, columns_of(rows, None), strict=True):
        nothing = math.nan if name == "mean_square" else 0.0
        expected = SLOW[name](column) if len(finite(column)) else nothing
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SLOW)
def test_programs_do_not_grow_with_the_number_of_workers(name):
    def lines(num_workers):
        rows = jax.ShapeDtypeStruct((num_workers, 9), jnp.float32)
        lowered = jax.jit(getattr(dispersion, name)).lower(rows, None)
        return lowered.as_text().count("\n")

    assert lines(2001) < 1.2 * lines(1001)


def test_a_minority_of_any_values_leaves_the_median_deviation_among_the_others():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 40)).astype(np.float32)
    honest = rows[4:]
    most = np.ptp(honest, axis=0)
    for bad in (math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0):
        rows[:4] = bad
        got = np.asarray(jax.jit(dispersion.median_deviation)(rows, None))
        assert (got <= most).all(), bad


def test_nobody_and_workers_who_agree_have_no_dispersion():
    rows = np.full((4, 3), 7.25, np.float32)
    for name in ("standard_deviation", "extent", "median_deviation"):
        assert not np.asarray(getattr(dispersion, name)(rows, None)).any()
    for name in SLOW:
        nobody = jnp.zeros(4, bool)
        nothing = np.asarray(getattr(dispersion, name)(rows, nobody))
        expected = math.nan if name == "mean_square" else 0.0
        np.testing.assert_array_equal(nothing, np.full(3, expected))
