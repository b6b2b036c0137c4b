"""Medians and trimmed means of workers who count as more than one, or as less.

A worker of weight w counts as w workers of the same row; between whole numbers the
formulas go on as they are. What is selected is the largest value below which lies no
more than some weight: found bit by bit (as in `kernels.bisection`), each bit for one
sum of weights over the rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import limbs, selection, shares
from jaxmedian.kernels.networks import from_order_keys, to_order_keys
from jaxmedian.kernels.rows import (
    add_up,
    without_overflow,
    working_dtype,
    zeros_varying_like,
)
from jaxmedian.kernels.tiles import map_tiles

Fits = Callable[[jax.Array], jax.Array]  # weight below a value -> whether it may be


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def median_of_rows(
    rows: jax.Array, weights: jax.Array, even: selection.EvenRule
) -> jax.Array:
    """Computes the weighted median of each coordinate.

    Args:
      rows: floating point ``[M, d]``.
      weights: int32, uint32 (see `kernels.limbs`) or floating ``[M]``, >= 0.
      even: which value ends a weight split in halves: "midpoint", "lower" or "upper".

    Returns:
      ``[d]`` in the dtype of the rows; 0 where nobody weighs anything. Its derivative
      by the rows is that of the selected row, by the weights 0.
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


@median_of_rows.defjvp
def _median_jvp(even: selection.EvenRule, primals: Any, tangents: Any) -> Any:
    rows, weights = primals
    values, masses = shares.stored(rows), _masses(rows, weights)
    low, high = _middle_pair(values, weights, even)
    moved = shares.tangent_of_median(values, tangents[0], masses, low, high)
    return median_of_rows(rows, weights, even), moved.astype(rows.dtype)


def _middle_pair(
    values: jax.Array, weights: jax.Array, even: selection.EvenRule
) -> tuple[jax.Array, jax.Array]:
    """Selects the one or two values ``[d]`` of which the median is the midpoint."""
    if even != "midpoint":
        return (median := median_of_rows(values, weights, even)), median
    low = median_of_rows(values, weights, "lower")
    return low, median_of_rows(values, weights, "upper")


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def trimmed_mean_of_rows(rows: jax.Array, weights: jax.Array, f: int) -> jax.Array:
    """Averages each coordinate without a weight of f at each end.

    Returns:
      ``[d]``, float32 (float64 for float64); the weighted median where the weights sum
      to no more than 2 f, and 0 where to 0.
    """
    wide = working_dtype(rows.dtype)
    kept = jnp.sum(weights.astype(wide)) - 2 * f

    def scaled_mean(tile: jax.Array, scale: jax.Array | None) -> jax.Array:
        tile = tile if scale is None else tile.astype(wide) * scale
        keys = to_order_keys(tile)
        low_key, high_key = _end_keys(keys, weights, f)
        low, high = (
            from_order_keys(key, tile.dtype).astype(wide) for key in (low_key, high_key)
        )
        base = low if scale is None else jnp.zeros_like(low)

        def above_base(worker: int | jax.Array) -> jax.Array:
            inside = jnp.minimum(jnp.maximum(keys[worker], low_key), high_key)
            value = from_order_keys(inside, tile.dtype).astype(wide)
            return weights[worker].astype(wide) * (value - base)

        middle = add_up(above_base, keys.shape[0]) - f * (high - base)
        if scale is not None:
            middle = middle - f * low
        mean = base + middle / jnp.where(kept > 0, kept, 1)
        is_finite = jnp.isfinite(low) & jnp.isfinite(high)
        mean = jnp.where(is_finite, mean, low + high)
        mean = jnp.minimum(jnp.maximum(mean, low), high)
        return jnp.where(is_finite & ~jnp.isfinite(middle), np.nan, mean)  # overflowed

    def of_tile(tile: jax.Array) -> jax.Array:
        return without_overflow(lambda scale: scaled_mean(tile, scale))

    median = median_of_rows(rows, weights, "midpoint").astype(wide)
    mean = _by_tiles(of_tile, rows, weights, wide)
    return jnp.where(_is_more_than(weights, 2 * f), mean, median)


