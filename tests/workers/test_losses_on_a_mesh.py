"""A loss that trains on one device trains on a mesh, whatever loops it has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M = 8
RNG = np.random.default_rng(0)
PARAMS = {name: RNG.normal(size=(3, 3)).astype(np.float32) for name in "wu"}
DATA = RNG.normal(size=(M, 5, 3)).astype(np.float32)


def recurrent(params, x):
    def cell(state, row):
        state = jnp.tanh(state @ params["w"] + row @ params["u"])
        return state, state

    return jnp.mean(jnp.square(jax.lax.scan(cell, jnp.zeros(3), x)[1]))


def accumulated(params, x):
    def add(total, row):
        return total + jnp.mean(jnp.square(row @ params["u"] @ params["w"])), None

    return jax.lax.scan(add, jnp.float32(0), x)[0]


def counted(params, x):
    def turn(carry):
        return carry[0] + np.int32(1), carry[1] + jnp.sum(x)

    start = jnp.int32(0), jnp.float32(0)
    weight = jax.lax.while_loop(lambda carry: carry[0] < 3, turn, start)[1]
    return jnp.mean(jnp.square(x @ params["u"] @ params["w"])) * weight


def branched(params, x):
    value = jnp.mean(jnp.square(x @ params["u"] @ params["w"]))
    return jax.lax.cond(x[0, 0] > 0, lambda: value, lambda: jnp.float32(0))


@jax.custom_vjp
def total(y):
    return jnp.sum(y)


total.defvjp(
    lambda y: (jnp.sum(y), None), lambda _, g: (g * jnp.ones((5, 3), jnp.float32),)
)


def with_its_own_derivative(params, x):
    return total(x @ params["u"] @ params["w"])


LOSSES = [recurrent, accumulated, counted, branched, with_its_own_derivative]


@pytest.mark.parametrize("worker_chunk", [None, 1])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_with_constants_in_loops_train_on_a_mesh(loss, worker_chunk):
    mesh = jm.sharding.workers_mesh(4)

    def end(mesh=None, **on):
        optimizer = jm.median_sgd(0.1, **on)
        batches = jm.full_batch(jnp.asarray(DATA))
        options = {"mesh": mesh, "worker_chunk": worker_chunk}
        return jm.run(loss, optimizer, PARAMS, batches, 3, 0, **options).params

    one, many = end(), end(mesh, axis_name="workers")
    for name in PARAMS:
        tolerance = 0 if worker_chunk == 1 else 1e-6
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=tolerance)
        assert (np.asarray(one[name]) != PARAMS[name]).any()


def test_local_steps_of_a_recurrent_network_run_on_a_mesh():
    on = {"local_tx": optax.sgd(0.1), "num_steps": 3}
    many = jm.worker_updates(recurrent, axis_name="workers", **on)
    spread = jax.shard_map(
        many,
        mesh=jm.sharding.workers_mesh(4),
        in_specs=(P(), P("workers")),
        out_specs=P("workers"),
    )
    one = jm.worker_updates(recurrent, **on)(PARAMS, jnp.asarray(DATA))
    found = jax.jit(spread)(PARAMS, jnp.asarray(DATA))
    for name in PARAMS:
        np.testing.assert_allclose(found[name], one[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_loss_that_closes_over_what_varies_is_not_averaged(in_a_loop):
    """JAX would add up its gradient over the devices: no worker's would be its own."""

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=jm.sharding.workers_mesh(4),
        in_specs=(P(), P("workers")),
        out_specs=P("workers"),
    )
    def gradients(params, rows):
        def loss(params, row):
            start = 0 * jnp.sum(row)
            if not in_a_loop:
                return start + jnp.sum(params * rows[0])
            add = lambda i, total: total + params[i] * rows[0, i]  # noqa: E731
            return jax.lax.fori_loop(0, 3, add, start)

        return jm.worker_grads(loss, axis_name="workers")(params, rows)

    rows = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(gradients(jnp.ones(3), rows), rows)


def test_a_derivative_through_a_step_on_a_mesh_is_that_of_one_device():
    """With respect to what all devices share, and to what each has alone."""

    def after(step, optimizer, params, data):
        params = step(params, optimizer.init(params), data)[0]
        return jnp.sum(jnp.square(params["w"] + params["u"]))

    one = jm.median_sgd(0.1)
    many = jm.median_sgd(0.1, axis_name="workers")
    mesh = jm.sharding.workers_mesh(4)
    steps = (
        (jm.make_step(recurrent, one), one),
        (jm.sharding.shard_step(recurrent, many, mesh), many),
    )
    data = jnp.asarray(DATA)
    params = jax.tree.map(jnp.asarray, PARAMS)
    expected, found = (
        jax.grad(functools.partial(after, step, optimizer), (0, 1))(params, data)
        for step, optimizer in steps
    )
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(expected))
    for leaf, other in zip(*map(jax.tree.leaves, (expected, found)), strict=True):
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-6)
