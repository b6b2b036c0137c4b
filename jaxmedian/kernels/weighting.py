"""Medians and trimmed means of workers who count as more than one, or as less.

A worker of weight w counts as w workers of the same row; between whole numbers the
formulas go on as they are. What is selected is the largest value below which lies no
more than some weight: found bit by bit (as in `kernels.bisection`), each bit for one
sum of weights over the rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import limbs, selection, tiles
from jaxmedian.kernels.networks import from_order_keys, to_order_keys
from jaxmedian.kernels.rows import add_up, working_dtype
from jaxmedian.kernels.tiles import map_tiles

Fits = Callable[[jax.Array], jax.Array]  # weight below a value -> whether it may be


def median_of_rows(
    rows: jax.Array, weights: jax.Array, even: selection.EvenRule
) -> jax.Array:
    """Computes the weighted median of each coordinate.

    Args:
      rows: floating point ``[M, d]``.
      weights: int32, uint32 (see `kernels.limbs`) or floating ``[M]``, >= 0.
      even: which value ends a weight split in halves: "midpoint", "lower" or "upper".

    Returns:
      ``[d]`` in the dtype of the rows; 0 where nobody weighs anything.
    """
    total, compare = _total(weights), _comparison(weights)

    def of_tile(tile: jax.Array) -> jax.Array:
        keys = to_order_keys(tile)
        low_key = _largest(keys, weights, lambda below: compare(2 * below, total) < 0)
        high_key = _largest(keys, weights, lambda below: compare(2 * below, total) <= 0)
        low, high = (from_order_keys(key, rows.dtype) for key in (low_key, high_key))
        if even == "midpoint":
            # Equal ones as they are: half of a subnormal would be rounded.
            both = selection.midpoint(low, high)
            return jnp.where(low_key == high_key, low, both)
        return low if even == "lower" else high

    return _by_tiles(of_tile, rows, weights, rows.dtype)


def trimmed_mean_of_rows(rows: jax.Array, weights: jax.Array, f: int) -> jax.Array:
    """Averages each coordinate without a weight of f at each end.

    Returns:
      ``[d]``, float32 (float64 for float64); the weighted median where the weights sum
      to no more than 2 f, and 0 where to 0.
    """
    wide = working_dtype(rows.dtype)
    total, compare = _total(weights), _comparison(weights)
    cut = limbs.addends(jnp.full([1], f, weights.dtype), weights.shape[0])
    cut_off = np.asarray(f, wide)
    kept = jnp.sum(weights.astype(wide)) - 2 * cut_off

    def of_tile(tile: jax.Array) -> jax.Array:
        keys = to_order_keys(tile)
        low_key = _largest(keys, weights, lambda below: compare(below, cut) <= 0)
        high_key = _largest(
            keys, weights, lambda below: compare(below, total - cut) < 0
        )
        low, high = (
            from_order_keys(key, rows.dtype).astype(wide) for key in (low_key, high_key)
        )

        def above_low(worker: int | jax.Array) -> jax.Array:
            inside = jnp.minimum(jnp.maximum(keys[worker], low_key), high_key)
            value = from_order_keys(inside, rows.dtype).astype(wide)
            return weights[worker].astype(wide) * (value - low)

        middle = add_up(above_low, keys.shape[0]) - cut_off * (high - low)
        mean = low + middle / jnp.where(kept > 0, kept, np.asarray(1, wide))
        mean = jnp.where(jnp.isfinite(low) & jnp.isfinite(high), mean, low + high)
        return jnp.minimum(jnp.maximum(mean, low), high)

    median = median_of_rows(rows, weights, "midpoint").astype(wide)
    mean = _by_tiles(of_tile, rows, weights, wide)
    return jnp.where(compare(total, 2 * cut) > 0, mean, median)


def _total(weights: jax.Array) -> jax.Array:
    """Adds up the addends of all weights: ``[k, 1]``."""
    addends = limbs.addends(weights, weights.shape[0])
    return jnp.sum(addends, axis=1, keepdims=True, dtype=addends.dtype)


def _comparison(weights: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns how to compare sums ``[k, ...]`` of such weights: -1, 0 or 1."""
    if weights.dtype == jnp.uint32:
        return lambda a, b: limbs.sign(a - b, weights.shape[0])
    # No difference of floats: a subnormal one might be flushed to 0.
    return lambda a, b: (a > b)[0].astype(jnp.int32) - (a < b)[0].astype(jnp.int32)


def _largest(keys: jax.Array, weights: jax.Array, fits: Fits) -> jax.Array:
    """Finds the largest key ``[d]`` below which lies no more than fits, bit by bit."""
    num_bits = keys.dtype.itemsize * 8
    lowest = np.asarray(jnp.iinfo(keys.dtype).min, keys.dtype)
    addends = limbs.addends(weights, weights.shape[0])

    def add_bit(position: jax.Array, value: jax.Array) -> jax.Array:
        shift = (np.int32(num_bits - 1) - position).astype(keys.dtype)
        trial = value + (np.asarray(1, keys.dtype) << shift)  # the first wraps to 0

        def below(worker: int | jax.Array) -> jax.Array:
            nothing = np.asarray(0, addends.dtype)
            own = addends[:, worker][:, None]
            return jnp.where((keys[worker] < trial)[None], own, nothing)

        return jnp.where(fits(add_up(below, keys.shape[0])), trial, value)

    zero = jnp.bitwise_xor(keys[0], keys[0])  # varies over a mesh as the keys
    return jax.lax.fori_loop(np.int32(0), np.int32(num_bits), add_bit, zero + lowest)


def _by_tiles(
    of_tile: Callable[[jax.Array], jax.Array],
    rows: jax.Array,
    weights: jax.Array,
    dtype: jnp.dtype,
) -> jax.Array:
    num_workers, size = rows.shape
    anybody = jnp.any(weights > 0)

    def of_columns(start: jax.Array, tile_size: int) -> jax.Array:
        tile = jax.lax.dynamic_slice_in_dim(rows, start, tile_size, axis=1)
        return jnp.where(anybody, of_tile(tile), np.asarray(0, dtype))

    def all_tiles(keys_per_tile: int) -> jax.Array:
        origins = [rows, weights]
        return map_tiles(of_columns, size, num_workers, dtype, origins, keys_per_tile)

    return jax.lax.platform_dependent(
        cpu=lambda: all_tiles(tiles.CPU_TILE),
        default=lambda: all_tiles(tiles.DEVICE_TILE),
    )
