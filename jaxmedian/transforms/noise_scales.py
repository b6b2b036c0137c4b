"""Scales of noise that follow the gradients: statistics over the workers present.

They are computed on all devices before anything is drawn, and need all rows at once.
"""

import jax
import jax.numpy as jnp

from jaxmedian.kernels.rows import working_dtype
from jaxmedian.noise import Relative
from jaxmedian.workers import collectives
from jaxmedian.workers.population import Population


def relative_scales(
    scale: Relative, leaves: list[jax.Array], population: Population
) -> list[jax.Array]:
    """Computes factor times max or median over workers of max|g|: a scalar per leaf.

    Entries that are not finite are left out; so are absent workers and workers without
    any finite entry, which are marked by a peak below 0.

    Args:
      scale: factor and statistic.
      leaves: the updates ``[m, ...]``.
      population: the workers, m of them on this device.
    """
    peaks = [_peak(leaf) for leaf in leaves]
    if population.present is not None:
        absent = ~population.present
        peaks = [jnp.where(absent, -1, p) for p in peaks]
    summarise = _largest if scale.statistic == "max" else _median_peak
    sizes = [summarise(collectives.gather(p, population.axis_name)) for p in peaks]
    factor = jnp.abs(jnp.asarray(scale.factor))
    return [factor.astype(size.dtype) * size for size in sizes]


def _peak(leaf: jax.Array) -> jax.Array:
    """Returns max|g| over the finite entries of each worker ``[m]``; -1 if none."""
    magnitude = jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), -1)
    peak = jnp.max(magnitude.reshape(leaf.shape[0], -1), axis=1, initial=-1)
    return peak.astype(working_dtype(leaf.dtype))


def _largest(peaks: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.max(peaks), 0)


def _median_peak(peaks: jax.Array) -> jax.Array:
    counted = peaks >= 0
    num_counted = jnp.sum(counted, dtype=jnp.int32)
    ascending = jnp.sort(jnp.where(counted, peaks, jnp.inf))
    low = ascending[jnp.maximum(num_counted - 1, 0) // 2]
    high = ascending[num_counted // 2]
    return jnp.where(num_counted > 0, low * 0.5 + high * 0.5, 0)
