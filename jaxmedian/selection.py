"""The median over workers, coordinate by coordinate, from whole rows.

`jnp.median` sorts along the worker axis, one coordinate at a time. Here a sorting
network runs over rows instead: each comparator is one elementwise minimum and maximum
of two rows of coordinates, and comparators whose result never reaches the middle are
left out. Values are compared as integers in the order -inf < ... < -0.0 < 0.0 < ... <
inf, NaN counting as +inf, which is a total order and the same on every device.

Only ranks are decided here; ties do not matter to a median. Noise is drawn by
`jaxmedian.leaf_noise`, collectives are `jaxmedian.collectives`' alone.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian import random_bits
from jaxmedian.leaf_noise import LeafNoise

EVEN_RULES = ("midpoint", "lower", "upper")
_INTEGER = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}  # by bytes of the float type


def median_of_rows(
    rows: jax.Array,
    *,
    noise: LeafNoise | None,
    even: str,
    present: jax.Array | None,
) -> jax.Array:
    """Computes median_i(g_i + b xi_i) coordinate by coordinate.

    Args:
      rows: floating point ``[M, d]``, M >= 1.
      noise: b xi, or None for the plain median.
      even: which value ends an even count: "midpoint" (a/2 + b/2 of the middle two),
        "lower" or "upper".
      present: bool ``[M]``, or None if everybody is. With nobody present the median
        is 0.

    Returns:
      ``[d]``, in the noise's dtype if there is noise, else in that of the rows.
    """
    positions = random_bits.positions(rows.shape[1])
    values = [
        rows[i] if noise is None else noise.noisy_row(i, rows[i], positions)
        for i in range(rows.shape[0])
    ]
    dtype = values[0].dtype
    keys = [to_order_keys(value) for value in values]
    if present is None:
        return _middle(keys, even, dtype)
    return _middle_of_present(keys, present, even, dtype)


def _middle(keys: list[jax.Array], even: str, dtype: jnp.dtype) -> jax.Array:
    low, high = (len(keys) - 1) // 2, len(keys) // 2
    if low == high or even == "lower":
        return from_order_keys(*select(keys, (low,)), dtype)
    if even == "upper":
        return from_order_keys(*select(keys, (high,)), dtype)
    a, b = (from_order_keys(key, dtype) for key in select(keys, (low, high)))
    return _midpoint(a, b)


def _middle_of_present(
    keys: list[jax.Array], present: jax.Array, even: str, dtype: jnp.dtype
) -> jax.Array:
    """Takes the middle of those present with a network of fixed ranks.

    Absent workers are filled in below and above everybody so that the two fixed middle
    ranks of all M rows fall on the two middle ranks of the n present ones.
    """
    num_workers = len(keys)
    num_present = jnp.sum(present, dtype=jnp.int32)
    low = (num_workers - 1) // 2
    num_below = low - (num_present - 1) // 2  # 0 <= num_below <= M - n
    place = jnp.cumsum(~present, dtype=jnp.int32) - 1  # among the absent
    limits = jnp.iinfo(keys[0].dtype)
    fill = jnp.where(
        place < num_below,
        np.asarray(limits.min, keys[0].dtype),
        np.asarray(limits.max, keys[0].dtype),
    )
    filled = [jnp.where(present[i], key, fill[i]) for i, key in enumerate(keys)]
    ranks = (low, min(low + 1, num_workers - 1))
    a, b = (from_order_keys(key, dtype) for key in select(filled, ranks))
    is_even = num_present % 2 == 0
    if even == "midpoint":
        b = _midpoint(a, b)
    middle = a if even == "lower" else jnp.where(is_even, b, a)
    return jnp.where(num_present > 0, middle, np.asarray(0, dtype))


def _midpoint(a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    half = np.asarray(0.5, wide)
    return (a.astype(wide) * half + b.astype(wide) * half).astype(a.dtype)


# --- order ----------------------------------------------------------------------------


def to_order_keys(values: jax.Array) -> jax.Array:
    """Maps floats to signed integers of the same order, NaN to that of +inf.

    The bits of a non-negative float, read as an integer, already rise with it; those of
    a negative float fall, which flipping all bits but the sign mends.
    """
    values = jnp.where(jnp.isnan(values), np.asarray(np.inf, values.dtype), values)
    bits = jax.lax.bitcast_convert_type(values, _INTEGER[values.dtype.itemsize])
    return _flip_negative(bits)


def from_order_keys(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Inverts `to_order_keys` (up to the NaNs)."""
    return jax.lax.bitcast_convert_type(_flip_negative(keys), dtype)


def _flip_negative(bits: jax.Array) -> jax.Array:
    width = np.asarray(bits.dtype.itemsize * 8 - 1, bits.dtype)
    all_but_sign = np.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)
    return bits ^ ((bits >> width) & all_but_sign)


# --- networks -------------------------------------------------------------------------


def select(rows: Sequence[jax.Array], ranks: tuple[int, ...]) -> list[jax.Array]:
    """Returns the rows of the given ranks (0 the smallest) of an elementwise sort."""
    wires = list(rows)
    for i, j in comparators(len(wires), ranks):
        low, high = jnp.minimum(wires[i], wires[j]), jnp.maximum(wires[i], wires[j])
        wires[i], wires[j] = low, high
    return [wires[rank] for rank in ranks]


@lru_cache
def comparators(num_rows: int, ranks: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Lists the comparators of a sorting network that the given ranks depend on.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2 M) sorts n
    rows with about n log2(n)^2 / 4 comparators (i, j), i < j, each of which leaves the
    smaller value at i. Walking back from the wanted outputs drops the others.

    >>> [len(comparators(n, (n // 2,))) for n in (3, 5, 11, 101)]
    [3, 8, 31, 903]
    """
    needed = set(ranks)
    kept = []
    for i, j in reversed(list(_merge_exchange(num_rows))):
        if i in needed or j in needed:
            needed.update((i, j))
            kept.append((i, j))
    return tuple(reversed(kept))


def _merge_exchange(num_rows: int) -> Iterator[tuple[int, int]]:
    top = 1 << max(num_rows - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, distance = top, 0, p
        while True:
            for i in range(num_rows - distance):
                if i & p == r:
                    yield i, i + distance
            if q == p:
                break
            distance, q, r = q - p, q // 2, p
        p //= 2
