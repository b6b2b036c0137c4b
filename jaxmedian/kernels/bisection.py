"""Selection by bisection on the bits of the order keys: for many workers.

The wanted value is found digit by digit, a digit being 8 bits of the key, and within a
digit bit by bit: if at most ``rank`` rows lie below a trial value, the value is at
least that (a radix select: Knuth, The Art of Computer Programming 3, 5.2.5; Alabi et
al., "Fast k-selection algorithms for graphics processing units", 2012). A key of 32
bits costs 32 counts of all rows however many there are, and since each count reads one
byte a number, the rows of a cache-sized tile of coordinates stay in cache throughout.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from jaxmedian.kernels.rows import zeros_varying_like

_DIGIT = 8  # bits: a count over int8 handles 4 times as many numbers as over int32

State = tuple[jax.Array, jax.Array, jax.Array]


def select(keys: jax.Array, ranks: tuple[int, ...]) -> list[jax.Array]:
    """Returns the rows of the given ranks of an elementwise sort, as a network would.

    Args:
      keys: signed order keys ``[M, d]``.
      ranks: r, or r and r + 1; 0 is the smallest.
    """
    value, is_last = _value_of_rank(keys, ranks[0])
    if len(ranks) == 1:
        return [value]
    assert ranks[1] == ranks[0] + 1
    above = jax.lax.cond(
        jnp.any(is_last), _next_value, lambda keys, value: value, keys, value
    )
    return [value, jnp.where(is_last, above, value)]


def _value_of_rank(keys: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Returns the value ``[d]``, and whether the next rank has a larger one."""
    dtype, num_bits = keys.dtype, keys.dtype.itemsize * 8

    def add_digit(position: jax.Array, state: State) -> State:
        """Extends the known leading digits of the value.

        Candidates are the rows that share them. ``rank`` is the wanted one among them,
        ``count`` their number.
        """
        prefix, rank, count = state
        rest = _shift_right(keys, num_bits - _DIGIT * (position + 1))
        is_candidate = _shift_right(rest, _DIGIT) == prefix[None]
        # As int8 the first digit has its sign already; of the others 0 to 255 becomes
        # -128 to 127. Rows that are no candidates never lie below a trial value.
        flip = jnp.where(position == 0, 0, 128).astype(dtype)
        digits = jnp.where(is_candidate, rest ^ flip, np.asarray(127, dtype))
        digit, rank, count = _digit_of_rank(digits.astype(jnp.int8), rank, count)
        last = digit.astype(jnp.uint8).astype(dtype) ^ flip
        return prefix << np.asarray(_DIGIT, dtype) | last, rank, count

    zero = zeros_varying_like(keys[0])
    num_rows = keys.shape[0]
    count = zero.astype(jnp.int16 if num_rows < 2**15 else jnp.int32)
    state = zero, count + count.dtype.type(rank), count + count.dtype.type(num_rows)
    value, rank_in_equals, num_equal = jax.lax.fori_loop(
        0, num_bits // _DIGIT, add_digit, state
    )
    return value, rank_in_equals + num_equal.dtype.type(1) == num_equal


def _digit_of_rank(digits: jax.Array, rank: jax.Array, count: jax.Array) -> State:
    """Finds a digit by bisection.

    Args:
      digits: int8 ``[M, d]``.
      rank: int16 or int32 ``[d]``, of the wanted row.
      count: of the same type, the number of candidates.

    Returns:
      the digit of the wanted row, int8; its rank among the rows of the same digit, and
      their number.
    """

    def add_bit(position: jax.Array, state: State) -> State:
        digit, num_below, num_at_most = state
        # All int8 (-128 + -128 wraps to 0): wider numbers in the expression of a count
        # would cost it lanes.
        trial = digit + (np.int32(128) >> position).astype(jnp.int8)
        num_below_trial = _count_below(digits, trial, count.dtype)
        fits = num_below_trial <= rank
        return (
            jnp.where(fits, trial, digit),
            jnp.where(fits, num_below_trial, num_below),
            jnp.where(fits, num_at_most, num_below_trial),
        )

    zero = zeros_varying_like(rank)
    state = zero.astype(jnp.int8) + np.int8(-128), zero, count
    digit, num_below, num_at_most = jax.lax.fori_loop(
        np.int32(0), np.int32(_DIGIT), add_bit, state
    )
    return digit, rank - num_below, num_at_most - num_below


def _shift_right(bits: jax.Array, distance: int | jax.Array) -> jax.Array:
    """Shifts zeros in, whatever the sign."""
    distance = jnp.asarray(distance, bits.dtype)
    return jax.lax.shift_right_logical(bits, jnp.broadcast_to(distance, bits.shape))


# --- reductions over the rows ---------------------------------------------------------
#
# XLA on CPU reduces a leading axis slowly, and does not vectorise one expression over
# hundreds of rows. So slabs of rows are reduced first, then the rows of their result.


def _count_below(digits: jax.Array, limit: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Counts, coordinate by coordinate, the rows below the limit ``[d]``."""
    votes = [
        ((slab < limit[None]) & is_new).astype(jnp.int8)
        for slab, is_new in _slabs(digits)
    ]
    tallies: jax.Array = reduce(jnp.add, votes)  # at most 64 each
    return reduce(jnp.add, [tally.astype(dtype) for tally in tallies])


def _next_value(keys: jax.Array, value: jax.Array) -> jax.Array:
    """Returns the least key above the value, or the largest key there can be."""
    largest = np.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    above = [jnp.where(slab > value[None], slab, largest) for slab, _ in _slabs(keys)]
    least_above: jax.Array = reduce(jnp.minimum, above)
    return reduce(jnp.minimum, list(least_above))


def _slabs(rows: jax.Array) -> list[tuple[jax.Array, np.ndarray]]:
    """Cuts the rows into up to 64 slabs of 16 rows or more.

    Of fewer, and XLA would join both steps of a reduction in one expression again (it
    copies an operand into an expression up to 15 times).

    Returns:
      each slab ``[n, d]``, with a mask ``[n, 1]`` of the rows not in the slab before:
      the last slab begins early where the number of rows is no multiple.
    """
    num_rows = rows.shape[0]
    size = min(16 * -(-num_rows // 1024), num_rows)
    starts = [min(i, num_rows - size) for i in range(0, num_rows, size)]
    ends = [0, *(start + size for start in starts)]
    return [
        (rows[start : start + size], (np.arange(start, start + size) >= end)[:, None])
        for start, end in zip(starts, ends, strict=False)
    ]
