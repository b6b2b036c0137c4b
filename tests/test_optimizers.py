"""The four algorithms as chains, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import awkward, first_update

import jaxmedian as jm

pytestmark = pytest.mark.usefixtures("strict")


def test_sign_sgd_of_one_worker_is_optax_sign_sgd():
    grads = awkward(1, 300)
    params = jnp.zeros(300)
    ours = first_update(jm.sign_sgd(0.25), grads)
    theirs, _ = optax.sign_sgd(0.25).update(
        jnp.asarray(grads[0]), optax.sign_sgd(0.25).init(params), params
    )
    np.testing.assert_array_equal(ours, theirs)
    assert set(np.unique(ours)) == {-0.25, 0.0, 0.25}


def test_sign_sgd_is_algorithm_1():
    grads = awkward(5, 90, nan=True)
    expected = -0.25 * reference.vote(grads)
    np.testing.assert_array_equal(first_update(jm.sign_sgd(0.25), grads), expected)


def test_median_sgd_is_algorithm_2():
    grads = np.random.default_rng(0).normal(size=(6, 90)).astype(np.float32)
    for even in ("midpoint", "lower", "upper"):
        got = first_update(jm.median_sgd(0.25, even=even), grads)
        expected = -0.25 * reference.median(grads, even=even)
        np.testing.assert_allclose(got, expected, rtol=3e-7)


@pytest.mark.parametrize("coupling", ["independent", "systematic"])
def test_noisy_sign_sgd_is_algorithm_3(coupling):
    grads = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    key, noise = jax.random.key(1), jm.noise.logistic(0.5, coupling)
    drawn = reference.worker_words(key, coupling, shape=grads.shape)
    noisy = grads + 0.5 * reference.unit_noise("logistic", drawn)
    assert np.abs(noisy).min() > 1e-5  # no sign within rounding
    got = first_update(jm.noisy_sign_sgd(0.25, noise, key), grads)
    np.testing.assert_array_equal(got, -0.25 * reference.vote(noisy))


def test_noisy_median_sgd_is_algorithm_4():
    grads = np.random.default_rng(0).normal(size=(4, 200)).astype(np.float32)
    key, noise = jax.random.key(1), jm.noise.laplace(0.5)
    drawn = reference.worker_words(key, "independent", shape=grads.shape)
    noisy = grads + 0.5 * reference.unit_noise("laplace", drawn)
    got = first_update(jm.noisy_median_sgd(0.25, noise, key, even="upper"), grads)
    np.testing.assert_allclose(
        got, -0.25 * reference.median(noisy, even="upper"), atol=1e-6
    )


def test_options_reach_the_aggregator():
    grads = np.zeros((2, 3), np.float32)
    positive = first_update(jm.sign_sgd(0.5, ties="positive"), grads)
    np.testing.assert_array_equal(positive, [-0.5] * 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tie'"):
        jm.sign_sgd(0.5, tie="positive")
    with pytest.raises(TypeError, match="unexpected keyword argument 'ties'"):
        jm.median_sgd(0.5, ties="zero")


def test_noise_free_sign_sgd_walks_to_the_median_and_noise_to_the_mean():
    """The paper's counterexample, a = (1, 2, 10), at a large step."""
    targets = jnp.array([1.0, 2.0, 10.0])

    def end_of(optimizer):
        def body(carry, _):
            x, state = carry
            updates, state = optimizer.update(x - targets, state, x)
            return (jm.apply_updates(x, updates), state), x

        start = jnp.float32(0), optimizer.init(jnp.float32(0))
        _, path = jax.jit(lambda: jax.lax.scan(body, start, length=6000))()
        return np.asarray(path)[2000:]

    plain = end_of(jm.sign_sgd(0.01))
    assert np.abs(plain - 2).max() < 0.011
    noisy = end_of(jm.noisy_median_sgd(0.01, jm.noise.gaussian(20.0), 0))
    # An AR(1) process around E[median] = 4.288: its mean over n steps has a variance of
    # about Var[median] / n.
    assert abs(noisy.mean() - 4.2884566897) < 5 * np.sqrt(182.27 / 4000)


# --- apply_updates --------------------------------------------------------------------


def test_apply_updates_adds_and_keeps_the_dtype_of_the_parameters():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(())}
    updates = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.full((), 0.5)}
    got = jm.apply_updates(params, updates)
    assert got["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got["a"], [2, 2])
    assert float(got["b"]) == 1.5


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (1,), ()])
def test_apply_updates_refuses_what_optax_would_broadcast(shape):
    params, updates = {"w": jnp.zeros(2)}, {"w": jnp.zeros(shape)}
    with pytest.raises(ValueError, match="the chain has no aggregator") as error:
        jm.apply_updates(params, updates)
    assert f"`['w']` has shape {shape}, its parameter (2,)" in str(error.value)


def test_apply_updates_refuses_another_structure():
    with pytest.raises(ValueError, match=r"`apply_updates`.*same tree structure"):
        jm.apply_updates({"w": jnp.zeros(2)}, {"v": jnp.zeros(2)})
