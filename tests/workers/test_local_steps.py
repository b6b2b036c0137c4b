"""Local steps against closed forms on quadratics and a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

M, K, SAMPLES, FEATURES = 4, 3, 6, 3
RATE = 0.1


def loss_fn(params, batch):
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * jnp.mean(jnp.square(residual))


def start():
    return {"b": jnp.float32(0.5), "w": jnp.array([1.0, -1.0, 0.25])}


def data(*leading):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(*leading, SAMPLES, FEATURES)).astype(np.float32),
        "y": rng.normal(size=(*leading, SAMPLES)).astype(np.float32),
    }


def slow_updates(batch_of_step, momentum):
    """Every worker's K steps with heavy-ball momentum, in float64."""
    rows = {"b": [], "w": []}
    for worker in range(M):
        b, w = 0.5, np.array([1.0, -1.0, 0.25])
        velocity_b, velocity_w = 0.0, np.zeros(FEATURES)
        for step in range(K):
            x, y = (np.float64(leaf[worker]) for leaf in batch_of_step(step))
            residual = x @ w + b - y
            velocity_b = momentum * velocity_b + residual.mean()
            velocity_w = momentum * velocity_w + residual @ x / SAMPLES
            b, w = b - RATE * velocity_b, w - RATE * velocity_w
        rows["b"].append(b - 0.5)
        rows["w"].append(w - np.array([1.0, -1.0, 0.25]))
    return {name: np.array(values) for name, values in rows.items()}


def assert_close(got, expected, **tolerance):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], **tolerance)


@pytest.mark.parametrize("worker_chunk", [None, 1, 3])
def test_one_step_of_sgd_is_the_gradient_times_minus_the_step(worker_chunk):
    batch = data(M)
    options = {"worker_chunk": worker_chunk}
    updates = jax.jit(jm.worker_updates(loss_fn, optax.sgd(RATE), 1, **options))
    grads = jax.jit(jm.worker_grads(loss_fn, **options))(start(), batch)
    expected = {name: -RATE * np.asarray(grads[name]) for name in grads}
    assert_close(updates(start(), batch), expected, rtol=1e-6)


@pytest.mark.parametrize("worker_chunk", [None, 1, 3])
@pytest.mark.parametrize("batch_per_step", [False, True])
def test_several_steps_are_those_of_the_slow_loop(batch_per_step, worker_chunk):
    batch = data(M, K) if batch_per_step else data(M)
    updates_fn = jm.worker_updates(
        loss_fn,
        optax.sgd(RATE, momentum=0.9),
        K,
        batch_per_step=batch_per_step,
        worker_chunk=worker_chunk,
    )

    def batch_of_step(step):
        leaves = batch["x"], batch["y"]
        return [leaf[:, step] if batch_per_step else leaf for leaf in leaves]

    got = jax.jit(updates_fn)(start(), batch)
    assert_close(got, slow_updates(batch_of_step, 0.9), atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_quadratics_have_a_closed_form(num_steps):
    """x_K - x = (1 - (1 - step h)^K) (c - x) for the loss h (x - c)^2 / 2."""
    h, c = np.float32([1, 2, 5, 0.5]), np.float32([3, -1, 0, 8])

    def quadratic(x, worker):
        return 0.5 * worker["h"] * jnp.square(x - worker["c"])

    updates_fn = jm.worker_updates(quadratic, optax.sgd(RATE), num_steps)
    got = updates_fn(jnp.float32(2.0), {"h": h, "c": c})
    expected = (1 - (1 - RATE * np.float64(h)) ** num_steps) * (c - 2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_steps_far_below_the_rounding_of_the_parameters_are_kept():
    """The updates are not a difference of two nearly equal parameters."""

    def linear(x, slope):
        return jnp.sum(slope * x)

    slopes = np.float32([[1.0], [3.0]])
    updates_fn = jm.worker_updates(linear, optax.sgd(1e-6), 5)
    got = updates_fn(jnp.full(1, 1000.0), slopes)
    np.testing.assert_allclose(got, -5e-6 * slopes, rtol=1e-5)


def test_many_small_steps_add_up_in_bfloat16():
    """4,000 steps of 1e-3 are 4, where a sum in bfloat16 stays at 1/2."""
    updates_fn = jm.worker_updates(
        lambda x, slope: jnp.sum(x * slope), optax.sgd(1e-3), 4000
    )
    got = updates_fn(jnp.full(1, 4.0, jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert got.tolist() == [[-4.0]]


def test_updates_go_through_an_aggregator_with_the_sign_of_optax():
    """K = 1 and the vote with optax.scale: signSGD; the mean alone: one step of SGD."""
    batch, params = data(M), start()
    updates = jm.worker_updates(loss_fn, optax.sgd(RATE), 1)(params, batch)
    grads = jm.worker_grads(loss_fn)(params, batch)

    def step(transform, rows):
        moved, _ = transform.update(rows, transform.init(params), params)
        return jm.apply_updates(params, moved)

    by_vote = step(optax.chain(jm.majority_vote(), optax.scale(0.01)), updates)
    assert_close(by_vote, step(jm.sign_sgd(0.01), grads), rtol=1e-6)
    by_mean = step(jm.worker_mean(), updates)
    sgd = optax.chain(jm.worker_mean(), optax.sgd(RATE))
    assert_close(by_mean, step(sgd, grads), rtol=1e-6)


@pytest.mark.parametrize("local_tx", [optax.sgd(RATE), optax.adam(RATE)])
def test_a_mesh_gives_the_updates_of_one_device(local_tx):
    batch = data(M)
    mesh = jax.make_mesh(
        (2,), ("workers",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        spread = jax.jit(
            jax.shard_map(
                jm.worker_updates(loss_fn, local_tx, K, axis_name="workers"),
                mesh=mesh,
                in_specs=(P(), P("workers")),
                out_specs=P("workers"),
            )
        )(start(), batch)
        alone = jax.jit(jm.worker_updates(loss_fn, local_tx, K))(start(), batch)
    assert_close(spread, jax.tree.map(np.asarray, alone), atol=1e-6)


def test_half_precision_stays_half_precision():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    batch = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), data(M))
    got = jm.worker_updates(loss_fn, optax.sgd(RATE), K)(params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((optax.sgd(RATE), 0), {}, ValueError, "`num_steps`"),
        ((optax.sgd(RATE), 1.5), {}, TypeError, "`num_steps`"),
        ((RATE, 1), {}, TypeError, "`local_tx`"),
        ((optax.sgd(RATE), 1), {"worker_chunk": 0}, ValueError, "`worker_chunk`"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        jm.worker_updates(loss_fn, *arguments, **options)


def test_bad_batches_and_local_keys_are_refused_while_tracing():
    with pytest.raises(ValueError, match="worker axis"):
        jm.worker_updates(loss_fn, optax.sgd(RATE), K)(start(), {"x": 1.0, "y": 1.0})
    per_step = jm.worker_updates(loss_fn, optax.sgd(RATE), K, batch_per_step=True)
    with pytest.raises(ValueError, match=rf"\[M, {K}, ...\]"):
        per_step(start(), data(M))
    noisy = optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(RATE))
    with pytest.raises(ValueError, match=r"`local_tx` owns a key.*rng_key"):
        jm.worker_updates(loss_fn, noisy, K)(start(), data(M))
