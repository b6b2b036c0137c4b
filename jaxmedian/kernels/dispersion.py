"""How far the workers' values of each coordinate lie apart: rows in, a row out.

    mean_square          (1/n) sum_i g_i^2
    standard_deviation   sqrt((1/n) sum_i (g_i - mean)^2)
    extent               max_i g_i - min_i g_i
    median_deviation     median_i |g_i - median|

over the n finite values of the workers present; 0 where there are none. The first three
have breakdown point 0: one worker's finite value moves them as far as it likes. Squares
of values above 1e19 overflow float32 to inf.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmedian.kernels.distances import norms_of
from jaxmedian.kernels.rows import add_up, working_dtype
from jaxmedian.kernels.selection import median_of_rows

Dispersion = Callable[[jax.Array, jax.Array | None], jax.Array]


def mean_square(rows: jax.Array, present: jax.Array | None) -> jax.Array:
    """Computes the mean square of each coordinate; NaN where there is no value.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      present: bool ``[M]``, or None if everybody is.

    Returns:
      ``[d]``, float32 (float64 for float64).
    """
    total, number = _sums(rows, present, lambda row: jnp.square(row))
    return total / number


def standard_deviation(rows: jax.Array, present: jax.Array | None) -> jax.Array:
    """Computes the standard deviation of each coordinate, with divisor n.

    Squares of values far from 0 would cancel: distances are taken from a value that
    some worker holds, and so are exactly 0 where all agree. Shapes as in `mean_square`.
    """
    held = rows[0] if present is None else rows[jnp.argmax(present)]
    held = held.astype(working_dtype(rows.dtype))
    # One pass over the rows where the first worker's values are finite, else two.
    finite = jnp.isfinite(held)
    held = jax.lax.cond(
        finite.all(),
        lambda: held,
        lambda: jnp.where(finite, held, _ends(rows, present)[0]),
    )

    def distance_and_square(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        away = row - held
        return away, jnp.square(away)

    (total, squares), number = _sums(rows, present, distance_and_square)
    n = jnp.maximum(number, 1)
    return norms_of(jnp.maximum(squares / n - jnp.square(total / n), 0))


def extent(rows: jax.Array, present: jax.Array | None) -> jax.Array:
    """Computes the difference of the largest and the least value of each coordinate.

    Shapes as in `mean_square`.
    """
    largest, least = _ends(rows, present)
    width = largest - least
    return jnp.where(width >= 0, width, 0)


def median_deviation(rows: jax.Array, present: jax.Array | None) -> jax.Array:
    """Computes the median absolute deviation from the median of each coordinate.

    Values that are not finite count as infinitely far: a minority of them, or of any
    values, leaves it within the deviations of the others. Shapes as in `mean_square`.
    """
    wide = rows.astype(working_dtype(rows.dtype))
    # In a branch of its own the median is stored; else XLA selects it again for every
    # row that it is subtracted from. The branch is always taken, which XLA cannot see.
    value = rows.reshape(-1)[:1].sum()
    middle = jax.lax.cond(
        jnp.isfinite(value) | ~jnp.isfinite(value),
        lambda: median_of_rows(wide, noise=None, even="midpoint", present=present),
        lambda: jnp.zeros_like(wide[0]),
    )
    away = jnp.abs(wide - middle[None])
    return median_of_rows(away, noise=None, even="midpoint", present=present)


def _ends(rows: jax.Array, present: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the largest and the least value; -inf and inf where there is none."""
    wide = working_dtype(rows.dtype)

    def both_ways(worker: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        counted = _is_counted(rows[worker], worker, present)
        row = rows[worker].astype(wide)
        return jnp.where(counted, row, -jnp.inf), jnp.where(counted, -row, -jnp.inf)

    largest, negative = add_up(both_ways, rows.shape[0], combine=jnp.maximum)
    return largest, -negative


def _sums(
    rows: jax.Array, present: jax.Array | None, of_row: Callable[[jax.Array], Any]
) -> tuple[Any, jax.Array]:
    """Adds up ``of_row`` over the finite values present, and counts them."""
    wide = working_dtype(rows.dtype)

    def term(worker: int | jax.Array) -> tuple[Any, jax.Array]:
        counted = _is_counted(rows[worker], worker, present)
        values = of_row(rows[worker].astype(wide))
        kept = jax.tree.map(lambda value: jnp.where(counted, value, 0), values)
        return kept, counted.astype(wide)

    return add_up(term, rows.shape[0])


def _is_counted(
    row: jax.Array, worker: int | jax.Array, present: jax.Array | None
) -> jax.Array:
    finite = jnp.isfinite(row)
    return finite if present is None else finite & present[worker]
