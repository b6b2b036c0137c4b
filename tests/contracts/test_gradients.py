"""Gradients through whole rules: as `jax.numpy`'s, or as finite differences say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

COLUMN = jnp.array([[3.0], [1.0], [2.0], [10.0], [11.0]])


def first(transform, grads, **extra_args):
    params = jnp.zeros(grads.shape[1:])
    state = transform.init(params)
    return transform.update(grads, state, params, **extra_args)[0]


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (jm.coordinate_median(), [1, 0, 0, 0, 0]),
        (jm.trimmed_mean(1), [1 / 3, 0, 1 / 3, 1 / 3, 0]),
        (jm.mean_around_median(1), [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]),
        (jm.worker_mean(), [1 / 5] * 5),
        (jm.krum(1), [0, 0, 1, 0, 0]),
        (jm.majority_vote(), [0] * 5),
    ],
)
def test_each_rule_moves_as_the_rows_it_takes(transform, expected):
    got = jax.grad(lambda x: first(transform, x).sum())(COLUMN)
    np.testing.assert_allclose(got[:, 0], expected, 1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda **on: jm.coordinate_median(**on),
        lambda **on: jm.trimmed_mean(1, **on),
        lambda **on: jm.krum(1, **on),
    ],
    ids=["median", "trimmed mean", "Krum"],
)
def test_on_a_mesh_rules_move_as_on_one_device(build):
    x = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)), jnp.float32)
    mesh = jm.sharding.workers_mesh(3)
    spread = jax.shard_map(
        lambda grads: first(build(axis_name="workers"), grads),
        mesh=mesh,
        in_specs=P("workers"),
        out_specs=P(),
    )
    got = jax.jit(jax.grad(lambda x: jnp.square(spread(x)).sum()))(x)
    expected = jax.grad(lambda x: jnp.square(first(build(), x)).sum())(x)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, 1e-4, 1e-6)


def test_weighted_medians_move_as_the_selected_row():
    weights = jnp.array([1, 1, 1, 1, 9])
    got = jax.grad(
        lambda x: first(jm.coordinate_median(), x, worker_weights=weights).sum()
    )(COLUMN)
    np.testing.assert_array_equal(got[:, 0], [0, 0, 0, 0, 1])


def test_medians_of_arrays_move_as_numpy_ones():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    got = jax.jit(jax.grad(lambda x: jnp.square(jm.median(x, axis=1)).sum()))(x)
    expected = jax.grad(lambda x: jnp.square(jnp.median(x, axis=1)).sum())(x)
    np.testing.assert_allclose(got, expected, 1e-6)
    mask = jnp.arange(6) != 2
    got = jax.grad(lambda x: jm.median(x, axis=1, mask=mask).sum())(x)
    kept = np.asarray(x)[:, np.asarray(mask)]
    assert not np.asarray(got)[:, 2].any()
    np.testing.assert_array_equal(
        np.asarray(got)[:, np.asarray(mask)], kept == np.median(kept, 1, keepdims=True)
    )


def test_perturbed_medians_move_with_the_scale():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 40)), jnp.float32)

    def estimate(scale):
        return jm.perturbed_median(x, jm.noise.gaussian(scale), 3)

    moved = jax.jacfwd(estimate)(0.5)
    step = 2.0**-10
    expected = (estimate(0.5 + step) - estimate(0.5 - step)) / (2 * step)
    same = np.isclose(moved, expected, 1e-2, 1e-3)
    assert same.mean() > 0.9  # a step may pass a change of rows
    assert np.abs(expected).max() > 0.1


def test_whole_runs_move_with_the_scale():
    """`run_pure` differentiated by the noise scale, and by finite differences."""
    targets = jnp.asarray(np.random.default_rng(2).normal(size=(5, 8)), jnp.float32)

    def loss(params, target):
        return 0.5 * jnp.sum((params - target) ** 2)

    def final(scale):
        optimizer = jm.noisy_median_sgd(0.1, jm.noise.gaussian(scale), 1)
        result = jm.run_pure(
            loss, optimizer, jnp.zeros(8), lambda key, step: targets, 4, 0
        )
        return jnp.sum(result.params**2)

    scale, step = jnp.float32(0.3), 2.0**-12
    expected = (final(scale + step) - final(scale - step)) / (2 * step)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(jax.jacfwd(final)(scale), expected, 2e-2)
    with pytest.raises(ValueError, match="Reverse-mode"):  # no silent 0
        jax.grad(final)(scale)
