"""Participants: how many, how often, the same everywhere, and what steps make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, COUNT = 8, 3
KEY = jax.random.key(5)
DATA = np.float32([[1], [2], [3], [4], [5], [6], [7], [80]])
OPTIMIZER = optax.chain(jm.worker_mean(), optax.scale(-0.25))


def loss(params, batch):
    return 0.5 * jnp.sum(jnp.square(params - batch))


def masks_of(key, steps, num_workers=M, count=COUNT):
    draw = jax.vmap(lambda step: jm.participants(key, step, num_workers, count))
    return np.asarray(draw(jnp.arange(steps)))


def test_exactly_as_many_take_part_and_every_pair_as_often():
    steps = 4000
    masks = masks_of(KEY, steps)
    assert (masks.sum(axis=1) == COUNT).all()
    for expected, together in (
        (COUNT / M, masks.mean(axis=0)),
        (
            COUNT * (COUNT - 1) / (M * (M - 1)),
            (masks.T.astype(float) @ masks / steps)[np.triu_indices(M, 1)],
        ),
    ):
        deviation = np.sqrt(expected * (1 - expected) / steps)
        assert np.abs(together - expected).max() < 5 * deviation
    # A worker's next step does not depend on this one.
    again = (masks[1:] & masks[:-1]).mean(axis=0)
    chance = (COUNT / M) ** 2
    spread = np.sqrt(chance * (1 - chance) / steps) * 2  # neighbours share a step
    assert np.abs(again - chance).max() < 5 * spread


def test_the_mask_is_the_documented_one_and_a_fraction_a_count():
    rng_key = jax.random.fold_in(KEY, np.uint32(reference.PARTICIPANTS))
    for step in range(3):
        ranks = jax.random.permutation(jax.random.fold_in(rng_key, step), M)
        np.testing.assert_array_equal(
            jm.participants(KEY, step, M, COUNT), np.asarray(ranks) < COUNT
        )
    for fraction, count in ((0.375, 3), (0.3, 2), (1.0, 8), (0.01, 1)):
        np.testing.assert_array_equal(
            jm.participants(KEY, 0, M, fraction), jm.participants(KEY, 0, M, count)
        )
    assert jm.participants(KEY, 0, 1, 1).tolist() == [True]


def test_a_run_leaves_the_others_out_of_each_step():
    """params <- params - .25 (params - mean of those present)."""

    def extra_args(key, step):
        return {"worker_mask": jm.participants(key, step, M, COUNT)}

    run = jm.run(
        loss,
        OPTIMIZER,
        jnp.zeros(1),
        jm.full_batch(DATA),
        9,
        KEY,
        chunk=4,
        extra_args=extra_args,
    )
    params, losses = np.zeros(1), []
    for step in range(10):
        run_key = jax.random.fold_in(KEY, np.uint32(reference.RUN))
        step_key = jax.random.fold_in(run_key, step)
        mask = np.asarray(jm.participants(step_key, step, M, COUNT))
        if step in (4, 8, 9):
            losses.append(0.5 * np.mean(np.square(params - DATA[mask])))
        if step < 9:
            params = params + 0.25 * (DATA[mask].mean(axis=0) - params)
    np.testing.assert_allclose(run.params, params, rtol=1e-5)
    np.testing.assert_allclose(run.metrics["loss"], losses, rtol=1e-5)
    pure = jm.run_pure(
        loss,
        OPTIMIZER,
        jnp.zeros(1),
        jm.full_batch(DATA),
        9,
        KEY,
        chunk=4,
        extra_args=extra_args,
    )
    np.testing.assert_allclose(pure.params, params, rtol=1e-5)
    np.testing.assert_allclose(pure.metrics["loss"], losses, rtol=1e-5)


def test_every_device_of_a_mesh_draws_the_same():
    mesh = jm.sharding.workers_mesh(4)
    optimizer = optax.chain(jm.coordinate_median(axis_name="workers"), optax.sgd(1.0))
    step = jm.sharding.shard_step(loss, optimizer, mesh)
    mask = jm.participants(KEY, 2, M, COUNT)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(jnp.zeros(1))
        params, _, metrics = step(jnp.zeros(1), state, DATA, worker_mask=mask)
    present = DATA[np.asarray(mask)]
    np.testing.assert_allclose(params, np.median(present, axis=0))
    np.testing.assert_allclose(metrics["loss"], 0.5 * np.mean(present**2), rtol=1e-6)

    def block(step):
        return jm.participants(KEY, step, M, COUNT, axis_name="workers")

    blocks = jax.shard_map(block, mesh=mesh, in_specs=P(), out_specs=P("workers"))
    np.testing.assert_array_equal(jax.jit(blocks)(2), mask)
    with pytest.raises(ValueError, match="4 devices cannot share 6 workers evenly"):
        jax.shard_map(
            lambda step: jm.participants(KEY, step, 6, 1, axis_name="workers"),
            mesh=mesh,
            in_specs=P(),
            out_specs=P("workers"),
        )(2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`count` must be at least 1; got 0"):
        jm.participants(0, 0, M, 0)
    with pytest.raises(ValueError, match="`count` must be at most 8 here; got 9"):
        jm.participants(0, 0, M, 9)
    with pytest.raises(ValueError, match=r"a fraction in \(0, 1\] or an int; got 1.5"):
        jm.participants(0, 0, M, 1.5)
    with pytest.raises(TypeError, match="`count` must be an int; got 'all'"):
        jm.participants(0, 0, M, "all")
    with pytest.raises(TypeError, match="`key` must be a JAX key or an int"):
        jm.participants("key", 0, M, 1)
    with pytest.raises(TypeError, match="`extra_args` must be a function"):
        jm.run(loss, OPTIMIZER, jnp.zeros(1), jm.full_batch(DATA), 1, 0, extra_args={})
