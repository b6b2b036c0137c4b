"""Finite values near the largest, scale 0 under `jax_debug_nans`, leaves of no size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import LAWS, first_update, make_noise

import jaxmedian as jm
from jaxmedian.kernels import distances, trimming, weighting

HUGE = 3 * 2.0**126


def columns_of_huge_values(num_workers, size=40):
    rng = np.random.default_rng(num_workers)
    rows = rng.choice([-HUGE, -HUGE / 3, 0.0, 1.0, HUGE], (num_workers, size))
    rows[:, 0], rows[:, 1] = HUGE, -HUGE
    return rows.astype(np.float32)


def middle_mean(column, f):
    return np.mean(np.sort(column)[f : len(column) - f])


def mean_around(column, f):
    median = np.median(column)
    order = sorted(column, key=lambda x: (abs(x - median), x))
    return np.mean(order[: len(column) - f])


@pytest.mark.parametrize(("num_workers", "f"), [(5, 1), (6, 0), (40, 13), (114, 30)])
@pytest.mark.parametrize("masked", [False, True])
def test_means_of_finite_values_are_finite(num_workers, f, masked):
    rows = columns_of_huge_values(num_workers)
    exact = rows.astype(np.float64)
    present = None
    if masked:
        present = jnp.arange(num_workers) != 0
        exact = exact[1:]
    for rule, oracle in (
        (trimming.trimmed_mean_of_rows, middle_mean),
        (trimming.mean_around_median_of_rows, mean_around),
    ):
        actual = jax.jit(rule, static_argnums=1)(rows, f, present)
        expected = [oracle(column, f) for column in exact.T]
        np.testing.assert_allclose(actual, expected, 1e-5, 1e-6 * HUGE)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_weighted_means_of_finite_values_are_finite(dtype):
    rows = columns_of_huge_values(5)
    weights = np.array([1, 3, 2, 0, 1000])
    copies = np.repeat(rows.astype(np.float64), weights, axis=0)
    actual = weighting.trimmed_mean_of_rows(rows, jnp.asarray(weights, dtype), 3)
    expected = [middle_mean(column, 3) for column in copies.T]
    np.testing.assert_allclose(actual, expected, 1e-5, 1e-6 * HUGE)


@pytest.mark.parametrize("law", LAWS)
def test_scale_zero_makes_no_nan(law):
    """The sign of g, and no sign at 0, op by op and with every NaN an error."""
    noise = make_noise(law, "independent", 1, scale=0.0)
    row = jnp.float32([0.0, -0.0, 1e-30, -2.0, 3e38, np.inf])
    with jax.debug_nans(True):
        signed = noise.signed_row(0, row, jnp.arange(6, dtype=jnp.uint32))
    np.testing.assert_array_equal(np.sign(signed), np.sign(row))


def test_clipping_to_a_radius_that_reaches_zero():
    """All of it becomes 0, rows of norm 0 too; below 0 it is no different."""
    norms = jnp.float32([0.0, 1.0, 4.0])
    for radius in (0.0, -0.0, -1.0):
        factors = jax.jit(distances.clip_factors)(norms, jnp.float32(radius))
        np.testing.assert_array_equal(factors, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(
        distances.clip_factors(norms, 2.0), np.float32([1.0, 1.0, 0.5])
    )
    grads = jnp.float32([[0.0, 0.0], [3.0, 4.0]])

    def clipped(radius):
        return jm.clip_workers(radius).update(grads, None)[0]

    assert not np.asarray(jax.jit(clipped)(0.0)).any()
    center = jm.centered_clipping(1.0)
    with jax.debug_nans(True):
        assert np.isfinite(first_update(center, jnp.zeros((3, 2)))).all()


def test_clipping_moves_rows_of_norm_zero_as_they_are():
    def clipped(x):
        return jm.clip_workers(1.0).update(x, None)[0].sum()

    np.testing.assert_array_equal(jax.grad(clipped)(jnp.zeros((2, 3))), 1.0)


def test_leaves_of_no_size_have_no_norm():
    grads = {"w": jnp.ones((5, 3)), "none": jnp.zeros((5, 0, 2), jnp.bfloat16)}
    for transform, stacked in (
        (jm.clip_workers(1.0), True),
        (jm.adaptive_clip_workers(1), True),
        (jm.centered_clipping(10.0), False),
        (jm.geometric_median(), False),
        (jm.krum(1), False),
        (jm.multi_krum(1), False),
    ):
        result = first_update(transform, grads)
        assert result["none"].shape == ((5, 0, 2) if stacked else (0, 2))
        alone = first_update(transform, {"w": grads["w"]})
        np.testing.assert_array_equal(result["w"], alone["w"])
