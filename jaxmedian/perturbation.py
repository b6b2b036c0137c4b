"""Noise before the vote or the median: g_i <- g_i + b xi_i (Algorithms 3 and 4).

`resolve` turns a `Noise`, a key and the gradients of one step into the `LeafNoise` of
each leaf: it evaluates the scale and derives the keys, nothing more. Aggregators use it
to draw while they count; `add_worker_noise` uses it to return the noisy gradients
themselves, for chains in which something stands between noise and aggregator.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian import _keys, collectives
from jaxmedian._workers import Population, survey
from jaxmedian.collectives import AxisName
from jaxmedian.kernels import random_bits
from jaxmedian.kernels.leaf_noise import LeafNoise, systematic_slots
from jaxmedian.kernels.precision import working_dtype
from jaxmedian.laws import LAWS
from jaxmedian.noise import Noise, Relative
from jaxmedian.worker_stream import materialise

_MOST_SYSTEMATIC_WORKERS = 65_535  # slots are computed in 32-bit integers


def add_worker_noise(
    noise: Noise, key: _keys.Key, *, axis_name: AxisName | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds noise to each worker's updates: ``[M, ...] -> [M, ...]``.

    .. math:: g_i \leftarrow g_i + b\, \xi_i

    Before a vote or a median prefer their ``noise`` argument: it draws the same noise
    while it counts, much faster and in less memory. Noise is added in float32 (float64
    for float64) and rounded once to the dtype of the updates. Rounding to bfloat16 is
    harmless before a vote or the median of an odd number, since it is monotone, but
    loses small noise before a mean or momentum: keep gradients in float32 there.

    Args:
      noise: law, scale and coupling; see `jaxmedian.noise`.
      key: a typed key, a legacy key or an int. Words depend on the key, the step, the
        leaf, the *global* number of the worker and the coordinate, never on the device.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A transformation with state ``(count, rng_key)``. ``update`` takes
      ``worker_mask``, bool ``[M]``: absent workers are left out of `noise.relative` and
      of the slots of systematic noise.

    Raises:
      TypeError, ValueError: for a bad noise or key; while tracing, for updates without
        a worker axis.

    >>> import jax, jax.numpy as jnp, optax, jaxmedian as jm
    >>> tx = optax.chain(
    ...     jm.add_worker_noise(jm.noise.gaussian(0.1), jax.random.key(0)),
    ...     jm.worker_mean(),
    ... )
    >>> params = jnp.zeros(2)
    >>> updates, state = tx.update(jnp.ones((1000, 2)), tx.init(params), params)
    >>> bool(abs(updates - 1).max() < 0.02)
    True

    References:
      Chen et al., Distributed Training with Heterogeneous Data, NeurIPS 2020,
      Algorithms 3 and 4. https://arxiv.org/abs/1906.01736
    """
    check_noise("add_worker_noise", noise)
    rng_key = _keys.as_threefry_key(key)

    def init_fn(params: Any) -> _keys.KeyState:
        del params
        return _keys.init_state(rng_key)

    def update_fn(
        updates: Any,
        state: _keys.KeyState,
        params: Any = None,
        *,
        worker_mask: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, _keys.KeyState]:
        del extra_args
        updates = materialise("add_worker_noise", updates)
        population = survey("add_worker_noise", updates, params, axis_name, worker_mask)
        leaves, treedef = jax.tree.flatten(updates)
        noises = resolve(noise, state, leaves, population)
        noisy = [
            add(leaf.reshape(leaf.shape[0], -1), leaf_noise)
            .astype(leaf.dtype)
            .reshape(leaf.shape)
            for leaf, leaf_noise in zip(leaves, noises, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy), _keys.next_state(state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_noise(transform: str, noise: Any) -> None:
    """Raises TypeError unless ``noise`` is a `Noise`."""
    if not isinstance(noise, Noise):
        raise TypeError(
            f"`{transform}` expects a `Noise`, e.g. `jaxmedian.noise.gaussian(0.01)`; "
            f"got {noise!r}."
        )


def resolve(
    noise: Noise,
    state: _keys.KeyState,
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
    leaf_keys = _keys.leaf_keys(state, len(leaves))
    scales = _scales(noise, state.count, leaves, population)
    law = LAWS[noise.law]
    if noise.coupling == "systematic":
        slots = _slots(_keys.step_key(state), population)
        shared_words = jax.random.key_data(
            jax.vmap(jax.random.fold_in, (0, None))(leaf_keys, _keys.SHARED_UNIFORM)
        )
        return [
            LeafNoise(law, scale, shared_words[position], slots)
            for position, scale in enumerate(scales)
        ]
    worker_words = jax.random.key_data(
        jax.vmap(_keys.fold_in_each, (0, None))(leaf_keys, population.numbers())
    )
    return [
        LeafNoise(law, scale, worker_words[position], None)
        for position, scale in enumerate(scales)
    ]


def add(rows: jax.Array, noise: LeafNoise) -> jax.Array:
    """Returns g_i + b xi_i for rows ``[m, d]``, in the dtype of the noise."""
    workers = jnp.arange(rows.shape[0])
    positions = random_bits.positions(rows.shape[1])
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
        jax.random.fold_in(step, _keys.SHARED_UNIFORM), num_workers
    ).astype(jnp.uint32)
    num_slots = jnp.uint32(num_workers)
    present = population.all_present()
    if present is not None:
        counted = present.astype(jnp.uint32)
        in_order = jnp.zeros_like(counted).at[ranks].set(counted)
        ranks = (jnp.cumsum(in_order, dtype=jnp.uint32) - in_order)[ranks]
        num_slots = jnp.maximum(jnp.sum(counted, dtype=jnp.uint32), 1)
    return systematic_slots(ranks, num_slots)[population.numbers()]
