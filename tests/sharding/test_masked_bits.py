"""Whole runs with absent or weighted workers: the bits of one device on a mesh."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm

NUM_WORKERS = 6


def loss(params, batch):
    return 0.5 * jnp.mean((params[None] - batch) ** 2)


@pytest.mark.parametrize("even", ["midpoint", "lower", "upper"])
@pytest.mark.parametrize("num_absent", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_masked_medians_are_the_same_on_a_mesh(even, num_absent, weighted):
    """Steps of a constant rate right after the median, where XLA contracts them."""
    rng = np.random.default_rng(num_absent)
    batch = rng.normal(size=(NUM_WORKERS, 5, 11)).astype(np.float32)
    counted = np.arange(NUM_WORKERS) >= num_absent
    extra = {"worker_mask": counted}
    if weighted:
        extra = {"worker_weights": counted.astype(np.float32)}
    optimizers = [
        jm.median_sgd(0.01, even=even, axis_name=axis) for axis in (None, "workers")
    ]
    steps = [
        jm.make_step(loss, optimizers[0], worker_chunk=1),
        jm.sharding.shard_step(
            loss, optimizers[1], jm.sharding.workers_mesh(3), worker_chunk=1
        ),
    ]
    ends = []
    for optimizer, step in zip(optimizers, steps, strict=True):
        params = jnp.zeros(11)
        state = optimizer.init(params)
        for _ in range(4):
            params, state, _ = step(params, state, batch, **extra)
        ends.append(np.asarray(params))
    assert np.abs(ends[0]).min() > 0
    np.testing.assert_array_equal(ends[0], ends[1])
