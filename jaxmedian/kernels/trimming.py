"""Means of the middle of each coordinate: what is left when the f farthest are cut off.

    trimmed mean         of the values of ranks f to M - f - 1
    mean around median   of the M - f values nearest to the median

Neither sorts. Two ranks (or the median and one radius) are selected as a median is
(`kernels.selection`), and the rows are then added with their values cut to what was
selected. Since exactly f values are cut at each end,

    sum of the middle = sum_i cut(x_i) - f low - f high

and ties need no attention. Sums are of differences to a selected value, so nothing
cancels, and nothing infinite is subtracted while at most f values are. Finite numbers
near the largest are scaled down before they are added: their mean is finite.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import bisection, networks, selection, shares
from jaxmedian.kernels.networks import from_order_keys, to_order_keys, without_nan
from jaxmedian.kernels.rows import add_up, without_overflow, working_dtype
from jaxmedian.kernels.tiles import map_tiles

# One expression of two networks, the radius around the median that the first selects:
# 25 rows compile in .7 s and run as fast as one network; 101 did not compile in 100 s.
_FUSED_AROUND_MEDIAN = 32
# Three networks, for both ends and for the median of too few: with a mask 112 rows take
# 4 times as long to compile as their tiles do and 1.4 times as long to run; 64 run 4
# times as fast as theirs.
_FUSED_OF_PRESENT = 64


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def trimmed_mean_of_rows(
    rows: jax.Array, f: int, present: jax.Array | None
) -> jax.Array:
    """Averages the values of ranks f to M - f - 1 of each coordinate.

    Args:
      rows: floating point ``[M, d]``.
      f: values to cut off at each end, 2 f < M.
      present: bool ``[M]``, or None if everybody is. Where at most 2 f are, the result
        is their median.

    Returns:
      ``[d]``, float32 (float64 for float64).
    """
    most = rows.shape[0] if present is None else _FUSED_OF_PRESENT
    if rows.shape[0] <= min(most, selection.NETWORK_ROWS):
        return _trimmed_mean(rows, present, f, fused=True)

    def of_tile(tile: _Slice) -> jax.Array:
        return _trimmed_mean(tile(rows), present, f, fused=False)

    return _by_tiles(of_tile, rows, present)


@trimmed_mean_of_rows.defjvp
def _trimmed_mean_jvp(f: int, primals: Any, tangents: Any) -> Any:
    rows, present = primals
    values = shares.stored(rows)
    masses = shares.masses_of(present, values)
    low = _rank_of_rows(values, f, present, above=False)
    high = _rank_of_rows(values, f, present, above=True)
    moved = shares.tangent_of_trimmed_mean(values, tangents[0], masses, low, high, f)
    moved = _moved_if_enough(moved, values, tangents[0], present, 2 * f + 1)
    return trimmed_mean_of_rows(rows, f, present), moved


@partial(jax.custom_jvp, nondiff_argnums=(1, 3))
def mean_around_median_of_rows(
    rows: jax.Array, f: int, present: jax.Array | None, least: int | None = None
) -> jax.Array:
    """Averages the M - f values of each coordinate that are nearest to its median.

    Of two values at the same distance on both sides the smaller is kept.

    Args:
      rows: floating point ``[M, d]``.
      f: values to cut off, f < M.
      present: bool ``[M]``, or None if everybody is.
      least: how many must be present for any to be cut off, more than f; where fewer
        are the result is their median. By default 2 f + 1.

    Returns:
      ``[d]``, float32 (float64 for float64).
    """
    least = 2 * f + 1 if least is None else least
    median = selection.median_of_rows(
        rows, noise=None, even="midpoint", present=present
    ).astype(working_dtype(rows.dtype))
    if rows.shape[0] <= _FUSED_AROUND_MEDIAN:
        return _mean_around(median, rows, present, f, least, fused=True)

    def of_tile(tile: _Slice) -> jax.Array:
        part, middle = tile(rows), tile(median)
        return _mean_around(middle, part, present, f, least, fused=False)

    return _by_tiles(of_tile, rows, present)


@mean_around_median_of_rows.defjvp
def _mean_around_median_jvp(
    f: int, least: int | None, primals: Any, tangents: Any
) -> Any:
    rows, present = primals
    values = shares.stored(rows)
    masses = shares.masses_of(present, values)
    median = selection.median_of_rows(
        values, noise=None, even="midpoint", present=present
    ).astype(masses.dtype)
    # A half of each: none of them is too large.
    offsets = jax.lax.map(
        lambda row: row.astype(median.dtype) * 0.5 - median * 0.5, values
    )
    radius = _rank_of_rows(jnp.abs(offsets), f, present, above=True)

    def mass(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return shares.mass_where(holds, offsets, masses)

    num_above, num_high = mass(lambda x: x > radius), mass(lambda x: x == radius)
    num_below, num_low = mass(lambda x: x < -radius), mass(lambda x: x == -radius)
    surplus = f - num_above - num_below
    cut_high = jnp.minimum(surplus, num_high)
    kept = jnp.maximum(jnp.sum(masses) - f, 1)
    at_low = jnp.where(radius == 0, 1, (num_low - surplus + cut_high) / kept)
    at_high = (num_high - cut_high) / kept
    moved = shares.tangent_of_mean(
        offsets, tangents[0], masses, -radius, radius, at_low, at_high, 1 / kept
    )
    least = 2 * f + 1 if least is None else least
    moved = _moved_if_enough(moved, values, tangents[0], present, least)
    return mean_around_median_of_rows(rows, f, present, least), moved


def _moved_if_enough(
    moved: jax.Array,
    values: jax.Array,
    tangents: jax.Array,
    present: jax.Array | None,
    least: int,
) -> jax.Array:
    """Puts how the median moves where fewer than ``least`` are present."""
    if present is None:
        return moved
    masses = shares.masses_of(present, values)
    low, high = selection.middle_pair(values, "midpoint", present)
    median_moved = shares.tangent_of_median(values, tangents, masses, low, high)
    return _if_enough(moved, median_moved, least, present)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def mean_around_median_of_some(rows: jax.Array, some: jax.Array, f: int) -> jax.Array:
    """Averages some of the rows by `mean_around_median_of_rows`, and copies none.

    Args:
      rows: floating point ``[M, d]``.
      some: numbers of rows ``[n]``.
      f: values to cut off, f < n.
    """
    if len(some) <= _FUSED_AROUND_MEDIAN:
        return mean_around_median_of_rows(rows[some], f, None)

    def of_tile(tile: _Slice) -> jax.Array:
        return mean_around_median_of_rows(tile(rows)[some], f, None)

    return _by_tiles(of_tile, rows, None)


@mean_around_median_of_some.defjvp
def _mean_around_median_of_some_jvp(f: int, primals: Any, tangents: Any) -> Any:
    def mean(rows: jax.Array) -> jax.Array:
        return mean_around_median_of_rows(rows[primals[1]], f, None)

    _, moved = jax.jvp(mean, primals[:1], tangents[:1])
    return mean_around_median_of_some(*primals, f), moved


def _rank_of_rows(
    rows: jax.Array, rank: int, present: jax.Array | None, *, above: bool
) -> jax.Array:
    """Selects the value of one rank among those present, counted from one end."""

    def of_values(values: list[jax.Array] | jax.Array) -> jax.Array:
        keys = _Stack(values, present).map(to_order_keys)
        return from_order_keys(keys.rank_from(rank, above=above), rows.dtype)

    if rows.shape[0] <= selection.NETWORK_ROWS:
        return of_values(list(rows))
    return _by_tiles(lambda tile: of_values(tile(rows)), rows, present, rows.dtype)


_Slice = Callable[[jax.Array], jax.Array]  # [..., d] -> the columns of a tile


def _by_tiles(
    of_tile: Callable[[_Slice], jax.Array],
    rows: jax.Array,
    present: jax.Array | None,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    num_workers, size = rows.shape

    def of_columns(start: jax.Array, tile_size: int) -> jax.Array:
        def tile(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, tile_size, axis=-1)

        return of_tile(tile)

    dtype = working_dtype(rows.dtype) if dtype is None else dtype
    return map_tiles(of_columns, size, num_workers, dtype, [rows, present])


class _Stack(NamedTuple):
    """Values of all workers in some coordinates, and how to go through them.

    Attributes:
      values: a list of M rows, to be melted into one expression; or ``[M, d]``, to be
        gone through in loops, for more rows than an expression should have.
      present: bool ``[M]``, or None if everybody is.
    """

    values: list[jax.Array] | jax.Array
    present: jax.Array | None

    def __len__(self) -> int:
        return len(self.values)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "_Stack":
        """Applies an elementwise function to every row."""
        if isinstance(self.values, list):
            return _Stack([function(row) for row in self.values], self.present)
        return _Stack(jax.vmap(function)(self.values), self.present)

    def scaled(self, scale: jax.Array | None) -> "_Stack":
        """Multiplies every row, in the dtype that means have; None stands for 1."""
        if scale is None:
            return self
        return self.map(lambda row: row.astype(working_dtype(row.dtype)) * scale)

    def select(self, ranks: tuple[int, ...]) -> list[jax.Array]:
        """Selects ranks among all keys, absent or not."""
        if isinstance(self.values, list):
            return networks.select(self.values, ranks)
        return [bisection.select(self.values, (rank,))[0] for rank in ranks]

    def fill_absent(self, fill: jax.Array) -> "_Stack":
        """Puts values ``[M]`` in place of the absent rows."""
        present = self.present
        assert present is not None
        if isinstance(self.values, list):
            rows = enumerate(self.values)
            filled = [jnp.where(present[i], row, fill[i]) for i, row in rows]
            return _Stack(filled, present)
        return _Stack(jnp.where(present[:, None], self.values, fill[:, None]), present)

    def rank_from(self, rank: int, *, above: bool) -> jax.Array:
        """Selects the key of one rank among those present, counted from one end."""
        filled = self
        if self.present is not None:
            limits = jnp.iinfo(self.values[0].dtype)
            far = limits.min if above else limits.max
            fill = jnp.full(len(self), far, self.values[0].dtype)
            filled = self.fill_absent(fill)
        return filled.select((len(self) - 1 - rank if above else rank,))[0]

    def add(self, term: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Adds up what ``term`` makes of each row that is present."""

        def present_term(worker: int | jax.Array) -> jax.Array:
            added = term(self.values[worker])
            if self.present is None:
                return added
            return jnp.where(self.present[worker], added, 0)

        if isinstance(self.values, list):
            return reduce(jnp.add, [present_term(i) for i in range(len(self))])
        return add_up(present_term, len(self))

    def count_but(self, cut: int) -> jax.Array:
        """Returns how many are present but for ``cut`` of them, at least 1."""
        if self.present is None:
            return jnp.int32(len(self) - cut)
        num_present = jnp.sum(self.present, dtype=jnp.int32)
        return jnp.maximum(num_present - cut, 1)