@trimmed_mean_of_rows.defjvp
def _trimmed_mean_jvp(f: int, primals: Any, tangents: Any) -> Any:
    rows, weights = primals
    moves, weight_moves = tangents
    values, masses = shares.stored(rows), _masses(rows, weights)
    mean = trimmed_mean_of_rows(rows, weights, f)
    low, high = _ends(values, weights, f)
    moved = shares.tangent_of_trimmed_mean(values, moves, masses, low, high, f)
    rest = jnp.sum(masses) - 2 * f
    if weight_moves.dtype != jax.dtypes.float0:
        # d mean / d w_i = (cut(x_i) - mean) / (sum of w - 2 f)
        number = jnp.where(rest > 0, rest, 1)
        inside = jnp.minimum(jnp.maximum(values, low[None]), high[None])
        pull = inside.astype(mean.dtype) / number - (mean / number)[None]
        pull = jnp.where(jnp.isfinite(pull), pull, 0)  # an infinite mean stays
        moved += jnp.sum(pull * weight_moves.astype(mean.dtype)[:, None], axis=0)
    pair = _middle_pair(values, weights, "midpoint")
    median_moved = shares.tangent_of_median(values, moves, masses, *pair)
    return mean, jnp.where(_is_more_than(weights, 2 * f), moved, median_moved)


def _end_keys(
    keys: jax.Array, weights: jax.Array, f: int
) -> tuple[jax.Array, jax.Array]:
    """Selects the keys ``[d]`` at which a weight of f is cut off below and above."""
    total, compare = _total(weights), _comparison(weights)
    cut = _constant(f, weights)
    low_key = _largest(keys, weights, lambda below: compare(below, cut) <= 0)
    return low_key, _largest(
        keys, weights, lambda below: compare(below, total - cut) < 0
    )


def _ends(values: jax.Array, weights: jax.Array, f: int) -> list[jax.Array]:
    """Selects the values ``[d]`` at which a weight of f is cut off."""

    def end(position: int) -> jax.Array:
        def of_tile(tile: jax.Array) -> jax.Array:
            key = _end_keys(to_order_keys(tile), weights, f)[position]
            return from_order_keys(key, values.dtype)

        return _by_tiles(of_tile, values, weights, values.dtype)

    return [end(0), end(1)]


def _masses(rows: jax.Array, weights: jax.Array) -> jax.Array:
    return weights.astype(working_dtype(rows.dtype))


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


def _constant(number: int, weights: jax.Array) -> jax.Array:
    """Returns a number as sums of such weights are: ``[k, 1]``."""
    return limbs.addends(jnp.full([1], number, weights.dtype), weights.shape[0])


def _is_more_than(weights: jax.Array, number: int) -> jax.Array:
    """Returns whether the weights sum to more than a number, exactly."""
    return _comparison(weights)(_total(weights), _constant(number, weights)) > 0


def _largest(keys: jax.Array, weights: jax.Array, fits: Fits) -> jax.Array:
    """Finds the largest key ``[d]`` below which lies no more than fits, bit by bit.

    Where nobody weighs anything it is 0, the key of 0.
    """
    num_bits = keys.dtype.itemsize * 8
    lowest = np.asarray(jnp.iinfo(keys.dtype).min, keys.dtype)
    addends = limbs.addends(weights, weights.shape[0])

    def add_bit(position: jax.Array, value: jax.Array) -> jax.Array:
        shift = (np.int32(num_bits - 1) - position).astype(keys.dtype)
        trial = value + (np.asarray(1, keys.dtype) << shift)  # the first wraps to 0

        def below(worker: int | jax.Array) -> jax.Array:
            own = addends[:, worker][:, None]
            return jnp.where((keys[worker] < trial)[None], own, 0)

        return jnp.where(fits(add_up(below, keys.shape[0])), trial, value)

    zero = zeros_varying_like(keys[0])
    key = jax.lax.fori_loop(np.int32(0), np.int32(num_bits), add_bit, zero + lowest)
    return jnp.where(jnp.any(weights > 0), key, zero)


def _by_tiles(
    of_tile: Callable[[jax.Array], jax.Array],
    rows: jax.Array,
    weights: jax.Array,
    dtype: jnp.dtype,
) -> jax.Array:
    num_workers, size = rows.shape

    def of_columns(start: jax.Array, tile_size: int) -> jax.Array:
        tile = jax.lax.dynamic_slice_in_dim(rows, start, tile_size, axis=1)
        return of_tile(tile)

    return map_tiles(of_columns, size, num_workers, dtype, [rows, weights])
