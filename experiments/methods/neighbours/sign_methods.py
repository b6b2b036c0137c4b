"""The neighbours of the noisy vote and median, each a chain of a few lines.

Every function takes a learning rate (a number or schedule) and returns an optax
transformation ``[M, ...] -> [...]``. Two neighbours *are* rules of this library:

    sto-sign(B) with a vote   the vote with uniform noise, B = sqrt(3) b
    dp-sign(sigma) with one   the vote with Gaussian noise, sigma = b

since sto-sign sends +1 with probability (B + g) / (2 B), the chance that g + b xi > 0
for xi uniform on [-sqrt 3, sqrt 3], and dp-sign with probability Phi(g / sigma).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxmedian as jm

Rate = Any  # a number, a traced scalar or an optax schedule


def mean(rate: Rate) -> optax.GradientTransformation:
    """Builds distributed SGD: the mean of the gradients."""
    return optax.chain(jm.worker_mean(), optax.scale_by_learning_rate(rate))


def ef_sign_sgd(rate: Rate, num_workers: int) -> optax.GradientTransformation:
    """Builds EF-signSGD: scaled signs, each worker remembering what it left out.

    Reference: Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019.
    """
    worker = optax.chain(optax.scale_by_learning_rate(rate), compress_with_memory())
    return optax.chain(jm.per_worker(worker, num_workers), jm.worker_mean())


def mean_of_noisy_signs(
    rate: Rate, noise: jm.noise.Noise, key: Any
) -> optax.GradientTransformation:
    """Builds the mean of noisy signs (z-SignFedAvg): a vote count, not its sign.

    Reference: Tang et al., "z-SignFedAvg", AAAI 2024.
    """
    return optax.chain(jm.mean_of_signs(noise, key), optax.scale_by_learning_rate(rate))


def sto_sign(rate: Rate, key: Any) -> optax.GradientTransformation:
    """Builds the vote of stochastic signs with B = max|g|, leaf by leaf.

    Reference: Jin et al., "Stochastic-Sign SGD for Federated Learning with Theoretical
    Guarantees", 2020.
    """
    noise = jm.noise.uniform(jm.noise.relative(1 / math.sqrt(3)))
    return jm.noisy_sign_sgd(rate, noise, key)


class MemoryState(NamedTuple):
    """What a worker has not sent yet, params-shaped."""

    memory: optax.Updates


def compress_with_memory() -> optax.GradientTransformation:
    """Sends mean|p| sign(p) of p = update + memory, leaf by leaf; remembers the rest.

    One bit a coordinate and one number a leaf. For one worker: lift with `per_worker`.
    """

    def init_fn(params: optax.Params) -> MemoryState:
        return MemoryState(jax.tree.map(jnp.zeros_like, params))

    def update_fn(
        updates: optax.Updates, state: MemoryState, params: Any = None
    ) -> tuple[optax.Updates, MemoryState]:
        del params
        wanted = jax.tree.map(jnp.add, updates, state.memory)
        sent = jax.tree.map(lambda p: jnp.mean(jnp.abs(p)) * jnp.sign(p), wanted)
        return sent, MemoryState(jax.tree.map(jnp.subtract, wanted, sent))

    return optax.GradientTransformation(init_fn, update_fn)
