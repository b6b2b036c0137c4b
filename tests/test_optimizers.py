"""The four algorithms as chains, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from harness import awkward, first_update

import jaxmedian as jm


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


# --- momentum per worker --------------------------------------------------------------


def noisy_lion_loop(grads, masks, noises, params, rate, b1, b2, decay):
    """Lion by majority vote as its paper writes it, worker by worker; the paths of x.

    Every worker sends the sign of (1 - b1) g + b1 m, noise added here, and then updates
    m; the server votes; all subtract rate (vote + decay x).
    """
    momentum, x = np.zeros(grads[0].shape), np.asarray(params, np.float64)
    for g, mask, noise in zip(grads, masks, noises, strict=True):
        tally = np.zeros_like(x)
        for worker in np.flatnonzero(mask):
            sent = b1 * momentum[worker] + (1 - b1) * g[worker] + noise[worker]
            tally += np.sign(sent)
            momentum[worker] = b2 * momentum[worker] + (1 - b2) * g[worker]
        x = x - rate * (np.sign(tally) + decay * x)
        yield x


LION = {"learning_rate": 0.25, "b1": 0.8, "b2": 0.95, "weight_decay": 0.125}
SIGNUM = {"learning_rate": 0.25, "decay": 0.8}


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("build", "options", "constants"),
    [
        (jm.distributed_lion, LION, (0.25, 0.8, 0.95, 0.125)),
        (jm.signum, SIGNUM, (0.25, 0.8, 0.8, 0.0)),
    ],
    ids=["distributed_lion", "signum"],
)
def test_lion_and_signum_are_their_loop(build, options, constants, masked, noisy):
    num_workers, size, num_steps = 5, 60, 6
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(num_steps, num_workers, size)).astype(np.float32)
    masks = np.ones((num_steps, num_workers), bool)
    if masked:
        masks[:2, 3] = masks[4, 0] = masks[4, 1] = False
        grads[~masks] = np.nan  # who is absent is not heard
    noises = np.zeros(grads.shape)
    if noisy:
        key, noise = jax.random.key(1), jm.noise.laplace(0.5)
        options = options | {"noise": noise, "key": key}
        for step in range(num_steps):
            drawn = reference.worker_words(
                key, "independent", step=step, shape=grads.shape[1:]
            )
            noises[step] = 0.5 * reference.unit_noise("laplace", drawn)
    optimizer = build(num_workers=num_workers, **options)
    start = rng.normal(size=size).astype(np.float32)
    expected = noisy_lion_loop(grads, masks, noises, start, *constants)
    x, state = jnp.asarray(start), optimizer.init(start)
    update = jax.jit(optimizer.update)
    for g, mask, path in zip(grads, masks, expected, strict=True):
        updates, state = update(g, state, x, worker_mask=mask)
        x = jm.apply_updates(x, updates)
        np.testing.assert_allclose(x, path, rtol=1e-5, atol=1e-5)


def test_one_worker_of_distributed_lion_is_optax_lion():
    rng = np.random.default_rng(0)
    ours = jm.distributed_lion(0.1, weight_decay=0.5, num_workers=1)
    theirs = optax.lion(0.1, weight_decay=0.5)
    x = y = jnp.asarray(rng.normal(size=40).astype(np.float32))
    states = ours.init(x), theirs.init(y)
    for _ in range(4):
        g = rng.normal(size=(1, 40)).astype(np.float32)
        updates, state = ours.update(g, states[0], x)
        others, other = theirs.update(jnp.asarray(g[0]), states[1], y)
        x, y, states = x + updates, y + others, (state, other)
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("build", [jm.distributed_lion, jm.signum])
def test_votes_of_momentum_take_the_options_of_a_vote(build):
    grads = np.zeros((2, 3), np.float32)
    positive = first_update(build(0.5, num_workers=2, ties="positive"), grads)
    np.testing.assert_array_equal(positive, [-0.5] * 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tie'"):
        build(0.5, num_workers=2, tie="positive")
    with pytest.raises(ValueError, match="sends one bit a coordinate"):
        build(0.5, num_workers=2, transport="packed")
    with pytest.raises(ValueError, match="`majority_vote` needs a `key`"):
        build(0.5, num_workers=2, noise=jm.noise.gaussian(0.1))


def test_lion_without_decay_needs_no_parameters_and_with_it_says_so():
    grads = np.ones((2, 3), np.float32)
    plain = jm.distributed_lion(0.5, num_workers=2)
    plain.update(grads, plain.init(jnp.zeros(3)))
    decayed = jm.distributed_lion(0.5, num_workers=2, weight_decay=jnp.float32(0.1))
    with pytest.raises(ValueError, match="params"):
        decayed.update(grads, decayed.init(jnp.zeros(3)))


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
