"""The mean of signs: integers over the number present, and its exact expectation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from harness import awkward, enable_x64, first_update
from jax.sharding import PartitionSpec as P

import jaxmedian as jm

WORKERS = "workers"


def signs_by_a_loop(values, *, mask=None, weights=None):
    """Sums of signs over those who count, divided by how many they count as."""
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights)
    present = [i for i in range(len(values)) if mask is None or mask[i]]
    total = sum(weights[i] for i in present)
    result = np.zeros(values.shape[1:])
    for i in present:
        result += weights[i] * np.nan_to_num(np.sign(values[i]), nan=0.0)
    return result / total if total else result


@pytest.mark.parametrize("num_workers", [1, 4, 7, 130])
def test_it_is_the_loop(num_workers):
    grads = awkward(num_workers, 90, nan=True)
    got = first_update(jm.mean_of_signs(), grads)
    np.testing.assert_allclose(got, signs_by_a_loop(grads), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_with_noise_it_is_the_loop_on_noisy_gradients(coupling):
    grads = np.random.default_rng(0).normal(size=(5, 200)).astype(np.float32)
    key, noise = jax.random.key(1), jm.noise.laplace(0.5, coupling)
    drawn = reference.worker_words(key, coupling, shape=grads.shape)
    noisy = grads + 0.5 * reference.unit_noise("laplace", drawn)
    assert np.abs(noisy).min() > 1e-5  # no sign within rounding
    got = first_update(jm.mean_of_signs(noise, key), grads)
    np.testing.assert_allclose(got, signs_by_a_loop(noisy), rtol=1e-6)


def test_masks_and_weights_change_the_divisor():
    grads = awkward(6, 60, nan=True)
    mask = np.array([True, False, True, True, False, True])
    weights = np.array([3, 1, 0, 2, 5, 1], np.int32)
    for options in (
        {"mask": mask},
        {"weights": weights},
        {"mask": mask, "weights": weights},
        {"weights": weights.astype(np.float32) / 7},
    ):
        extra = {f"worker_{name}": jnp.asarray(v) for name, v in options.items()}
        got = first_update(jm.mean_of_signs(), grads, **extra)
        expected = signs_by_a_loop(grads, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    nobody = first_update(jm.mean_of_signs(), grads, worker_mask=jnp.zeros(6, bool))
    np.testing.assert_array_equal(nobody, np.zeros(60))


@pytest.mark.parametrize("num_workers", [4, 5])
@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_uniform_noise_out_of_reach_makes_it_unbiased(num_workers, coupling):
    """E = mean / (sqrt 3 b) at b = Q / sqrt 3, the least scale that serves."""
    values = np.random.default_rng(3).uniform(-1, 1, num_workers)
    values[0] = 1.0  # Q = 1
    scale, size, steps = 1 / np.sqrt(3), 4000, 40
    grads = jnp.asarray(np.tile(values[:, None], (1, size)), jnp.float32)
    transform = jm.mean_of_signs(jm.noise.uniform(scale, coupling), 11)

    def body(state, _):
        updates, state = transform.update(grads, state)
        return state, jnp.mean(updates)

    state = transform.init(jnp.zeros(size))
    _, means = jax.jit(lambda s: jax.lax.scan(body, s, length=steps))(state)
    # Given the permutation of its step each sign is right with its own probability, so
    # every step has the same expectation. Independent signs have a variance of
    # 1 - u_i^2; those of one coordinate under systematic noise at most M as much.
    spread = np.sqrt((1 - values**2).sum()) / num_workers
    spread *= np.sqrt(num_workers) if coupling == "systematic" else 1
    error = 6 * spread / np.sqrt(size * steps)
    assert abs(np.mean(means) - values.mean()) < error
    assert error < abs(values.mean()) / 5  # the test could fail


def test_float64_divides_in_float64():
    with enable_x64(True):
        grads = jnp.asarray([[1.0], [1.0], [-1.0]], jnp.float64)
        updates = first_update(jm.mean_of_signs(), grads)
    assert updates.dtype == np.float64
    assert abs(updates[0] - 1 / 3) < 1e-15


def test_a_stream_of_blocks_gives_the_same():
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.integers(-2, 3, (11, 40)).astype(np.float32))
    optimizer = jm.mean_of_signs(jm.noise.gaussian(0.5), 1)
    params = jnp.zeros(40)

    def step(chunk):
        step = jm.make_step(jnp.vdot, optimizer, worker_chunk=chunk)
        mask = jnp.arange(11) % 4 != 1
        state = optimizer.init(params)
        return jax.jit(step)(params, state, batch, worker_mask=mask)[0]

    for chunk in (1, 4):  # 4 does not divide 11: the last block overlaps
        np.testing.assert_array_equal(step(chunk), step(None))


def test_devices_add_bytes_and_get_the_bits_of_one():
    grads = awkward(8, 33, nan=True)
    mesh = jm.sharding.workers_mesh(4)
    noise = jm.noise.uniform(0.5, "systematic")
    spread = jm.mean_of_signs(noise, 2, axis_name=WORKERS)
    state = spread.init(jnp.zeros(33))
    update = jax.jit(
        jax.shard_map(
            lambda g: spread.update(g, state)[0],
            mesh=mesh,
            in_specs=P(WORKERS),
            out_specs=P(),
        )
    )
    got = update(grads)
    np.testing.assert_array_equal(got, first_update(jm.mean_of_signs(noise, 2), grads))
    measured = jm.diagnostics.wire_bytes(update.lower(grads).compile())
    assert measured.by_collective == {"all-reduce": 2 * 3 / 4 * 33}


def test_a_key_without_noise_is_refused():
    with pytest.raises(ValueError, match="`mean_of_signs` was given a `key` but"):
        jm.mean_of_signs(key=1)
    with pytest.raises(ValueError, match="`mean_of_signs` needs a `key`"):
        jm.mean_of_signs(jm.noise.gaussian(1.0))
