"""What stands before the aggregator on a mesh treats each worker by itself, or is told.

On one device a norm is that of all workers' gradients; a device of a mesh sees its own.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmedian as jm

M = 8
pytestmark = pytest.mark.usefixtures("promoting")
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.normal(size=(3, 2)).astype(np.float32),
    "b": RNG.normal(size=2).astype(np.float32),
}
DATA = 3 * RNG.normal(size=(M, 4, 3)).astype(np.float32)


def loss(params, x):
    return jnp.mean(jnp.square(x @ params["w"] + params["b"]))


def after_a_step(build, num_devices):
    optimizer = build(axis_name="workers")
    mesh = jm.sharding.workers_mesh(num_devices)
    step = jm.sharding.shard_step(loss, optimizer, mesh)
    params = jax.tree.map(jnp.asarray, PARAMS)
    return step(params, optimizer.init(params), jnp.asarray(DATA))[0]


def before(transform, *more):
    return lambda **on: optax.chain(
        transform, jm.coordinate_median(**on), *more, optax.sgd(0.1)
    )


MIXING = {
    "clip_by_global_norm": before(optax.clip_by_global_norm(0.1)),
    "clip_by_block_rms": before(optax.clip_by_block_rms(0.1)),
    "normalize_by_update_norm": before(optax.normalize_by_update_norm()),
    "add_noise": before(optax.add_noise(1.0, 0.0, key=0)),
    "masked": before(optax.masked(optax.clip_by_global_norm(0.1), {"w": 1, "b": 0})),
    "after one of ours": lambda **on: optax.chain(
        *(jm.clip_workers(1.0, **on), optax.clip_by_global_norm(0.1)),
        jm.coordinate_median(**on),
    ),
    "before one of ours": lambda **on: optax.chain(
        *(optax.clip_by_global_norm(0.1), jm.clip_workers(1.0, **on)),
        jm.coordinate_median(**on),
    ),
    "in the second group": lambda **on: optax.partition(
        {
            "a": jm.majority_vote(**on),
            "b": optax.chain(optax.clip_by_global_norm(0.1), jm.majority_vote(**on)),
        },
        {"w": "a", "b": "b"},
    ),
}
ROW_BY_ROW = {
    "clip": before(optax.clip(0.1)),
    "scale": before(optax.scale(3.0)),
    "weight decay": before(optax.add_decayed_weights(0.5)),
    "schedule": before(optax.scale_by_schedule(optax.linear_schedule(2.0, 1.0, 9))),
    "sign": before(optax.scale_by_sign()),
    "centralize": before(optax.centralize()),
    "masked clip": before(optax.masked(optax.clip(0.1), {"w": True, "b": False})),
    "lifted": before(jm.per_worker(optax.clip_by_global_norm(0.1), M)),
    "behind": before(optax.identity(), optax.clip_by_global_norm(0.1)),
    "ours": lambda **on: optax.chain(
        *(jm.clip_workers(1.0, **on), jm.nearest_neighbor_mixing(2, **on)),
        *(optax.scale(2.0), jm.coordinate_median(**on)),
    ),
    "noise behind": before(optax.identity(), optax.add_noise(1.0, 0.0, key=0)),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_workers_before_the_aggregator_is_refused_on_a_mesh(name):
    with pytest.raises(ValueError, match=r"several workers at once.*per_worker"):
        after_a_step(MIXING[name], 4)
    after_a_step(MIXING[name], 1)


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_what_treats_workers_alone_is_on_a_mesh_what_it_is_on_one_device(name):
    one, many = (after_a_step(ROW_BY_ROW[name], devices) for devices in (1, 4))
    for leaf in PARAMS:
        np.testing.assert_allclose(many[leaf], one[leaf], rtol=0, atol=1e-6)
        assert (np.asarray(one[leaf]) != PARAMS[leaf]).any()


def test_a_run_on_a_mesh_refuses_it_too():
    mesh = jm.sharding.workers_mesh(4)
    optimizer = MIXING["clip_by_global_norm"](axis_name="workers")
    with pytest.raises(ValueError, match="several workers at once"):
        jm.run(loss, optimizer, PARAMS, jm.full_batch(DATA), 1, 0, mesh=mesh)


def test_what_fails_at_a_mask_can_have_it_hidden():
    """Of `optax.contrib.sam`: the remedy that the error names counts those present."""
    sharpness_aware = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))
    data, start = jax.tree.map(jnp.asarray, (DATA, PARAMS))
    mask = jnp.arange(M) < M - 2

    def steps(optimizer):
        step = jm.make_step(loss, optimizer)
        params, state = start, optimizer.init(start)
        for _ in range(2):  # towards the sharpest, and a step from there
            params, state, _ = step(params, state, data, worker_mask=mask)
        return params

    with pytest.raises(
        TypeError, match=r"`sam` says .* does not know `worker_mask`: hide"
    ):
        steps(optax.chain(jm.worker_mean(), sharpness_aware))
    hidden = optax.GradientTransformation(*sharpness_aware)
    got = steps(optax.chain(jm.worker_mean(), hidden))
    gradient = jax.grad(
        lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, data[: M - 2]))
    )
    sharp = jax.tree.map(lambda p, g: p + 0.05 * g, start, gradient(start))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start, gradient(sharp))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
