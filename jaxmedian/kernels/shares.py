"""Derivatives of medians and of means of the middle: those of the selected rows.

A selected value moves as the row that holds it, and a mean of the middle as the mean of
the rows that are kept:

    d result_j = sum_i s_ij d x_ij,    sum_i s_ij = 1

The shares s are constant almost everywhere, so second derivatives are 0. Where rows tie
for a place they share it equally (by their weights): a subgradient of the median that
does not depend on the order of the workers.

Nothing here runs unless a derivative is asked for; then it takes memory ``[M, d]``.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

from jaxmedian.kernels.networks import without_nan
from jaxmedian.kernels.rows import add_up, working_dtype

# Rows to add in one expression; the transpose of a loop over rows would take a pass
# over all of them for each.
_UNROLLED_ROWS = 112


def stored(rows: jax.Array) -> jax.Array:
    """Returns the rows as values to select from: no derivative, and NaN as +inf.

    A loop stores them, one by one. XLA would else compute them anew both where values
    are selected and where they are looked for, and might round one of the two.
    """
    return jax.lax.map(without_nan, jax.lax.stop_gradient(rows))


def masses_of(present: jax.Array | None, values: jax.Array) -> jax.Array:
    """Returns 1 for each worker present and 0 for the others, ``[M]``."""
    wide = working_dtype(values.dtype)
    return jnp.ones(len(values), wide) if present is None else present.astype(wide)


def mass_where(
    holds: Callable[[jax.Array], jax.Array], values: jax.Array, masses: jax.Array
) -> jax.Array:
    """Adds up the masses ``[M]`` of the rows whose value holds, ``[d]``."""

    def mass(worker: int | jax.Array) -> jax.Array:
        return jnp.where(holds(values[worker]), masses[worker], 0)

    return add_up(mass, len(values))


def tangent_of_median(
    values: jax.Array,
    tangents: jax.Array,
    masses: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> jax.Array:
    """Moves as the rows of value ``low`` and those of value ``high``, half and half."""
    at_low = jnp.where(low == high, 1, jnp.asarray(0.5, masses.dtype))
    return tangent_of_mean(values, tangents, masses, low, high, at_low, 1 - at_low, 0)


def tangent_of_trimmed_mean(
    values: jax.Array,
    tangents: jax.Array,
    masses: jax.Array,
    low: jax.Array,
    high: jax.Array,
    cut: int | jax.Array,
) -> jax.Array:
    """Moves as the rows from value ``low`` to ``high``, less ``cut`` at each end."""
    rest = jnp.sum(masses) - 2 * cut
    rest = jnp.where(rest > 0, rest, 1)
    below = mass_where(lambda value: value <= low, values, masses) - cut
    above = mass_where(lambda value: value >= high, values, masses) - cut
    at_low = jnp.where(low == high, 1, below / rest)
    return tangent_of_mean(
        values, tangents, masses, low, high, at_low, above / rest, 1 / rest
    )


def tangent_of_mean(
    values: jax.Array,
    tangents: jax.Array,
    masses: jax.Array,
    low: jax.Array,
    high: jax.Array,
    at_low: jax.Array,
    at_high: jax.Array,
    inside: jax.Array | float,
) -> jax.Array:
    """Adds up what each row moves, times its share in the result.

    Args:
      values: `stored` rows ``[M, d]``.
      tangents: how the rows move, ``[M, d]``.
      masses: ``[M]``, how many workers each row counts as; 0 of the absent.
      low: ``[d]``, the smallest value that counts.
      high: ``[d]``, the largest.
      at_low: ``[d]``, share of all rows of value ``low`` together.
      at_high: ``[d]``, share of all rows of value ``high``, if it is not ``low``.
      inside: share of one worker between them.

    Returns:
      ``[d]``, float32 (float64 for float64).
    """
    num_low = mass_where(lambda value: value == low, values, masses)
    num_high = mass_where(lambda value: value == high, values, masses)
    at_low = at_low / jnp.where(num_low > 0, num_low, 1)
    at_high = at_high / jnp.where(num_high > 0, num_high, 1)
    is_inside = (values > low[None]) & (values < high[None])
    share = jnp.where(is_inside, inside, jnp.zeros_like(masses)[:, None])
    share = jnp.where(values == high[None], at_high[None], share)
    share = jnp.where(values == low[None], at_low[None], share) * masses[:, None]
    # A row without a share may move by NaN.
    moved = jnp.where(share != 0, share * tangents.astype(share.dtype), 0)
    if len(moved) > _UNROLLED_ROWS:
        return jnp.sum(moved, axis=0)
    return reduce(jnp.add, jax.lax.split(moved, (1,) * len(moved)))[0]
