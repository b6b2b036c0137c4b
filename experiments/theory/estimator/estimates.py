"""Estimates of the mean of M vectors: robust rules, and noisy medians.

All take values [M, sets, d], worker axis first, and return [sets, d]; the noisy ones
take a list of keys and return [draws, sets, d].
"""

import dataclasses
import functools

import jax
import numpy as np
import scipy.stats
from numpy.typing import NDArray

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed

Array = NDArray[np.float64]

_ITERATIONS = 2000
_TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the workers' values are exponential, with mean and sd 1.

    Attributes:
      num_workers: M, odd.
      num_sets: data sets, each of M vectors.
      dimension: of the vectors; only the geometric median looks at them as such.
      trim: share that the trimmed mean leaves out on either side.
      law: law of the noise.
      least_exponent: the smallest b is 2 to this power, in standard deviations.
      greatest_exponent: the largest b likewise; there are two b for each power of 2.
      simulated_scales: b of the dots.
      draws: noisy medians of every data set behind each dot.
      hostile_value: what a hostile worker sends in every coordinate.
      hostile_scale: b of the noisy median that meets hostile workers.
      hostile_factor: b over max|g| where the scale follows the values.
      seed: of data and draws.
    """

    num_workers: Count = 11
    num_sets: Count = 100
    dimension: Count = 8
    trim: float = 0.2
    law: str = "gaussian"
    least_exponent: int = -2
    greatest_exponent: int = 5
    simulated_scales: Amounts = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    draws: Count = 2000
    hostile_value: float = 1e6
    hostile_scale: float = 2.0
    hostile_factor: float = 0.1
    seed: Seed = 0

    def __post_init__(self) -> None:
        jm.noise.Noise(self.law, 1.0)  # says which laws there are
        if self.num_workers < 3 or self.num_workers % 2 == 0:
            raise ValueError(f"`num_workers` must be odd and >= 3: {self.num_workers}.")


PRESETS = {
    "quick": Config(num_sets=40, draws=1000),
    "tiny": Config(
        num_workers=5,
        num_sets=4,
        dimension=2,
        trim=0.25,
        simulated_scales=(1.0,),
        draws=320,
    ),
}


def trimmed_mean(values: Array, share: float) -> Array:
    """Leaves out the floor(share M) smallest and largest of each coordinate."""
    return np.asarray(scipy.stats.trim_mean(values, share, axis=0))


def geometric_median(values: Array) -> Array:
    """Minimises sum_i ||x - u_i|| by the iteration of Weiszfeld, Vardi and Zhang.

    x <- x + share R / sum_i w_i with w_i = 1 / ||x - u_i|| and R = sum_i w_i (u_i - x),
    both over the u_i other than x; share = max(0, 1 - n / ||R||) where n of them are x,
    so that the iteration leaves a worker that is not the solution, and stays at one
    that is. It converges slowly towards such a worker.

    Args:
      values: u, [M, sets, d].

    Returns:
      [sets, d].

    >>> corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[:, None]
    >>> geometric_median(corners).round(6)  # the Fermat point, (3 - sqrt(3)) / 6
    array([[0.211325, 0.211325]])
    """
    x = np.median(values, axis=0)
    distance = np.linalg.norm(values - x, axis=-1)  # [M, sets]
    typical = np.median(distance, axis=0)
    typical = np.where(typical > 0, typical, distance.max(axis=0))  # most coincide
    least = _TOLERANCE * np.where(typical > 0, typical, 1.0)  # all coincide
    for _ in range(_ITERATIONS):
        away = values - x
        distance = np.linalg.norm(away, axis=-1)
        here = distance <= least
        weights = np.where(here, 0.0, 1 / np.maximum(distance, least))
        pull = (weights[..., None] * away).sum(axis=0)
        strength = np.linalg.norm(pull, axis=-1)
        share = 1 - here.sum(axis=0) / np.maximum(strength, _TOLERANCE)
        share = np.maximum(share, 0.0) / np.maximum(weights.sum(axis=0), 1e-300)
        x = x + share[:, None] * pull
        if (share * strength <= least).all():
            break
    return x


@functools.partial(jax.jit, static_argnums=0)
def perturbed_medians(
    law: str, values: jax.Array, scale: jax.Array, keys: jax.Array
) -> jax.Array:
    """Computes `jm.perturbed_median` for each key."""
    noise = jm.noise.Noise(law, scale)
    return jax.lax.map(lambda key: jm.perturbed_median(values, noise, key), keys)


@functools.partial(jax.jit, static_argnums=0)
def richardson(
    law: str, values: jax.Array, scale: jax.Array, keys: jax.Array
) -> jax.Array:
    """Computes (4 m_2b - m_b) / 3 for each key, m_b the perturbed median.

    The terms of order b^-2 in the expectation cancel. Both medians see the same draws,
    so they err together and the difference varies less than that of independent ones.
    """

    def extrapolate(key: jax.Array) -> jax.Array:
        near, far = (
            jm.perturbed_median(values, jm.noise.Noise(law, b), key)
            for b in (scale, 2 * scale)
        )
        return (4 * far - near) / 3

    return jax.lax.map(extrapolate, keys)


@functools.partial(jax.jit, static_argnums=(0, 3))
def relative_median(
    law: str,
    values: jax.Array,
    factor: jax.Array,
    statistic: jm.noise.Statistic,
    key: jax.Array,
) -> jax.Array:
    """Computes `jm.perturbed_median` with a scale that follows the values."""
    noise = jm.noise.Noise(law, jm.noise.relative(factor, statistic))
    return jm.perturbed_median(values, noise, key)
