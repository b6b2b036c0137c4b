"""Monte-Carlo estimates of the median and the vote, with their standard errors.

For what has no formula (systematic medians of more than 8 workers, midpoints of more
than 200) and as a check of what has one. The draws follow the laws and the coupling,
with `jax.random` words and float64 arithmetic; they are not the words a training run
would use. One permutation serves all coordinates of a draw, as in training, so
coordinates of systematic noise are not independent of each other.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from jaxmedian.noise import Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory.arguments import (
    Array,
    Result,
    middle_ranks,
    positive_integer,
    scale_of,
    shaped,
    worker_values,
)

_BLOCK = 2**20  # numbers drawn at once


class StandardErrors(NamedTuple):
    """Standard errors of a simulated mean and a simulated variance."""

    mean: Result
    variance: Result


class SimulatedMedian(NamedTuple):
    """Estimates of the mean and the variance of the noisy median."""

    mean: Result
    variance: Result
    standard_errors: StandardErrors


class SimulatedVote(NamedTuple):
    """Estimates of P(+1), P(-1), P(tie), and their standard errors in that order."""

    plus: Result
    minus: Result
    tie: Result
    standard_errors: tuple[Result, Result, Result]


def simulate_median(
    values: npt.ArrayLike,
    noise: Noise,
    key: jax.Array | int,
    draws: int,
    even: str = "midpoint",
) -> SimulatedMedian:
    """Estimates the moments of the noisy median by simulation.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: law, scale (a number, or `relative`, resolved on the values) and coupling.
      key: a JAX key, typed or legacy, or an int.
      draws: number of draws, at least 2.
      even: as in `median_moments`.

    Returns:
      (mean, variance, standard_errors); the last is a pair for mean and variance. All
      floats for values [M], else float64 arrays without the worker axis.

    Raises:
      ValueError, TypeError: as in `median_moments`, and for fewer than 2 draws.

    Reference: the law of Theorem 4 of the paper.

    >>> from jaxmedian import noise
    >>> found = simulate_median([1, 2, 10], noise.gaussian(5.0), 0, 10_000)
    >>> abs(found.mean - 3.7520870393) < 5 * found.standard_errors.mean
    True
    """
    u, shape = worker_values(values)
    ranks = middle_ranks(len(u), even)
    count = positive_integer("draws", draws)
    if count < 2:
        raise ValueError("`draws` must be at least 2, to estimate a variance.")
    origin = np.median(u, axis=0)
    rows = [rank - 1 for rank in ranks]
    sums = np.zeros((4, u.shape[1]))
    for noisy in _noisy_values(u - origin, noise, key, count, scale_of(noise, u)):
        medians = np.partition(noisy, rows, axis=1)[:, rows].mean(axis=1)
        sums += [(medians**power).sum(axis=0) for power in (1, 2, 3, 4)]
    m1, m2, m3, m4 = sums / count
    variance = np.maximum(m2 - m1**2, 0.0)
    fourth = m4 - 4 * m3 * m1 + 6 * m2 * m1**2 - 3 * m1**4
    errors = StandardErrors(
        shaped(np.sqrt(variance / count), shape),
        shaped(np.sqrt(np.maximum(fourth - variance**2, 0.0) / count), shape),
    )
    unbiased = variance * count / (count - 1)
    return SimulatedMedian(shaped(origin + m1, shape), shaped(unbiased, shape), errors)


def simulate_vote(
    values: npt.ArrayLike, noise: Noise, key: jax.Array | int, draws: int
) -> SimulatedVote:
    """Estimates the law of the noisy majority vote by simulation.

    Args:
      values: u, [M] or [M, ...], worker axis first.
      noise: as in `simulate_median`.
      key: a JAX key, typed or legacy, or an int.
      draws: number of draws, at least 1.

    Returns:
      (plus, minus, tie, standard_errors); the last holds one error for each.

    Raises:
      ValueError, TypeError: as in `vote_probability`.

    Reference: Algorithm 3 of the paper.

    >>> from jaxmedian import noise
    >>> plus, _, _, errors = simulate_vote([1, 2, 10], noise.gaussian(5.0), 0, 10_000)
    >>> abs(plus - 0.8442074808) < 5 * errors[0]
    True
    """
    u, shape = worker_values(values)
    count = positive_integer("draws", draws)
    sums = np.zeros((3, u.shape[1]))
    for noisy in _noisy_values(u, noise, key, count, scale_of(noise, u)):
        tally = np.sign(noisy).sum(axis=1)
        sums += [(tally > 0).sum(axis=0), (tally < 0).sum(axis=0), (tally == 0).sum(0)]
    laws = sums / count
    errors = np.sqrt(laws * (1 - laws) / count)
    plus, minus, tie = (shaped(part, shape) for part in laws)
    error_plus, error_minus, error_tie = (shaped(part, shape) for part in errors)
    return SimulatedVote(plus, minus, tie, (error_plus, error_minus, error_tie))


def _noisy_values(
    u: Array, noise: Noise, key: jax.Array | int, draws: int, scale: float
) -> Iterator[Array]:
    """Yields blocks [draws, M, C] of u + b xi."""
    if scale == 0:  # one value, as often as asked for
        for start in range(0, draws, _BLOCK):
            yield np.broadcast_to(u, (min(_BLOCK, draws - start), *u.shape))
        return
    key = jax.random.key(key) if isinstance(key, int | np.integer) else key
    size = max(1, _BLOCK // u.size)
    for block, start in enumerate(range(0, draws, size)):
        block_key = jax.random.fold_in(key, block)
        yield u + scale * unit_noise(noise, block_key, min(size, draws - start), u)


def unit_noise(noise: Noise, key: jax.Array, draws: int, u: Array) -> Array:
    """Draws xi for values u [M, C], whatever the scale: [draws, M, C]."""
    uniforms = _uniforms(key, draws, u.shape, noise.coupling)
    return np.asarray(LAWS[noise.law].quantile(uniforms))


def _uniforms(
    key: jax.Array, draws: int, shape: tuple[int, ...], coupling: str
) -> Array:
    """Draws uniforms in (0, 1), [draws, M, C]: 32 random bits and half a unit."""
    if coupling == "independent":
        words = jax.random.bits(key, (draws, *shape), "uint32")
        return (np.asarray(words).astype(np.float64) + 0.5) * 2.0**-32
    shared_key, order_key = jax.random.split(key)
    shared = np.asarray(jax.random.bits(shared_key, (draws, 1, shape[1]), "uint32"))
    # The ranks of independent words are a random permutation, up to equal words.
    order = np.asarray(jax.random.bits(order_key, (draws, shape[0]), "uint32"))
    slots = np.argsort(order, axis=1)[:, :, None] / shape[0]
    position = (shared.astype(np.float64) + 0.5) * 2.0**-32 + slots
    return position - (position >= 1)
