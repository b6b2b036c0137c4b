"""Votes of coordinates that share a permutation err together.

One permutation serves all coordinates of a leaf. Given it, coordinates with the same
worker values vote independently of each other with the same mean, so the correlation of
two votes is Var(E[vote | permutation]) / Var(vote): exactly, by going through the
different ways to seat the values on the circle of slots. `measured` estimates the same
from `jm.majority_vote`.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse

_MOST_SEATINGS = 20_000
_CERTAIN = 1e-12  # a vote whose variance is below this is constant


class Votes(NamedTuple):
    """First and second moments of the votes of equal coordinates in one step.

    Attributes:
      mean: E[vote].
      variance: Var(vote).
      correlation: of two coordinates' votes; NaN for a vote that is certain.
    """

    mean: float
    variance: float
    correlation: float


class Measured(NamedTuple):
    """Estimates with their standard errors; the correlation needs the exact moments."""

    mean: float
    mean_error: float
    correlation: float
    correlation_error: float


def exact(values: Sequence[float], noise: jm.noise.Noise) -> Votes:
    """Computes the moments of systematic votes, exactly.

    Args:
      values: u, [M]; many of them equal, or M small: at most 20,000 different seatings.
      noise: systematic, with a number as scale.

    Returns:
      A `Votes`.

    Raises:
      Misuse: if there are too many different seatings.
    """
    seats = np.array(list(seatings(values))).T  # [M, seatings]: values in slot order
    law = jm.theory.vote_probability(seats, noise, permutation=np.arange(len(seats)))
    given = np.asarray(law.plus) - np.asarray(law.minus)
    cast = np.asarray(law.plus) + np.asarray(law.minus)  # E[vote^2 | permutation]
    mean = float(given.mean())
    variance = float(cast.mean()) - mean**2
    shared = float(given.var())
    correlation = shared / variance if variance > _CERTAIN else math.nan
    return Votes(mean, variance, correlation)


def seatings(values: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """Yields the different orders of the values around a circle, all equally likely.

    The first value stays in slot 0, since rotating all slots only moves V.

    >>> list(seatings([1.0, 0.0, 0.0, 5.0]))
    [(1.0, 0.0, 0.0, 5.0), (1.0, 0.0, 5.0, 0.0), (1.0, 5.0, 0.0, 0.0)]
    """
    first, *rest = values
    number = math.factorial(len(rest))
    for count in Counter(rest).values():
        number //= math.factorial(count)
    if number > _MOST_SEATINGS:
        raise Misuse(
            f"`values` can be seated in {number} different ways, more than "
            f"{_MOST_SEATINGS}. Take fewer workers, or more equal values."
        )
    for others in _orders(tuple(sorted(rest))):
        yield (first, *others)


def _orders(values: tuple[float, ...]) -> Iterator[tuple[float, ...]]:
    """Yields the different orders of sorted values."""
    if not values:
        yield ()
    for value in sorted(set(values)):
        i = values.index(value)
        for tail in _orders(values[:i] + values[i + 1 :]):
            yield (value, *tail)


def measured(
    values: Sequence[float],
    noise: jm.noise.Noise,
    key: jax.Array,
    num_steps: int,
    coordinates: int,
) -> Measured:
    """Estimates mean and correlation of the votes of `jm.majority_vote`.

    The average v of d votes of a step has E[v^2] = mean^2 + variance (rho + (1 - rho) /
    d), which is linear in rho; steps are independent draws of v^2.

    Args:
      values: u, [M], as in `exact`.
      noise: systematic, with a number as scale.
      key: a typed key.
      num_steps: steps, each with a permutation of its own.
      coordinates: d, all of them with these values.

    Returns:
      A `Measured`.
    """
    averages = np.asarray(_average_votes(values, noise, key, num_steps, coordinates))
    law = exact(values, noise)
    squares = averages.astype(np.float64) ** 2
    each = (squares - law.mean**2) / law.variance
    rho = (each - 1 / coordinates) / (1 - 1 / coordinates)
    root = np.sqrt(num_steps)
    return Measured(
        float(averages.mean(dtype=np.float64)),
        float(averages.std(ddof=1, dtype=np.float64) / root),
        float(rho.mean()),
        float(rho.std(ddof=1) / root),
    )


def _average_votes(
    values: Sequence[float],
    noise: jm.noise.Noise,
    key: jax.Array,
    num_steps: int,
    coordinates: int,
) -> jax.Array:
    """Runs the aggregator for num_steps steps and averages each step's votes."""
    rows = jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, coordinates))
    return _steps(noise.law, num_steps, rows, noise.scale, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _steps(
    law: str, num_steps: int, rows: jax.Array, scale: jax.Array, key: jax.Array
) -> jax.Array:
    vote = jm.majority_vote(jm.noise.Noise(law, scale, "systematic"), key)
    template = jnp.zeros(rows.shape[1:], rows.dtype)

    def step(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        votes, state = vote.update(rows, state, template)
        return state, jnp.mean(votes)

    return jax.lax.scan(step, vote.init(template), None, num_steps)[1]