def _trimmed_mean(
    rows: jax.Array, present: jax.Array | None, f: int, *, fused: bool
) -> jax.Array:
    """Averages the values of ranks f to M - f - 1 of those present."""

    def mean_of(scale: jax.Array | None) -> jax.Array:
        values = _Stack(list(rows) if fused else rows, present)
        return _scaled_trimmed_mean(values, f, scale)

    return without_overflow(mean_of)


def _scaled_trimmed_mean(values: _Stack, f: int, scale: jax.Array | None) -> jax.Array:
    values = values.scaled(scale)
    dtype = values.values[0].dtype
    wide = working_dtype(dtype)
    keys = values.map(to_order_keys)
    if keys.present is None:
        low_key, high_key = keys.select((f, len(keys) - 1 - f))
    else:
        low_key = keys.rank_from(f, above=False)
        high_key = keys.rank_from(f, above=True)
    low, high = (from_order_keys(k, dtype).astype(wide) for k in (low_key, high_key))

    # Huge values of both signs cancel best as they are.
    base = low if scale is None else jnp.zeros_like(low)

    def above_base(key: jax.Array) -> jax.Array:
        cut = jnp.minimum(jnp.maximum(key, low_key), high_key)
        return from_order_keys(cut, dtype).astype(wide) - base

    total = keys.add(above_base) - f * (high - base)
    if scale is not None:
        total = total - f * low
    mean = base + total / keys.count_but(2 * f).astype(wide)
    # More than f infinities of one sign are part of the mean, and no difference.
    is_finite = jnp.isfinite(low) & jnp.isfinite(high)
    mean = jnp.where(is_finite, mean, low + high)
    mean = jnp.minimum(jnp.maximum(mean, low), high)  # rounding must not leave them
    mean = jnp.where(is_finite & ~jnp.isfinite(total), np.nan, mean)  # overflowed
    if keys.present is None:
        return mean
    filled = keys.fill_absent(selection.absent_keys(keys.present, low_key.dtype))
    median = selection.middle(filled.select, len(keys), "midpoint", keys.present, dtype)
    return _if_enough(mean, median.astype(wide), 2 * f + 1, keys.present)


