"""Noise before the vote or the median: g_i <- g_i + b xi_i (Algorithms 3 and 4).

`resolve` turns a `Noise`, a key and the gradients of one step into the `LeafNoise` of
each leaf: it evaluates the scale and derives the keys, nothing more. Aggregators use it
to draw while they count; `add_worker_noise` uses it to return the noisy gradients
themselves, for chains in which something stands between noise and aggregator.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels.rows import working_dtype
from jaxmedian.noise import Noise, Relative, keys, threefry
from jaxmedian.noise.laws import LAWS
from jaxmedian.noise.leaf_noise import LeafNoise, systematic_slots
from jaxmedian.workers import collectives
from jaxmedian.workers.population import Population

_MOST_SYSTEMATIC_WORKERS = 65_535  # slots are computed in 32-bit integers


def check_noise(transform: str, noise: Any) -> None:
    """Raises TypeError unless ``noise`` is a `Noise`."""
    if not isinstance(noise, Noise):
        raise TypeError(
            f"`{transform}` expects a `Noise`, e.g. `jaxmedian.noise.gaussian(0.01)`; "
            f"got {noise!r}."
        )


def resolve(
    noise: Noise,
    state: keys.KeyState,
    leaves: list[jax.Array],
    population: Population,
) -> list[LeafNoise]:
    """Settles scale and words of the noise of every leaf for the step at ``state``.

    Args:
      noise: the description.
      state: which step of which key.
      leaves: the updates' leaves ``[m, ...]``, in the order of `jax.tree.leaves`.
      population: the workers, m of them on this device.

    Returns:
      A `LeafNoise` a leaf, its rows those of the local workers.
    """
    leaf_keys = keys.leaf_keys(state, len(leaves))
    scales = _scales(noise, state.count, leaves, population)
    law = LAWS[noise.law]
    if noise.coupling == "systematic":
        slots = _slots(keys.step_key(state), population)
        shared_words = jax.random.key_data(
            jax.vmap(jax.random.fold_in, (0, None))(leaf_keys, keys.SHARED_UNIFORM)
        )
        return [
            LeafNoise(law, scale, shared_words[position], slots)
            for position, scale in enumerate(scales)
        ]
    worker_words = jax.random.key_data(
        jax.vmap(keys.fold_in_each, (0, None))(leaf_keys, population.numbers())
    )
    return [
        LeafNoise(law, scale, worker_words[position], None)
        for position, scale in enumerate(scales)
    ]


def add_noise(rows: jax.Array, noise: LeafNoise) -> jax.Array:
    """Returns g_i + b xi_i for rows ``[m, d]``, in the dtype of the noise."""
    workers = jnp.arange(rows.shape[0])
    positions = threefry.positions(rows.shape[1])
    return jax.vmap(noise.noisy_row, in_axes=(0, 0, None))(workers, rows, positions)


# --- scale ----------------------------------------------------------------------------


def _scales(
    noise: Noise,
    count: jax.Array,
    leaves: list[jax.Array],
    population: Population,
) -> list[jax.Array]:
    """Evaluates b for every leaf, in the dtype in which its noise is computed."""
    dtypes = [working_dtype(leaf.dtype) for leaf in leaves]
    scale = noise.scale
    if isinstance(scale, Relative):
        sizes = _statistic(scale.statistic, leaves, population)
        factor = jnp.asarray(scale.factor)
        return [
            factor.astype(dtype) * size
            for dtype, size in zip(dtypes, sizes, strict=True)
        ]
    value = jnp.asarray(scale(count) if callable(scale) else scale)
    if value.shape != ():
        raise ValueError(
            f"The scale of the noise must be a scalar; the schedule returned shape "
            f"{value.shape}."
        )
    return [value.astype(dtype) for dtype in dtypes]


def _statistic(
    statistic: str,
    leaves: list[jax.Array],
    population: Population,
) -> list[jax.Array]:
    """Computes max or median over workers of max|g|, a scalar for each leaf.

    Entries that are not finite are left out; so are absent workers and workers without
    any finite entry, which are marked by a peak below 0.
    """
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ValueError(
            "`noise.relative` must see the gradients of all workers before the first "
            "vote, which `worker_chunk` streams: leave `worker_chunk` out, or give the "
            "scale as a number or schedule (measure one with `jm.diagnostics`)."
        )
    peaks = [_peak(leaf) for leaf in leaves]
    if population.present is not None:
        absent = ~population.present
        peaks = [jnp.where(absent, np.asarray(-1, p.dtype), p) for p in peaks]
    summarise = _largest if statistic == "max" else _median_peak
    return [summarise(collectives.gather(p, population.axis_name)) for p in peaks]


def _peak(leaf: jax.Array) -> jax.Array:
    """Returns max|g| over the finite entries of each worker ``[m]``; -1 if none."""
    magnitude = jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), np.asarray(-1, leaf.dtype))
    peak = jnp.max(magnitude.reshape(leaf.shape[0], -1), axis=1, initial=-1)
    return peak.astype(working_dtype(leaf.dtype))


def _largest(peaks: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.max(peaks), 0)


def _median_peak(peaks: jax.Array) -> jax.Array:
    counted = peaks >= 0
    num_counted = jnp.sum(counted, dtype=jnp.int32)
    ascending = jnp.sort(jnp.where(counted, peaks, np.asarray(np.inf, peaks.dtype)))
    low = ascending[jnp.maximum(num_counted - 1, 0) // 2]
    high = ascending[num_counted // 2]
    half = np.asarray(0.5, peaks.dtype)
    return jnp.where(num_counted > 0, low * half + high * half, np.zeros_like(half))


# --- coupling -------------------------------------------------------------------------


def _slots(step: jax.Array, population: Population) -> jax.Array:
    """Deals the slots of systematic noise: uint32 ``[m]``, for the local workers.

    One permutation serves all leaves of a step. Its ranks are taken among the workers
    present, or the spacing of their noises, which is the point of it, would have holes.
    """
    num_workers = population.num_workers
    if num_workers > _MOST_SYSTEMATIC_WORKERS:
        raise ValueError(
            f"Systematic noise serves up to {_MOST_SYSTEMATIC_WORKERS} workers; got "
            f"{num_workers}. Use independent noise."
        )
    ranks = jax.random.permutation(
        jax.random.fold_in(step, keys.SHARED_UNIFORM), num_workers
    ).astype(jnp.uint32)
    num_slots = jnp.uint32(num_workers)
    present = population.all_present()
    if present is not None:
        counted = present.astype(jnp.uint32)
        in_order = jnp.zeros_like(counted).at[ranks].set(counted)
        ranks = (jnp.cumsum(in_order, dtype=jnp.uint32) - in_order)[ranks]
        num_slots = jnp.maximum(jnp.sum(counted, dtype=jnp.uint32), 1)
    return systematic_slots(ranks, num_slots)[population.numbers()]


class LeafDraws(NamedTuple):
    """All that is random about one leaf in one step.

    Attributes:
      noise: what workers add to their rows, or None.
      zero_keys: uint32 ``[m, 2]``, keys of the bits of workers without a sign, or None.
      tie_bits: int32 ``[d]`` of +-1, how ties end, or None.
    """

    noise: LeafNoise | None = None
    zero_keys: jax.Array | None = None
    tie_bits: jax.Array | None = None

    def of_workers(self, first: jax.Array, count: int) -> "LeafDraws":
        """Returns the draws of local workers ``first`` to ``first + count - 1``."""

        def block(per_worker: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(per_worker, first, count)

        noise, zero_keys = self.noise, self.zero_keys
        if noise is not None and noise.slots is not None:
            # Tied to the block, or XLA draws the shared words once, before the loop
            # over blocks, and keeps a word a coordinate in memory.
            key_words, _ = jax.lax.optimization_barrier((noise.key_words, first))
            noise = noise._replace(key_words=key_words, slots=block(noise.slots))
        elif noise is not None:
            noise = noise._replace(key_words=block(noise.key_words))
        zero_keys = None if zero_keys is None else block(zero_keys)
        return LeafDraws(noise, zero_keys, self.tie_bits)


def draw(
    noise: Noise | None,
    random_ties: bool,
    state: keys.KeyState,
    leaves: list[jax.Array],
    population: Population,
) -> list[LeafDraws]:
    """Deals the draws of the step at ``state`` to leaves ``[m, ...]``."""
    noises: list[Any] = [None] * len(leaves)
    if noise is not None:
        noises = resolve(noise, state, leaves, population)
    if not random_ties:
        return [LeafDraws(leaf_noise) for leaf_noise in noises]
    leaf_keys = keys.leaf_keys(state, len(leaves))
    zero_numbers = population.numbers() + keys.ZERO_BITS
    draws = []
    for leaf, leaf_noise, leaf_key in zip(leaves, noises, leaf_keys, strict=True):
        zero_keys = jax.random.key_data(keys.fold_in_each(leaf_key, zero_numbers))
        tie_key = jax.random.key_data(jax.random.fold_in(leaf_key, keys.TALLY_TIES))
        positions = threefry.positions(math.prod(leaf.shape[1:]))
        tie_bits = threefry.fair_bit(threefry.words(tie_key, positions))
        draws.append(LeafDraws(leaf_noise, zero_keys, tie_bits))
    return draws


def check_key(
    transform: str, noise: Noise | None, key: Any, *, random_ties: bool
) -> jax.Array | None:
    """Returns the key of a transform that draws, None for one that does not."""
    if noise is not None:
        check_noise(transform, noise)
    if noise is None and not random_ties:
        if key is not None:
            raise ValueError(
                f"`{transform}` was given a `key` but nothing to draw: leave it out, "
                "or pass a `noise`."
            )
        return None
    if key is None:
        what = "noise" if noise is not None else '`ties="random"`'
        raise ValueError(
            f"`{transform}` needs a `key` for its {what}; pass e.g. "
            "`jax.random.key(0)`."
        )
    return keys.as_threefry_key(key)
