"""The neighbours' chains against their definitions, and the two identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.methods import neighbours
from experiments.methods.neighbours import claims, sign_methods

M, STEPS, RATE = 5, 4, 0.1
GRADS = np.random.default_rng(0).normal(size=(STEPS, M, 3)).astype(np.float32)


def walk(transform):
    """Parameters after each step on the given gradients."""
    params = jnp.zeros(3)
    state, seen = transform.init(params), []
    for grads in GRADS:
        updates, state = jax.jit(transform.update)(jnp.asarray(grads), state, params)
        params = jm.apply_updates(params, updates)
        seen.append(np.asarray(params))
    return np.array(seen)


def test_ef_sign_sgd_is_the_published_loop():
    x, memory = np.zeros(3), np.zeros((M, 3))
    expected = []
    for grads in np.float64(GRADS):
        sent = np.zeros((M, 3))
        for i in range(M):
            p = RATE * grads[i] + memory[i]
            sent[i] = np.abs(p).sum() / p.size * np.sign(p)
            memory[i] = p - sent[i]
        x = x - sent.mean(axis=0)
        expected.append(x)
    got = walk(sign_methods.ef_sign_sgd(RATE, M))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_signum_votes_on_momenta():
    x, momentum, expected = np.zeros(3), np.zeros((M, 3)), []
    for grads in np.float64(GRADS):
        momentum = 0.9 * momentum + grads
        x = x - RATE * np.sign(np.sign(momentum).sum(axis=0))
        expected.append(x)
    np.testing.assert_allclose(
        walk(jm.signum(RATE, num_workers=M)), expected, atol=1e-6
    )


def test_distributed_lion_votes_on_lions_updates():
    x, momentum, expected = np.zeros(3), np.zeros((M, 3)), []
    for grads in np.float64(GRADS):
        signs = np.sign(0.9 * momentum + 0.1 * grads)
        momentum = 0.99 * momentum + 0.01 * grads
        x = x - RATE * np.sign(signs.sum(axis=0))
        expected.append(x)
    got = walk(jm.distributed_lion(RATE, num_workers=M))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_without_noise_the_mean_of_signs_is_the_mean_of_signs():
    got = walk(sign_methods.mean_of_noisy_signs(RATE, jm.noise.gaussian(0.0), 0))
    expected = -RATE * np.cumsum(np.sign(GRADS).mean(axis=1), axis=0)
    np.testing.assert_allclose(got, expected, atol=1e-6)


# --- identities: the same law of one worker's bit, and of the vote --------------------

U = np.array([1.0, -0.3, 0.8, -2.0, 0.1])  # one coordinate, five workers
DRAWS = 200_000


def votes(transform):
    """The vote on DRAWS coordinates that all hold U: a sample of its law."""
    grads = jnp.tile(jnp.asarray(U, jnp.float32)[:, None], (1, DRAWS))
    params = jnp.zeros(DRAWS)
    updates, _ = jax.jit(transform.update)(grads, transform.init(params), params)
    return np.asarray(updates)


def probability_of_plus(bits):
    """P(more than half of independent bits are +1), by enumeration."""
    total = 0.0
    for pattern in range(2**M):
        plus = np.array([(pattern >> i) & 1 for i in range(M)], bool)
        if plus.sum() > M / 2:
            total += np.prod(np.where(plus, bits, 1 - bits))
    return total


def standard_normal_cdf(x):
    return np.array([0.5 * (1 + jax.scipy.special.erf(v / np.sqrt(2))) for v in x])


def test_uniform_noise_has_the_bits_of_sto_sign():
    """P(+) = (B + g) / (2 B) with B = sqrt(3) b; the vote follows the same law."""
    bound = np.abs(U).max()
    bits = (bound + U) / (2 * bound)
    noise = jm.noise.uniform(bound / np.sqrt(3))
    np.testing.assert_allclose(noise.cdf(U / (bound / np.sqrt(3))), bits, atol=1e-12)
    expected = probability_of_plus(bits)
    exact = jm.theory.vote_probability(U, noise)
    np.testing.assert_allclose(exact.plus, expected, atol=1e-12)
    sigma = np.sqrt(expected * (1 - expected) / DRAWS)
    moved = votes(sign_methods.sto_sign(1.0, 3))  # B = max|g| of the gradients at hand
    assert abs((moved < 0).mean() - expected) < 5 * sigma


def test_gaussian_noise_has_the_bits_of_dp_sign():
    """P(+) = Phi(g / sigma) with sigma = b; the vote follows the same law."""
    scale = 1.5
    bits = standard_normal_cdf(U / scale)
    noise = jm.noise.gaussian(scale)
    np.testing.assert_allclose(noise.cdf(U / scale), bits, atol=1e-6)
    expected = probability_of_plus(bits)
    exact = jm.theory.vote_probability(U, noise)
    np.testing.assert_allclose(exact.plus, expected, atol=1e-6)
    sigma = np.sqrt(expected * (1 - expected) / DRAWS)
    moved = votes(jm.noisy_sign_sgd(1.0, noise, 3))
    assert abs((moved < 0).mean() - expected) < 5 * sigma


def test_one_seed_neither_meets_a_goal_nor_misses_it():
    """Votes that are ahead of the mean, with seeds and with one alone."""
    config = dataclasses.replace(neighbours.Config(), data="mnist5k", num_steps=3000)
    points = {"vote, systematic": np.array([-0.7, -0.6])}
    (claim,) = claims.behind_the_mean(config, points)
    assert (claim.holds, claim.reason) == (True, "")
    assert claim.here == "-0.65 +- 0.05 points behind on mnist5k in 3,000"
    points = {"vote, systematic": np.array([3.0, 3.1])}
    (claim,) = claims.behind_the_mean(config, points)
    assert (claim.holds, claim.reason) == (False, "missed")
    noisy = {"vote, systematic": np.array([-3.0, 6.0])}  # 1.5 +- 4.5, a goal of 1
    assert claims.behind_the_mean(config, noisy)[0].holds is False
    (claim,) = claims.behind_the_mean(config, {"vote, systematic": np.ones(1)})
    assert (claim.holds, claim.reason) == (None, "")