def _mean_around(
    median: jax.Array,
    rows: jax.Array,
    present: jax.Array | None,
    f: int,
    least: int,
    *,
    fused: bool,
) -> jax.Array:
    """Averages the values nearest to the median, all but f of those present."""

    def mean_of(scale: jax.Array | None) -> jax.Array:
        values = _Stack(list(rows) if fused else rows, present)
        return _scaled_mean_around(median, values, f, least, scale)

    return without_overflow(mean_of)


def _scaled_mean_around(
    median: jax.Array, values: _Stack, f: int, least: int, scale: jax.Array | None
) -> jax.Array:
    if scale is not None:
        values, median = values.scaled(scale), median * scale
    wide = median.dtype
    offsets = values.map(lambda value: without_nan(value).astype(wide) - median)
    distances = offsets.map(lambda offset: to_order_keys(jnp.abs(offset)))
    radius = from_order_keys(distances.rank_from(f, above=True), wide)

    def count(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return offsets.add(lambda offset: holds(offset).astype(jnp.int32))

    num_above = count(lambda offset: offset > radius)
    num_outside = num_above + count(lambda offset: offset < -radius)
    # Ties at the radius: of those too many the upper go first.
    surplus = f - num_outside
    num_high = num_above + jnp.minimum(surplus, count(lambda offset: offset == radius))
    cut = offsets.add(lambda offset: jnp.minimum(jnp.maximum(offset, -radius), radius))
    unbalanced = (2 * num_high - f).astype(wide)  # high minus low ones cut
    mean = median + (cut - radius * unbalanced) / offsets.count_but(f).astype(wide)
    return _if_enough(mean, median, least, values.present)


def _if_enough(
    mean: jax.Array, median: jax.Array, least: int, present: jax.Array | None
) -> jax.Array:
    """Puts the median of those present where they are fewer than ``least``."""
    if present is None:
        return mean
    return jnp.where(jnp.sum(present, dtype=jnp.int32) >= least, mean, median)
