"""Measurements against NumPy, with masks and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxmedian as jm

pytestmark = pytest.mark.usefixtures("strict")


def gradients(num_workers=4):
    rng = np.random.default_rng(0)
    return {
        "a": rng.exponential(size=(num_workers, 3, 2)).astype(np.float32),
        "b": rng.normal(size=(num_workers,)).astype(np.float32),
    }


def flat(tree, mask=None):
    rows = np.concatenate(
        [np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], axis=1
    )
    return rows.astype(np.float64) if mask is None else rows[mask].astype(np.float64)


MASKS = [
    None,
    np.array([True, False, True, True]),
    np.array([False, True, False, False]),
]


@pytest.mark.parametrize("mask", MASKS)
def test_the_norm_and_the_gap_are_those_of_numpy(mask):
    grads = gradients()
    rows = flat(grads, mask)
    mean, median = rows.mean(axis=0), np.median(rows, axis=0)
    norm = jm.diagnostics.gradient_norm(grads, worker_mask=mask)
    gap = jm.diagnostics.mean_median_gap(grads, worker_mask=mask)
    np.testing.assert_allclose(norm, np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(gap, np.linalg.norm(median - mean), rtol=1e-5, atol=1e-6)


def test_the_gap_is_zero_for_identical_workers_and_for_an_even_spread():
    same = jnp.ones((5, 3)) * jnp.array([[1.0, -2.0, 0.0]])
    assert float(jm.diagnostics.mean_median_gap(same)) == 0
    even = jnp.array([[-1.0], [0.0], [1.0]])
    assert float(jm.diagnostics.mean_median_gap(even)) == 0


def test_the_counterexample_of_the_paper_has_a_gap_of_seven_thirds():
    grads = jnp.array([1.0, 2.0, 10.0])
    gap = float(jm.diagnostics.mean_median_gap(grads))
    assert gap == pytest.approx(7 / 3, rel=1e-6)


@pytest.mark.parametrize("mask", MASKS)
def test_of_step_counts_disagreement_and_ties(mask):
    grads = gradients()
    rng = np.random.default_rng(1)
    updates = {
        "a": rng.integers(-1, 2, size=(3, 2)).astype(np.float32),
        "b": np.float32(-1.0),
    }
    got = jax.jit(jm.diagnostics.of_step)(grads, updates, worker_mask=mask)
    mean = flat(grads, mask).mean(axis=0)
    moves = flat(jax.tree.map(lambda u: u[None], updates))[0]
    uphill = sum(g * u > 0 for g, u in zip(mean, moves, strict=True))
    ties = sum(u == 0 for u in moves)
    assert set(got) == {"gradient_norm", "mean_median_gap", "disagreement", "ties"}
    assert float(got["disagreement"]) == pytest.approx(uphill / 7)
    assert float(got["ties"]) == pytest.approx(ties / 7)
    assert 0 < ties < 7
    for name in ("gradient_norm", "mean_median_gap"):
        alone = getattr(jm.diagnostics, name)(grads, worker_mask=mask)
        np.testing.assert_allclose(got[name], alone, rtol=1e-6)


def test_a_vote_that_follows_the_mean_never_disagrees():
    grads = gradients()
    mean = jax.tree.map(lambda g: np.mean(g, axis=0), grads)
    downhill = jax.tree.map(lambda g: -np.sign(g), mean)
    uphill = jax.tree.map(np.sign, mean)
    measured = [jm.diagnostics.of_step(grads, u) for u in (downhill, uphill)]
    assert [float(m["disagreement"]) for m in measured] == [0, 1]


def test_half_precision_is_measured_in_float32():
    grads = jnp.full((3, 4096), 0.5, jnp.bfloat16)
    norm = jm.diagnostics.gradient_norm(grads)
    assert norm.dtype == jnp.float32
    assert float(norm) == pytest.approx(32.0)
    skewed = jnp.array([[1.0], [1.0], [1.01]], jnp.bfloat16)
    expected = np.mean(np.float64(skewed)) - reference.median(np.float64(skewed))[0]
    gap = float(jm.diagnostics.mean_median_gap(skewed))
    assert gap == pytest.approx(expected, rel=1e-4)


def test_an_absent_worker_with_nan_is_not_measured():
    grads = np.float32([[1.0, 2.0], [np.nan, np.inf], [3.0, 2.0]])
    mask = np.array([True, False, True])
    got = jm.diagnostics.of_step(grads, np.float32([0, 0]), worker_mask=mask)
    assert float(got["gradient_norm"]) == pytest.approx(np.sqrt(8))
    assert float(got["mean_median_gap"]) == 0


def test_bad_input_is_refused_by_name():
    for function in (jm.diagnostics.gradient_norm, jm.diagnostics.mean_median_gap):
        with pytest.raises(TypeError, match=f"`{function.__name__}`.*int32"):
            function(jnp.ones((3, 2), jnp.int32))
        with pytest.raises(ValueError, match=f"`{function.__name__}`.*shape"):
            function(jnp.ones((3, 2)), worker_mask=np.ones(2, bool))
