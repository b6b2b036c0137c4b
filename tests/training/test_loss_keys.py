"""Losses that ask for a key get one for each worker and step, by the key tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmedian as jm

M = 4
RUN, LOSS_KEYS = 3 * 2**30 + 9, 3 * 2**30 + 7  # as documented in `noise.keys`


def draw_of(seed, step, worker):
    key = jax.random.key(seed)
    for number in (RUN, step, LOSS_KEYS, worker):
        key = jax.random.fold_in(key, number)
    return float(jax.random.uniform(key))


def train(loss_fn, run=jm.run, mesh=None, **options):
    """Parameters are minus the sum over steps of the workers' mean gradient."""
    optimizer = jm.noisy_median_sgd(
        1.0, jm.noise.gaussian(0.0), 0, axis_name=None if mesh is None else "workers"
    )
    if mesh is not None:
        options["mesh"] = mesh
    batches = jm.full_batch(jnp.arange(float(M)))
    return run(loss_fn, optimizer, jnp.float32(0), batches, 3, 5, chunk=2, **options)


def linear(params, batch, key):
    """Its gradient is the draw."""
    return params * jax.random.uniform(key) + 0 * batch


def keyword(params, batch, *, key=None):
    return linear(params, batch, key)


@functools.cache
def expected():
    draws = [[draw_of(5, step, worker) for worker in range(M)] for step in range(3)]
    return -sum(np.median(rows) for rows in draws)


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
@pytest.mark.parametrize("loss_fn", [linear, keyword])
@pytest.mark.parametrize("worker_chunk", [None, 2])
def test_each_worker_and_step_has_a_key_of_its_own(run, loss_fn, worker_chunk):
    result = train(loss_fn, run, worker_chunk=worker_chunk)
    assert float(result.params) == pytest.approx(expected(), rel=1e-6)


def test_a_mesh_hands_out_the_same_keys():
    result = train(linear, mesh=jm.sharding.workers_mesh(2), worker_chunk=1)
    assert float(result.params) == pytest.approx(expected(), rel=1e-6)


def test_the_second_argument_may_have_any_name():
    result = train(lambda params, key: params * key)
    assert float(result.params) == -4.5  # three steps of the median of 0, 1, 2, 3


@pytest.mark.parametrize("run", [jm.run, jm.run_pure])
def test_a_key_that_is_bound_stays(run):
    """As does an argument of that name whose default is no key."""
    bound = functools.partial(keyword, key=jax.random.key(7))
    draw = float(jax.random.uniform(jax.random.key(7)))
    assert float(train(bound, run).params) == pytest.approx(-3 * draw, rel=1e-6)

    def named(params, batch, key="image"):
        return params * {"image": batch}[key]

    assert float(train(named, run).params) == -4.5


def test_a_step_has_no_keys_to_give_and_says_so():
    optimizer, mesh = jm.median_sgd(1.0), jm.sharding.workers_mesh(1)
    for loss_fn in (linear, keyword):
        with pytest.raises(TypeError, match=r"`key`.*partial\(loss, key=None\)"):
            jm.make_step(loss_fn, optimizer)
        with pytest.raises(TypeError, match="Put keys into the batch"):
            jm.sharding.shard_step(loss_fn, optimizer, mesh)
    step = jm.make_step(functools.partial(keyword, key=jax.random.key(7)), optimizer)
    moved = step(jnp.float32(0), optimizer.init(jnp.float32(0)), jnp.arange(float(M)))
    assert moved[0] == -jax.random.uniform(jax.random.key(7))
