"""Distances between workers from products of their rows, without M x M x d numbers.

    |x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 <x_i, x_j>

The Gram matrix costs one matrix product, but the right side cancels where rows are
close to each other and far from 0. So rows are taken from their median in each
coordinate first: unlike the mean, a minority of hostile rows cannot move it away.

What is not finite, or overflows when squared, is infinitely far from everybody. In
float32 squares of differences below 1e-19 vanish: workers that near count as equal.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels import selection
from jaxmedian.kernels.rows import working_dtype
from jaxmedian.kernels.tiles import by_platform

# Coordinates a product. On CPU the centred tile of a hundred rows stays in cache, and
# 4,096 was the fastest of 2^12 to 2^16; a GPU or TPU wants few, large products.
_CPU_TILE = 2**12
_DEVICE_TILE = 2**17
_ROW_TILE = 2**13


def gram_of_rows(rows: jax.Array, present: jax.Array | None) -> jax.Array:
    """Computes the inner products of the rows, each taken from the rows' median.

    Args:
      rows: floating point ``[M, d]``.
      present: bool ``[M]``, or None if everybody is. Absent rows count as the median.

    Returns:
      ``[M, M]``, float32 (float64 for float64).
    """
    # Distances do not depend on the centre, so neither do their derivatives.
    centre = selection.median_of_rows(
        jax.lax.stop_gradient(rows), noise=None, even="lower", present=present
    )
    size = rows.shape[1]

    def product(start: int | jax.Array, count: int) -> jax.Array:
        wide = working_dtype(rows.dtype)
        tile = jax.lax.dynamic_slice_in_dim(rows, start, count, axis=1).astype(wide)
        middle = jax.lax.dynamic_slice_in_dim(centre, start, count).astype(wide)
        tile = tile - middle[None]
        if present is not None:
            tile = jnp.where(present[:, None], tile, 0)
        return jax.lax.dot_general(
            tile,
            tile,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
        )

    def add_tiles(tile_size: int) -> jax.Array:
        # The sum starts from a tile, not from zeros, and so varies over a mesh as they.
        num_tiles = max(size // tile_size, 1)
        gram = product(0, min(tile_size, size))
        if num_tiles > 1:
            gram = jax.lax.fori_loop(
                1, num_tiles, lambda i, g: g + product(i * tile_size, tile_size), gram
            )
        rest = size - num_tiles * tile_size
        return gram + product(size - rest, rest) if rest > 0 else gram

    return by_platform(add_tiles, cpu=_CPU_TILE, device=_DEVICE_TILE)


def squared_norms_of_rows(rows: jax.Array, centre: jax.Array | None) -> jax.Array:
    """Computes squared distances of the rows from a centre ``[d]``, or from 0.

    Args:
      rows: floating point ``[M, d]``.
      centre: of the dtype of the result, or None.

    Returns:
      ``[M]``, float32 (float64 for float64).
    """
    wide = working_dtype(rows.dtype)

    def squares(start: int | jax.Array, count: int) -> jax.Array:
        tile = jax.lax.dynamic_slice_in_dim(rows, start, count, axis=1).astype(wide)
        if centre is not None:
            tile = tile - jax.lax.dynamic_slice_in_dim(centre, start, count)[None]
        return jnp.square(tile)

    # XLA on CPU adds up a row one number after the other: so tiles are added first.
    size = rows.shape[1]
    if size == 0:
        return jnp.sum(rows.astype(wide), axis=1)
    width = min(_ROW_TILE, size)
    num_tiles = size // width
    total = jax.lax.fori_loop(
        1,
        num_tiles,
        lambda i, sums: sums + squares(i * width, width),
        squares(0, width),
    )
    norms = jnp.sum(total, axis=1)
    rest = size - num_tiles * width
    return norms + jnp.sum(squares(size - rest, rest), axis=1) if rest > 0 else norms


def norms_of(squared: jax.Array) -> jax.Array:
    """Returns the square roots of squared norms, with derivative 0 at 0, not inf."""
    is_zero = squared == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared)))


def clip_factors(norms: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Returns min(1, radius / norm) ``[M]``: 1 at norm 0, whatever the radius.

    A radius below 0 counts as 0, and one of NaN gives NaN.
    """
    radius = jnp.maximum(jnp.asarray(radius, norms.dtype), 0)
    is_far = ~(norms <= radius)
    return jnp.where(is_far, radius, 1) / jnp.where(is_far, norms, 1)


def sound_rows(gram: jax.Array, present: jax.Array | None) -> jax.Array:
    """Returns who is present at a finite distance from the median, bool ``[M]``."""
    sound = jnp.isfinite(jnp.diagonal(gram))
    return sound if present is None else sound & present


def squared_distances(gram: jax.Array, sound: jax.Array) -> jax.Array:
    """Computes squared distances ``[M, M]``, exactly symmetric.

    Between a worker and one who is not sound they are +inf, to oneself 0.
    """
    squares = jnp.diagonal(gram)
    squared = squares[:, None] + squares[None, :] - 2 * gram
    squared = jnp.maximum(squared, 0)
    upper = jnp.triu(squared, 1)
    squared = upper + upper.T
    known = jnp.isfinite(squared) & sound[:, None] & sound[None, :]
    return jnp.where(known, squared, np.inf)


def scores(squared: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums those of the squared distances ``[M, n]`` that are counted.

    Returns:
      how many of them are infinite, int32 ``[M]``, and the sum of the others ``[M]``:
      scores compare by both, so that with fewer finite distances than are counted, the
      workers with most of them still come first.
    """
    finite = jnp.isfinite(squared)
    num_far = jnp.sum(counted & ~finite, axis=1, dtype=jnp.int32)
    return num_far, jnp.sum(jnp.where(counted & finite, squared, 0), axis=1)
