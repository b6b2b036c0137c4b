"""Selection by a network of comparators: for up to about a hundred workers.

A comparator takes two rows of coordinates and leaves their elementwise minimum in one,
their maximum in the other. A fixed list of comparators, the same for any data, sorts
each coordinate along the rows without a branch, so XLA fuses the whole list into one
pass over memory. Comparators whose result never reaches a wanted rank are left out.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np


def select(
    keys: jax.Array | Sequence[jax.Array], ranks: tuple[int, ...]
) -> list[jax.Array]:
    """Returns the rows of the given ranks of an elementwise sort.

    Args:
      keys: order keys ``[M, d]``, or M rows ``[d]``.
      ranks: any of 0 (the smallest) to M - 1.
    """
    wires = list(keys)
    for i, j in comparators(len(wires), ranks):
        low, high = jnp.minimum(wires[i], wires[j]), jnp.maximum(wires[i], wires[j])
        wires[i], wires[j] = low, high
    return [wires[rank] for rank in ranks]


@lru_cache
def comparators(num_rows: int, ranks: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Lists the comparators (i, j), i < j, that the given ranks depend on, in order.

    Each leaves the smaller value at i. Walking back from the wanted outputs drops what
    they do not need: for a median of n rows about n log2(n)^2 / 6 comparators remain.

    >>> [len(comparators(n, (n // 2,))) for n in (3, 5, 11, 51, 101)]
    [3, 8, 29, 295, 790]
    """
    size = 1 << max(num_rows - 1, 0).bit_length()
    needed = set(ranks)
    kept = []
    for i, j in reversed(list(_pairwise_sort(range(size)))):
        if j < num_rows and (i in needed or j in needed):
            needed.update((i, j))
            kept.append((i, j))
    return tuple(reversed(kept))


def _pairwise_sort(wires: range) -> Iterator[tuple[int, int]]:
    """Sorts 2^k wires by Parberry's pairwise network.

    Compare neighbours, sort all the smaller ones and all the larger ones (each half
    recursively), then merge the two. Pruned to a few ranks it is a tenth smaller than
    the pruned network of Batcher, which is as large when whole. A number of rows that
    is not a power of two is filled up with rows of +inf: they never move, so their
    comparators are dropped.

    References:
      Parberry, "The pairwise sorting network", Parallel Processing Letters 2, 1992.
      Codish and Zazon-Ivry, "Pairwise cardinality networks", LPAR 2010 (selection).
    """
    n = len(wires)
    if n == 1:
        return
    for i in range(0, n, 2):
        yield wires[i], wires[i + 1]
    yield from _pairwise_sort(wires[0::2])
    yield from _pairwise_sort(wires[1::2])
    distance = n // 2 - 1
    while distance > 0:
        for i in range(1, n - distance, 2):
            yield wires[i], wires[i + distance]
        distance //= 2


_INTEGER = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}  # by bytes of the float type


def to_order_keys(values: jax.Array) -> jax.Array:
    """Maps floats to signed integers of the same order, NaN to that of +inf.

    The bits of a non-negative float, read as an integer, already rise with it; those of
    a negative float fall, which flipping all bits but the sign mends.

    >>> to_order_keys(jnp.float32([-np.inf, -1.0, -0.0, 0.0, 1.0])).tolist()
    [-2139095041, -1065353217, -1, 0, 1065353216]
    """
    bits = jax.lax.bitcast_convert_type(
        without_nan(values), _INTEGER[values.dtype.itemsize]
    )
    return _flip_negative(bits)


def without_nan(values: jax.Array) -> jax.Array:
    """Puts +inf for NaN, as which it counts in every selection."""
    return jnp.where(jnp.isnan(values), np.inf, values)


def from_order_keys(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Inverts `to_order_keys` (up to the NaNs)."""
    return jax.lax.bitcast_convert_type(_flip_negative(keys), dtype)


def _flip_negative(bits: jax.Array) -> jax.Array:
    width = np.asarray(bits.dtype.itemsize * 8 - 1, bits.dtype)
    all_but_sign = np.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)
    return bits ^ ((bits >> width) & all_but_sign)
